"""A small LoRA problem with a known target, to measure the bias of averaging factors: `python sync_lora.py`.

Participant n fits a linear teacher W_n by B A with rank R from a shared warm start; W_n is the common teacher
plus `skew_frac` of one of its own. Legend: N participants, R rank, I inputs, O outputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NUM_PARTICIPANTS = 8
RANK = 4
WIDTH = 32
BATCH = 64
RATE = 0.02
WARM_STEPS = 100


def averaging_bias(a_NRI: Array, b_NOR: Array) -> Array:
    """mean_n(B_n A_n) - mean_n(B_n) mean_n(A_n)."""
    bias: Array = (b_NOR @ a_NRI).mean(axis=0) - b_NOR.mean(axis=0) @ a_NRI.mean(axis=0)
    return bias


def relative_bias(a_NRI: Array, b_NOR: Array) -> float:
    """Norm of the bias over the norm of the mean product's change since the common start (last entry)."""
    a_NRI, b_NOR, (a_start, b_start) = a_NRI[:-1], b_NOR[:-1], (a_NRI[-1], b_NOR[-1])
    moved = (b_NOR @ a_NRI).mean(axis=0) - b_start @ a_start
    return float(np.linalg.norm(averaging_bias(a_NRI, b_NOR)) / np.linalg.norm(moved))


def _train(
    a: Array, b: Array, teacher: Array, rng: np.random.Generator, steps: int, frozen: bool
) -> tuple[Array, Array]:
    for _ in range(steps):
        x = rng.normal(size=(WIDTH, BATCH))
        error = (b @ a - teacher) @ x / BATCH
        slope_a, slope_b = b.T @ error @ x.T, error @ (a @ x).T
        b = b - RATE * slope_b
        a = a if frozen else a - RATE * slope_a
    return a, b


def adapted_factors(
    *, num_steps: int, skew_frac: float, seed: int, is_a_frozen: bool = False
) -> tuple[Array, Array]:
    """Factors A (N + 1, R, I) and B (N + 1, O, R) after H local steps; the last entry is the common start."""
    rng = np.random.default_rng(seed)

    def teacher() -> Array:
        product: Array = rng.normal(size=(WIDTH, RANK)) @ rng.normal(size=(RANK, WIDTH)) / WIDTH**0.5
        return product

    common = teacher()
    teachers = [common + skew_frac * teacher() for _ in range(NUM_PARTICIPANTS)]
    a, b = rng.normal(size=(RANK, WIDTH)) / WIDTH**0.5, np.zeros((WIDTH, RANK))
    a, b = _train(a, b, common, rng, WARM_STEPS, is_a_frozen)
    orders = [np.random.default_rng((seed, n)) for n in range(NUM_PARTICIPANTS)]
    trained = [_train(a, b, t, r, num_steps, is_a_frozen) for t, r in zip(teachers, orders, strict=True)]
    return np.array([*(x for x, _ in trained), a]), np.array([*(y for _, y in trained), b])


def main() -> None:
    """Print the relative bias by H and skew."""
    print("| H | skew 0 | skew 0.5 | skew 1 | A frozen, skew 1 |")
    print("|---|---|---|---|---|")
    for h in (1, 5, 20, 80, 320):
        cells = []
        for skew_frac, frozen in ((0.0, False), (0.5, False), (1.0, False), (1.0, True)):
            values = [
                relative_bias(*adapted_factors(num_steps=h, skew_frac=skew_frac, seed=s, is_a_frozen=frozen))
                for s in range(5)
            ]
            cells.append(f"{100 * float(np.mean(values)):.2g} %")
        print(f"| {h} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
