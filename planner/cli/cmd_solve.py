"""`echelon solve`: the best topology that could be found, with its distance from the best there is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import typer

from planner.cli.console import Console, console_of, write_atomically
from planner.cli.solve_options import (
    CostModelName,
    Deadline,
    Deterministic,
    Executor,
    ExecutorName,
    FleetFile,
    Goal,
    Keep,
    MaxExcess,
    ModelFile,
    ObjectiveName,
    Output,
    PolicyFile,
    ProfileFile,
    Seed,
    Solver,
    SolverName,
    TokensMin,
    WarmStart,
    parse_deadline,
    parse_frac,
    read_cost_settings,
)
from policies.errors import ExcessTooLargeError, InfeasibleError, InputError, NoPlanInTimeError

if TYPE_CHECKING:
    from planner.canonical import Inputs
    from planner.solve.result import Limits
    from planner.solving import Answer, Request

MAX_EXCESS_FRAC = 0.001
EXPLAIN_SECONDS = 15.0


def register(app: typer.Typer) -> None:
    """Add `echelon solve`."""

    @app.command()
    def solve(
        ctx: typer.Context,
        fleet: FleetFile,
        model: ModelFile,
        policy: PolicyFile = None,
        output: Output = None,
        solver: Solver = SolverName.DECOMPOSITION,
        objective: Goal = ObjectiveName.TOKENS,
        tokens_per_s_min: TokensMin = None,
        executor: Executor = ExecutorName.ANY,
        deadline: Deadline = "60s",
        max_excess: MaxExcess = None,
        deterministic: Deterministic = False,
        seed: Seed = 0,
        warm_start: WarmStart = None,
        keep: Keep = None,
        cost_model: CostModelName = "analytic",
        profile: ProfileFile = None,
    ) -> None:
        """Find the best topology and prove how far from the best it can be.

        Ctrl-C ends the search and gives the best plan so far, with its honest distance from the bound.
        """
        from planner.cli.solve_text import progress_line
        from planner.files import load_inputs
        from planner.solve.result import Limits

        console = console_of(ctx)
        started_s = time.monotonic()
        asked_frac = None if max_excess is None else parse_frac(max_excess, "--max-excess")
        deadline_s = parse_deadline(deadline)
        cost_settings = read_cost_settings(cost_model, profile)
        if output is not None:
            require_writable(output)
        inputs = load_inputs(fleet, model, policy)
        request = replace(
            _request(solver, objective, tokens_per_s_min, executor, warm_start, keep),
            cost_model=cost_model,
            cost_model_settings=cost_settings,
        )
        with console.progress() as shown, interruptible() as asked_to_stop:
            limits = Limits(
                deadline_s=deadline_s,
                max_excess_frac=MAX_EXCESS_FRAC if asked_frac is None else asked_frac,
                deterministic=deterministic,
                seed=seed,
                should_stop=asked_to_stop,
                report=lambda progress: shown.update(progress_line(progress, objective.value)),
            )
            answer = _solved(inputs, request, limits)
            if asked_to_stop():
                console.note("interrupted: this is the best plan so far")
        _tell(console, answer, request, output, asked_frac, time.monotonic() - started_s)


def require_writable(output: Path) -> None:
    """Find out before the search, not after it, that the plan has nowhere to go.

    Raises:
        InputError: `output-folder-missing` or `output-not-writable`.
    """
    folder = output.resolve().parent
    if not folder.is_dir():
        raise InputError(
            "output-folder-missing",
            f"can't write `{output}`: folder `{folder}` does not exist",
            hint=f"create it first: mkdir -p '{folder}'",
        )
    if output.is_dir() or not os.access(output if output.exists() else folder, os.W_OK):
        raise InputError(
            "output-not-writable",
            f"can't write `{output}`: {'it is a folder' if output.is_dir() else 'no permission'}",
            hint="name a file in a folder you may write to",
        )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one ends the command at once."""
    asked = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _request(
    solver: SolverName,
    objective: ObjectiveName,
    tokens_per_s_min: float | None,
    executor: ExecutorName,
    warm_start: Path | None,
    keep: Path | None,
) -> Request:
    from planner.plan import read_plan
    from planner.problem import Objective, ObjectiveKind
    from planner.solving import Request

    if tokens_per_s_min is not None and objective is not ObjectiveName.PRICE:
        raise typer.BadParameter("only with --objective price", param_hint="--tokens-per-s-min")
    return Request(
        solver=solver.value,
        objective=Objective(kind=ObjectiveKind(objective.value), tokens_per_s_min=tokens_per_s_min),
        executor=executor.value,
        warm_start=None if warm_start is None else read_plan(warm_start),
        keep=None if keep is None else read_plan(keep),
    )


def _solved(inputs: Inputs, request: Request, limits: Limits) -> Answer:
    """The answer; that there is none is confirmed by a second method and put in the fleet's own words."""
    from planner.explain.infeasible import error_of, explain_infeasible, refuted
    from planner.solving import cost_model_of, problem_of, solve_inputs

    problem = problem_of(inputs, request)
    ended: InfeasibleError | NoPlanInTimeError
    if refuted(problem):
        ended = InfeasibleError("infeasible", "no placement satisfies all rules")
    else:
        try:
            return solve_inputs(inputs, request, limits)
        except (InfeasibleError, NoPlanInTimeError) as error:
            if limits.should_stop():
                raise
            ended = error
    explanation = explain_infeasible(
        problem, rule=request.rule, model_of=cost_model_of(inputs, request), deadline_s=EXPLAIN_SECONDS
    )
    raise error_of(explanation, ended)


def _tell(
    console: Console,
    answer: Answer,
    request: Request,
    output: Path | None,
    asked_frac: float | None,
    elapsed_s: float,
) -> None:
    """Write the plan, then give the answer; the exit code tells whether the plan is as close as asked for."""
    from planner.cli.solve_text import answer_data, answer_text, former_note
    from planner.plan import dump_plan

    if output is not None:
        write_atomically(output, dump_plan(answer.plan))
    note = former_note(answer, request)
    if note:
        console.note(note)
    excess = answer.plan.certificate.excess_frac
    but = None
    if asked_frac is not None and (excess is None or excess > asked_frac * (1.0 + 1e-9)):
        found = "has no bound" if excess is None else f"may be {excess:.3%} from the best"
        but = ExcessTooLargeError(
            "excess-too-large",
            f"the plan {found}; asked for was at most {asked_frac:.3%}",
            hint="give a longer --deadline" + (", or a solver that proves a bound" if excess is None else ""),
        )
    data = answer_data(answer, request, output)
    text = answer_text(answer, request, elapsed_s=elapsed_s, every_stage=console.verbose)
    console.emit(data, text, but=but)
