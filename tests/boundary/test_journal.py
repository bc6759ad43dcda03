"""The journal: once only, in order, all or nothing, and never quietly put back."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.net_journal_kills import WRITER, kill_and_compare
from executors.boundary.journal import Entry, Journal, JournalError

STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.binary(max_size=2), st.binary(max_size=3), st.booleans()), max_size=25
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_it_behaves_as_an_ordered_dictionary_that_refuses_changes(
    steps: list[tuple[str, bytes, bytes, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    model: dict[tuple[str, bytes], bytes] = {}
    journal = Journal(path)
    for kind, key, value, reopens in steps:
        present = model.get((kind, key))
        assert journal.seen(kind, key) == present
        if present is None or present == value:
            assert journal.record(kind, key, value) is (present is None)
            model[kind, key] = value
        else:
            assert code_of(journal.record, kind, key, value) == "already-recorded"
        if reopens:
            journal.close()
            journal = Journal(path)
    wanted = [Entry(n, kind, key, value) for n, ((kind, key), value) in enumerate(model.items(), start=1)]
    assert list(journal.replay()) == wanted
    assert list(journal.replay("a")) == [entry for entry in wanted if entry.kind == "a"]
    assert journal.num_entries == len(wanted)
    journal.close()


def code_of(work: Callable[..., object], *args: object) -> str:
    with pytest.raises(JournalError) as refused:
        work(*args)
    return refused.value.code


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.record("a", b"1", b"x")

    def fail_amid() -> None:
        with journal.transaction():
            journal.record("a", b"2", b"y")
            journal.advance("epoch", 4)
            journal.queue("peer", b"message")
            raise RuntimeError("amid")

    with pytest.raises(RuntimeError, match="amid"):
        fail_amid()
    assert (journal.num_entries, journal.current("epoch"), journal.unsent()) == (1, None, [])
    with journal.transaction():
        journal.record("a", b"2", b"z")
        with journal.transaction():
            journal.queue("peer", b"message")
    assert journal.seen("a", b"2") == b"z"
    assert [message.message for message in journal.unsent()] == [b"message"]
    assert [entry.number for entry in journal.replay()] == [1, 2]
    journal.close()


def test_epochs_only_grow(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.current("epoch") is None
    journal.advance("epoch", 3)
    for value in (3, 2, 0):
        assert code_of(journal.advance, "epoch", value) == "not-monotonic"
    journal.advance("other", 1)
    journal.close()
    journal = Journal(tmp_path / "journal")
    assert (journal.current("epoch"), journal.current("other")) == (3, 1)
    journal.advance("epoch", 4)
    journal.close()


def test_what_is_queued_is_sent_in_order_and_again_where_it_may_not_have_gone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for number in range(3):
        journal.queue("peer", bytes([number]))
    sent: list[bytes] = []

    def send(address: str, message: bytes) -> None:
        sent.append(message)
        if message == b"\x01" and len(sent) == 2:
            raise ConnectionError("broke after it went out")

    with pytest.raises(ConnectionError):
        journal.flush(send)
    journal.close()
    journal = Journal(tmp_path / "journal")
    assert journal.flush(send) == 2
    assert sent == [b"\x00", b"\x01", b"\x01", b"\x02"]
    assert journal.flush(send) == 0
    journal.close()


def copies(tmp_path: Path) -> tuple[Path, Path]:
    """A journal of five entries, and a copy of it as it was at three."""
    path, old = tmp_path / "journal", tmp_path / "old"
    journal = Journal(path)
    for number in range(5):
        if number == 3:
            journal.close()
            shutil.copy(path, old)
            shutil.copy(path.with_name("journal.mark"), tmp_path / "old.mark")
            journal = Journal(path)
        journal.record("a", bytes([number]), b"x")
    journal.close()
    return path, old


def test_a_journal_put_back_is_found_out(tmp_path: Path) -> None:
    path, old = copies(tmp_path)
    shutil.copy(old, path)
    assert code_of(lambda: Journal(path)) == "journal-rolled-back"


def test_a_journal_put_back_and_carried_on_is_found_out(tmp_path: Path) -> None:
    path, old = copies(tmp_path)
    other = Journal(old)
    for number in range(9):
        other.record("b", bytes([number]), b"x")
    other.close()
    shutil.copy(old, path)
    assert code_of(lambda: Journal(path)) == "journal-rolled-back"


def test_a_journal_removed_or_exchanged_is_found_out(tmp_path: Path) -> None:
    path, _ = copies(tmp_path)
    path.unlink()
    assert code_of(lambda: Journal(path)) == "mark-of-another"
    path, _ = copies(tmp_path / "again")
    path.with_name("journal.mark").unlink()
    assert code_of(lambda: Journal(path)) == "mark-missing"


def test_a_torn_mark_does_no_harm(tmp_path: Path) -> None:
    """Either slot may be spoilt: the other one still tells of the last entry but one."""
    for spoilt in (0, 1):
        path, old = copies(tmp_path / str(spoilt))
        mark = path.with_name("journal.mark")
        data = bytearray(mark.read_bytes())
        data[spoilt * len(data) // 2 + 12] ^= 1
        mark.write_bytes(data)
        Journal(path).close()
        shutil.copy(old, path)
        mark.write_bytes(data)
        assert code_of(Journal, path) == "journal-rolled-back"


def test_an_altered_entry_is_found_out_by_replay(tmp_path: Path) -> None:
    path, _ = copies(tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE entries SET value = x'00' WHERE number = 2")
    db.close()
    journal = Journal(path)
    assert code_of(lambda: list(journal.replay())) == "journal-damaged"
    journal.close()


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"not a database at all" * 100)
    assert code_of(lambda: Journal(path)) == "journal-damaged"


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with subprocess.Popen(
        [sys.executable, str(WRITER), str(path), "1"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert code_of(lambda: Journal(path)) == "journal-in-use"
        process.kill()
    Journal(path).close()


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.record("a", b"", b"")
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    journal.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_loses_nothing_that_was_acknowledged(seed: int, tmp_path: Path) -> None:
    assert kill_and_compare(tmp_path / "journal", 12, seed) > 12
