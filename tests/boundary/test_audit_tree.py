"""The Merkle tree against RFC 6962's recursive definitions, written down as they stand there."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.audit.tree import (
    TreeAppender,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    is_included,
    leaf_hash,
    root_of,
)

MAX_SIZE = 130
LEAVES = [bytes([i]) * (i % 7) for i in range(MAX_SIZE)]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]

# Roots published with the reference implementations of certificate transparency, for its eight test leaves.
KNOWN_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
KNOWN_ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


@cache
def mth(a: int, b: int) -> bytes:
    """MTH(D[a:b])."""
    if a == b:
        return hashlib.sha256(b"").digest()
    if b - a == 1:
        return hashlib.sha256(b"\x00" + LEAVES[a]).digest()
    k = split(b - a)
    return hashlib.sha256(b"\x01" + mth(a, a + k) + mth(a + k, b)).digest()


def path(m: int, a: int, b: int) -> list[bytes]:
    """PATH(m, D[a:b])."""
    if b - a == 1:
        return []
    k = split(b - a)
    if m < k:
        return [*path(m, a, a + k), mth(a + k, b)]
    return [*path(m - k, a + k, b), mth(a, a + k)]


def subproof(m: int, a: int, b: int, whole: bool) -> list[bytes]:
    """SUBPROOF(m, D[a:b], whole)."""
    if m == b - a:
        return [] if whole else [mth(a, b)]
    k = split(b - a)
    if m <= k:
        return [*subproof(m, a, a + k, whole), mth(a + k, b)]
    return [*subproof(m - k, a + k, b, False), mth(a, a + k)]


def test_published_roots() -> None:
    assert {n: root_of(KNOWN_LEAVES[:n]).hex() for n in KNOWN_ROOTS} == KNOWN_ROOTS


@pytest.mark.parametrize("size", range(MAX_SIZE + 1))
def test_roots_and_all_proofs_of_one_size(size: int) -> None:
    root = mth(0, size)
    assert root_of(LEAVES[:size]) == root
    for index in range(size):
        proof = inclusion_proof(HASHES[:size], index)
        assert proof == path(index, 0, size)
        assert is_included(leaf=HASHES[index], index=index, size=size, proof=proof, root=root)
    for old in range(1, size + 1):
        proof = consistency_proof(HASHES[:size], old)
        assert proof == subproof(old, 0, size, True)
        assert is_consistent(old_size=old, old_root=mth(0, old), new_size=size, new_root=root, proof=proof)


def test_wrong_proofs_are_refused_for_every_small_size() -> None:
    for size in range(1, 34):
        root = mth(0, size)
        for index in range(size):
            proof = path(index, 0, size)
            others = [i for i in range(size) if i != index]
            for other in others:
                assert not is_included(leaf=HASHES[index], index=other, size=size, proof=proof, root=root)
            wrong = [[*proof, root], proof[:-1] if proof else [root], [p[::-1] for p in proof] or [root]]
            for bad in wrong:
                assert not is_included(leaf=HASHES[index], index=index, size=size, proof=bad, root=root)
        for old in range(1, size):
            proof = subproof(old, 0, size, True)
            good: dict[str, Any] = {
                "old_size": old,
                "old_root": mth(0, old),
                "new_size": size,
                "new_root": root,
                "proof": proof,
            }
            assert is_consistent(**good)
            for name, value in (
                ("old_root", HASHES[0][::-1]),
                ("new_root", HASHES[0][::-1]),
                ("proof", [*proof, root]),
                ("proof", proof[:-1]),
                ("proof", proof[1:]),
            ):
                assert not is_consistent(**{**good, name: value})


@given(st.integers(0, 200), st.data())
def test_leaves_may_come_in_any_portions(size: int, data: st.DataObject) -> None:
    leaves = [hashlib.sha256(bytes([i])).digest() for i in range(size)]
    tree = TreeAppender()
    while tree.size < size:
        width = data.draw(st.integers(1, size - tree.size))
        tree.extend(leaves[tree.size : tree.size + width])
    assert tree.root() == root_of(leaves)


def test_proofs_outside_the_tree_are_not_made() -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError):
            inclusion_proof(HASHES[:3], index)
    for old in (0, 4):
        with pytest.raises(IndexError):
            consistency_proof(HASHES[:3], old)
    assert not is_included(leaf=b"short", index=0, size=1, proof=[], root=HASHES[0])
    assert not is_consistent(old_size=5, old_root=HASHES[0], new_size=3, new_root=HASHES[0], proof=[])
