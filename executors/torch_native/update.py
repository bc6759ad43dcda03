"""The end of a step: gradients summed, their norm taken, weights changed. Also a stage's state in full.

Legend of tensor suffixes: N elements, all such tensors are flat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
import torch.distributed as dist

from executors.torch_native.groups import Groups
from executors.torch_native.optimiser import AdamW, Moments, clip_scale, squared_norm
from executors.torch_native.sharding import Part, build_parts
from executors.torch_native.stage import Trained
from executors.training.clock import Clock, Kind
from executors.training.engine import LayerState, StepResult
from planner.training import TrainingJob
from policies.errors import ExecutorFailedError

KINDS = ("weight", "exp_avg", "exp_avg_sq")


class Updater:
    """Updates a rank's share of its stage's trained weights.

    `tied_source` is the rank that holds the first copy of a weight shared with another stage.
    """

    def __init__(
        self,
        trained: Sequence[Trained],
        groups: Groups,
        training: TrainingJob,
        *,
        zero: int,
        device: torch.device,
        clock: Clock,
        tied_source: int | None = None,
    ) -> None:
        self._trained, self._groups = trained, groups
        self._training, self._device, self._clock = training, device, clock
        self._tied_source = tied_source
        self._parts: list[Part] = build_parts(trained, groups, zero=zero)
        self._moments = [Moments(part.weight()) for part in self._parts]
        self._adamw = AdamW(training)

    def step(self, loss: torch.Tensor, learning_rate: float) -> StepResult:
        """Change the weights by the gradients held; the losses of all ranks are added up. Collective.

        Raises:
            ExecutorFailedError: `gradient-not-finite` on all ranks; the weights are those from before.
        """
        with self._clock.span(Kind.SYNC):
            for part in self._parts:
                part.reduce()
            counted = [part.gradient_N for part in self._parts if part.counted]
            totals = torch.stack((loss.double(), squared_norm(counted, self._device)))
            dist.all_reduce(totals)
            loss_mean, norm_sq = totals.tolist()
        norm = norm_sq**0.5
        if not isfinite(norm):
            raise ExecutorFailedError(
                "gradient-not-finite",
                f"the gradient norm of step {self._adamw.num_steps + 1} is {norm}, its loss {loss_mean}",
                hint="lower the learning rate or clip the gradients; the newest checkpoint is from before",
            )
        scale = clip_scale(norm, self._training.clip_norm)
        self._adamw.num_steps += 1
        for part, moments in zip(self._parts, self._moments, strict=True):
            with self._clock.span(Kind.OPTIMISER):
                weight_N = part.weight()
                self._adamw.update(
                    weight_N,
                    part.gradient_N,
                    moments,
                    learning_rate=learning_rate,
                    gradient_scale=scale,
                    decays=part.decays,
                )
            with self._clock.span(Kind.SYNC):
                part.publish(weight_N)
        return StepResult(loss=loss_mean, gradient_norm=norm)

    def states(self, *, keep: bool) -> dict[int, LayerState]:
        """State of every trained parameter in full, where `keep`; the ranks of the stage all take part."""
        states: dict[int, dict[str, torch.Tensor]] = {}
        for part, moments in zip(self._parts, self._moments, strict=True):
            weight_N = part.weight() if moments.master_N is None else moments.master_N
            held = dict(zip(KINDS, (weight_N, moments.exp_avg_N, moments.exp_avg_sq_N), strict=True))
            for kind, mine_N in held.items():
                for one, whole in part.whole(mine_N):
                    if keep and one.first:
                        layer = states.setdefault(one.layer_i, {})
                        layer[f"{kind}:{one.name}"] = whole.detach().to("cpu", torch.float32, copy=True)
        return dict(states)

    def tied_weight(self) -> torch.Tensor | None:
        """The weight shared with another stage, in full, as this one computes with it; None without one."""
        for part in self._parts:
            for one, whole in part.whole(part.weight()):
                if one.tied:
                    return whole.detach().to("cpu", copy=True)
        return None

    def load(self, states: Mapping[int, LayerState], step: int) -> None:
        """Continue from these states after `step` steps. The later copy of a tied weight needs none."""
        self._adamw.num_steps = step
        for part, moments in zip(self._parts, self._moments, strict=True):
            weight_N, exp_avg_N, exp_avg_sq_N = (self._share(part, states, kind) for kind in KINDS)
            moments.exp_avg_N.copy_(exp_avg_N)
            moments.exp_avg_sq_N.copy_(exp_avg_sq_N)
            if moments.master_N is not None:
                moments.master_N.copy_(weight_N)
            part.publish(weight_N.to(part.weight().dtype))

    def _share(self, part: Part, states: Mapping[int, LayerState], kind: str) -> torch.Tensor:
        whole = {(one.layer_i, one.name): self._whole(states, one, kind) for one in part.members}
        return part.share(whole).to(self._device)

    def _whole(self, states: Mapping[int, LayerState], one: Trained, kind: str) -> torch.Tensor:
        """A tensor in full: from the states, and from the first stage's ranks to those of the last."""
        if not one.tied:
            found: torch.Tensor = states[one.layer_i][f"{kind}:{one.name}"]
            return found
        whole = torch.empty(one.shape, dtype=torch.float32, device=self._device)
        if one.first:
            whole.copy_(states[one.layer_i][f"{kind}:{one.name}"])
        assert self._tied_source is not None
        dist.broadcast(whole, src=self._tied_source, group=self._groups.tied)
        return whole
