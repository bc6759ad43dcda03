"""Events survive their journey, stay in their closed list, and name first causes."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executors import events
from executors.causes import first_error, is_consequence, last_line
from executors.events import Event, Kind, parse_event
from executors.tails import RankTail, text_since
from policies.errors import InputError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
HEAD = {"event", "time_s", "rank", "host", "replica"}


@settings(max_examples=50)
@given(
    st.builds(
        Event,
        kind=st.sampled_from(list(Kind)),
        time_s=st.floats(0, 1e10),
        rank=st.none() | st.integers(0, 9999),
        host=st.text(),
        replica=st.text(),
        data=st.dictionaries(st.text().filter(lambda name: name not in HEAD), PLAIN),
    )
)
def test_an_event_survives_its_journey(event: Event) -> None:
    line = event.line()
    assert line.count("\n") == 1
    assert parse_event(line) == event


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        '{"event": "dance", "time_s": 1, "rank": 0}',
        '{"event": "hello", "rank": 0}',
        '{"event": "hello", "time_s": "1", "rank": 0}',
        '{"event": "hello", "time_s": true, "rank": 0}',
        '{"event": "hello", "time_s": 1, "rank": -1}',
        '{"event": "hello", "time_s": 1, "rank": 0, "host": 3}',
    ],
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        parse_event(line)


def test_numbers_that_json_lacks_become_null() -> None:
    figures = {"loss": math.nan, "gradient_norm": math.inf, "wall_s": 1.0, "cpu_s": 1.0}
    event = events.step(0, step=1, tokens=8, deep=[{"x": -math.inf}], **figures)
    data = parse_event(event.line()).data
    assert (data["loss"], data["gradient_norm"], data["deep"]) == (None, None, [{"x": None}])


def test_failures_carry_code_and_place() -> None:
    ours = events.failure(1, InputError("no-data", "no text", hint="put some")).data
    assert (ours["code"], ours["message"], ours["hint"]) == ("no-data", "no text", "put some")
    assert ours["exit_code"] == InputError.exit_code
    with pytest.raises(KeyError) as caught:
        dict[str, str]()["missing"]
    other = events.failure(1, caught.value).data
    assert (other["code"], other["message"]) == ("exception", "KeyError: 'missing'")
    assert Path(__file__).name in other["where"]


def test_odd_texts_do_not_break_lines() -> None:
    event = events.note("one\u2028two\udc80\n")
    assert event.line().isascii()
    assert parse_event(event.line()) == event


def test_long_texts_lose_their_middle() -> None:
    text = events.note("a" * 5000 + "b" * 5000).data["text"]
    assert len(text) <= events.MAX_TEXT
    assert text.startswith("aaa")
    assert text.endswith("bbb")


def test_a_tail_waits_for_whole_lines_and_takes_no_ones_else_events(tmp_path: Path) -> None:
    tail = RankTail(tmp_path, 3)
    assert tail.take() == []
    path = events.rank_file(tmp_path, 3)
    whole = events.hello(3, 7).line().encode()
    path.write_bytes(whole[:10])
    assert tail.take() == []
    with path.open("ab") as file:
        file.write(whole[10:] + events.hello(9, 8).line().encode() + events.now(Kind.ENDED).line().encode())
    first, second, third = tail.take()
    assert (first.rank, first.data["pid"]) == (3, 7)
    assert second.rank == 3
    assert third.kind is Kind.NOTE


def test_a_line_without_end_is_left_out(tmp_path: Path) -> None:
    tail = RankTail(tmp_path, 0)
    events.rank_file(tmp_path, 0).write_bytes(b"x" * 300_000)
    assert [event.kind for event in tail.take()] == [Kind.NOTE]


def test_long_logs_keep_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("earlier" + "first" + "x" * 1000 + "last")
    found = text_since(path, 7, limit_bytes=100)
    assert found.startswith("first")
    assert found.endswith("last")
    assert text_since(tmp_path / "missing", 0) == ""


def test_a_log_of_a_rank_begins_with_its_hello(tmp_path: Path) -> None:
    events.rank_log(tmp_path, 5).close()
    event = parse_event((tmp_path / "rank-5.jsonl").read_text())
    assert (event.kind, event.rank, event.data) == (Kind.HELLO, 5, {"pid": os.getpid()})


GLOO = """\
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    dist.recv(x)
RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:41234
"""
OURS = """\
warming up
Traceback (most recent call last):
  File "train.py", line 9, in <module>
    Config(
  File "model.py", line 1, in __init__
    raise ValueError(text)
ValueError: hidden size 7 does not divide by 2 heads
"""
TORCH = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "train.py", line 3, in <module>
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
"""
CHAINED = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'missing'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 2, in <module>
RuntimeError: no such key
"""


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("", ""),
        ("all is well\n", ""),
        (OURS, "ValueError: hidden size 7 does not divide by 2 heads"),
        (GLOO + OURS, "ValueError: hidden size 7 does not divide by 2 heads"),
        (TORCH, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (CHAINED, "KeyError: 'missing'"),
    ],
)
def test_the_first_traceback_that_is_a_cause_is_told(log: str, told: str) -> None:
    assert first_error(log) == told


def test_a_consequence_is_told_where_nothing_else_is() -> None:
    assert "Connection closed by peer" in first_error(GLOO)


@pytest.mark.parametrize(
    "text",
    [
        "[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "Gloo connectFullMesh failed ... Connection refused, remote=[127.0.0.1]:4",
        "NCCL error in: ../ProcessGroupNCCL.cpp, remote process exited or there was a network error",
        "ncclRemoteError: A call failed possibly due to a network error",
        "recvValue failed on SocketImpl(fd=3): failed to recv, got 0 bytes",
        "Timed out waiting 600000ms for recv operation to complete",
        "Watchdog caught collective operation timeout",
    ],
)
def test_words_about_a_gone_peer_are_consequences(text: str) -> None:
    assert is_consequence(text)


@pytest.mark.parametrize(
    "text", ["CUDA out of memory", "ValueError: timeout must be positive", "No such file or directory", ""]
)
def test_other_words_are_causes(text: str) -> None:
    assert not is_consequence(text)


def test_the_last_line_is_the_last_with_words() -> None:
    assert last_line("a\n b \n\n") == "b"
    assert last_line("\n") == ""
