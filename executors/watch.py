"""What the launcher knows of one start of a replica, and what it concludes. Pure: time comes in.

Times are the launcher's monotonic seconds; clocks of hosts are never compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from executors.base import Command, LaunchSpec
from executors.events import Event, Kind
from executors.outcome import Deadlines, ReplicaOutcome, Status
from executors.signs import (
    Sign,
    Weight,
    cause,
    sign_of_death,
    sign_of_exit,
    sign_of_failed,
    sign_of_lost_host,
    sign_of_refusal,
)
from policies.errors import ExecutorFailedError

HUNG_STATES = frozenset({"T", "t", "D", "Z"})
"""Letters of processes that can't go on by themselves: stopped, waiting for a device, ended."""


def ranks_of(spec: LaunchSpec, command: Command) -> tuple[int, ...]:
    """The ranks that a command starts: those of its host, or all where it is the only one for many hosts."""
    own = tuple(rank.rank for rank in spec.layout.on_host(command.host))
    if own or len(spec.commands) > 1:
        return own
    return tuple(rank.rank for rank in spec.layout.ranks)


@dataclass(slots=True)
class _Host:
    """One host's agent: when it was last heard, and how far it is."""

    ranks: tuple[int, ...]
    heard_s: float
    started_s: float | None = None
    exit_code: int | None = None
    error: str = ""
    ended: bool = False
    closed: bool = False


@dataclass(slots=True)
class _Rank:
    """One rank: how far it is. `step` counts optimiser steps done."""

    alive: bool = False
    ready: bool = False
    finished: bool = False
    failed: bool = False
    step: int = 0
    state: str = ""


@dataclass(slots=True)
class _Progress:
    """What the replica has done since this start."""

    moved_s: float
    longest_s: float = 0.0
    speeds: list[float] = field(default_factory=list)
    checkpoint_step: int = 0
    checkpoint: str = ""


class ReplicaWatch:
    """Takes the events of one start of a replica and says when it has ended, how and why."""

    def __init__(
        self,
        spec: LaunchSpec,
        deadlines: Deadlines,
        now_s: float,
        *,
        attempt: int = 1,
        protocol: bool = True,
        checkpoint: tuple[int, str] = (0, ""),
    ) -> None:
        """Begin to watch.

        Args:
            spec: what is started.
            deadlines: how long to wait for what.
            now_s: the present moment.
            attempt: 1 for the first start. A host that is missing later counts as lost, not as a mistake.
            protocol: whether ranks say `ready`, `step` and `finished`, as our own worker does.
            checkpoint: step and folder of the newest checkpoint of earlier starts.
        """
        self._spec, self._deadlines, self._attempt, self._protocol = spec, deadlines, attempt, protocol
        self._begun_s = now_s
        self._hosts = {c.host: _Host(ranks=ranks_of(spec, c), heard_s=now_s) for c in spec.commands}
        self._ranks = {rank.rank: _Rank() for rank in spec.layout.ranks}
        self._signs: list[Sign] = []
        self._progress = _Progress(moved_s=now_s, checkpoint_step=checkpoint[0], checkpoint=checkpoint[1])
        self._finished_s: float | None = None

    @property
    def step(self) -> int:
        """Optimiser steps that every rank which reports them has done."""
        return max((rank.step for rank in self._ranks.values()), default=0)

    def take(self, event: Event, now_s: float) -> None:
        """Take an event of a host's agent or of one of its ranks."""
        host = self._hosts.get(event.host)
        if host is None:
            return
        host.heard_s = now_s
        if event.rank is not None and event.rank in self._ranks:
            self._take_rank(event, self._ranks[event.rank], now_s)
        elif event.kind is Kind.STARTED:
            host.started_s = now_s
        elif event.kind is Kind.BEAT:
            self._take_states(event.data.get("ranks", {}))
        elif event.kind in (Kind.WRONG_HOST, Kind.REFUSED):
            self._signs.append(sign_of_refusal(event, now_s))
        elif event.kind is Kind.EXITED:
            self._take_exit(event, host, now_s)
        elif event.kind is Kind.ENDED:
            self._take_end(event, host, now_s)

    def closed(self, host: str, error: ExecutorFailedError | None, now_s: float) -> None:
        """A host's agent can't speak any more; `error` says why where it never spoke."""
        about = self._hosts[host]
        if about.closed:
            return
        about.closed = True
        if error is not None:
            self._signs.append(self._unreachable(host, error, now_s))
        elif not about.ended and not any(sign.host == host for sign in self._signs):
            how = (
                "the connection to its agent broke" if about.started_s is not None else "its agent broke off"
            )
            self._signs.append(sign_of_lost_host(host, how, now_s))

    def verdict(self, now_s: float) -> ReplicaOutcome | None:
        """How the start has ended, or None while it goes on."""
        self._look_for_silence(now_s)
        if self._signs:
            return self._judge(now_s)
        if self._is_done(now_s):
            return self._outcome(Status.FINISHED, code="finished", message="all ranks finished", exit_code=0)
        late = self._late(now_s)
        if late is not None:
            self._signs.append(late)
            return self._judge(now_s)
        return None

    def so_far(self) -> ReplicaOutcome:
        """The outcome if it were ended at this moment by the user."""
        return self._outcome(Status.STOPPED, code="stopped", message="stopped")

    def _take_rank(self, event: Event, rank: _Rank, now_s: float) -> None:
        self._progress.moved_s = now_s
        who = self._name(event.rank)
        if event.kind is Kind.HELLO:
            rank.alive = True
        elif event.kind is Kind.READY:
            rank.ready = True
            self._reach(rank, event.data.get("step"))
        elif event.kind is Kind.STEP:
            self._take_step(event, rank)
        elif event.kind is Kind.CHECKPOINT:
            self._take_checkpoint(event)
        elif event.kind is Kind.FINISHED:
            rank.finished = True
            if all(each.finished for each in self._ranks.values()):
                self._finished_s = now_s
        elif event.kind is Kind.FAILED:
            rank.failed = True
            self._signs.append(sign_of_failed(event, who, now_s))
        elif event.kind is Kind.RANK_DIED:
            rank.alive = False
            # Libraries may crash as they are unloaded; by then the work is done.
            if not (rank.failed or rank.finished):
                self._signs.append(sign_of_death(event, who, now_s))

    def _take_step(self, event: Event, rank: _Rank) -> None:
        self._reach(rank, event.data.get("step"))
        wall_s, tokens = event.data.get("wall_s"), event.data.get("tokens")
        if isinstance(wall_s, int | float) and wall_s > 0:
            self._progress.longest_s = max(self._progress.longest_s, wall_s)
            if isinstance(tokens, int | float) and tokens > 0:
                self._progress.speeds.append(tokens / wall_s)

    def _take_checkpoint(self, event: Event) -> None:
        step, folder = event.data.get("step"), event.data.get("folder")
        if type(step) is int and step >= self._progress.checkpoint_step:
            self._progress.checkpoint_step, self._progress.checkpoint = step, str(folder or "")

    def _take_states(self, states: Any) -> None:
        for name, found in states.items() if isinstance(states, dict) else ():
            if name.isdigit() and int(name) in self._ranks and isinstance(found, list) and found:
                self._ranks[int(name)].state = str(found[0])

    def _take_exit(self, event: Event, host: _Host, now_s: float) -> None:
        code = event.data.get("code")
        host.exit_code = code if type(code) is int else -1
        host.error = str(event.data.get("error", ""))
        unfinished = [rank for rank in host.ranks if not self._ranks[rank].finished]
        if self._protocol and not unfinished:
            host.exit_code = 0
        elif host.exit_code != 0:
            self._signs.append(sign_of_exit(event, now_s))
        elif self._protocol:
            about = replace(event, rank=unfinished[0], data={"code": 0})
            self._signs.append(sign_of_death(about, self._name(unfinished[0]), now_s))

    def _take_end(self, event: Event, host: _Host, now_s: float) -> None:
        host.ended = True
        if host.exit_code is None:
            reason = str(event.data.get("reason", ""))
            how = (
                "its agent was killed" if reason == "agent-died" else f"its agent ended everything ({reason})"
            )
            self._signs.append(sign_of_lost_host(event.host, how, now_s))

    def _reach(self, rank: _Rank, step: Any) -> None:
        if type(step) is int:
            rank.step = max(rank.step, step)

    def _unreachable(self, host: str, error: ExecutorFailedError, now_s: float) -> Sign:
        """A host that is missing at the first start is a mistake; later it is a loss."""
        return Sign(
            weight=Weight.CAUSE,
            seen_s=now_s,
            status=Status.REFUSED if self._attempt == 1 else Status.LOST,
            code=error.code,
            message=error.message,
            hint=error.hint,
            host=host,
        )

    def _look_for_silence(self, now_s: float) -> None:
        """Hosts that have spoken once and are silent now are lost."""
        for name, host in self._hosts.items():
            silent_s = now_s - host.heard_s
            told = any(sign.host == name and sign.code == "host-lost" for sign in self._signs)
            speaks = host.started_s is not None and not (host.ended or host.closed)
            if speaks and not told and silent_s > self._deadlines.silence_s:
                how = f"its agent has said nothing for {silent_s:.0f} s"
                self._signs.append(sign_of_lost_host(name, how, now_s))

    def _judge(self, now_s: float) -> ReplicaOutcome | None:
        """The cause among the signs, once no better one is to be expected."""
        best = cause(self._signs)
        first_s = min(sign.seen_s for sign in self._signs)
        certain = best.weight is Weight.CAUSE and best.status is not Status.LOST
        settled = now_s - first_s >= self._deadlines.settle_s
        if best.weight is not Weight.CAUSE:
            # The peers of a host that is gone may be the first to notice: wait for a word of every host.
            settled = settled and all(
                host.heard_s > first_s or host.ended or host.closed for host in self._hosts.values()
            )
        if not (certain or settled):
            return None
        return self._conclude(best)

    def _conclude(self, best: Sign) -> ReplicaOutcome:
        lost = [best] if best.status is Status.LOST else []
        if best.weight is Weight.CAUSE:
            lost += [s for s in self._signs if s.weight is Weight.CAUSE and s.status is Status.LOST]
        hosts = tuple(dict.fromkeys(sign.host for sign in lost if sign.rank is None))
        ranks = {sign.rank for sign in lost if sign.rank is not None}
        ranks |= {rank for host in hosts for rank in self._hosts[host].ranks}
        device_of = {rank.rank: rank.device for rank in self._spec.layout.ranks}
        message = best.message
        if best.code == "rank-ended-early" and self._hosts[best.host].error:
            message += f": {self._hosts[best.host].error}"
        return self._outcome(
            best.status,
            code=best.code,
            message=message,
            hint=best.hint,
            exit_code=best.exit_code,
            rank=best.rank,
            device="" if best.rank is None else device_of[best.rank],
            host=best.host,
            signal=best.signal,
            lost_devices=tuple(device for rank, device in device_of.items() if rank in ranks),
            lost_hosts=hosts,
        )

    def _is_done(self, now_s: float) -> bool:
        """Every host's command ended well; ranks that have finished and linger are given `exit_s`."""
        if all(host.ended and host.exit_code == 0 for host in self._hosts.values()):
            return True
        return self._finished_s is not None and now_s - self._finished_s > self._deadlines.exit_s

    def _late(self, now_s: float) -> Sign | None:
        """What should have happened by now: all ranks ready, and then a step now and then."""
        if not self._protocol or self._finished_s is not None:
            return None
        started = [host.started_s for host in self._hosts.values()]
        if any(each is None for each in started):
            return None
        if not all(rank.ready for rank in self._ranks.values()):
            waited_s = now_s - max(each for each in started if each is not None)
            return self._not_ready(now_s) if waited_s > self._deadlines.start_s else None
        limit_s = self._deadlines.stall_s
        if limit_s is None:
            step_s = max(self._spec.replica.step_time_s, self._progress.longest_s)
            limit_s = max(self._deadlines.stall_min_s, self._deadlines.stall_factor * step_s)
        return self._stalled(now_s, limit_s) if now_s - self._progress.moved_s > limit_s else None

    def _not_ready(self, now_s: float) -> Sign:
        silent = [r for r, rank in self._ranks.items() if not rank.alive]
        missing = silent or [r for r, rank in self._ranks.items() if not rank.ready]
        what = "did not start" if silent else "did not become ready"
        return self._fault(
            "not-ready",
            f"{self._names(missing)} {what} within {self._deadlines.start_s:.0f} s",
            "look at the logs in the run folder",
            missing[0],
            now_s,
        )

    def _stalled(self, now_s: float, limit_s: float) -> Sign:
        """Nothing happens: name ranks whose process can't go on, else those that are furthest behind."""
        hung = [r for r, rank in self._ranks.items() if rank.state in HUNG_STATES]
        least = min(rank.step for rank in self._ranks.values())
        behind = hung or [r for r, rank in self._ranks.items() if rank.step == least and not rank.finished]
        state = f" (process state {self._ranks[hung[0]].state})" if hung else ""
        sign = self._fault(
            "stalled",
            f"{self._names(behind)} stalled{state}: nothing for {limit_s:.0f} s after step {self.step}",
            "look at the logs in the run folder",
            behind[0],
            now_s,
        )
        return replace(sign, status=Status.LOST) if hung else sign

    def _fault(self, code: str, message: str, hint: str, rank: int, now_s: float) -> Sign:
        host = next((name for name, host in self._hosts.items() if rank in host.ranks), "")
        return Sign(
            weight=Weight.CAUSE,
            seen_s=now_s,
            status=Status.FAULT,
            code=code,
            message=message,
            hint=hint,
            rank=rank,
            host=host,
        )

    def _outcome(self, status: Status, **about: Any) -> ReplicaOutcome:
        fields: Mapping[str, Any] = {
            "replica": self._spec.replica.id,
            "status": status,
            "attempt": self._attempt,
            "step": self.step,
            "checkpoint_step": self._progress.checkpoint_step,
            "checkpoint": self._progress.checkpoint,
            # The first step of a start prepares buffers and says little.
            "tokens_per_s": median(self._progress.speeds[1:] or self._progress.speeds or [0.0]) or None,
        }
        return ReplicaOutcome(**{**fields, **about})

    def _name(self, rank: int | None) -> str:
        place = next((each for each in self._spec.layout.ranks if each.rank == rank), None)
        return f"rank {rank}" if place is None else f"rank {rank} (device {place.device}, host {place.host})"

    def _names(self, ranks: list[int]) -> str:
        named = ", ".join(self._name(rank) for rank in ranks[:4])
        return named if len(ranks) <= 4 else f"{named} and {len(ranks) - 4} more"
