"""The Merkle tree of RFC 6962, section 2.1: roots, inclusion proofs and consistency proofs.

MTH({})      = SHA-256()
MTH({d})     = SHA-256(0x00 || d)
MTH(D[n])    = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n])),  k the largest power of two below n
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256(0x00 || leaf)."""
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\1" + left + right).digest()


class TreeAppender:
    """A tree that only grows; it holds one hash per set bit of its size, so O(log n)."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        # Roots of perfect subtrees, the largest first, as (number of leaves, root).
        self._peaks: list[tuple[int, bytes]] = []

    def append(self, leaf: bytes) -> int:
        """Add one leaf; what comes back is its index."""
        self._push(1, leaf_hash(leaf))
        return self.size - 1

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add many leaves, level by level as far as they fill whole subtrees."""
        sha256 = hashlib.sha256
        done = 0
        while done < len(leaves):
            # The largest subtree that fits behind what is there and into what is left.
            width = 1 << ((len(leaves) - done).bit_length() - 1)
            if self.size:
                width = min(width, self.size & -self.size)
            level = [sha256(b"\0" + leaf).digest() for leaf in leaves[done : done + width]]
            while len(level) > 1:
                level = [
                    sha256(b"\1" + left + right).digest()
                    for left, right in zip(level[::2], level[1::2], strict=True)
                ]
            self._push(width, level[0])
            done += width

    def root(self) -> bytes:
        """The root over everything appended so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1][1]
        for _, peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def _push(self, width: int, root: bytes) -> None:
        self.size += width
        while self._peaks and self._peaks[-1][0] == width:
            root = node_hash(self._peaks.pop()[1], root)
            width *= 2
        self._peaks.append((width, root))


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over these leaves."""
    appender = TreeAppender()
    for leaf in leaves:
        appender.append(leaf)
    return appender.root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """PATH(index, D[n]): the sibling hashes from the leaf to the root.

    Raises:
        IndexError: for an index outside the tree.
    """
    if not 0 <= index < len(leaf_hashes):
        raise IndexError(f"leaf {index} of a tree of {len(leaf_hashes)}")
    proof: list[bytes] = []
    start, stop = 0, len(leaf_hashes)
    path: list[tuple[int, int]] = []
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append((middle, stop))
            stop = middle
        else:
            path.append((start, middle))
            start = middle
    for first, last in reversed(path):
        proof.append(_root_of_hashes(leaf_hashes[first:last]))
    return proof


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """PROOF(old_size, D[n]): what shows that the tree of `old_size` leaves is a prefix of this one.

    Raises:
        IndexError: for an old size that is 0 or larger than the tree.
    """
    if not 0 < old_size <= len(leaf_hashes):
        raise IndexError(f"a prefix of {old_size} leaves of a tree of {len(leaf_hashes)}")
    proof: list[bytes] = []
    start, stop, whole = 0, len(leaf_hashes), True
    while old_size != stop:
        middle = start + _split(stop - start)
        if old_size <= middle:
            proof.append(_root_of_hashes(leaf_hashes[middle:stop]))
            stop = middle
        else:
            proof.append(_root_of_hashes(leaf_hashes[start:middle]))
            start, whole = middle, False
    if not whole:
        proof.append(_root_of_hashes(leaf_hashes[start:stop]))
    return proof[::-1]


def is_included(*, leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that the leaf with this hash stands at `index` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or any(len(part) != HASH_BYTES for part in (leaf, root, *proof)):
        return False
    node, last, found = index, size - 1, leaf
    for part in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(part, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, part)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether `proof` shows that the new tree only adds to the old one (RFC 9162, 2.1.4.2).

    Every tree adds to the empty one; two trees of one size have to be equal.
    """
    if not 0 <= old_size <= new_size or any(len(part) != HASH_BYTES for part in (old_root, new_root, *proof)):
        return False
    if old_size == 0 or old_size == new_size:
        return not proof and old_root == (EMPTY_ROOT if old_size == 0 else new_root)
    parts = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    if not parts:
        return False
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = parts[0]
    for part in parts[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(part, old), node_hash(part, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, part)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _split(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)


def _root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    level = list(hashes)
    while len(level) > 1:
        # Pairing level by level and carrying an odd one up gives the same tree as the recursive definition.
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(level) & ~1 :]
    return level[0] if level else EMPTY_ROOT
