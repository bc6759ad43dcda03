"""Whole hosts measured by real processes: requests, phases, failures, several hosts, and the command."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from namespaces import namespaces, why_no_namespaces

from costmodels.discover import CpuFacts, GpuFacts, MachineFacts
from costmodels.profile_io import load_profile
from executors.profiling import requests as requests_module
from executors.profiling.host import HostRequest, measure_host, orders_of, request_from_json, request_to_json
from executors.profiling.host import main as host_main
from executors.profiling.hosts import measure_hosts
from executors.profiling.merging import merge
from executors.profiling.plans import training_bytes
from executors.profiling.requests import MEMORY_FRAC, host_request, hostfile_requests, joined_requests
from executors.remote import transport_from
from planner.files import load_model
from policies.errors import ExecutorFailedError, InputError

pytest.importorskip("torch")

MODEL = """\
schema: echelon/model/1
name: nano
config: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2,
         num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 64, max_position_embeddings: 64,
         tie_word_embeddings: false}
job: {method: lora, rank: 4, targets: [q, v], dtype: fp32, sequence: 16, micro_batch_sizes: [2],
      sequences_per_step: 8, max_stages: 2}
"""
LISTED = """\
schema: echelon/model/1
name: listed
layers:
  - {kind: embedding, params: 1000, flops: 2 MFLOP, activation: 4 kB, input: 1 kB, output: 1 kB}
  - {kind: head, params: 1000, flops: 2 MFLOP, activation: 4 kB, input: 1 kB, output: 1 kB}
job: {method: full, dtype: fp32, sequence: 8, micro_batch_sizes: [1], sequences_per_step: 8}
"""
FACTS = MachineFacts(
    host_name="here",
    cpu=CpuFacts(model_name="Some CPU @ 2 GHz", num_sockets=1, num_cores=2),
    memory_bytes=2**34,
    gpus=(),
    rates=None,
)
GPU = GpuFacts(name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * 2**30, link_bytes_per_s=None)
Cli = Callable[..., Any]


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(MODEL, encoding="utf-8")
    return path


def quick(request: HostRequest, **changes: Any) -> HostRequest:
    """The same measurement with next to nothing in it."""
    return replace(request, steps=1, warm_up_steps=1, micro_batches=2, probe_s=0.005, **changes)


def children() -> set[str]:
    """Pids of this process's children."""
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii").split())


def test_requests_say_what_fits_and_leave_the_rest_to_the_host(model_path: Path) -> None:
    workload = load_model(model_path)
    request = host_request(workload, FACTS, num_ranks=2)
    assert (request.chosen, request.sizes, request.num_ranks) == ((0, 1, 2, 3), (1, 2), 2)
    assert (request.device_type, request.accelerator) == (None, "auto")
    again = request_from_json(request_to_json(request))
    assert request_to_json(again) == request_to_json(request)
    assert replace(again, model=request.model) == request
    with_gpus = replace(FACTS, gpus=(GPU,) * 3)
    assert host_request(workload, with_gpus).num_ranks == 3
    blocks = (workload.layers[0], *(workload.layers[1],) * 8, workload.layers[-1])
    long = replace(workload, layers=blocks)
    need_bytes = training_bytes(long, (0, 1, 2, 3, 9), 2)
    tight = replace(FACTS, memory_bytes=int(need_bytes / MEMORY_FRAC) + 1)
    assert host_request(long, tight, num_ranks=1).chosen == (0, 1, 2, 3, 9)
    with pytest.raises(InputError) as caught:
        host_request(long, replace(FACTS, memory_bytes=1000), num_ranks=1)
    assert caught.value.code == "profile-too-large"


def test_hosts_of_one_run_number_their_ranks_through(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("gpu-1 slots=2\ngpu-2 slots=3\n", encoding="utf-8")
    requests = hostfile_requests(load_model(model_path), FACTS, tmp_path / "hosts")
    assert [(r.host, r.first_rank, r.num_ranks, r.world_size) for r in requests] == [
        ("gpu-1", 0, 2, 5),
        ("gpu-2", 2, 3, 5),
    ]
    orders = orders_of(requests[1], "torch", 1, tmp_path)
    assert [order.rank for order in orders] == [2, 3, 4]
    assert {order.join for order in orders} == {f"tcp:gpu-1:{requests[0].port + 1}"}
    with pytest.raises(InputError) as caught:
        hostfile_requests(load_model(model_path), FACTS, tmp_path / "none")
    assert caught.value.code == "bad-input"


def test_a_rank_that_fails_ends_the_others_and_is_named(model_path: Path) -> None:
    """No processor at all to run on."""
    broken = quick(host_request(load_model(model_path), FACTS, num_ranks=2), threads=0, executors=())
    before = children()
    with pytest.raises(ExecutorFailedError) as caught:
        measure_host(broken)
    assert caught.value.code == "profile-rank-failed"
    assert "ended with exit code 1 while measuring layers: OSError" in caught.value.message
    assert children() == before


def test_ranks_that_take_too_long_are_ended(model_path: Path) -> None:
    request = quick(host_request(load_model(model_path), FACTS, num_ranks=1), deadline_s=0.2, executors=())
    before = children()
    with pytest.raises(ExecutorFailedError) as caught:
        measure_host(request)
    assert caught.value.code == "profile-timeout"
    assert children() == before


@pytest.mark.net
def test_several_hosts_meet_and_their_links_are_outer_ones(model_path: Path) -> None:
    """Two hosts of one rank each, both this machine: every host by a command of its own."""
    workload = load_model(model_path)
    one = quick(host_request(workload, FACTS, num_ranks=1, device_type="core"), executors=())
    port = 20_000 + os.getpid() % 20_000
    hosts = [replace(one, host=name, port=port) for name in ("first", "second")]
    requests = joined_requests(hosts, "127.0.0.1")
    documents = measure_hosts(requests, transport_from("local"))
    assert [document["host"] for document in documents] == ["first", "second"]
    profile = merge(workload, documents)
    assert set(profile.outer) == {("core", "core")}
    assert profile.inner == {}
    assert profile.outer["core", "core"].transfer_s(1e6) > 0.0


@pytest.mark.net
@pytest.mark.netns
@pytest.mark.skipif(bool(why_no_namespaces()), reason=f"namespaces: {why_no_namespaces()}")
def test_hosts_with_networks_of_their_own_meet(model_path: Path) -> None:
    """The name of such a host leads to its loopback, where nobody else hears it."""
    workload = load_model(model_path)
    one = quick(host_request(workload, FACTS, num_ranks=1, device_type="core"), executors=())
    with namespaces(2, bits_per_s=200e6) as hosts:
        requests = joined_requests([replace(one, host=host.name) for host in hosts], hosts[0].address)
        profile = merge(workload, measure_hosts(requests, transport_from("netns")))
    assert 0.5 * 0.04 < profile.outer["core", "core"].transfer_s(1e6) < 4.0 * 0.04


@pytest.mark.net
def test_a_host_that_fails_is_named_and_the_others_are_ended(model_path: Path) -> None:
    workload = load_model(model_path)
    one = quick(host_request(workload, FACTS, num_ranks=1), executors=())
    port = 20_000 + (os.getpid() + 7_000) % 20_000
    requests = joined_requests([replace(one, host=name, port=port) for name in ("good", "bad")], "127.0.0.1")
    requests[1] = replace(requests[1], threads=0)
    before = children()
    with pytest.raises(ExecutorFailedError) as caught:
        measure_hosts(requests, transport_from("local"))
    assert caught.value.code == "profile-host-failed"
    assert caught.value.message.startswith("bad: error[profile-rank-failed]: rank 1 ended")
    assert children() == before


def test_a_request_may_come_as_an_argument(model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For ways to a host that carry no input."""
    request = quick(host_request(load_model(model_path), FACTS, num_ranks=1), deadline_s=0.0)
    code = host_main([b64encode(request_to_json(request).encode()).decode()])
    assert code == ExecutorFailedError.exit_code
    assert "error[profile-timeout]: ranks 0 did not finish measuring layers" in capsys.readouterr().err


def test_the_command_writes_a_profile_and_prints_the_host(
    cli: Cli, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*args: Any, **kwargs: Any) -> HostRequest:
        return quick(host_request(*args, **kwargs), executors=())

    monkeypatch.setattr(requests_module, "host_request", small)
    done = cli("profile", "model.yaml", "--ranks", "1", "--device-type", "core", "-o", "mine.json")
    assert done.code == 0, done.err
    assert "type: core  # the profile has its layers" in done.out
    assert "wrote mine.json" in done.err
    profile = load_profile(Path("mine.json"))
    assert (profile.num_layers, set(profile.times)) == (4, {"core"})
    assert profile.times["core"][1].micro_batch_sizes == (1, 2)
    assert profile.job is not None
    assert profile.job.adapter_rank == 4


def test_models_that_cannot_be_built_are_refused_before_anything_starts(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "listed.yaml").write_text(LISTED, encoding="utf-8")
    done = cli("profile", "listed.yaml")
    assert done.code == 3
    assert "error[no-recipe]" in done.err
    assert not Path("profile.json").exists()
    done = cli("profile", "listed.yaml", "-o", "nowhere/profile.json")
    assert (done.code, "output-folder-missing" in done.err) == (3, True)
