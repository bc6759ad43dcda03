"""Causes and consequences: when one rank goes, the others fail with words about the connection.

The patterns are texts that gloo, NCCL, torch's store and the operating system use for a peer that is gone.
Standard library only.
"""

from __future__ import annotations

import re

_CONSEQUENCES = re.compile(
    r"connection (?:was )?(?:closed|reset|refused|aborted)"
    r"|closed by (?:peer|remote)"
    r"|broken pipe"
    r"|socket (?:is |was )?closed"
    r"|failed to recv, got 0 bytes"
    r"|recvvalue failed|sendbytes failed"
    r"|remote (?:process|peer) (?:has )?(?:exited|left)"
    r"|ncclremoteerror|ncclsystemerror|nccl communicator was aborted|nccl error"
    r"|no route to host|network is unreachable"
    r"|timed out (?:after|waiting)|(?:socket|read|wait|recv|send) ?timeout|watchdog caught collective",
    re.IGNORECASE,
)
_TRACEBACK = "Traceback (most recent call last):"
# An exception's own line: `Type: text`, `package.Type: text` or a bare `KeyboardInterrupt`.
_RAISED = re.compile(r"^(?:\[[^\]]*\]:?\s*)?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?::.*)?)$")


def is_consequence(text: str) -> bool:
    """Whether a message only says that another process is gone or silent."""
    return _CONSEQUENCES.search(text) is not None


def first_error(log: str) -> str:
    """The last line of the first Python traceback that is a cause; "" where the log has none.

    Where all tracebacks are consequences it is the first of them. Lines of several ranks may be mixed, so the
    end of a traceback is the next line that looks like an exception and isn't indented.
    """
    raised = [line for line in _raised(log) if line]
    causes = [line for line in raised if not is_consequence(line)]
    return (causes or raised or [""])[0]


def last_line(log: str) -> str:
    """The last line with anything in it; "" where there is none."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _raised(log: str) -> list[str]:
    found: list[str] = []
    open_tracebacks = 0
    for line in log.splitlines():
        if _TRACEBACK in line:
            open_tracebacks += 1
            continue
        match = _RAISED.match(line) if open_tracebacks else None
        if match is not None:
            found.append(match.group(1).strip())
            open_tracebacks -= 1
    return found
