"""A torch-native pipeline trains exactly what one process trains, whatever its widths."""

from __future__ import annotations

import numpy as np
import pytest
from torch_cases import Case, alone, assert_equal, job, stages, trained

from planner.training import PipelineSchedule

pytestmark = pytest.mark.deepspeed

UNEQUAL = {
    "2-1": Case(stages=stages([0, 3, 6], [[2, 2], [4]]), micro_batches=4),
    "1-2": Case(stages=stages([0, 2, 6], [[4], [3, 1]])),
    "1-2-1": Case(stages=stages([0, 1, 4, 6], [[4], [1, 3], [4]]), micro_batches=4),
    "3-1": Case(stages=stages([0, 4, 6], [[2, 1, 1], [4]])),
    "3-2": Case(stages=stages([0, 3, 6], [[1, 2, 2], [3, 2]]), micro_batches=3),
    "fewer micro-batches than stages": Case(stages=stages([0, 1, 3, 6], [[2], [1, 1], [2]]), micro_batches=2),
    "one stage": Case(stages=stages([0, 6], [[3, 1]])),
    "one rank": Case(stages=stages([0, 6], [[4]])),
}
STRATEGIES = {
    "zero 1": Case(stages=stages([0, 3, 6], [[2, 2], [3, 1]], zero=[1, 1])),
    "zero 2": Case(stages=stages([0, 3, 6], [[4], [1, 2, 1]], zero=[0, 2]), micro_batches=3),
    "zero 3": Case(stages=stages([0, 3, 6], [[2, 2], [3, 1]], zero=[3, 3]), micro_batches=3),
    "zero 3, one stage, recomputed": Case(stages=stages([0, 6], [[3, 1]], zero=[3], recompute=[4])),
    "recomputed": Case(stages=stages([0, 3, 6], [[4], [4]], recompute=[2, 3]), micro_batches=3),
    "gpipe": Case(stages=stages([0, 3, 6], [[2, 2], [4]]), training=job(pipeline=PipelineSchedule.GPIPE)),
    "no clipping": Case(stages=stages([0, 3, 6], [[4], [4]]), training=job(clip_norm=0.0)),
}
TIED = {
    "unequal widths": Case(stages=stages([0, 2, 4, 6], [[2, 2], [4], [1, 2, 1]]), model="qwen3"),
    "zero 1 and 0": Case(stages=stages([0, 3, 6], [[2, 2], [4]], zero=[1, 0]), model="qwen3"),
    "zero 2 and 3": Case(stages=stages([0, 3, 6], [[2, 2], [1, 1, 2]], zero=[2, 3]), model="qwen3"),
    "zero 3, one stage": Case(stages=stages([0, 6], [[3, 1]], zero=[3]), model="qwen3"),
    "zero 2, one stage": Case(stages=stages([0, 6], [[3, 1]], zero=[2]), model="qwen3"),
    "gpt2": Case(stages=stages([0, 3, 6], [[3, 1], [4]]), model="gpt2"),
}
ADAPTERS = {
    "first stage trains nothing": Case(stages=stages([0, 1, 6], [[4], [3, 1]]), adapter_rank=4),
    "last stage trains nothing": Case(stages=stages([0, 5, 6], [[3, 1], [4]]), adapter_rank=4),
    "zero 3": Case(stages=stages([0, 3, 6], [[2, 2], [4]], zero=[3, 0]), adapter_rank=4),
    "recomputed, tied": Case(
        stages=stages([0, 1, 4, 6], [[4], [1, 3], [4]], recompute=[1, 2, 1]), adapter_rank=4, model="gpt2"
    ),
}
TENSOR_PARALLEL = {
    "llama, adapters, recomputed": Case(
        stages=stages([0, 3, 6], [[4], [4]], tp=[2, 1], recompute=[2, 0]), adapter_rank=4
    ),
    "llama, zero 3": Case(stages=stages([0, 6], [[3, 1]], tp=[2], zero=[3])),
    "qwen3, tied, zero 1": Case(
        stages=stages([0, 3, 6], [[3, 1], [4]], tp=[2, 2], zero=[1, 0]), model="qwen3"
    ),
    "qwen3, tied, zero 3 and 0": Case(
        stages=stages([0, 3, 6], [[3, 1], [4]], tp=[2, 1], zero=[3, 0]), model="qwen3"
    ),
    "qwen3, tied, zero 0 and 2": Case(
        stages=stages([0, 3, 6], [[4], [1, 3]], tp=[1, 2], zero=[0, 2]), model="qwen3"
    ),
    "qwen3, tied, one stage": Case(stages=stages([0, 6], [[4]], tp=[2]), model="qwen3"),
    "gpt2": Case(stages=stages([0, 3, 6], [[4], [4]], tp=[1, 2]), model="gpt2"),
    "gpt2, adapters": Case(stages=stages([0, 3, 6], [[4], [4]], tp=[2, 1]), model="gpt2", adapter_rank=4),
    "gpt_neox": Case(stages=stages([0, 3, 6], [[4], [4]], tp=[1, 2]), model="gpt_neox"),
    "opt": Case(stages=stages([0, 3, 6], [[4], [4]], tp=[2, 1]), model="opt"),
    "qwen2_moe": Case(stages=stages([0, 6], [[4]], tp=[2]), model="qwen2_moe"),
}
ROUNDED = {
    "zero 3, tied": Case(stages=stages([0, 3, 6], [[4], [3, 1]], zero=[0, 3]), dtype="bf16", model="qwen3"),
    "tensor parallel": Case(stages=stages([0, 3, 6], [[4], [4]], tp=[1, 2]), dtype="bf16", model="qwen3"),
    "adapters": Case(stages=stages([0, 3, 6], [[4], [3, 1]]), dtype="bf16", adapter_rank=4),
}


@pytest.mark.parametrize("case", UNEQUAL.values(), ids=UNEQUAL.keys())
def test_unequal_widths_train_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))


@pytest.mark.parametrize("case", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_every_strategy_trains_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))


@pytest.mark.parametrize("case", TIED.values(), ids=TIED.keys())
def test_tied_embeddings_train_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))


@pytest.mark.parametrize("case", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_adapters_train_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))


@pytest.mark.parametrize("case", TENSOR_PARALLEL.values(), ids=TENSOR_PARALLEL.keys())
def test_tensor_parallel_stages_train_what_one_process_trains(case: Case) -> None:
    assert_equal(trained(case), alone(case))


def test_bf16_with_one_rank_per_stage_rounds_like_one_process() -> None:
    case = Case(stages=stages([0, 3, 6], [[4], [4]]), dtype="bf16")
    assert_equal(trained(case), alone(case), rtol=1e-4, weights_atol=2e-4)


@pytest.mark.parametrize("case", ROUNDED.values(), ids=ROUNDED.keys())
def test_bf16_differs_by_the_rounding_of_split_sums_only(case: Case) -> None:
    found, expected = trained(case), alone(case)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-3)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-2)
