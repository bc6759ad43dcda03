"""Audit at scale: records verified and appended per CPU second, memory, and every single-bit change found.

    python tests/bench/bench_audit.py [--records 1000000] [--changes 10000] [--fuzz 1000000]

Prints one line per figure. CPU seconds are process time; memory is the peak resident size of a fresh process
that does nothing but verify.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from boundary.audit_messages import CONTRACT, fuzzed_headers  # noqa: E402
from boundary.audit_runs import (  # noqa: E402
    NAMES,
    POLICY_KEYS,
    Diary,
    Story,
    checkpoints_of,
    private_key,
    public_key,
    write_contract,
)
from policies.audit.checkpoint import Checkpoint, checkpoint_bytes, sign_checkpoint  # noqa: E402
from policies.audit.ledger import Ledger  # noqa: E402
from policies.audit.record import Channel, Kind, encode_record  # noqa: E402
from policies.audit.verdict import Outcome  # noqa: E402
from policies.audit.verify import verify_folder  # noqa: E402
from policies.envelope import EnvelopeRefusedError, decode_header  # noqa: E402

CHECKPOINT_EVERY = 10_000
BATCH_RECORDS = 256

VERIFIER = """
import resource, sys, time
from policies.audit.verify import main  # noqa: E402
status = main(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_SELF)
# ru_maxrss would be that of the process that started this one.
peak_kib = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"{status} {usage.ru_utime + usage.ru_stime:.3f} {int(peak_kib) // 1024}")
"""


def write_large_run(folder: Path, num_records: int) -> int:
    """An honest run of about so many records over all logs; what comes back is their exact number."""
    story = Story(0)
    story.diaries = [Diary(owner_id=i) for i in range(len(NAMES))]
    story.sequences.clear()
    rounds = [(Kind.BOUNDARY_STATUS, Channel.UP), (Kind.BOUNDARY_DELTA, Channel.UP)]
    rounds += [(Kind.GLOBAL_STATE, Channel.DOWN), (Kind.SYNC_DIRECTIVE, Channel.DOWN)]
    for window in range(num_records // (len(rounds) * 4)):
        for kind, channel in rounds:
            for boundary_id in (1, 2):
                values = {"base_version": window}
                story.say(kind, boundary_id, channel, **values | ({"epoch": window} if channel == 1 else {}))
    write_contract(folder, story.contract)
    for diary in story.diaries:
        name = NAMES[diary.owner_id]
        (folder / f"{name}.log").write_bytes(b"".join(diary.records))
        marks = range(CHECKPOINT_EVERY, len(diary.records), CHECKPOINT_EVERY)
        notes = checkpoints_of(diary.records, name, list(marks))
        (folder / f"{name}.checkpoints").write_bytes(b"".join(map(checkpoint_bytes, notes)))
    return sum(len(diary.records) for diary in story.diaries)


def bench_verify(num_records: int) -> dict[str, object]:
    """CPU seconds and peak memory of the verifier in a process of its own, start included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = write_large_run(folder, num_records)
        arguments = [f"--key={party}={key.hex()}" for party, key in POLICY_KEYS.items()]
        done = subprocess.run(
            [sys.executable, "-c", VERIFIER, str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
    status, cpu_s, peak_mib = done.stdout.splitlines()[-1].split()
    return {"records": total, "exit_code": int(status), "cpu_s": float(cpu_s), "peak_mib": int(peak_mib)}


def bench_append(num_records: int) -> dict[str, object]:
    """Records per second through append and a sync per batch, with the disk of the temporary folder."""
    story = Story(0)
    record = encode_record(story.record(Kind.BOUNDARY_STATUS, 1, Channel.UP, 1))
    with tempfile.TemporaryDirectory() as name:
        ledger = Ledger(Path(name), NAMES[1])
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for number in range(num_records):
            ledger.append(record)
            if number % BATCH_RECORDS == BATCH_RECORDS - 1:
                ledger.commit()
        ledger.commit()
        note = Checkpoint(run=story.contract.run, party=NAMES[1], size=num_records, root=ledger.root())
        ledger.add_checkpoint(sign_checkpoint(note, NAMES[1], private_key(NAMES[1], "log")))
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        ledger.close()
    return {
        "records": num_records,
        "batch": BATCH_RECORDS,
        "per_cpu_s": round(num_records / cpu_s),
        "per_wall_s": round(num_records / wall_s),
    }


def bench_changes(num_changes: int, seed: int = 0) -> dict[str, object]:
    """How the verdicts fall over single-bit changes of logs, checkpoints and contract."""
    verdicts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Story().write(folder)
        paths = sorted(folder.iterdir())
        draw = random.Random(seed)
        for _ in range(num_changes):
            path = draw.choice(paths)
            original = path.read_bytes()
            position = draw.randrange(8 * len(original))
            changed = bytearray(original)
            changed[position // 8] ^= 1 << position % 8
            path.write_bytes(changed)
            verdict = verify_folder(folder, POLICY_KEYS)
            path.write_bytes(original)
            first = verdict.failures[0].rule.value if verdict.failures else verdict.outcome.value
            verdicts[first] = verdicts.get(first, 0) + 1
        assert verify_folder(folder, POLICY_KEYS).outcome is Outcome.PASS
    return {"changes": num_changes, "passed": verdicts.pop("pass", 0), "verdicts": verdicts}


def bench_fuzz(num_headers: int, seed: int = 0) -> dict[str, object]:
    """What becomes of headers that nobody honest sent: each is refused with a reason."""
    public = {Channel.UP: public_key(NAMES[1], "message"), Channel.DOWN: public_key(NAMES[0], "message")}
    reasons: dict[str, int] = {}
    cpu_s = time.process_time()
    for data, channel in fuzzed_headers(random.Random(seed), num_headers):
        try:
            decode_header(data, CONTRACT, public[channel], boundary_id=1, channel=channel)
        except EnvelopeRefusedError as error:
            reasons[error.reason] = reasons.get(error.reason, 0) + 1
        else:
            reasons["taken"] = reasons.get("taken", 0) + 1
    cpu_s = time.process_time() - cpu_s
    return {
        "headers": sum(reasons.values()),
        "taken": reasons.pop("taken", 0),
        "reasons": reasons,
        "cpu_s": cpu_s,
    }


def main() -> None:
    """Print every figure as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=10_000)
    parser.add_argument("--fuzz", type=int, default=1_000_000)
    given = parser.parse_args()
    figures: dict[str, Callable[[], dict[str, object]]] = {
        "verify": lambda: bench_verify(given.records),
        "append": lambda: bench_append(given.records // 5),
        "single-bit changes": lambda: bench_changes(given.changes),
        "fuzzed headers": lambda: bench_fuzz(given.fuzz),
    }
    for name, measure in figures.items():
        print(json.dumps({"what": name, **measure()}), flush=True)


if __name__ == "__main__":
    main()
