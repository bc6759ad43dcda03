"""Kills `net_journal_writer` at random points, and compares the journal with what was acknowledged."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from executors.boundary.journal import Journal

WRITER = Path(__file__).with_name("net_journal_writer.py")


@dataclass(kw_only=True)
class Acknowledged:
    """What one journal's writers were told, over all their lives."""

    entries: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    epoch: int = 0
    queued: set[int] = field(default_factory=set)
    sent: set[int] = field(default_factory=set)
    being_sent: set[int] = field(default_factory=set)

    def take(self, line: str) -> None:
        words = line.split()
        if words[0] == "entry":
            self.entries[words[1], bytes.fromhex(words[2])] = bytes.fromhex(words[3])
        elif words[0] == "both":
            key, value = (bytes.fromhex(word) for word in words[1:3])
            self.entries |= {("first", key): value, ("second", key): value}
            self.queued.add(int(words[3]))
        elif words[0] == "number":
            self.epoch = int(words[1])
        elif words[0] in {"sent", "sending"}:
            {"sent": self.sent, "sending": self.being_sent}[words[0]].add(int(words[1]))


def kill_and_compare(path: Path, num_kills: int, seed: int) -> int:
    """Kill that many writers of one journal in turn; the number of entries that stand in the end."""
    chance = random.Random(seed)
    told = Acknowledged()
    num_before = 0
    for kill in range(num_kills):
        run_and_kill(path, told, seed=seed * 1000 + kill, life_s=chance.expovariate(1 / 0.04))
        num_before = compare(path, told, num_before)
    return num_before


def run_and_kill(path: Path, told: Acknowledged, *, seed: int, life_s: float) -> None:
    """Let a writer live so long after it has opened the journal, then kill -9; take what it said."""
    with subprocess.Popen(
        [sys.executable, str(WRITER), str(path), str(seed)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(life_s)
        process.kill()
        lines = process.stdout.read().split("\n")
    # What follows the last line feed was cut off by the kill.
    for line in lines[:-1]:
        told.take(line)


def compare(path: Path, told: Acknowledged, num_before: int) -> int:
    """Check the journal against what was acknowledged; the number of its entries."""
    journal = Journal(path)
    try:
        found = {(entry.kind, entry.key): entry.value for entry in journal.replay()}
        assert told.entries.items() <= found.items(), "all that was acknowledged is there"
        # A writer is killed amid one step at most, and that makes two entries at most.
        extra = {name for name in found if name not in told.entries and not name[0].startswith("number:")}
        whole = [key for kind, key in extra if kind in {"first", "second"}]
        assert len(whole) % 2 == 0, "a transaction is there whole or not at all"
        told.entries.update({name: found[name] for name in extra})
        assert len(extra) <= 2
        epoch = journal.current("epoch") or 0
        assert told.epoch <= epoch <= told.epoch + 1
        told.epoch = epoch
        unsent = {message.number for message in journal.unsent()}
        assert not unsent & told.sent, "what was noted as sent is not sent again"
        assert told.queued - told.being_sent <= unsent, "what was queued is not lost"
        assert journal.num_entries >= num_before
        return journal.num_entries
    finally:
        journal.close()
