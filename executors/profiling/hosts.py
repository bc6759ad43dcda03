"""Measures several hosts in one run: each starts its own ranks, and all of them meet. No torch here."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executors.profiling.host import POLL_S, HostRequest, Tell, request_to_json
from executors.remote import Style, Transport
from policies.errors import ExecutorFailedError

GRACE_S = 60.0


def measure_hosts(
    requests: Sequence[HostRequest], transport: Transport, *, tell: Tell = lambda _text: None
) -> list[dict[str, Any]]:
    """The documents of all hosts; when one fails the others' commands are ended.

    Raises:
        ExecutorFailedError: `profile-host-failed` with the host and its last words, `profile-timeout`.
    """
    with tempfile.TemporaryDirectory(prefix="echelon-profile-") as text:
        folder = Path(text)
        processes = [_start(i, request, transport, folder) for i, request in enumerate(requests)]
        tell(f"measuring {', '.join(request.host for request in requests)}")
        try:
            _wait(requests, processes, folder)
        finally:
            for process in processes:
                # A host ends its ranks when its input ends, wherever the command that reaches it runs.
                if process.stdin is not None:
                    process.stdin.close()
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [json.loads((folder / f"{i}.json").read_text(encoding="utf-8")) for i in range(len(requests))]


def _start(i: int, request: HostRequest, transport: Transport, folder: Path) -> subprocess.Popen[bytes]:
    """The command that measures one host; its request goes in through a pipe that stays open."""
    command = [transport.python, "-P", "-m", "executors.profiling.host"]
    text = request_to_json(request)
    piped = transport.style is not Style.PDSH
    if not piped:
        command.append(b64encode(text.encode("utf-8")).decode("ascii"))
    with (folder / f"{i}.json").open("wb") as answer, (folder / f"{i}.log").open("wb") as log:
        process = subprocess.Popen(
            transport.argv(request.host, command),
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=answer,
            stderr=log,
        )
    if process.stdin is not None:
        process.stdin.write(text.encode("utf-8") + b"\n")
        process.stdin.flush()
    return process


def _wait(
    requests: Sequence[HostRequest], processes: Sequence[subprocess.Popen[bytes]], folder: Path
) -> None:
    deadline_s = time.monotonic() + max(request.deadline_s for request in requests) + GRACE_S
    while True:
        codes = [process.poll() for process in processes]
        for i, code in enumerate(codes):
            if code:
                log = (folder / f"{i}.log").read_text(encoding="utf-8", errors="replace")
                words = [line for line in log.splitlines() if line.strip()]
                last = words[-1].strip() if words else f"exit code {code}"
                raise ExecutorFailedError(
                    "profile-host-failed",
                    f"{requests[i].host}: {last}",
                    hint="see that this host can be reached and has the same installation",
                )
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline_s:
            late = ", ".join(r.host for r, code in zip(requests, codes, strict=True) if code is None)
            raise ExecutorFailedError("profile-timeout", f"{late} did not finish measuring in time")
        time.sleep(POLL_S)
