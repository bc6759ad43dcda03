"""Secrets back from shares, and the masks that they open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from executors.boundary.secagg.graph import Graph
from executors.boundary.secagg.keys import (
    commit_seed,
    commit_share,
    mask_context,
    pair_key,
    public_bytes,
    self_key,
    share_context,
)
from executors.boundary.secagg.masks import Stream
from executors.boundary.secagg.messages import Dealt, Secret, Share, dealers_digest
from executors.boundary.secagg.reasons import Reason, RefusedError
from executors.boundary.secagg.roster import Roster
from executors.boundary.secagg.shamir import combine_shares, lagrange_at_zero


@dataclass(slots=True, kw_only=True)
class ShareBook:
    """Shares as they come in: each is compared with what its dealer published; wrong ones do not count."""

    roster: Roster
    graph: Graph
    scope: bytes
    dealt: Mapping[int, Mapping[int, Dealt]]  # dealer -> holder -> digests
    survivors: frozenset[int]
    good: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def wanted(self, about: int) -> Secret:
        """The one secret of a dealer that this window opens."""
        return Secret.SELF_SEED if about in self.survivors else Secret.MASK_KEY

    def add(self, holder: int, share: Share) -> bool:
        """Whether the share counts."""
        published = self.dealt.get(share.about, {}).get(holder)
        if published is None or share.secret is not self.wanted(share.about):
            return False
        is_seed = share.secret is Secret.SELF_SEED
        context = share_context(self.scope, self.roster.root)
        digest = commit_share(
            share.share, context=context, dealer=share.about, holder=holder, is_seed=is_seed
        )
        if digest != (published.seed_digest if is_seed else published.key_digest):
            return False
        self.good.setdefault(share.about, {})[holder] = share.share
        return True

    def is_complete(self) -> bool:
        """Whether every dealer's secret can be recovered."""
        return not self.lacking()

    def lacking(self) -> list[int]:
        """Dealers of whose secret too few shares came."""
        recover = self.graph.thresholds.recover
        return [dealer for dealer in self.dealt if len(self.good.get(dealer, ())) < recover]

    def recover(self) -> dict[int, bytes]:
        """The secret of every dealer, checked against its commitment.

        Raises:
            RefusedError: DEALER_INCONSISTENT, blaming a member whose shares don't give what it committed to.
        """
        weights: dict[tuple[int, ...], list[int]] = {}
        found = {}
        for dealer in sorted(self.dealt):
            holders = tuple(sorted(self.good[dealer])[: self.graph.thresholds.recover])
            if holders not in weights:
                weights[holders] = lagrange_at_zero([holder + 1 for holder in holders])
            shares = {holder: self.good[dealer][holder] for holder in holders}
            found[dealer] = self._checked(dealer, combine_shares(shares, weights[holders]))
        return found

    def _checked(self, dealer: int, secret: bytes | None) -> bytes:
        member = self.roster.members[dealer]
        if secret is not None and is_secret_of(
            secret, roster=self.roster, seat=dealer, kind=self.wanted(dealer), scope=self.scope
        ):
            return secret
        raise RefusedError(
            Reason.DEALER_INCONSISTENT,
            f"the shares that {member.name} dealt do not give the secret it committed to",
            blamed=[member.name],
        )


def is_secret_of(secret: bytes, *, roster: Roster, seat: int, kind: Secret, scope: bytes) -> bool:
    """Whether a recovered secret is the one its owner enrolled with."""
    member = roster.members[seat]
    if kind is Secret.SELF_SEED:
        return commit_seed(secret, scope) == member.seed_commitment
    return public_bytes(X25519PrivateKey.from_private_bytes(secret)) == member.mask_key


def leftover_streams(
    *,
    roster: Roster,
    graph: Graph,
    scope: bytes,
    dealers: frozenset[int],
    survivors: frozenset[int],
    secrets: Mapping[int, bytes],
) -> list[Stream]:
    """What takes the leftover masks out of the survivors' sum: self masks, and those of lost pairs."""
    context = mask_context(scope, roster.root, dealers_digest(dealers))
    streams = [
        Stream(self_key(secrets[seat], context=context, seat=seat), False) for seat in sorted(survivors)
    ]
    for lost in sorted(dealers - survivors):
        secret = X25519PrivateKey.from_private_bytes(secrets[lost])
        for other in graph.neighbours[lost]:
            if other in survivors:
                member = roster.members[other]
                key = pair_key(
                    secret, member.mask_key, context=context, own=lost, other=other, who=member.name
                )
                # the survivor added its mask where its seat is the lower one
                streams.append(Stream(key, other > lost))
    return streams
