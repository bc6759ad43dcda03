"""Step time and memory predicted before a run, against the run: `python tests/bench/bench_prediction.py`.

One profile run of the model comes first. Then plans that were not profiled (cuts, micro-batch sizes, both
executors, data parallelism) are priced from it by the planner and by the simulator, and launched for real on
two cores, one rank each. `--rate BITS` runs pipelines between two network namespaces with that link instead,
`--quota FRAC` gives the second of them so much of its core alone, as a device type of its own.

Printed: predicted and best measured step, busy CPU seconds per stage, peak memory, and over all plans the
median error and Kendall's tau of those whose predictions are a tenth or more apart. `drift` is by how much
the cores were slower around a case than around the profile run, by a work of its own (`core_speed.py`);
errors are given as they are, and with the predictions multiplied by it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "executors")]

from bench.core_speed import unit_cpu_s  # noqa: E402
from costmodels.discover import probe_machine  # noqa: E402
from costmodels.interface import Strategy  # noqa: E402
from costmodels.profile_io import save_profile  # noqa: E402
from executors.launching import LaunchOptions, plan_launches  # noqa: E402
from executors.profiling.hosts import measure_hosts  # noqa: E402
from executors.profiling.merging import merge  # noqa: E402
from executors.profiling.requests import host_request, joined_requests  # noqa: E402
from executors.remote import Transport, transport_from  # noqa: E402
from executors.running import run_launches  # noqa: E402
from executors.simulate.simulator import simulate_plan  # noqa: E402
from planner.assemble import boundary_plan  # noqa: E402
from planner.files import load_inputs, load_model  # noqa: E402
from planner.objective import StageChoice, price_replica  # noqa: E402
from planner.plan import Plan  # noqa: E402
from planner.problem import BoundaryProblem, Mode  # noqa: E402
from planner.solve.result import Limits  # noqa: E402
from planner.solving import Request, problem_of, solve_inputs  # noqa: E402
from planner.training import TrainingJob  # noqa: E402

STEPS = 11
SLOW = "slow-core"
PERIOD_US = 10_000
UNLIMITED_BITS_PER_S = 1e9
APART = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A plan: executor, cut points inside the chain, sequences per micro-batch, data-parallel ranks."""

    executor: str
    cuts: tuple[int, ...]
    size: int
    dp: int = 1
    zero: int = 0

    @property
    def name(self) -> str:
        """How the table calls it."""
        shape = f"cut {self.cuts[0]}" if self.cuts else f"dp {self.dp} zero {self.zero}"
        return f"{self.executor} {shape} mb {self.size}"


CASES = (
    *(Case(executor="deepspeed", cuts=(cut,), size=2) for cut in (2, 3, 4, 5, 6, 7)),
    Case(executor="deepspeed", cuts=(5,), size=4),
    Case(executor="deepspeed", cuts=(4,), size=1),
    *(Case(executor="torch", cuts=(cut,), size=2) for cut in (3, 5, 6)),
    Case(executor="torch", cuts=(6,), size=4),
    Case(executor="deepspeed", cuts=(), size=2, dp=2),
    Case(executor="torch", cuts=(), size=4, dp=2, zero=1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was predicted and measured of one case; bytes are those of the fullest rank."""

    name: str
    closed_s: float
    simulated_s: float
    best_s: float
    median_s: float
    predicted_bytes: float
    peak_bytes: float
    busy_cpu_s: tuple[float, ...]
    predicted_busy_s: tuple[float, ...]
    drift: float


def main() -> int:
    """Profile, then run every case and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=0.0, help="bits per second between two hosts")
    parser.add_argument("--quota", type=float, default=0.0, help="share of the second host's core")
    parser.add_argument("--profile", type=Path, help="use this profile instead of making one")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hosts: tuple[Any, ...] = ()
        if options.rate or options.quota:
            from namespaces import namespaces

            hosts = stack.enter_context(namespaces(2, bits_per_s=options.rate or None))
            limited = stack.enter_context(quota_group(options.quota)) if options.quota else None
            own_cores(folder, limited)
        write_inputs(folder, hosts, options.rate or UNLIMITED_BITS_PER_S, unequal=bool(options.quota))
        speed = Speed()
        profile = options.profile or make_profile(folder, hosts, unequal=bool(options.quota))
        speed.profiled()
        document = json.loads(profile.read_text(encoding="utf-8"))
        rows = [
            row
            for case in CASES
            if options.only in case.name
            and (case.cuts or not hosts)
            # Every phase of a profile takes long on a core of little share: one executor will do.
            and not (options.quota and case.executor != "deepspeed")
            for row in run_case(folder, case, document, hosts, speed)
        ]
    print_summary(rows)
    return 0


class Speed:
    """How fast the cores are around each piece of work."""

    def __init__(self) -> None:
        self._last_s = unit_cpu_s()
        self._profile_s = self._last_s

    def profiled(self) -> None:
        """The profile is taken."""
        self._profile_s = self._since()

    def drift(self) -> float:
        """How much slower the cores were during the last piece of work than during the profile."""
        return self._since() / self._profile_s

    def _since(self) -> float:
        before_s, self._last_s = self._last_s, unit_cpu_s()
        return (before_s + self._last_s) / 2.0


@contextmanager
def quota_group(frac: float) -> Iterator[Path]:
    """A control group whose processes get so much of one core, in turns of ten milliseconds."""
    first = Path("/sys/fs/cgroup/cpu")
    group = (first if first.is_dir() else Path("/sys/fs/cgroup")) / f"echelon-quota-{os.getpid()}"
    group.mkdir()
    quota_us = str(int(frac * PERIOD_US))
    try:
        if first.is_dir():
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US), encoding="ascii")
            (group / "cpu.cfs_quota_us").write_text(quota_us, encoding="ascii")
        else:
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}", encoding="ascii")
        yield group
    finally:
        group.rmdir()


def write_inputs(folder: Path, hosts: Sequence[Any], bits_per_s: float, *, unequal: bool) -> None:
    """The bundled desk, or the same devices on two hosts with a link between them."""
    from planner.examples.bundled import example_texts

    for name, text in example_texts("desk").items():
        (folder / name).write_text(text, encoding="utf-8")
    fleet = (folder / "fleet.yaml").read_text(encoding="utf-8").replace("memory: 1 GiB", "memory: 2 GiB")
    if hosts:
        head = fleet[: fleet.index("hosts:")].replace(
            "1 Gbit/s, latency: 100 us", f"{bits_per_s / 1e6:g} Mbit/s, latency: 100 us"
        )
        device = next(line for line in fleet.splitlines() if "type: core" in line)
        devices = [device, device.replace("type: core", f"type: {SLOW}") if unequal else device]
        blocks = [
            f"  - name: {host.name}\n    site: room\n    devices:\n{own}\n"
            for host, own in zip(hosts, devices, strict=True)
        ]
        fleet = head + "hosts:\n" + "".join(blocks)
    (folder / "fleet.yaml").write_text(fleet, encoding="utf-8")


def make_profile(folder: Path, hosts: Sequence[Any], *, unequal: bool) -> Path:
    """One run of `echelon profile`; where the hosts differ, over both of them, each with its own type."""
    path = folder / "profile.json"
    if unequal:
        workload, facts = load_model(folder / "model.yaml"), probe_machine(probe_s=0.0)
        requests = [
            replace(
                host_request(workload, facts, device_type=name, num_ranks=1),
                host=host.name,
                executors=("deepspeed",),
            )
            for host, name in zip(hosts, ("core", SLOW), strict=True)
        ]
        joined = joined_requests(requests, hosts[0].address)
        save_profile(merge(workload, measure_hosts(joined, transport_from(way_in(folder)))), path)
        return path
    argv = [sys.executable, "-m", "planner.cli.main", "profile", str(folder / "model.yaml")]
    subprocess.run([*argv, "--device-type", "core", "-o", str(path)], check=True, stdout=subprocess.DEVNULL)
    return path


def run_case(
    folder: Path, case: Case, profile: dict[str, Any], hosts: Sequence[Any], speed: Speed
) -> Iterator[Row]:
    """Price one plan, launch it, and print its line."""
    plan = plan_of(folder, case, profile)
    if plan is None:
        print(f"{case.name:26} can't be priced from the profile")
        return
    (replica,) = plan.boundaries[0].replicas
    simulated = simulate_plan(plan).replicas[0]
    job = TrainingJob(
        data=("python:prose",), steps=STEPS, evaluation_every=0, checkpoint_every=0, evaluation_frac=0.05
    )
    where = folder / case.name.replace(" ", "-")
    options = LaunchOptions(
        folder=where,
        one_machine=not hosts,
        accelerator="cpu",
        python=sys.executable,
        address_of={host.name: host.address for host in hosts},
    )
    way = way_in(folder) if hosts else "local"
    transport: Transport = transport_from(way, address_of=options.address_of)
    launches = plan_launches(plan, job, options)
    ended = run_launches(plan, job, launches, transport, where, lambda event: None, failover=False)
    error = ended.outcome.error()
    if error is not None:
        print(f"{case.name:26} {error.code}: {error.message}")
        return
    report = ended.reports[replica.id]
    yield row_of(case, replica, simulated, report, speed.drift())


def own_cores(folder: Path, limited: Path | None) -> None:
    """The way into namespace number k, on core k: without it the first device of every host is core 0.

    What runs in the second one belongs to the group `limited`.
    """
    lines = ["host=$1; shift; k=${host##*-h}"]
    if limited is not None:
        lines.append(f'if [ "$k" = 1 ]; then echo $$ > {limited}/cgroup.procs; fi')
    lines.append('exec taskset -c "$k" ip netns exec "$host" "$@"')
    (folder / "enter.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")


def way_in(folder: Path) -> str:
    """The remote shell that `own_cores` wrote."""
    return f"sh {folder / 'enter.sh'} {{host}} {{argv}}"


def plan_of(folder: Path, case: Case, profile: dict[str, Any]) -> Plan | None:
    """The plan with exactly this case's replica; None where the profile can't price it."""
    inputs = load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")
    request = Request(
        executor=case.executor,
        cost_model="measured",
        cost_model_settings={"profile": profile},
        failover=False,
    )
    problem = problem_of(inputs, request)
    (boundary,) = problem.boundaries
    mode = mode_of(boundary, case)
    chosen = stages_of(boundary, case, mode)
    replica = price_replica(boundary, mode, chosen)
    if replica is None:
        return None
    frame = solve_inputs(inputs, request, Limits(deadline_s=10.0, max_excess_frac=1.0)).plan
    return replace(frame, boundaries=(boundary_plan(problem, boundary, [replica]),))


def mode_of(boundary: BoundaryProblem, case: Case) -> Mode:
    """The planner's mode of this micro-batch size that offers the case's strategy."""
    wanted = Strategy(dp=case.dp, zero=case.zero)
    for mode in boundary.modes:
        offered = {boundary.templates[t].strategy for t in mode.templates}
        long_enough = mode.max_stages > len(case.cuts)
        if mode.micro_batch_size == case.size and wanted in offered and long_enough:
            return mode
    raise LookupError(case.name)


def stages_of(boundary: BoundaryProblem, case: Case, mode: Mode) -> list[StageChoice]:
    """Clusters of the case: one device per stage, or all in one."""
    wanted = Strategy(dp=case.dp, zero=case.zero)
    fitting = [boundary.templates[t] for t in mode.templates if boundary.templates[t].strategy == wanted]
    borders = (0, *case.cuts, boundary.num_layers)
    last = max(t.parts[0].class_i for t in fitting)
    return [
        StageChoice(
            template_i=next(t for t in fitting if t.parts[0].class_i == min(i, last)).template_i,
            start=borders[i],
            stop=borders[i + 1],
        )
        for i in range(len(borders) - 1)
    ]


def row_of(case: Case, replica: Any, simulated: Any, report: Mapping[str, Any], drift: float) -> Row:
    """Predicted and measured figures side by side."""
    stages = report["stages"]
    row = Row(
        name=case.name,
        closed_s=replica.step_time_s,
        simulated_s=simulated.step_s,
        best_s=report["measured"]["step_s"]["best"],
        median_s=report["measured"]["step_s"]["median"],
        predicted_bytes=max(stage["predicted"]["memory_bytes"] for stage in stages),
        peak_bytes=max(stage["measured"]["peak_bytes"] for stage in stages),
        busy_cpu_s=tuple(stage["measured"]["busy_cpu_s"] for stage in stages),
        predicted_busy_s=tuple(stage["predicted"]["busy_s"] for stage in stages),
        drift=drift,
    )
    busy = " / ".join(
        f"{told * 1e3:.0f} {found * 1e3:.0f}"
        for told, found in zip(row.predicted_busy_s, row.busy_cpu_s, strict=True)
    )
    print(
        f"{row.name:26} closed {row.closed_s * 1e3:7.0f} ms  simulated {row.simulated_s * 1e3:7.0f}  "
        f"best {row.best_s * 1e3:7.0f} ({row.closed_s / row.best_s - 1:+.1%}, "
        f"{row.simulated_s / row.best_s - 1:+.1%})  median {row.median_s * 1e3:7.0f}  busy told/CPU {busy}  "
        f"memory {row.predicted_bytes / 2**20:.0f} / {row.peak_bytes / 2**20:.0f} MiB "
        f"({row.predicted_bytes / row.peak_bytes - 1:+.1%})  drift {row.drift - 1:+.1%}",
        flush=True,
    )
    return row


def print_summary(rows: Sequence[Row]) -> None:
    """Errors over all cases, of the closed form and of the simulator."""
    if len(rows) < 2:
        return
    for name, drifts in product(("closed_s", "simulated_s"), (False, True)):
        told = [getattr(row, name) * (row.drift if drifts else 1.0) for row in rows]
        errors = [abs(told_s / row.best_s - 1.0) for told_s, row in zip(told, rows, strict=True)]
        tau, num = kendall_tau([(told_s, row.best_s) for told_s, row in zip(told, rows, strict=True)])
        what = f"{name:12} {'with drift' if drifts else 'as it is':10}"
        print(
            f"{what} median error {statistics.median(errors):.1%}, largest {max(errors):.1%}, "
            f"Kendall tau {tau:.2f} over {num} pairs predicted {APART - 1:.0%} apart"
        )
    memory = [row.predicted_bytes / row.peak_bytes - 1.0 for row in rows]
    cpu = [
        abs(told / found - 1.0)
        for row in rows
        for told, found in zip(row.predicted_busy_s, row.busy_cpu_s, strict=True)
    ]
    print(f"busy seconds against CPU seconds per stage: median error {statistics.median(cpu):.1%}")
    print(f"memory       median error {statistics.median(map(abs, memory)):.1%}, lowest {min(memory):+.1%}")


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Tau over pairs whose predictions are apart, and how many there are (Kendall 1938, without ties)."""
    signs = [
        1 if (a[0] - b[0]) * (a[1] - b[1]) > 0 else -1
        for a, b in combinations(pairs, 2)
        if max(a[0], b[0]) >= APART * min(a[0], b[0])
    ]
    return (sum(signs) / len(signs) if signs else 1.0), len(signs)


if __name__ == "__main__":
    sys.exit(main())
