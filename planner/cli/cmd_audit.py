"""`echelon audit`: what crossed the boundaries, verified, shown or handed on."""

from __future__ import annotations

import json
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.cli.console import console_of, write_atomically
from policies.errors import InputError

SHOWN_RECORDS = 20


class ScopeName(StrEnum):
    """What `--scope` accepts."""

    GATE = "gate"
    EGRESS = "egress"


def register(app: typer.Typer) -> None:
    """Add `echelon audit` with its three commands."""
    audit = typer.Typer(help="Verify, show or export the logs of what crossed a boundary.")
    audit.command()(verify)
    audit.command()(show)
    audit.command()(export)
    app.add_typer(audit, name="audit")


def verify(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Contract, logs and checkpoints of a run.")
    ],
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="NAME=KEY", help="A party's policy key: 64 hex digits, or a file."),
    ] = None,
    scope: Annotated[
        ScopeName, typer.Option("--scope", help="What the guard let out, or all that left.")
    ] = ScopeName.GATE,
    capture_key: Annotated[
        list[str] | None,
        typer.Option("--capture-key", metavar="NAME=KEY", help="Key of who captured a boundary's border."),
    ] = None,
) -> None:
    """Verify the logs of a run against its contract.

    The verdict is PASS (exit code 0), FAIL with the rule and the place (8), or INCONCLUSIVE with what is
    missing (10). What it can't prove stands below it. docs/audit.md describes every file and rule.
    """
    from policies.audit.verdict import Scope, error_of, verdict_data, verdict_text
    from policies.audit.verify import parse_key_arguments, verify_folder

    verdict = verify_folder(
        folder,
        parse_key_arguments(key or []),
        scope=Scope(scope.value),
        capture_keys=parse_key_arguments(capture_key or []),
    )
    console_of(ctx).emit(verdict_data(verdict), verdict_text(verdict), but=error_of(verdict))


def show(
    ctx: typer.Context,
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The .log file of one party.")],
    first: Annotated[int, typer.Option("--first", min=0, help="The first record shown.")] = 0,
    count: Annotated[int, typer.Option("--count", min=1, help="How many are shown.")] = SHOWN_RECORDS,
) -> None:
    """Show records of one log.

    Showing proves nothing: `echelon audit verify` does.
    """
    from policies.audit.record import RECORD_BYTES
    from policies.audit.view import iter_views

    views = list(iter_views(log, first=first, num_records=count))
    total = -(-log.stat().st_size // RECORD_BYTES)
    lines = [f"log       {log}: {total:,} records", _HEAD, *map(_line, views)]
    console_of(ctx).emit({"file": str(log), "num_records": total, "records": views}, "\n".join(lines))


def export(
    ctx: typer.Context,
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The .log file of one party.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where it goes.")],
    record: Annotated[
        int | None,
        typer.Option("--record", min=0, help="Only this record, with a proof that it stands in the log."),
    ] = None,
) -> None:
    """Write a log as lines of JSON, or one record with its proof.

    The proof leads from the record to the root in the last checkpoint, so one record can be handed on while
    the others stay private.
    """
    from policies.audit.view import iter_views, proof_of

    console = console_of(ctx)
    if record is None:
        lines = [json.dumps(view, sort_keys=True) for view in iter_views(log)]
        write_atomically(output, "".join(line + "\n" for line in lines))
        data: dict[str, Any] = {"file": str(output), "num_records": len(lines)}
        console.emit(data, f"written   {output}: {len(lines):,} records")
        return
    document = proof_of(log, record, _last_checkpoint(log))
    write_atomically(output, json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    data = {"file": str(output), "record": record, "num_hashes": len(document["proof"])}
    console.emit(data, f"written   {output}: record {record} and {len(document['proof'])} hashes")


def _last_checkpoint(log: Path) -> Any:
    from policies.audit.checkpoint import parse_checkpoints
    from policies.audit.ledger import CHECKPOINTS_SUFFIX

    path = log.with_suffix(CHECKPOINTS_SUFFIX)
    checkpoints = parse_checkpoints(path.read_bytes()) if path.is_file() else []
    if not checkpoints:
        raise InputError(
            "no-checkpoint",
            f"`{path}` has no checkpoint, so nothing can be proven to stand in the log",
            hint="keep the log's checkpoints beside it",
        )
    return checkpoints[-1]


_HEAD = "record  way       kind             boundary  number  window  cohort  header  payload"


def _line(view: dict[str, Any]) -> str:
    if "kind" not in view:
        told = [str(value) for value in islice(view.values(), 3, 7)]
        return f"{view['index']:<6}  {' '.join(told)}"
    return (
        f"{view['index']:<6}  {view['type']:<8}  {view['kind']:<15}  {view['boundary_id']:>8}"
        f"  {view['sequence']:>6}  {view['epoch']:>6}  {view['cohort_size']:>6}"
        f"  {view['header_bytes']:>6}  {view['payload_bytes']:>7}"
    )
