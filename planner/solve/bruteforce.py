"""The exhaustive solver for tests and tiny fleets: every replica that could matter, every way to combine.

Legend of array suffixes: N columns (replicas), C device classes. Tables of usage have one axis per class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray
from planner.problem import BoundaryProblem
from planner.solve.enumerate_replicas import ProblemTooLargeError, enumerate_replicas
from planner.solve.result import BoundaryResult, Limits, Status
from planner.solve.small_master import TOLERANCE_FRAC, ColumnMaster, MasterAnswer, solve_over_columns

CELLS_MAX = 300_000
STEPS_MAX = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """An end state: devices used per class by `count` replicas; `merit` is what is maximised."""

    merit: float
    count: int
    usage: tuple[int, ...]


def solve_boundary(problem: BoundaryProblem, limits: Limits) -> BoundaryResult:
    """The best set of replicas: OPTIMAL or INFEASIBLE, never less. Ignores every limit.

    Raises:
        ProblemTooLargeError: `problem-too-large`.
    """
    return solve_over_columns(problem, enumerate_replicas(problem), limits, solve_exhaustively)


def solve_exhaustively(master: ColumnMaster, _limits: Limits) -> MasterAnswer:
    """Dynamic program over devices used per class and replicas so far; exact.

    best[k][u] = max over columns n of best[k-1][u - usage_n] + value_n.

    Raises:
        ProblemTooLargeError: `problem-too-large`.
    """
    shape = tuple(int(n) + 1 for n in master.devices_C)
    cells = int(np.prod(shape, dtype=np.float64))
    most = _count_max(master)
    if cells > CELLS_MAX or cells * len(master.value_N) * most > STEPS_MAX:
        raise ProblemTooLargeError(
            "problem-too-large",
            f"{cells:,} usages of classes times {len(master.value_N):,} replicas is too much to exhaust",
            hint="use --solver decomposition",
        )
    tables = [np.full(shape, -np.inf)]
    tables[0][(0,) * len(shape)] = 0.0
    for _ in range(most):
        tables.append(_one_more(master, tables[-1]))
        if not np.isfinite(tables[-1]).any():
            tables.pop()
            break
    allowed = (_used(shape) @ master.weight_RC.T <= master.limit_R).all(axis=-1)
    found: Cell | None = None
    for count in range(max(1, master.count_min), len(tables)):
        cell = _best_cell(master, np.where(allowed, tables[count], -np.inf), count)
        if cell is not None and (found is None or cell.merit > found.merit):
            found = cell
    if found is None:
        return MasterAnswer(status=Status.INFEASIBLE)
    counts = _trace(master, tables, found.count, found.usage)
    value = master.value_N @ counts if master.target is None else master.usd_per_hour_N @ counts
    return MasterAnswer(status=Status.OPTIMAL, counts=tuple(int(c) for c in counts), bound=float(value))


def _count_max(master: ColumnMaster) -> int:
    return min(master.count_max, int(master.devices_C.sum()))


def _one_more(master: ColumnMaster, table: FloatArray) -> FloatArray:
    grown = np.full_like(table, -np.inf)
    for usage_C, value in zip(master.usage_NC, master.value_N, strict=True):
        after = tuple(slice(int(u), None) for u in usage_C)
        before = tuple(slice(0, size - int(u)) for u, size in zip(usage_C, table.shape, strict=True))
        np.maximum(grown[after], table[before] + value, out=grown[after])
    return grown


def _used(shape: tuple[int, ...]) -> FloatArray:
    """Devices used per class in every cell; the last axis runs over the classes."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).astype(np.float64)


def _best_cell(master: ColumnMaster, table: FloatArray, count: int) -> Cell | None:
    """The best allowed end state with `count` replicas, or None."""
    if master.target is None:
        merit = table
    else:
        enough = table >= master.target * (1.0 - TOLERANCE_FRAC)
        merit = np.where(enough, -(_used(table.shape) @ master.usd_per_hour_C), -np.inf)
    flat = int(np.argmax(merit))
    best = float(merit.flat[flat])
    if not np.isfinite(best):
        return None
    usage = tuple(int(u) for u in np.unravel_index(flat, table.shape))
    return Cell(merit=best, count=count, usage=usage)


def _trace(
    master: ColumnMaster, tables: list[FloatArray], count: int, usage: tuple[int, ...]
) -> NDArray[np.int64]:
    """How often each column stands on the way to an end state."""
    counts_N = np.zeros(len(master.value_N), dtype=np.int64)
    for k in range(count, 0, -1):
        for n, usage_C in enumerate(master.usage_NC):
            before = tuple(int(u - v) for u, v in zip(usage, usage_C, strict=True))
            if min(before) >= 0 and tables[k - 1][before] + master.value_N[n] == tables[k][usage]:
                counts_N[n] += 1
                usage = before
                break
    return counts_N
