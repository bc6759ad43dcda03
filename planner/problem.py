"""The placement problem, stated once: device classes, candidate clusters, modes, capacity rows, conditions.

Solvers and the referee start from a `Problem`; everything they may choose from is listed here. One
`BoundaryProblem` per administrative boundary, since training traffic never leaves a boundary (law 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from costmodels.fleet import Device, Fleet, Link
from costmodels.interface import Cluster, CostModel, Strategy
from costmodels.workload import Workload
from policies.policy import Policy


class ObjectiveKind(StrEnum):
    """What is optimised."""

    TOKENS = "tokens"
    PRICE = "price"
    STEP_TIME = "step-time"
    STEADY_STATE = "steady-state"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """`tokens_per_s_min` is the target under which `price` (USD per hour of devices in use) is minimised."""

    kind: ObjectiveKind = ObjectiveKind.TOKENS
    tokens_per_s_min: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """Interchangeable devices: equal in every figure, in one site, on hosts that hold equally many of them.

    `device` is a representative; `hosts` lists the device ids of each host.
    """

    class_i: int
    site_i: int
    device: Device
    hosts: tuple[tuple[str, ...], ...]

    @property
    def host_size(self) -> int:
        """Devices of this class on each of its hosts."""
        return len(self.hosts[0])

    @property
    def num_devices(self) -> int:
        """All devices of the class."""
        return len(self.hosts) * self.host_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`per_host` devices on each of `num_hosts` hosts of one class."""

    class_i: int
    per_host: int
    num_hosts: int

    @property
    def num_devices(self) -> int:
        """Devices this part takes."""
        return self.per_host * self.num_hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A candidate cluster with a strategy. `usage` counts devices taken per class, dedicated spares too."""

    template_i: int
    site_i: int
    parts: tuple[Part, ...]
    strategy: Strategy
    cluster: Cluster
    usage: tuple[tuple[int, int], ...]
    spare_class_i: int | None
    tier_i: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to run a step: micro-batches, their size, and what the executor asks of every stage.

    `executor` runs replicas of this mode. With `width` set every stage has that data-parallel degree.
    `templates` are the positions of the admissible candidate clusters.
    """

    mode_i: int
    num_micro_batches: int
    micro_batch_size: int
    executor: str
    width: int | None
    max_stages: int
    templates: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityRow:
    """`sum_c coefficient_c * devices used of class c <= limit` under a stable name."""

    name: str
    coefficients: tuple[tuple[int, float], ...]
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFormula:
    """Seconds per step: `fill * sum(busy + transfer) + repeats * max(busy, transfer) + [sync] max sync`.

    1F1B runs fill = 1 and repeats = micro-batches - 1; in steady state only the slowest stage or link counts.
    """

    fill: float
    repeats: float
    sync: bool


@dataclass(frozen=True, kw_only=True)
class BoundaryProblem:
    """Everything one boundary may choose from. Positions (`_i`) index the tuples held here."""

    name: str
    objective: Objective
    workload: Workload
    cost_model: CostModel
    site_ids: tuple[str, ...]
    links: tuple[tuple[Link | None, ...], ...]
    classes: tuple[DeviceClass, ...]
    templates: tuple[Template, ...]
    modes: tuple[Mode, ...]
    rows: tuple[CapacityRow, ...]
    tier_required: tuple[int, ...]
    replicas_min: int
    replicas_max: int | None
    speed_ratio_max: float | None

    @property
    def num_layers(self) -> int:
        """Layers of the chain."""
        return self.workload.num_layers

    @property
    def tokens_per_step(self) -> int:
        """Tokens one replica consumes per step, the same in every mode."""
        return self.workload.job.tokens_per_step

    def formula(self, mode: Mode) -> StepFormula:
        """How stage times combine into a step in this mode."""
        if self.objective.kind is ObjectiveKind.STEADY_STATE:
            return StepFormula(fill=0.0, repeats=float(mode.num_micro_batches), sync=False)
        return StepFormula(fill=1.0, repeats=float(mode.num_micro_batches - 1), sync=True)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All boundaries that take part, and what couples them."""

    fleet: Fleet
    workload: Workload
    policy: Policy
    cost_model: CostModel
    objective: Objective
    executor: str
    boundaries: tuple[BoundaryProblem, ...]
    usd_per_hour_max: float | None


def tier_required_by_layer(fleet: Fleet, policy: Policy, num_layers: int) -> tuple[int, ...]:
    """Lowest clearance that may hold each layer: the first sees tokens, the last sees labels (law 2)."""
    position = {tier: i for i, tier in enumerate(fleet.tiers)}
    floor = max(position[t] if t is not None else 0 for t in (policy.activations_tier, policy.weights_tier))
    required = [floor] * num_layers
    for layer_i, tier in ((0, policy.tokens_tier), (num_layers - 1, policy.labels_tier)):
        if tier is not None:
            required[layer_i] = max(required[layer_i], position[tier])
    for rule in policy.layer_tiers:
        for layer_i in range(max(0, rule.start), min(rule.stop, num_layers)):
            required[layer_i] = max(required[layer_i], position[rule.tier])
    return tuple(required)


def usage_of(parts: Sequence[Part], spare_class_i: int | None) -> tuple[tuple[int, int], ...]:
    """Devices taken per class, the dedicated spare included, ordered by class."""
    usage: dict[int, int] = {}
    for part in parts:
        usage[part.class_i] = usage.get(part.class_i, 0) + part.num_devices
    if spare_class_i is not None:
        usage[spare_class_i] = usage.get(spare_class_i, 0) + 1
    return tuple(sorted(usage.items()))
