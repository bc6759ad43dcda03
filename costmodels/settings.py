"""Settings of the analytic cost model, their ranges and where each constant comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from costmodels.interface import Origin
from policies.errors import Fault, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyticSettings:
    """Constants that no data sheet gives. `AnalyticCostModel` says what each one does."""

    memory_reserve_frac: float = 0.06
    fragmentation_frac: float = 0.03
    hidden_frac: float = 0.5
    replicated_inputs: float = 4.0


# Setting: smallest value, largest value, why the default is what it is.
_RANGES: Mapping[str, tuple[float, float, str]] = {
    "memory_reserve_frac": (0.0, 0.9, "context, kernels and collective buffers outside the allocator"),
    "fragmentation_frac": (0.0, 1.0, "gaps between blocks of the caching allocator"),
    "hidden_frac": (0.0, 1.0, "half of the computation overlaps with ZeRO traffic"),
    "replicated_inputs": (0.0, 64.0, "inputs of two norms, attention and feed-forward part of a block"),
}

_FIXED: dict[str, Origin] = {
    "device.flop_per_s": Origin(kind="declared", note="sustained rate in the fleet file or the catalog"),
    "device.memory_bytes_per_s": Origin(kind="declared", note="fleet file or catalog"),
    "device.memory_bytes": Origin(kind="declared", note="fleet file or catalog"),
    "link.bytes_per_s": Origin(kind="declared", note="fleet file"),
    "link.latency_s": Origin(kind="declared", note="fleet file"),
    "layer.forward_flops_per_token": Origin(kind="declared", note="model file or transformers config"),
    "layer.activation_bytes_per_token": Origin(kind="declared", note="model file or transformers config"),
    "backward_per_forward": Origin(kind="assumed", note="1 + trainable / all weights of a layer"),
    "ring_collectives": Origin(
        kind="assumed", note="every collective runs as a ring at the slowest link's rate"
    ),
    "shared_link": Origin(kind="assumed", note="the rings of all tensor-parallel slices share one link"),
    "optimiser_touched_bytes": Origin(
        kind="assumed", note="gradient read, state read and written, weight written, once each"
    ),
}


def checked_settings(**given: float | None) -> tuple[AnalyticSettings, Mapping[str, Origin]]:
    """Settings with defaults for what is None, and the origin of every constant.

    Raises:
        InputError: `cost-model-settings`, naming every setting outside its range.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    faults = tuple(
        Fault(place=name, value=repr(value), limit=f"{_RANGES[name][0]:g} to {_RANGES[name][1]:g}")
        for name, value in chosen.items()
        if not _RANGES[name][0] <= value <= _RANGES[name][1]
    )
    if faults:
        told = "; ".join(f"{fault.place} is {fault.value}, allowed is {fault.limit}" for fault in faults)
        raise InputError(
            "cost-model-settings", told, faults=faults, hint="leave a setting out for its default"
        )
    own = {
        each.name: Origin(kind="declared" if each.name in chosen else "assumed", note=_RANGES[each.name][2])
        for each in fields(AnalyticSettings)
    }
    return AnalyticSettings(**chosen), own | _FIXED
