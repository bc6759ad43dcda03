"""Signs of failure and which of them is the cause. Pure.

When one rank goes, its peers fail too, launchers end the rest with SIGTERM, and several reports arrive within
a second. The cause is the first sign of the lowest weight.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from executors.causes import is_consequence
from executors.events import Event, Kind
from executors.outcome import Status
from policies.errors import ExecutorFailedError

_ABORTS = frozenset({signal.SIGABRT})
_ASKED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE})
_FATAL = frozenset({signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
_GENERAL_CODES = frozenset({"exception", "worker-fault", "lost-peer"})


class Weight(IntEnum):
    """How surely a sign is a cause. Libraries abort, and launchers terminate, when a peer is gone."""

    CAUSE = 0
    LIKELY = 1
    CONSEQUENCE = 2
    SUMMARY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """Something that went wrong, as seen by the launcher at `seen_s`."""

    weight: Weight
    seen_s: float
    status: Status
    code: str
    message: str
    hint: str = ""
    exit_code: int = ExecutorFailedError.exit_code
    rank: int | None = None
    host: str = ""
    signal: int | None = None


def cause(signs: Sequence[Sign]) -> Sign:
    """The first sign of the lowest weight."""
    return min(signs, key=lambda sign: (sign.weight, sign.seen_s))


def sign_of_failed(event: Event, who: str, seen_s: float) -> Sign:
    """A rank gave up: its own fault, or the end of another that it noticed."""
    code, message = str(event.data.get("code", "exception")), str(event.data.get("message", ""))
    consequence = bool(event.data.get("consequence")) or (code in _GENERAL_CODES and is_consequence(message))
    exit_code = event.data.get("exit_code")
    if consequence:
        return Sign(
            weight=Weight.CONSEQUENCE,
            seen_s=seen_s,
            status=Status.FAULT,
            code="connection-lost",
            message=f"{who} lost the connection to another rank, and none was seen to end: {message}",
            hint="check the links between the hosts",
            rank=event.rank,
            host=event.host,
        )
    return Sign(
        weight=Weight.CAUSE,
        seen_s=seen_s,
        status=Status.FAULT,
        code=code,
        message=f"{who}: {message}",
        hint=str(event.data.get("hint", "")),
        exit_code=exit_code if type(exit_code) is int and 1 < exit_code < 9 else 9,
        rank=event.rank,
        host=event.host,
    )


def sign_of_death(event: Event, who: str, seen_s: float) -> Sign:
    """A rank's process ended without a word of its own."""
    number, code = event.data.get("signal"), event.data.get("code")
    if type(code) is int:
        return Sign(
            weight=Weight.LIKELY,
            seen_s=seen_s,
            status=Status.FAULT,
            code="rank-ended-early",
            message=f"{who} ended with {code} before its work was done and gave no reason",
            hint="its log says more",
            rank=event.rank,
            host=event.host,
        )
    how, weight = "ended in an unknown way", Weight.LIKELY
    if type(number) is int:
        how, weight = f"was ended by signal {number} ({_name_of(number)})", _weight_of(number)
    oom_kills = event.data.get("oom_kills", 0)
    return Sign(
        weight=weight,
        seen_s=seen_s,
        status=Status.LOST,
        code="rank-lost",
        message=f"{who} {how}",
        hint=f"the kernel ended {oom_kills} processes of that host for want of memory" if oom_kills else "",
        rank=event.rank,
        host=event.host,
        signal=number if type(number) is int else None,
    )


def sign_of_exit(event: Event, seen_s: float) -> Sign:
    """A host's command ended before its ranks had finished."""
    number, code, error = event.data.get("signal"), event.data.get("code"), str(event.data.get("error", ""))
    inner = _signal_in(code)
    told = bool(error) and not is_consequence(error)
    if type(number) is int or (inner and not told):
        how = f"ended with {code}, as after" if inner else "was ended by"
        shown = number if type(number) is int else inner
        return Sign(
            weight=Weight.SUMMARY if inner else Weight.LIKELY,
            seen_s=seen_s,
            status=Status.LOST,
            code="command-lost",
            message=f"the command that runs the ranks of host {event.host} {how} signal {shown}"
            f" ({_name_of(shown)})",
            host=event.host,
            signal=shown,
        )
    return Sign(
        weight=Weight.LIKELY if told else Weight.SUMMARY,
        seen_s=seen_s,
        status=Status.FAULT,
        code="command-failed",
        message=f"the command on host {event.host} ended with {code}" + (f": {error}" if error else ""),
        hint=f"host-{event.host}.log in the run folder of that host says more",
        host=event.host,
    )


def sign_of_refusal(event: Event, seen_s: float) -> Sign:
    """An agent refused to start: wrong host, folder in use, port taken, disk full."""
    if event.kind is Kind.WRONG_HOST:
        expected, found = event.data.get("expected"), event.data.get("found")
        code, hint = "wrong-host", "correct its address, or the name of that machine"
        message = f"the machine that answers for host {event.host} is {found}, not {expected}"
    else:
        code, hint = str(event.data.get("code", "refused")), str(event.data.get("hint", ""))
        message = f"host {event.host}: {event.data.get('message', 'the agent refused')}"
    return Sign(
        weight=Weight.CAUSE,
        seen_s=seen_s,
        status=Status.REFUSED,
        code=code,
        message=message,
        hint=hint,
        host=event.host,
    )


def sign_of_lost_host(host: str, how: str, seen_s: float) -> Sign:
    """A host is gone, or everything there has ended although nobody asked for it."""
    return Sign(
        weight=Weight.CAUSE,
        seen_s=seen_s,
        status=Status.LOST,
        code="host-lost",
        message=f"host {host} is lost: {how}",
        host=host,
    )


def _weight_of(number: int) -> Weight:
    if number in _ASKED:
        return Weight.CONSEQUENCE
    return Weight.LIKELY if number in _ABORTS else Weight.CAUSE


def _signal_in(code: Any) -> int:
    """The signal of a process below, which launchers pass on as 128 + n or -n; 0 where there is none."""
    if type(code) is not int:
        return 0
    for number in (code - 128, 256 - code):
        if number in _FATAL:
            return number
    return 0


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
