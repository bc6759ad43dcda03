"""`echelon explain`: why a plan is as it is, or why no plan exists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.console import Console, console_of
from planner.cli.solve_options import (
    CostModelName,
    Executor,
    ExecutorName,
    Goal,
    ObjectiveName,
    ProfileFile,
    TokensMin,
    read_cost_settings,
)

if TYPE_CHECKING:
    from planner.explain.answer import Explanation
    from planner.solving import Request

METAVAR = "PLAN | FLEET MODEL [POLICY]"
SECONDS = 20.0
DEEP_SECONDS = 300.0


def register(app: typer.Typer) -> None:
    """Add `echelon explain`."""

    @app.command()
    def explain(
        ctx: typer.Context,
        files: Annotated[list[Path], typer.Argument(metavar=METAVAR, help="A plan, or the inputs of one.")],
        stage: Annotated[
            str | None,
            typer.Option(
                "--stage", help="One stage of a plan, as boundary/replica/stage.", show_default=False
            ),
        ] = None,
        deep: Annotated[
            bool, typer.Option("--deep", help="Solve again with each demand dropped and each device added.")
        ] = False,
        objective: Goal = ObjectiveName.TOKENS,
        tokens_per_s_min: TokensMin = None,
        executor: Executor = ExecutorName.ANY,
        cost_model: CostModelName = "analytic",
        profile: ProfileFile = None,
    ) -> None:
        """Say what binds in a plan, or why no plan exists.

        From a plan: which limits hold it back and what one more of each is worth, what limits each stage, why
        devices are idle, what to add next. From inputs: a smallest set of demands that can't be met together,
        with what is missing and what would mend it; proven by two methods, it ends in exit code 4.
        """
        console = console_of(ctx)
        if len(files) == 1:
            if profile is not None:
                raise typer.BadParameter("a plan holds its own profile; leave it out", param_hint="--profile")
            _explain_plan(console, files[0], stage, deep)
        elif len(files) > 3:
            raise typer.BadParameter("one plan, or fleet, model and policy", param_hint=METAVAR)
        elif stage is not None:
            raise typer.BadParameter("names a stage of a plan, not of input files", param_hint="--stage")
        else:
            request = _request(objective, tokens_per_s_min, executor, cost_model, profile)
            _explain_inputs(console, files, request, deep)


def _explain_plan(console: Console, path: Path, stage: str | None, deep: bool) -> None:
    from costmodels.registry import cost_model
    from planner.check.rebuild import rebuild
    from planner.explain.planned import explain_plan
    from planner.plan import read_plan

    plan = read_plan(path)
    rebuilt = rebuild(plan)
    name, settings = str(plan.settings["cost_model"]), dict(plan.settings["cost_model_settings"])
    with console.progress() as progress:
        explanation = explain_plan(
            plan,
            rebuilt.problem,
            stage=stage,
            deep=deep,
            rule=rebuilt.rule,
            model_of=lambda workload: cost_model(name, workload, **settings),
            report=progress.update,
        )
    _tell(console, explanation)


def _request(
    objective: ObjectiveName,
    tokens_per_s_min: float | None,
    executor: ExecutorName,
    cost_model: str,
    profile: Path | None,
) -> Request:
    from planner.problem import Objective, ObjectiveKind
    from planner.solving import Request

    if tokens_per_s_min is not None and objective is not ObjectiveName.PRICE:
        raise typer.BadParameter("only with --objective price", param_hint="--tokens-per-s-min")
    return Request(
        objective=Objective(kind=ObjectiveKind(objective.value), tokens_per_s_min=tokens_per_s_min),
        executor=executor.value,
        cost_model=cost_model,
        cost_model_settings=read_cost_settings(cost_model, profile),
    )


def _explain_inputs(console: Console, files: list[Path], request: Request, deep: bool) -> None:
    from planner.explain.infeasible import explain_infeasible
    from planner.files import load_inputs
    from planner.solving import cost_model_of, problem_of

    inputs = load_inputs(*files)
    with console.progress() as progress:
        explanation = explain_infeasible(
            problem_of(inputs, request),
            model_of=cost_model_of(inputs, request),
            deadline_s=DEEP_SECONDS if deep else SECONDS,
            report=progress.update,
        )
    _tell(console, explanation)


def _tell(console: Console, explanation: Explanation) -> None:
    from planner.explain.answer import INFEASIBLE
    from planner.explain.text import explanation_text

    if explanation.status == INFEASIBLE:
        console.emit(explanation.to_json(), "", but=explanation.to_error())
    else:
        console.emit(explanation.to_json(), explanation_text(explanation))
