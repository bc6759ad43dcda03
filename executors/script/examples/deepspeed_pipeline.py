"""A small language model of one's own, trained under a plan with DeepSpeed's pipeline.

echelon launch plan.json -- deepspeed_pipeline.py --steps 5
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import deepspeed
import torch
from deepspeed.pipe import LayerSpec
from torch import nn

from executors.script import here

ECHELON_CAN = {
    "executors": ["deepspeed"],
    "pipeline": True,
    "zero": [0, 1],
    "recompute": True,
    "reports": True,
}
VOCABULARY, WIDTH = 256, 64


class Block(nn.Module):
    """Causal attention and a feed-forward part: hidden states in, hidden states out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 128, dropout=0.0, batch_first=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The block's work."""
        mask = nn.Transformer.generate_square_subsequent_mask(hidden.shape[1], hidden.device, hidden.dtype)
        return self.layer(hidden, src_mask=mask, is_causal=True)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over all tokens."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def micro_batches(run: here.PlannedRank, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's rows of a step; first and last stage read the same text."""
    for j in range(run.micro_batches):
        generator = torch.Generator().manual_seed(run.seed + step * run.micro_batches + j)
        first = torch.randint(VOCABULARY, (run.micro_batch_size, 1), generator=generator)
        text = (first + torch.arange(run.sequence_tokens + 1)) % VOCABULARY
        mine = text[run.rows.start : run.rows.stop]
        yield mine[:, :-1], mine[:, 1:]


def main() -> None:
    """Train for some steps; ranks, stages, cuts, micro-batches and ZeRO level are the plan's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps

    run = here.plan()
    run.init()
    blocks = [LayerSpec(Block) for _ in range(run.num_layers - 2)]
    chain = [LayerSpec(nn.Embedding, VOCABULARY, WIDTH), *blocks, LayerSpec(nn.Linear, WIDTH, VOCABULARY)]
    module = run.pipeline_module(chain, loss_fn=loss_of)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimiser, config=run.ds_config())
    run.ready(num_steps=steps)
    for step in range(steps):
        loss = engine.train_batch(micro_batches(run, step))
        run.log_step(step + 1, float(loss))
    engine.save_checkpoint(str(run.folder / "own"), tag="last")
    run.finished()


if __name__ == "__main__":
    main()
