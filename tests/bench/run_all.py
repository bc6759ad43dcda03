"""Every figure the planner is asked to show, in one table: `python tests/bench/run_all.py [--only ROW]...`.

Each case runs in a fresh process; seconds are wall time from its start, CPU seconds of all its processes
beside them. `out/bench/cases.jsonl` keeps one line per case, `out/bench/table.txt` the table.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench.cases import Case, Outcome, run_case  # noqa: E402
from bench.judges import Verdict  # noqa: E402
from bench.rows import Row, build_rows  # noqa: E402

FOLDER = ROOT / "out" / "bench"
WIDTHS = {"row": 16, "wall s": 8, "CPU s": 8, "peak MiB": 9, "plan 1 s": 9, "excess": 9, "met": 4}
TEXT_WIDTH = 110


def parse_arguments(argv: Sequence[str], keys: Sequence[str]) -> argparse.Namespace:
    """What is to be run."""
    parser = argparse.ArgumentParser(prog="run_all.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=keys, metavar="ROW", help=f"of {', '.join(keys)}")
    parser.add_argument("--seeds", type=int, default=3, help="fleets per size and job; the worst is told")
    parser.add_argument("--sweep", type=int, default=1, help="times 240 cases of the agreement row")
    parser.add_argument("--deadline-max", type=float, default=float("inf"), help="seconds; for a short trial")
    parser.add_argument("--check", action="store_true", help="let the referee repeat every proof")
    return parser.parse_args(argv)


def run_row(row: Row, record: TextIO, *, check: bool) -> tuple[Verdict, list[Outcome]]:
    """All cases of a row one after another, each noted at once; then its verdict."""
    outcomes = []
    for i, case in enumerate(row.cases):
        plan_file = FOLDER / "plans" / f"{row.key}-{i}.json"
        if case.work == "solve" and check:
            arguments = {**case.arguments, "plan_file": str(plan_file)}
            case = Case(name=case.name, work=case.work, arguments=arguments, limit_s=case.limit_s)
        outcomes.append(run_case(case))
        note(row.key, outcomes[-1], record)
        if check and case.work == "solve" and "tokens_per_s" in outcomes[-1].answer:
            again = Case(name=f"{case.name}, referee", work="check", arguments={"plan_file": str(plan_file)})
            note(row.key, run_case(again), record)
    return judged(row, outcomes), outcomes


def judged(row: Row, outcomes: Sequence[Outcome]) -> Verdict:
    """The row's verdict; outcomes that can't be judged are a verdict too."""
    try:
        return row.judge(outcomes)
    except Exception as error:  # one row must not end the others
        return Verdict(measured=f"can't be judged: {type(error).__name__}: {error}", met=False)


def note(key: str, outcome: Outcome, record: TextIO) -> None:
    """One line for the record and one for whoever waits."""
    record.write(outcome.as_line(key) + "\n")
    record.flush()
    said = outcome.failure or ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in outcome.answer.items()
        if isinstance(value, bool | int | float | str)
    )
    cost = f"{outcome.wall_s:.1f} s wall, {outcome.cpu_s:.1f} s CPU, {outcome.peak_bytes / 2**20:.0f} MiB"
    print(f"{key} | {outcome.case.name} | {cost} | {said}", file=sys.stderr, flush=True)


def table_lines(row: Row, verdict: Verdict, outcomes: Sequence[Outcome]) -> list[str]:
    """One row: figures of the worst case, then what was asked and what was measured."""

    def worst(values: Sequence[float | None], form: str) -> str:
        known = [value for value in values if value is not None]
        return format(max(known), form) if known else "-"

    answers = [outcome.answer for outcome in outcomes]
    cells = {
        "row": row.key,
        "wall s": worst([outcome.wall_s for outcome in outcomes], ".1f"),
        "CPU s": worst([outcome.cpu_s for outcome in outcomes], ".1f"),
        "peak MiB": worst([outcome.peak_bytes / 2**20 for outcome in outcomes], ".0f"),
        "plan 1 s": worst([answer.get("first_plan_s") for answer in answers], ".1f"),
        "excess": worst([answer.get("excess_frac") for answer in answers], ".3%"),
        "met": {True: "yes", False: "NO", None: ""}[verdict.met],
    }
    first = "".join(f"{text:{'<' if name == 'row' else '>'}{WIDTHS[name]}}" for name, text in cells.items())
    texts = (row.what, f"asked: {row.target}", f"found: {verdict.measured}")
    return [
        first,
        *(
            line
            for text in texts
            for line in textwrap.wrap(text, TEXT_WIDTH, initial_indent="    ", subsequent_indent="      ")
        ),
    ]


def header() -> list[str]:
    """The machine, and the names of the columns."""
    load = os.getloadavg()[0]
    where = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    columns = "".join(f"{name:{'<' if name == 'row' else '>'}{width}}" for name, width in WIDTHS.items())
    return [f"{where}, load {load:.1f} at the start", "", columns]


def main(argv: Sequence[str]) -> int:
    """Run the rows and print the table; 1 when a case failed or a target was missed."""
    keys = [row.key for row in build_rows(num_seeds=1, sweep=1)]
    wanted = parse_arguments(argv, keys)
    rows = build_rows(num_seeds=wanted.seeds, sweep=wanted.sweep, deadline_max_s=wanted.deadline_max)
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = header()
    met = True
    started_s = time.monotonic()
    with (FOLDER / "cases.jsonl").open("w", encoding="utf-8") as record:
        for row in rows:
            if wanted.only and row.key not in wanted.only:
                continue
            verdict, outcomes = run_row(row, record, check=wanted.check)
            lines += table_lines(row, verdict, outcomes)
            met = met and verdict.met is not False
            (FOLDER / "table.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(
        f"\n{time.monotonic() - started_s:.0f} s in all; every case in {FOLDER.relative_to(ROOT)}/cases.jsonl"
    )
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
