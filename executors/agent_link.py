"""The launcher's side of a conversation with an agent. Standard library only.

pdsh forwards no input, so there the specification travels in the arguments and a second call ends the agent;
the agent still sees the end of its input when pdsh goes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shlex
import signal
import subprocess
import zlib
from collections import deque
from dataclasses import replace
from typing import IO

from executors.agent_spec import BEAT_LINE, STOP_LINE, AgentSpec, file_name
from executors.causes import last_line
from executors.events import Event, Kind, parse_event, shortened
from executors.remote import SSH_OPTIONS, Style, Transport
from policies.errors import ExecutorFailedError

_PIECE_BYTES = 60_000
"""A piece of a specification; base64 makes it a third longer, an argument may have 128 KiB (execve(2))."""
_STDERR_CHARS = 1 << 14
_PDSH_END = re.compile(r"^pdsh@.* exited with exit code \d+$", re.MULTILINE)


class AgentLink:
    """The conversation with one agent, from the start of the remote command to its end. Nothing blocks.

    `answered` says whether the agent has spoken, `closed` that it can't any more. `argv` is the command that
    reaches it, `stderr` the last that the command wrote there.
    """

    def __init__(self, transport: Transport, spec: AgentSpec) -> None:
        """Start the command.

        Raises:
            ExecutorFailedError: `remote-shell-missing` where this machine has no such program.
        """
        self.host, self.replica, self.python = spec.host, spec.replica, transport.python
        self._transport, self._spec = transport, spec
        self._outgoing = self._incoming = b""
        self.stderr = ""
        self.answered = self.closed = self._ended = self._done = self._stopping = False
        self._enders: list[subprocess.Popen[bytes]] = []
        self._to_run = deque(self._commands())
        self._process = self._start_next()

    @property
    def exit_code(self) -> int | None:
        """That of the command, once it has ended."""
        return self._process.returncode

    def fileno(self) -> int:
        """What to wait on; -1 once nothing more comes."""
        stream = self._process.stdout
        return -1 if self._ended or stream is None or stream.closed else stream.fileno()

    def pump(self) -> list[Event]:
        """Send what is to be sent, and return the events that have come; other lines are left out."""
        self._write()
        self._take_stderr()
        data, self._ended = _read(self._process.stdout)
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        told = (event for event in map(_event, lines) if event is not None)
        found = [replace(event, host=self.host, replica=self.replica) for event in told]
        self.answered = self.answered or bool(found)
        self._done = self._done or any(event.kind is Kind.ENDED for event in found)
        if self._stopping:
            self._end_by_call()
        if self._ended and self._process.poll() is not None:
            self._take_stderr()
            if self._process.returncode == 0 and self._to_run:
                self._release()
                self._process = self._start_next()
            else:
                self.closed = all(ender.poll() is not None for ender in self._enders)
        return found

    def stop(self) -> None:
        """Ask the agent to end everything."""
        self._to_run.clear()
        if not self._stopping and self._transport.style is not Style.PDSH:
            self._outgoing += STOP_LINE.encode("ascii")
        self._stopping = True

    def _end_by_call(self) -> None:
        """Where input isn't forwarded, a second call ends the agent: again, if need be."""
        over = self._done or self._process.poll() is not None
        if self._transport.style is not Style.PDSH or not self.answered or over:
            return
        if all(ender.poll() is not None for ender in self._enders):
            argv = self._transport.agent_argv(self.host, "--end", self._spec.folder)
            null = subprocess.DEVNULL
            ender = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True)
            self._enders.append(ender)

    def beat(self) -> None:
        """Let the agent know that the launcher is there."""
        if self._transport.style is not Style.PDSH and not self._outgoing:
            self._outgoing = BEAT_LINE.encode("ascii")

    def kill(self) -> None:
        """Give the conversation up. The agent sees its input end, and ends everything by itself."""
        for process in (self._process, *self._enders):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(timeout=2.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self.closed = True

    def close(self) -> None:
        """Let go of files and processes; kills what is left."""
        self.kill()
        self._release()

    def _commands(self) -> list[tuple[str, ...]]:
        """What has to run, one after the other; the last one is the agent."""
        agent_argv, host = self._transport.agent_argv, self.host
        if self._transport.style is not Style.PDSH:
            self._outgoing = self._spec.line().encode("utf-8")
            return [agent_argv(host)]
        packed = zlib.compress(self._spec.line().encode("utf-8"), 9)
        pieces = [packed[i : i + _PIECE_BYTES] for i in range(0, len(packed), _PIECE_BYTES)]
        texts = [base64.b64encode(piece).decode("ascii") for piece in pieces]
        if len(texts) == 1:
            return [agent_argv(host, "--spec", texts[0])]
        sha256 = hashlib.sha256(packed).hexdigest()
        path = f"{self._spec.folder}/.agent-{file_name(host)}-{os.getpid()}-{sha256[:12]}"
        sends = [agent_argv(host, "--receive", path, text, self._spec.expected) for text in texts]
        return [*sends, agent_argv(host, "--spec-file", path, sha256)]

    def _start_next(self) -> subprocess.Popen[bytes]:
        """Start the next command, in a session of its own: Ctrl-C is for the launcher alone."""
        argv = self.argv = self._to_run.popleft()
        ssh_options = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {' '.join(SSH_OPTIONS)}".strip()
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | {"PDSH_SSH_ARGS_APPEND": ssh_options},
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise ExecutorFailedError(
                "remote-shell-missing",
                f"can't start {argv[0]!r}, which should reach host {self.host}: {error.strerror}",
                hint="install it, or choose another way with `--remote-shell`",
            ) from error
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        return process

    def _write(self) -> None:
        stream = self._process.stdin
        if stream is None or stream.closed or not self._outgoing or self._transport.style is Style.PDSH:
            return
        try:
            self._outgoing = self._outgoing[os.write(stream.fileno(), self._outgoing) :]
        except BlockingIOError:
            return
        except OSError:
            # Nobody reads any more: how the command ended says why.
            self._outgoing = b""
            stream.close()

    def _take_stderr(self) -> None:
        data, _ = _read(self._process.stderr)
        self.stderr = (self.stderr + data.decode("utf-8", errors="replace"))[-_STDERR_CHARS:]

    def _release(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def unreachable(link: AgentLink, waited_s: float | None = None) -> ExecutorFailedError:
    """Why no agent answered on a host: `host-unreachable`, with the command and its last words.

    `waited_s` is given where the command still ran when the time was over.
    """
    how = f"gave no answer for {waited_s:.0f} s" if waited_s is not None else f"ended with {link.exit_code}"
    # pdsh ends with a line that says no more than the exit code.
    words = last_line(_PDSH_END.sub("", link.stderr))
    shown = shortened(shlex.join(link.argv), 300)
    # Shells say so in different words: "not found", "No such file or directory", "can't open".
    missing = "No module named" in link.stderr or link.python in words
    hint = (
        "install echelon there, in the same place as here"
        if missing
        else ("run the command by hand: it should need neither password nor confirmation")
    )
    return ExecutorFailedError(
        "host-unreachable",
        f"no agent on host {link.host}: `{shown}` {how}" + (f": {words}" if words else ""),
        hint=hint,
    )


def _event(line: bytes) -> Event | None:
    """The event of a line; greetings of a remote shell and the like are none."""
    try:
        return parse_event(line)
    except ValueError:
        return None


def _read(stream: IO[bytes] | None) -> tuple[bytes, bool]:
    """What a stream holds now, and whether it has ended."""
    data = b""
    if stream is None or stream.closed:
        return data, True
    while True:
        try:
            piece = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return data, False
        except OSError:
            return data, True
        if not piece:
            return data, True
        data += piece
