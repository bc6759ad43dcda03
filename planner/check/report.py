"""What the referee answers: violations by rule and place, and the figures it derived itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

REL_TOLERANCE = 1e-9
Reporter = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One claim that doesn't hold: the rule, where, what the plan says and what would be right.

    Rules are headings of docs/formulation.md and docs/certificate.md.
    """

    rule: str
    place: str
    found: str
    limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The outcome of a check.

    `value`, `bound` and `excess_frac` are the referee's own figures, in the objective's unit; None where
    nothing could be derived. `scope` says in one sentence what was re-derived and what was not.
    """

    violations: tuple[Violation, ...]
    value: float | None
    bound: float | None
    excess_frac: float | None
    scope: str

    @property
    def holds(self) -> bool:
        """Whether every claim in scope was confirmed."""
        return not self.violations


def equal(stated: float, derived: float, tolerance: float = REL_TOLERANCE) -> bool:
    """Whether two finite figures agree to the relative tolerance."""
    if not (math.isfinite(stated) and math.isfinite(derived)):
        return False
    return abs(stated - derived) <= tolerance * max(abs(stated), abs(derived))


@dataclass(slots=True)
class Findings:
    """Collects violations while a plan is walked through."""

    violations: list[Violation] = field(default_factory=list)

    def add(self, rule: str, place: str, found: object, limit: object) -> None:
        """Record one violation."""
        self.violations.append(Violation(rule=rule, place=place, found=_text(found), limit=_text(limit)))

    def require_equal(self, rule: str, place: str, stated: float, derived: float) -> bool:
        """Record a violation unless the stated figure is the derived one (relative 1e-9)."""
        same = equal(stated, derived)
        if not same:
            self.add(rule, place, stated, derived)
        return same

    def require_same(self, rule: str, place: str, stated: object, derived: object) -> bool:
        """Record a violation unless both are exactly equal."""
        if stated != derived:
            self.add(rule, place, stated, derived)
        return stated == derived


def _text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 300 else text[:297] + "..."
