"""Who is who: every device of a replica gets a rank, a host and a slot, in the order launchers number them.

Ranks follow the hosts in order of first use, and slots in ascending order inside a host, as the `deepspeed`
runner numbers the lines of a hostfile. What a rank does is read from this table, never computed from a rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from costmodels.fleet import Fleet
from planner.plan import ReplicaPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process: where it runs and what it holds.

    `slot` is the device's number on its host, `local_rank` its position among the replica's devices there.
    `dp_i` and `tp_i` are its coordinates in the stage's grid.
    """

    rank: int
    host: str
    slot: int
    local_rank: int
    device: str
    stage: int
    dp_i: int
    tp_i: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The ranks of one replica, in rank order, and its hosts in the order of the hostfile."""

    ranks: tuple[Rank, ...]

    @property
    def world_size(self) -> int:
        """Processes of the replica."""
        return len(self.ranks)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts in rank order."""
        return tuple(dict.fromkeys(rank.host for rank in self.ranks))

    def on_host(self, host: str) -> tuple[Rank, ...]:
        """Ranks of one host, slots ascending."""
        return tuple(rank for rank in self.ranks if rank.host == host)

    @cached_property
    def _at(self) -> dict[tuple[int, int, int], int]:
        return {(rank.stage, rank.dp_i, rank.tp_i): rank.rank for rank in self.ranks}

    def rank_at(self, stage: int, dp_i: int, tp_i: int = 0) -> int:
        """The rank that holds a coordinate of a stage's grid."""
        return self._at[stage, dp_i, tp_i]

    def of_stage(self, stage: int) -> tuple[Rank, ...]:
        """Ranks of one stage, data-parallel rank by data-parallel rank."""
        members = (rank for rank in self.ranks if rank.stage == stage)
        return tuple(sorted(members, key=lambda rank: (rank.dp_i, rank.tp_i)))


def layout_of(fleet: Fleet, replica: ReplicaPlan) -> Layout:
    """The rank table of a replica. The host of the first stage's head comes first, so it holds rank 0."""
    slot_of: dict[str, int] = {}
    num_on_host: dict[str, int] = defaultdict(int)
    for known in fleet.devices:
        slot_of[known.device_id] = num_on_host[known.host_id]
        num_on_host[known.host_id] += 1
    coordinates = {
        device: (stage.index, dp_i, tp_i)
        for stage in replica.stages
        for dp_i, row in enumerate(stage.ranks)
        for tp_i, device in enumerate(row)
    }
    host_of = {device: fleet.device_by_id[device].host_id for device in coordinates}
    hosts = _host_order(replica, tuple(coordinates), host_of)
    ranks: list[Rank] = []
    for host in hosts:
        devices = sorted((d for d in coordinates if host_of[d] == host), key=slot_of.__getitem__)
        for local_rank, device in enumerate(devices):
            stage_i, dp_i, tp_i = coordinates[device]
            ranks.append(
                Rank(
                    rank=len(ranks),
                    host=host,
                    slot=slot_of[device],
                    local_rank=local_rank,
                    device=device,
                    stage=stage_i,
                    dp_i=dp_i,
                    tp_i=tp_i,
                )
            )
    return Layout(ranks=tuple(ranks))


def _host_order(replica: ReplicaPlan, devices: Sequence[str], host_of: dict[str, str]) -> tuple[str, ...]:
    head = replica.stages[0].head
    first = [host_of[head]] if head in host_of else []
    return tuple(dict.fromkeys([*first, *(host_of[device] for device in devices)]))
