"""The rate bound: no replica is worth more than its devices at their very best, whatever the cost model.

Spread the model over its layers with weights phi (their work, summing to one). A replica with step time T
holds each layer once, and no stage is busy longer than T / m, m being the micro-batches of a step. So its
speed W / T = sum over stages of phi(layers) W / T <= sum over stages of phi(layers) W / (m busy), and the
last sum is at most the sum over its devices of mu_c, once mu . n_j >= phi W / (m busy) for every cluster j
and every interval it can hold.
"""

from __future__ import annotations

import numpy as np

from planner.check.columns import ColumnSource, FloatArray
from planner.check.report import Reporter
from planner.problem import BoundaryProblem, ObjectiveKind


def best_rates(problem: BoundaryProblem, report: Reporter | None = None) -> FloatArray:
    """Tokens/s one device of each class adds at most to any replica, over all clusters, intervals, modes."""
    source = ColumnSource(problem)
    weight_L = _layer_weights(problem)
    reached = np.concatenate([[0.0], np.cumsum(weight_L)])
    kinds = source.kinds
    weight_K = np.zeros(len(kinds.first))
    np.maximum.at(weight_K, kinds.kind_I, reached[kinds.stop_I] - reached[kinds.start_I])
    rate_J = np.zeros(len(problem.templates))
    for mode in problem.modes:
        if report is not None:
            report(f"{problem.name}: rates, mode {mode.mode_i + 1} of {len(problem.modes)}")
        columns = source.columns(mode)
        with np.errstate(divide="ignore"):
            rate_E = weight_K[columns.kind_E] / (mode.num_micro_batches * columns.busy_s_E)
        np.maximum.at(rate_J, columns.template_E, problem.tokens_per_step * rate_E)
    return _shared_out(problem, rate_J)


def rate_bound(problem: BoundaryProblem, rate_C: FloatArray) -> float:
    """Tokens/s of one boundary if every device worked at its best."""
    return float(rate_C @ np.array([c.num_devices for c in problem.classes], dtype=np.float64))


def least_usd_per_rate(problem: BoundaryProblem, rate_C: FloatArray) -> float:
    """USD per hour that one token per second costs at the very least."""
    usd_C = np.array([c.device.usd_per_hour for c in problem.classes])
    useful_C = rate_C > 0.0
    return float((usd_C[useful_C] / rate_C[useful_C]).min()) if useful_C.any() else float("inf")


def boundary_rate_bound(problem: BoundaryProblem, rate_C: FloatArray) -> float:
    """The rate bound in the objective's own unit, tokens/s where step time is minimised."""
    if problem.objective.kind is ObjectiveKind.PRICE:
        return least_usd_per_rate(problem, rate_C) * (problem.objective.tokens_per_s_min or 0.0)
    return rate_bound(problem, rate_C)


def _layer_weights(problem: BoundaryProblem) -> FloatArray:
    """Share of each layer in the work of a step, forward and backward; any shares give a valid bound."""
    work_L = np.array(
        [
            layer.forward_flops_per_token
            * (2.0 + (layer.trainable_params / layer.params if layer.params else 0.0))
            for layer in problem.workload.layers
        ]
    )
    total = float(work_L.sum())
    return work_L / total if total > 0.0 else np.full(len(work_L), 1.0 / len(work_L))


def _shared_out(problem: BoundaryProblem, rate_J: FloatArray) -> FloatArray:
    """The rate of each cluster charged to its devices by their nominal rates, worst case per class."""
    dtype = problem.workload.job.dtype
    nominal_C = np.array([max(c.device.rate_flop_per_s(dtype), 1.0) for c in problem.classes])
    rate_C = np.zeros(len(problem.classes))
    for template in problem.templates:
        whole = sum(count * nominal_C[class_i] for class_i, count in template.usage)
        for class_i, _count in template.usage:
            share = rate_J[template.template_i] * nominal_C[class_i] / whole
            rate_C[class_i] = max(rate_C[class_i], share)
    return rate_C
