"""Layers measured inside engines: every second belongs to a layer, every byte is counted, nothing changes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from chain_cases import TOKENS, VOCAB, spec_of, workload_of  # noqa: E402
from forked import run_ranks  # noqa: E402

from costmodels.fleet import Device, Fleet, Host, Site  # noqa: E402
from costmodels.profile_io import profile_to_document  # noqa: E402
from executors.profiling.answers import SCHEMA, RankOrder, answer_to_json, spans_from_json  # noqa: E402
from executors.profiling.kept_steps import NUM_KEPT, KeptSteps  # noqa: E402
from executors.profiling.layer_clock import LayerClock  # noqa: E402
from executors.profiling.matmul import copy_bytes_per_s, matmul_flop_per_s, sustained_rates  # noqa: E402
from executors.profiling.measuring import measure_executor, measure_layers, outside_s  # noqa: E402
from executors.profiling.merging import merge  # noqa: E402
from executors.profiling.plans import ClockedChain  # noqa: E402
from executors.profiling.reported import ReportedRank, profile_from_ranks  # noqa: E402
from executors.profiling.sizes import LiveBytes, layer_bytes  # noqa: E402
from executors.training.chain import Chain, token_loss  # noqa: E402
from executors.training.clock import Kind, StepClock  # noqa: E402
from planner.canonical import Inputs  # noqa: E402
from planner.check.referee import check  # noqa: E402
from planner.problem import Objective, ObjectiveKind  # noqa: E402
from planner.solve.result import Limits  # noqa: E402
from planner.solving import Request, solve_inputs  # noqa: E402
from policies.policy import Policy  # noqa: E402

ALL = (0, 1, 2, 3)


class Ticks:
    """A watch on which every look takes one second, so that spans count the marks in them."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def between(self, begin: int, end: int) -> tuple[float, float]:
        return float(end - begin), float(end - begin)


def batch(rows: int = 2) -> Any:
    return torch.randint(0, VOCAB, (rows, TOKENS + 1), generator=torch.Generator().manual_seed(3))


def passes(clock: LayerClock, layers: list[Any], tokens: Any) -> float:
    """One micro-batch, as an engine runs it."""
    with clock.span(Kind.FORWARD, 0):
        given = tokens[:, :-1]
        for layer in layers:
            given = layer(given)
        loss = token_loss(given, tokens[:, 1:])
    with clock.span(Kind.BACKWARD, 0):
        loss.backward()
    with clock.span(Kind.OPTIMISER):
        pass
    return float(loss.detach())


@pytest.mark.parametrize("rank", [0, 4])
def test_every_layer_gets_its_part_of_each_pass(rank: int) -> None:
    """One mark per border: forward has 4 layers between 5 marks, the loss with the last.

    In backward the gradient of the loss head's output ends the loss alone. With adapters the embedding has no
    backward pass, and the first block's lasts until the end.
    """
    chain = Chain(spec_of("llama", rank=rank))
    clock = LayerClock(Ticks())
    clocked = ClockedChain(chain, clock)
    layers = [clocked.build(i) for i in range(clocked.num_layers)]
    passes(clock, layers, batch())
    spans = clock.take(micro_batch_size=2, micro_batches=1)
    forward = [spans.forward[i][0][0] for i in ALL]
    backward = [spans.backward[i][0][0] for i in ALL]
    assert forward == [1.0, 1.0, 1.0, 2.0], "the head's mark and the end of the loss"
    assert backward == ([1.0, 1.0, 1.0, 2.0] if rank == 0 else [0.0, 1.0, 1.0, 2.0])
    assert clock.take_others() == {Kind.OPTIMISER: [(1.0, 1.0)]}
    assert clock.take(micro_batch_size=2, micro_batches=1).forward[0] == []


def test_seconds_of_layers_add_up_to_those_of_the_passes() -> None:
    chain = Chain(spec_of("llama"))
    whole = StepClock()
    clock = LayerClock(inner=whole)
    clocked = ClockedChain(chain, clock, (0, 2, 3))
    layers = [clocked.build(i) for i in range(clocked.num_layers)]
    for _ in range(3):
        passes(clock, layers, batch())
    spans, spent = clock.take(micro_batch_size=2, micro_batches=1), whole.take()
    for kind, way in ((Kind.FORWARD, spans.forward), (Kind.BACKWARD, spans.backward)):
        total_s = sum(wall for entries in way.values() for wall, _ in entries)
        assert 0.0 < total_s <= spent[kind].wall_s
        assert total_s >= 0.9 * spent[kind].wall_s - 1e-3


def test_watching_changes_nothing_and_can_pause() -> None:
    chain, tokens = Chain(spec_of("llama")), batch()
    clock = LayerClock()
    clocked = ClockedChain(chain, clock)
    watched, plain = [clocked.build(i) for i in ALL], [chain.build(i) for i in ALL]
    clock.running = False
    assert passes(clock, watched, tokens) == passes(LayerClock(), plain, tokens)
    assert clock.take(micro_batch_size=2, micro_batches=1).forward[0] == []
    for layer, other in zip(watched, plain, strict=True):
        for one, two in zip(layer.parameters(), other.parameters(), strict=True):
            assert torch.equal(one.grad, two.grad)


def test_live_bytes_are_those_of_tensors_alive() -> None:
    with LiveBytes() as live:
        first = torch.ones(1000)
        view = first.view(10, 100)
        assert live.live == 4000, "a view holds nothing of its own"
        second = first * 2
        assert (live.live, live.peak) == (8000, 8000)
        del first
        assert live.live == 8000, "the view keeps it"
        del view
        assert (live.live, live.peak) == (4000, 8000)
        live.restart_peak()
        assert live.peak == 4000
        del second


@pytest.mark.parametrize("rank", [0, 4])
def test_sizes_are_those_of_one_sequence_and_agree_with_the_planner(rank: int) -> None:
    spec = spec_of("llama", rank=rank, sequence_tokens=48)
    chain, workload = Chain(spec), workload_of(spec_of("llama", rank=rank, sequence_tokens=48))
    tokens = torch.randint(0, VOCAB, (4, 49), generator=torch.Generator().manual_seed(3))

    def measured(rows: int) -> dict[int, Any]:
        return layer_bytes({i: chain.build(i) for i in ALL}, tokens[:rows], last=3)

    found, less = measured(4), measured(2)
    hidden_bytes = 48 * 32 * 4
    for i, layer in enumerate(workload.layers):
        assert found[i].params == layer.params
        assert found[i].trainable_params == layer.trainable_params
        assert found[i].weight_bytes == 4 * layer.params
        assert found[i].output_bytes == (0.0 if i == 3 else hidden_bytes)
        assert found[i].input_bytes == (48 * 8 if i == 0 else hidden_bytes)
        assert found[i].activation_bytes == pytest.approx(less[i].activation_bytes, rel=0.02)
    assert found[0].activation_bytes == workload.layers[0].activation_bytes_per_token * 48
    counted = workload.layers[1].activation_bytes_per_token * 48
    assert found[2].activation_bytes == counted, "what a block keeps follows from its architecture"
    assert found[1].activation_bytes == pytest.approx(counted, rel=0.1), "the first makes all angles"
    assert found[3].activation_bytes >= 48 * VOCAB * 4, "probabilities for the gradient of the loss"
    assert found[1].working_bytes >= hidden_bytes


def order_of(phase: str, rank: int, world_size: int, store: Path, **changes: Any) -> RankOrder:
    order = RankOrder(
        phase=phase,
        rank=rank,
        world_size=world_size,
        slot=rank,
        join=f"file:{store}",
        accelerator="cpu",
        model=asdict(spec_of("llama")),
        chosen=ALL,
        sizes=(1, 2),
        micro_batches=2,
        steps=2,
        warm_up_steps=1,
        probe_s=0.005,
    )
    return replace(order, **changes)


def test_ranks_measure_side_by_side(tmp_path: Path) -> None:
    """Two forked ranks meet, time their link once, and run every layer of every size."""

    def work(rank: int) -> Any:
        return measure_layers(order_of("layers", rank, 2, tmp_path / "store"))

    first, second = run_ranks(2, work, group=False)
    assert set(first.links) == {1}
    assert second.links == {}
    assert first.links[1][10_000_000] > first.links[1][1_000] > 0.0
    for answer in (first, second):
        assert [spans.micro_batch_size for spans in answer.spans] == [1, 2]
        assert all(len(entries) == 4 for entries in answer.spans[0].forward.values())
        assert sorted(answer.spans[1].backward) == list(ALL)
        assert answer.update_s > 0.0
        assert answer.update_params == sum(one.trainable_params for one in answer.sizes.values())
        assert all(rate > 0.0 for rate in answer.rates_flop_per_s.values())
        passes_s = sum(
            wall
            for way in (answer.spans[1].forward, answer.spans[1].backward)
            for entries in way.values()
            for wall, _ in entries
        )
        assert passes_s < sum(answer.step_s[2])


def test_a_pipeline_tells_what_an_executor_adds(tmp_path: Path) -> None:
    """Three ranks and two layers: two stages run, the third rank has nothing to do."""

    def work(rank: int) -> Any:
        return measure_executor(order_of("torch", rank, 3, tmp_path / "store", chosen=(0, 3)))

    first, second, idle = run_ranks(3, work, group=False)
    assert (first.layers, second.layers, idle.layers) == ((0,), (3,), ())
    assert (first.in_flight, second.in_flight) == (2, 1)
    for answer in (first, second):
        assert max(answer.peaks_bytes.values()) >= answer.base_bytes > 10 * 2**20
        assert answer.micro_batch_overhead_s >= 0.0
        assert answer.update_s > 0.0
        assert list(answer.peaks_bytes) == [2]


def test_a_measured_machine_plans_for_both_executors(tmp_path: Path) -> None:
    """From forked ranks over the merged profile to plans that the referee believes, for an adapter job."""
    spec = spec_of("llama", rank=4)
    workload = workload_of(spec, max_stages=2)
    workload = replace(workload, job=replace(workload.job, micro_batch_sizes=(1, 2)))

    def work(rank: int) -> Any:
        changes = {"model": asdict(spec)}
        layers = measure_layers(order_of("layers", rank, 2, tmp_path / "layers", **changes))
        torch_s = measure_executor(order_of("torch", rank, 2, tmp_path / "torch", **changes))
        return answer_to_json(layers), answer_to_json(torch_s)

    answers = run_ranks(2, work, group=False)
    both = [executor for _, executor in answers]
    document = {
        "schema": SCHEMA,
        "host": "here",
        "device_type": "core",
        "accelerator": "cpu",
        "first_rank": 0,
        "machine": {"memory_bytes": 2**34, "gpus": []},
        "ranks": [layers for layers, _ in answers],
        "executors": {"torch": both, "deepspeed": both},
    }
    profile = merge(workload, [document])
    assert profile.executors["deepspeed"].blocking_transfers
    assert profile.executors["torch"].overhead_bytes is not None
    inputs = Inputs(fleet=fleet_of(profile), workload=workload, policy=Policy())
    step_s = {}
    for executor in ("torch", "deepspeed"):
        request = Request(
            executor=executor,
            objective=Objective(kind=ObjectiveKind.STEP_TIME),
            cost_model="measured",
            cost_model_settings={"profile": profile_to_document(profile)},
        )
        answer = solve_inputs(inputs, request, Limits(deadline_s=60.0), processes=0)
        report = check(answer.plan)
        assert not report.violations
        replica = answer.plan.boundaries[0].replicas[0]
        assert replica.executor == executor
        step_s[executor] = replica.step_time_s
    assert step_s["deepspeed"] >= step_s["torch"]


def test_a_run_keeps_its_best_steps_and_is_a_profile_afterwards() -> None:
    """Two stages of one chain on two kinds of devices; stage 1 begins with a block."""
    spec = spec_of("llama")
    workload, chain = workload_of(spec), Chain(spec)
    ranks = []
    for name, part in (("old", (0, 1, 2, 3)), ("new", (0, 1, 3))):
        clock = LayerClock()
        clocked = ClockedChain(chain, clock, part)
        layers = [clocked.build(i) for i in range(clocked.num_layers)]
        kept = KeptSteps(clock, micro_batch_size=2, micro_batches=2, every=2)
        for _ in range(2 * NUM_KEPT + 6):
            with kept.step():
                for _ in range(2):
                    passes(clock, layers, batch())
            # An evaluation is no step.
            passes(clock, layers, batch())
        document = json.loads(json.dumps(kept.document()))
        assert len(document["forward"]["1"]) == 2 * NUM_KEPT
        assert document["outside_s"] >= 0.0
        for way in ("forward", "backward"):
            document[way] = {part[int(i)]: entries for i, entries in document[way].items()}
        ranks.append(
            ReportedRank(
                device_type=name,
                executor="deepspeed",
                spans=spans_from_json(document),
                update_s=document["update_s"],
                outside_s=document["outside_s"],
                peak_bytes=2**30,
                in_flight=1,
                pipelined=True,
                sharded=False,
            )
        )
    profile = profile_from_ranks(workload, ranks)
    assert set(profile.times) == {"old", "new"}
    facts = profile.executors["deepspeed"]
    assert facts.blocking_transfers
    assert facts.overhead_bytes is not None
    assert 0.9 * 2**30 < facts.overhead_bytes < 2**30
    assert (profile.times["new"][1].forward_s_ML > 0.0).all()


def test_chunks_of_a_virtual_pipeline_are_cut_on_their_own() -> None:
    """A rank with layers 0 and 2: each chunk's pass begins and ends with itself."""
    chain = Chain(spec_of("llama"))
    clock = LayerClock(Ticks())
    clocked = ClockedChain(chain, clock)
    first, second = clocked.build(0), clocked.build(2)
    with clock.span(Kind.FORWARD, 0):
        hidden = first(batch()[:, :-1])
    with clock.span(Kind.FORWARD, 0):
        output = second(hidden.detach().requires_grad_())
    with clock.span(Kind.BACKWARD, 0):
        output.sum().backward()
    with clock.span(Kind.BACKWARD, 0):
        hidden.sum().backward()
    spans = clock.take(micro_batch_size=2, micro_batches=1)
    assert {i: [wall for wall, _ in entries] for i, entries in spans.forward.items()} == {0: [2.0], 2: [2.0]}
    assert {i: [wall for wall, _ in entries] for i, entries in spans.backward.items()} == {0: [2.0], 2: [2.0]}


def fleet_of(profile: Any) -> Fleet:
    """Two measured cores on a host whose link is the measured one."""
    curve = profile.inner["core", 2]
    devices = tuple(
        Device(
            device_id=f"here/{i}",
            host_id="here",
            type_name="core",
            memory_bytes=2.0**33,
            flop_per_s=(("fp32", 1e10),),
            memory_bytes_per_s=1e10,
            tier_i=0,
        )
        for i in range(2)
    )
    rate = curve.ceiling_bytes_per_s
    return Fleet(
        name="f",
        tiers=("open",),
        boundaries=("lab",),
        sites=(Site(site_id="s", boundary_id="lab", fabric_bytes_per_s=rate),),
        hosts=(Host(host_id="here", site_id="s", link_bytes_per_s=rate),),
        devices=devices,
    )


def test_what_is_left_of_a_step_is_the_executors() -> None:
    from executors.profiling.measuring import Steps
    from executors.profiling.spans import LayerSpans

    spans = LayerSpans(
        micro_batch_size=1,
        micro_batches=2,
        forward={0: [(1.0, 1.0)] * 4},
        backward={0: [(2.0, 2.0)] * 4},
    )
    others = ({Kind.OPTIMISER: 0.5, Kind.SEND: 0.25},) * 2
    steps = Steps(step_s=(9.0, 9.0), cpu_s=(7.75, 60.0), spans=spans, others=others)
    assert outside_s(steps, 2) == pytest.approx((7.75 - 6.0 - 0.75) / 2)
    assert steps.update_s == [0.5, 0.5]


def test_rates_of_this_processor() -> None:
    device = torch.device("cpu")
    assert matmul_flop_per_s("fp32", device, probe_s=0.005) > 1e8
    assert copy_bytes_per_s(device, probe_s=0.005) > 1e8
    assert set(sustained_rates(device, probe_s=0.005)) == {"fp32", "bf16"}


def test_the_driver_is_asked_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from executors.profiling import nvml

    class Refused(Exception):
        pass

    def fault(*_: Any) -> Any:
        raise Refused

    library: Any = ModuleType("pynvml")
    library.NVMLError = Refused
    library.NVML_CLOCK_SM, library.NVML_NVLINK_MAX_LINKS = 1, 2
    library.nvmlInit = library.nvmlShutdown = lambda: None
    library.nvmlSystemGetDriverVersion = lambda: b"550.1"
    library.nvmlDeviceGetCount = lambda: 1
    library.nvmlDeviceGetHandleByIndex = lambda i: i
    library.nvmlDeviceGetMemoryInfo = lambda _h: type("Memory", (), {"total": 80 * 2**30, "used": 2**30})
    library.nvmlDeviceGetName = lambda _h: "NVIDIA A100-SXM4-80GB"
    library.nvmlDeviceGetPowerManagementLimit = lambda _h: 400_000
    library.nvmlDeviceGetClockInfo = fault
    library.nvmlDeviceGetMaxClockInfo = lambda _h, _kind: 1410
    library.nvmlDeviceGetMigMode = lambda _h: [0, 0]
    library.nvmlDeviceGetNvLinkState = lambda _h, i: i == 0
    monkeypatch.setitem(sys.modules, "pynvml", library)
    (state,) = nvml.gpu_states()
    assert (state.driver, state.power_limit_w, state.max_sm_clock_hz) == ("550.1", 400.0, 1.41e9)
    assert (state.sm_clock_hz, state.pcie_width, state.num_nvlinks, state.mig) == (None, None, 1, False)
    json.dumps(asdict(state))
    library.nvmlInit = fault
    assert nvml.gpu_states() == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.gpu_states() == ()
