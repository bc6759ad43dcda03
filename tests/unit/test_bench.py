"""The benchmark survives whatever a case does, and a failed or late case never counts as met."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from bench.cases import Case, Outcome, run_case
from bench.judges import GIB, Ask, Verdict, judge_solves
from bench.rows import Row, build_rows
from bench.run_all import judged, run_row, table_lines

ASK = Ask(deadline_s=10.0, excess_frac=0.01, first_plan_s=3.0, peak_bytes=GIB)
ANSWER: dict[str, Any] = {"excess_frac": 0.005, "first_plan_s": 1.0, "reached_s": 4.0, "infeasible": []}
GOOD = Outcome(
    case=Case(name="good", work="solve"), answer=ANSWER, failure="", wall_s=9.0, cpu_s=12.0, peak_bytes=1000
)


def answered(**changes: Any) -> Outcome:
    return replace(GOOD, answer={**ANSWER, **changes})


def test_a_case_that_fails_says_why_and_ends_nothing() -> None:
    failed = run_case(Case(name="wrong", work="no_such_work"))
    assert failed.answer == {}
    assert "no_such_work" in failed.failure
    assert failed.failure.startswith("exit code 1")
    slow = run_case(Case(name="slow", work="bad_input", limit_s=0.5))
    assert slow.failure == "ended: over its limit of time"


def test_a_row_with_a_failed_case_is_judged_and_shown() -> None:
    (row,) = [row for row in build_rows(num_seeds=1, sweep=1) if row.key == "measured"]
    broken = replace(row, cases=(Case(name="broken", work="chain", arguments={"name": "nowhere"}),))
    record = io.StringIO()
    verdict, outcomes = run_row(broken, record, check=False)
    assert verdict.met is False
    assert json.loads(record.getvalue())["failure"] == outcomes[0].failure != ""
    assert any("NO" in line for line in table_lines(broken, verdict, outcomes))


def test_a_judge_that_fails_is_a_verdict() -> None:
    def judge(_outcomes: object) -> Verdict:
        raise KeyError("absent")

    row = Row(key="k", what="w", target="t", cases=(), judge=judge)
    assert judged(row, []) == Verdict(measured="can't be judged: KeyError: 'absent'", met=False)


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, failure="exit code 1: why"),
        replace(GOOD, wall_s=10.5),
        replace(GOOD, peak_bytes=int(2 * GIB)),
        answered(excess_frac=0.011),
        answered(excess_frac=None),
        answered(first_plan_s=None),
        answered(first_plan_s=3.5),
    ],
)
def test_the_worst_case_decides(bad: Outcome) -> None:
    assert judge_solves(ASK, [GOOD, GOOD]).met
    assert not judge_solves(ASK, [GOOD, bad, GOOD]).met


def test_a_case_proven_impossible_counts_as_proven_and_is_told() -> None:
    impossible = answered(infeasible=["org"], excess_frac=None, first_plan_s=None, reached_s=None)
    verdict = judge_solves(ASK, [GOOD, impossible])
    assert verdict.met
    assert "1 proven impossible" in verdict.measured


def test_every_row_asked_for_is_there() -> None:
    keys = [row.key for row in build_rows(num_seeds=3, sweep=1)]
    sizes = ["64-lora", "64-full", "256-lora", "256-full", "1024-lora", "1024-full"]
    singles = ["one-replica-64", "one-replica-256"]
    others = ["baselines", "chain", "stage3d", "measured", "overhead", "bad-input"]
    assert keys == ["agreement", "hospital", "18", *sizes, "thousand", *singles, *others]
