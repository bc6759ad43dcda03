"""Contest of sync policies on a small language model: `bench_contest.py [--smoke] [--out DIR]`.

Each arm gets the same number of tuning trials on seeds that are not reported; the setting with the lowest
mean loss over the four budgets (tokens, bytes, virtual seconds, syncs) is run on the reporting seeds under
every treatment.
Finished runs are kept in a JSON-lines file and not run again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from boundary.sync_contest import (
    ARMS,
    BASE,
    FACTORS,
    SMOKE,
    TRIALS,
    Budgets,
    Job,
    Size,
    Treatment,
    budgets,
    run_job,
)
from boundary.sync_language import NUM_PARAMETERS, domains
from boundary.sync_report import budget_table, loss_at, losses_of, score, target_table
from executors.boundary.outer.vectors import HEADER_BYTES

PAYLOAD_BYTES = HEADER_BYTES + 4 * NUM_PARAMETERS
Runs = dict[str, list[dict[str, Any]]]


class Kept:
    """Finished runs in a JSON-lines file; a line cut short by a crash is ignored and its run repeated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    run = json.loads(line)
                except ValueError:
                    continue
                self._runs[run["key"]] = run

    def get(self, job: Job) -> dict[str, Any]:
        """The run, made now if it was not made before."""
        if job.key not in self._runs:
            run = run_job(job, budgets(job.size, payload_bytes=PAYLOAD_BYTES, treatment=job.treatment))
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(run) + "\n")
            self._runs[job.key] = run
        return self._runs[job.key]

    def missing(self, jobs: list[Job]) -> int:
        """How many of the jobs are still to be run."""
        return sum(job.key not in self._runs for job in jobs)


def treatments(size: Size) -> Iterator[tuple[str, float, Treatment]]:
    """One factor at a time around the base."""
    for factor in size.factors:
        name, values = FACTORS[factor]
        for value in values if size.num_trials > SMOKE.num_trials else values[-1:]:
            yield factor, value, replace(BASE, **{name: value})  # type: ignore[arg-type]


def tuning_jobs(size: Size, arm: str) -> list[Job]:
    """The arm's trials on the tuning seeds, under the base treatment."""
    return [
        Job(arm=arm, setting=setting, treatment=BASE, seed=seed, size=size)
        for setting in TRIALS[arm][: size.num_trials]
        for seed in size.tuning_seeds
    ]


def tune(kept: Kept, size: Size, arm: str, until: Budgets) -> tuple[dict[str, float], float]:
    """The arm's best setting and its mean loss at the token budget on the tuning seeds."""
    best: tuple[float, dict[str, float], float] | None = None
    for setting in TRIALS[arm][: size.num_trials]:
        runs = [kept.get(job) for job in tuning_jobs(size, arm) if job.setting == setting]
        value = statistics.fmean(score(run, until) for run in runs)
        loss = statistics.fmean(loss_at(run, "num_tokens", until.num_tokens)[0] for run in runs)
        if best is None or value < best[0]:
            best = (value, setting, loss)
    assert best is not None
    return best[1], best[2]


def report_jobs(size: Size, settings: dict[str, dict[str, float]], treatment: Treatment) -> list[Job]:
    """The chosen settings on the reporting seeds."""
    return [
        Job(arm=arm, setting=settings[arm], treatment=treatment, seed=seed, size=size)
        for arm in ARMS
        for seed in size.seeds
    ]


def announce(kept: Kept, size: Size) -> None:
    """Trial budget and CPU time, said before anything long is run."""
    num_tuning = sum(len(tuning_jobs(size, arm)) for arm in ARMS)
    num_report = len({t for _, _, t in treatments(size)} | {BASE}) * len(ARMS) * len(size.seeds)
    first = kept.get(tuning_jobs(size, "diloco")[0])
    total_h = (num_tuning + num_report) * first["cpu_s"] / 3600.0
    print(f"domains: {', '.join(name for name, _ in domains())}; {NUM_PARAMETERS} parameters")
    print(f"{size.num_trials} trials per arm on {len(size.tuning_seeds)} seeds, {len(size.seeds)} to report")
    print(f"{num_tuning} tuning and {num_report} reporting runs; one run {first['cpu_s']:.1f} CPU s")
    print(f"about {total_h:.2f} CPU hours in all", flush=True)


def section(
    kept: Kept, size: Size, title: str, settings: Any, treatment: Treatment, target: float
) -> list[str]:
    """Tables of one treatment."""
    until = budgets(size, payload_bytes=PAYLOAD_BYTES, treatment=treatment)
    runs: Runs = {arm: [] for arm in ARMS}
    for job in report_jobs(size, settings, treatment):
        runs[job.arm].append(kept.get(job))
    amounts = ", ".join(f"{name} {value:.6g}" for name, value in asdict(until).items())
    print(f"done: {title}", flush=True)
    return [
        f"## {title}",
        "",
        f"Budgets: {amounts}. Target loss {target:.4f}.",
        "",
        *budget_table(runs, until),
        "",
        *target_table(runs, target, until.at_s),
        "",
        "Where each arm loses:",
        "",
        *losses_of(runs, until),
        "",
    ]


def contest(kept: Kept, size: Size) -> str:
    """The whole contest as Markdown."""
    until = budgets(size, payload_bytes=PAYLOAD_BYTES)
    settings, levels = {}, []
    for arm in ARMS:
        settings[arm], level = tune(kept, size, arm, until)
        levels.append(level)
    target = statistics.median(levels)
    lines = ["# Contest of sync policies", "", "| arm | setting |", "|---|---|"]
    lines += [f"| {arm} | {json.dumps(settings[arm])} |" for arm in ARMS]
    lines += ["", "\\* a run ended at 4 times the token budget before this budget was used up.", ""]
    lines += section(kept, size, "base", settings, BASE, target)
    for factor, value, treatment in treatments(size):
        if treatment != BASE:
            lines += section(kept, size, f"{factor} {value:g}", settings, treatment, target)
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a size that ends in about a minute")
    parser.add_argument("--out", type=Path, default=Path("out/contest"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    size = SMOKE if options.smoke else Size()
    kept = Kept(options.out / "runs.jsonl")
    announce(kept, size)
    text = contest(kept, size)
    (options.out / "contest.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
