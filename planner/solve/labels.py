"""Replicas of small slack in one box and band, listed exactly by label setting with usage vectors.

The slack of a replica is `price . usage + constant - weight * tokens/s`, >= 0 for all once the multipliers
are dual feasible. In a box (loads) and band (fill times w) the speed W / (w + y) lies below its chord in w,
so slack is bounded from below by a linear cost, whose least completion a path DP gives.

Legend: N labels, C device classes, E column entries, J templates, S sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.objective import StageChoice
from planner.problem import BoundaryProblem
from planner.solve.columns import Column, Shape
from planner.solve.pathdp import BoxView, PathDp
from planner.solve.tables import FloatArray, IntArray

# How many of the strongest labels of a state others are compared with.
DOMINATORS = 40


@dataclass(frozen=True, kw_only=True)
class SlackRule:
    """slack = price_C . usage + constant - speed_weight * tokens/s."""

    price_C: FloatArray
    constant: float
    speed_weight: float


@dataclass(frozen=True, kw_only=True)
class Band:
    """Loads above `from_s`, fill times in [low_w, high_w]: slack >= base + price . usage + slope * w."""

    from_s: float
    low_w: float
    high_w: float
    base: float
    slope: float


def band_of(
    rule: SlackRule, tokens_per_step: float, fill: float, from_s: float, low_w: float, high_w: float
) -> Band:
    """The chord of the speed over a band; without fill time only the load counts."""
    tokens = rule.speed_weight * tokens_per_step
    slope = tokens / ((low_w + from_s) * (high_w + from_s)) if fill > 0.0 else 0.0
    base = rule.constant - tokens / (low_w + from_s) - slope * low_w
    return Band(from_s=from_s, low_w=low_w, high_w=high_w, base=base, slope=slope)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Partial paths after equally many stages; `left` stages are still to come.

    `w`, `z`, `g`: fill time, slowest busy or transfer time, largest sync. `credit`: what usage multipliers
    have added so far. `parent` is the label one stage before, `entry` the table entry of the last stage.
    """

    left_N: IntArray
    layer_N: IntArray
    site_N: IntArray
    usage_NC: IntArray
    w_N: FloatArray
    z_N: FloatArray
    g_N: FloatArray
    credit_N: FloatArray
    parent_N: IntArray
    entry_N: IntArray

    @property
    def size(self) -> int:
        """How many labels there are."""
        return int(self.w_N.size)

    def take(self, keep: NDArray[np.bool_] | IntArray) -> Labels:
        """The chosen labels."""
        return Labels(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


class LabelLimitError(Exception):
    """More labels than allowed: the enumeration is not complete."""


@dataclass(slots=True, kw_only=True)
class Budget:
    """Labels left; running out or being told to stop ends the enumeration."""

    labels_left: int
    should_stop: Callable[[], bool]

    def spend(self, count: int) -> None:
        """Take some labels.

        Raises:
            LabelLimitError: none are left.
        """
        self.labels_left -= count
        if self.labels_left < 0 or self.should_stop():
            raise LabelLimitError


class StartIndex:
    """Entries of a box by in-flight level, site and start layer."""

    def __init__(self, view: BoxView) -> None:
        self._view = view
        window_LW = view.window_LW
        num_signatures = len(view.tables.signatures.intervals)
        self._ends = np.append(view.start_P[1:], view.busy_E.size).astype(np.int64)
        self._cell_at = {int(cell): p for p, cell in enumerate(view.cell_P)}
        self._num_signatures = num_signatures
        self._window_LW = window_LW
        self._kept: dict[tuple[int, int, int], tuple[IntArray, IntArray]] = {}

    def __call__(self, level: int, site: int, layer: int) -> tuple[IntArray, IntArray]:
        """Table entries that start at `layer`, and the layer each stops at."""
        key = (level, site, layer)
        if key not in self._kept:
            entries: list[IntArray] = []
            stops: list[IntArray] = []
            base = (level * self._view.tables.num_sites + site) * self._num_signatures
            for length in range(1, self._window_LW.shape[1] + 1):
                signature = int(self._window_LW[layer, length - 1])
                p = self._cell_at.get(base + signature) if signature < self._num_signatures else None
                if p is not None:
                    inside = self._view.entry_E[int(self._view.start_P[p]) : int(self._ends[p])].astype(
                        np.int64
                    )
                    entries.append(inside)
                    stops.append(np.full(inside.size, layer + length, dtype=np.int64))
            none = np.zeros(0, dtype=np.int64)
            self._kept[key] = (np.concatenate(entries), np.concatenate(stops)) if entries else (none, none)
        return self._kept[key]


class BandSearch:
    """All replicas of one box and band with slack up to a limit, less those beaten on the same devices."""

    def __init__(
        self,
        problem: BoundaryProblem,
        shape: Shape,
        starts: StartIndex,
        dp: PathDp,
        rule: SlackRule,
        band: Band,
        slack_max: float,
        budget: Budget,
        *,
        usage_2C: FloatArray | None = None,
    ) -> None:
        self.problem, self.shape, self.starts, self.dp = problem, shape, starts, dp
        self.rule, self.band, self.slack_max, self.budget = rule, band, slack_max, budget
        self.tables = dp.view.tables
        usage_2C = np.zeros((2, shape.devices_C.size)) if usage_2C is None else usage_2C
        self.charge_C = usage_2C.sum(axis=0)
        self.credit_S = shape.credit_S(usage_2C[0])
        self.once = -float(usage_2C[1] @ shape.devices_C)
        self.base = band.base + self.once
        self.tokens = rule.speed_weight * problem.tokens_per_step
        # single precision may have raised a completion bound by this much
        room = 1e-5 * (abs(self.base) + abs(slack_max) + abs(dp.value) + float(self.credit_S.sum()))
        self.cutoff = slack_max + room

    def run(self) -> Iterator[Column]:
        """Complete replicas of any number of stages."""
        levels = [self._start()]
        while levels[-1].size:
            staged = [self._staged(levels[-1], members) for members in groups(levels[-1])]
            grown = concatenate(staged, self.shape.devices_C.size)
            yield from self._finished(levels, grown.take(grown.left_N == 0))
            onward = grown.take(grown.left_N > 0)
            moved = undominated(self._hopped(onward), self.tables.formula.repeats) if onward.size else onward
            self.budget.spend(grown.size + moved.size)
            levels.append(moved)

    def _start(self) -> Labels:
        """Empty paths for every number of stages and first site that may lead anywhere."""
        q_N, site_N = np.nonzero(self.dp.total_QS + self.base <= self.cutoff)
        zero_N = np.zeros(site_N.size)
        none_N = np.full(site_N.size, -1, dtype=np.int64)
        return Labels(
            left_N=q_N + 1,
            layer_N=np.zeros(site_N.size, dtype=np.int64),
            site_N=site_N,
            usage_NC=np.zeros((site_N.size, self.shape.devices_C.size), dtype=np.int64),
            w_N=zero_N,
            z_N=zero_N,
            g_N=zero_N,
            credit_N=-self.credit_S[site_N],
            parent_N=none_N,
            entry_N=none_N,
        )

    def _spent_N(self, labels: Labels) -> FloatArray:
        """Slack so far: prices, credits, fill time at the band's slope, and the speed term's least remainder.

        With load y known to be at least so much, -W / (w + y) - slope * w is least at an end of the band.
        """
        formula, band = self.tables.formula, self.band
        load_N = np.maximum(band.from_s, formula.repeats * labels.z_N + 0.0)
        low_N = -self.tokens / (band.low_w + load_N) - band.slope * band.low_w
        speed_N = np.minimum(low_N, -self.tokens / (band.high_w + load_N) - band.slope * band.high_w)
        price_N = labels.usage_NC @ self.rule.price_C + labels.credit_N
        spent_N: FloatArray = self.once + self.rule.constant + speed_N + price_N + band.slope * labels.w_N
        return spent_N

    def _staged(self, labels: Labels, members: IntArray) -> Labels:
        """One more stage on labels at the same place, in all ways that can still end with small slack."""
        tables, formula = self.tables, self.tables.formula
        here = labels.take(members)
        site, q = int(here.site_N[0]), int(here.left_N[0])
        entry_E, stop_E = self.starts(min(q, tables.num_levels) - 1, site, int(here.layer_N[0]))
        template_E = tables.template_E[entry_E]
        busy_E = tables.busy_E[entry_E]
        usage_EC = self.shape.usage_JC[template_E]
        charge_E = usage_EC @ self.charge_C
        step_E = usage_EC @ self.rule.price_C + charge_E + self.band.slope * formula.fill * busy_E
        total_NE = self._spent_N(here)[:, None] + (step_E + self.dp.onward_QSB[q - 1, site, stop_E])[None, :]
        n, e = np.nonzero(total_NE <= self.cutoff)
        usage_NC = here.usage_NC[n] + usage_EC[e]
        fitting = np.all(usage_NC <= self.shape.devices_C, axis=1)
        n, e, usage_NC = n[fitting], e[fitting], usage_NC[fitting]
        busy_N = busy_E[e]
        sync_N = tables.load_E[entry_E[e]] - formula.repeats * busy_N
        return Labels(
            left_N=np.full(n.size, q - 1, dtype=np.int64),
            layer_N=stop_E[e],
            site_N=np.full(n.size, site, dtype=np.int64),
            usage_NC=usage_NC,
            w_N=here.w_N[n] + formula.fill * busy_N,
            z_N=np.maximum(here.z_N[n], busy_N),
            g_N=np.maximum(here.g_N[n], sync_N),
            credit_N=here.credit_N[n] + charge_E[e],
            parent_N=members[n],
            entry_N=entry_E[e],
        )

    def _hopped(self, labels: Labels) -> Labels:
        """Every staged label moved to every site its next stage may stand in."""
        tables = self.tables
        hop_NS = tables.transfer_BSS[labels.layer_N, labels.site_N]
        linked_NS = np.isfinite(self.dp.view.transfer_BSS[labels.layer_N, labels.site_N])
        ahead_NS = self.dp.stage_QSL[labels.left_N - 1, :, labels.layer_N]
        entered_NS = np.where(labels.site_N[:, None] == np.arange(self.credit_S.size), 0.0, self.credit_S)
        cost_NS = self.band.slope * tables.formula.fill * np.where(linked_NS, hop_NS, 0.0) - entered_NS
        total_NS = self._spent_N(labels)[:, None] + np.where(linked_NS, cost_NS, np.inf) + ahead_NS
        n, s = np.nonzero(total_NS <= self.cutoff)
        moved = labels.take(n)
        hop_N = hop_NS[n, s]
        return Labels(
            left_N=moved.left_N,
            layer_N=moved.layer_N,
            site_N=s,
            usage_NC=moved.usage_NC,
            w_N=moved.w_N + tables.formula.fill * hop_N,
            z_N=np.maximum(moved.z_N, hop_N),
            g_N=moved.g_N,
            credit_N=moved.credit_N - entered_NS[n, s],
            parent_N=moved.parent_N,
            entry_N=moved.entry_N,
        )

    def _finished(self, levels: list[Labels], last: Labels) -> Iterator[Column]:
        """Complete labels as columns, less those over the slack or over a capacity row."""
        formula = self.tables.formula
        step_N = last.w_N + formula.repeats * last.z_N + last.g_N
        rate_N = self.problem.tokens_per_step / step_N
        slack_N = last.usage_NC @ self.rule.price_C + self.rule.constant - self.rule.speed_weight * rate_N
        real_N = np.all(last.usage_NC @ self.shape.coefficient_RC.T <= self.shape.limit_R + 1e-9, axis=1)
        for n in np.flatnonzero(real_N & (slack_N <= self.slack_max)):
            yield Column(
                mode_i=self.tables.mode.mode_i,
                stages=self._stages(levels, last, int(n)),
                step_s=float(step_N[n]),
                tokens_per_s=float(rate_N[n]),
                fill_s=float(last.w_N[n]),
                load_s=float(formula.repeats * last.z_N[n] + last.g_N[n]),
                usage_C=last.usage_NC[n],
                real=True,
            )

    def _stages(self, levels: list[Labels], last: Labels, n: int) -> tuple[StageChoice, ...]:
        """Follow parents back to the first stage."""
        stages: list[StageChoice] = []
        stop = int(last.layer_N[n])
        for labels, before in zip([last, *reversed(levels[1:])], reversed(levels), strict=True):
            entry, n = int(labels.entry_N[n]), int(labels.parent_N[n])
            start = int(before.layer_N[n])
            stages.append(StageChoice(template_i=int(self.tables.template_E[entry]), start=start, stop=stop))
            stop = start
        return tuple(reversed(stages))


def groups(labels: Labels) -> Iterator[IntArray]:
    """Positions of labels with the same stages left, layer and site."""
    key_N = place_of(labels)
    order = np.argsort(key_N, kind="stable")
    bounds = np.flatnonzero(np.diff(key_N[order], prepend=-1))
    for start, stop in zip(bounds, [*bounds[1:], order.size], strict=True):
        yield order[start:stop]


def place_of(labels: Labels) -> IntArray:
    """One number for stages left, layer and site."""
    return (labels.left_N * 65_536 + labels.layer_N) * 65_536 + labels.site_N


def concatenate(parts: list[Labels], num_classes: int) -> Labels:
    """All labels of several lists."""
    if not parts:
        none_N, zero_N = np.zeros(0, dtype=np.int64), np.zeros(0)
        usage_NC = np.zeros((0, num_classes), dtype=np.int64)
        return Labels(
            left_N=none_N,
            layer_N=none_N,
            site_N=none_N,
            usage_NC=usage_NC,
            w_N=zero_N,
            z_N=zero_N,
            g_N=zero_N,
            credit_N=zero_N,
            parent_N=none_N,
            entry_N=none_N,
        )
    return Labels(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Labels)})


def undominated(labels: Labels, repeats: float) -> Labels:
    """Drop labels that one of the strongest labels at the same layer and site beats with no more devices.

    Label 1 beats 2 when w1 + repeats * max(0, z1 - z2) + max(0, g1 - g2) <= w2 and it uses no class more:
    then every completion of 2 is also one of 1, no slower and no dearer. With two maxima that is four
    comparisons.
    """
    if labels.size < 2:
        return labels
    state_N = place_of(labels)
    rank_N = labels.w_N + repeats * labels.z_N + labels.g_N
    order = np.lexsort((labels.usage_NC.sum(axis=1), rank_N, state_N))
    labels = labels.take(order)
    measures_N4 = np.column_stack(
        [
            labels.w_N,
            labels.w_N + repeats * labels.z_N,
            labels.w_N + labels.g_N,
            labels.w_N + repeats * labels.z_N + labels.g_N,
        ]
    )
    state_N = state_N[order]
    first_N = np.maximum.accumulate(np.where(np.diff(state_N, prepend=-1) != 0, np.arange(order.size), 0))
    keep_N = np.ones(order.size, dtype=bool)
    for _ in range(DOMINATORS):
        alive = np.flatnonzero(keep_N)
        leader = first_N[alive]
        inside = leader < alive
        if not inside.any():
            break
        alive, leader = alive[inside], leader[inside]
        beaten = np.all(measures_N4[leader] <= measures_N4[alive], axis=1)
        beaten &= np.all(labels.usage_NC[leader] <= labels.usage_NC[alive], axis=1)
        keep_N[alive[beaten]] = False
        first_N = _next_leader(first_N, keep_N)
    return labels.take(keep_N)


def _next_leader(first_N: IntArray, keep_N: NDArray[np.bool_]) -> IntArray:
    """The next kept label after each leader."""
    size = keep_N.size
    following = np.where(keep_N, np.arange(size), size)
    following = np.minimum.accumulate(following[::-1])[::-1]
    following = np.append(following, size)
    return np.asarray(following[np.minimum(first_N + 1, size)], dtype=np.int64)
