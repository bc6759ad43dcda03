"""The parts: masks, shares, thresholds, graphs, numbers, frames."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import sha256
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.secagg_fuzz import fuzz, golden_frames, mutate
from boundary.secagg_house import House, Run, expected_sum, key_of, update_of, weight_of
from boundary.secagg_house import Stream as Randomness
from executors.boundary.secagg.fixed_point import decode_sum, encode_update
from executors.boundary.secagg.frames import SHAPES, Kind, decode_frame, max_frame_bytes
from executors.boundary.secagg.graph import permutation
from executors.boundary.secagg.identity import decode_name, encode_name
from executors.boundary.secagg.keys import agree, derive_key, pair_key
from executors.boundary.secagg.masks import Stream, apply_streams, zeros
from executors.boundary.secagg.messages import Secret, Share, pack_shares
from executors.boundary.secagg.plain import LABEL, average_unprotected
from executors.boundary.secagg.reasons import AbortedError, Reason, RefusedError
from executors.boundary.secagg.reception import Phase
from executors.boundary.secagg.shamir import PRIME, combine_shares, lagrange_at_zero, split_secret
from executors.boundary.secagg.spool import FileSpool, MemorySpool
from executors.boundary.secagg.thresholds import thresholds
from policies.audit.tree import root_of

# masks


def test_a_mask_is_the_aes_256_ctr_keystream_and_can_begin_anywhere() -> None:
    key = sha256(b"mask").digest()
    vector_N = np.zeros(150_001, dtype=np.uint32)
    apply_streams(vector_N, [Stream(key, True)])
    expected = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(4 * 150_001))
    assert vector_N.tobytes() == expected
    part_N = np.zeros(1_000, dtype=np.uint32)
    apply_streams(part_N, [Stream(key, True)], first_coordinate=70_004)
    assert np.array_equal(part_N, vector_N[70_004:71_004])
    apply_streams(vector_N, [Stream(key, False)])
    assert not vector_N.any()


def test_masks_of_distinct_seeds_never_collide_and_their_bytes_are_uniform() -> None:
    seen = set()
    counts = np.zeros(256, dtype=np.int64)
    context = bytes(32)
    for i in range(2_000):
        key = derive_key(i.to_bytes(32, "little"), context=context, purpose="self", first=0, second=0)
        vector_N = np.zeros(256, dtype=np.uint32)
        apply_streams(vector_N, [Stream(key, True)])
        seen.add(vector_N[:4].tobytes())
        counts += np.bincount(vector_N.view(np.uint8), minlength=256)
    assert len(seen) == 2_000
    mean = counts.sum() / 256
    chi_square = float(((counts - mean) ** 2 / mean).sum())
    assert 160 < chi_square < 370  # 255 degrees of freedom: beyond either end once in a million


def test_every_part_of_the_context_changes_the_key() -> None:
    base: dict[str, Any] = {"context": bytes(32), "purpose": "pair", "first": 1, "second": 2}
    changes: list[dict[str, Any]] = [{"context": b"\1" * 32}, {"purpose": "self"}, {"purpose": "box"}]
    changes += [{"first": 2}, {"second": 3}]
    keys = {derive_key(bytes(32), **{**base, **change}) for change in [{}, *changes]}
    assert len(keys) == len(changes) + 1


def test_a_key_of_small_order_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        agree(X25519PrivateKey.from_private_bytes(b"\1" * 32), bytes(32), who="p1")
    assert caught.value.reason is Reason.RULES_VIOLATED
    assert caught.value.blamed == ("p1",)


def test_both_ends_of_a_pair_have_one_key() -> None:
    a, b = (X25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
    args = {"context": bytes(32), "who": "x"}
    left = pair_key(a, b.public_key().public_bytes_raw(), own=3, other=9, **args)  # type: ignore[arg-type]
    right = pair_key(b, a.public_key().public_bytes_raw(), own=9, other=3, **args)  # type: ignore[arg-type]
    assert left == right


# shares


@settings(max_examples=60, deadline=None)
@given(data=st.data(), secret=st.binary(min_size=32, max_size=32), num=st.integers(1, 20))
def test_any_threshold_of_shares_gives_the_secret(data: st.DataObject, secret: bytes, num: int) -> None:
    threshold = data.draw(st.integers(1, num))
    points = data.draw(st.lists(st.integers(1, 4096), min_size=num, max_size=num, unique=True))
    shares = split_secret(secret, points=points, threshold=threshold, random_bytes=Randomness("s"))
    chosen = data.draw(st.permutations(list(zip(points, shares, strict=True))))[:threshold]
    weights = lagrange_at_zero([point for point, _ in chosen])
    assert combine_shares(dict(chosen), weights) == secret
    if threshold > 1:
        fewer = chosen[:-1]
        weights = lagrange_at_zero([point for point, _ in fewer])
        assert combine_shares(dict(fewer), weights) != secret


def test_a_wrong_share_is_no_secret_and_shares_are_field_elements() -> None:
    shares = split_secret(bytes(32), points=range(1, 6), threshold=3, random_bytes=Randomness("t"))
    assert all(int.from_bytes(share, "little") < PRIME for share in shares)
    bent = {1: shares[0], 2: shares[1], 3: bytes(66)}
    assert combine_shares(bent, lagrange_at_zero([1, 2, 3])) is None


def test_a_wrong_share_is_blamed_and_another_one_is_used() -> None:
    house = House(5)

    def bend(name: str, frame: bytes) -> bytes:
        opened = decode_frame(frame)
        if name != "p004" or opened.kind is not Kind.REVEAL:
            return frame
        entries = [Share(seat, Secret.SELF_SEED, b"\7" * 66) for seat in range(5)]
        return resign(run, name, pack_shares(entries))

    run = Run(house, change=bend).until(Phase.REVEALING)
    run.inbox.sort(key=lambda item: item[0] != "p004")
    run.finish()
    assert run.aggregator.blamed == {"p004": Reason.SHARE_WRONG}
    result = run.aggregator.combine()
    assert np.array_equal(result.sum_N.view(np.uint32), expected_sum(house, house.names)[:-4])


def resign(run: Run, name: str, body: bytes) -> bytes:
    """A REVEAL of this member with another body."""
    from executors.boundary.secagg.frames import encode_frame

    roster = run.aggregator.roster
    assert roster is not None
    seat = run.aggregator._seats[name]
    return encode_frame(
        Kind.REVEAL, sender=seat, scope=run.aggregator.scope, roster=roster.root, body=body, key=key_of(name)
    )


def test_a_dealer_whose_shares_do_not_give_its_secret_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(5)
    run = Run(house).until(Phase.SHARING)
    cheat = run.members["p002"]
    assert cheat._window is not None
    object.__setattr__(cheat._window.secrets, "self_seed", bytes(32))
    run.finish()
    with pytest.raises(AbortedError) as caught:
        run.aggregator.combine()
    assert caught.value.reason is Reason.DEALER_INCONSISTENT
    assert caught.value.blamed == ("p002",)


def test_a_box_changed_on_the_way_does_not_count() -> None:
    house = House(6)
    run = Run(house).until(Phase.UPLOADING)
    assert run.aggregator._graph is not None
    for dealer in (0, 1):
        run.aggregator._dealt[dealer][5] = run.aggregator._dealt[dealer][4]
    victim = house_name(run, 5)
    run.inbox = [
        (name, run.aggregator._sign(Kind.INBOX, run.aggregator._inbox(5)) if name == victim else frame)
        for name, frame in run.inbox
    ]
    with pytest.raises(RefusedError) as caught:
        run.deliver()
    assert caught.value.reason is Reason.SHARE_BOX_INVALID
    assert set(caught.value.blamed) == {house_name(run, 0), house_name(run, 1)}


def test_a_share_that_is_not_what_its_dealer_published_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from executors.boundary.secagg import dealing

    run = Run(House(6)).until(Phase.SHARING)
    cheat = run.members["p003"]
    true = dealing.share_digests

    def other_digests(*args: Any, **kwargs: Any) -> tuple[bytes, bytes]:
        return true(*args, **kwargs)[0], bytes(32)

    waiting = run.inbox
    run.inbox = [(name, frame) for name, frame in waiting if name == "p003"]
    monkeypatch.setattr(dealing, "share_digests", other_digests)
    run.deliver()
    monkeypatch.undo()
    assert cheat._window is not None
    run.inbox = [(name, frame) for name, frame in waiting if name != "p003"]
    run.until(Phase.CONSENTING)
    assert all(member.wrong_dealers == ("p003",) for name, member in run.members.items() if name != "p003")


def test_a_roster_with_a_slot_twice_is_refused_by_its_members() -> None:
    from dataclasses import replace

    from executors.boundary.secagg.roster import freeze_roster

    house = House(4)
    run = Run(house).until(Phase.SHARING)
    assert run.aggregator.roster is not None
    members = list(run.aggregator.roster.members)
    members[1] = replace(members[1], certificate=replace(members[1].certificate, slot="slot-p000"))
    members[0] = replace(members[0], certificate=replace(members[0].certificate, slot="slot-p000"))
    with pytest.raises(RefusedError) as caught:
        freeze_roster(members, house.descriptor)
    assert caught.value.reason is Reason.MEMBER_REPEATED


def test_bytes_other_than_the_signed_ones_never_reach_the_sum() -> None:
    house = House(4)

    def bend(name: str, frame: bytes) -> bytes:
        is_chunk = decode_frame(frame).kind is Kind.CHUNK
        return frame[:-1] + bytes([frame[-1] ^ 1]) if is_chunk and name == "p001" else frame

    run = Run(house, change=bend).until(Phase.UPLOADING)
    run.inbox.sort(key=lambda item: item[0] == "p001")
    with pytest.raises(RefusedError) as caught:
        run.deliver()
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert len(run.aggregator._intake.done) == 3
    assert run.aggregator.received_bytes("p001") == 0


def house_name(run: Run, seat: int) -> str:
    assert run.aggregator.roster is not None
    return run.aggregator.roster.members[seat].name


# thresholds and graphs


def tail(population: int, marked: int, drawn: int, least: int) -> float:
    """P[at least `least` of the drawn are marked]."""
    total = sum(comb(marked, i) * comb(population - marked, drawn - i) for i in range(least, drawn + 1))
    return total / comb(population, drawn)


@pytest.mark.parametrize("num", [65, 100, 150, 400, 1000])
@pytest.mark.parametrize(("corrupt", "drop"), [(50, 50), (100, 100), (100, 50)])
def test_a_sparse_graph_keeps_its_four_promises(num: int, corrupt: int, drop: int) -> None:
    limits = thresholds(num, corrupt, drop)
    bad, lost, k = num * corrupt // 1000, num * drop // 1000, limits.degree
    assert k < num - 1
    assert num * tail(num - 1, bad, k, 2 * limits.recover - k - 1) <= 2**-41
    assert num * tail(num, bad, limits.window, limits.window_survivors) <= 2**-41
    assert num * tail(num - 1, lost, k, k - limits.recover + 1) <= 2**-20
    assert num * tail(num, lost, limits.window, limits.window - limits.window_survivors + 1) <= 2**-20


@pytest.mark.parametrize("num", range(3, 65))
def test_two_quorums_share_an_honest_member(num: int) -> None:
    limits = thresholds(num, 100, 100)
    assert limits.quorum == limits.recover == 2 * num // 3 + 1 <= num
    assert 2 * limits.quorum - num > (num - 1) // 3


@settings(max_examples=15, deadline=None)
@given(num=st.integers(65, 160), seed=st.binary(min_size=32, max_size=32), data=st.data())
def test_windows_with_enough_survivors_leave_the_honest_connected(
    num: int, seed: bytes, data: st.DataObject
) -> None:
    from executors.boundary.secagg.graph import Graph, _ring_neighbours, check_connected

    limits = thresholds(num, 100, 100)
    ring = permutation(num, seed)
    found = Graph(ring=ring, neighbours=_ring_neighbours(ring, limits.degree // 2), thresholds=limits)
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    assert all(i in found.neighbours[j] for i in range(num) for j in found.neighbours[i])
    present = set(range(num)) - set(rng.sample(range(num), num // 10))
    try:
        check_connected(found, present)
    except RefusedError:
        return
    honest = present - set(rng.sample(sorted(present), num // 10))
    reached, todo = set(), [min(honest)]
    while todo:
        seat = todo.pop()
        if seat not in reached:
            reached.add(seat)
            todo += [other for other in found.neighbours[seat] if other in honest]
    assert reached == honest


def test_permutations_are_uniform() -> None:
    counts = Counter(permutation(4, sha256(bytes([i % 256, i // 256])).digest()) for i in range(6_000))
    assert len(counts) == 24
    chi_square = sum((count - 250) ** 2 / 250 for count in counts.values())
    assert chi_square < 60  # 23 degrees of freedom


def test_the_merkle_root_is_that_of_the_recursive_definition() -> None:
    def root(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return sha256(b"\0" + leaves[0]).digest()
        half = 1
        while 2 * half < len(leaves):
            half *= 2
        return sha256(b"\1" + root(leaves[:half]) + root(leaves[half:])).digest()

    leaves = [bytes([i]) * 3 for i in range(70)]
    assert all(root_of(leaves[:n]) == root(leaves[:n]) for n in range(1, 70))


# numbers


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num=st.integers(3, 40), ring_bits=st.sampled_from([32, 64]))
def test_no_sum_of_extremes_leaves_the_ring(data: st.DataObject, num: int, ring_bits: int) -> None:
    house = House(3, length=4, max_members=num, ring_bits=ring_bits, clip_l2=64.0)
    sign = data.draw(st.sampled_from([1.0, -1.0]))
    extreme = np.full(4, sign * data.draw(st.sampled_from([8.0, 1e30, 7.999])), dtype=np.float32)
    total_N = zeros(house.descriptor)
    for _ in range(num):
        total_N += encode_update(extreme, 1.0, house.descriptor)
    result = decode_sum(total_N, num, house.descriptor)
    assert np.allclose(result.mean(), np.clip(extreme, -8.0, 8.0), rtol=1e-6)
    assert result.weight_sum == pytest.approx(num)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    update = update_of("p")
    update[3] = value
    with pytest.raises(RefusedError) as caught:
        encode_update(update, 1.0, House(3).descriptor)
    assert caught.value.reason is Reason.UPDATE_INVALID


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.01, float("nan")])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(RefusedError) as caught:
        encode_update(update_of("p"), weight, House(3).descriptor)
    assert caught.value.reason is Reason.UPDATE_INVALID


def test_plain_averaging_says_what_it_is_and_agrees() -> None:
    house = House(5)
    pairs = [(update_of(name), weight_of(name)) for name in house.names]
    with pytest.raises(ValueError, match="PLAIN AVERAGING"):
        average_unprotected(pairs, house.descriptor, label="")
    plain = average_unprotected(pairs, house.descriptor, label=LABEL)
    masked = Run(house).finish().aggregator.combine()
    assert np.array_equal(plain.sum_N, masked.sum_N)
    assert plain.weight_sum == masked.weight_sum


# frames


def test_every_kind_has_a_shape_and_a_bound() -> None:
    assert set(SHAPES) == set(Kind)
    assert all(max_frame_bytes(kind, max_members=10) < 2_000_000 for kind in Kind)


def test_bent_frames_are_refused_by_name_and_allocate_next_to_nothing() -> None:
    counts = fuzz(4_000, seed=7)
    assert counts["refused"] > 2_000
    assert counts["peak_bytes"] < 4_000_000


def test_bent_frames_never_change_a_state_machine() -> None:
    rng = random.Random(11)
    house = House(4)
    run = Run(house)
    frames = golden_frames()
    while run.aggregator.phase < Phase.READY:
        for _ in range(25):
            whole = rng.choice([*frames, *(frame for _, frame in run.inbox)])
            bent = mutate(whole, rng)
            if bent == whole:
                continue
            with pytest.raises(RefusedError):
                run.aggregator.receive(bent, sender=rng.choice(house.names), now_s=run.now_s)
            with pytest.raises(RefusedError):
                run.members[rng.choice(house.names)].receive(bent, now_s=run.now_s)
        run.step()
    result = run.aggregator.combine()
    assert np.array_equal(result.sum_N.view(np.uint32), expected_sum(house, house.names)[:-4])


@pytest.mark.parametrize("name", ["", "a b", "x" * 33, "é", "a\0"])
def test_names_are_printable_ascii(name: str) -> None:
    with pytest.raises(RefusedError):
        encode_name(name)


def test_names_have_one_form() -> None:
    assert decode_name(encode_name("ward-7")) == "ward-7"
    with pytest.raises(RefusedError):
        decode_name(b"a\0b".ljust(32, b"\0"))


def test_spools_give_back_what_came(tmp_path: Path) -> None:
    for spool in (MemorySpool(10), FileSpool(tmp_path)):
        for key, part in (("a", b"123"), ("b", b"xy"), ("a", b"45")):
            spool.append(key, part)
        assert bytes(spool.view("a")) == b"12345"
        spool.drop("a")
        spool.append("a", b"9")
        assert (bytes(spool.view("a")), bytes(spool.view("b"))) == (b"9", b"xy")
        spool.close()
    kept = FileSpool(tmp_path, keep=True)
    kept.append("c", b"77")
    kept.drop("c")
    assert bytes(kept.view("c")) == b"77"
    kept.close()
