"""From a plan to what the simulator needs: each replica's stages, borders and links, by the cost model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from costmodels.fleet import Fleet, Link
from costmodels.interface import CostModel, Strategy
from costmodels.workload import JOINT, Workload
from executors.simulate.options import SimulationOptions, Transfers
from executors.simulate.pipeline import StepSetup
from executors.simulate.times import BorderTimes, StageTimes, TransferTimes, require_sound
from planner.candidates import cluster_of
from planner.execution import DEEPSPEED
from planner.plan import ReplicaPlan, StagePlan
from policies.errors import Fault, InputError

HINT = "`echelon check` on the plan lists all that is wrong with it; solve again from the inputs"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A replica's chain of stages as it is simulated; after a loss a replica runs another one."""

    replica: ReplicaPlan
    boundary: str
    setup: StepSetup

    @property
    def devices(self) -> frozenset[str]:
        """Every device that runs a rank."""
        return frozenset(d for stage in self.replica.stages for d in stage.devices)

    @property
    def links(self) -> frozenset[str]:
        """Links that other replicas may use too."""
        ways = (way for border in self.setup.borders for way in (border.forward, border.backward))
        return frozenset(way.link for way in ways if way.link)


@dataclass(frozen=True, kw_only=True)
class ChainPricer:
    """Prices replicas on their real devices.

    `stage_times` replaces the cost model's figures of replicas by their id, for instance by measured ones.
    """

    fleet: Fleet
    workload: Workload
    model: CostModel
    options: SimulationOptions
    stage_times: Mapping[str, Sequence[StageTimes]]

    def chain(self, replica: ReplicaPlan, boundary: str) -> Chain:
        """The replica ready to be simulated.

        Raises:
            InputError: `simulation-schedule` for whole micro-batches sent to single ranks; `plan-misfit`
                where a stage or link of the plan can't be; `simulation-times` for unsound times.
        """
        if self.workload.job.schedule != JOINT:
            raise InputError(
                "simulation-schedule",
                f"the simulator runs the schedule `{JOINT}`, the job has `{self.workload.job.schedule}`",
                hint=f"set the job's schedule to `{JOINT}`",
            )
        self._require_known(replica)
        given = self.stage_times.get(replica.id)
        stages = tuple(given) if given is not None else tuple(self._stage(replica, s) for s in replica.stages)
        if len(stages) != len(replica.stages):
            value, limit = f"{len(stages)} stages", f"{len(replica.stages)} stages"
            fault = Fault(place=f"stage_times[{replica.id}]", value=value, limit=limit)
            raise InputError("simulation-times", "times of other stages were given", faults=[fault])
        mode = self.options.transfers
        is_auto = mode is Transfers.AUTO
        setup = StepSetup(
            stages=stages,
            borders=tuple(self._border(replica, a, b) for a, b in pairwise(replica.stages)),
            num_micro_batches=replica.micro_batches,
            schedule=self.options.schedule,
            blocking=mode is Transfers.BLOCKING or (is_auto and replica.executor == DEEPSPEED),
            receives_ahead=1 if is_auto else 0 if mode is Transfers.ON_RECEIVE else None,
        )
        require_sound(setup.stages, setup.borders, setup.num_micro_batches)
        return Chain(replica=replica, boundary=boundary, setup=setup)

    def _require_known(self, replica: ReplicaPlan) -> None:
        unknown = [
            Fault(
                place=f"{replica.id}: stages[{stage.index}].devices",
                value=device,
                limit="a device of the fleet",
            )
            for stage in replica.stages
            for device in (*stage.devices, stage.head)
            if device not in self.fleet.device_by_id
        ]
        if unknown:
            raise InputError("plan-misfit", "the plan doesn't fit its fleet", faults=unknown, hint=HINT)

    def _stage(self, replica: ReplicaPlan, stage: StagePlan) -> StageTimes:
        """Seconds of a stage. Exposed communication is split between the passes as their computation is.

        Synchronisation and optimiser, which the cost model gives as one figure, count as update: the gradient
        norm needs every stage.
        """
        members = tuple(self.fleet.device_by_id[d] for d in stage.devices)
        cost = self.model.stage(
            cluster_of(self.fleet, self.fleet.site_of(members[0]), members),
            stage.layers,
            Strategy(dp=stage.dp, tp=stage.tp, zero=stage.zero),
            replica.micro_batch_size,
            stage.in_flight,
        )
        if cost is None:
            found = f"layers [{stage.layers[0]}, {stage.layers[1]}) on {len(members)} devices"
            limit = f"a stage that cost model `{self.model.name}` can price"
            fault = Fault(place=f"{replica.id}: stages[{stage.index}]", value=found, limit=limit)
            raise InputError("plan-misfit", "a stage of the plan can't be priced", faults=[fault], hint=HINT)
        compute_s = cost.forward_s + cost.backward_s
        scale = cost.busy_s / compute_s if compute_s > 0.0 else 1.0
        return StageTimes(
            forward_s=cost.forward_s * scale, backward_s=cost.backward_s * scale, update_s=cost.sync_s
        )

    def _border(self, replica: ReplicaPlan, source: StagePlan, target: StagePlan) -> BorderTimes:
        """Transfers between the heads of two stages; the way back takes its own link where there is one."""
        there = self._link(replica, source, target)
        back = self.fleet.link_by_ends.get((there.target_site_id, there.source_site_id), there)
        return BorderTimes(
            forward=self._way(replica, there, source, target, target.layers[0]),
            backward=self._way(replica, back, target, source, target.layers[0]),
        )

    def _link(self, replica: ReplicaPlan, source: StagePlan, target: StagePlan) -> Link:
        devices = self.fleet.device_by_id
        ends = tuple(self.fleet.site_of(devices[stage.head]).site_id for stage in (source, target))
        link = self.fleet.link_by_ends.get((ends[0], ends[1]))
        if link is None:
            place = f"{replica.id}: stages[{source.index}]"
            limit = "a link to the next stage's site"
            fault = Fault(place=place, value=f"no link from {ends[0]} to {ends[1]}", limit=limit)
            raise InputError("plan-misfit", "two stages have no link", faults=[fault], hint=HINT)
        return link

    def _way(
        self, replica: ReplicaPlan, link: Link, source: StagePlan, target: StagePlan, border: int
    ) -> TransferTimes:
        """One direction: half of the cost model's round trip over the link that leads there."""
        total_s = self.model.transfer_s(link, border, replica.micro_batch_size) / 2.0
        latency_s = min(link.latency_s, total_s)
        return TransferTimes(
            occupied_s=total_s - latency_s, latency_s=latency_s, link=self._name(source, target)
        )

    def _name(self, source: StagePlan, target: StagePlan) -> str:
        """What a transfer queues for: the link between two sites, or the sending host's port to its fabric.

        Inside a host nothing is shared.
        """
        sender, receiver = (self.fleet.device_by_id[stage.head] for stage in (source, target))
        if sender.host_id == receiver.host_id:
            return ""
        sites = [self.fleet.site_of(device).site_id for device in (sender, receiver)]
        return f"{sites[0]} -> {sites[1]}" if sites[0] != sites[1] else f"{sender.host_id} out"
