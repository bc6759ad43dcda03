"""Writes to a journal until it is killed, and says on stdout what it was told is recorded.

    python net_journal_writer.py JOURNAL SEED

Each line is written after the journal has returned: `entry KIND KEY VALUE`, `both KEY VALUE QUEUED` (two
entries and a message in one transaction), `number VALUE`, `sending N`, `sent N`.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from executors.boundary.journal import Journal  # noqa: E402


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def main(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    journal = Journal(path)
    say("open")
    while True:
        key = f"{journal.num_entries}".encode()
        value = chance.randbytes(chance.choice((10, 1000, 30_000)))
        what = chance.randrange(4)
        if what == 0:
            journal.record("single", key, value)
            say(f"entry single {key.hex()} {value.hex()}")
        elif what == 1:
            with journal.transaction():
                journal.record("first", key, value)
                journal.record("second", key, value)
                queued = journal.queue("peer", key)
            say(f"both {key.hex()} {value.hex()} {queued.number}")
        elif what == 2:
            epoch = (journal.current("epoch") or 0) + 1
            journal.advance("epoch", epoch)
            say(f"number {epoch}")
        else:
            for message in journal.unsent()[:2]:
                say(f"sending {message.number}")
                journal.note_sent(message)
                say(f"sent {message.number}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
