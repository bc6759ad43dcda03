"""One rank of an own script: `python -m executors.script.start RUN.json`, started by an executor's launcher.

It takes the rank's place in the plan (processors, environment), then runs the script in this process as
`python SCRIPT ARGS` would: same arguments, same folder, same traceback, same exit code. What follows the run
file on the command line is for readers of process lists; the run file says what runs.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from executors import events
from executors.layout import layout_of
from executors.runfile import read_run
from executors.script import here
from executors.script.declaration import Script, script_sha256
from executors.training.place import take_place
from executors.training.worker import is_lost_peer
from policies.errors import EchelonError, ExecutorFailedError
from policies.one_home import require_one_home

FAILED_EXIT = ExecutorFailedError.exit_code


def main(argv: Sequence[str]) -> int:
    """Run the script; the exit code is its own, or that of an error of ours before it starts."""
    require_one_home()
    rank = int(os.environ["RANK"])
    path = Path(argv[0]).absolute()
    log = events.rank_log(path.parent, rank)
    try:
        run, script = _take_part(path, rank)
    except EchelonError as error:
        sys.stderr.write(f"error[{error.code}]: {error.message}\n")
        log(events.failure(rank, error))
        return error.exit_code
    except Exception as error:
        log(_failure(rank, error))
        raise
    try:
        code = _run(script)
    except BaseException as error:  # everything that would end the script ends it here
        log(_failure(rank, error))
        return _told_as_by_python(error, script.path)
    if code == 0:
        run.finished()
    else:
        message = f"{script.name} ended with exit code {code}"
        log(events.failed(rank, code="script-exit", message=message, exit_code=FAILED_EXIT))
    return code


def _take_part(path: Path, rank: int) -> tuple[here.PlannedRank, Script]:
    """Take the rank's place; what the plan gives it stands in the environment from now on.

    Raises:
        EchelonError: `no-script-planned`, `script-missing`, `script-changed`, or what the run file raises.
    """
    planned = read_run(path)
    script = planned.file.script
    if script is None:
        raise ExecutorFailedError("no-script-planned", f"{path} names no script", hint="launch again")
    layout = layout_of(planned.inputs.fleet, planned.replica)
    take_place(planned, layout, layout.ranks[rank])
    os.environ[here.RUN_VARIABLE] = str(path)
    run = here.plan()
    os.environ.update(here.exported(run))
    local = sum(1 for other in layout.ranks if planned.file.one_machine or other.host == run.host)
    os.environ.update(LOCAL_WORLD_SIZE=str(local), LOCAL_SIZE=str(local))
    _require_same_script(script, run.host)
    return run, script


def _require_same_script(script: Script, host: str) -> None:
    """The script on this host is the one whose declaration was held against the plan."""
    hint = "put script and folder on a shared file system, or copy them to the same place on every host"
    try:
        found = script_sha256(Path(script.path).read_bytes())
        os.chdir(script.folder)
    except OSError as error:
        raise ExecutorFailedError(
            "script-missing", f"{error.filename} can't be opened on host {host}: {error.strerror}", hint=hint
        ) from error
    if found != script.sha256:
        raise ExecutorFailedError(
            "script-changed",
            f"{script.path} on host {host} has sha256 {found[:16]}…, launched was {script.sha256[:16]}…",
            hint=f"{hint}, and launch again",
        )


def _run(script: Script) -> int:
    """Run the script as the main program; its exit code where it ends by itself."""
    sys.argv = [script.path, *script.arguments]
    if not sys.flags.safe_path:
        # `python SCRIPT` looks beside the script for what it imports.
        sys.path[0] = str(Path(script.path).parent)
    try:
        runpy.run_path(script.path, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return 0 if end.code is None else end.code & 0xFF
        sys.stderr.write(f"{end.code}\n")
        return 1
    return 0


def _failure(rank: int, error: BaseException) -> events.Event:
    """The event of an exception that ends the script."""
    event = events.failure(rank, error)
    if isinstance(error, EchelonError):
        return event
    consequence = isinstance(error, Exception) and is_lost_peer(error)
    return replace(event, data={**event.data, "consequence": consequence, "exit_code": FAILED_EXIT})


def _told_as_by_python(error: BaseException, path: str) -> int:
    """Print the exception as if the script had been started by itself; returns Python's exit code for it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename != path:
        traceback = traceback.tb_next
    own: TracebackType | None = traceback
    sys.excepthook(type(error), error.with_traceback(own), own)
    return 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
