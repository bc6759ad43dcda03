"""Identities: run, boundary, role and name, written as the one URI of a certificate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from policies.errors import Fault, InputError

SCHEME = "echelon"
GLOBAL = "global"
"""The authority of the coordinator; no boundary may be called so."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", flags=re.ASCII)
NAME_RULE = "1 to 64 letters, digits, dots, underscores and hyphens; first and last a letter or digit"


class Role(StrEnum):
    """What a process is in its boundary."""

    COORDINATOR = "coordinator"
    AGGREGATOR = "aggregator"
    PARTICIPANT = "participant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a process is. The coordinator's boundary is `global`, and nobody else's is."""

    run: str
    boundary: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            InputError: `bad-identity`, listing what is wrong.
        """
        faults = [
            Fault(place=place, value=value, limit=NAME_RULE)
            for place, value in (("run", self.run), ("boundary", self.boundary), ("name", self.name))
            if not _NAME.fullmatch(value)
        ]
        if (self.boundary == GLOBAL) != (self.role is Role.COORDINATOR):
            limit = f"`{GLOBAL}` for the coordinator and for nobody else"
            faults.append(Fault(place="boundary", value=self.boundary, limit=limit))
        if faults:
            listed = "; ".join(f"{fault.place} `{fault.value}`: {fault.limit}" for fault in faults)
            raise InputError("bad-identity", f"not an identity: {listed}", faults=faults)

    @property
    def uri(self) -> str:
        """`echelon://RUN/BOUNDARY/ROLE/NAME`."""
        return f"{SCHEME}://{self.run}/{self.boundary}/{self.role}/{self.name}"

    @property
    def holder(self) -> str:
        """`ROLE/NAME`, unique in its boundary."""
        return f"{self.role}/{self.name}"

    def __str__(self) -> str:
        return f"{self.role} {self.boundary}/{self.name}"


def parse_identity(uri: str) -> Identity:
    """The identity that a certificate's URI spells.

    Raises:
        InputError: `bad-identity`.
    """
    parts = uri.removeprefix(f"{SCHEME}://").split("/")
    if not uri.startswith(f"{SCHEME}://") or len(parts) != 4 or parts[2] not in set(Role):
        raise InputError(
            "bad-identity", f"not an identity: `{uri[:200]}`, {SCHEME}://RUN/BOUNDARY/ROLE/NAME is one"
        )
    run, boundary, role, name = parts
    return Identity(run=run, boundary=boundary, role=Role(role), name=name)
