"""A plan beside the problem it answers: replicas as solvers know them, devices by class, names for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from planner.former import former_replicas
from planner.objective import Replica
from planner.plan import BoundaryPlan, Plan
from planner.problem import BoundaryProblem, CapacityRow, DeviceClass, ObjectiveKind, Problem
from policies.errors import Fault, InputError

UNITS = {"tokens": "tokens/s", "steady-state": "tokens/s", "step-time": "tokens/s", "price": "USD/h"}
"""Unit of a boundary's own value and prices; where step time is minimised it is the speed of the replica."""


@dataclass(frozen=True, kw_only=True)
class BoundaryView:
    """One boundary of a plan. `replicas` stand in the order of `planned.replicas`."""

    whole: Problem
    problem: BoundaryProblem
    planned: BoundaryPlan
    replicas: tuple[Replica, ...]
    proof: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """The unit of the boundary's value and prices."""
        return UNITS[self.problem.objective.kind.value]

    @property
    def minimises(self) -> bool:
        """Whether the boundary's value is a price."""
        return self.problem.objective.kind is ObjectiveKind.PRICE

    @cached_property
    def class_of(self) -> dict[str, DeviceClass]:
        """The class of every device."""
        return {d: c for c in self.problem.classes for host in c.hosts for d in host}

    @cached_property
    def used(self) -> dict[int, int]:
        """Devices taken per class, dedicated spares included."""
        taken: dict[int, int] = {c.class_i: 0 for c in self.problem.classes}
        for replica in self.replicas:
            for class_i, count in replica.usage:
                taken[class_i] += count
        return taken

    def class_text(self, device_class: DeviceClass, count: int | None = None) -> str:
        """`4 A100-80GB in vault`, with the tier where the type has several there."""
        tiers = {
            c.device.tier_i
            for c in self.problem.classes
            if c.device.type_name == device_class.device.type_name and c.site_i == device_class.site_i
        }
        tier = f" (`{self.tier(device_class.device.tier_i)}`)" if len(tiers) > 1 else ""
        number = "" if count is None else f"{count} "
        return (
            f"{number}{device_class.device.type_name} in {self.problem.site_ids[device_class.site_i]}{tier}"
        )

    def tier(self, tier_i: int) -> str:
        """A tier's name."""
        return self.whole.fleet.tiers[tier_i]

    def row_text(self, row: CapacityRow) -> str:
        """A capacity row in the fleet's words."""
        if row.name == "price":
            return "USD per hour under price_max"
        classes = [self.problem.classes[class_i] for class_i, _ in row.coefficients]
        if row.name.startswith("pool"):
            device = classes[0].device
            return f"{device.type_name} cleared for `{self.tier(device.tier_i)}`, spares of the pool left out"
        return self.class_text(classes[0])


def views_of(plan: Plan, problem: Problem) -> tuple[BoundaryView, ...]:
    """Every boundary of a plan.

    Raises:
        InputError: `plan-misfit`, the plan is no plan of this problem.
    """
    views = []
    for boundary in problem.boundaries:
        planned = next((b for b in plan.boundaries if b.name == boundary.name), None)
        replicas = former_replicas(problem.fleet, boundary, plan)
        if planned is None or replicas is None:
            place = f"boundaries[{boundary.name}]"
            limit = "replicas that run on the inputs the plan embeds"
            raise InputError(
                "plan-misfit",
                f"the plan of boundary {boundary.name} doesn't fit its own inputs",
                faults=[Fault(place=place, value="missing or impossible", limit=limit)],
                hint="`echelon check` says what is wrong with it",
            )
        views.append(
            BoundaryView(
                whole=problem,
                problem=boundary,
                planned=planned,
                replicas=replicas,
                proof=plan.certificate.proof.get(boundary.name, {}),
            )
        )
    return tuple(views)


def plural(number: int, noun: str) -> str:
    """`1 device`, `2 devices`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
