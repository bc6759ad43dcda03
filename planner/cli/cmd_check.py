"""`echelon check`: input files before a solve, or a plan after it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.console import Console, console_of
from policies.errors import Fault, InputError

if TYPE_CHECKING:
    from planner.check.report import CheckReport
    from planner.plan import Plan
    from planner.problem import BoundaryProblem, Problem

UNITS = {"tokens": "tokens/s", "steady-state": "tokens/s", "price": "USD per hour", "step-time": "s per step"}
HINT = "the plan was edited, damaged, or made by something that gets this wrong: solve again from the inputs"


def register(app: typer.Typer) -> None:
    """Add `echelon check`."""

    @app.command()
    def check(
        ctx: typer.Context,
        files: Annotated[
            list[Path],
            typer.Argument(metavar="PLAN | FLEET MODEL [POLICY]", help="A plan, or the inputs of one."),
        ],
        quick: Annotated[
            bool, typer.Option("--quick", help="Only compare the bound with the rate bound; no proof.")
        ] = False,
    ) -> None:
        """Check input files, or re-derive everything a plan claims.

        A plan is judged from the inputs it embeds, with code that no solver shares: feasibility, value, then
        the proof of its bound. docs/certificate.md says what that proves. Anything wrong ends in exit code 3.
        """
        console = console_of(ctx)
        if len(files) == 1:
            _check_plan(console, files[0], quick)
        elif len(files) > 3:
            raise typer.BadParameter(
                "one plan, or fleet, model and policy", param_hint="PLAN | FLEET MODEL [POLICY]"
            )
        elif quick:
            raise typer.BadParameter("is for plans, not for input files", param_hint="--quick")
        else:
            _check_inputs(console, files)


def _check_plan(console: Console, path: Path, quick: bool) -> None:
    from planner.check.referee import check
    from planner.plan import read_plan

    if path.suffix in (".yaml", ".yml"):
        raise InputError(
            "one-input-file",
            f"`{path}` is an input file, and a model is needed beside it",
            hint="check inputs with `echelon check FLEET MODEL [POLICY]`, a plan with `echelon check PLAN`",
        )
    plan = read_plan(path)
    with console.progress() as progress:
        report = check(plan, quick=quick, report=progress.update)
    if report.violations:
        raise plan_refused(path, report)
    unit = UNITS.get(plan.certificate.objective, "")
    console.emit(_plan_data(path, plan, report, unit), _plan_text(path, report, unit, quick))


def plan_refused(path: Path, report: CheckReport) -> InputError:
    """The refusal of a plan, with one fault per violation."""
    faults = [
        Fault(place=f"{path}: {v.place} [{v.rule}]", value=v.found, limit=v.limit) for v in report.violations
    ]
    number = "1 claim doesn't" if len(faults) == 1 else f"{len(faults)} claims don't"
    return InputError("plan-refused", f"{number} hold in `{path}`", faults=faults, hint=HINT)


def _plan_data(path: Path, plan: Plan, report: CheckReport, unit: str) -> dict[str, Any]:
    return {
        "kind": "plan",
        "file": str(path),
        "holds": report.holds,
        "objective": plan.certificate.objective,
        "unit": unit,
        "value": _number(report.value),
        "bound": _number(report.bound),
        "excess_frac": _number(report.excess_frac),
        "scope": report.scope,
        "inputs": {str(document.get("kind")): document.get("sha256") for document in plan.inputs},
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plan_text(path: Path, report: CheckReport, unit: str, quick: bool) -> str:
    lines = [f"plan      {path} holds", f"value     {report.value:,.6g} {unit}"]
    if report.bound is None:
        lines.append("bound     none claimed")
    else:
        excess = report.excess_frac
        distance = f", {excess:.2%} from the value" if excess is not None and math.isfinite(excess) else ""
        name = "rate bound" if quick else "re-derived"
        lines.append(f"bound     {report.bound:,.6g} {unit} ({name}){distance}")
    return "\n".join([*lines, f"scope     {report.scope}"])


def _check_inputs(console: Console, files: list[Path]) -> None:
    from costmodels.registry import cost_model
    from planner.build import build_problem
    from planner.files import load_inputs

    inputs = load_inputs(*files)
    model = cost_model("analytic", inputs.workload)
    problem = build_problem(inputs.fleet, inputs.workload, inputs.policy, model)
    boundaries = [_boundary_data(boundary) for boundary in problem.boundaries]
    data = {
        "kind": "inputs",
        "files": [str(path) for path in files],
        "layers": inputs.workload.num_layers,
        "params": inputs.workload.num_params,
        "tokens_per_step": inputs.workload.job.tokens_per_step,
        "boundaries": boundaries,
    }
    console.emit(data, _inputs_text(problem, boundaries))


def _boundary_data(boundary: BoundaryProblem) -> dict[str, Any]:
    return {
        "name": boundary.name,
        "sites": len(boundary.site_ids),
        "devices": sum(c.num_devices for c in boundary.classes),
        "classes": len(boundary.classes),
        "clusters": len(boundary.templates),
        "replicas_min": boundary.replicas_min,
        "replicas_max": boundary.replicas_max,
        "modes": [
            {
                "micro_batches": mode.num_micro_batches,
                "micro_batch_size": mode.micro_batch_size,
                "executor": mode.executor,
                "width": mode.width,
                "stages_max": mode.max_stages,
                "clusters": len(mode.templates),
            }
            for mode in boundary.modes
        ],
    }


def _inputs_text(problem: Problem, boundaries: list[dict[str, Any]]) -> str:
    workload = problem.workload
    params = f"{workload.num_layers} layers, {workload.num_params:,} parameters"
    lines = ["inputs    sound", f"model     {workload.model_name}: {params}"]
    for boundary in boundaries:
        devices = f"{boundary['devices']} devices in {boundary['classes']} classes, {boundary['sites']} sites"
        lines.append(f"boundary  {boundary['name']}: {devices}, {boundary['clusters']} candidate clusters")
        demand = f"replicas: at least {boundary['replicas_min']}"
        if boundary["replicas_max"] is not None:
            demand += f", at most {boundary['replicas_max']}"
        lines.append(f"          {demand}")
        for mode in boundary["modes"]:
            batches = f"{mode['micro_batches']} x {mode['micro_batch_size']} sequences on {mode['executor']}"
            limits = f"{mode['clusters']} clusters, up to {mode['stages_max']} stages"
            lines.append(f"          {batches}: {limits}")
    return "\n".join(lines)
