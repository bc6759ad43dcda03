"""The rows of the benchmark table: which cases each is made of, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import chain_instances, overhead_cases, stage3d_instances
from bench.cases import Case, Outcome
from bench.judges import (
    BASELINES,
    GIB,
    PROVEN_FRAC,
    Ask,
    Verdict,
    judge_agreement,
    judge_bad_input,
    judge_baselines,
    judge_chain,
    judge_measured,
    judge_overhead,
    judge_solves,
    judge_stage3d,
)
from planner.examples.bundled import example_names

LORA, FULL = 16, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    key: str
    what: str
    target: str
    cases: tuple[Case, ...]
    judge: Callable[[Sequence[Outcome]], Verdict]


def build_rows(*, num_seeds: int, sweep: int, deadline_max_s: float = float("inf")) -> tuple[Row, ...]:
    """Every row. `deadline_max_s` shortens all deadlines, for a trial of the benchmark itself."""
    solve = partial(_solve_row, num_seeds=num_seeds, deadline_max_s=deadline_max_s)
    small = Ask(deadline_s=3.0, excess_frac=PROVEN_FRAC)
    large = {"deadline_s": 60.0, "peak_bytes": 3.0 * GIB}
    jobs_18 = (("llama-2-70b", LORA), ("yi-34b", LORA), ("llama-2-13b", FULL))
    lora, full = (("llama-2-70b", LORA),), (("llama-2-70b", FULL),)
    return (
        Row(
            key="agreement",
            what="every proving solver against brute force over devices",
            target="200+ cases, all equal",
            cases=(Case(name="agreement", work="agreement", arguments={"sweep": sweep}, limit_s=3600.0),),
            judge=judge_agreement,
        ),
        _example_row("hospital", small, deadline_max_s),
        solve(key="18", num_devices=18, jobs=jobs_18, ask=small),
        solve(key="64-lora", num_devices=64, jobs=lora, ask=Ask(deadline_s=10.0, excess_frac=0.005)),
        solve(
            key="64-full",
            num_devices=64,
            jobs=(("llama-2-13b", FULL),),
            ask=Ask(deadline_s=10.0, excess_frac=0.01),
        ),
        solve(key="256-lora", num_devices=256, jobs=lora, ask=Ask(deadline_s=30.0, excess_frac=0.01)),
        solve(key="256-full", num_devices=256, jobs=full, ask=Ask(deadline_s=30.0, excess_frac=0.05)),
        solve(
            key="1024-lora", num_devices=1024, jobs=lora, ask=Ask(excess_frac=0.01, first_plan_s=3.0, **large)
        ),
        solve(
            key="1024-full",
            num_devices=1024,
            jobs=(("yi-34b", FULL),),
            ask=Ask(excess_frac=0.05, first_plan_s=3.0, **large),
        ),
        _example_row("thousand", Ask(excess_frac=0.01, first_plan_s=5.0, **large), deadline_max_s),
        *(
            solve(
                key=f"one-replica-{size}",
                num_devices=size,
                jobs=(*lora, ("llama-2-13b", FULL)),
                ask=Ask(deadline_s=60.0, excess_frac=0.01),
                replicas_max=1,
            )
            for size in (64, 256)
        ),
        _baseline_row(deadline_max_s),
        _published_row("chain", chain_instances.CASES, "at least the published value, proven", judge_chain),
        _published_row(
            "stage3d", stage3d_instances.CASES, "never worse than published, better once", judge_stage3d
        ),
        *_fixed_rows(),
    )


def _fixed_rows() -> tuple[Row, ...]:
    """Rows whose cases depend on nothing."""
    return (
        Row(
            key="measured",
            what="layer profiles and iteration times measured by others",
            target="GH200 8 % time, 6 % memory; A100 8.4 % and 14.7 %; memory under by <= 5 %",
            cases=(Case(name="measured", work="measured"),),
            judge=judge_measured,
        ),
        Row(
            key="overhead",
            what="CPU time per step of our DeepSpeed worker over a pipeline script written by hand",
            target="at most 2 %, 10+ alternating pairs, same losses; plain PyTorch stated",
            cases=tuple(
                Case(
                    name=name,
                    work="overhead",
                    arguments={"case": name, "num_pairs": 10, "num_launches": 0},
                    limit_s=3600.0,
                )
                for name in overhead_cases.CASES
            ),
            judge=judge_overhead,
        ),
        Row(
            key="bad-input",
            what="broken files through `echelon check`",
            target="60+ files, exit code 3, no traceback, nothing written",
            cases=(Case(name="bad-input", work="bad_input"),),
            judge=judge_bad_input,
        ),
    )


def _solve(name: str, ask: Ask, deadline_max_s: float, **arguments: Any) -> Case:
    deadline_s = min(ask.deadline_s, deadline_max_s)
    proven = {"max_excess_frac": 0.0} if ask.excess_frac <= PROVEN_FRAC else {}
    return Case(
        name=name,
        work="solve",
        arguments={"deadline_s": deadline_s, "target_frac": ask.excess_frac, **proven, **arguments},
        limit_s=4.0 * deadline_s + 120.0,
    )


def _solve_row(
    *,
    key: str,
    num_devices: int,
    jobs: Sequence[tuple[str, int]],
    ask: Ask,
    num_seeds: int,
    deadline_max_s: float,
    replicas_max: int | None = None,
) -> Row:
    """Generated fleets of one size, every job on every seed."""
    words = [f"{model} {'LoRA' if rank else 'full'}" for model, rank in jobs]
    cases = tuple(
        _solve(
            f"{word} seed {seed}",
            ask,
            deadline_max_s,
            fleet=["bench", num_devices, seed],
            model=model,
            rank=rank,
            replicas_max=replicas_max,
        )
        for word, (model, rank) in zip(words, jobs, strict=True)
        for seed in range(num_seeds)
    )
    alone = ", one replica" if replicas_max == 1 else ""
    what = f"{num_devices} devices{alone}: {', '.join(words)} x {num_seeds} fleets"
    return Row(key=key, what=what, target=ask.text, cases=cases, judge=partial(judge_solves, ask))


def _example_row(name: str, ask: Ask, deadline_max_s: float) -> Row:
    case = _solve(name, ask, deadline_max_s, fleet=["example", name])
    return Row(
        key=name,
        what=f"bundled example {name}",
        target=ask.text,
        cases=(case,),
        judge=partial(judge_solves, ask),
    )


def _baseline_row(deadline_max_s: float) -> Row:
    ask = Ask(deadline_s=30.0, excess_frac=0.01)
    cases = tuple(
        _solve(f"{name} {solver}", ask, deadline_max_s, fleet=["example", name], solver=solver)
        for name in example_names()
        for solver in BASELINES
    )
    return Row(
        key="baselines",
        what="tokens/s of each example beside greedy and an equal split per device type",
        target="the ratio, no limit",
        cases=cases,
        judge=judge_baselines,
    )


def _published_row(
    key: str, names: Sequence[str], target: str, judge: Callable[[Sequence[Outcome]], Verdict]
) -> Row:
    cases = tuple(Case(name=name, work=key, arguments={"name": name}, limit_s=900.0) for name in names)
    return Row(key=key, what=f"{len(names)} published {key} cases", target=target, cases=cases, judge=judge)
