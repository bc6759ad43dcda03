"""Every replica that could matter on a small fleet: the fastest one for each exact usage of device classes.

Chains are grown from the last stage to the first, because the memory of a stage depends on the number of
stages left. A label is (stages, first layer, site of the first stage, usage per class) with the sum of busy
and transfer seconds w, the slowest of them z, and the largest sync g. A label may be dropped when another one
with the same state is at least as good under every completion:
fill w1 + repeats max(0, z1-z2) + max(0, g1-g2) <= fill w2.

Legend of array suffixes: E stage candidates (template, layers), Q stages left, N labels, C device classes,
R capacity rows, S sites, B borders between layers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray, tabulate
from planner.objective import Replica, StageChoice, price_replica
from planner.problem import BoundaryProblem, Mode, StepFormula
from planner.solve.small_master import capacity_rows
from policies.errors import EchelonError

IntArray = NDArray[np.int64]
LABELS_MAX = 4_000_000
EXPANSIONS_MAX = 400_000_000


class ProblemTooLargeError(EchelonError):
    """An exhaustive way of solving was asked for on a fleet it can't exhaust."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCandidates:
    """Admissible (template, layers) pairs; seconds by number of stages left, infinite where full."""

    template_E: IntArray
    site_E: IntArray
    start_E: IntArray
    stop_E: IntArray
    usage_EC: IntArray
    busy_s_EQ: FloatArray
    sync_s_EQ: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Chains of equally many stages. `parent_N` points into the level before, -1 at the last stage."""

    candidate_N: IntArray
    parent_N: IntArray
    start_N: IntArray
    site_N: IntArray
    usage_NC: IntArray
    w_N: FloatArray
    z_N: FloatArray
    g_N: FloatArray

    def take(self, index: NDArray[np.generic]) -> Labels:
        """Some of the labels."""
        return Labels(
            candidate_N=self.candidate_N[index],
            parent_N=self.parent_N[index],
            start_N=self.start_N[index],
            site_N=self.site_N[index],
            usage_NC=self.usage_NC[index],
            w_N=self.w_N[index],
            z_N=self.z_N[index],
            g_N=self.g_N[index],
        )


@dataclass(slots=True, kw_only=True)
class _Budget:
    expansions: int = 0

    def spend(self, expansions: int, labels: int) -> None:
        """Count work done; too much of it ends the listing."""
        self.expansions += expansions
        if self.expansions > EXPANSIONS_MAX or labels > LABELS_MAX:
            raise ProblemTooLargeError(
                "problem-too-large",
                f"listing every replica takes over {LABELS_MAX:,} chains or {EXPANSIONS_MAX:,} extensions",
                hint="use --solver decomposition, which needs no full list",
            )


def enumerate_replicas(problem: BoundaryProblem) -> tuple[Replica, ...]:
    """The fastest replica for every usage of classes that no smaller usage beats, by decreasing tokens/s.

    Exact for any cost model: replacing a replica by a faster one on no more devices never hurts a plan.

    Raises:
        ProblemTooLargeError: `problem-too-large`.
    """
    best: dict[tuple[int, ...], Replica] = {}
    budget = _Budget()
    for mode in problem.modes:
        for replica in _best_of_mode(problem, mode, budget):
            usage = dict(replica.usage)
            key = tuple(usage.get(c, 0) for c in range(len(problem.classes)))
            if key not in best or replica.step_s < best[key].step_s:
                best[key] = replica
    return _undominated(best)


def stage_candidates(problem: BoundaryProblem, mode: Mode) -> StageCandidates:
    """Admissible stages of a mode: cleared for their layers, fitting at some number of stages left."""
    num_layers, depth = problem.num_layers, min(mode.max_stages, problem.num_layers)
    in_flight_max = min(mode.num_micro_batches, depth)
    columns = [min(mode.num_micro_batches, q + 1) - 1 for q in range(depth)]
    intervals = [(a, b) for a in range(num_layers) for b in range(a + 1, num_layers + 1)]
    tier = {(a, b): max(problem.tier_required[a:b]) for a, b in intervals}
    key = {interval: problem.cost_model.interval_key(interval) for interval in intervals}
    rows: list[tuple[int, int, int]] = []
    busy, sync = [], []
    for template_i in mode.templates:
        template = problem.templates[template_i]
        cleared = [interval for interval in intervals if tier[interval] <= template.tier_i]
        position: dict[Hashable, int] = {}
        distinct: list[tuple[int, int]] = []
        for interval in cleared:
            if key[interval] not in position:
                position[key[interval]] = len(distinct)
                distinct.append(interval)
        if not distinct:
            continue
        table = tabulate(
            problem.cost_model,
            template.cluster,
            distinct,
            template.strategy,
            mode.micro_batch_size,
            in_flight_max,
        )
        for interval in cleared:
            busy_s_Q = table.busy_s_KQ[position[key[interval]]]
            if np.isfinite(busy_s_Q).any():
                rows.append((template_i, *interval))
                busy.append(busy_s_Q[columns])
                sync.append(table.sync_s_KQ[position[key[interval]]][columns])
    row_E3 = np.array(rows, dtype=np.int64).reshape(-1, 3)
    usage_EC = np.zeros((len(rows), len(problem.classes)), dtype=np.int64)
    for e, (template_i, _, _) in enumerate(rows):
        for class_i, count in problem.templates[template_i].usage:
            usage_EC[e, class_i] = count
    site_T = np.array([template.site_i for template in problem.templates], dtype=np.int64)
    return StageCandidates(
        template_E=row_E3[:, 0],
        site_E=site_T[row_E3[:, 0]] if rows else row_E3[:, 0],
        start_E=row_E3[:, 1],
        stop_E=row_E3[:, 2],
        usage_EC=usage_EC,
        busy_s_EQ=np.array(busy, dtype=np.float64).reshape(-1, depth),
        sync_s_EQ=np.array(sync, dtype=np.float64).reshape(-1, depth),
    )


def transfer_table(problem: BoundaryProblem, mode: Mode) -> FloatArray:
    """Seconds per micro-batch [border, source site, target site]; infinite where there is no link."""
    num_sites = len(problem.site_ids)
    transfer_s_BSS = np.full((problem.num_layers + 1, num_sites, num_sites), np.inf)
    for source, links in enumerate(problem.links):
        for target, link in enumerate(links):
            if link is not None:
                for border in range(1, problem.num_layers):
                    seconds = problem.cost_model.transfer_s(link, border, mode.micro_batch_size)
                    transfer_s_BSS[border, source, target] = seconds
    return transfer_s_BSS


def _best_of_mode(problem: BoundaryProblem, mode: Mode, budget: _Budget) -> list[Replica]:
    candidates = stage_candidates(problem, mode)
    transfer_s_BSS = transfer_table(problem, mode)
    formula = problem.formula(mode)
    rows = capacity_rows(problem)
    radix_C = np.cumprod([1, *(c.num_devices + 1 for c in problem.classes)])[:-1].astype(np.int64)
    levels: list[Labels] = []
    best: dict[int, tuple[float, int, int]] = {}
    for q in range(candidates.busy_s_EQ.shape[1]):
        if levels:
            level = _grow(candidates, transfer_s_BSS, levels[-1], q, rows, budget)
        else:
            level = _last_stages(candidates, problem.num_layers, rows)
        usage_key_N = level.usage_NC @ radix_C
        state_N = (usage_key_N * len(problem.site_ids) + level.site_N) * (
            problem.num_layers + 1
        ) + level.start_N
        keep_N = _undominated_labels(state_N, level, formula)
        level, usage_key_N = level.take(keep_N), usage_key_N[keep_N]
        if not len(level.w_N):
            break
        step_s_N = (
            formula.fill * level.w_N + formula.repeats * level.z_N + (level.g_N if formula.sync else 0.0)
        )
        for n in np.flatnonzero(level.start_N == 0).tolist():
            known = best.get(int(usage_key_N[n]))
            if known is None or step_s_N[n] < known[0]:
                best[int(usage_key_N[n])] = (float(step_s_N[n]), q, n)
        levels.append(level)
    replicas = []
    for _, q, n in best.values():
        replica = price_replica(problem, mode, _stages(candidates, levels, q, n))
        assert replica is not None, "a chain of fitting stages must have a price"
        replicas.append(replica)
    return replicas


def _stages(candidates: StageCandidates, levels: list[Labels], q: int, n: int) -> list[StageChoice]:
    stages = []
    while q >= 0:
        e = int(levels[q].candidate_N[n])
        stages.append(
            StageChoice(
                template_i=int(candidates.template_E[e]),
                start=int(candidates.start_E[e]),
                stop=int(candidates.stop_E[e]),
            )
        )
        n, q = int(levels[q].parent_N[n]), q - 1
    return stages


def _last_stages(candidates: StageCandidates, num_layers: int, rows: tuple[FloatArray, FloatArray]) -> Labels:
    """Chains of one stage that ends the model."""
    fits_E = np.isfinite(candidates.busy_s_EQ[:, 0]) & (candidates.stop_E == num_layers)
    e_N = np.flatnonzero(fits_E & (candidates.usage_EC @ rows[0].T <= rows[1]).all(axis=1))
    busy_s_N = candidates.busy_s_EQ[e_N, 0]
    return Labels(
        candidate_N=e_N,
        parent_N=np.full(len(e_N), -1),
        start_N=candidates.start_E[e_N],
        site_N=candidates.site_E[e_N],
        usage_NC=candidates.usage_EC[e_N],
        w_N=busy_s_N,
        z_N=busy_s_N,
        g_N=candidates.sync_s_EQ[e_N, 0],
    )


def _grow(
    candidates: StageCandidates,
    transfer_s_BSS: FloatArray,
    before: Labels,
    q: int,
    rows: tuple[FloatArray, FloatArray],
    budget: _Budget,
) -> Labels:
    """Chains with one more stage in front, `q` stages behind it, within the devices there are."""
    fits_E = np.isfinite(candidates.busy_s_EQ[:, q])
    e_N, parent_N = _joints(candidates, fits_E, transfer_s_BSS, before, rows, budget)
    busy_s_N = candidates.busy_s_EQ[e_N, q]
    transfer_s_N = transfer_s_BSS[candidates.stop_E[e_N], candidates.site_E[e_N], before.site_N[parent_N]]
    return Labels(
        candidate_N=e_N,
        parent_N=parent_N,
        start_N=candidates.start_E[e_N],
        site_N=candidates.site_E[e_N],
        usage_NC=candidates.usage_EC[e_N] + before.usage_NC[parent_N],
        w_N=busy_s_N + transfer_s_N + before.w_N[parent_N],
        z_N=np.maximum(np.maximum(busy_s_N, transfer_s_N), before.z_N[parent_N]),
        g_N=np.maximum(candidates.sync_s_EQ[e_N, q], before.g_N[parent_N]),
    )


def _joints(
    candidates: StageCandidates,
    fits_E: NDArray[np.bool_],
    transfer_s_BSS: FloatArray,
    before: Labels,
    rows: tuple[FloatArray, FloatArray],
    budget: _Budget,
) -> tuple[IntArray, IntArray]:
    """Pairs of a stage and a chain behind it: same border, linked sites, every capacity row kept."""
    stages, chains = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    num_labels = 0
    stage_use_ER, chain_use_NR = candidates.usage_EC @ rows[0].T, before.usage_NC @ rows[0].T
    for border in range(1, transfer_s_BSS.shape[0] - 1):
        e_N = np.flatnonzero(fits_E & (candidates.stop_E == border))
        chain_N = np.flatnonzero(before.start_N == border)
        budget.spend(len(e_N) * len(chain_N), num_labels)
        ok = np.isfinite(transfer_s_BSS[border][candidates.site_E[e_N]][:, before.site_N[chain_N]])
        for r, limit in enumerate(rows[1]):
            ok &= stage_use_ER[e_N, r][:, None] + chain_use_NR[chain_N, r][None, :] <= limit
        i, j = np.nonzero(ok)
        num_labels += len(i)
        stages.append(e_N[i])
        chains.append(chain_N[j])
    return np.concatenate(stages), np.concatenate(chains)


def _undominated_labels(state_N: IntArray, labels: Labels, formula: StepFormula) -> IntArray:
    """Positions of labels worth keeping: each round the best of every state rules out others."""
    sync = 1.0 if formula.sync else 0.0
    score_N = formula.fill * labels.w_N + formula.repeats * labels.z_N + sync * labels.g_N
    rest_N = np.lexsort((score_N, state_N))
    kept = []
    while len(rest_N):
        group_N = state_N[rest_N]
        first_N = np.flatnonzero(np.concatenate(([True], group_N[1:] != group_N[:-1])))
        champion_N = rest_N[np.repeat(first_N, np.diff(np.append(first_N, len(rest_N))))]
        kept.append(rest_N[first_N])
        excess_N = (
            formula.fill * (labels.w_N[champion_N] - labels.w_N[rest_N])
            + formula.repeats * np.maximum(0.0, labels.z_N[champion_N] - labels.z_N[rest_N])
            + sync * np.maximum(0.0, labels.g_N[champion_N] - labels.g_N[rest_N])
        )
        rest_N = rest_N[excess_N > 0.0]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)


def _undominated(best: dict[tuple[int, ...], Replica]) -> tuple[Replica, ...]:
    """Replicas that no other one matches in speed with the same devices or fewer."""
    order = sorted(best, key=lambda key: (-best[key].tokens_per_s, sum(key), key))
    usage_NC = np.array(order, dtype=np.int64).reshape(len(order), len(order[0]) if order else 0)
    kept: list[int] = []
    for n in range(len(order)):
        if not kept or not (usage_NC[kept] <= usage_NC[n]).all(axis=1).any():
            kept.append(n)
    return tuple(best[order[n]] for n in kept)
