"""Repeats a dual proof: no replica can be worth more than its devices at the stated prices, times the factor.

For every mode the load y of a replica (what its busiest stage or link takes per step beyond the fill) lies in
one of the boxes (y_lo, y_hi]. Step time is at least w + y, with w the fill time, so a replica in the box is
no better than (W / (w + y_lo) + nu) / (c + rho) per unit of price, c being the price of its devices. Each cut
a w + b c >= v, with v found here over all paths that stay inside the box, narrows what (w, c) can be. Charges
lambda_c (devices of class c used - devices there are), per visit of the class's site or once per path, are
never positive for a real replica, so v stays valid with them. A cut may leave out paths that use some classes
more often than they have devices, since no real replica does. docs/certificate.md has the whole argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.check.columns import ColumnSource, FloatArray, ModeColumns
from planner.check.hull import Cut, largest_ratio
from planner.check.multipliers import Multipliers, figure
from planner.check.relaxed import BoxPaths, Stocks, Weights
from planner.check.report import REL_TOLERANCE, Findings, Reporter
from planner.check.searched import BoxSearch, Charges, TooManyChainsError
from planner.problem import BoundaryProblem

# A factor above the derived one is true as well, only weaker: solvers may round to the safe side. One that is
# further off was not made by these boxes and cuts.
FACTOR_TOLERANCE = 2e-3
# Combinations of device counts of tracked classes that a cut may tell apart.
STOCKS_MAX = 1024


@dataclass(slots=True, kw_only=True)
class DualCheck:
    """One boundary's dual proof, mode by mode and box by box. `num_paths` counts path problems."""

    problem: BoundaryProblem
    multipliers: Multipliers
    findings: Findings
    place: str
    report: Reporter | None = None
    num_paths: int = 0

    def run(self, modes: object) -> float | None:
        """The factor that the stated boxes and cuts really support; None when they miss a replica."""
        before = len(self.findings.violations)
        stated = self._by_mode(modes)
        source = ColumnSource(self.problem)
        factor = 0.0
        for mode in self.problem.modes:
            if not mode.templates:
                continue
            place = f"{self.place}.modes[{mode.mode_i}]"
            if mode.mode_i not in stated:
                self.findings.add("proof-cover", place, "missing", "boxes for every mode")
                continue
            if self.report is not None:
                self.report(f"{self.problem.name}: mode {mode.mode_i + 1} of {len(self.problem.modes)}")
            factor = max(factor, self._mode(source.columns(mode), stated[mode.mode_i], place))
        return factor if len(self.findings.violations) == before else None

    def require_factor(self, derived: float) -> None:
        """`proof-factor`: the stated factor is the derived one or little above it, never below it."""
        stated = self.multipliers.factor
        too_low = stated < derived * (1.0 - REL_TOLERANCE)
        if too_low or stated > derived * (1.0 + FACTOR_TOLERANCE):
            self.findings.add("proof-factor", f"{self.place}.factor", stated, derived)

    def _by_mode(self, modes: object) -> dict[int, Sequence[Any]]:
        found: dict[int, Sequence[Any]] = {}
        known = {mode.mode_i for mode in self.problem.modes}
        for i, item in enumerate(_list(modes)):
            place = f"{self.place}.modes[{i}]"
            mode_i = item.get("mode") if isinstance(item, Mapping) else None
            if (
                isinstance(mode_i, bool)
                or not isinstance(mode_i, int)
                or mode_i not in known
                or mode_i in found
            ):
                self.findings.add("proof-cover", place, mode_i, "each mode of the boundary once")
                continue
            found[mode_i] = _list(item.get("boxes"))
        return found

    def _mode(self, columns: ModeColumns, boxes: Sequence[Any], place: str) -> float:
        """Largest factor of any box; the boxes must run from zero to infinity without a hole."""
        factor, above_s = 0.0, 0.0
        for i, box in enumerate(boxes):
            here = f"{place}.boxes[{i}]"
            upto = box.get("upto_s", "missing") if isinstance(box, Mapping) else "missing"
            upto_s = float("inf") if upto is None else figure(upto)
            is_last = i == len(boxes) - 1
            if upto_s is None or upto_s <= above_s or (upto is None) != is_last:
                self.findings.add(
                    "proof-cover", f"{here}.upto_s", upto, f"above {above_s}; null in the last box only"
                )
                return factor
            cuts = self._read_cuts(_list(box.get("cuts")), f"{here}.cuts")
            if cuts is None:
                return factor
            found = self._box(columns, above_s, upto_s, cuts)
            if "searched_s" in box:
                found = min(found, self._searched(columns, (above_s, upto_s), cuts, box["searched_s"], here))
            factor = max(factor, found)
            above_s = upto_s
        if not boxes:
            self.findings.add("proof-cover", f"{place}.boxes", "no box", "boxes from 0 to infinity")
        return factor

    def _box(
        self, columns: ModeColumns, above_s: float, upto_s: float, weights: Sequence[Mapping[str, Any]]
    ) -> float:
        """The best ratio any path of the box can have; zero when there is no path."""
        paths = BoxPaths(columns, upto_s)
        cuts: list[Cut] = []
        for stated in weights or ({"w": 1.0, "c": 0.0, "visit": {}, "once": {}},):
            least, empty_above = self.least(paths, columns, stated)
            if least == float("inf") or (stated["w"] == stated["c"] == 0.0 and least > empty_above):
                return 0.0
            cuts.append(Cut(w_weight=stated["w"], c_weight=stated["c"], least=least))
        return largest_ratio(
            cuts,
            tokens_per_step=self.problem.tokens_per_step,
            seconds_min=above_s,
            fill_max_s=paths.longest_fill_s,
            rho=self.multipliers.rho,
            nu=self.multipliers.nu,
        )

    def _searched(
        self,
        columns: ModeColumns,
        loads_s: tuple[float, float],
        cuts: Sequence[Mapping[str, Any]],
        stated: object,
        place: str,
    ) -> float:
        """The best ratio when no real replica of the box takes less than the stated seconds.

        Infinite when that was not shown; the reason is recorded.
        """
        searched_s, rho = figure(stated), self.multipliers.rho
        if searched_s is None or searched_s == 0.0 or rho == 0.0:
            self.findings.add("proof-searched", f"{place}.searched_s", stated, "seconds > 0, with rho > 0")
            return float("inf")
        num_classes = len(self.problem.classes)
        charges = Charges(
            visit_C=_by_class(cuts[0]["visit"] if cuts else {}, num_classes),
            once_C=_by_class(cuts[0]["once"] if cuts else {}, num_classes),
        )
        try:
            none_found = BoxSearch(self.problem, columns, charges, *loads_s, searched_s).finds_none()
        except TooManyChainsError as error:
            self.findings.add("proof-size", f"{place}.searched_s", stated, str(error))
            return float("inf")
        if not none_found:
            self.findings.add(
                "proof-searched", f"{place}.searched_s", stated, "no quicker replica in the box"
            )
            return float("inf")
        return (self.problem.tokens_per_step / searched_s + self.multipliers.nu) / rho

    def least(self, paths: BoxPaths, columns: ModeColumns, stated: Mapping[str, Any]) -> tuple[float, float]:
        """The v of one cut, and what rounding can make of a charge that is zero."""
        available_C = np.array([c.num_devices for c in self.problem.classes], dtype=np.float64)
        visit_C, once_C = (_by_class(stated[key], len(available_C)) for key in ("visit", "once"))
        start_S = np.zeros(len(self.problem.site_ids))
        np.subtract.at(start_S, columns.site_C, visit_C * available_C)
        price_C = stated["c"] * self.multipliers.price_C + visit_C + once_C
        charged = Weights(seconds=stated["w"], price_J=columns.usage_JC @ price_C, start_S=start_S)
        self.num_paths += 1
        tracked = list(stated.get("tracked", ()))
        if tracked:
            limit_H = available_C[tracked].astype(np.int64)
            stocks = Stocks(need_JH=columns.usage_JC[:, tracked], limit_H=limit_H)
            least = paths.least_stocked(charged, stocks)
        else:
            least = paths.least(charged)
        least -= float(once_C @ available_C)
        return least, REL_TOLERANCE * float((visit_C + once_C) @ available_C)

    def _read_cuts(self, cuts: Sequence[Any], place: str) -> list[dict[str, Any]] | None:
        read = []
        for i, cut in enumerate(cuts):
            cut = cut if isinstance(cut, Mapping) else {}
            weights = {key: figure(cut.get(key)) for key in ("w", "c")}
            charges = {
                key: _read_charges(cut.get(key, {}), len(self.problem.classes)) for key in ("visit", "once")
            }
            tracked = _read_tracked(cut.get("tracked", []), len(self.problem.classes))
            if tracked is None or None in (*weights.values(), *charges.values()):
                limit = "weights w, c >= 0, a charge >= 0 per class, and tracked classes each once"
                self.findings.add("proof-multipliers", f"{place}[{i}]", dict(cut), limit)
                return None
            num_stocks = math.prod(self.problem.classes[c].num_devices + 1 for c in tracked)
            if num_stocks > STOCKS_MAX:
                self.findings.add("proof-size", f"{place}[{i}].tracked", num_stocks, STOCKS_MAX)
                return None
            read.append({**weights, **charges, "tracked": tracked})
        return read


def _by_class(charges: Mapping[int, float], num_classes: int) -> FloatArray:
    charge_C = np.zeros(num_classes)
    for class_i, charge in charges.items():
        charge_C[class_i] = charge
    return charge_C


def _read_charges(value: object, num_classes: int) -> dict[int, float] | None:
    if not isinstance(value, Mapping):
        return None
    charges: dict[int, float] = {}
    for name, charge in value.items():
        number = figure(charge)
        known = isinstance(name, str) and name.isascii() and name.isdigit() and str(int(name)) == name
        if number is None or not known or int(name) >= num_classes:
            return None
        charges[int(name)] = number
    return charges


def _read_tracked(value: object, num_classes: int) -> list[int] | None:
    if not isinstance(value, list | tuple) or len(set(map(str, value))) != len(value):
        return None
    if any(isinstance(c, bool) or not isinstance(c, int) or not 0 <= c < num_classes for c in value):
        return None
    return list(value)


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
