"""A participant's secrets of one window, and how they are shared out and taken in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from executors.boundary.secagg.frames import SHARE_BYTES
from executors.boundary.secagg.graph import Graph, commit_contribution
from executors.boundary.secagg.keys import (
    agree,
    commit_seed,
    commit_share,
    public_bytes,
    seal,
    share_context,
    unseal,
)
from executors.boundary.secagg.messages import Dealt
from executors.boundary.secagg.protocol import RandomBytes
from executors.boundary.secagg.roster import Roster
from executors.boundary.secagg.shamir import split_secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Fresh for every window and kept in memory alone."""

    mask_secret: bytes
    box_secret: bytes
    self_seed: bytes
    contribution: bytes

    def mask_key(self) -> X25519PrivateKey:
        """The key behind pair masks."""
        return X25519PrivateKey.from_private_bytes(self.mask_secret)

    def box_key(self) -> X25519PrivateKey:
        """The key behind share boxes."""
        return X25519PrivateKey.from_private_bytes(self.box_secret)

    def public_part(self, scope: bytes) -> bytes:
        """Public keys and commitments, as an enrolment carries them."""
        return b"".join(
            (
                public_bytes(self.mask_key()),
                public_bytes(self.box_key()),
                commit_seed(self.self_seed, scope),
                commit_contribution(self.contribution, scope),
            )
        )


def draw_secrets(random_bytes: RandomBytes) -> Secrets:
    """New secrets."""
    return Secrets(
        mask_secret=random_bytes(32),
        box_secret=random_bytes(32),
        self_seed=random_bytes(32),
        contribution=random_bytes(32),
    )


@dataclass(frozen=True, slots=True)
class Held:
    """Shares that this participant holds for one dealer."""

    seed_share: bytes
    key_share: bytes


class Dealing:
    """The share stage of one participant: it deals once and then takes in the others' boxes."""

    def __init__(self, *, roster: Roster, graph: Graph, seat: int, scope: bytes, secrets: Secrets) -> None:
        """Agree on a box key with every neighbour."""
        self._roster, self._graph, self._seat = roster, graph, seat
        self._context = share_context(scope, roster.root)
        key = secrets.box_key()
        self._agreed = {
            other: agree(key, roster.members[other].box_key, who=roster.members[other].name)
            for other in graph.neighbours[seat]
        }
        self._secrets = secrets
        self.own: Held | None = None

    def deal(self, random_bytes: RandomBytes) -> list[Dealt]:
        """A box for every neighbour, and the digests of the share kept here, with an empty box."""
        holders = self._graph.holders(self._seat)
        points = [holder + 1 for holder in holders]
        split = [
            split_secret(
                secret, points=points, threshold=self._graph.thresholds.recover, random_bytes=random_bytes
            )
            for secret in (self._secrets.self_seed, self._secrets.mask_secret)
        ]
        return [self._box(holder, Held(*pair)) for holder, *pair in zip(holders, *split, strict=True)]

    def _box(self, holder: int, shares: Held) -> Dealt:
        digests = share_digests(shares, context=self._context, dealer=self._seat, holder=holder)
        if holder == self._seat:
            self.own = shares
            return Dealt(holder, bytes(2 * SHARE_BYTES + 16), *digests)
        box = seal(
            shares.seed_share + shares.key_share,
            self._agreed[holder],
            context=self._context,
            dealer=self._seat,
            holder=holder,
            digests=b"".join(digests),
        )
        return Dealt(holder, box, *digests)

    def take(self, entries: Sequence[Dealt]) -> tuple[dict[int, Held], list[int]]:
        """Shares that are what their dealers said, by dealer; and the dealers whose boxes are not.

        A box changed on the way and one that was wrong from the start look alike here: neither counts.
        """
        held = {} if self.own is None else {self._seat: self.own}
        wrong = []
        for entry in entries:
            shares = self._open(entry)
            if shares is None:
                wrong.append(entry.seat)
            else:
                held[entry.seat] = shares
        return held, wrong

    def _open(self, entry: Dealt) -> Held | None:
        agreed = self._agreed.get(entry.seat)
        if agreed is None:
            return None
        digests = (entry.seed_digest, entry.key_digest)
        raw = unseal(
            entry.box,
            agreed,
            context=self._context,
            dealer=entry.seat,
            holder=self._seat,
            digests=b"".join(digests),
        )
        if raw is None:
            return None
        shares = Held(raw[:SHARE_BYTES], raw[SHARE_BYTES:])
        found = share_digests(shares, context=self._context, dealer=entry.seat, holder=self._seat)
        return shares if found == digests else None


def share_digests(shares: Held, *, context: bytes, dealer: int, holder: int) -> tuple[bytes, bytes]:
    """Digests of the seed share and of the key share."""
    return (
        commit_share(shares.seed_share, context=context, dealer=dealer, holder=holder, is_seed=True),
        commit_share(shares.key_share, context=context, dealer=dealer, holder=holder, is_seed=False),
    )
