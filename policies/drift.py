"""Echelon-DA: how long the boundaries may train apart, decided from their drift after each outer step.

Drift of M boundary deltas: rho = (mean ||Delta_m||^2 - ||mean Delta_m||^2) / ||mean Delta_m||^2, the excess
of the variance criterion of federated dynamic averaging over the squared mean. Identical deltas give 0;
orthogonal deltas of equal norm give exactly M - 1. It is relative, so it does not fall merely because steps
got smaller.

The law: H grows by `gain` while rho < theta = theta_frac * (M - 1), else shrinks by it; it stays within
[h_floor, h_max], where h_floor is the smallest H whose exposed link time and window overhead stay within
their shares of a round; it does not grow while the loss has stalled. Where a signal is missing or not finite,
H falls back to `h_fixed`. The decision names all its inputs. This law is a reconstruction: the Echelon
authors published none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from policies.errors import InputError


class DriftAction(StrEnum):
    """What a decision did to H."""

    LENGTHEN = "lengthen"
    SHORTEN = "shorten"
    FREEZE = "freeze"
    FALL_BACK = "fall-back"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRule:
    """Settings of the controller. H counts local steps between commitments.

    `is_overlapped`: training continues while an exchange is under way. `stall_patience`: decisions without a
    better loss (by `stall_margin`, nats) after which H stops growing. `deadline_slack_frac`: the window
    deadline is the time of H steps longer by this share; `stale_frac_max`: above this share of stale work the
    slack doubles.

    Raises:
        InputError: `drift-rule` where a setting is out of range.
    """

    h_fixed: int
    h_min: int = 1
    h_max: int = 512
    gain: float = 1.25
    theta_frac: float = 0.5
    link_frac_max: float = 0.05
    overhead_frac_max: float = 0.2
    is_overlapped: bool = True
    stall_patience: int = 4
    stall_margin: float = 1e-3
    deadline_slack_frac: float = 0.5
    stale_frac_max: float = 0.25

    def __post_init__(self) -> None:
        checks = (
            ("h_min", self.h_min, self.h_min >= 1, "at least 1"),
            ("h_fixed", self.h_fixed, self.h_min <= self.h_fixed <= self.h_max, "h_min to h_max"),
            ("gain", self.gain, math.isfinite(self.gain) and self.gain > 1.0, "finite, above 1"),
            (
                "theta_frac",
                self.theta_frac,
                math.isfinite(self.theta_frac) and self.theta_frac > 0,
                "finite, above 0",
            ),
            ("link_frac_max", self.link_frac_max, 0.0 < self.link_frac_max < 1.0, "between 0 and 1"),
            (
                "overhead_frac_max",
                self.overhead_frac_max,
                0.0 < self.overhead_frac_max < 1.0,
                "between 0 and 1",
            ),
            ("stall_patience", self.stall_patience, self.stall_patience >= 1, "at least 1"),
            ("deadline_slack_frac", self.deadline_slack_frac, self.deadline_slack_frac >= 0.0, "at least 0"),
        )
        for name, value, is_fine, limit in checks:
            if not is_fine:
                raise InputError(
                    "drift-rule",
                    f"drift rule: {name} is {value}, allowed is {limit}",
                    hint="set it within range",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSignals:
    """What the coordinator knows after one outer step; None or NaN stands for a missing signal.

    `squared_norms_B`: ||Delta_m||^2 of each boundary; `squared_mean_norm`: ||mean Delta_m||^2, or None where
    only `projections_B` on one shared unit vector are known. `link_s`: round trip plus transfer; `step_s`:
    one local step; `overhead_s`: the secure sum of a window. `staleness_counts`: updates of staleness 0, 1,
    2, ... since the last decision. `loss`: nats per token.
    """

    squared_norms_B: tuple[float, ...]
    squared_mean_norm: float | None = None
    projections_B: tuple[float, ...] = ()
    link_s: float | None = None
    step_s: float | None = None
    overhead_s: float = 0.0
    staleness_counts: tuple[int, ...] = ()
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftState:
    """What the controller remembers: H as a real number, so that small gains add up, and stalls."""

    h: float
    best_loss: float = math.inf
    num_stalled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftDecision:
    """One decision with everything it rests on; `window_deadline_s` is None where no step time is known."""

    action: DriftAction
    reason: str
    num_local_steps: int
    window_deadline_s: float | None
    rho: float | None
    theta: float | None
    h_floor: int
    h_before: float
    stale_frac: float
    signals: DriftSignals


def dispersion(squared_norms_B: Sequence[float], squared_mean_norm: float) -> float:
    """Rho from the exact squared norm of the mean delta; at least 0, NaN where it is not defined."""
    mean_square = math.fsum(squared_norms_B) / len(squared_norms_B) if squared_norms_B else math.nan
    if not (math.isfinite(mean_square) and math.isfinite(squared_mean_norm)) or squared_mean_norm <= 0.0:
        return math.nan
    return max(0.0, (mean_square - squared_mean_norm) / squared_mean_norm)


def dispersion_bound(squared_norms_B: Sequence[float], projections_B: Sequence[float]) -> float:
    """An upper bound on rho from O(1) metadata: (mean projection)^2 <= ||mean Delta||^2, any unit vector."""
    if len(projections_B) != len(squared_norms_B) or not projections_B:
        return math.nan
    mean_projection = math.fsum(projections_B) / len(projections_B)
    return dispersion(squared_norms_B, mean_projection**2)


def steps_floor(rule: DriftRule, *, link_s: float, step_s: float, overhead_s: float = 0.0) -> int:
    """The smallest H with exposed link time and window overhead within their shares of a round.

    Overhead o (the secure sum) is never hidden: o / (H step + o) <= g. Link time, blocking: link / (H step +
    link) <= f; overlapped: (link - H step) / link <= f, as the exchange hides behind the steps that run
    meanwhile.
    """
    f = rule.link_frac_max
    link_floor_s = link_s * (1.0 - f) if rule.is_overlapped else link_s * (1.0 - f) / f
    g = rule.overhead_frac_max
    hidden_s = max(link_floor_s, overhead_s * (1.0 - g) / g)
    return min(rule.h_max, max(rule.h_min, math.ceil(hidden_s / step_s - 1e-9)))


def decide(rule: DriftRule, state: DriftState, signals: DriftSignals) -> tuple[DriftState, DriftDecision]:
    """The next state and H; H is the fixed one where drift, link time or step time is not known."""
    missing = _missing(signals)
    rho = _rho(signals)
    if not missing and not math.isfinite(rho):
        missing = "drift not finite"
    if missing:
        state = replace(state, h=float(rule.h_fixed))
        return state, _decision(rule, state, state.h, DriftAction.FALL_BACK, missing, signals, None)
    h_before = state.h
    theta = rule.theta_frac * (len(signals.squared_norms_B) - 1)
    state = _note_loss(rule, state, signals.loss)
    floor = _floor(rule, signals)
    action, wanted = _wish(rule, state, rho, theta)
    h = min(float(rule.h_max), max(float(floor), wanted))
    state = replace(state, h=h)
    reason = f"rho {rho:.4g} against theta {theta:.4g}"
    return state, _decision(rule, state, h_before, action, reason, signals, rho)


def _wish(rule: DriftRule, state: DriftState, rho: float, theta: float) -> tuple[DriftAction, float]:
    if rho >= theta:
        return DriftAction.SHORTEN, state.h / rule.gain
    if state.num_stalled >= rule.stall_patience:
        return DriftAction.FREEZE, state.h
    return DriftAction.LENGTHEN, state.h * rule.gain


def _note_loss(rule: DriftRule, state: DriftState, loss: float | None) -> DriftState:
    if loss is None or not math.isfinite(loss):
        return state
    if loss < state.best_loss - rule.stall_margin:
        return replace(state, best_loss=loss, num_stalled=0)
    return replace(state, num_stalled=state.num_stalled + 1)


def _missing(signals: DriftSignals) -> str:
    if len(signals.squared_norms_B) < 2:
        return f"{len(signals.squared_norms_B)} boundary deltas, drift needs 2"
    for name, value in (
        ("link time", signals.link_s),
        ("step time", signals.step_s),
        ("overhead", signals.overhead_s),
    ):
        if value is None or not math.isfinite(value) or value < 0.0:
            return f"{name} missing"
    return "step time missing" if signals.step_s == 0.0 else ""


def _rho(signals: DriftSignals) -> float:
    if signals.squared_mean_norm is not None:
        return dispersion(signals.squared_norms_B, signals.squared_mean_norm)
    return dispersion_bound(signals.squared_norms_B, signals.projections_B)


def _decision(
    rule: DriftRule,
    state: DriftState,
    h_before: float,
    action: DriftAction,
    reason: str,
    signals: DriftSignals,
    rho: float | None,
) -> DriftDecision:
    steps = min(rule.h_max, max(rule.h_min, round(state.h)))
    num_updates = sum(signals.staleness_counts)
    stale_frac = 1.0 - signals.staleness_counts[0] / num_updates if num_updates else 0.0
    step_s = signals.step_s if signals.step_s and math.isfinite(signals.step_s) else None
    slack = rule.deadline_slack_frac * (2.0 if stale_frac > rule.stale_frac_max else 1.0)
    return DriftDecision(
        action=action,
        reason=reason,
        num_local_steps=steps,
        window_deadline_s=None if step_s is None else steps * step_s * (1.0 + slack),
        rho=rho,
        theta=rule.theta_frac * (len(signals.squared_norms_B) - 1) if rho is not None else None,
        h_floor=rule.h_min if _missing(signals) else _floor(rule, signals),
        h_before=h_before,
        stale_frac=stale_frac,
        signals=signals,
    )


def _floor(rule: DriftRule, signals: DriftSignals) -> int:
    assert signals.link_s is not None
    assert signals.step_s is not None
    return steps_floor(rule, link_s=signals.link_s, step_s=signals.step_s, overhead_s=signals.overhead_s)
