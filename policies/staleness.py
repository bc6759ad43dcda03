"""How much an update counts that was trained from an older model than the one it is added to.

Staleness tau is the current version minus the version the update was trained from. The three forms are those
of public buffered-asynchronous servers (FLSim): constant, threshold, polynomial (1 + tau)^-a with a >= 0.
Every rule here is non-increasing in tau by construction: a negative exponent, which weights stale work *up*
and was shipped in public code, is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from policies.errors import InputError


class StalenessKind(StrEnum):
    """The form of the weight."""

    CONSTANT = "constant"
    THRESHOLD = "threshold"
    POLYNOMIAL = "polynomial"


def constant_weight(staleness: int) -> float:
    """Always 1: stale work counts like fresh work."""
    _require_count(staleness)
    return 1.0


def threshold_weight(staleness: int, *, cutoff: int, after: float) -> float:
    """1 up to and including `cutoff`, then `after` (0 to 1)."""
    _require_count(staleness)
    return 1.0 if staleness <= cutoff else after


def polynomial_weight(staleness: int, *, exponent: float) -> float:
    """(1 + staleness)^-exponent, between 0 and 1; 1 for fresh work."""
    _require_count(staleness)
    return float((1.0 + staleness) ** -exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class StalenessRule:
    """A weight per staleness, and the staleness above which work is dropped.

    `exponent` belongs to the polynomial form; `cutoff` and `after` to the threshold form. `staleness_max`
    None keeps work of any age.

    Raises:
        InputError: `staleness-rule` where a setting would make older work count more, or is not finite.
    """

    kind: StalenessKind = StalenessKind.POLYNOMIAL
    exponent: float = 0.5
    cutoff: int = 2
    after: float = 0.5
    staleness_max: int | None = 8

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent >= 0.0):
            raise _refused(
                "exponent", self.exponent, "a finite number of at least 0", "older work would count more"
            )
        if not 0.0 <= self.after <= 1.0:
            raise _refused("after", self.after, "0 to 1", "older work would count more")
        if self.cutoff < 0:
            raise _refused("cutoff", self.cutoff, "at least 0", "")
        if self.staleness_max is not None and self.staleness_max < 0:
            raise _refused("staleness_max", self.staleness_max, "at least 0, or none", "")

    def keeps(self, staleness: int) -> bool:
        """Whether work of this age still counts at all."""
        _require_count(staleness)
        return self.staleness_max is None or staleness <= self.staleness_max

    def weight(self, staleness: int) -> float:
        """The weight of an update of this age, 0 where it is dropped; never rises with staleness."""
        if not self.keeps(staleness):
            return 0.0
        if self.kind is StalenessKind.POLYNOMIAL:
            return polynomial_weight(staleness, exponent=self.exponent)
        if self.kind is StalenessKind.THRESHOLD:
            return threshold_weight(staleness, cutoff=self.cutoff, after=self.after)
        return constant_weight(staleness)


def _require_count(staleness: int) -> None:
    if staleness < 0:
        raise InputError(
            "staleness-negative",
            f"staleness {staleness} is below 0: an update can't come from a model that does not exist yet",
            hint="compare the update's base version with the current version",
        )


def _refused(name: str, value: object, limit: str, why: str) -> InputError:
    message = f"staleness rule: {name} is {value}, allowed is {limit}"
    return InputError(
        "staleness-rule", f"{message} ({why})" if why else message, hint="set it within that range"
    )
