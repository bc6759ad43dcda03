"""A small language model of one's own, trained data-parallel with torch on as many ranks as the plan says.

echelon launch plan.json -- torch_data_parallel.py --steps 5
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from executors.script import here

ECHELON_CAN = {"executors": ["torch"], "uneven_shares": True, "dtypes": ["fp32"], "reports": True}

VOCABULARY, WIDTH = 256, 64


class Model(nn.Module):
    """Predicts each token from the one before."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(num_blocks)]
        self.layers = nn.Sequential(
            nn.Embedding(VOCABULARY, WIDTH), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
        )

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of all tokens."""
        logits = self.layers(tokens)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def rows_of(run: here.PlannedRank, step: int, j: int) -> torch.Tensor:
    """This rank's rows of a micro-batch."""
    generator = torch.Generator().manual_seed(run.seed + step * run.micro_batches + j)
    first = torch.randint(VOCABULARY, (run.micro_batch_size, 1), generator=generator)
    text = (first + torch.arange(run.sequence_tokens + 1)) % VOCABULARY
    return text[run.rows.start : run.rows.stop]


def main() -> None:
    """Train for some steps; ranks, rows and micro-batches are the plan's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps

    run = here.plan()
    device = run.init()
    ranks = run.groups().data_parallel
    torch.manual_seed(run.seed)
    model = DistributedDataParallel(Model(run.num_layers - 2).to(device), process_group=ranks)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    run.ready(num_steps=steps)
    for step in range(steps):
        total = torch.zeros((), device=device)
        for j in range(run.micro_batches):
            mine = rows_of(run, step, j).to(device)
            last = j + 1 == run.micro_batches
            with contextlib.nullcontext() if last else model.no_sync():
                # A mean over ranks follows, which may have unequal rows: each takes part with its sum.
                loss = model(mine[:, :-1], mine[:, 1:]) * run.dp / run.tokens_per_step
                loss.backward()
            total += loss.detach() / run.dp
        torch.distributed.all_reduce(total, group=ranks)
        optimiser.step()
        optimiser.zero_grad()
        run.log_step(step + 1, float(total))
    if run.rank == 0:
        torch.save(model.module.state_dict(), run.folder / "model.pt")
        run.log_export(run.folder / "model.pt")
    run.finished()


if __name__ == "__main__":
    main()
