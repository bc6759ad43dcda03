"""A DeepSpeed pipeline as one writes it by hand, to be compared with ours; nothing of this project is in it.

    deepspeed --num_accelerators 2 hand_written_deepspeed.py SETTINGS.json

Trains a Llama from a transformers folder, with or without a PEFT adapter, on token arrays made beforehand.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM


class Embedding(nn.Module):  # type: ignore[misc]
    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.words = words

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.words(tokens)


class Block(nn.Module):  # type: ignore[misc]
    """A decoder layer. All sequences have one length, so its angles are computed once."""

    def __init__(self, layer: nn.Module, cos: torch.Tensor, sin: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layer(hidden, attention_mask=None, position_embeddings=(self.cos, self.sin))


class Head(nn.Module):  # type: ignore[misc]
    def __init__(self, norm: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.output = output

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.output(self.norm(hidden))


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def read_model(settings: dict[str, Any]) -> LlamaForCausalLM:
    """The model to train, on every rank as a whole; what is trained has gradients."""
    model = LlamaForCausalLM.from_pretrained(
        settings["model"], dtype=torch.float32, attn_implementation="sdpa"
    )
    if settings["adapter"] is not None:
        # The adapter's layers replace those of the model in place.
        PeftModel.from_pretrained(model, settings["adapter"], is_trainable=True)
    return model


def layers_of(model: LlamaForCausalLM, num_tokens: int) -> list[LayerSpec]:
    """The model as a list of layers between which one tensor passes."""
    with torch.no_grad():
        cos, sin = model.model.rotary_emb(torch.empty(0), torch.arange(num_tokens)[None])
    return [
        LayerSpec(Embedding, model.model.embed_tokens),
        *(LayerSpec(Block, layer, cos, sin) for layer in model.model.layers),
        LayerSpec(Head, model.model.norm, model.lm_head),
    ]


def iter_batches(tokens: np.ndarray[Any, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of every micro-batch, step after step."""
    for step in tokens:
        for micro_batch in step:
            whole = torch.from_numpy(micro_batch.astype(np.int64))
            yield whole[:, :-1].contiguous(), whole[:, 1:].contiguous()


def cosine(settings: dict[str, Any]) -> Callable[[int], float]:
    """The learning rate of a step as a fraction of its peak: linear warm-up, then a cosine."""
    steps, warm_up = int(settings["steps"]), int(settings["warmup_steps"])
    final = float(settings["final_frac"])

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))

    return rate


def pipeline(settings: dict[str, Any], tokens: np.ndarray[Any, Any]) -> Any:
    """DeepSpeed's engine over all ranks."""
    _, micro_batches, micro_batch_size, length = tokens.shape
    layers = layers_of(read_model(settings), length - 1)
    module = PipelineModule(
        layers, num_stages=len(settings["cut"]) - 1, loss_fn=loss_of, partition_method="uniform"
    )
    assert list(module.parts) == settings["cut"], module.parts
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trained,
        lr=settings["learning_rate"],
        betas=settings["betas"],
        eps=settings["epsilon"],
        weight_decay=0.0,
    )
    config = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": settings["clip_norm"],
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimiser,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimiser, cosine(settings)),
        config=config,
    )
    return engine


def main(settings_path: Path, after_step: Callable[[float], None] = lambda loss: None) -> dict[str, Any]:
    """Train; what comes back are loss, CPU seconds and end of every step on this rank."""
    settings = json.loads(settings_path.read_text())
    rank = int(os.environ["LOCAL_RANK"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    tokens = np.load(settings["tokens"], mmap_mode="r")
    engine = pipeline(settings, tokens)
    batches = iter_batches(tokens)
    losses, cpu_s, ends_s = [], [], []
    for _ in range(settings["steps"]):
        began_cpu_s = time.process_time()
        losses.append(engine.train_batch(batches).item())
        cpu_s.append(time.process_time() - began_cpu_s)
        ends_s.append(time.time())
        after_step(losses[-1])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return {"pid": os.getpid(), "losses": losses, "cpu_s": cpu_s, "ends_s": ends_s}


if __name__ == "__main__":
    path = Path(sys.argv[-1])
    found = main(path)
    path.with_name(f"hand-{os.environ['RANK']}.json").write_text(json.dumps(found))
