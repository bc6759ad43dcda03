"""Kills at random moments of real training: `python tests/bench/bench_failover.py [NUM] [SEED]`.

Each case launches a small plan of three ranks, picks a moment and a process (a rank, the runner, the agent
or the launcher itself) and ends it with SIGKILL. Afterwards the run has either gone on to its last step or
stopped with a reason, nothing of it is left running, and every checkpoint and adapter there can be read.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "executors")]

MARK = "ECHELON_TEST_MARK"
WAIT_S = 300.0
STEPS = 40


def main(num: int, seed: int) -> int:
    """Print one line per case and a summary; 1 when a case left something behind or gave no reason."""
    rng = random.Random(seed)
    verdicts: Counter[str] = Counter()
    for case in range(num):
        executor = "torch" if case % 2 else "deepspeed"
        with tempfile.TemporaryDirectory() as text:
            verdict, told = run_case(Path(text), executor, rng, f"{seed}-{case}-{os.getpid()}")
        verdicts[verdict] += 1
        print(f"{case:3d}  {executor:9}  {verdict:8}  {told}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    return 1 if verdicts["BROKEN"] else 0


def run_case(folder: Path, executor: str, rng: random.Random, mark: str) -> tuple[str, str]:
    """One launch with one kill: verdict and what happened."""
    from two_hosts import plan_in

    _, path = plan_in(folder)
    argv = [sys.executable, "-m", "planner.cli.main", "launch", str(path), "--format", "json", "--local"]
    argv += ["--job", str(folder / "job.yaml"), "--steps", str(STEPS), "--executor", executor]
    argv += ["-o", str(folder / "run")]
    env = {**os.environ, MARK: mark}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    moment = wait_for_a_moment(folder / "run" / "here-r0", rng, process)
    victims = {pid: role_of(pid) for pid in marked(mark)}
    victim = rng.choice(sorted(victims)) if victims else process.pid
    role = victims.get(victim, "launcher")
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        role += " (already gone)"
    try:
        out, _ = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        return "BROKEN", f"killed {role} {moment}: no end after {WAIT_S:.0f} s"
    left = wait_until_gone(mark)
    faults = [f"{len(left)} processes left"] if left else []
    faults += broken_files(folder / "run" / "here-r0")
    ended = how_it_ended(process.returncode, out, victim == process.pid)
    if faults or ended is None:
        return "BROKEN", f"killed {role} {moment}: {'; '.join(faults) or 'no reason given'}"
    return ended[0], f"killed {role} {moment}: {ended[1]}"


def how_it_ended(code: int, out: str, launcher_killed: bool) -> tuple[str, str] | None:
    """`resumed` or `stopped`, with the reason; None where none was given."""
    if launcher_killed:
        return "stopped", "the launcher itself was killed"
    answer: dict[str, Any] = json.loads(out) if out.strip() else {}
    if code == 0:
        return "finished", "to the last step"
    error = answer.get("error") or {}
    return ("stopped", f"{error['code']}: {error['message'][:110]}") if error.get("code") else None


def wait_for_a_moment(folder: Path, rng: random.Random, process: subprocess.Popen[str]) -> str:
    """Until a random step of rank 0, or a random second of the start."""
    if rng.random() < 0.25:
        delay_s = rng.uniform(0.5, 8.0)
        time.sleep(delay_s)
        return f"{delay_s:.1f} s after the start"
    step = rng.randint(1, STEPS - 1)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        log = folder / "rank-0.jsonl"
        if log.is_file() and f'"step": {step},' in log.read_text(encoding="utf-8"):
            time.sleep(rng.uniform(0.0, 0.3))
            break
        time.sleep(0.01)
    return f"in step {step + 1}"


def marked(mark: str) -> list[int]:
    """Processes of the case, zombies left out."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_until_gone(mark: str) -> list[int]:
    """What is left of the case after a grace of ten seconds."""
    deadline = time.monotonic() + 10.0
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def role_of(pid: int) -> str:
    """What a process is, by its command line."""
    try:
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return "process"
    for name, role in (
        # The worker's name stands in the arguments of the processes that start it, too.
        ("executors.rank_starter", "the rank starter"),
        ("deepspeed.launcher.launch", "the node launcher"),
        ("deepspeed.launcher.runner", "the runner"),
        ("executors.training.worker", "a rank"),
        ("executors.agent", "the agent"),
        ("planner.cli.main", "the launcher"),
    ):
        if name in words:
            return role
    return "a helper"


def broken_files(folder: Path) -> list[str]:
    """Checkpoints and adapters that can't be read as a whole."""
    from safetensors.numpy import load_file

    faults = []
    for manifest in folder.glob("checkpoints/step-*/manifest.json"):
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        for layer in layers:
            try:
                load_file(manifest.parent / f"layer-{layer:04d}.safetensors")
            except Exception as error:
                faults.append(f"{manifest.parent.name}: {error}")
    for weights in folder.glob("adapter*/adapter_model.safetensors"):
        try:
            load_file(weights)
        except Exception as error:
            faults.append(f"{weights}: {error}")
    return faults


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    sys.exit(main(words[0] if words else 20, words[1] if len(words) > 1 else 0))
