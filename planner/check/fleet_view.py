"""One boundary as the referee sees it: the class of a real device, the cluster that several of them form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from costmodels.fleet import Device, Fleet
from costmodels.interface import Strategy
from costmodels.workload import ROUND_ROBIN
from planner.problem import BoundaryProblem, Mode, Part, Template


@dataclass(frozen=True, kw_only=True)
class BoundaryView:
    """Lookups over one boundary's devices, classes, candidate clusters and modes."""

    fleet: Fleet
    problem: BoundaryProblem
    tensor_parallel_across_hosts: bool = False

    @cached_property
    def class_of(self) -> dict[str, int]:
        """Class position by device id; only devices of this boundary are in it."""
        return {
            device_id: device_class.class_i
            for device_class in self.problem.classes
            for host in device_class.hosts
            for device_id in host
        }

    @cached_property
    def host_ids(self) -> set[str]:
        """Every host of the boundary, with or without devices."""
        sites = set(self.problem.site_ids)
        return {host.host_id for host in self.fleet.hosts if host.site_id in sites}

    @cached_property
    def templates(self) -> dict[tuple[tuple[Part, ...], Strategy], Template]:
        """Candidate clusters by their parts, ordered by class, and their strategy."""
        return {
            (_ordered(template.parts), template.strategy): template for template in self.problem.templates
        }

    @cached_property
    def template_sets(self) -> dict[int, frozenset[int]]:
        """Admissible candidate clusters by mode."""
        return {mode.mode_i: frozenset(mode.templates) for mode in self.problem.modes}

    def parts_of(self, devices: Sequence[Device]) -> tuple[Part, ...] | None:
        """The parts that real devices form; None when a class lends its hosts unequal numbers of devices."""
        per_host: dict[int, Counter[str]] = {}
        for device in devices:
            per_host.setdefault(self.class_of[device.device_id], Counter())[device.host_id] += 1
        parts = []
        for class_i, counts in per_host.items():
            if len(set(counts.values())) != 1:
                return None
            parts.append(Part(class_i=class_i, per_host=next(iter(counts.values())), num_hosts=len(counts)))
        return _ordered(parts)

    def template_of(self, devices: Sequence[Device], strategy: Strategy) -> Template | None:
        """The candidate cluster that real devices realise, or None when the list has no such cluster."""
        parts = self.parts_of(devices)
        return None if parts is None else self.templates.get((parts, strategy))

    def modes_of(self, micro_batches: int, micro_batch_size: int, executor: str) -> list[Mode]:
        """Modes with these settings."""
        return [
            mode
            for mode in self.problem.modes
            if (mode.num_micro_batches, mode.micro_batch_size, mode.executor)
            == (micro_batches, micro_batch_size, executor)
        ]


def _ordered(parts: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(sorted(parts, key=lambda part: part.class_i))


def in_flight(schedule: str, num_micro_batches: int, widths: Sequence[int]) -> int:
    """Micro-batches each device of the first of these stages holds, by the widths of it and all later stages.

    `joint`: every rank works on every micro-batch, so min(micro-batches, stages left). `round-robin`: each
    rank gets every dp-th micro-batch, so ceil(min(micro-batches, sum of widths from here on) / own width).
    """
    if schedule == ROUND_ROBIN:
        return -(-min(num_micro_batches, sum(widths)) // widths[0])
    return min(num_micro_batches, len(widths))
