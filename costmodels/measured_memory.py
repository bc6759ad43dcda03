"""Bytes of one device of a stage, by kind, from measured layer sizes; docs/measured.md, section 2.

Legend of array suffixes: L layers of the profile, N layers of one stage, R how many of them are recomputed
(from none on), Q micro-batches in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.interface import FloatArray, Interval
from costmodels.measured_profile import Profile, layer_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What decides the bytes of a device besides the profile and the micro-batches in flight.

    `interval` are its layers, `share` its sequences of each micro-batch. `border_sequence_bytes` sums one
    sequence's tensor over the stage's borders. `overhead_bytes` None takes that of the profile. A process
    holds `activation_factor` bytes for each byte of activations, of what a layer works with and of borders.
    """

    interval: Interval
    tp: int
    dp: int = 1
    zero: int = 0
    share: int = 1
    border_sequence_bytes: float = 0.0
    overhead_bytes: float | None = None
    activation_factor: float = 1.0

    @property
    def held_sequences(self) -> float:
        """By what the bytes of one sequence are multiplied."""
        return self.share * self.activation_factor


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """Bytes of one device that don't depend on the micro-batches in flight.

    `kept_R` is what forward keeps of one micro-batch and `working_R` what the layer that needs most needs
    beside it, by how many layers are recomputed. `copied` is the flat copy of all gradients.
    """

    weights: float
    gradients: float
    optimiser: float
    kept_R: FloatArray
    working_R: FloatArray
    borders: float
    overhead: float
    copied: float

    def kinds(self, in_flight: int, num_recomputed: int) -> dict[str, float]:
        """Peak bytes by kind.

        activations  what forward keeps, or the input of a recomputed layer, for every micro-batch in flight
        working      the layer that needs most beside that: gradients of its tensors, what it computes again,
                     and under sharding its gathered weights (ZeRO-3) and whole gradients (ZeRO-2 and 3)
        borders      per neighbour one tensor received and one being sent
        sync_buffer  the flat copy of all gradients, where it outgrows what backward has freed by then
        """
        kinds = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            "activations": float(self.kept_R[num_recomputed]) * in_flight,
            "working": float(self.working_R[num_recomputed]),
            "borders": self.borders,
            "overhead": self.overhead,
        }
        freed_bytes = kinds["activations"] + kinds["working"] + kinds["borders"]
        return kinds | {"sync_buffer": max(0.0, self.copied - freed_bytes)}

    def fewest_recomputed_Q(self, in_flight_Q: FloatArray, limit_bytes: float) -> NDArray[np.int64]:
        """How many layers must be recomputed so that the device fits; all where nothing helps.

        Each further layer frees its saved bytes per micro-batch in flight and adds them once at most to what
        the busiest layer needs, so the need never rises with the number. It is summed in the order of
        `kinds`, so that both agree to the last bit.
        """
        fits_RQ = self._need(self.kept_R[:, None], self.working_R[:, None], in_flight_Q) <= limit_bytes
        return np.where(fits_RQ.any(axis=0), fits_RQ.argmax(axis=0), len(self.kept_R) - 1)

    def fits_Q(
        self, in_flight_Q: FloatArray, number_Q: NDArray[np.int64], limit_bytes: float
    ) -> NDArray[np.bool_]:
        """Whether the device fits with so many recomputed layers."""
        fits_Q: NDArray[np.bool_] = (
            self._need(self.kept_R[number_Q], self.working_R[number_Q], in_flight_Q) <= limit_bytes
        )
        return fits_Q

    def _need(self, kept: FloatArray, working: FloatArray, in_flight_Q: FloatArray) -> FloatArray:
        """All bytes, summed in the order of `kinds`."""
        held = kept * in_flight_Q
        freed = held + working + self.borders
        need = self.weights + self.gradients + self.optimiser + held + working
        return need + self.borders + self.overhead + np.maximum(0.0, self.copied - freed)


def stage_bytes(profile: Profile, held: Holding, order: Sequence[int] = ()) -> StageBytes:
    """Bytes of a device whose layers may be recomputed in this order (positions inside the interval).

    ZeRO-1 cuts the optimiser state by the ranks, ZeRO-2 gradients too, ZeRO-3 weights too (Rajbhandari et
    al., SC 2020, section 5).
    """
    facts, sizes = profile.facts, layer_sizes(profile, held.tp)
    part = slice(*held.interval)
    weight_bytes, trained = _state(profile, held)
    kept_N = sizes.activation_bytes_L[part]
    needed_N = sizes.needed_L[part] * held.held_sequences + _gathered_bytes_N(profile, held)
    saved_N = saved_bytes_N(profile, held.tp, held.interval)
    saved_R = np.concatenate([[0.0], saved_N[list(order)].cumsum()])
    again_R = np.maximum.accumulate([0.0, *((needed_N + saved_N * held.held_sequences)[list(order)])])
    parts = [held.dp if held.zero >= level else 1 for level in (3, 2, 1)]
    gradients = trained * facts.gradient_bytes_per_param / parts[1]
    return StageBytes(
        weights=weight_bytes / parts[0],
        gradients=gradients,
        optimiser=trained * facts.optimiser_bytes_per_param / parts[2],
        kept_R=(float(kept_N.sum()) - saved_R) * held.held_sequences,
        working_R=np.maximum(float(needed_N.max()), again_R),
        borders=2.0 * held.border_sequence_bytes * held.held_sequences,
        overhead=facts.overhead_bytes if held.overhead_bytes is None else held.overhead_bytes,
        copied=gradients if held.dp > 1 and held.zero < 2 else 0.0,
    )


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
