"""Fit the iteration-time model to measured runs, and say honestly how well it predicts runs it has not seen.

Legend of array suffixes: R runs, C coefficients, K bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.calibrate_model import (
    NAMES,
    Platform,
    TrainingRun,
    columns,
    iteration_s_R,
    spread_C,
    start_C,
)
from costmodels.interface import FloatArray, Origin
from policies.errors import Fault, InputError

NOISE_FRAC = 0.05
ROBUST_FRAC = 0.04
MAX_STEPS = 60
STEP_LIMIT = 0.5
DERIVATIVE_STEP = 1e-5
SMALLEST_STEP = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Fitted coefficients in base SI, the platform they belong to, and where they come from."""

    coefficients: Mapping[str, float]
    platform: Platform
    origin: Origin

    def predict_s_R(self, runs: Sequence[TrainingRun]) -> FloatArray:
        """Predicted seconds of one iteration of each run."""
        theta_C = np.log([self.coefficients[name] for name in NAMES])
        return iteration_s_R(theta_C, columns(runs), self.platform)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossValidation:
    """Predictions of each run by a fit that saw no run of the same model shape."""

    predicted_s_R: FloatArray
    measured_s_R: FloatArray
    fold_R: tuple[int, ...]

    @property
    def error_frac_R(self) -> FloatArray:
        """Signed relative errors, predicted / measured - 1."""
        errors_R: FloatArray = self.predicted_s_R / self.measured_s_R - 1.0
        return errors_R


@dataclass(frozen=True, slots=True, kw_only=True)
class _Objective:
    """What the fit minimises, and its linearisation."""

    run: Mapping[str, FloatArray]
    platform: Platform
    weight_R: FloatArray
    start_C: FloatArray
    spread_C: FloatArray

    def residual_R(self, theta_C: FloatArray) -> FloatArray:
        """Natural log of predicted over measured."""
        predicted_s_R = iteration_s_R(theta_C, self.run, self.platform)
        logs_R: FloatArray = np.log(predicted_s_R / self.run["iteration_s"])
        return logs_R

    def cost(self, theta_C: FloatArray) -> float:
        """Weighted Huber loss of the residuals plus the squared distance from the start."""
        size_R = np.abs(self.residual_R(theta_C))
        huber_R = np.where(size_R <= ROBUST_FRAC, size_R**2, ROBUST_FRAC * (2.0 * size_R - ROBUST_FRAC))
        distance_C = (theta_C - self.start_C) / self.spread_C
        return float((self.weight_R * huber_R).sum() / NOISE_FRAC**2 + (distance_C**2).sum())

    def normal_equations(self, theta_C: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Gauss-Newton curvature (C, C) and gradient (C,) of half the cost, by forward differences."""
        residual_R = self.residual_R(theta_C)
        moved_CC = theta_C + DERIVATIVE_STEP * np.eye(theta_C.size)
        slope_RC = np.stack([self.residual_R(moved_C) - residual_R for moved_C in moved_CC], axis=1)
        slope_RC = slope_RC / DERIVATIVE_STEP
        pull_R = self.weight_R * np.minimum(1.0, ROBUST_FRAC / np.maximum(np.abs(residual_R), 1e-12))
        pull_R = pull_R / NOISE_FRAC**2
        curvature_CC = slope_RC.T @ (pull_R[:, None] * slope_RC) + np.diag(self.spread_C**-2)
        gradient_C = slope_RC.T @ (pull_R * residual_R) + (theta_C - self.start_C) / self.spread_C**2
        return curvature_CC, gradient_C


def fit(runs: Sequence[TrainingRun], platform: Platform) -> Calibration:
    """Coefficients that explain the measured runs best.

    Minimises sum_r w_r rho(ln(predicted_r / measured_r)) / 0.05^2 + sum_c (theta_c - start_c)^2 / spread_c^2
    by Levenberg-Marquardt steps on the logs of the coefficients. rho is Huber's (quadratic up to 4 %, then
    linear), so disturbed runs don't bend the fit; w_r is one over the square root of the number of runs with
    the same shape, so that a shape measured often doesn't drown the others. The second sum keeps a
    coefficient that the runs don't determine near its start.

    Raises:
        InputError: `runs-unmeasured` without any run or with one that lacks a time; `run-impossible`.
    """
    faults = [
        Fault(place=run.name, value=f"{run.iteration_s} s", limit="> 0 s")
        for run in runs
        if not 0.0 < run.iteration_s < float("inf")
    ]
    if faults or not runs:
        message = f"{len(faults)} of {len(runs)} runs have no measured time"
        raise InputError("runs-unmeasured", message, faults=faults, hint="measure at least one iteration")
    objective = _Objective(
        run=columns(runs),
        platform=platform,
        weight_R=shape_weights_R(runs),
        start_C=start_C(platform),
        spread_C=spread_C(),
    )
    theta_C = _minimise(objective)
    note = f"fitted to {len(runs)} runs of {len({run.shape for run in runs})} model shapes on {platform.name}"
    return Calibration(
        coefficients={name: float(value) for name, value in zip(NAMES, np.exp(theta_C), strict=True)},
        platform=platform,
        origin=Origin(kind="measured", note=note),
    )


def _minimise(objective: _Objective) -> FloatArray:
    """Levenberg-Marquardt from the start, a fixed number of steps at most: same runs, same coefficients."""
    theta_C, damping = objective.start_C.copy(), 1e-2
    cost = objective.cost(theta_C)
    for _ in range(MAX_STEPS):
        curvature_CC, gradient_C = objective.normal_equations(theta_C)
        step_C = np.linalg.solve(curvature_CC + damping * np.diag(np.diag(curvature_CC)), -gradient_C)
        trial_C = theta_C + np.clip(step_C, -STEP_LIMIT, STEP_LIMIT)
        trial_cost = objective.cost(trial_C)
        if trial_cost < cost:
            theta_C, cost, damping = trial_C, trial_cost, max(damping / 3.0, 1e-6)
        else:
            damping *= 5.0
        if float(np.abs(step_C).max()) < SMALLEST_STEP:
            break
    return theta_C


def shape_weights_R(runs: Sequence[TrainingRun]) -> FloatArray:
    """One over the square root of how many runs share the shape, scaled so that the mean is one."""
    shapes = [run.shape for run in runs]
    weight_R = np.array([shapes.count(shape) ** -0.5 for shape in shapes])
    weights_R: FloatArray = weight_R / weight_R.mean()
    return weights_R


def shape_folds(runs: Sequence[TrainingRun], *, num_folds: int = 5, seed: int = 0) -> tuple[int, ...]:
    """A fold for each run; runs of one model shape always share a fold, and folds get equally many shapes.

    Raises:
        InputError: `folds-too-many` when there are fewer shapes than folds, or fewer than two folds.
    """
    shapes = sorted({run.shape for run in runs})
    if not 2 <= num_folds <= len(shapes):
        raise InputError(
            "folds-too-many",
            f"{num_folds} folds asked for, {len(shapes)} model shapes measured",
            hint="between two folds and one per shape; measure more shapes",
        )
    order = np.random.default_rng(seed).permutation(len(shapes))
    fold_of = {shapes[position]: place % num_folds for place, position in enumerate(order)}
    return tuple(fold_of[run.shape] for run in runs)


def cross_validate(
    runs: Sequence[TrainingRun], platform: Platform, *, num_folds: int = 5, seed: int = 0
) -> CrossValidation:
    """Predict each run with coefficients fitted to the other folds alone, no model shape in two folds."""
    fold_R = shape_folds(runs, num_folds=num_folds, seed=seed)
    predicted_s_R = np.zeros(len(runs))
    for fold in sorted(set(fold_R)):
        held = [r for r, f in enumerate(fold_R) if f == fold]
        fitted = fit([runs[r] for r, f in enumerate(fold_R) if f != fold], platform)
        predicted_s_R[held] = fitted.predict_s_R([runs[r] for r in held])
    measured_s_R = np.array([run.iteration_s for run in runs])
    return CrossValidation(predicted_s_R=predicted_s_R, measured_s_R=measured_s_R, fold_R=fold_R)


def bootstrap_interval(
    errors_frac_R: FloatArray, *, level: float = 0.95, num_draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean absolute error, runs drawn with replacement."""
    size_R = np.abs(np.asarray(errors_frac_R, dtype=np.float64))
    draws_KR = np.random.default_rng(seed).integers(0, size_R.size, size=(num_draws, size_R.size))
    means_K = size_R[draws_KR].mean(axis=1)
    low, high = np.quantile(means_K, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
