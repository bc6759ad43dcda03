"""The reference: the whole chain in one process, with torch's own optimiser and nothing distributed.

Executors are compared with it. It shares no code with them but the chain itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from executors.training.chain import token_loss
from executors.training.engine import LayerState, StepResult
from planner.training import TrainingJob


class SingleEngine:
    """An engine of one process. Arguments are those of the executors' engines."""

    def __init__(
        self,
        *,
        chain: Any,
        micro_batches: int,
        micro_batch_size: int,
        batch_of: Callable[[int, int, range], torch.Tensor],
        evaluation_batch: Callable[[int], torch.Tensor | None],
        training: TrainingJob,
        device: torch.device,
    ) -> None:
        self._micro_batches, self._rows = micro_batches, range(micro_batch_size)
        self._batch_of, self._evaluation_batch = batch_of, evaluation_batch
        self._training, self._device = training, device
        self._layers = nn.ModuleList(chain.build(i) for i in range(chain.num_layers)).to(device)
        if chain.tied is not None:
            first, last = chain.tied
            owner, _, leaf = chain.tied_parameter(last).rpartition(".")
            shared = self._layers[first].get_parameter(chain.tied_parameter(first))
            setattr(self._layers[last].get_submodule(owner), leaf, shared)
        self._trained = {
            (i, name): parameter
            for i, layer in enumerate(self._layers)
            for name, parameter in layer.named_parameters()
            if parameter.requires_grad and (i, name) != _second(chain)
        }
        self._masters = {
            key: parameter.detach().float().clone().requires_grad_()
            for key, parameter in self._trained.items()
        }
        self._optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in self._masters.values() if p.ndim >= 2]},
                {"params": [p for p in self._masters.values() if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
            betas=(training.beta1, training.beta2),
            eps=training.epsilon,
            weight_decay=training.weight_decay,
        )

    def train_step(self, step: int, learning_rate: float) -> StepResult:
        """Run one optimiser step on the text of this step (from 0)."""
        total = 0.0
        for j in range(self._micro_batches):
            tokens = self._batch_of(step, j, self._rows).to(self._device)
            loss = token_loss(self._forward(tokens[:, :-1]), tokens[:, 1:]) / self._micro_batches
            loss.backward()
            total += float(loss.detach())
        for key, master in self._masters.items():
            gradient = self._trained[key].grad
            master.grad = torch.zeros_like(master) if gradient is None else gradient.float()
            self._trained[key].grad = None
        bound = self._training.clip_norm or float("inf")
        norm = float(nn.utils.clip_grad_norm_(list(self._masters.values()), bound))
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.step()
        self._publish()
        return StepResult(loss=total, gradient_norm=norm)

    def evaluate(self) -> float:
        """Mean loss over the held-out sequences."""
        loss_sum, num_tokens, k = 0.0, 0, 0
        self._layers.eval()
        with torch.no_grad():
            while (batch := self._evaluation_batch(k)) is not None:
                tokens = batch.to(self._device)
                count = tokens[:, 1:].numel()
                loss_sum += count * float(token_loss(self._forward(tokens[:, :-1]), tokens[:, 1:]))
                num_tokens += count
                k += 1
        self._layers.train()
        return loss_sum / num_tokens

    def layer_states(self) -> Mapping[int, LayerState]:
        """Trained weights with optimiser state of all layers."""
        states: dict[int, dict[str, torch.Tensor]] = {}
        for (layer_i, name), master in self._masters.items():
            layer = states.setdefault(layer_i, {})
            kept = self._optimiser.state.get(master, {})
            layer[f"weight:{name}"] = master.detach().to("cpu", copy=True)
            for kind in ("exp_avg", "exp_avg_sq"):
                moment = kept.get(kind, torch.zeros_like(master))
                layer[f"{kind}:{name}"] = moment.detach().to("cpu", copy=True)
        return states

    def load_layer_states(self, states: Mapping[int, LayerState], step: int) -> None:
        """Continue from these states after `step` optimiser steps."""
        for (layer_i, name), master in self._masters.items():
            state = states[layer_i]
            with torch.no_grad():
                master.copy_(state[f"weight:{name}"])
            self._optimiser.state[master] = {
                "step": torch.tensor(float(step)),
                "exp_avg": state[f"exp_avg:{name}"].to(self._device, copy=True),
                "exp_avg_sq": state[f"exp_avg_sq:{name}"].to(self._device, copy=True),
            }
        self._publish()

    def close(self) -> None:
        """Nothing to leave."""

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self._layers:
            tokens = layer(tokens)
        return tokens

    def _publish(self) -> None:
        with torch.no_grad():
            for key, master in self._masters.items():
                self._trained[key].copy_(master)


def _second(chain: Any) -> tuple[int, str] | None:
    """The copy of a tied weight that stands later in the chain."""
    if chain.tied is None:
        return None
    last = chain.tied[1]
    return last, chain.tied_parameter(last)
