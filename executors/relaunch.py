"""Carries a plan on after losses: the next replacement, from the newest checkpoint, in the same folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Protocol

from costmodels.fleet import Fleet
from executors.base import LaunchSpec
from executors.events import Event, Kind, now
from executors.failover import Choice, boundary_of, devices_of, next_replica
from executors.outcome import Deadlines, LaunchOutcome, ReplicaOutcome, Status
from executors.remote import Transport
from executors.supervisor import OnEvent, supervise
from planner.plan import Plan, ReplicaPlan
from policies.errors import EchelonError

PROCESSES_LOST = ("host-lost", "command-lost")
MEASURED_STEPS = 5
"""So many steps after a failover give its measured speed; the first of them is left out."""


class Prepare(Protocol):
    """Prepares a replacement to go on from the newest checkpoint in the replica's folder."""

    def __call__(
        self, replica: ReplicaPlan, *, boundary: str, failover: int | None, resume: bool, attempt: int
    ) -> LaunchSpec:
        """The specification of start number `attempt`; `failover` is the entry, None as planned."""
        ...


def run_with_failover(
    plan: Plan,
    fleet: Fleet,
    specs: Sequence[LaunchSpec],
    prepare: Prepare,
    transport: Transport,
    on_event: OnEvent,
    *,
    deadlines: Deadlines | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    max_failovers: int = 3,
    on_this_machine: bool = False,
) -> LaunchOutcome:
    """Run replicas to their end; a loss is followed by the plan's failover entry, `max_failovers` times each.

    `on_this_machine` says that every host is the one that runs this. Then a host whose agent or command was
    ended has lost its processes and nothing else: the replica starts again on the same devices.
    Events `failover` say what was lost and what takes over, with steps lost and speeds planned before and
    after; `resumed` adds what was measured.

    Raises:
        ExecutorFailedError: what `supervise` raises.
    """
    failovers = _Failovers(plan, fleet, specs, prepare, on_event, max_failovers, on_this_machine)
    return supervise(
        specs,
        transport,
        failovers.on_event,
        deadlines=deadlines,
        should_stop=should_stop,
        on_outcome=failovers.on_outcome,
    )


@dataclass(slots=True, kw_only=True)
class _Resumption:
    """A start after a loss, until its speed is known."""

    about: dict[str, Any]
    from_step: int
    resumed_step: int | None = None
    speeds: list[float] = field(default_factory=list)


class _Failovers:
    def __init__(
        self,
        plan: Plan,
        fleet: Fleet,
        specs: Sequence[LaunchSpec],
        prepare: Prepare,
        on_event: OnEvent,
        max_failovers: int,
        on_this_machine: bool,
    ) -> None:
        self._plan, self._fleet, self._prepare, self._on_event = plan, fleet, prepare, on_event
        self._max_failovers, self._on_this_machine = max_failovers, on_this_machine
        self._running = {spec.replica.id: spec.replica for spec in specs}
        self._entries: dict[str, int | None] = dict.fromkeys(self._running)
        self._lost: set[str] = set()
        self._resumptions: dict[str, _Resumption] = {}

    def on_event(self, event: Event) -> None:
        """Pass an event on, and measure replicas that were resumed."""
        resumption = self._resumptions.get(event.replica)
        if resumption is not None and event.kind is Kind.OUTCOME:
            self._tell_resumed(event.replica, resumption)
        self._on_event(event)
        if resumption is None:
            return
        if event.kind is Kind.READY:
            resumption.resumed_step = int(event.data.get("step", 0))
        elif event.kind is Kind.STEP and event.data.get("tokens"):
            resumption.speeds.append(event.data["tokens"] / event.data["wall_s"])
            if len(resumption.speeds) >= MEASURED_STEPS:
                self._tell_resumed(event.replica, resumption)

    def on_outcome(self, outcome: ReplicaOutcome) -> LaunchSpec | ReplicaOutcome:
        """What to start after this outcome, or the outcome with the reason why nothing is."""
        following: LaunchSpec | ReplicaOutcome = outcome
        if outcome.status is Status.LOST:
            following = self._after_loss(outcome)
        if isinstance(following, LaunchSpec):
            self._running[outcome.replica] = following.replica
        else:
            del self._running[outcome.replica]
        return following

    def _after_loss(self, outcome: ReplicaOutcome) -> LaunchSpec | ReplicaOutcome:
        if self._on_this_machine and outcome.code in PROCESSES_LOST:
            return self._again(outcome)
        on_lost_hosts = (d.device_id for d in self._fleet.devices if d.host_id in outcome.lost_hosts)
        self._lost |= {*outcome.lost_devices, *on_lost_hosts}
        if outcome.attempt > self._max_failovers:
            return _with_reason(outcome, f"{self._max_failovers} failovers were allowed and are used up")
        if not self._lost & devices_of(self._running[outcome.replica]):
            return _with_reason(outcome, "no device of the replica is lost, so none has to be replaced")
        in_use = {d for name, r in self._running.items() if name != outcome.replica for d in devices_of(r)}
        boundary = boundary_of(self._plan, outcome.replica)
        choice = next_replica(self._plan, boundary, outcome.replica, self._lost, in_use=in_use)
        if choice.replacement is None or choice.entry is None:
            return _with_reason(outcome, choice.reason)
        return self._prepared(outcome, choice, choice.replacement, sorted(self._lost))

    def _again(self, outcome: ReplicaOutcome) -> LaunchSpec | ReplicaOutcome:
        """The same replica once more: its devices are there, its processes are not."""
        if outcome.attempt > self._max_failovers:
            return _with_reason(outcome, f"{self._max_failovers} failovers were allowed and are used up")
        running = self._running[outcome.replica]
        reason = "its devices are on this machine and still there"
        choice = Choice(replacement=running, entry=self._entries[outcome.replica], reason=reason)
        return self._prepared(outcome, choice, running, [])

    def _prepared(
        self, outcome: ReplicaOutcome, choice: Choice, replacement: ReplicaPlan, lost: Sequence[str]
    ) -> LaunchSpec | ReplicaOutcome:
        try:
            spec = self._prepare(
                replacement,
                boundary=boundary_of(self._plan, outcome.replica),
                failover=choice.entry,
                resume=True,
                attempt=outcome.attempt + 1,
            )
        except EchelonError as error:
            return _with_reason(outcome, f"{choice.reason} can't be started: {error.message}")
        self._entries[outcome.replica] = choice.entry
        self._tell_failover(outcome, choice, replacement, lost)
        return spec

    def _tell_failover(
        self, outcome: ReplicaOutcome, choice: Choice, replacement: ReplicaPlan, lost: Sequence[str]
    ) -> None:
        before = self._running[outcome.replica]
        about = {
            "attempt": outcome.attempt + 1,
            "lost": list(lost),
            "entry": choice.entry,
            "planned_tokens_per_s": {"before": before.tokens_per_s, "after": replacement.tokens_per_s},
            "measured_tokens_per_s": {"before": outcome.tokens_per_s, "after": None},
        }
        self._resumptions[outcome.replica] = _Resumption(about=about, from_step=outcome.step)
        steps = _steps(outcome.step, outcome.checkpoint_step)
        reason = f"{outcome.message}; {choice.reason}"
        self._on_event(replace(now(Kind.FAILOVER, **about, **steps, reason=reason), replica=outcome.replica))

    def _tell_resumed(self, replica: str, resumption: _Resumption) -> None:
        """What came of a failover: steps that are done twice, and the speed measured since."""
        del self._resumptions[replica]
        if resumption.resumed_step is None:
            return
        speeds = resumption.speeds[1:] or resumption.speeds
        measured = resumption.about["measured_tokens_per_s"] | {"after": median(speeds) if speeds else None}
        about = resumption.about | {"measured_tokens_per_s": measured}
        steps = _steps(resumption.from_step, resumption.resumed_step)
        self._on_event(replace(now(Kind.RESUMED, **about, **steps), replica=replica))


def _steps(from_step: int, resumed_step: int) -> dict[str, int]:
    return {
        "from_replica_step": from_step,
        "resumed_step": resumed_step,
        "lost_steps": max(0, from_step - resumed_step),
    }


def _with_reason(outcome: ReplicaOutcome, reason: str) -> ReplicaOutcome:
    return replace(outcome, message=f"{outcome.message}; not resumed: {reason}")
