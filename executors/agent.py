"""One host's share of a launch: `python -m executors.agent`, started on the host by the launcher.

It reads one JSON line (`executors.agent_spec`) on standard input, makes sure that it is on the right host and
that the folder and the port are free, writes the files, starts the command and forwards the events of its
ranks on standard output. A line `stop`, the end of the input or SIGTERM ends everything that it started.

The process that is started is a guard: it forks the one that works and outlives it. Both are subreapers, so
whichever is killed, the other ends what is left. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import hashlib
import json
import os
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from executors.addresses import is_here, require_free_port
from executors.agent_run import AgentRun, Outlet
from executors.agent_spec import AgentSpec, file_name, parse_spec
from executors.events import Kind, now
from executors.locks import FolderLock
from executors.processes import (
    PROC,
    Process,
    become_subreaper,
    descendants,
    end_descendants,
    end_with_parent,
    process_table,
    read_process,
    send_signal,
)
from policies.errors import EchelonError
from policies.one_home import require_one_home

REFUSED_EXIT = 9
_READ_BYTES = 1 << 16
_END_S = 45.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run as an agent; the exit code is 0 when the command ended with 0, else 9."""
    parser = argparse.ArgumentParser(prog="python -m executors.agent", description=__doc__)
    parser.add_argument("--spec", help="specification as base64 of zlib, where input isn't forwarded")
    parser.add_argument("--spec-file", nargs=2, metavar=("PATH", "SHA256"), help="the same in a file")
    parser.add_argument("--receive", nargs=3, metavar=("PATH", "BASE64", "EXPECTED"), help="append to a file")
    parser.add_argument("--end", metavar="FOLDER", help="end the agents that work in a folder of this host")
    arguments = parser.parse_args(argv)
    require_one_home()
    if arguments.end:
        return end_agents(Path(arguments.end))
    if arguments.receive:
        path, piece, expected = arguments.receive
        return _receive(Path(path), base64.b64decode(piece), expected)
    if arguments.spec:
        return _serve(zlib.decompress(base64.b64decode(arguments.spec)), b"")
    if arguments.spec_file:
        return _serve_file(Path(arguments.spec_file[0]), arguments.spec_file[1])
    line, rest = _first_line()
    return _serve(line, rest) if line else REFUSED_EXIT


def end_agents(folder: Path) -> int:
    """End the agents of this host that work in a folder, with everything below them; 0 when all are gone."""
    living = [guard for path in sorted(folder.glob("agent-*.json")) if (guard := _noted(path)) is not None]
    for guard in living:
        send_signal(guard, signal.SIGTERM)
    deadline_s = time.monotonic() + _END_S
    while any(map(_alive, living)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    for guard in filter(_alive, living):
        for process in (*descendants(guard.pid, process_table()), guard):
            send_signal(process, signal.SIGKILL)
    return 0


def _receive(path: Path, piece: bytes, expected: str) -> int:
    """Append a piece of a specification to a file of the expected host."""
    if expected and not is_here(expected):
        return _wrong_host(Outlet(expected, ""), expected)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(piece)
    return 0


def _serve_file(path: Path, sha256: str) -> int:
    try:
        data = path.read_bytes()
        path.unlink()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != sha256:
        message = f"the specification in {path} did not arrive whole"
        Outlet("", "")(now(Kind.REFUSED, code="bad-specification", message=message, hint="launch again"))
        return REFUSED_EXIT
    return _serve(zlib.decompress(data), b"")


def _first_line() -> tuple[bytes, bytes]:
    """The first line of standard input and what was read beyond it; empty where the input ends before."""
    data = b""
    while b"\n" not in data:
        piece = os.read(0, _READ_BYTES)
        if not piece:
            return b"", b""
        data += piece
    line, _, rest = data.partition(b"\n")
    return line, rest


def _serve(line: bytes, rest: bytes) -> int:
    """Check, prepare, and carry the specification out under a guard."""
    try:
        spec = parse_spec(line)
    except ValueError as error:
        Outlet("", "")(now(Kind.REFUSED, code="bad-specification", message=str(error), hint=""))
        return REFUSED_EXIT
    out = Outlet(spec.host, spec.replica)
    if spec.expected and not is_here(spec.expected):
        return _wrong_host(out, spec.expected)
    try:
        lock = FolderLock(Path(spec.folder), f"host-{file_name(spec.host)}.lock")
        if spec.port:
            require_free_port(spec.port)
        write_files(spec)
    except EchelonError as error:
        out(now(Kind.REFUSED, code=error.code, message=error.message, hint=error.hint))
        return REFUSED_EXIT
    except OSError as error:
        out(now(Kind.REFUSED, **_unwritable(spec, error)))
        return REFUSED_EXIT
    noted = _note_pid(spec)
    try:
        return _guarded(out, spec.grace_s, AgentRun(spec, out, rest).run)
    finally:
        noted.unlink(missing_ok=True)
        lock.release()


def write_files(spec: AgentSpec) -> None:
    """Write the files below the folder, each under a temporary name first.

    Raises:
        OSError: a file can't be written; those of its name from before stay as they were.
    """
    for name, text in sorted(spec.files.items()):
        path = Path(spec.folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{file_name(spec.host)}.{os.getpid()}")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def _guarded(out: Outlet, grace_s: float, work: Callable[[], int]) -> int:
    """Fork the worker, pass signals on to it, and end what it leaves behind should it be killed."""
    guard = os.getpid()
    become_subreaper()
    worker = os.fork()
    if worker == 0:
        code = REFUSED_EXIT
        try:
            end_with_parent(guard, signal.SIGTERM)
            code = work()
        finally:
            # Only the guard may run what stands after the fork.
            sys.stderr.flush()
            os._exit(code)

    def pass_on(number: int, _: FrameType | None) -> None:
        os.kill(worker, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    # Its pid may soon be another process's.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ending = end_descendants({}, grace_s=grace_s)
    if code < 0:
        about = {"reason": "agent-died", "signal": -code}
        out(now(Kind.ENDED, **about, num_killed=ending.num_killed, left=list(ending.left)))
        return REFUSED_EXIT
    return code


def _wrong_host(out: Outlet, expected: str) -> int:
    out(now(Kind.WRONG_HOST, expected=expected, found=socket.gethostname()))
    return REFUSED_EXIT


def _unwritable(spec: AgentSpec, error: OSError) -> dict[str, str]:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return {
        "code": "disk-full" if full else "folder-unwritable",
        "message": f"{error.filename or spec.folder} can't be written: {error.strerror}",
        "hint": "free some space there" if full else "choose another folder with `-o`",
    }


def _note_pid(spec: AgentSpec) -> Path:
    """Leave word in the folder of which process `--end` is to end; a folder that is full gets none."""
    path = Path(spec.folder) / f"agent-{file_name(spec.host)}.json"
    own = read_process(os.getpid())
    assert own is not None
    with contextlib.suppress(OSError):
        path.write_text(json.dumps({"pid": own.pid, "start_ticks": own.start_ticks, "boot": _boot_id()}))
    return path


def _noted(path: Path) -> Process | None:
    """The living guard that such a file names."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        process = read_process(int(record["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = process is not None and (process.start_ticks, _boot_id()) == (
        record.get("start_ticks"),
        record.get("boot"),
    )
    return process if same else None


def _alive(process: Process) -> bool:
    current = read_process(process.pid)
    return current is not None and current.start_ticks == process.start_ticks and current.state != "Z"


def _boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


if __name__ == "__main__":
    sys.exit(main())
