"""Stage times out of a launch's report, so that a replay starts from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from costmodels.fleet import Fleet
from executors.layout import layout_of
from executors.simulate.times import StageTimes
from planner.plan import Plan, ReplicaPlan
from policies.errors import Fault, InputError

SCHEMA = "echelon/report/1"
HINT = "give the report.json that a launch of this plan wrote for this replica"


def reported_stage_times(
    plan: Plan, fleet: Fleet, report: Mapping[str, Any], *, place: str = "report", figure: str = "median"
) -> tuple[str, tuple[StageTimes, ...]]:
    """The replica that a report is of, and seconds of its stages: `figure` is `median` or `best` over steps.

    Passes take as long as on the slowest rank of their stage. Waiting counts as synchronisation in a report,
    so the rank of the replica that spent least on it tells what it takes; the optimiser is the slowest
    rank's.

    Raises:
        InputError: `simulation-report` with every fault: another schema, no replica of this plan, other
            devices, figures that aren't there.
    """
    faults: list[Fault] = []
    if report.get("schema") != SCHEMA:
        raise _refused(Fault(place=f"{place}: schema", value=repr(report.get("schema"))[:60], limit=SCHEMA))
    replicas = {replica.id: replica for boundary in plan.boundaries for replica in boundary.replicas}
    name = report.get("replica")
    if not isinstance(name, str) or name not in replicas:
        limit = f"one of {', '.join(list(replicas)[:8])}"
        raise _refused(Fault(place=f"{place}: replica", value=repr(name)[:60], limit=limit))
    replica = replicas[name]
    _require_same_devices(replica, report, place, faults)
    ranks = report.get("ranks")
    world = layout_of(fleet, replica).world_size
    if not isinstance(ranks, list) or len(ranks) != world:
        found = f"{len(ranks)} ranks" if isinstance(ranks, list) else repr(ranks)[:60]
        faults.append(Fault(place=f"{place}: ranks", value=found, limit=f"{world} ranks"))
    if faults:
        raise _refused(*faults)
    assert isinstance(ranks, list)
    return name, _stage_times(fleet, replica, ranks, figure, place)


def _require_same_devices(
    replica: ReplicaPlan, report: Mapping[str, Any], place: str, faults: list[Fault]
) -> None:
    stated = report.get("stages")
    found = [
        (tuple(stage.get("devices", ())), tuple(stage.get("layers", ())))
        for stage in (stated if isinstance(stated, list) else ())
        if isinstance(stage, Mapping)
    ]
    if found != [(stage.devices, stage.layers) for stage in replica.stages]:
        value = f"{len(found)} stages with other layers or devices"
        faults.append(
            Fault(place=f"{place}: stages", value=value, limit=f"those of {replica.id} in the plan")
        )


def _stage_times(
    fleet: Fleet, replica: ReplicaPlan, ranks: Sequence[Any], figure: str, place: str
) -> tuple[StageTimes, ...]:
    faults: list[Fault] = []

    def seconds(rank: int, kind: str) -> float:
        """Wall seconds per step that a rank spent on a kind of work; only forward passes must be there."""
        try:
            kinds = ranks[rank]["kinds"]
            has = kind in kinds or kind == "forward"
            value = float(kinds[kind]["wall_s"][figure]) if has else 0.0
        except (TypeError, KeyError, ValueError):
            value = -1.0
        if not (isfinite(value) and value >= 0.0):
            where = f"{place}: ranks[{rank}].kinds.{kind}.wall_s.{figure}"
            faults.append(Fault(place=where, value="missing or no time", limit="seconds of 0 or more"))
        return value

    layout = layout_of(fleet, replica)
    sync_s = min(seconds(rank.rank, "sync") for rank in layout.ranks)
    times = []
    for stage in replica.stages:
        members = [rank.rank for rank in layout.of_stage(stage.index)]
        forward_s, backward_s, update_s = (
            max(seconds(rank, kind) for rank in members) for kind in ("forward", "backward", "optimiser")
        )
        count = replica.micro_batches
        times.append(
            StageTimes(forward_s=forward_s / count, backward_s=backward_s / count, update_s=sync_s + update_s)
        )
    if faults:
        raise _refused(*faults)
    return tuple(times)


def _refused(*faults: Fault) -> InputError:
    return InputError("simulation-report", "the report doesn't belong to this plan", faults=faults, hint=HINT)
