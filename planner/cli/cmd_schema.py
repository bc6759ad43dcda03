"""`echelon schema`: what a file of one kind may contain, for editors and other programs."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from planner.cli.console import console_of


class Kind(StrEnum):
    """File formats that have a JSON Schema."""

    FLEET = "fleet"
    MODEL = "model"
    POLICY = "policy"
    JOB = "job"
    PLAN = "plan"
    PROFILE = "profile"


def register(app: typer.Typer) -> None:
    """Add `echelon schema`."""

    @app.command()
    def schema(
        ctx: typer.Context,
        kind: Annotated[
            Kind, typer.Argument(metavar="KIND", help="fleet, model, policy, job, plan or profile.")
        ],
    ) -> None:
        """Print the JSON Schema of a file format."""
        from planner.schema.json_schema import json_schema

        document = json_schema(kind.value)
        console_of(ctx).emit(document, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
