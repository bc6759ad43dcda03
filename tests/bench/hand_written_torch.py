"""Plain PyTorch on the same model and tokens, alone or data parallel; nothing of this project is in it.

python hand_written_torch.py SETTINGS.json
torchrun --nproc-per-node 2 hand_written_torch.py SETTINGS.json
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM


def read_model(settings: dict[str, Any]) -> nn.Module:
    """The whole model with what is to be trained."""
    model = LlamaForCausalLM.from_pretrained(
        settings["model"], dtype=torch.float32, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    if settings["adapter"] is not None:
        return PeftModel.from_pretrained(model, settings["adapter"], is_trainable=True)
    return model


def micro_batches_of(sequences: np.ndarray[Any, Any], rank: int, num_ranks: int) -> list[torch.Tensor]:
    """This rank's part of a step's sequences (micro-batch, row, token), cut into micro-batches."""
    size = sequences.shape[1]
    flat = sequences.reshape(-1, sequences.shape[2])
    share = len(flat) // num_ranks
    mine = torch.from_numpy(flat[rank * share : (rank + 1) * share].astype(np.int64))
    return list(mine.split(size))


def learning_rate(settings: dict[str, Any], step: int) -> float:
    peak, final = float(settings["learning_rate"]), float(settings["final_frac"])
    steps, warm_up = int(settings["steps"]), int(settings["warmup_steps"])
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done)))


def train_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, parts: list[torch.Tensor], clip_norm: float
) -> torch.Tensor:
    """One optimiser step over this rank's micro-batches; their mean loss."""
    total = torch.zeros(())
    for j, whole in enumerate(parts):
        waits = isinstance(model, DistributedDataParallel) and j < len(parts) - 1
        with model.no_sync() if waits else contextlib.nullcontext():
            logits = model(input_ids=whole[:, :-1]).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), whole[:, 1:].flatten()) / len(parts)
            loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), clip_norm)
    optimiser.step()
    optimiser.zero_grad()
    return total


def main(settings_path: Path, after_step: Callable[[float], None] = lambda loss: None) -> dict[str, Any]:
    """Train; what comes back are loss, CPU seconds and end of every step on this rank."""
    settings = json.loads(settings_path.read_text())
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    model = read_model(settings)
    if num_ranks > 1:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=0.0, betas=settings["betas"], eps=settings["epsilon"], weight_decay=0.0
    )
    tokens = np.load(settings["tokens"], mmap_mode="r")
    losses, cpu_s, ends_s = [], [], []
    for step in range(settings["steps"]):
        began_cpu_s = time.process_time()
        optimiser.param_groups[0]["lr"] = learning_rate(settings, step)
        parts = micro_batches_of(tokens[step], rank, num_ranks)
        loss = train_step(model, optimiser, parts, settings["clip_norm"])
        if num_ranks > 1:
            dist.all_reduce(loss)
        losses.append(loss.item() / num_ranks)
        cpu_s.append(time.process_time() - began_cpu_s)
        ends_s.append(time.time())
        after_step(losses[-1])
    if num_ranks > 1:
        dist.destroy_process_group()
    return {"pid": os.getpid(), "losses": losses, "cpu_s": cpu_s, "ends_s": ends_s}


if __name__ == "__main__":
    path = Path(sys.argv[-1])
    found = main(path)
    path.with_name(f"torch-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
