"""How a launch ended, in words and figures, and the deadlines by which it is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from policies.errors import (
    AuditFailedError,
    EchelonError,
    ExecutorFailedError,
    InfeasibleError,
    InputError,
    PolicyRefusedError,
)


class Status(StrEnum):
    """What a replica's end means: only a loss is worth another start on other devices."""

    FINISHED = "finished"
    LOST = "lost"
    FAULT = "fault"
    REFUSED = "refused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a launch waits for what.

    An agent answers within `connect_s`. All ranks are ready `start_s` after their command has started. While
    they train something happens within `stall_s`, or, where that is None, within `stall_factor` times the
    planned or the longest measured step, at least `stall_min_s`. Finished ranks end within `exit_s`.

    After a first sign of failure `settle_s` are left for others to come. Agents report every `beat_s`; a host
    that says nothing for `silence_s` is lost. `grace_s` lies between SIGTERM and SIGKILL, and `end_s` later
    the launcher gives a host up that has not ended everything.
    """

    connect_s: float = 60.0
    start_s: float = 600.0
    stall_s: float | None = None
    stall_factor: float = 20.0
    stall_min_s: float = 180.0
    exit_s: float = 60.0
    settle_s: float = 1.0
    beat_s: float = 1.0
    silence_s: float = 30.0
    grace_s: float = 5.0
    end_s: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOutcome:
    """How one start of a replica ended.

    `rank`, `device`, `host` and `signal` name the first cause. `lost_devices` and `lost_hosts` are gone with
    it. `step` optimiser steps were done; `checkpoint` is the folder of the newest checkpoint, after
    `checkpoint_step` of them. `tokens_per_s` is the median measured speed, None where there was no step.
    `exit_code` is the one that the command line should end with.
    """

    replica: str
    status: Status
    code: str
    message: str
    hint: str = ""
    exit_code: int = ExecutorFailedError.exit_code
    rank: int | None = None
    device: str = ""
    host: str = ""
    signal: int | None = None
    lost_devices: tuple[str, ...] = ()
    lost_hosts: tuple[str, ...] = ()
    attempt: int = 1
    step: int = 0
    checkpoint_step: int = 0
    checkpoint: str = ""
    tokens_per_s: float | None = None

    def error(self) -> EchelonError | None:
        """The outcome as an error of its exit code; None when the replica finished."""
        if self.status is Status.FINISHED:
            return None
        message = self.message
        if self.checkpoint:
            message += f"; the newest checkpoint is {self.checkpoint} (after step {self.checkpoint_step})"
        return _ERROR_OF.get(self.exit_code, ExecutorFailedError)(self.code, message, hint=self.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOutcome:
    """How each replica ended, in the order of the launch."""

    replicas: tuple[ReplicaOutcome, ...]

    @property
    def finished(self) -> bool:
        """Whether all replicas did all their work."""
        return all(outcome.status is Status.FINISHED for outcome in self.replicas)

    def error(self) -> EchelonError | None:
        """The error to be told first: of a refusal or a fault before a loss or a stop."""
        order = list(_WORST)
        failed = sorted(
            (outcome for outcome in self.replicas if outcome.status is not Status.FINISHED),
            key=lambda outcome: order.index(outcome.status),
        )
        return failed[0].error() if failed else None


_WORST = (Status.REFUSED, Status.FAULT, Status.LOST, Status.STOPPED)
_ERROR_OF: dict[int, Callable[..., EchelonError]] = {
    each.exit_code: each for each in (InputError, InfeasibleError, PolicyRefusedError, AuditFailedError)
}


def stopped(outcome: ReplicaOutcome) -> ReplicaOutcome:
    """The same start, ended because the user wished so."""
    return replace(
        outcome,
        status=Status.STOPPED,
        code="stopped",
        message=f"replica {outcome.replica} was stopped after step {outcome.step}",
        hint="launch it again with `--resume` to go on" if outcome.checkpoint else "",
    )
