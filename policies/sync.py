"""How boundaries keep one model in step: the methods there are, and the settings of each.

A policy file writes them as words and numbers (`sync: {method: echelon, local_steps: 100}`); here they are
typed and within bounds, or refused all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from math import inf, isfinite


class SyncMethod(StrEnum):
    """What is exchanged when, and how it is applied."""

    ECHELON = "echelon"
    ECHELON_DA = "echelon-da"
    DILOCO = "diloco"
    OVERLAPPED_DILOCO = "overlapped-diloco"
    FEDPROX = "fedprox"
    FEDBUFF = "fedbuff"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSettings:
    """Settings of every method; each reads what concerns it.

    `local_steps` optimiser steps lie between two windows of a participant (the first number of them under
    `echelon-da`, which stays between `local_steps_min` and `local_steps_max`). A window closes at `close_at`
    participants (0: all that joined it) or after `window_s` seconds, and never below the policy's cohort. An
    update is clipped to the L2 norm `clip_norm` and each of its values to `clip_value`, and weighted by
    (1 + staleness)^-`staleness_power`; beyond `staleness_max` windows it is dropped. `outer_rate` and
    `outer_momentum` are those of the global step (Nesterov). `proximal` is FedProx's mu. The coordinator
    waits `exchange_s` seconds for a boundary before it goes on without it.
    """

    method: SyncMethod = SyncMethod.ECHELON
    local_steps: int = 100
    local_steps_min: int = 10
    local_steps_max: int = 1_000
    close_at: int = 0
    window_s: float = 600.0
    exchange_s: float = 600.0
    clip_norm: float = 8.0
    clip_value: float = 8.0
    staleness_power: float = 0.5
    staleness_max: int = 4
    outer_rate: float = 0.9
    outer_momentum: float = 0.5
    proximal: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingFault:
    """A setting that can't be used: its key, what was written and what would have been accepted."""

    key: str
    value: str
    limit: str


_BOUNDS: dict[str, tuple[float, float]] = {
    "local_steps": (1, 1e9),
    "local_steps_min": (1, 1e9),
    "local_steps_max": (1, 1e9),
    "close_at": (0, 1e6),
    "window_s": (0.001, 1e9),
    "exchange_s": (0.001, 1e9),
    "clip_norm": (1e-9, 1e9),
    "clip_value": (1e-9, 1e9),
    "staleness_power": (0, 1),
    "staleness_max": (0, 1e6),
    "outer_rate": (1e-9, 10),
    "outer_momentum": (0, 0.999),
    "proximal": (0, 1e3),
}


def sync_settings(written: Sequence[tuple[str, str]]) -> tuple[SyncSettings | None, list[SettingFault]]:
    """The settings that a policy writes, over the defaults; None with every fault."""
    faults: list[SettingFault] = []
    values: dict[str, object] = {}
    for key, text in written:
        found = _method(text) if key == "method" else _number(key, text)
        if isinstance(found, SettingFault):
            faults.append(found)
        else:
            values[key] = found
    if faults:
        return None, faults
    settings = SyncSettings(**values)  # type: ignore[arg-type]
    faults += _joint_faults(settings)
    return (None if faults else settings), faults


def _method(text: str) -> SyncMethod | SettingFault:
    if text in list(SyncMethod):
        return SyncMethod(text)
    return SettingFault(key="method", value=text, limit=f"one of {', '.join(SyncMethod)}")


def _number(key: str, text: str) -> float | int | SettingFault:
    kinds = {field.name: field.type for field in fields(SyncSettings)}
    if key not in _BOUNDS:
        return SettingFault(key=key, value=text, limit=f"one of {', '.join(kinds)}")
    low, high = _BOUNDS[key]
    whole = kinds[key] == "int"
    what = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
    try:
        value = float(text)
    except ValueError:
        value = inf
    if not isfinite(value) or not low <= value <= high or (whole and value != int(value)):
        return SettingFault(key=key, value=text, limit=what)
    return int(value) if whole else value


def _joint_faults(settings: SyncSettings) -> Iterator[SettingFault]:
    """Settings that contradict each other."""
    low, high = settings.local_steps_min, settings.local_steps_max
    if settings.method is SyncMethod.ECHELON_DA and not low <= settings.local_steps <= high:
        limit = f"local_steps_min to local_steps_max, {low} to {high}"
        yield SettingFault(key="local_steps", value=str(settings.local_steps), limit=limit)
    if settings.method is SyncMethod.FEDPROX and settings.proximal == 0.0:
        yield SettingFault(key="proximal", value="0", limit="above 0 under fedprox")
