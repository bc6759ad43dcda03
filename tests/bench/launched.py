"""Whole launches, from the command line, with the CPU time of the ranks and of what watches over them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.overhead_cases import Prepared
from executors.addresses import free_port
from executors.events import Kind, parse_event

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_S = 0.2
LIMIT_S = 900.0
PROGRAM = "import sys; from planner.cli.main import run; sys.exit(run(sys.argv[1:]))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """What the ranks of one launch left behind: process, CPU seconds and end (Unix time) of every step."""

    pids: frozenset[int]
    cpu_s: tuple[tuple[float, ...], ...]
    ends_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """CPU seconds per step after the warm-up: in the ranks' steps, and of all other processes meanwhile."""

    ranks_s: float
    others_s: float


def launch_ours(prepared: Prepared, folder: Path, warm_up_steps: int) -> Costs:
    """`echelon launch plan.json --local`."""
    argv = [sys.executable, "-c", PROGRAM, "launch", str(prepared.plan_file), "--job", str(prepared.job_file)]
    samples = _sampled([*argv, "--local", "--output", str(folder)], folder.with_suffix(".txt"))
    files = sorted(folder.glob("*/rank-*.jsonl"))
    return _costs(_our_ranks(files), samples, warm_up_steps)


def launch_by_hand(prepared: Prepared, folder: Path, warm_up_steps: int) -> Costs:
    """`deepspeed --num_accelerators N hand_written_deepspeed.py`."""
    num_ranks = len(prepared.cut) - 1
    script = str(ROOT / "tests" / "bench" / "hand_written_deepspeed.py")
    argv = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(num_ranks)]
    where = ["--master_port", str(free_port()), "--no_local_rank", "--log_level", "warning"]
    samples = _sampled([*argv, *where, script, str(prepared.settings_file)], folder.with_suffix(".txt"))
    answers = [
        json.loads(prepared.settings_file.with_name(f"hand-{rank}.json").read_text())
        for rank in range(num_ranks)
    ]
    ranks = Ranks(
        pids=frozenset(answer["pid"] for answer in answers),
        cpu_s=tuple(tuple(answer["cpu_s"]) for answer in answers),
        ends_s=tuple(answers[0]["ends_s"]),
    )
    return _costs(ranks, samples, warm_up_steps)


def _our_ranks(files: Sequence[Path]) -> Ranks:
    logs = [[parse_event(line) for line in path.read_text().splitlines()] for path in files]
    steps = [[event for event in log if event.kind is Kind.STEP] for log in logs]
    return Ranks(
        pids=frozenset(event.data["pid"] for log in logs for event in log if event.kind is Kind.HELLO),
        cpu_s=tuple(tuple(event.data["cpu_s"] for event in own) for own in steps),
        ends_s=tuple(event.time_s for event in steps[0]),
    )


def _costs(ranks: Ranks, samples: Sequence[tuple[float, Mapping[int, float]]], warm_up: int) -> Costs:
    first_s, last_s = ranks.ends_s[warm_up - 1], ranks.ends_s[-1]
    num_steps = len(ranks.ends_s) - warm_up

    def others(at_s: float) -> float:
        known = max((sample for sample in samples if sample[0] <= at_s), key=lambda sample: sample[0])[1]
        return sum(spent for pid, spent in known.items() if pid not in ranks.pids)

    return Costs(
        ranks_s=sum(sum(own[warm_up:]) for own in ranks.cpu_s) / num_steps,
        others_s=(others(last_s) - others(first_s)) / num_steps,
    )


def _sampled(argv: Sequence[str], log: Path) -> list[tuple[float, Mapping[int, float]]]:
    """Run to the end; CPU seconds of each process of the tree at many moments (Unix time).

    Raises:
        RuntimeError: it failed or took too long; its last words are told.
    """
    samples: list[tuple[float, Mapping[int, float]]] = []
    end_s = time.monotonic() + LIMIT_S
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=out, stderr=out)
        while process.poll() is None:
            if time.monotonic() > end_s:
                process.terminate()
                raise RuntimeError(f"{argv} was ended after {LIMIT_S:.0f} s")
            samples.append((time.time(), tree_cpu_s(process.pid)))
            time.sleep(SAMPLE_S)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {log.read_text()[-2000:]}")
    return samples


def tree_cpu_s(pid: int) -> dict[int, float]:
    """CPU seconds so far of a process and of each of its descendants that still run."""
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[int, float] = {}
    waiting = [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue
        # Fields 14 and 15 of proc(5); what follows the name begins with field 3.
        found[int(folder.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return found


def compare_launches(
    prepared: Prepared, folder: Path, num_pairs: int, warm_up_steps: int, say: Callable[[str], None]
) -> list[Mapping[str, Any]]:
    """Whole launches of both in turn."""
    found: list[Mapping[str, Any]] = []
    for i in range(num_pairs):
        mine = launch_ours(prepared, folder / f"launched-{i}", warm_up_steps)
        theirs = launch_by_hand(prepared, folder / f"by-hand-{i}", warm_up_steps)
        say(
            f"  launch {i + 1}  ours {1e3 * mine.ranks_s:.1f} CPU ms per step in the ranks and "
            f"{1e3 * mine.others_s:.1f} beside them, by hand {1e3 * theirs.ranks_s:.1f} and "
            f"{1e3 * theirs.others_s:.1f}; load {os.getloadavg()[0]:.1f}"
        )
        found.append({"ours": [mine.ranks_s, mine.others_s], "by_hand": [theirs.ranks_s, theirs.others_s]})
    return found
