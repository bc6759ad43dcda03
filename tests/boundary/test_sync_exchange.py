"""The exchange in flight: training goes on under it and nothing learned meanwhile is lost or sent twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.boundary.outer.account import ByteAccount, Traffic
from executors.boundary.outer.exchange import LocalCopy
from executors.boundary.outer.global_model import Arrival, start_global
from executors.boundary.outer.vectors import Vector, from_bytes, squared_norm, to_bytes, weighted_mean
from policies.errors import EchelonError, InputError

# Multiples of 1/1024 well below 2^13 add and subtract exactly in fp32: equalities below are exact.
EXACT = st.integers(-1000, 1000).map(lambda n: np.array([n / 1024.0], dtype=np.float32))


def copy_at(value: Vector) -> LocalCopy:
    return LocalCopy(now_P=value, anchor_P=value)


@given(moves=st.lists(st.tuples(EXACT, EXACT, EXACT), min_size=1, max_size=20), begin=EXACT)
def test_no_progress_is_lost_and_none_is_sent_twice(
    moves: list[tuple[Vector, Vector, Vector]], begin: Vector
) -> None:
    copy = copy_at(begin)
    learned = sent = np.zeros(1, dtype=np.float32)
    for before_P, during_P, others_P in moves:
        copy = copy.move_to(copy.now_P + before_P)
        copy, delta_P = copy.send()
        sent = sent + delta_P
        at_send_P = copy.now_P
        copy = copy.move_to(copy.now_P + during_P)
        now_P = copy.now_P
        w_P = (at_send_P + others_P).astype(np.float32)
        copy = copy.receive(w_P, version=copy.version + 1)
        assert copy.now_P == w_P + (now_P - at_send_P)
        assert copy.anchor_P == w_P
        learned = learned + before_P + during_P
    _, rest_P = copy.send()
    assert sent + rest_P == learned


def test_one_exchange_at_a_time() -> None:
    copy, _ = copy_at(np.zeros(3, dtype=np.float32)).send()
    assert copy.is_in_flight
    with pytest.raises(EchelonError) as refused:
        copy.send()
    assert refused.value.code == "exchange-in-flight"
    assert not copy.receive(np.ones(3, dtype=np.float32), version=1).is_in_flight


def test_a_waiting_copy_becomes_the_received_model_bit_for_bit() -> None:
    copy, _ = copy_at(np.array([0.1, 1e8], dtype=np.float32)).send()
    w_P = np.array([1e-8, 0.3], dtype=np.float32)
    assert copy.receive(w_P, version=1).now_P.tobytes() == w_P.tobytes()


def test_progress_after_an_unasked_model_stays() -> None:
    copy = copy_at(np.zeros(1, dtype=np.float32)).move_to(np.array([2.0], dtype=np.float32))
    copy = copy.receive(np.array([10.0], dtype=np.float32), version=1)
    assert (copy.now_P[0], copy.send()[1][0]) == (12.0, 2.0)


def test_a_boundary_sends_no_second_delta_before_the_outer_step() -> None:
    model = start_global(np.zeros(1, dtype=np.float32))
    arrival = Arrival(boundary=1, delta_P=np.ones(1, dtype=np.float32), base_version=0)
    model = model.arrive(arrival)
    with pytest.raises(EchelonError) as refused:
        model.arrive(arrival)
    assert refused.value.code == "delta-twice"


@given(values=st.lists(st.floats(width=32), max_size=40))
def test_bytes_come_back_as_they_were(values: list[float]) -> None:
    vector_P = np.array(values, dtype=np.float32)
    data = to_bytes(vector_P)
    assert len(data) == 16 + 4 * len(values)
    assert from_bytes(data).tobytes() == vector_P.tobytes()
    for broken in (data[:-1], data + b"\0", b"X" + data[1:]):
        with pytest.raises(InputError):
            from_bytes(broken)


def test_the_account_counts_buffers_and_tells_inside_from_crossing() -> None:
    account = ByteAccount()
    account.add(Traffic.MASKED_UPDATE, b"12345")
    account.add(Traffic.BOUNDARY_DELTA, b"123")
    account.add(Traffic.GLOBAL_STATE, b"1234567")
    assert (account.crossing_bytes, account.inside_bytes, account.peak_bytes) == (10, 5, 7)
    assert account.num_messages[Traffic.BOUNDARY_DELTA] == 1


def test_means_need_weight() -> None:
    one_P = np.ones(2, dtype=np.float32)
    assert weighted_mean([one_P, 3 * one_P], [1.0, 3.0]) == pytest.approx([2.5, 2.5])
    assert squared_norm(one_P) == 2.0
    with pytest.raises(InputError):
        weighted_mean([one_P], [0.0])
