"""The devices of a cluster as data-parallel ranks, equal ones taken together."""

from __future__ import annotations

from dataclasses import dataclass

from costmodels.interface import Cluster
from costmodels.memory import largest_need_bytes, usable_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberClass:
    """Devices with the same rate, memory traffic and memory. `positions` are their places in the cluster."""

    flop_per_s: float
    memory_bytes_per_s: float
    limit_bytes: float
    need_max_bytes: float
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The classes of a cluster; `class_i_D` says which one each device belongs to."""

    classes: tuple[MemberClass, ...]
    class_i_D: tuple[int, ...]

    @property
    def able(self) -> bool:
        """Whether every device can compute in the job's dtype at all."""
        return all(each.flop_per_s > 0.0 and each.memory_bytes_per_s > 0.0 for each in self.classes)


def members_of(cluster: Cluster, dtype: str, reserve_frac: float, fragmentation_frac: float) -> Members:
    """The cluster's devices grouped by rate in `dtype`, memory traffic and memory, in order of appearance."""
    positions: dict[tuple[float, float, float], list[int]] = {}
    for i, device in enumerate(cluster.devices):
        figures = (device.rate_flop_per_s(dtype), device.memory_bytes_per_s, device.memory_bytes)
        positions.setdefault(figures, []).append(i)
    classes = []
    class_i = [0] * len(cluster.devices)
    for number, ((rate, traffic, size), places) in enumerate(positions.items()):
        limit = usable_bytes(size, reserve_frac)
        classes.append(
            MemberClass(
                flop_per_s=rate,
                memory_bytes_per_s=traffic,
                limit_bytes=limit,
                need_max_bytes=largest_need_bytes(limit, fragmentation_frac),
                positions=tuple(places),
            )
        )
        for place in places:
            class_i[place] = number
    return Members(classes=tuple(classes), class_i_D=tuple(class_i))
