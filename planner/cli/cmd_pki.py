"""`echelon pki`: the identities, certificates and keys of a run, made and kept in one folder."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.console import Console, console_of

if TYPE_CHECKING:
    from executors.boundary.pki.identities import Identity

DEFAULT_DAYS = 90

Folder = Annotated[Path, typer.Argument(help="The PKI's folder.", show_default=False)]
Boundary = Annotated[
    str, typer.Option("--boundary", help="The party's boundary; `global` for the coordinator.")
]
Name = Annotated[str, typer.Option("--name", help="The party's name, such as p0.")]
Days = Annotated[int, typer.Option("--days", min=1, max=3650, help="How long certificates are good.")]


class PartyRole(StrEnum):
    """What a party is."""

    COORDINATOR = "coordinator"
    AGGREGATOR = "aggregator"
    PARTICIPANT = "participant"


class RotatedKey(StrEnum):
    """What can be rotated."""

    TLS = "tls"
    IDENTITY = "identity"
    LOG = "log"
    POLICY = "policy"


Role = Annotated[PartyRole, typer.Option("--role", help="What the party is.")]


def register(app: typer.Typer) -> None:
    """Add `echelon pki init|add|rotate|revoke`."""
    group = typer.Typer(
        help="Make and keep the identities, certificates and keys of a run.", rich_markup_mode=None
    )
    group.command("init")(_init)
    group.command("add")(_add)
    group.command("rotate")(_rotate)
    group.command("revoke")(_revoke)
    app.add_typer(group, name="pki")


def _init(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The folder to fill.", show_default=False)],
    boundary: Annotated[list[str], typer.Option("--boundary", help="A boundary; give one or more.")],
    participants: Annotated[
        int, typer.Option("--participants", min=0, max=10_000, help="Participants of each boundary.")
    ] = 4,
    run: Annotated[str, typer.Option("--run", help="The run's name, part of every identity.")] = "run",
    days: Days = DEFAULT_DAYS,
) -> None:
    """Make a test PKI: roots, certificates and signing keys for the coordinator and all boundaries.

    Participants are called p0, p1 and so on. In earnest each organisation does this for its own boundary, and
    only the files in trust/ are exchanged.
    """
    from executors.boundary.pki.administration import set_up

    made = set_up(
        folder, run=run, boundaries=boundary, num_participants=participants, days=days, now=datetime.now(UTC)
    )
    console = console_of(ctx)
    data = {"folder": str(folder), "run": run, "parties": [identity.uri for identity in made]}
    console.emit(data, "\n".join(identity.uri for identity in made))
    console.note(f"give every process {folder}/trust and its own folder below {folder}/parties, nothing else")


def _add(
    ctx: typer.Context, folder: Folder, boundary: Boundary, role: Role, name: Name, days: Days = DEFAULT_DAYS
) -> None:
    """Add a party to a boundary, with its certificate and signing keys."""
    from executors.boundary.pki.administration import add
    from executors.boundary.pki.identities import Role as IdentityRole

    identity = add(folder, boundary, IdentityRole(role.value), name, days=days, now=datetime.now(UTC))
    _tell(console_of(ctx), folder, identity)


def _rotate(
    ctx: typer.Context,
    folder: Folder,
    boundary: Boundary,
    role: Role,
    name: Name,
    key: Annotated[RotatedKey, typer.Option("--key", help="Which key.")] = RotatedKey.TLS,
    days: Days = DEFAULT_DAYS,
) -> None:
    """Replace a key of a party, and its certificate where it has one.

    The old signing key stays listed with the time at which it ended. The old certificate stays good until it
    expires; revoke it with --certificate where it may have been stolen.
    """
    from executors.boundary.pki.administration import rotate
    from executors.boundary.pki.identities import Role as IdentityRole

    now = datetime.now(UTC)
    identity = rotate(folder, boundary, IdentityRole(role.value), name, key.value, days=days, now=now)
    _tell(console_of(ctx), folder, identity)


def _revoke(
    ctx: typer.Context,
    folder: Folder,
    boundary: Boundary,
    role: Role,
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why; everyone can read it.")] = "unspecified",
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="Only this certificate, and not the whole party.")
    ] = None,
) -> None:
    """Revoke a party, or one certificate of it, in the list that servers read at each connection."""
    from executors.boundary.pki.administration import revoke
    from executors.boundary.pki.identities import Role as IdentityRole

    now = datetime.now(UTC)
    identity = revoke(
        folder, boundary, IdentityRole(role.value), name, reason=reason, certificate=certificate, now=now
    )
    _tell(console_of(ctx), folder, identity)


def _tell(console: Console, folder: Path, identity: Identity) -> None:
    console.emit({"folder": str(folder), "party": identity.uri}, identity.uri)
    console.note(f"give the new {folder}/trust to every process of the run")
