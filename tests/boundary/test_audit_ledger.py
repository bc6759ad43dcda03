"""The log on disk: whole after any crash, one writer, nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from boundary.audit_runs import Story, private_key
from policies.audit.checkpoint import Checkpoint, sign_checkpoint
from policies.audit.ledger import MAX_BATCH_RECORDS, Ledger, LedgerDamagedError, iter_records
from policies.audit.record import RECORD_BYTES, Channel, Kind, encode_record
from policies.audit.tree import root_of

ROOT = Path(__file__).resolve().parents[2]
RECORDS = Story(12).diaries[1].records

WRITER = """
import sys
from pathlib import Path
from policies.audit.ledger import Ledger
records = Path(sys.argv[2]).read_bytes()
ledger = Ledger(Path(sys.argv[1]), "clinic")
number = ledger.num_durable
while True:
    for _ in range(1 + number % 7):
        ledger.append(records[(number % 40) * 244 : (number % 40 + 1) * 244])
        number += 1
    sys.stdout.write(f"{ledger.commit()}\\n")
    sys.stdout.flush()
"""


def checkpoint_now(ledger: Ledger, *, is_closed: bool = False) -> Checkpoint:
    note = Checkpoint(
        run=bytes(range(16)), party="clinic", size=ledger.num_durable, root=ledger.root(), is_closed=is_closed
    )
    return sign_checkpoint(note, "clinic", private_key("clinic", "log"))


def write(folder: Path, records: list[bytes]) -> Path:
    ledger = Ledger(folder, "clinic")
    for record in records:
        ledger.append(record)
    ledger.commit()
    ledger.close()
    return folder / "clinic.log"


def test_what_was_committed_is_there_after_reopening(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS[:10])
    assert list(iter_records(path)) == RECORDS[:10]
    ledger = Ledger(tmp_path, "clinic")
    assert (ledger.num_durable, ledger.num_cut_records) == (10, 0)
    assert ledger.append(RECORDS[10]) == 10
    assert ledger.commit() == 11
    assert ledger.root() == root_of(RECORDS[:11])
    ledger.close()


def test_nothing_is_on_disk_before_a_commit_and_everything_after(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "clinic")
    ledger.append(RECORDS[0])
    assert (tmp_path / "clinic.log").stat().st_size == 0
    ledger.commit()
    assert (tmp_path / "clinic.log").stat().st_size == RECORD_BYTES
    ledger.close()


@pytest.mark.parametrize("cut", [1, 100, 243])
def test_a_torn_last_record_is_cut(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, RECORDS[:10])
    path.write_bytes(path.read_bytes()[:-cut])
    ledger = Ledger(tmp_path, "clinic")
    assert (ledger.num_durable, ledger.num_cut_records) == (9, 1)
    assert ledger.root() == root_of(RECORDS[:9])
    ledger.close()
    assert path.stat().st_size == 9 * RECORD_BYTES


def test_a_last_batch_with_a_hole_is_cut_from_the_hole_on(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS[:10])
    content = bytearray(path.read_bytes())
    content[7 * RECORD_BYTES : 8 * RECORD_BYTES] = bytes(RECORD_BYTES)
    path.write_bytes(content)
    ledger = Ledger(tmp_path, "clinic")
    assert (ledger.num_durable, ledger.num_cut_records) == (7, 3)
    ledger.close()


def test_damage_that_no_crash_explains_is_refused(tmp_path: Path) -> None:
    records = [RECORDS[i % len(RECORDS)] for i in range(MAX_BATCH_RECORDS + 10)]
    path = write(tmp_path, records)
    content = bytearray(path.read_bytes())
    content[5 * RECORD_BYTES + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerDamagedError, match="record 5 is damaged"):
        Ledger(tmp_path, "clinic")
    assert path.stat().st_size == len(records) * RECORD_BYTES


def test_signed_records_are_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS[:10])
    ledger = Ledger(tmp_path, "clinic")
    ledger.add_checkpoint(checkpoint_now(ledger))
    ledger.close()
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[9 * RECORD_BYTES + 20] ^= 1
    changed = content[: 9 * RECORD_BYTES] + RECORDS[11]
    for content_now, code in (
        (content[:-1], "log-truncated"),
        (bytes(damaged), "log-damaged"),
        (changed, "log-not-signed-one"),
    ):
        path.write_bytes(content_now)
        with pytest.raises(LedgerDamagedError) as refusal:
            Ledger(tmp_path, "clinic")
        assert refusal.value.code == code
        assert path.read_bytes() == content_now


@pytest.mark.parametrize("cut", [1, 2, 3, 40, 120, 150])
def test_a_torn_checkpoint_is_cut(tmp_path: Path, cut: int) -> None:
    write(tmp_path, RECORDS[:4])
    ledger = Ledger(tmp_path, "clinic")
    first = checkpoint_now(ledger)
    ledger.add_checkpoint(first)
    ledger.append(RECORDS[4])
    ledger.commit()
    ledger.add_checkpoint(checkpoint_now(ledger))
    ledger.close()
    path = tmp_path / "clinic.checkpoints"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    ledger = Ledger(tmp_path, "clinic")
    assert ledger.last_checkpoint == first
    ledger.add_checkpoint(checkpoint_now(ledger))
    ledger.close()
    assert path.read_bytes() == whole


def test_only_checkpoints_of_this_log_are_kept_and_a_closed_log_stays_closed(tmp_path: Path) -> None:
    write(tmp_path, RECORDS[:4])
    ledger = Ledger(tmp_path, "clinic")
    good = checkpoint_now(ledger, is_closed=True)
    other = Checkpoint(run=good.run, party="clinic", size=4, root=bytes(32))
    with pytest.raises(LedgerDamagedError, match="not one of this log"):
        ledger.add_checkpoint(sign_checkpoint(other, "clinic", private_key("clinic", "log")))
    ledger.add_checkpoint(good)
    with pytest.raises(LedgerDamagedError, match="is closed"):
        ledger.append(RECORDS[5])
    ledger.add_checkpoint(sign_checkpoint(good, "coordinator", private_key("coordinator", "log")))
    ledger.close()
    reopened = Ledger(tmp_path, "clinic")
    with pytest.raises(LedgerDamagedError, match="is closed"):
        reopened.append(RECORDS[5])
    reopened.close()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "clinic")
    with pytest.raises(LedgerDamagedError, match="another process writes"):
        Ledger(tmp_path, "clinic")
    ledger.close()
    Ledger(tmp_path, "clinic").close()


def test_only_whole_records_are_taken(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "clinic")
    with pytest.raises(LedgerDamagedError, match="no whole record"):
        ledger.append(RECORDS[0][:-1])
    with pytest.raises(LedgerDamagedError, match="no whole record"):
        ledger.append(bytes(RECORD_BYTES))
    ledger.close()


def test_a_log_that_cannot_be_written_says_so_and_goes_on_after_reopening(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "clinic")
    ledger.append(RECORDS[0])
    ledger.commit()
    ledger.append(RECORDS[1])
    os.truncate(tmp_path / "clinic.log", RECORD_BYTES)
    ledger.close()  # stands for a disk that is gone
    with pytest.raises(LedgerDamagedError) as refusal:
        ledger.commit()
    assert refusal.value.code == "log-not-written"
    again = Ledger(tmp_path, "clinic")
    assert again.num_durable == 1
    again.close()


def test_threads_share_the_log(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "clinic")
    indices: list[int] = []

    def work() -> None:
        for record in RECORDS[:30]:
            index = ledger.append(record)
            assert ledger.commit() > index
            indices.append(index)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(indices) == list(range(120))
    assert ledger.num_durable == 120
    ledger.close()


def test_a_killed_writer_loses_nothing_it_had_acknowledged(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"".join(RECORDS[:40]))
    draw = random.Random(5)
    acknowledged = 0
    for _ in range(8):
        argv = [sys.executable, "-c", WRITER, str(tmp_path), str(source)]
        with subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as p:
            assert p.stdout is not None
            lines = [p.stdout.readline()]
            time.sleep(draw.uniform(0.0, 0.05))
            p.send_signal(signal.SIGKILL)
            lines += p.stdout.read().splitlines()
        whole = [line for line in lines if line.strip().isdigit()]
        acknowledged = int(whole[-1])
        ledger = Ledger(tmp_path, "clinic")
        assert ledger.num_durable >= acknowledged
        expected = [RECORDS[i % 40] for i in range(ledger.num_durable)]
        assert ledger.root() == root_of(expected)
        ledger.close()
    assert acknowledged > 8


def test_an_aggregators_sent_and_received_records_keep_their_order(tmp_path: Path) -> None:
    story = Story(1)
    record = encode_record(story.record(Kind.ABORT, 1, Channel.UP, 1, epoch=3))
    path = write(tmp_path, [*story.diaries[1].records, record])
    assert list(iter_records(path))[-1] == record
