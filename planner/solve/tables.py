"""Columns of one mode as flat arrays: what every candidate cluster costs on every layer interval.

Intervals with equal cost key and equal required tier share a signature, so equal blocks are tabulated once.

Legend: E column entries, J templates of the problem, Q stages left, S sites, G signatures, L layers (start
position), W interval lengths, B layer borders (0..L), C device classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import Interval, StageTable, tabulate
from planner.kinds import layer_kinds
from planner.problem import BoundaryProblem, Mode, StepFormula, Template

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Signatures:
    """Layer intervals grouped by cost key and required tier.

    `interval_G` is one interval of each signature, `tier_G` its required tier, `window_LW[a, n-1]` the
    signature of layers [a, a+n), or G where the chain ends before.
    """

    intervals: tuple[Interval, ...]
    tier_G: IntArray
    key_G: IntArray
    key_intervals: tuple[Interval, ...]
    window_LW: IntArray


@dataclass(frozen=True, kw_only=True)
class ModeTables:
    """Entries sorted by cell; a cell is (in-flight level, site, signature).

    `num_stages` is the most stages a path may have, `num_levels` how many in-flight counts differ: a stage
    with q stages left, itself included, is on level min(q, num_levels). `busy_E` seconds per micro-batch,
    `load_E` = repeats * busy + sync per step, `template_E` the candidate cluster. `transfer_BSS` seconds
    per micro-batch across border b from site s to t (infinite without a link).
    """

    mode: Mode
    formula: StepFormula
    signatures: Signatures
    num_sites: int
    num_stages: int
    num_levels: int
    cell_E: IntArray
    busy_E: FloatArray
    load_E: FloatArray
    template_E: NDArray[np.signedinteger]
    transfer_BSS: FloatArray

    @property
    def num_cells(self) -> int:
        """Cells of the dense (levels, S, G) array."""
        return self.num_levels * self.num_sites * len(self.signatures.intervals)


def build_signatures(problem: BoundaryProblem) -> Signatures:
    """Group all intervals of the chain."""
    num_layers = problem.num_layers
    kinds = layer_kinds(problem.cost_model, num_layers)
    groups: dict[tuple[int, int], int] = {}
    intervals: list[Interval] = []
    window_LW = np.full((num_layers, num_layers), -1, dtype=np.int64)
    for start, stop in _intervals(num_layers):
        tier = max(problem.tier_required[start:stop])
        group = (int(kinds.kind_LL[start, stop]), tier)
        if group not in groups:
            groups[group] = len(intervals)
            intervals.append((start, stop))
        window_LW[start, stop - start - 1] = groups[group]
    window_LW[window_LW < 0] = len(intervals)
    return Signatures(
        intervals=tuple(intervals),
        tier_G=np.array([tier for _, tier in groups], dtype=np.int64),
        key_G=np.array([key_i for key_i, _ in groups], dtype=np.int64),
        key_intervals=kinds.intervals,
        window_LW=window_LW,
    )


def _intervals(num_layers: int) -> Iterator[Interval]:
    """All intervals by start, those up to the last layer at the end, each in order of rising length.

    Signatures in this order cost more and more over long runs, which the path kernels make use of.
    """
    for start in range(num_layers):
        for stop in range(start + 1, num_layers):
            yield start, stop
    for start in reversed(range(num_layers)):
        yield start, num_layers


def build_tables(
    problem: BoundaryProblem, signatures: Signatures, *, exact: bool = False
) -> tuple[ModeTables, ...]:
    """Tables of every mode, less strategies that another on the same devices beats in busy time and load.

    That suffices for bounds on fill time and load. The step time itself adds the longest sync of any stage to
    the slowest stage, which may be two: `exact` keeps all that no other beats in busy time and sync.
    """
    return tuple(_mode_tables(problem, mode, signatures, exact) for mode in problem.modes)


def _mode_tables(problem: BoundaryProblem, mode: Mode, signatures: Signatures, exact: bool) -> ModeTables:
    formula = problem.formula(mode)
    num_stages = min(mode.max_stages, problem.num_layers)
    in_flight_max = min(mode.num_micro_batches, num_stages)
    groups: dict[tuple[int, tuple[tuple[int, int], ...]], list[Template]] = defaultdict(list)
    for template_i in mode.templates:
        template = problem.templates[template_i]
        groups[(template.site_i, template.usage)].append(template)
    small = np.dtype(np.int16 if len(problem.templates) < 2**15 else np.int32)
    cells, busies, loads, owners = [], [], [], []
    for members in groups.values():
        busy_JKQ, load_JKQ = _undominated(
            [
                tabulate(
                    problem.cost_model,
                    t.cluster,
                    signatures.key_intervals,
                    t.strategy,
                    mode.micro_batch_size,
                    in_flight_max,
                )
                for t in members
            ],
            formula,
            exact,
        )
        for j, template in enumerate(members):
            allowed_G = np.flatnonzero(signatures.tier_G <= template.tier_i)
            key_G = signatures.key_G[allowed_G]
            g, q = np.nonzero(np.isfinite(busy_JKQ[j][key_G]))
            if g.size == 0:
                continue
            cells.append(
                (q * len(problem.site_ids) + template.site_i) * len(signatures.intervals) + allowed_G[g]
            )
            busies.append(busy_JKQ[j][key_G[g], q])
            loads.append(load_JKQ[j][key_G[g], q])
            owners.append(np.full(g.size, template.template_i, dtype=small))
    return _sorted_tables(
        problem, mode, formula, signatures, (num_stages, in_flight_max), cells, busies, loads, owners
    )


def _undominated(
    tables: Sequence[StageTable], formula: StepFormula, exact: bool
) -> tuple[FloatArray, FloatArray]:
    """Busy time and load per strategy, infinite where an earlier or better strategy is nowhere worse."""
    busy_JKQ = np.stack([t.busy_s_KQ for t in tables])
    sync_JKQ = np.stack([t.sync_s_KQ for t in tables]) if formula.sync else np.zeros_like(busy_JKQ)
    keep_JKQ = np.isfinite(busy_JKQ)
    load_JKQ = formula.repeats * np.where(keep_JKQ, busy_JKQ, 0.0) + sync_JKQ
    load_JKQ[~keep_JKQ] = np.inf
    rest_JKQ = sync_JKQ if exact else load_JKQ
    for i in range(len(tables)):
        for j in range(len(tables)):
            if i != j:
                beaten = (busy_JKQ[j] <= busy_JKQ[i]) & (rest_JKQ[j] <= rest_JKQ[i])
                if j > i:  # of two equal strategies the earlier stays
                    beaten &= (busy_JKQ[j] < busy_JKQ[i]) | (rest_JKQ[j] < rest_JKQ[i])
                keep_JKQ[i] &= ~beaten
    return np.where(keep_JKQ, busy_JKQ, np.inf), np.where(keep_JKQ, load_JKQ, np.inf)


def _sorted_tables(
    problem: BoundaryProblem,
    mode: Mode,
    formula: StepFormula,
    signatures: Signatures,
    stages_and_levels: tuple[int, int],
    cells: list[IntArray],
    busies: list[FloatArray],
    loads: list[FloatArray],
    owners: list[NDArray[np.signedinteger]],
) -> ModeTables:
    cell_E = np.concatenate(cells) if cells else np.zeros(0, dtype=np.int64)
    order = np.argsort(cell_E, kind="stable")
    empty = np.zeros(0)
    return ModeTables(
        mode=mode,
        formula=formula,
        signatures=signatures,
        num_sites=len(problem.site_ids),
        num_stages=stages_and_levels[0],
        num_levels=stages_and_levels[1],
        cell_E=cell_E[order],
        busy_E=(np.concatenate(busies) if busies else empty)[order],
        load_E=(np.concatenate(loads) if loads else empty)[order],
        template_E=(np.concatenate(owners) if owners else np.zeros(0, dtype=np.int32))[order],
        transfer_BSS=transfer_table(problem, mode),
    )


def transfer_table(problem: BoundaryProblem, mode: Mode) -> FloatArray:
    """Seconds per micro-batch for every inner border and pair of sites; infinite without a link.

    A cost model may offer `border_key(border)`: equal keys promise equal transfers on every link.
    """
    num_sites = len(problem.site_ids)
    border_key = getattr(problem.cost_model, "border_key", None)
    borders: dict[Hashable, list[int]] = defaultdict(list)
    for border in range(1, problem.num_layers):
        borders[border if border_key is None else border_key(border)].append(border)
    transfer_BSS = np.full((problem.num_layers + 1, num_sites, num_sites), np.inf)
    for s in range(num_sites):
        for t in range(num_sites):
            link = problem.links[s][t]
            if link is not None:
                for members in borders.values():
                    seconds = problem.cost_model.transfer_s(link, members[0], mode.micro_batch_size)
                    transfer_BSS[members, s, t] = seconds
    return transfer_BSS
