"""The one error family of the product: a stable code, the offending values, and a way out.

EchelonError                 exit code 1
├── InputError               3   a file or argument from the user is wrong; carries every fault at once
├── InfeasibleError          4   proven: no plan satisfies all demands
├── NoPlanInTimeError        5   the limits ran out before any plan was found
├── ExcessTooLargeError      6   a plan was found, but further from the bound than was asked for
├── PolicyRefusedError       7   the policy forbids what was asked for
├── AuditFailedError         8   evidence does not hold
├── ExecutorFailedError      9   a plan could not be carried out
└── AuditInconclusiveError  10   evidence is missing for a verdict
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class EchelonError(Exception):
    """A fault a user can act on.

    Attributes:
        code: kebab-case identifier, stable across releases.
        message: what is wrong, with the values and the limit.
        hint: the way out, or an empty string.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with an input.

    `place` is file and path inside it (`fleet.yaml: devices[3].memory`), `value` the text found there,
    `limit` what would have been accepted, `hint` the way out.
    """

    place: str
    value: str
    limit: str
    hint: str = ""


class InputError(EchelonError):
    """An input is refused; `faults` lists everything that is wrong with it."""

    exit_code = 3

    def __init__(self, code: str, message: str, *, faults: Sequence[Fault] = (), hint: str = "") -> None:
        super().__init__(code, message, hint=hint)
        self.faults = tuple(faults)


class InfeasibleError(EchelonError):
    """Proven: no plan satisfies all demands. `because` holds the smallest conflict found, one line each."""

    exit_code = 4

    def __init__(self, code: str, message: str, *, because: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(code, message, hint=hint)
        self.because = tuple(because)


class NoPlanInTimeError(EchelonError):
    """The limits ran out before any plan was found; nothing is proven."""

    exit_code = 5


class ExcessTooLargeError(EchelonError):
    """A plan was found, but its proven distance from the best one is larger than was asked for."""

    exit_code = 6


class PolicyRefusedError(EchelonError):
    """The policy forbids what was asked for."""

    exit_code = 7


class AuditFailedError(EchelonError):
    """Evidence presented for audit does not hold."""

    exit_code = 8


class ExecutorFailedError(EchelonError):
    """A plan could not be carried out."""

    exit_code = 9


class AuditInconclusiveError(EchelonError):
    """The evidence presented for audit is not enough for a verdict."""

    exit_code = 10
