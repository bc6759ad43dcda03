"""One case of the benchmark in a process of its own: what it costs from process start, and what it says.

The process prints one JSON object as its last line. Memory is sampled over the whole process tree as the sum
of proportional set sizes, so pages that a forked helper shares are counted once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "bench" / "one_case.py"
STARTED = "ECHELON_BENCH_STARTED_S"
SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one process is asked: `work` names a function of the worker, `arguments` are its own.

    `limit_s` ends a case that hangs; a deadline that the work itself keeps stands among its arguments.
    """

    name: str
    work: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    limit_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a case said (`answer` is empty when it failed, `failure` then says why) and what it cost."""

    case: Case
    answer: Mapping[str, Any]
    failure: str
    wall_s: float
    cpu_s: float
    peak_bytes: int

    def as_line(self, row: str) -> str:
        """One JSON line for the record."""
        figures = {"wall_s": self.wall_s, "cpu_s": self.cpu_s, "peak_bytes": self.peak_bytes}
        said = {"answer": self.answer, "failure": self.failure}
        asked = {"work": self.case.work, "arguments": self.case.arguments}
        return json.dumps({"row": row, "case": self.case.name, **asked, **figures, **said}, sort_keys=True)


def run_case(case: Case) -> Outcome:
    """The outcome of a fresh process; nothing that happens in it ends the benchmark."""
    argv = [sys.executable, str(WORKER), case.work, json.dumps(case.arguments)]
    started_s = time.monotonic()
    environment = {**os.environ, STARTED: repr(started_s)}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=environment, stdout=out, stderr=err, start_new_session=True
        )
        peak_bytes, usage, code = _watch(process, started_s + case.limit_s)
        wall_s = time.monotonic() - started_s
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    answer, failure = _read(texts[0], texts[1], code, wall_s >= case.limit_s)
    return Outcome(
        case=case, answer=answer, failure=failure, wall_s=wall_s, cpu_s=usage, peak_bytes=peak_bytes
    )


def _watch(process: subprocess.Popen[bytes], end_s: float) -> tuple[int, float, int]:
    """Largest memory of the tree, CPU seconds of all its processes, exit status; ends it at `end_s`."""
    peak_bytes = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return (
                max(peak_bytes, usage.ru_maxrss * 1024),
                usage.ru_utime + usage.ru_stime,
                process.returncode,
            )
        peak_bytes = max(peak_bytes, tree_bytes(process.pid))
        if time.monotonic() > end_s:
            os.killpg(process.pid, signal.SIGKILL)
            end_s = float("inf")
        time.sleep(SAMPLE_S)


def tree_bytes(pid: int) -> int:
    """Proportional set size of a process and all its descendants; 0 for what has ended meanwhile."""
    total = 0
    waiting = [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):
            continue
    return total


def _read(out: str, err: str, code: int, late: bool) -> tuple[Mapping[str, Any], str]:
    """The last line as JSON, or why there is none."""
    if late:
        return {}, "ended: over its limit of time"
    lines = out.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if code == 0 and lines else None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer, ""
    last = (err.strip().splitlines() or lines or ["no output"])[-1]
    return {}, f"exit code {code}: {last[:300]}"
