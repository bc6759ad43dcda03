"""What keeping boundaries in step costs a plan: bytes over the links between them, and time.

Each boundary sends one aggregated change of all trained weights to the coordinator and gets the new global
ones back, fp32 both ways, once in a number of local steps (docs/formats.md, `sync`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from costmodels.fleet import Fleet
from planner.canonical import Inputs
from planner.plan import BoundaryPlan, Plan
from policies.sync import SyncMethod, SyncSettings, sync_settings

FP32_BYTES = 4
WAITING = (SyncMethod.DILOCO, SyncMethod.FEDPROX)
"""Methods whose participants stand still while an exchange is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundarySync:
    """One boundary's exchanges with a coordinator beside the aggregator of `coordinator`.

    A round are `local_steps` of its slowest replica, `round_s`. `payload_bytes` go up and as many come down,
    in `exchange_s` over its link, 0 beside the coordinator. `waiting_frac` is the share of its time that
    participants spend waiting: all of an exchange, or what of it outlasts a round where training goes on.
    """

    boundary: str
    coordinator: str
    local_steps: int
    round_s: float
    payload_bytes: int
    exchange_s: float
    waiting_frac: float

    @property
    def bytes_per_s(self) -> float:
        """Bytes over its link, both ways, on average."""
        return 2.0 * self.payload_bytes / (self.round_s + self.waiting_s) if self.exchange_s else 0.0

    @property
    def waiting_s(self) -> float:
        """Seconds of each round in which participants wait."""
        return self.round_s * self.waiting_frac / (1.0 - self.waiting_frac)


def sync_costs(plan: Plan, inputs: Inputs) -> tuple[BoundarySync, ...]:
    """What each boundary pays, with the coordinator where the worst of them waits least.

    Empty where nothing crosses a boundary, or where two aggregators have no link.
    """
    if len(plan.boundaries) < 2:
        return ()
    settings, _ = sync_settings(inputs.policy.sync)
    if settings is None:
        return ()
    workload = inputs.workload
    trained = sum(layer.trainable_params for layer in workload.layers)
    payload_bytes = FP32_BYTES * (trained - workload.layers[-1].shared_trainable_params)
    homes = {b.name: home for b in plan.boundaries if (home := _home(b, inputs.fleet)) is not None}
    if len(homes) < len(plan.boundaries):
        return ()
    choices = [
        found
        for boundary in plan.boundaries
        if (found := _with_coordinator(plan, inputs.fleet, homes, boundary.name, settings, payload_bytes))
    ]
    return min(choices, key=lambda each: max(b.exchange_s for b in each), default=())


def _home(boundary: BoundaryPlan, fleet: Fleet) -> str | None:
    """The site of a boundary's aggregator."""
    host = boundary.aggregator.get("host")
    return None if host is None else fleet.host_by_id[host].site_id


def _with_coordinator(
    plan: Plan,
    fleet: Fleet,
    homes: Mapping[str, str],
    coordinator: str,
    settings: SyncSettings,
    payload_bytes: int,
) -> tuple[BoundarySync, ...] | None:
    """Costs with the coordinator beside this boundary's aggregator; None where a link is missing."""
    found = []
    for boundary in plan.boundaries:
        exchange_s = _exchange_s(fleet, homes[boundary.name], homes[coordinator], payload_bytes)
        if exchange_s is None:
            return None
        slowest_s = max(replica.step_time_s for replica in boundary.replicas)
        round_s = settings.local_steps * slowest_s
        exposed_s = exchange_s if settings.method in WAITING else max(0.0, exchange_s - round_s)
        found.append(
            BoundarySync(
                boundary=boundary.name,
                coordinator=coordinator,
                local_steps=settings.local_steps,
                round_s=round_s,
                payload_bytes=payload_bytes,
                exchange_s=exchange_s,
                waiting_frac=exposed_s / (round_s + exposed_s),
            )
        )
    return tuple(found)


def _exchange_s(fleet: Fleet, home: str, other: str, payload_bytes: int) -> float | None:
    """Up and down between two sites, each with the link's latency; None without a link."""
    if home == other:
        return 0.0
    seconds = 0.0
    for ends in ((home, other), (other, home)):
        link = fleet.link_by_ends.get(ends)
        if link is None or link.bytes_per_s <= 0.0:
            return None
        seconds += link.latency_s + payload_bytes / link.bytes_per_s
    return seconds
