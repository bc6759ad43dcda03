"""Launches of small workers: specifications, plans with replacements, and a count of what is left running."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from small_worker import VARIABLE, Behaviour

from costmodels.fleet import Fleet
from executors.addresses import LOOPBACK, free_port
from executors.base import Command, LaunchSpec
from executors.events import Event, Kind
from executors.layout import Layout, Rank
from executors.outcome import Deadlines
from executors.remote import Transport, transport_from
from planner.plan import BoundaryPlan, Certificate, Failover, Plan, ReplicaPlan, StagePlan

HERE = Path(__file__).resolve().parent
MARK = "ECHELON_TEST_MARK"
QUICK = Deadlines(grace_s=0.5, beat_s=0.2, settle_s=0.3, end_s=10.0, connect_s=30.0)


def local() -> Transport:
    """This machine stands for every host."""
    return transport_from("local", verify=False)


def replica_of(devices: Sequence[str], *, name: str = "lab-r0", tokens_per_s: float = 100.0) -> ReplicaPlan:
    """A replica with one device per stage."""
    stages = tuple(
        StagePlan(
            index=i,
            layers=(i, i + 1),
            devices=(device,),
            dp=1,
            tp=1,
            zero=0,
            micro_batch_shares=(1,),
            ranks=((device,),),
            recompute=0,
            in_flight=1,
            head=device,
            spares=(),
            memory_bytes={},
            compute_s=0.01,
            comm_s=0.0,
            sync_s=0.0,
            transfer_s=0.0,
        )
        for i, device in enumerate(devices)
    )
    return ReplicaPlan(
        id=name,
        executor="torch",
        tokens_per_s=tokens_per_s,
        step_time_s=0.01,
        micro_batches=1,
        micro_batch_size=1,
        stages=stages,
    )


def plan_of(replicas: Sequence[ReplicaPlan], failover: Sequence[Failover]) -> Plan:
    """A plan of one boundary `lab`."""
    boundary = BoundaryPlan(
        name="lab", aggregator={}, replicas=tuple(replicas), excluded=(), failover=tuple(failover)
    )
    certificate = Certificate(
        objective="tokens",
        value=1.0,
        bound=None,
        excess_frac=None,
        covers="",
        stop="",
        proof={},
        seed=0,
        versions={},
        limits={},
    )
    return Plan(
        inputs=(),
        job="tune",
        tokens_per_step=64,
        settings={},
        certificate=certificate,
        boundaries=(boundary,),
    )


def spec_of(
    replica: ReplicaPlan,
    folder: Path,
    behaviour: Behaviour | None = None,
    *,
    mode: str = "starter",
    address: str = LOOPBACK,
    port: int = 0,
    env: Mapping[str, str | None] | None = None,
) -> LaunchSpec:
    """Small workers for a replica; a device `host/slot` runs on `host`."""
    devices = [device for stage in replica.stages for device in stage.devices]
    hosts = list(dict.fromkeys(device.partition("/")[0] for device in devices))
    devices.sort(key=lambda device: hosts.index(device.partition("/")[0]))
    ranks = tuple(
        Rank(
            rank=rank,
            host=device.partition("/")[0],
            slot=int(device.partition("/")[2]),
            local_rank=0,
            device=device,
            stage=rank,
            dp_i=0,
            tp_i=0,
        )
        for rank, device in enumerate(devices)
    )
    layout, port = Layout(ranks=ranks), port or free_port()
    common = (sys.executable, str(HERE / "small_starter.py"), mode)
    root = HERE.parents[1]
    added: dict[str, str | None] = {
        VARIABLE: json.dumps(asdict(behaviour or Behaviour())),
        "PYTHONPATH": f"{root}{os.pathsep}{HERE}",
        **(env or {}),
    }
    return LaunchSpec(
        executor="torch",
        replica=replica,
        layout=layout,
        folder=folder,
        files={"run.json": json.dumps({"master_addr": address, "master_port": port})},
        commands=tuple(
            Command(
                host=host,
                argv=(
                    *common,
                    ",".join(str(rank.rank) for rank in layout.on_host(host)),
                    str(layout.world_size),
                    address,
                    str(port),
                ),
                env=added,
            )
            for host in hosts
        ),
    )


@dataclass(slots=True)
class Heard:
    """Events as they came; `react` is called with each."""

    react: Callable[[Event], None] = lambda event: None
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.react(event)

    def of(self, kind: Kind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]

    def pids(self) -> dict[int, int]:
        """Process of each rank that has said hello."""
        return {event.rank: event.data["pid"] for event in self.of(Kind.HELLO) if event.rank is not None}


def marked(mark: str) -> list[int]:
    """Processes that were started with this mark in their environment, zombies left out."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Everything that a test starts carries this mark in its environment; afterwards nothing of it runs."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    yield mark
    left = marked(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Return as soon as the condition holds.

    Raises:
        TimeoutError: it does not within `limit_s`.
    """
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {limit_s} s in vain")
        time.sleep(0.02)


def fleet_of(hosts: Mapping[str, int]) -> Fleet:
    """A fleet of one boundary with so many devices per host, `host/slot` by name."""
    from costmodels.fleet import Host, Site
    from render_plans import device

    return Fleet(
        name="lab",
        tiers=("all",),
        boundaries=("lab",),
        sites=(Site(site_id="room", boundary_id="lab", fabric_bytes_per_s=1e9),),
        hosts=tuple(Host(host_id=host, site_id="room", link_bytes_per_s=1e9) for host in hosts),
        devices=tuple(device(host, i, "cpu", 0) for host, count in hosts.items() for i in range(count)),
    )
