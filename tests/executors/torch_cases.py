"""Small models, plans and texts for the executors' tests, and what one process makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from forked import run_ranks

from executors.layout import Layout, Rank
from executors.training.model_spec import ModelSpec
from planner.plan import ReplicaPlan, StagePlan
from planner.training import TrainingJob

SEQUENCE_TOKENS = 12
LEARNING_RATE = 2e-3
NUM_STEPS = 5
DENSE = ("q", "k", "v", "o", "gate", "up", "down")
TARGETS = {"qwen2_moe": ("q", "k", "v", "o")}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "pad_token_id": 3,
    },
    "qwen3": {
        "model_type": "qwen3",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mlp_only_layers": [1],
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 32,
        "n_inner": 48,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.1,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    },
    "opt": {
        "model_type": "opt",
        "vocab_size": 64,
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "init_std": 0.1,
        "dropout": 0.0,
        "tie_word_embeddings": True,
    },
}


def job(**changes: Any) -> TrainingJob:
    """A training job whose epsilon keeps rounding of vanishing gradients from deciding a weight's sign."""
    return TrainingJob(data=("python:prose",), **{"weight_decay": 0.1, "epsilon": 1e-5, **changes})


@dataclass(frozen=True, kw_only=True)
class StageCase:
    """Layers of a stage and how its ranks share them."""

    layers: tuple[int, int]
    shares: tuple[int, ...]
    tp: int = 1
    zero: int = 0
    recompute: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, a plan for it and how it is trained."""

    stages: tuple[StageCase, ...]
    micro_batches: int = 2
    model: str = "llama"
    dtype: str = "fp32"
    adapter_rank: int = 0
    overrides: tuple[tuple[str, Any], ...] = ()
    training: TrainingJob = field(default_factory=job)

    @property
    def micro_batch_size(self) -> int:
        """Rows of a joint micro-batch."""
        return sum(self.stages[0].shares)

    @property
    def num_ranks(self) -> int:
        """Processes of the plan."""
        return sum(len(stage.shares) * stage.tp for stage in self.stages)

    @property
    def spec(self) -> ModelSpec:
        """The model as a worker builds it."""
        config = {**CONFIGS[self.model], **dict(self.overrides)}
        num_blocks: int = config["n_layer" if self.model == "gpt2" else "num_hidden_layers"]
        return ModelSpec(
            config=config,
            num_layers=num_blocks + 2,
            dtype=self.dtype,
            sequence_tokens=SEQUENCE_TOKENS,
            adapter_rank=self.adapter_rank,
            adapter_targets=TARGETS.get(self.model, DENSE) if self.adapter_rank else (),
            adapter_alpha=2.0 * self.adapter_rank,
            adapter_dropout=0.0,
            seed=3,
            start=None,
        )

    @property
    def replica(self) -> ReplicaPlan:
        """The plan's replica, with ranks named after their place."""
        stages = tuple(
            _stage(i, one, self.micro_batches, len(self.stages)) for i, one in enumerate(self.stages)
        )
        return ReplicaPlan(
            id="r",
            executor="torch",
            tokens_per_s=1.0,
            step_time_s=1.0,
            micro_batches=self.micro_batches,
            micro_batch_size=self.micro_batch_size,
            stages=stages,
        )

    @property
    def layout(self) -> Layout:
        """Ranks numbered from the last stage to the first, so that no test rests on their order."""
        places = [
            (stage.index, dp_i, tp_i, device)
            for stage in reversed(self.replica.stages)
            for dp_i, row in enumerate(stage.ranks)
            for tp_i, device in enumerate(row)
        ]
        return Layout(
            ranks=tuple(
                Rank(
                    rank=rank,
                    host="h",
                    slot=rank,
                    local_rank=rank,
                    device=device,
                    stage=stage,
                    dp_i=dp_i,
                    tp_i=tp_i,
                )
                for rank, (stage, dp_i, tp_i, device) in enumerate(places)
            )
        )


def stages(
    cuts: Sequence[int], shares: Sequence[Sequence[int]], **settings: Sequence[int]
) -> tuple[StageCase, ...]:
    """Stages between the cuts; each setting is given stage by stage."""
    return tuple(
        StageCase(
            layers=(cuts[i], cuts[i + 1]),
            shares=tuple(shares[i]),
            **{name: values[i] for name, values in settings.items()},
        )
        for i in range(len(cuts) - 1)
    )


def _stage(index: int, case: StageCase, micro_batches: int, num_stages: int) -> StagePlan:
    ranks = tuple(
        tuple(f"s{index}d{dp_i}t{tp_i}" for tp_i in range(case.tp)) for dp_i in range(len(case.shares))
    )
    devices = tuple(device for row in ranks for device in row)
    return StagePlan(
        index=index,
        layers=case.layers,
        devices=devices,
        dp=len(case.shares),
        tp=case.tp,
        zero=case.zero,
        micro_batch_shares=case.shares,
        ranks=ranks,
        recompute=case.recompute,
        in_flight=min(micro_batches, num_stages - index),
        head=devices[0],
        spares=(),
        memory_bytes={},
        compute_s=1.0,
        comm_s=0.0,
        sync_s=0.0,
        transfer_s=0.0,
    )


def rows_of_text(case: Case, seed: tuple[int, ...], rows: range) -> Any:
    """Random but learnable sequences: each token depends on the one before."""
    import torch

    vocab = case.spec.vocab_size
    drawn = np.random.default_rng(seed).integers(0, vocab, size=(case.micro_batch_size, SEQUENCE_TOKENS + 1))
    for t in range(1, drawn.shape[1], 2):
        drawn[:, t] = (drawn[:, t - 1] * 5 + 1) % vocab
    return torch.from_numpy(drawn[rows.start : rows.stop])


def engine_arguments(case: Case) -> dict[str, Any]:
    """What every engine is given."""
    import torch

    from executors.training.chain import Chain

    torch.set_num_threads(1)

    def evaluation_batch(k: int) -> Any:
        if k == 2:
            return None
        # The second batch has one row only, so that some ranks get nothing.
        return rows_of_text(case, (7, k), range(case.micro_batch_size if k == 0 else 1))

    return {
        "chain": Chain(case.spec),
        "batch_of": lambda step, j, rows: rows_of_text(case, (1, step, j), rows),
        "evaluation_batch": evaluation_batch,
        "training": case.training,
        "device": torch.device("cpu"),
    }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training run shows: per step its loss and gradient norm, then evaluation and states."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    evaluation: float
    states: Mapping[int, Mapping[str, np.ndarray]]


def train(engine: Any, steps: range) -> Outcome:
    """Train for some steps, evaluate, and collect the states."""
    results = [engine.train_step(step, LEARNING_RATE) for step in steps]
    return Outcome(
        losses=tuple(one.loss for one in results),
        norms=tuple(one.gradient_norm for one in results),
        evaluation=engine.evaluate(),
        states=plain(engine.layer_states()),
    )


def plain(states: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, np.ndarray]]:
    """States as numpy arrays, which travel between processes."""
    return {i: {name: tensor.numpy() for name, tensor in state.items()} for i, state in states.items()}


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of all ranks, which must agree on what all know."""
    first = outcomes[0]
    states: dict[int, Mapping[str, np.ndarray]] = {}
    for one in outcomes:
        assert (one.losses, one.norms, one.evaluation) == (first.losses, first.norms, first.evaluation)
        assert not states.keys() & one.states.keys(), "a layer's state stands on two ranks"
        states.update(one.states)
    return Outcome(
        losses=first.losses,
        norms=first.norms,
        evaluation=first.evaluation,
        states=dict(sorted(states.items())),
    )


def build(case: Case, rank: int, **changes: Any) -> Any:
    """The engine of one rank."""
    from executors.torch_native.build import build_engine

    arguments = {**engine_arguments(case), **changes}
    return build_engine(**arguments, replica=case.replica, layout=case.layout, rank=rank, timeout_s=60.0)


def preload(case: Case) -> None:
    """Import here what ranks need, so that none of them has to."""
    import torch.distributed.fsdp
    import torch.distributed.tensor  # noqa: F401

    import executors.torch_native.engine  # noqa: F401
    from executors.training.chain import Chain

    Chain(case.spec).build(1)


def trained(case: Case) -> Outcome:
    """What the case's pipeline makes of its model and text, in as many ranks as it asks for."""
    preload(case)

    def work(rank: int) -> Outcome:
        engine = build(case, rank)
        outcome = train(engine, range(NUM_STEPS))
        engine.close()
        return outcome

    return merged(run_ranks(case.num_ranks, work))


def alone(case: Case, num_steps: int = NUM_STEPS) -> Outcome:
    """What one process makes of the case's model and text."""
    return _alone(
        case.model,
        case.dtype,
        case.adapter_rank,
        case.overrides,
        case.training,
        case.micro_batches,
        case.micro_batch_size,
        num_steps,
    )


@cache
def _alone(
    model: str,
    dtype: str,
    adapter_rank: int,
    overrides: tuple[tuple[str, Any], ...],
    training: TrainingJob,
    micro_batches: int,
    micro_batch_size: int,
    num_steps: int,
) -> Outcome:
    from executors.training.single import SingleEngine

    case = Case(
        stages=(StageCase(layers=(0, 0), shares=(micro_batch_size,)),),
        model=model,
        dtype=dtype,
        adapter_rank=adapter_rank,
        overrides=overrides,
        training=training,
    )
    engine = SingleEngine(
        **engine_arguments(case), micro_batches=micro_batches, micro_batch_size=micro_batch_size
    )
    return train(engine, range(num_steps))


def assert_equal(
    found: Outcome, expected: Outcome, *, rtol: float = 1e-5, weights_atol: float = 2e-5
) -> None:
    """Losses and norms to five digits, the same evaluation loss, and the same states."""
    np.testing.assert_allclose(found.losses, expected.losses, rtol=rtol)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=rtol)
    np.testing.assert_allclose(found.evaluation, expected.evaluation, rtol=rtol)
    assert found.states.keys() == expected.states.keys()
    for layer_i, state in expected.states.items():
        assert found.states[layer_i].keys() == state.keys()
        for name, values in state.items():
            np.testing.assert_allclose(
                found.states[layer_i][name], values, atol=weights_atol, rtol=0, err_msg=f"{layer_i} {name}"
            )
