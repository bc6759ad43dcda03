"""Whether a plan fits its fleet well enough to be drawn; whether it is true is for the referee."""

from __future__ import annotations

from collections.abc import Iterator

from costmodels.fleet import Fleet
from planner.faults import show
from planner.plan import BoundaryPlan, Plan, StagePlan
from policies.errors import Fault


def plan_faults(plan: Plan, fleet: Fleet, num_layers: int) -> list[Fault]:
    """Everything about the plan that leaves nothing to draw, in the plan's order."""
    faults: list[Fault] = []
    seen: set[str] = set()
    names: set[str] = set()
    for i, boundary in enumerate(plan.boundaries):
        place = f"boundaries[{i}]"
        if boundary.name not in fleet.boundaries or boundary.name in names:
            limit = "each boundary of the fleet at most once"
            faults.append(Fault(place=f"{place}.name", value=show(boundary.name), limit=limit))
            continue
        names.add(boundary.name)
        faults += _boundary_faults(boundary, fleet, num_layers, place, seen)
    return faults


def _boundary_faults(
    boundary: BoundaryPlan, fleet: Fleet, num_layers: int, place: str, seen: set[str]
) -> Iterator[Fault]:
    """Faults of one boundary; `seen` collects the devices met so far."""
    spares: list[tuple[str, str]] = []
    for r, replica in enumerate(boundary.replicas):
        where = f"{place}.replicas[{r}]"
        if not replica.stages:
            yield Fault(place=f"{where}.stages", value="none", limit="at least one stage")
        for s, stage in enumerate(replica.stages):
            if stage.index != s:
                yield Fault(place=f"{where}.stages[{s}].index", value=show(stage.index), limit=str(s))
            yield from _stage_faults(stage, num_layers, f"{where}.stages[{s}]")
            yield from _device_faults(
                stage.devices, fleet, boundary.name, f"{where}.stages[{s}].devices", seen
            )
            spares += [(device, f"{where}.stages[{s}].spares") for device in stage.spares]
    for device, where in spares:
        yield from _device_faults((device,), fleet, boundary.name, where, seen)
    held = {device for device, _ in spares}
    rest = tuple(entry.device for entry in boundary.excluded if entry.device not in held)
    yield from _device_faults(rest, fleet, boundary.name, f"{place}.excluded", seen)


def _stage_faults(stage: StagePlan, num_layers: int, place: str) -> Iterator[Fault]:
    if not 0 <= stage.layers[0] < stage.layers[1] <= num_layers:
        found = f"[{stage.layers[0]}, {stage.layers[1]})"
        yield Fault(place=f"{place}.layers", value=found, limit=f"[a, b) with 0 <= a < b <= {num_layers}")
    if not stage.devices:
        yield Fault(place=f"{place}.devices", value="none", limit="at least one device")
    if stage.compute_s < 0.0 or stage.comm_s < 0.0:
        yield Fault(place=f"{place}.compute_s", value=show(stage.compute_s), limit="seconds of 0 or more")
    for device in stage.devices:
        kinds = stage.memory_bytes.get(device, {})
        if kinds.get("limit", 0.0) <= 0.0 or min(kinds.values()) < 0.0:
            limit = "bytes by kind, with a limit above 0"
            yield Fault(place=f"{place}.memory_bytes[{show(device)}]", value=show(kinds), limit=limit)
    if stage.head not in stage.devices:
        yield Fault(place=f"{place}.head", value=show(stage.head), limit="a device of the stage")


def _device_faults(
    devices: tuple[str, ...], fleet: Fleet, boundary: str, place: str, seen: set[str]
) -> Iterator[Fault]:
    for device_id in devices:
        device = fleet.device_by_id.get(device_id)
        if device is None or fleet.boundary_of(device) != boundary:
            yield Fault(place=place, value=show(device_id), limit=f"devices of boundary {boundary}")
        elif device_id in seen:
            yield Fault(place=place, value=show(device_id), limit="each device once in the whole plan")
        seen.add(device_id)
