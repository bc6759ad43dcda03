"""`echelon launch` over network namespaces as hosts, with real workers, through the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launches import mark  # noqa: F401  a fixture
from namespaces import Namespace, namespaces, why_no_namespaces, why_no_rate_limits
from two_hosts import plan_in

pytestmark = [
    pytest.mark.net,
    pytest.mark.netns,
    pytest.mark.deepspeed,
    pytest.mark.usefixtures("mark"),
    pytest.mark.skipif(bool(why_no_namespaces()), reason=f"namespaces: {why_no_namespaces()}"),
]
DEADLINE_S = 240.0


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, ...]]:
    """Two hosts, where it can be had with a narrow link between them."""
    with namespaces(2, bits_per_s=None if why_no_rate_limits() else 100e6) as made:
        yield made


def launch(
    folder: Path, hosts: tuple[Namespace, ...], *more: str, executor: str = "deepspeed"
) -> subprocess.Popen[str]:
    """The command in the background."""
    _, path = plan_in(folder, executor, tuple(host.name for host in hosts))
    argv = [sys.executable, "-m", "planner.cli.main", "launch", str(path), "--format", "json"]
    argv += ["--job", str(folder / "job.yaml"), "-o", str(folder / "run"), "--accelerator", "cpu"]
    for host in hosts:
        argv += ["--address", f"{host.name}={host.address}"]
    return subprocess.Popen([*argv, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert out, err
    return process.returncode, json.loads(out)


def test_one_command_starts_all_hosts_with_unequal_slots(
    hosts: tuple[Namespace, ...], tmp_path: Path
) -> None:
    code, told = answer(launch(tmp_path, hosts, "--remote-shell", "netns"))
    assert code == 0, told
    (replica,) = told["data"]["replicas"]
    report = replica["report"]
    assert [stage["layers"] for stage in report["stages"]] == [[0, 3], [3, 5], [5, 8]]
    assert len(report["losses"]) == 12
    assert report["evaluations"][-1]["loss"] < report["evaluations"][0]["loss"]
    assert (tmp_path / "run" / "here-r0" / "adapter" / "adapter_model.safetensors").is_file()


def test_one_command_per_host_meets_at_the_head(hosts: tuple[Namespace, ...], tmp_path: Path) -> None:
    _, path = plan_in(tmp_path, "deepspeed", tuple(host.name for host in hosts))
    started = []
    for host in hosts:
        argv = [
            "ip",
            "netns",
            "exec",
            host.name,
            sys.executable,
            "-m",
            "planner.cli.main",
            "launch",
            str(path),
        ]
        argv += ["--format", "json", "--job", str(tmp_path / "job.yaml"), "-o", str(tmp_path / "run")]
        argv += ["--accelerator", "cpu", "--node", host.name]
        for other in hosts:
            argv += ["--address", f"{other.name}={other.address}"]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        for process in started:
            code, told = answer(process)
            assert code == 0, told
    finally:
        for process in started:
            process.kill()


def test_a_missing_host_is_refused_and_nothing_is_left(hosts: tuple[Namespace, ...], tmp_path: Path) -> None:
    _, path = plan_in(tmp_path, "deepspeed", (hosts[0].name, "nowhere"))
    argv = [sys.executable, "-m", "planner.cli.main", "launch", str(path), "--format", "json"]
    argv += ["--job", str(tmp_path / "job.yaml"), "-o", str(tmp_path / "run"), "--remote-shell", "netns"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    code, told = answer(process)
    assert code == 9
    assert told["error"]["code"] == "host-unreachable"
    assert "nowhere" in told["error"]["message"]


def test_a_host_that_is_another_one_is_refused(hosts: tuple[Namespace, ...], tmp_path: Path) -> None:
    first, second = hosts
    swapped = (replace(first, address=second.address), replace(second, address=first.address))
    code, told = answer(launch(tmp_path, swapped, "--remote-shell", "netns"))
    assert code == 9
    assert told["error"]["code"] == "wrong-host"


def test_after_the_loss_of_a_host_the_plan_goes_on_without_it(
    hosts: tuple[Namespace, ...], tmp_path: Path
) -> None:
    process = launch(tmp_path, hosts, "--remote-shell", "netns")
    _wait_for_step(tmp_path / "run" / "here-r0" / "rank-1.jsonl", 5)
    pids = _pids_on(hosts[1].name)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    code, told = answer(process)
    assert code == 0, told
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    failover = next(event for event in events if event["event"] == "failover")
    assert failover["resumed_step"] == 3
    assert len(told["data"]["replicas"][0]["report"]["losses"]) == 12


def _wait_for_step(path: Path, step: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if path.is_file() and f'"step": {step},' in path.read_text(encoding="utf-8"):
            return
        time.sleep(0.1)
    raise AssertionError(f"step {step} was never reached")


def _pids_on(host: str) -> list[int]:
    told = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=True)
    return [int(pid) for pid in told.stdout.split()]
