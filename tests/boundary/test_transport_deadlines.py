"""Every wait ends, and says for whom it was."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.net_cases import AGGREGATOR, ECHO, MEMBER, caller, end_in, payload, serving
from boundary.net_forwarder import Wan, forwarding
from executors.boundary.deadlines import Progress, WaitEndedError, deadline_in
from executors.boundary.transport.control import Tag
from executors.boundary.transport.inbox import BufferSource
from executors.boundary.transport.server import Limits
from executors.boundary.transport.transfer import Pace

pytestmark = pytest.mark.net


def test_a_deadline_names_whom_it_waited_for() -> None:
    deadline = deadline_in(2.5, awaited="participant lab/p3", what="its upload", now_s=100.0)
    assert deadline.left_s(101.0) == 1.5
    for now_s in (102.5, 1e9):
        with pytest.raises(WaitEndedError) as ended:
            deadline.left_s(now_s)
        assert ended.value.message == "waited 2.5 s for its upload from participant lab/p3, in vain"
        assert (ended.value.code, ended.value.awaited) == ("deadline-passed", "participant lab/p3")


@given(steps=st.lists(st.tuples(st.floats(0.01, 5.0), st.integers(0, 3000)), min_size=1, max_size=40))
def test_progress_ends_just_when_a_window_had_too_little(steps: list[tuple[float, int]]) -> None:
    wait = Progress(awaited="p", what="w", stall_s=4.0, min_bytes=1000, now_s=0.0, end=None)
    now_s, window_s, moved_bytes = 0.0, 0.0, 0
    for pause_s, num_bytes in steps:
        now_s += pause_s
        if now_s >= window_s + 4.0:
            with pytest.raises(WaitEndedError) as ended:
                wait.left_s(now_s)
            assert ended.value.code == "transfer-stalled"
            return
        assert wait.left_s(now_s) == pytest.approx(window_s + 4.0 - now_s)
        wait.moved(num_bytes, now_s)
        moved_bytes += num_bytes
        if moved_bytes >= 1000:
            window_s, moved_bytes = now_s, 0


def test_progress_also_ends_at_its_end() -> None:
    end = deadline_in(3.0, awaited="p", what="w", now_s=0.0)
    wait = Progress(awaited="p", what="w", stall_s=30.0, min_bytes=1, now_s=0.0, end=end)
    assert wait.left_s(1.0) == 2.0
    with pytest.raises(WaitEndedError, match="in vain"):
        wait.left_s(3.0)


def test_a_peer_that_never_answers(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        connection = caller(server.port).connect()
        with pytest.raises(WaitEndedError) as ended:
            connection.receive(end_in(0.2, str(AGGREGATOR)))
        connection.close()
    assert ended.value.awaited == str(AGGREGATOR)


def test_a_peer_that_accepts_and_is_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(WaitEndedError) as ended:
            caller(listener.getsockname()[1], connect_s=0.2).connect()
        assert (ended.value.awaited, ended.value.what) == (str(AGGREGATOR), "a connection")


def test_heartbeats_keep_a_long_wait_alive_and_their_end_is_noticed(tmp_path: Path) -> None:
    wan = Wan()
    with (
        serving(tmp_path, limits=Limits(heartbeat_s=0.05)) as (server, _),
        forwarding(server.port, wan) as port,
    ):
        connection = caller(port).connect()
        connection.silence_s = 0.4
        with pytest.raises(WaitEndedError) as ended:
            connection.receive(end_in(1.0))
        assert ended.value.code == "deadline-passed", "alive all the while"
        wan.is_frozen = True
        with pytest.raises(WaitEndedError) as ended:
            connection.receive(end_in(30.0))
        assert ended.value.code == "peer-silent"
        assert ended.value.awaited == str(AGGREGATOR)
        connection.abandon()
        wan.is_frozen = False


def test_an_upload_that_stalls_ends_on_both_sides(tmp_path: Path) -> None:
    wan = Wan(rate_bytes_per_s=2_000_000.0)
    data = payload(20_000_000)
    with (
        serving(tmp_path, expect=lambda sender, tag: len(data), limits=Limits(silence_s=0.5)) as (
            server,
            desk,
        ),
        forwarding(server.port, wan) as port,
    ):
        client = caller(port, pace=Pace(stall_s=0.5, min_bytes=4096))
        threading.Timer(0.3, lambda: setattr(wan, "is_frozen", True)).start()
        with pytest.raises(WaitEndedError) as ended:
            client.upload(Tag(0, 0), BufferSource(data), end=end_in(1.5, str(AGGREGATOR)))
        fault = desk.wait_for_fault("peer-silent")
        wan.is_frozen = False
    assert "the floor is 4,096" in ended.value.message
    assert isinstance(fault, WaitEndedError)
    assert fault.awaited == str(MEMBER)


def test_a_reader_that_stops_reading_does_not_hold_the_sender(tmp_path: Path) -> None:
    """The client asks for echoes and reads none: the server's send ends at its deadline."""
    with serving(tmp_path) as (server, _):
        connection = caller(server.port).connect()
        done = threading.Event()

        def ask() -> None:
            try:
                while not done.is_set():
                    connection.send(ECHO, bytes(100_000), end_in(0.5, str(AGGREGATOR)))
            except WaitEndedError:
                done.set()

        thread = threading.Thread(target=ask)
        thread.start()
        assert done.wait(20.0)
        thread.join()
        connection.abandon()


def test_a_trickle_is_no_progress(tmp_path: Path) -> None:
    with (
        serving(tmp_path, expect=lambda sender, tag: 1_000_000) as (server, _),
        forwarding(server.port, Wan(rate_bytes_per_s=20_000.0)) as port,
    ):
        client = caller(port, pace=Pace(stall_s=0.4, min_bytes=1_000_000))
        with pytest.raises(WaitEndedError) as ended:
            client.upload(Tag(0, 0), BufferSource(payload(1_000_000)), end=end_in(1.0, str(AGGREGATOR)))
    assert ended.value.code == "deadline-passed"


def test_closing_never_waits_long_for_a_dead_peer(tmp_path: Path) -> None:
    wan = Wan()
    with serving(tmp_path) as (server, _), forwarding(server.port, wan) as port:
        connection = caller(port).connect()
        wan.is_frozen = True
        before_s = time.monotonic()
        connection.close()
        # The promise is a second; the bound here only tells it from waiting for ever on a busy machine.
        assert time.monotonic() - before_s < 15.0
        wan.is_frozen = False
