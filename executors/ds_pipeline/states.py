"""Trained weights and moments out of a DeepSpeed engine and back, whole, whatever it shards.

DeepSpeed's own checkpoints are bound to one layout; what these functions exchange is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from executors.training.engine import LayerState

MOMENTS = ("exp_avg", "exp_avg_sq")
Trained = Mapping[tuple[int, str], nn.Parameter]


def restart_counters(engine: Any) -> None:
    """Let the first step be step 1: some ZeRO levels take an empty one while they set up."""
    for state in _inner(engine).state.values():
        if "step" in state:
            state["step"] = torch.zeros_like(state["step"])


def gather_states(engine: Any, trained: Trained, *, sharded: bool) -> dict[int, dict[str, torch.Tensor]]:
    """Whole fp32 tensors by layer; with shards every rank of the stage has to take part."""
    if sharded:
        _link(engine)
    states: dict[int, dict[str, torch.Tensor]] = {}
    for (layer_i, name), parameter in trained.items():
        found = {"weight": _weight(parameter, sharded)}
        found |= {key: _moment(engine, parameter, key, sharded) for key in MOMENTS}
        layer = states.setdefault(layer_i, {})
        for key, tensor in found.items():
            layer[f"{key}:{name}"] = tensor.detach().float().cpu().reshape(_shape(parameter)).clone()
    return states


def load_states(
    engine: Any, trained: Trained, states: Mapping[int, LayerState], step: int, *, sharded: bool
) -> None:
    """Continue from these states as if the engine had taken `step` steps itself."""
    if sharded:
        _allocate(engine)
    for (layer_i, name), parameter in trained.items():
        values = {key: states[layer_i][f"{key}:{name}"] for key in ("weight", *MOMENTS)}
        if sharded:
            for key, value in values.items():
                _fill_shard(parameter, value, None if key == "weight" else key)
        else:
            with torch.no_grad():
                parameter.copy_(values["weight"])
            moments = {key: values[key].to(parameter.device).clone() for key in MOMENTS}
            _inner(engine).state[parameter] = {"step": torch.tensor(float(step)), **moments}
    if sharded:
        for state in _inner(engine).state.values():
            state["step"] = torch.full_like(state["step"], float(step))
        _refresh_weights(engine, trained)


def _inner(engine: Any) -> Any:
    """The torch optimiser, inside whatever DeepSpeed wraps around it."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _weight(parameter: nn.Parameter, sharded: bool) -> torch.Tensor:
    whole = safe_get_full_fp32_param(parameter) if sharded else None
    return parameter if whole is None else whole


def _moment(engine: Any, parameter: nn.Parameter, key: str, sharded: bool) -> torch.Tensor:
    if sharded:
        whole = safe_get_full_optimizer_state(parameter, key)
        assert whole is not None
        return whole
    moment: torch.Tensor = _inner(engine).state[parameter][key]
    return moment


def _allocate(engine: Any) -> None:
    """Make the moments of every shard exist: AdamW makes its own with the first step only."""
    state = _inner(engine).state
    for shard in _shards(engine):
        if not state[shard]:
            state[shard] = {"step": torch.zeros(()), **{key: torch.zeros_like(shard) for key in MOMENTS}}
    _link(engine)


def _shards(engine: Any) -> list[torch.Tensor]:
    """What the torch optimiser steps. ZeRO-3 hands it over only for the moment of a step."""
    whole = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    if whole is not None:
        return list(whole)
    return [shard for group in _inner(engine).param_groups for shard in group["params"]]


def _link(engine: Any) -> None:
    """Tie shards to their moments: ZeRO-1/2 do it after the first group's step, too early for others."""
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        engine.optimizer._hp_optimizer_states_linked = False
        link()


def _fill_shard(parameter: nn.Parameter, value: torch.Tensor, key: str | None) -> None:
    """Copy the rank's part of a whole tensor into its shard; ranks that hold no part have nothing to do."""
    flat = value.flatten()
    if hasattr(parameter, "ds_id"):
        owner = parameter._z3_optimizer
        shard, _ = owner._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        start = shard.numel() * owner._get_param_partition_rank(parameter)
        part = flat[start : start + shard.numel()]
        shard.data[: part.numel()].copy_(part)
        return
    mapping = parameter._hp_mapping
    if mapping is not None:
        address = mapping.lp_fragment_address
        mapping.get_hp_fragment(key).data.copy_(flat.narrow(0, address.start, address.numel))


def _refresh_weights(engine: Any, trained: Trained) -> None:
    """Bring the weights that layers compute with up to date with the fp32 shards."""
    refresh = getattr(engine.optimizer, "update_lp_params", None)
    if refresh is not None:
        refresh()
        return
    for parameter in trained.values():
        owner = parameter._z3_optimizer
        shard, _ = owner._get_fp32_opt_state_partition(parameter, release_swap_buffers=False)
        held = parameter.ds_tensor
        held.data.flatten()[: shard.numel()].copy_(shard[: held.numel()])
