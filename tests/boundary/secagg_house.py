"""A boundary for tests: authority, participants with journals in memory, aggregator, and whole windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from executors.boundary.secagg.aggregator import Aggregator
from executors.boundary.secagg.descriptor import Descriptor, Rules
from executors.boundary.secagg.fixed_point import encode_update
from executors.boundary.secagg.identity import Certificate, Identity, Trust, certify
from executors.boundary.secagg.participant import Participant
from executors.boundary.secagg.reception import Phase
from executors.boundary.secagg.spool import MemorySpool

LENGTH = 37
LAST_EPOCH = 1 << 40


class MemoryJournal:
    """Keeps everything in dictionaries; `copy` is a backup to roll back to."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], bytes] = {}
        self.epochs: dict[str, int] = {}

    def record(self, kind: str, key: str, value: bytes) -> None:
        assert self.values.setdefault((kind, key), value) == value

    def seen(self, kind: str, key: str) -> bytes | None:
        return self.values.get((kind, key))

    def highest_epoch(self, name: str) -> int:
        return self.epochs.get(name, -1)

    def begin_epoch(self, name: str, epoch: int) -> None:
        assert epoch > self.highest_epoch(name)
        self.epochs[name] = epoch

    def copy(self) -> MemoryJournal:
        twin = MemoryJournal()
        twin.values, twin.epochs = dict(self.values), dict(self.epochs)
        return twin


class Stream:
    """Repeatable randomness."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = seed.encode(), 0

    def __call__(self, num_bytes: int) -> bytes:
        blocks = []
        for _ in range(0, num_bytes, 32):
            blocks.append(sha256(self._seed + self._count.to_bytes(8, "little")).digest())
            self._count += 1
        return b"".join(blocks)[:num_bytes]


def key_of(name: str) -> Ed25519PrivateKey:
    """A key that depends on the name alone."""
    return Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest())


class House:
    """One boundary."""

    def __init__(self, num: int, *, boundary: str = "ward", **fields: Any) -> None:
        self.boundary, self.names = boundary, [f"p{i:03d}" for i in range(num)]
        self.authority, self.aggregator_key = (
            key_of(f"authority {boundary}"),
            key_of(f"aggregator {boundary}"),
        )
        values: dict[str, Any] = {
            "run": "run-1",
            "boundary": boundary,
            "epoch": 1,
            "base_first": 0,
            "base_last": 4,
            "length": LENGTH,
            "clip_l2": 100.0,
            "clip_linf": 8.0,
            "max_members": max(num, 3),
            "min_cohort": 3,
            "opened_s": 0.0,
            "deadline_s": 100.0,
        }
        self.descriptor = Descriptor(**{**values, **fields})
        self.journals = {name: MemoryJournal() for name in self.names}
        self.aggregator_journal = MemoryJournal()
        self._trust: Trust | None = None

    def trust(self, **fields: Any) -> Trust:
        """One for all unless fields differ, so that certificates are verified once and tests stay quick."""
        if not fields and self._trust is not None:
            return self._trust
        self._trust = None if fields else self._make_trust()
        return self._make_trust(**fields) if self._trust is None else self._trust

    def _make_trust(self, **fields: Any) -> Trust:
        return Trust(
            boundary=self.boundary,
            authority=self.authority.public_key(),
            aggregator=self.aggregator_key.public_key(),
            **fields,
        )

    def certificate(self, name: str, **fields: Any) -> Certificate:
        values: dict[str, Any] = {
            "name": name,
            "slot": f"slot-{name}",
            "boundary": self.boundary,
            "public_key": key_of(name).public_key().public_bytes_raw(),
            "first_epoch": 0,
            "last_epoch": LAST_EPOCH,
        }
        return certify(self.authority, Certificate(**{**values, **fields}))

    def rules(self, **fields: Any) -> Rules:
        d = self.descriptor
        values: dict[str, Any] = {
            "run": d.run,
            "boundary": d.boundary,
            "length": d.length,
            "ring_bits": d.ring_bits,
            "clip_l2": d.clip_l2,
            "clip_linf": d.clip_linf,
            "weight_max": d.weight_max,
            "min_cohort": d.min_cohort,
            "corrupt_permille": d.corrupt_permille,
        }
        return Rules(**{**values, **fields})

    def participant(
        self, name: str, kind: type[Participant] = Participant, *, seed: str = "", **fields: Any
    ) -> Participant:
        values: dict[str, Any] = {
            "identity": Identity(key=key_of(name), certificate=self.certificate(name)),
            "trust": self.trust(),
            "rules": self.rules(),
            "journal": self.journals.setdefault(name, MemoryJournal()),
            "random_bytes": Stream(f"{name} {seed} {self.descriptor.epoch}"),
        }
        return kind(**{**values, **fields})

    def participants(self, kind: type[Participant] = Participant) -> dict[str, Participant]:
        return {name: self.participant(name, kind) for name in self.names}

    def aggregator(self, *, keep: bool = False, **fields: Any) -> Aggregator:
        values: dict[str, Any] = {
            "descriptor": self.descriptor,
            "key": self.aggregator_key,
            "trust": self.trust(),
            "spool": MemorySpool(self.descriptor.num_bytes, keep=keep),
            "journal": self.aggregator_journal,
            "expected": self.names,
        }
        return Aggregator(**{**values, **fields})

    def next_epoch(self, **fields: Any) -> None:
        self.descriptor = replace(self.descriptor, epoch=self.descriptor.epoch + 1, **fields)


def update_of(name: str, length: int = LENGTH) -> NDArray[np.float32]:
    """An update that depends on the name alone."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:4], "little")
    return np.random.default_rng(seed).normal(0, 0.5, length).astype(np.float32)


def weight_of(name: str) -> float:
    """A weight in (0, 1] that depends on the name alone."""
    return 0.25 + sha256(name.encode()).digest()[5] / 400


def expected_sum(house: House, names: Iterable[str]) -> NDArray[Any]:
    """The integer sum of what these members encode, modulo the ring, extra coordinates included."""
    total = sum(
        encode_update(update_of(name, house.descriptor.length), weight_of(name), house.descriptor)
        for name in names
    )
    assert isinstance(total, np.ndarray)
    return total


Drops = Mapping[Phase, Iterable[str]]


class Run:
    """A window between members and an aggregator, frame by frame; members may be lost as phases begin."""

    def __init__(
        self,
        house: House,
        *,
        members: dict[str, Participant] | None = None,
        drops: Drops | None = None,
        change: Callable[[str, bytes], bytes] | None = None,
        aggregator: Aggregator | None = None,
    ) -> None:
        self.house, self.now_s = house, 1.0
        self.aggregator = house.aggregator() if aggregator is None else aggregator
        self.members = house.participants() if members is None else members
        self.alive = set(self.members)
        self.drops = {phase: set(names) for phase, names in (drops or {}).items()}
        self.change = change or (lambda _name, frame: frame)
        self.inbox: list[tuple[str, bytes]] = []
        opening = self.aggregator.open()
        self._lose(Phase.ENROLLING)
        self.inbox = [(name, opening) for name in self.members]

    def _lose(self, phase: Phase) -> None:
        for name in self.drops.get(phase, set()):
            self.alive.discard(name)
            self.aggregator.lose(name)

    def send(self, name: str, frame: bytes) -> None:
        self.aggregator.receive(self.change(name, frame), sender=name, now_s=self.now_s)

    def upload(self, name: str) -> None:
        member = self.members[name]
        masked = member.mask(
            update_of(name, self.house.descriptor.length),
            weight=weight_of(name),
            update_id=f"{name}/{self.house.descriptor.epoch}",
            now_s=self.now_s,
        )
        for chunk in masked.chunks():
            self.send(name, chunk)
        self.send(name, masked.trailer())

    def deliver(self) -> None:
        """Hand every waiting frame to its participant and the answers to the aggregator."""
        waiting, self.inbox = self.inbox, []
        for name, frame in waiting:
            if name not in self.alive:
                continue
            answer = self.members[name].receive(frame, now_s=self.now_s)
            if answer is not None:
                self.send(name, answer)
            elif self.aggregator.phase is Phase.UPLOADING:
                self.upload(name)

    def step(self) -> None:
        """Deliver, then go on; members lost in the next phase do not see its frames."""
        self.deliver()
        before = self.aggregator.phase
        for outgoing in self.aggregator.advance(now_s=self.now_s):
            names = self.members if outgoing.to is None else [outgoing.to]
            self.inbox += [(name, outgoing.frame) for name in names]
        if self.aggregator.phase is not before:
            self._lose(self.aggregator.phase)
        else:
            self.now_s = self.aggregator.deadline_s()

    def until(self, phase: Phase) -> Run:
        """Go on until a phase has begun."""
        for _ in range(40):
            if self.aggregator.phase >= phase:
                return self
            self.step()
        raise AssertionError(f"stuck in {self.aggregator.phase.name}")

    def finish(self) -> Run:
        """Go on until the result is ready or the window has ended."""
        return self.until(Phase.READY)
