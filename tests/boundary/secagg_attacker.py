"""A lying aggregator: it has the aggregator's key, keeps every masked vector, and forges what it likes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boundary.secagg_house import House, Run
from executors.boundary.secagg.frames import Kind, decode_frame
from executors.boundary.secagg.masks import Stream, apply_streams
from executors.boundary.secagg.messages import (
    Secret,
    Survivor,
    dealers_digest,
    pack_consents,
    pack_survivors,
    unpack_shares,
)
from executors.boundary.secagg.participant import Participant
from executors.boundary.secagg.reception import Phase
from executors.boundary.secagg.recovery import leftover_streams
from executors.boundary.secagg.shamir import combine_shares, lagrange_at_zero


class LyingAggregator:
    """A window run honestly until every masked vector is in; from then on the aggregator does as it likes."""

    def __init__(self, house: House, members: dict[str, Participant]) -> None:
        self.house, self.members = house, members
        self.run = Run(house, members=members, aggregator=house.aggregator(keep=True)).until(Phase.CONSENTING)
        self.run.inbox = []
        self.aggregator = self.run.aggregator
        self.shares: dict[tuple[str, Secret], dict[int, bytes]] = {}

    def seat(self, name: str) -> int:
        return self.aggregator._seats[name]

    def survivors(self, names: Iterable[str]) -> bytes:
        """A signed SURVIVORS frame that names these members, with their true signatures."""
        done = self.aggregator._intake.done
        seats = sorted(self.seat(name) for name in names)
        return self.aggregator._sign(
            Kind.SURVIVORS, pack_survivors(Survivor(seat, *done[seat]) for seat in seats)
        )

    def consents(self, frames: dict[str, bytes]) -> bytes:
        """A signed CONSENTS frame of these members' consents."""
        entries = sorted((self.seat(name), decode_frame(frame).signature) for name, frame in frames.items())
        return self.aggregator._sign(Kind.CONSENTS, pack_consents(entries))

    def ask(self, names: Collection[str], survivors: Collection[str]) -> None:
        """Have these members open what a survivor set opens, and keep the shares."""
        told = self.survivors(survivors)
        consents = {name: self.members[name].reveal(told, now_s=self.run.now_s) for name in names}
        self.collect(names, self.consents(consents))

    def collect(self, names: Collection[str], told: bytes) -> None:
        """Hand out consents and keep the shares that come back."""
        assert self.aggregator.roster is not None
        members = self.aggregator.roster.members
        for name in names:
            frame = decode_frame(self.members[name].reveal(told, now_s=self.run.now_s), expect=Kind.REVEAL)
            for share in unpack_shares(frame.body, len(members)):
                key = (members[share.about].name, share.secret)
                self.shares.setdefault(key, {})[self.seat(name)] = share.share

    def secret(self, name: str, kind: Secret) -> bytes:
        """A secret from the shares that came."""
        shares = dict(sorted(self.shares[name, kind].items()))
        secret = combine_shares(shares, lagrange_at_zero([holder + 1 for holder in shares]))
        assert secret is not None
        return secret

    def masked(self, name: str) -> NDArray[np.uint32]:
        """The masked vector that this member sent."""
        spool = self.aggregator._intake._spool
        return np.frombuffer(spool.view(self.aggregator._intake._key(self.seat(name))), np.uint32).copy()

    def _leftovers(self, survivors: Iterable[str], secrets: dict[int, bytes]) -> list[Stream]:
        window = self.aggregator
        assert window.roster is not None
        assert window._graph is not None
        return leftover_streams(
            roster=window.roster,
            graph=window._graph,
            scope=window.scope,
            dealers=window._dealers,
            survivors=frozenset(self.seat(name) for name in survivors),
            secrets=secrets,
        )

    def open_one(self, victim: str) -> NDArray[np.uint32]:
        """The victim's own vector from its self seed and the mask keys of all the others."""
        secrets = {
            self.seat(name): self.secret(name, Secret.MASK_KEY) for name in self.members if name != victim
        }
        secrets[self.seat(victim)] = self.secret(victim, Secret.SELF_SEED)
        vector_N = self.masked(victim)
        apply_streams(vector_N, self._leftovers([victim], secrets))
        return vector_N

    def open_with_both(self, victim: str) -> NDArray[np.uint32]:
        """The victim's own vector from both of its secrets alone."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        from executors.boundary.secagg.keys import mask_context, pair_key, self_key

        window = self.aggregator
        assert window.roster is not None
        context = mask_context(window.scope, window.roster.root, dealers_digest(window._dealers))
        seat = self.seat(victim)
        key = X25519PrivateKey.from_private_bytes(self.secret(victim, Secret.MASK_KEY))
        streams = [Stream(self_key(self.secret(victim, Secret.SELF_SEED), context=context, seat=seat), False)]
        for other, member in enumerate(window.roster.members):
            if other != seat:
                mask = pair_key(key, member.mask_key, context=context, own=seat, other=other, who=member.name)
                streams.append(Stream(mask, other < seat))
        vector_N = self.masked(victim)
        apply_streams(vector_N, streams)
        return vector_N


def without(**methods: Any) -> type[Participant]:
    """A participant with some of its checks replaced: what it would be without exactly that defence."""
    return type("Careless", (Participant,), methods)


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """A check that checks nothing."""
