"""The options of `echelon solve`: names, help, and how their texts are read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from policies.errors import Fault, InputError

MEASURED = "measured"


class SolverName(StrEnum):
    """What `--solver` accepts."""

    DECOMPOSITION = "decomposition"
    MILP = "milp"
    CPSAT = "cpsat"
    GREEDY = "greedy"
    CBC = "cbc"
    BRUTEFORCE = "bruteforce"


class ObjectiveName(StrEnum):
    """What `--objective` accepts."""

    TOKENS = "tokens"
    PRICE = "price"
    STEP_TIME = "step-time"
    STEADY_STATE = "steady-state"


class ExecutorName(StrEnum):
    """What `--executor` accepts."""

    ANY = "any"
    DEEPSPEED = "deepspeed"
    TORCH = "torch"


FleetFile = Annotated[Path, typer.Argument(help="The fleet file.")]
ModelFile = Annotated[Path, typer.Argument(help="The model file.")]
PolicyFile = Annotated[Path | None, typer.Argument(help="The policy file.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Where the plan goes.", show_default=False)
]
Solver = Annotated[SolverName, typer.Option("--solver", help="Way of solving.")]
Goal = Annotated[ObjectiveName, typer.Option("--objective", help="What is optimised.")]
TokensMin = Annotated[
    float | None,
    typer.Option("--tokens-per-s-min", help="Target for objective price.", min=0.0, show_default=False),
]
Executor = Annotated[ExecutorName, typer.Option("--executor", help="What must be able to run the plan.")]
Deadline = Annotated[str, typer.Option("--deadline", help="Time for the whole solve, such as 60s or 5min.")]
MaxExcess = Annotated[
    str | None,
    typer.Option(
        "--max-excess",
        help="Stop at a plan this close to the bound; exit code 6 when none is. Without: 0.1 %.",
        show_default=False,
    ),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Count steps, not seconds: same inputs, same bytes.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random choices.", min=0)]
WarmStart = Annotated[
    Path | None, typer.Option("--warm-start", help="A plan to start from.", show_default=False)
]
Keep = Annotated[
    Path | None,
    typer.Option("--keep", help="A plan whose devices should stay in place.", show_default=False),
]
CostModelName = Annotated[str, typer.Option("--cost-model", help="Registered cost model that prices stages.")]
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", help="The profile that --cost-model measured prices by.", show_default=False),
]


def parse_deadline(text: str) -> float:
    """Seconds of `60s`, `1.5 min` or a bare number of seconds."""
    from costmodels.units import UnitError, parse_seconds

    try:
        number = float(text)
    except ValueError:
        number = None
    try:
        seconds = parse_seconds(text if number is None else f"{text.strip()} s")
    except UnitError as error:
        raise typer.BadParameter(f"`{text}`: {error.reason}", param_hint="--deadline") from None
    if seconds <= 0.0:
        raise typer.BadParameter(f"`{text}` leaves no time", param_hint="--deadline")
    return seconds


def parse_frac(text: str, name: str) -> float:
    """The fraction that `1%` or `0.01` says."""
    percent = text.strip().endswith("%")
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    fraction = number / 100.0 if percent else number
    if not 0.0 <= fraction < float("inf"):
        raise typer.BadParameter(f"`{text}` is no share such as 1% or 0.01", param_hint=name)
    return fraction


def read_cost_settings(cost_model: str, profile: Path | None) -> dict[str, Any] | None:
    """What the command line says to the cost model: the content of the profile file, or nothing.

    It stands in the plan as it was understood, so that the plan alone is enough to price it again.

    Raises:
        typer.BadParameter: a profile for a cost model that takes none.
        InputError: `cost-model-settings` when a profile is needed, `profile-unreadable`, `profile-schema`
            or `profile-incomplete` with the file's name.
    """
    if cost_model != MEASURED:
        if profile is not None:
            raise typer.BadParameter(
                f"cost model `{cost_model}` takes no profile; add --cost-model {MEASURED}, or leave it out",
                param_hint="--profile",
            )
        return None
    if profile is None:
        raise InputError(
            "cost-model-settings",
            f"cost model `{MEASURED}` prices by a profile, and none is given",
            hint="name one: --profile FILE; docs/measured.md, section 5, says what is in it",
        )
    from costmodels.profile_io import profile_from_document, profile_to_document, read_json

    document = read_json(profile)
    try:
        return {"profile": profile_to_document(profile_from_document(document))}
    except InputError as error:
        faults = [
            Fault(place=f"{profile}: {fault.place}", value=fault.value, limit=fault.limit, hint=fault.hint)
            for fault in error.faults
        ]
        raise InputError(error.code, f"{profile}: {error.message}", faults=faults, hint=error.hint) from error
