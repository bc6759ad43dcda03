"""The plan: what runs where, how fast, how full, and how far from the best possible.

`plan.json` launches and checks alone: it embeds its inputs. Reading and writing need nothing but the standard
library. Field meanings and units are in docs/formats.md; field names are those of the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = "echelon/plan/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """A cluster, the layers [a, b) it holds and how it shares them.

    `devices` are in rank order, data-parallel rank by data-parallel rank. `ranks` is the grid [dp][tp] of
    device ids. `memory_bytes` holds per device its bytes by kind, with `limit` among them. `in_flight` counts
    micro-batches held. `transfer_s` carries one micro-batch to the next stage and back (0 for the last).
    """

    index: int
    layers: tuple[int, int]
    devices: tuple[str, ...]
    dp: int
    tp: int
    zero: int
    micro_batch_shares: tuple[int, ...]
    ranks: tuple[tuple[str, ...], ...]
    recompute: int
    in_flight: int
    head: str
    spares: tuple[str, ...]
    memory_bytes: Mapping[str, Mapping[str, float]]
    compute_s: float
    comm_s: float
    sync_s: float
    transfer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """An ordered chain of stages that holds one full copy of the model."""

    id: str
    executor: str
    tokens_per_s: float
    step_time_s: float
    micro_batches: int
    micro_batch_size: int
    stages: tuple[StagePlan, ...]
    tied_layers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A device left idle, and why (`spare`, `pooled-spare`, `not-needed`, `no-stage-fits`, ...)."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """What to run when any of `devices` is lost: a complete, checked replacement of the affected replica.

    `replacement` is None when the replica can't be restored; then it stops and the others go on.
    """

    devices: tuple[str, ...]
    replica: str
    replacement: ReplicaPlan | None
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryPlan:
    """Device-disjoint replicas of one boundary, its aggregator's host and standby, and its idle devices."""

    name: str
    aggregator: Mapping[str, str | None]
    replicas: tuple[ReplicaPlan, ...]
    excluded: tuple[Excluded, ...]
    failover: tuple[Failover, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNode:
    """`kind`: stage, aggregator, coordinator."""

    id: str
    kind: str
    boundary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEdge:
    """`kind`: activation, gradient, collective, masked-update, aggregate-delta or global-state."""

    source: str
    target: str
    kind: str
    crossing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How far from the best.

    `excess_frac` is bound/value - 1 when maximising, value/bound - 1 when minimising; None, like `bound`,
    where a boundary has no proof. `covers` says what the bound holds for (`candidates`). `proof` maps each
    boundary to its evidence, for instance `dual` (prices, boxes, cuts) or `closure` (re-enumeration); see
    docs/certificate.md. `stop` says why the solver stopped.
    """

    objective: str
    value: float
    bound: float | None
    excess_frac: float | None
    covers: str
    stop: str
    proof: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    limits: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked placement with its inputs and certificate. `settings` are what the problem was built with."""

    inputs: tuple[Mapping[str, Any], ...]
    job: str
    tokens_per_step: int
    settings: Mapping[str, Any]
    certificate: Certificate
    boundaries: tuple[BoundaryPlan, ...]
    nodes: tuple[GraphNode, ...] = ()
    edges: tuple[GraphEdge, ...] = ()
    schema: str = field(default=SCHEMA)

    @property
    def tokens_per_s(self) -> float:
        """Speed of all replicas together."""
        return sum(replica.tokens_per_s for boundary in self.boundaries for replica in boundary.replicas)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values; the graph's nodes and edges stand under `graph`."""
    data = asdict(plan)
    data["graph"] = {"nodes": data.pop("nodes"), "edges": data.pop("edges")}
    plain: dict[str, Any] = json.loads(json.dumps(data))
    return plain


def dump_plan(plan: Plan) -> str:
    """The text of plan.json: sorted keys, one trailing newline, the same bytes for the same plan."""
    return json.dumps(plan_to_json(plan), sort_keys=True, indent=1) + "\n"


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        InputError: unreadable, not JSON, or not of this schema.
    """
    from planner.plan_reading import plan_from_json, read_json

    return plan_from_json(read_json(path), place=str(path))
