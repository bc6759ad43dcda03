"""Plans for scripts: any stages on cores of small hosts; scripts run on their ranks in forked processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from forked import free_port

from costmodels.fleet import Device, Fleet, Host, Site
from costmodels.workload import Job, LayerSpec, Recipe, Workload
from executors.base import LaunchSpec
from executors.events import Event, parse_event, rank_file
from executors.launching import LaunchOptions, plan_launches
from executors.script.declaration import Script, read_script
from planner.canonical import Inputs, input_documents
from planner.plan import BoundaryPlan, Certificate, Plan, ReplicaPlan, StagePlan
from planner.training import TrainingJob
from policies.policy import Policy

SEQUENCE_TOKENS = 16
DEADLINE_S = 90.0
NO_JOB = TrainingJob(data=())
LAYER = LayerSpec(
    kind="block",
    params=1000,
    trainable_params=1000,
    forward_flops_per_token=2000.0,
    activation_bytes_per_token=64.0,
    input_bytes_per_token=8.0,
    output_bytes_per_token=8.0,
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Layers [a, b) of a stage and how its ranks share them."""

    layers: tuple[int, int]
    shares: tuple[int, ...] = (2,)
    tp: int = 1
    zero: int = 0
    recompute: int = 0


def pipeline(*cuts: int, **settings: Any) -> tuple[Stage, ...]:
    """Alike stages between the cuts."""
    return tuple(Stage(layers=layers, **settings) for layers in pairwise(cuts))


def plan_of(
    stages: Sequence[Stage],
    *,
    executor: str = "deepspeed",
    micro_batches: int = 4,
    hosts: Mapping[str, int] | None = None,
    tied: tuple[tuple[int, int], ...] = (),
    recipe: Recipe | None = None,
    **job: Any,
) -> Plan:
    """A plan of one replica `lab-r0` whose devices are handed out host by host, the last stage first."""
    needed = sum(len(stage.shares) * stage.tp for stage in stages)
    hosts = hosts or {"lab-1": needed}
    slots = [f"{host}/{slot}" for host, count in hosts.items() for slot in range(count)]
    micro_batch_size = sum(stages[0].shares)
    planned: list[StagePlan] = []
    for index, stage in reversed(list(enumerate(stages))):
        count = len(stage.shares) * stage.tp
        devices, slots = tuple(slots[:count]), slots[count:]
        planned.insert(0, _stage_plan(index, stage, devices))
    replica = ReplicaPlan(
        id="lab-r0",
        executor=executor,
        tokens_per_s=1000.0,
        step_time_s=0.1,
        micro_batches=micro_batches,
        micro_batch_size=micro_batch_size,
        stages=tuple(planned),
        tied_layers=tied,
    )
    settings = {"dtype": "fp32", "micro_batch_sizes": (micro_batch_size,), **job}
    workload = Workload(
        model_name="chain",
        layers=(LAYER,) * stages[-1].layers[1],
        job=Job(
            sequence_tokens=SEQUENCE_TOKENS, sequences_per_step=micro_batches * micro_batch_size, **settings
        ),
        recipe=recipe,
    )
    return _plan(replica, Inputs(fleet=_fleet(hosts), workload=workload, policy=Policy()))


def _stage_plan(index: int, stage: Stage, devices: tuple[str, ...]) -> StagePlan:
    rows = range(0, len(devices), stage.tp)
    return StagePlan(
        index=index,
        layers=stage.layers,
        devices=devices,
        dp=len(stage.shares),
        tp=stage.tp,
        zero=stage.zero,
        micro_batch_shares=stage.shares,
        ranks=tuple(devices[i : i + stage.tp] for i in rows),
        recompute=stage.recompute,
        in_flight=1,
        head=devices[0],
        spares=(),
        memory_bytes={},
        compute_s=0.01,
        comm_s=0.0,
        sync_s=0.0,
        transfer_s=0.0,
    )


def _fleet(hosts: Mapping[str, int]) -> Fleet:
    return Fleet(
        name="lab",
        tiers=("open",),
        boundaries=("lab",),
        sites=(Site(site_id="room", boundary_id="lab", fabric_bytes_per_s=1e9),),
        hosts=tuple(Host(host_id=host, site_id="room", link_bytes_per_s=1e9) for host in hosts),
        devices=tuple(
            Device(
                device_id=f"{host}/{slot}",
                host_id=host,
                type_name="core",
                memory_bytes=2.0**30,
                flop_per_s=(("bf16", 1e9), ("fp32", 1e9)),
                memory_bytes_per_s=1e9,
                tier_i=0,
            )
            for host, count in hosts.items()
            for slot in range(count)
        ),
    )


def _plan(replica: ReplicaPlan, inputs: Inputs) -> Plan:
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
    boundary = BoundaryPlan(name="lab", aggregator={}, replicas=(replica,), excluded=())
    return Plan(
        inputs=input_documents(inputs),
        job="job",
        tokens_per_step=inputs.workload.job.tokens_per_step,
        settings={},
        certificate=certificate,
        boundaries=(boundary,),
    )


def script_in(folder: Path, text: str, *arguments: str) -> Script:
    """A script of this text, started in its folder."""
    path = folder / "train.py"
    path.write_text(text, encoding="utf-8")
    return read_script(("train.py", *arguments), folder)


def launched(plan: Plan, script: Script, folder: Path, **options: Any) -> LaunchSpec:
    """The replica's specification with its files written, as an agent would."""
    chosen = LaunchOptions(folder=folder, one_machine=True, accelerator="cpu", script=script)
    port = free_port()
    (launch,) = plan_launches(plan, NO_JOB, replace(chosen, port_of=lambda _: port, **options))
    launch.spec.folder.mkdir(parents=True, exist_ok=True)
    for name, text in launch.spec.files.items():
        (launch.spec.folder / name).write_text(text, encoding="utf-8")
    return launch.spec


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How a rank's process ended, what it printed, and its events."""

    code: int
    out: str
    events: tuple[Event, ...]

    def kinds(self) -> list[str]:
        """Its events by name."""
        return [event.kind.value for event in self.events]

    def steps(self) -> list[float]:
        """Losses that it told."""
        return [event.data["loss"] for event in self.events if event.kind.value == "step"]


def run_ranks(spec: LaunchSpec, ranks: Sequence[int] | None = None) -> list[RankEnd]:
    """Every rank of a launch in a forked process, as its starter would start it."""
    context = multiprocessing.get_context("fork")
    chosen = range(spec.layout.world_size) if ranks is None else ranks
    processes = [context.Process(target=_rank_main, args=(spec, rank)) for rank in chosen]
    with warnings.catch_warnings():
        # Threads of the parent (torch's pools) aren't used by the children.
        warnings.simplefilter("ignore", DeprecationWarning)
        for process in processes:
            process.start()
    try:
        for process in processes:
            process.join(DEADLINE_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    return [
        _end_of(spec.folder, rank, process.exitcode) for rank, process in zip(chosen, processes, strict=True)
    ]


def _rank_main(spec: LaunchSpec, rank: int) -> None:
    from executors.script import start

    with (spec.folder / f"out-{rank}").open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Pytest's own streams would catch what is printed.
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    os.environ.update(
        {name: text for name, text in spec.commands[0].env.items() if text is not None}, RANK=str(rank)
    )
    warnings.simplefilter("ignore")
    code = 70
    try:
        code = start.main([str(spec.folder / "run.json")])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No interpreter shutdown: what the parent registered at exit isn't ours to run.
        os._exit(code)


def _end_of(folder: Path, rank: int, code: int | None) -> RankEnd:
    lines = rank_file(folder, rank).read_bytes().splitlines()
    out = (folder / f"out-{rank}").read_text(encoding="utf-8")
    return RankEnd(code=-1 if code is None else code, out=out, events=tuple(map(parse_event, lines)))
