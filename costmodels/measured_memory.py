"""Bytes of one device of a stage, by kind, from measured layer sizes; docs/measured.md, section 2.

Legend of array suffixes: L layers of the profile, N layers of one stage, R how many of them are recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray, Interval
from costmodels.measured_profile import Profile, layer_sizes

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What decides the bytes of a device besides the profile.

    `interval` are its layers, `share` its sequences of each micro-batch. `border_sequence_bytes` sums one
    sequence's tensor over the stage's borders. `overhead_bytes` None takes that of the profile.
    """

    interval: Interval
    tp: int
    dp: int = 1
    zero: int = 0
    share: int = 1
    in_flight: int = 1
    border_sequence_bytes: float = 0.0
    overhead_bytes: float | None = None


def held_bytes(profile: Profile, held: Holding, recomputed_N: BoolArray | None = None) -> dict[str, float]:
    """Peak bytes by kind.

    activations  what forward keeps, or the input of a recomputed layer, for every micro-batch in flight
    working      the layer that needs most beside that: gradients of its tensors, what it computes again, and
                 under sharding its gathered weights (ZeRO-3) and whole gradients (ZeRO-2 and 3)
    borders      per neighbour one tensor received and one being sent
    sync_buffer  the flat copy of all gradients, where it outgrows what the backward pass has freed by then
    ZeRO-1 cuts the optimiser state by the ranks, ZeRO-2 gradients too, ZeRO-3 weights too (Rajbhandari et
    al., SC 2020, section 5).
    """
    facts, sizes = profile.facts, layer_sizes(profile, held.tp)
    part = slice(*held.interval)
    weight_bytes, trained = _state(profile, held)
    kept_N, working_N = sizes.activation_bytes_L[part], sizes.needed_L[part]
    if recomputed_N is not None:
        saved_N = np.where(recomputed_N, saved_bytes_N(profile, held.tp, held.interval), 0.0)
        kept_N, working_N = kept_N - saved_N, working_N + saved_N
    parts = [held.dp if held.zero >= level else 1 for level in (3, 2, 1)]
    kinds = {
        "weights": weight_bytes / parts[0],
        "gradients": trained * facts.gradient_bytes_per_param / parts[1],
        "optimiser": trained * facts.optimiser_bytes_per_param / parts[2],
        "activations": float(kept_N.sum()) * held.share * held.in_flight,
        "working": float((working_N * held.share + _gathered_bytes_N(profile, held)).max()),
        "borders": 2.0 * held.border_sequence_bytes * held.share,
        "overhead": facts.overhead_bytes if held.overhead_bytes is None else held.overhead_bytes,
    }
    freed_bytes = kinds["activations"] + kinds["working"] + kinds["borders"]
    copied_bytes = kinds["gradients"] if held.dp > 1 and held.zero < 2 else 0.0
    kinds["sync_buffer"] = max(0.0, copied_bytes - freed_bytes)
    return kinds


def saved_bytes_N(profile: Profile, tp: int, interval: Interval) -> FloatArray:
    """Bytes per sequence that recomputing each layer of an interval saves: what it keeps less its input."""
    sizes, part = layer_sizes(profile, tp), slice(*interval)
    saved_N: FloatArray = np.maximum(sizes.activation_bytes_L[part] - sizes.input_bytes_L[part], 0.0)
    return saved_N


def recomputable(profile: Profile, tp: int, interval: Interval, sequence: Sequence[int]) -> list[int]:
    """Positions inside an interval of the layers worth recomputing, in the order of `sequence`.

    Only blocks: the embedding keeps nothing to speak of, and what the loss head keeps it needs at once.
    """
    saved_N = saved_bytes_N(profile, tp, interval)
    first, stop = max(1, interval[0]), min(profile.num_layers - 1, interval[1])
    inside = [i - interval[0] for i in sequence if first <= i < stop]
    return [i for i in inside if saved_N[i] > 0.0]


def fewest_recomputed(profile: Profile, held: Holding, order: Sequence[int], limit_bytes: float) -> int:
    """How many layers of `order` must be recomputed so that the device fits; all where nothing helps.

    Each further layer frees its saved bytes per micro-batch in flight and adds them once at most to what the
    busiest layer needs, so the need never rises with the number.
    """
    kinds = held_bytes(profile, held)
    if sum(kinds.values()) <= limit_bytes or not order:
        return 0
    saved_N = saved_bytes_N(profile, held.tp, held.interval) * held.share
    working_N = layer_sizes(profile, held.tp).needed_L[slice(*held.interval)] * held.share
    working_N = working_N + _gathered_bytes_N(profile, held)
    saved_R = np.array([saved_N[i] for i in order])
    again_R = np.maximum.accumulate([working_N[i] + saved_N[i] for i in order])
    need_R = sum(kinds.values()) - kinds["working"] - kinds["sync_buffer"] - held.in_flight * saved_R.cumsum()
    need_R = need_R + np.maximum(kinds["working"], again_R)
    count = int(np.argmax(need_R <= limit_bytes)) + 1 if (need_R <= limit_bytes).any() else len(order)
    # The last bits of the sums may differ from those of `held_bytes`, which has the last word.
    while count < len(order) and _needs(profile, held, order[:count]) > limit_bytes:
        count += 1
    return count


def recomputed_mask(held: Holding, order: Sequence[int], count: int) -> BoolArray | None:
    """Which layers of an interval are recomputed; None for none."""
    if count == 0:
        return None
    mask_N = np.zeros(held.interval[1] - held.interval[0], dtype=np.bool_)
    mask_N[list(order[:count])] = True
    return mask_N


def _needs(profile: Profile, held: Holding, chosen: Sequence[int]) -> float:
    return sum(held_bytes(profile, held, recomputed_mask(held, chosen, len(chosen))).values())


def _state(profile: Profile, held: Holding) -> tuple[float, float]:
    """Bytes of weights and number of trained weights, those shared by both ends of the chain held once."""
    facts, sizes = profile.facts, layer_sizes(profile, held.tp)
    part = slice(*held.interval)
    weight_bytes, trained = float(sizes.weight_bytes_L[part].sum()), float(sizes.trained_L[part].sum())
    if facts.tied_params > 0.0 and held.interval == (0, profile.num_layers):
        shared = facts.tied_params / held.tp
        weight_bytes -= shared * float(sizes.weight_bytes_L[-1] / max(sizes.params_L[-1], 1.0))
        trained -= shared if facts.tied_bytes > 0.0 else 0.0
    return weight_bytes, trained


def _gathered_bytes_N(profile: Profile, held: Holding) -> FloatArray:
    """Bytes of each layer that a rank holds in passing beyond its own part of them."""
    sizes, part = layer_sizes(profile, held.tp), slice(*held.interval)
    others_frac = (held.dp - 1) / held.dp
    gathered_N: FloatArray = np.zeros(held.interval[1] - held.interval[0])
    if held.zero >= 2:
        gathered_N += sizes.trained_L[part] * (profile.facts.gradient_bytes_per_param * others_frac)
    if held.zero >= 3:
        gathered_N += sizes.weight_bytes_L[part] * others_frac
    return gathered_N
