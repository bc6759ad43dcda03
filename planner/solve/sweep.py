"""One sweep over the loads of a mode, from high to low: a factor no replica's worth passes, and its proof.

At load limit y the cuts `theta * w + c >= value` hold for every real path with load at most y, hence for all
lower limits too. No path with load in (y', y] is worth more than the factor once y' is at least what every
corner of the cuts needs. So the sweep closes (y', y], goes on at y' with all its cuts, and runs a shortest
path only where a corner needs more than that. A replica worth more than the factor raises it.

Legend: C device classes, S sites, K = 2C usage multipliers (visit, then once).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt
from typing import NamedTuple

import numpy as np

from planner.solve.boxes import Duals
from planner.solve.bundle import Bundle, Priced, Reached
from planner.solve.envelope import Corner, Envelope, Line, Scale
from planner.solve.path_kernels import Devices, Scratch, price_paths
from planner.solve.paths import Int32Array, Paths
from planner.solve.tables import FloatArray
from planner.solve.tracked_kernels import price_tracked
from planner.solve.tracking import Charges, Tracker, no_charges

STEP_SHARE = 0.25
"""Share of the tolerance, of the step time, that a closed range of loads should at least be wide."""
GRID_RATIO = 1.25
"""Between the limits of the table of least fill times; the last but one is within it of the largest load."""
GOOD_STEPS = 4.0
"""Such steps that better usage multipliers should allow."""
HEADROOM = 1.0
"""How far above what is wanted a search with tracked classes still tells costs apart."""
TIGHTENINGS = 8
TRIES = 14
TIRED_TIGHTENINGS = 2
TIRED_TRIES = 1
"""Where the last range had to be forced, the next is hardly easier: less is tried until a cut improves."""
TRACKINGS = 3
CLOSE = 1e-7
OBSTACLES = 10


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Multipliers of a sweep. `scale_C` is the size at which a usage multiplier begins to matter."""

    duals: Duals
    scale: Scale
    scale_K: FloatArray


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Hope for `factor`; what is shown may be `tolerance` more than the best replica's worth.

    Of the replicas worth `collect_frac` of the best, the best `columns_max` are kept. A `relaxed` sweep takes
    paths for replicas that the fleet can't form: quicker, and its factor is the larger for it. An `exact` one
    counts the devices of a few classes exactly where usage multipliers don't do.
    """

    factor: float
    tolerance: float
    collect_frac: float
    columns_max: int
    relaxed: bool = False
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Loads in (bottom_s, top_s] of one mode; the angle and the charges for devices to begin with."""

    mode_i: int
    top_s: float
    bottom_s: float
    theta: float
    charges: Charges


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Loads in (from_s, upto_s], no path of which is worth more than the factor, and why."""

    from_s: float
    upto_s: float
    least_w: float
    lines: tuple[Line, ...]


class Desk(NamedTuple):
    """What one thread works with."""

    scratch: Scratch
    tracker: Tracker


class Aim(NamedTuple):
    """Cut values at a corner: what the cuts in force reach, what would do, and what is more than enough."""

    reached: float
    wanted: float
    enough: float


class Obstacle(NamedTuple):
    """Devices of a path the fleet can't form, near the corner for which the factor was raised so far."""

    usage_C: FloatArray
    worth: float


class FoundPath(NamedTuple):
    """Table entries and first layers of the stages of a replica, and what it is worth."""

    entry_K: Int32Array
    start_K: Int32Array
    worth: float


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What came out: `factor` is infinite when the sweep was cut short. `lines` are all cuts, in order."""

    segment: Segment
    factor: float
    ranges: tuple[Range, ...]
    found: tuple[FoundPath, ...]
    obstacles: tuple[Obstacle, ...]
    lines: tuple[Line, ...]
    num_runs: int


class Sweep:
    """The state of one sweep; `run` carries it out."""

    def __init__(
        self,
        paths: Paths,
        devices: Devices,
        desk: Desk,
        fill_table: tuple[FloatArray, FloatArray],
        segment: Segment,
        prices: Prices,
        goal: Goal,
    ) -> None:
        self.paths, self.devices = paths, devices
        self.scratch, self.tracker = desk.scratch, desk.tracker
        self.limit_s, self.fill_s = fill_table
        self.segment, self.prices = segment, prices
        self.tolerance, self.collect_frac = goal.tolerance, goal.collect_frac
        self.relaxed = goal.relaxed
        self.factor = goal.factor
        self.known = goal.factor / (1.0 + goal.tolerance)
        self.upto_s = segment.top_s
        self.nothing = no_charges(devices.devices_C.size)
        self.bundle = Bundle(2 * devices.devices_C.size)
        self.envelope = Envelope(prices.scale, self._least_fill_s())
        self.ranges: list[Range] = []
        self.lines: list[Line] = []
        self.found: dict[bytes, FoundPath] = {}
        self.num_runs = 0
        self.obstacles: list[Obstacle] = []
        self.probed_C = np.zeros(devices.devices_C.size)
        self.tired = False
        self.tracks = goal.exact and not goal.relaxed

    def run(self, should_stop: Callable[[], bool]) -> Swept:
        """Sweep from the segment's top to its bottom."""
        factor = self.factor if self._sweep(should_stop) else inf
        return Swept(
            segment=self.segment,
            factor=max(factor, self.factor),
            ranges=tuple(self.ranges),
            found=tuple(self.found.values()),
            obstacles=tuple(sorted(self.obstacles, key=lambda one: -one.worth)[:OBSTACLES]),
            lines=tuple(self.lines),
            num_runs=self.num_runs,
        )

    def _sweep(self, should_stop: Callable[[], bool]) -> bool:
        """Whether the bottom was reached."""
        if not self._probe(0.0, self.nothing):
            return True
        theta, charges = self.segment.theta, self.segment.charges
        charges = charges if self.tracks else charges.tracking(())
        if theta > 0.0 and not self._probe(theta, charges):
            return True
        tries, exact_fill = 0, self.paths.fill <= 0.0
        while self.factor < inf and not should_stop():
            corner = self.envelope.worst(self.factor)
            if self._allows_step(corner):
                if self._close(corner):
                    return True
                tries, exact_fill = 0, self.paths.fill <= 0.0
                continue
            if tries < (TIRED_TRIES if self.tired else TRIES):
                tries += 1
                theta = self._theta(corner)
                near = self.envelope.nearest(theta) if theta > 0.0 else self.envelope.lines[-1]
                if theta > 0.0 or self.paths.fill <= 0.0:
                    charges = charges if near is None else near.charges
                else:
                    charges = self.nothing
                reached = theta * corner.fill_s + corner.price
                if not self._probe(theta, charges, corner):
                    return True
                if self.lines[-1].value > reached + CLOSE * abs(reached):
                    self.tired = False
                    continue
            if not exact_fill and not self.tired:
                exact_fill = True
                if self._measure_fill():
                    continue
            if self._force():
                return True
            self.tired = True
            tries, exact_fill = 0, self.paths.fill <= 0.0
        return False

    def _allows_step(self, corner: Corner) -> bool:
        """Whether loads can be closed down to the bottom, or far enough to be worth while."""
        return corner.need_s <= self._next_s(corner)

    def _next_s(self, corner: Corner, share: float = 1.0) -> float:
        """The load a good step down ends at: a share of the tolerance less of the corner's step time."""
        if self.upto_s == inf:  # no load is larger than this
            return max(self.segment.bottom_s, float(self.limit_s[-2]) * GRID_RATIO)
        step_s = share * STEP_SHARE * self.tolerance * (corner.fill_s + self.upto_s)
        return max(self.segment.bottom_s, self.upto_s - step_s)

    def _theta(self, corner: Corner) -> float:
        if self.paths.fill <= 0.0 or corner.need_s == inf:
            return 0.0
        return self.prices.scale.theta(corner, self.factor)

    def _least_fill_s(self) -> float:
        """Least fill time under the present limit, from the table of the mode."""
        at = min(int(np.searchsorted(self.limit_s, self.upto_s)), self.fill_s.size - 1)
        return float(self.fill_s[at])

    def _close(self, corner: Corner) -> bool:
        """Close loads down to what the worst corner needs; says whether that was the bottom."""
        low_s = max(corner.need_s, self.segment.bottom_s)
        envelope = self.envelope
        self.ranges.append(
            Range(
                from_s=low_s,
                upto_s=self.upto_s,
                least_w=envelope.least_w,
                lines=envelope.few(self.factor, low_s),
            )
        )
        if low_s <= self.segment.bottom_s:
            return True
        self.upto_s = low_s
        envelope.raise_least_w(self._least_fill_s())
        return False

    def _force(self) -> bool:
        """Close a small step whatever it takes: the factor is raised as far as the worst corner demands."""
        before = self.factor
        while True:
            corner = self.envelope.worst(self.factor)
            if self._allows_step(corner):
                if self.factor > before:
                    self.obstacles.append(Obstacle(self.probed_C, self.factor))
                return self._close(corner)
            lifted = self.prices.scale.worth(corner.fill_s, corner.price, self._next_s(corner))
            if lifted == inf:  # devices are free: no factor bounds what these paths are worth
                self.factor = inf
                return True
            self.factor = max(self.factor, lifted) * (1.0 + 1e-9)

    def _run(
        self,
        theta: float,
        price_weight: float,
        charges: Charges,
        enough: float = inf,
    ) -> Priced:
        """One shortest path; replicas worth enough are kept, and one worth more than the factor raises it.

        A search with tracked classes ends at costs of `enough`.
        """
        self.num_runs += 1
        duals, scratch = self.prices.duals, self.scratch
        weights = (self.upto_s, theta, price_weight, charges.usage_2C, duals.price_C, duals.rho, duals.nu)
        least = (self.prices.scale.tokens, self.known * self.collect_frac)
        if charges.tracked:
            counts, net = self.tracker.scratch(charges.tracked), self.tracker.net
            limits = (charges.full_2C, enough)
            priced = price_tracked(self.paths, self.devices, scratch, counts, net, *weights, *least, *limits)
        else:
            priced = price_paths(self.paths, self.devices, scratch, *weights, *least)
        value, fill_s, price, load_s, real, num_found, worth = priced
        for i in range(num_found):
            entry_K = scratch.found_IK[i, : scratch.size_I[i]].copy()
            start_K = scratch.begin_IK[i, : scratch.size_I[i]].copy()
            found = FoundPath(entry_K, start_K, float(scratch.worth_I[i]))
            self.found.setdefault(entry_K.tobytes() + start_K.tobytes(), found)
        if self.relaxed and price_weight > 0.0 and value < inf:
            worth = max(worth, self.prices.scale.worth(fill_s, price, load_s))
        if worth > self.factor:
            self.factor, self.known = worth * (1.0 + 0.5 * self.tolerance), worth
        return Priced(value=value, fill_s=fill_s, price=price, load_s=load_s, real=real)

    def _measure_fill(self) -> bool:
        """Find the exact least fill time under the present limit; says whether that was news."""
        fill_s = self._run(1.0, 0.0, self.nothing).value * (1.0 - 1e-12)
        news = fill_s > self.envelope.least_w * (1.0 + 1e-9)
        self.envelope.raise_least_w(fill_s)
        return news

    def _probe(self, theta: float, charges: Charges, corner: Corner | None = None) -> bool:
        """Add the cut of an angle, a better one if the corner asks for it.

        False when there is no path at all, which closes everything below.
        """
        aim = None if corner is None else self._aim(theta, corner)
        priced = self._run(theta, 1.0, charges, inf if aim is None else aim.enough)
        if priced.value == inf:
            line = Line(theta=theta, value=inf, charges=charges, upto_s=self.upto_s)
            bottom_s = self.segment.bottom_s
            self.ranges.append(
                Range(from_s=bottom_s, upto_s=self.upto_s, least_w=self.envelope.least_w, lines=(line,))
            )
            return False
        cut = Reached(value=priced.value, charges=charges)
        if aim is not None and not self.relaxed and (theta > 0.0 or self.paths.fill <= 0.0):
            charged = cut.value < (theta * priced.fill_s + priced.price) * (1.0 - 1e-9)
            if (charged or not priced.real) and cut.value <= aim.reached + CLOSE * abs(aim.reached):
                cut = self._improve(theta, cut, priced, aim)
        self.probed_C = self.scratch.usage_C.copy()
        line = Line(theta=theta, value=cut.value, charges=cut.charges, upto_s=self.upto_s)
        self.lines.append(line)
        self.envelope.add(line)
        return True

    def _aim(self, theta: float, corner: Corner) -> Aim:
        """The cut value that would allow a good step down from the present limit, and its surroundings."""
        scale = self.prices.scale
        reached = theta * corner.fill_s + corner.price
        goal_s = self._next_s(corner, GOOD_STEPS)
        touch_w = 0.0
        if theta > 0.0:
            touch_w = max(self.envelope.least_w, sqrt(scale.tokens / (theta * self.factor)) - goal_s)
        speed = scale.tokens / (touch_w + goal_s) + scale.nu
        wanted = max(theta * touch_w + speed / self.factor - scale.rho, reached + 1e-4 * abs(reached))
        return Aim(reached=reached, wanted=wanted, enough=wanted + HEADROOM * (wanted - reached))

    def _improve(self, theta: float, cut: Reached, priced: Priced, aim: Aim) -> Reached:
        """Better usage multipliers; where these don't do, classes are tracked."""
        best, wanted = self._tighten(theta, cut, priced, aim), aim.wanted
        for _ in range(TRACKINGS if self.tracks else 0):
            if best.value >= wanted * (1.0 - 1e-9):
                break
            tracked = self.tracker.more(best.charges.tracked, self._overuse_C(best, theta, wanted))
            if not tracked:
                break
            charges = best.charges.tracking(tracked)
            priced = self._run(theta, 1.0, charges, aim.enough)
            cut = Reached(value=priced.value, charges=charges)
            cut = self._tighten(theta, cut, priced, aim)
            if cut.value <= best.value:
                break
            best = cut
        return best

    def _overuse_C(self, cut: Reached, theta: float, wanted: float) -> FloatArray:
        """Price of the devices that remembered paths in the way of the cut use beyond those there are."""
        blocking_P = self.bundle.blocking_P(cut, theta, wanted, self.upto_s)
        once_PC = self.bundle.slope_PK[:, self.devices.devices_C.size :]
        over_C: FloatArray = np.maximum(0.0, once_PC[blocking_P]).sum(axis=0)
        return over_C * self.prices.duals.price_C

    def _tighten(self, theta: float, cut: Reached, priced: Priced, aim: Aim) -> Reached:
        """Raise usage multipliers until the cut reaches what is wanted or nothing more is to be had."""
        best, wanted, level = cut, aim.wanted, aim.wanted
        self._remember(priced)
        for _ in range(TIRED_TIGHTENINGS if self.tired else TIGHTENINGS):
            if best.value >= wanted * (1.0 - 1e-9):
                break
            charges = self.bundle.propose(best, theta, level, self.upto_s, self.prices.scale_K)
            priced = self._run(theta, 1.0, charges, aim.enough)
            self._remember(priced)
            better = priced.value > best.value
            if better:
                best = Reached(value=priced.value, charges=charges)
            level = wanted if better else best.value + 0.5 * (wanted - best.value)
        return best

    def _remember(self, priced: Priced) -> None:
        if priced.fill_s < inf:
            self.bundle.add(priced, self._slope_K())

    def _slope_K(self) -> FloatArray:
        """Slopes of the last path's usage terms: devices used less those there are, per visit and once."""
        devices, scratch = self.devices, self.scratch
        visits_C = scratch.visits_S[devices.site_C]
        per_visit_C = scratch.usage_C - visits_C * devices.devices_C
        return np.concatenate([per_visit_C, scratch.usage_C - devices.devices_C])
