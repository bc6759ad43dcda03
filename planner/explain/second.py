"""The second opinion: no "impossible" is told before code of another origin says so too.

Weights are weighed again by the referee's own path search. Where there are none, the referee's chain search
lists the device counts of all replicas, label by label, and CP-SAT packs them without presolve (reports of
"infeasible" by presolve alone exist).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from math import ceil, floor, inf

import numpy as np

from costmodels.workload import ROUND_ROBIN
from planner.check.chains import ChainSearch, Labels, joined, usage_codes
from planner.check.columns import ColumnSource, IntArray, usage_table
from planner.check.relaxed import BoxPaths, Weights
from planner.explain.fits import fits_of
from planner.explain.weights import WHOLE, Weighing
from planner.problem import BoundaryProblem, Mode
from planner.solve.small_master import capacity_rows

LABELS_MAX = 400_000
PACK_SECONDS = 20.0


def confirm(problem: BoundaryProblem, wanted: int, weighing: Weighing | None) -> str | None:
    """How it was confirmed that `wanted` disjoint replicas don't exist; None when it was not."""
    if not any(mode.templates for mode in problem.modes):
        return "an empty list of candidate clusters"
    if problem.replicas_max is not None and wanted > problem.replicas_max:
        return "the policy alone, which allows fewer replicas than it asks for"
    if weighing is not None and weighing.refutes(wanted) and _weighed_again(problem, wanted, weighing):
        return "device weights, weighed again by the referee's path search"
    minimal = chain_usages(problem)
    if minimal is None:
        return None
    if not len(minimal) or (wanted > 1 and _cannot_pack(problem, minimal, wanted)):
        return "the referee's chain search" + (" and CP-SAT without presolve" if len(minimal) else "")
    return None


def _weighed_again(problem: BoundaryProblem, wanted: int, weighing: Weighing) -> bool:
    weight_RC, limit_R = capacity_rows(problem)
    price_J = usage_table(problem) @ (weighing.weight_R @ weight_RC)
    weights = Weights(seconds=0.0, price_J=price_J, start_S=np.zeros(len(problem.site_ids)))
    source = ColumnSource(problem)
    least = min(
        (BoxPaths(source.columns(mode), inf).least(weights) for mode in problem.modes if mode.templates),
        default=inf,
    )
    if least == inf:
        return True
    return least > 0.0 and floor(float(weighing.weight_R @ limit_R) / least + WHOLE) < wanted


def chain_usages(problem: BoundaryProblem) -> IntArray | None:
    """Smallest device counts of all replicas by the referee's chain search; None when they are too many."""
    problem = thinned(problem)
    source = ColumnSource(problem)
    whole_NC = np.zeros((0, len(problem.classes)), dtype=np.int64)
    for mode in problem.modes:
        if mode.templates:
            found = _chains_of(problem, mode, source, whole_NC)
            if found is None:
                return None
            whole_NC = found
    return whole_NC


def thinned(problem: BoundaryProblem) -> BoundaryProblem:
    """The problem without strategies that hold no interval which another one on the same devices doesn't."""
    modes = []
    for mode in problem.modes:
        kept: list[int] = []
        by_devices: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for template_i in mode.templates:
            template = problem.templates[template_i]
            width = template.strategy.dp if problem.workload.job.schedule == ROUND_ROBIN else 0
            by_devices[(template.site_i, template.usage, width)].append(template_i)
        for members in by_devices.values():
            kept += _richest(problem, mode, members)
        modes.append(replace(mode, templates=tuple(sorted(kept))))
    return replace(problem, modes=tuple(modes))


def _richest(problem: BoundaryProblem, mode: Mode, members: list[int]) -> list[int]:
    fits = {}
    for template_i in members:
        holders = fits_of(problem, replace(mode, templates=(template_i,))).holders
        if holders:
            fits[template_i] = holders[0].fits_QAB
    order = sorted(fits, key=lambda i: -int(fits[i].sum()))
    kept: list[int] = []
    for i in order:
        if not any(not (fits[i] & ~fits[j]).any() for j in kept):
            kept.append(i)
    return kept


def _chains_of(
    problem: BoundaryProblem, mode: Mode, source: ColumnSource, whole_NC: IntArray
) -> IntArray | None:
    """The smallest of `whole_NC` and the counts of this mode's replicas; None when there are too many."""
    search = ChainSearch(problem, mode, source, inf)
    open_labels: Labels | None = None
    for num_stages in range(1, min(mode.max_stages, problem.num_layers) + 1):
        pieces = search.first() if open_labels is None else search.longer(open_labels, num_stages - 1)
        kept: list[Labels] = []
        for piece in pieces:
            kept.append(piece.take(_undercut(problem, piece)))
            if sum(map(len, kept)) > LABELS_MAX:
                return None
        labels = joined(kept)
        if labels is None or not len(labels):
            break
        labels = labels.take(_undercut(problem, labels))
        whole_NC = _smallest(np.concatenate([whole_NC, labels.usage_NC[labels.start_N == 0]]))
        open_labels = labels.take(labels.start_N > 0)
        # More devices than a known replica takes lead to no smaller one.
        if len(whole_NC):
            usage_NC = open_labels.usage_NC
            above_N = np.zeros(len(usage_NC), dtype=bool)
            for usage_C in whole_NC:
                above_N |= np.asarray((usage_NC >= usage_C).all(axis=1))
            open_labels = open_labels.take(np.flatnonzero(~above_N))
        if not len(open_labels):
            break
    return whole_NC


def _undercut(problem: BoundaryProblem, labels: Labels) -> IntArray:
    """Positions of labels that no other one of equal layer, site and width undercuts in every class."""
    if not len(labels):
        return np.zeros(0, dtype=np.int64)
    sites = len(problem.site_ids) + 1
    group_N = (labels.start_N * sites + labels.site_N + 1) * (int(labels.wide_N.max()) + 1) + labels.wide_N
    code_N = usage_codes(problem, labels.usage_NC)
    if code_N is None:
        return np.arange(len(labels))
    order_N = np.lexsort((code_N, group_N))
    first_N = np.ones(len(order_N), dtype=bool)
    first_N[1:] = (np.diff(group_N[order_N]) != 0) | (np.diff(code_N[order_N]) != 0)
    order_N = order_N[first_N]
    cuts = np.flatnonzero(np.diff(group_N[order_N])) + 1
    kept = [of_N[_smallest_positions(labels.usage_NC[of_N])] for of_N in np.split(order_N, cuts)]
    return np.sort(np.concatenate(kept))


def _smallest(usage_NC: IntArray) -> IntArray:
    unique_NC = np.unique(usage_NC, axis=0)
    return np.asarray(unique_NC[_smallest_positions(unique_NC)])


def _smallest_positions(usage_NC: IntArray) -> IntArray:
    """Positions of different count vectors that no other one undercuts."""
    alive_N = np.argsort(usage_NC.sum(axis=1), kind="stable")
    kept: list[int] = []
    while len(alive_N):
        n = int(alive_N[0])
        kept.append(n)
        alive_N = alive_N[1:]
        alive_N = alive_N[(usage_NC[alive_N] < usage_NC[n]).any(axis=1)]
    return np.array(kept, dtype=np.int64)


def _cannot_pack(problem: BoundaryProblem, usage_NC: IntArray, wanted: int) -> bool:
    """Whether CP-SAT proves that no `wanted` of the replicas fit the capacity rows together."""
    from ortools.sat.python import cp_model

    weight_RC, limit_R = capacity_rows(problem)
    model = cp_model.CpModel()
    x = [model.new_int_var(0, wanted, f"x[{n}]") for n in range(len(usage_NC))]
    model.add(sum(x) >= wanted)
    for weight_C, limit in zip(weight_RC, limit_R.tolist(), strict=True):
        use_N = usage_NC @ weight_C
        # Fractional rows are rounded in the direction that lets more pass: a refusal stays a proof.
        unit = 1.0 if bool(np.all(use_N == np.round(use_N))) else max(limit, 1e-9) / 1e9
        uses = [floor(use / unit + 1e-9) * v for use, v in zip(use_N.tolist(), x, strict=True)]
        room = floor(limit) if unit == 1.0 else ceil(limit / unit - 1e-9)
        model.add(sum(uses) <= room)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.cp_model_presolve = False
    solver.parameters.max_time_in_seconds = PACK_SECONDS
    return bool(solver.solve(model) == cp_model.INFEASIBLE)
