"""Starts replicas through one agent per host, watches them, and ends what has to end.

Several replicas run side by side; the end of one leaves the others alone, unless a host refuses to start at
all. Whatever happens here, agents see their input end and end everything by themselves.
"""

from __future__ import annotations

import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from executors.agent_link import AgentLink, unreachable
from executors.agent_spec import AgentSpec
from executors.base import Command, LaunchSpec
from executors.events import Event, Kind, note, now
from executors.locks import LAUNCH_LOCK, FolderLock
from executors.outcome import Deadlines, LaunchOutcome, ReplicaOutcome, Status, stopped
from executors.ports import meeting_of, require_own_ports
from executors.remote import Style, Transport
from executors.watch import ReplicaWatch, ranks_of

OnEvent = Callable[[Event], None]
OnOutcome = Callable[[ReplicaOutcome], LaunchSpec | ReplicaOutcome]

_WAIT_S = 0.1


def supervise(
    specs: Sequence[LaunchSpec],
    transport: Transport,
    on_event: OnEvent,
    *,
    deadlines: Deadlines | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_outcome: OnOutcome = lambda outcome: outcome,
    protocol: bool = True,
    lock: str = LAUNCH_LOCK,
) -> LaunchOutcome:
    """Run replicas to their end. Ctrl-C, SIGTERM or `should_stop` ends all of them in order.

    Args:
        specs: one per replica, ready to start.
        transport: how to reach the hosts.
        on_event: gets every event but heartbeats, with its host and replica.
        deadlines: how long to wait for what.
        should_stop: asked several times a second.
        on_outcome: gets the outcome of each start that wasn't stopped, and returns what to start instead, in
            the same folder, or the outcome as it is to stand.
        protocol: whether ranks say `ready` and `finished`, as our own worker does; own scripts may not.
        lock: the file by which run folders are held; one launch per host needs one each.

    Raises:
        ExecutorFailedError: `folder-in-use`, `port-taken`, `remote-shell-missing`, before anything runs.
        Exception: whatever `on_event` or `on_outcome` raise, after everything has ended.
    """
    require_own_ports(specs)
    with ExitStack() as stack:
        for folder in dict.fromkeys(spec.folder for spec in specs):
            stack.callback(FolderLock(Path(folder), lock).release)
        wishes = stack.enter_context(_interrupts())
        supervisor = _Supervisor(transport, on_event, on_outcome, deadlines or Deadlines(), protocol)
        stack.callback(supervisor.close)
        for spec in specs:
            supervisor.start(spec)
        while supervisor.busy:
            supervisor.wait()
            supervisor.advance()
            if wishes.stop or should_stop():
                supervisor.stop()
        return LaunchOutcome(replicas=tuple(supervisor.outcomes[spec.replica.id] for spec in specs))


@dataclass(slots=True, kw_only=True)
class _Run:
    """One start of a replica: its agents and what is known of them."""

    spec: LaunchSpec
    attempt: int
    begun_s: float
    watch: ReplicaWatch
    links: list[AgentLink] = field(default_factory=list)
    beaten_s: float = 0.0
    outcome: ReplicaOutcome | None = None
    deadline_s: float = 0.0


class _Supervisor:
    def __init__(
        self,
        transport: Transport,
        on_event: OnEvent,
        on_outcome: OnOutcome,
        deadlines: Deadlines,
        protocol: bool,
    ) -> None:
        self._transport, self._on_event, self._on_outcome = transport, on_event, on_outcome
        self._deadlines, self._protocol = deadlines, protocol
        self._runs: list[_Run] = []
        self._stopping = False
        self.outcomes: dict[str, ReplicaOutcome] = {}

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._runs)

    def start(self, spec: LaunchSpec, attempt: int = 1, checkpoint: tuple[int, str] = (0, "")) -> None:
        """Start the agents of a replica."""
        now_s = time.monotonic()
        watch = ReplicaWatch(
            spec,
            self._deadlines,
            now_s,
            attempt=attempt,
            protocol=self._protocol and spec.reports,
            checkpoint=checkpoint,
        )
        run = _Run(spec=spec, attempt=attempt, begun_s=now_s, watch=watch)
        self._runs.append(run)
        self._tell(run, now(Kind.LAUNCHED, **_about(spec, attempt)))
        for command in spec.commands:
            run.links.append(AgentLink(self._transport, self._agent_spec(spec, command)))

    def wait(self) -> None:
        """Until an agent says something, for a tenth of a second at most."""
        poll = select.poll()
        for run in self._runs:
            for link in run.links:
                if not link.closed and link.fileno() >= 0:
                    poll.register(link.fileno(), select.POLLIN)
        poll.poll(_WAIT_S * 1000)

    def advance(self) -> None:
        """Take what agents say, and act on it."""
        for run in tuple(self._runs):
            self._pump(run)
            if run.outcome is None:
                verdict = run.watch.verdict(time.monotonic())
                if verdict is not None:
                    self._end(run, verdict)
            if run.outcome is not None and self._has_ended(run):
                self._conclude(run, run.outcome)

    def stop(self) -> None:
        """End everything in order, because the user wishes so."""
        self._stopping = True
        for run in self._runs:
            if run.outcome is None:
                self._end(run, stopped(run.watch.so_far()))

    def close(self) -> None:
        """Leave nothing running, whatever has happened before."""
        links = [link for run in self._runs for link in run.links]
        for link in links:
            link.stop()
        deadline_s = time.monotonic() + self._deadlines.grace_s + self._deadlines.end_s
        while any(not link.closed for link in links) and time.monotonic() < deadline_s:
            for link in links:
                if not link.closed:
                    link.pump()
            time.sleep(0.02)
        for link in links:
            link.close()
        self._runs.clear()

    def _pump(self, run: _Run) -> None:
        now_s = time.monotonic()
        beats = now_s - run.beaten_s >= self._deadlines.beat_s
        run.beaten_s = now_s if beats else run.beaten_s
        for link in run.links:
            if link.closed:
                continue
            if beats:
                link.beat()
            for event in link.pump():
                run.watch.take(event, now_s)
                if event.kind is not Kind.BEAT:
                    self._on_event(event)
            late = not link.answered and now_s - run.begun_s > self._deadlines.connect_s
            if late and run.outcome is None:
                run.watch.closed(link.host, unreachable(link, self._deadlines.connect_s), now_s)
            elif link.closed:
                run.watch.closed(link.host, None if link.answered else unreachable(link), now_s)

    def _end(self, run: _Run, outcome: ReplicaOutcome) -> None:
        """Ask the agents of a replica to end everything. A host that refuses at first spoils the launch."""
        run.outcome = outcome
        run.deadline_s = time.monotonic() + self._deadlines.grace_s + self._deadlines.end_s
        for link in run.links:
            link.stop()
        if outcome.status is Status.REFUSED and run.attempt == 1:
            for other in self._runs:
                if other.outcome is None:
                    self._end(other, stopped(other.watch.so_far()))

    def _has_ended(self, run: _Run) -> bool:
        """Whether all agents have; those that are late are given up, sooner where they never spoke."""
        now_s = time.monotonic()
        for link in run.links:
            deadline_s = run.deadline_s - (0.0 if link.answered else self._deadlines.end_s)
            if not link.closed and now_s > deadline_s:
                link.kill()
                text = f"host {link.host} did not confirm its end; its agent ends everything when it notices"
                self._tell(run, replace(note(text), host=link.host))
        return all(link.closed for link in run.links)

    def _conclude(self, run: _Run, outcome: ReplicaOutcome) -> None:
        """A start is over: report it, and go on with what is to come after it."""
        for link in run.links:
            link.close()
        self._runs.remove(run)
        outcome = _with_progress(outcome, run.watch.so_far())
        self._tell(run, now(Kind.OUTCOME, **_plain(outcome)))
        following: LaunchSpec | ReplicaOutcome = outcome
        if outcome.status is not Status.STOPPED and not self._stopping:
            following = self._on_outcome(outcome)
        if isinstance(following, ReplicaOutcome):
            self.outcomes[outcome.replica] = following
        else:
            self.start(following, run.attempt + 1, (outcome.checkpoint_step, outcome.checkpoint))

    def _agent_spec(self, spec: LaunchSpec, command: Command) -> AgentSpec:
        address = self._transport.address(command.host)
        remote = self._transport.style is Style.SHELL
        return AgentSpec(
            replica=spec.replica.id,
            host=command.host,
            expected=address if self._transport.verify else "",
            folder=str(Path(spec.folder).absolute()),
            files=dict(spec.files),
            argv=command.argv,
            env=dict(command.env),
            ranks=ranks_of(spec, command),
            port=meeting_of(spec)[1] if 0 in ranks_of(spec, command) else 0,
            grace_s=self._deadlines.grace_s,
            beat_s=self._deadlines.beat_s,
            # Pipes on this machine end with the launcher; a broken network may never tell.
            silence_s=2 * self._deadlines.silence_s if remote else 0.0,
        )

    def _tell(self, run: _Run, event: Event) -> None:
        self._on_event(replace(event, replica=run.spec.replica.id))


def _about(spec: LaunchSpec, attempt: int) -> dict[str, Any]:
    """What the event log should know of a start."""
    ranks = [
        {"rank": r.rank, "host": r.host, "device": r.device, "stage": r.stage} for r in spec.layout.ranks
    ]
    return {
        "attempt": attempt,
        "executor": spec.executor,
        "folder": str(spec.folder),
        "hosts": [command.host for command in spec.commands],
        "ranks": ranks,
        "step_time_s": spec.replica.step_time_s,
        "tokens_per_s": spec.replica.tokens_per_s,
    }


def _with_progress(outcome: ReplicaOutcome, last: ReplicaOutcome) -> ReplicaOutcome:
    """The outcome with what was still reported while everything ended, such as a checkpoint."""
    return replace(outcome, step=last.step, checkpoint_step=last.checkpoint_step, checkpoint=last.checkpoint)


def _plain(outcome: ReplicaOutcome) -> dict[str, Any]:
    """The outcome as fields of an event, whose own `rank` and `host` mean who wrote it."""
    fields = asdict(outcome)
    renamed = {"cause_rank": fields.pop("rank"), "cause_host": fields.pop("host")}
    del fields["replica"]
    return fields | renamed


@dataclass(slots=True)
class _Wishes:
    """What signals have asked for."""

    stop: bool = False


@contextmanager
def _interrupts() -> Iterator[_Wishes]:
    """SIGINT and SIGTERM ask for an end in order; the second one raises KeyboardInterrupt."""
    wishes = _Wishes()
    if threading.current_thread() is not threading.main_thread():
        yield wishes
        return

    def wish(number: int, _: FrameType | None) -> None:
        if wishes.stop:
            raise KeyboardInterrupt
        wishes.stop = True

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wishes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
