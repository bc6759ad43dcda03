"""Measures one host: starts its ranks side by side, phase by phase, and gathers their answers.

`python -m executors.profiling.host` reads a request on stdin, as one line of JSON, and writes the host's
document to stdout; when stdin ends before, it ends everything. With the request as its argument (base64) it
reads nothing. No torch here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from costmodels.catalog import device_names
from costmodels.discover import MachineFacts, catalog_type, plain_name, probe_machine
from executors.environment import AUTO, CPU, CUDA, rank_environment
from executors.processes import end_with_parent
from executors.profiling.answers import SCHEMA, RankOrder
from executors.profiling.nvml import gpu_states
from planner.training import TrainingJob
from policies.errors import ExecutorFailedError
from policies.one_home import require_one_home

LAYERS = "layers"
POLL_S = 0.05
STEPS_TO_FILL = 2
FIRST_PORT = 29_600
TAIL_CHARACTERS = 2_000

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class HostRequest:
    """What to measure on one host, of `world_size` ranks in all from `first_rank` on.

    `model` holds the fields of a `ModelSpec`. Without a `device_type` the host says what it is; the
    accelerator `auto` is a GPU where the host has one. `meet_at` is the address of the first host, None where
    there is no other; each phase meets at a port of its own from `port` on.
    """

    host: str
    num_ranks: int
    model: Mapping[str, Any]
    chosen: tuple[int, ...]
    sizes: tuple[int, ...]
    device_type: str | None = None
    accelerator: str = AUTO
    executors: tuple[str, ...] = ()
    micro_batches: int = 4
    steps: int = 8
    warm_up_steps: int = 2
    probe_s: float = 0.5
    threads: int = 1
    first_rank: int = 0
    world_size: int = 0
    meet_at: str | None = None
    port: int = FIRST_PORT
    deadline_s: float = 1_800.0
    env: Mapping[str, str] = field(default_factory=dict)


def measure_host(request: HostRequest, *, tell: Tell = lambda _text: None) -> dict[str, Any]:
    """The host's document: what its machine is, and the answers of its ranks, phase by phase.

    Raises:
        ExecutorFailedError: `profile-rank-failed` with the first failure's last words, `profile-timeout`.
    """
    deadline_s = time.monotonic() + request.deadline_s
    facts = probe_machine(probe_s=0.0)
    request = settled(request, facts)
    answers: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="echelon-profile-") as text:
        for number, part in enumerate(parts_of(request)):
            tell(f"{request.host}: measuring {part.phase}")
            folder = Path(text) / str(number)
            folder.mkdir()
            found = _run_phase(part.request, part.phase, number, folder, deadline_s)
            answers[part.phase] = with_former_peaks(found, answers.get(part.phase))
    return {
        "schema": SCHEMA,
        "host": request.host,
        "device_type": request.device_type,
        "accelerator": request.accelerator,
        "first_rank": request.first_rank,
        "chosen": list(request.chosen),
        "micro_batches": request.micro_batches,
        "machine": asdict(facts),
        "gpus": [asdict(state) for state in gpu_states()],
        "ranks": answers.pop(LAYERS),
        "executors": answers,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One start of all ranks: what they measure, under which request."""

    phase: str
    request: HostRequest


def parts_of(request: HostRequest) -> list[Part]:
    """Layers first, then each executor with its smallest and its largest micro-batch.

    Each in processes of its own: an engine keeps memory of one that ran before it.
    """
    parts = [Part(phase=LAYERS, request=request)]
    for phase in request.executors:
        if min(request.sizes) < max(request.sizes):
            small = replace(request, sizes=(min(request.sizes),), steps=STEPS_TO_FILL)
            parts.append(Part(phase=phase, request=small))
        parts.append(Part(phase=phase, request=replace(request, sizes=(max(request.sizes),))))
    return parts


def with_former_peaks(
    found: list[dict[str, Any]], former: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """The newer answers of a phase, with the peaks of the former ones."""
    if former is None:
        return found
    return [
        {**new, "peaks_bytes": {**old["peaks_bytes"], **new["peaks_bytes"]}}
        for old, new in zip(former, found, strict=True)
    ]


def settled(request: HostRequest, facts: MachineFacts) -> HostRequest:
    """The request with what it leaves to the host."""
    accelerator = request.accelerator
    if accelerator == AUTO:
        accelerator = CUDA if facts.gpus else CPU
    return replace(
        request,
        accelerator=accelerator,
        device_type=request.device_type or own_type(facts, accelerator),
        world_size=request.world_size or request.num_ranks,
    )


def own_type(facts: MachineFacts, accelerator: str) -> str:
    """The catalog's name of the GPU, or its driver's; of a processor its name: a device of it is a core."""
    if accelerator == CUDA and facts.gpus:
        return catalog_type(facts.gpus[0], device_names()) or plain_name(facts.gpus[0].name)
    return plain_name(f"{facts.cpu.model_name}-core")


def orders_of(request: HostRequest, phase: str, number: int, folder: Path) -> list[RankOrder]:
    """What each rank of the host is told in a phase."""
    join = f"file:{folder / 'store'}"
    if request.meet_at is not None:
        join = f"tcp:{request.meet_at}:{request.port + number}"
    return [
        RankOrder(
            phase=phase,
            rank=request.first_rank + slot,
            world_size=request.world_size,
            slot=slot,
            join=join,
            accelerator=request.accelerator,
            model=request.model,
            chosen=request.chosen,
            sizes=request.sizes,
            micro_batches=request.micro_batches,
            steps=request.steps,
            warm_up_steps=request.warm_up_steps,
            probe_s=request.probe_s,
            threads=request.threads,
        )
        for slot in range(request.num_ranks)
    ]


def _run_phase(
    request: HostRequest, phase: str, number: int, folder: Path, deadline_s: float
) -> list[dict[str, Any]]:
    """Start the host's ranks and wait for all of them; when one fails the others are ended."""
    settings = {**rank_environment(TrainingJob(data=()), request.accelerator), **request.env}
    env = {**os.environ, **{name: value for name, value in settings.items() if value is not None}}
    env["OMP_NUM_THREADS"] = str(request.threads)
    orders = orders_of(request, phase, number, folder)
    processes = [_start(order, folder, env) for order in orders]
    try:
        _wait(processes, orders, folder, deadline_s)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    return [json.loads(_path(folder, order.rank, "json").read_text(encoding="utf-8")) for order in orders]


def _start(order: RankOrder, folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """One rank; the kernel ends it with this process."""
    order_path = _path(folder, order.rank, "order")
    order_path.write_text(json.dumps(asdict(order)) + "\n", encoding="utf-8")
    starter = os.getpid()
    with (
        order_path.open("rb") as told,
        _path(folder, order.rank, "json").open("wb") as answer,
        _path(folder, order.rank, "log").open("wb") as log,
    ):
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "executors.profiling.rank"],
            stdin=told,
            stdout=answer,
            stderr=log,
            env=dict(env),
            preexec_fn=lambda: end_with_parent(starter),
        )


def _wait(
    processes: Sequence[subprocess.Popen[bytes]],
    orders: Sequence[RankOrder],
    folder: Path,
    deadline_s: float,
) -> None:
    while True:
        codes = [process.poll() for process in processes]
        for order, code in zip(orders, codes, strict=True):
            if code:
                raise _failed(order, code, folder)
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline_s:
            waiting = ", ".join(str(o.rank) for o, code in zip(orders, codes, strict=True) if code is None)
            raise ExecutorFailedError(
                "profile-timeout",
                f"ranks {waiting} did not finish measuring {orders[0].phase} in time",
                hint="measure fewer steps (`--steps`), or a model with smaller micro-batches",
            )
        time.sleep(POLL_S)


def _failed(order: RankOrder, code: int, folder: Path) -> ExecutorFailedError:
    """What a rank said last before it failed."""
    log = _path(folder, order.rank, "log").read_text(encoding="utf-8", errors="replace")
    words = [line for line in log[-TAIL_CHARACTERS:].splitlines() if line.strip()]
    last = words[-1].strip() if words else "nothing was said"
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    return ExecutorFailedError(
        "profile-rank-failed",
        f"rank {order.rank} ended with {how} while measuring {order.phase}: {last}",
        hint="out of memory is the usual cause: measure fewer ranks (`--ranks`), or smaller micro-batches",
    )


def _path(folder: Path, rank: int, kind: str) -> Path:
    return folder / f"rank-{rank}.{kind}"


def request_to_json(request: HostRequest) -> str:
    """One line of JSON."""
    return json.dumps(asdict(request))


def request_from_json(text: str) -> HostRequest:
    """The request that `request_to_json` wrote."""
    value = json.loads(text)
    lists = {name: tuple(value[name]) for name in ("chosen", "sizes", "executors")}
    return HostRequest(**{**value, **lists})


def main(argv: Sequence[str]) -> int:
    """Measure what the request asks for."""
    require_one_home()
    if argv:
        request = request_from_json(b64decode(argv[0]).decode("utf-8"))
    else:
        request = request_from_json(sys.stdin.readline())
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        document = measure_host(request)
    except ExecutorFailedError as error:
        sys.stderr.write(f"error[{error.code}]: {error.message}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


def _end_with_stdin() -> None:
    """Whoever asked has gone: end this process, and the kernel ends its ranks."""
    while sys.stdin.readline():
        pass
    os._exit(ExecutorFailedError.exit_code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
