"""What an explanation consists of, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.explain.mends import Mend
from policies.errors import InfeasibleError

INFEASIBLE = "infeasible"
NOT_PROVEN = "not-proven"
POSSIBLE = "possible"
PLANNED = "planned"
MENDS_TOLD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Demands of one boundary that can't be met together.

    `members` are names of demands (docs/explain.md), `because` says each in the fleet's own words.
    `minimal`: a plan exists without any one of them; `smallest`: no conflict has fewer. `methods` are the two
    independent ways in which it was proven, fewer where a second one did not end in time.
    """

    boundary: str
    members: tuple[str, ...]
    because: tuple[str, ...]
    minimal: bool
    smallest: bool
    methods: tuple[str, ...]
    mends: tuple[Mend, ...]
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of an explanation of a plan: lines for people, `data` for programs."""

    name: str
    title: str
    lines: tuple[str, ...]
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer of `echelon explain`.

    `status`: `infeasible` (proven by two methods), `not-proven` (neither a plan nor a proof), `possible` (a
    plan exists; `headline` says what was found) or `planned` (`sections` explain a plan).
    """

    status: str
    headline: str
    conflicts: tuple[Conflict, ...] = ()
    sections: tuple[Section, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def because(self) -> tuple[str, ...]:
        """The lines of all conflicts, named by boundary where there are several."""
        several = len(self.conflicts) > 1
        return tuple(
            f"{conflict.boundary}: {line}" if several else line
            for conflict in self.conflicts
            for line in conflict.because
        )

    @property
    def hint(self) -> str:
        """The first mend of each kind for every conflict, joined by `or`."""
        several = len(self.conflicts) > 1
        parts = []
        for conflict in self.conflicts:
            kinds = {mend.demand: mend.text for mend in reversed(conflict.mends)}
            order = [m.demand for m in conflict.mends if kinds.get(m.demand) == m.text]
            words = _joined([kinds[demand] for demand in order][:MENDS_TOLD])
            if words:
                parts.append(f"{conflict.boundary}: {words}" if several else words)
        return "; and ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The explanation as plain JSON values."""
        return {
            "status": self.status,
            "headline": self.headline,
            "conflicts": [_conflict_json(conflict) for conflict in self.conflicts],
            "sections": {section.name: _plain(section.data) for section in self.sections},
            "notes": list(self.notes),
        }

    def to_error(self) -> InfeasibleError:
        """The error a solve ends with when the answer is `infeasible`."""
        methods = dict.fromkeys(method for conflict in self.conflicts for method in conflict.methods)
        reasons = (*self.because, f"no plan exists (proven by {', and again by '.join(methods)})")
        return InfeasibleError("infeasible", self.headline, because=reasons, hint=self.hint)


def _joined(words: list[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])}, or {words[-1]}" if len(words) > 2 else f"{words[0]}, or {words[1]}"


def _conflict_json(conflict: Conflict) -> dict[str, Any]:
    return {
        "boundary": conflict.boundary,
        "members": list(conflict.members),
        "because": list(conflict.because),
        "minimal": conflict.minimal,
        "smallest": conflict.smallest,
        "methods": list(conflict.methods),
        "trials": conflict.trials,
        "mends": [
            {"demand": m.demand, "text": m.text, "amount": m.amount, "tight": m.tight} for m in conflict.mends
        ],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") and not isinstance(value, str) else value
