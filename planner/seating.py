"""Free devices of one boundary, host by host, and candidate clusters seated on them one at a time.

Unlike a whole plan's packing, what is free here need not be multiples of anything, so seating may fail.

Legend of array suffixes: T candidate clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from costmodels.fleet import Fleet
from planner.packing_hosts import reliability_s
from planner.problem import BoundaryProblem, Part, Template

BoolArray = NDArray[np.bool_]
FreeHosts = Mapping[int, Sequence[tuple[str, ...]]]


def free_hosts(problem: BoundaryProblem, free: Set[str]) -> FreeHosts:
    """Free devices of every host, per class, in the order of the class."""
    return {c.class_i: _left_on(c.hosts, free) for c in problem.classes}


def _left_on(hosts: Sequence[tuple[str, ...]], free: Set[str]) -> list[tuple[str, ...]]:
    return [tuple(d for d in host if d in free) for host in hosts]


class Stock:
    """The idle devices of a boundary, and what changes when a few devices come and go."""

    def __init__(self, problem: BoundaryProblem, idle: frozenset[str]) -> None:
        self.idle = idle
        self._problem = problem
        self._class_of = {d: c.class_i for c in problem.classes for host in c.hosts for d in host}
        self._hosts = free_hosts(problem, idle)
        self._able_T = np.array([seatable(t, self._hosts) for t in problem.templates], dtype=bool)
        self._with_class: dict[int, list[int]] = {c.class_i: [] for c in problem.classes}
        for template in problem.templates:
            for class_i in {part.class_i for part in template.parts}:
                self._with_class[class_i].append(template.template_i)

    def hosts(self, free: Set[str]) -> FreeHosts:
        """As `free_hosts`; quick where `free` is nearly what is idle."""
        classes = self._problem.classes
        return {**self._hosts, **{i: _left_on(classes[i].hosts, free) for i in self._changed(free)}}

    def able(self, free: Set[str]) -> BoolArray:
        """Which candidate clusters, by position, can be seated on these devices."""
        hosts, able_T = self.hosts(free), self._able_T.copy()
        for class_i in self._changed(free):
            for template_i in self._with_class[class_i]:
                able_T[template_i] = seatable(self._problem.templates[template_i], hosts)
        return able_T

    def _changed(self, free: Set[str]) -> set[int]:
        """Classes with more or fewer free devices than idle ones."""
        return {self._class_of[d] for d in self.idle ^ free}


def seatable(template: Template, hosts: FreeHosts) -> bool:
    """Whether enough hosts have enough free devices for every part of a cluster."""
    return all(
        sum(len(host) >= part.per_host for host in hosts[part.class_i]) >= part.num_hosts
        for part in template.parts
    )


def seat_template(
    fleet: Fleet, template: Template, hosts: FreeHosts, *, before: Sequence[str] = ()
) -> tuple[str, ...] | None:
    """Devices for a cluster in rank order; None when the free hosts don't allow it.

    Hosts that can give most of the devices the stage had `before` come first, then the fullest, then by
    position.
    """
    taken: list[str] = []
    for part in template.parts:
        chosen = _seat_part(fleet, part, hosts[part.class_i], frozenset(before))
        if chosen is None:
            return None
        taken += chosen
    return tuple(taken)


def _seat_part(
    fleet: Fleet, part: Part, hosts: Sequence[tuple[str, ...]], before: frozenset[str]
) -> list[str] | None:
    able = [i for i, host in enumerate(hosts) if len(host) >= part.per_host]
    if len(able) < part.num_hosts:
        return None

    def merit(i: int) -> tuple[int, int, float, int]:
        kept = sum(d in before for d in hosts[i])
        steady = max(reliability_s(fleet.device_by_id[d]) for d in hosts[i])
        return (-min(kept, part.per_host), len(hosts[i]), -steady, i)

    taken: list[str] = []
    for i in sorted(able, key=merit)[: part.num_hosts]:
        position = {d: k for k, d in enumerate(hosts[i])}
        wanted = sorted(
            hosts[i], key=lambda d: (d not in before, -reliability_s(fleet.device_by_id[d]), position[d])
        )
        taken += sorted(wanted[: part.per_host], key=position.__getitem__)
    return taken
