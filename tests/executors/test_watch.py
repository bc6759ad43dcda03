"""The first cause is named, in whatever order the signs of a failure arrive. No processes here."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import replica_of, spec_of

from executors import events
from executors.events import Event, Kind, now, parse_event
from executors.outcome import Deadlines, ReplicaOutcome, Status
from executors.watch import ReplicaWatch
from policies.errors import ExecutorFailedError, InputError

DEADLINES = Deadlines(settle_s=1.0, silence_s=30.0, start_s=100.0, stall_s=50.0, exit_s=20.0)
REPLICA = replica_of(["a/0", "b/0", "c/0"])
HOST_OF = {0: "a", 1: "b", 2: "c"}


def at(event: Event, host: str = "") -> Event:
    """The event as it comes from its host, over the wire."""
    return replace(parse_event(event.line()), host=host or HOST_OF[event.rank or 0])


def watch_of(attempt: int = 1, *, training: bool = True, deadlines: Deadlines = DEADLINES) -> ReplicaWatch:
    """A watch at second 0, with all ranks ready if they are to be training."""
    watch = ReplicaWatch(spec_of(REPLICA, Path("/run"), port=1), deadlines, 0.0, attempt=attempt)
    for rank, host in HOST_OF.items():
        watch.take(at(now(Kind.STARTED, pid=1), host), 0.0)
        watch.take(at(events.hello(rank, 100 + rank)), 0.0)
        if training:
            watch.take(at(events.ready(rank)), 0.0)
    return watch


def died(rank: int, *, signal: int | None = None, code: int | None = None) -> Event:
    return at(now(Kind.RANK_DIED, rank, pid=1, signal=signal, code=code, oom_kills=0))


def gone_peer(rank: int) -> Event:
    return at(events.failure(rank, RuntimeError("[gloo/tcp/pair.cc] Connection closed by peer [10.0.0.1]")))


def exited(host: str, code: int, error: str = "") -> Event:
    return at(now(Kind.EXITED, code=code, signal=None, error=error), host)


def ended(host: str, reason: str = "exited") -> Event:
    return at(now(Kind.ENDED, reason=reason, num_killed=0, left=[]), host)


def judged(watch: ReplicaWatch, signs: Sequence[Event], *, until_s: float = 40.0) -> ReplicaOutcome:
    """The verdict on signs that arrive a hundredth of a second apart, with beats of all hosts between."""
    now_s = 10.0
    for sign in signs:
        watch.take(sign, now_s)
        verdict = watch.verdict(now_s)
        if verdict is not None:
            return verdict
        now_s += 0.01
    while now_s < until_s:
        now_s += 0.5
        for host in HOST_OF.values():
            watch.take(at(now(Kind.BEAT, ranks={}), host), now_s)
        verdict = watch.verdict(now_s)
        if verdict is not None:
            return verdict
    raise AssertionError("no verdict")


@pytest.mark.parametrize("order", list(permutations(range(5))))
def test_a_killed_rank_is_the_cause_in_every_order(order: tuple[int, ...]) -> None:
    signs = [
        died(1, signal=signal.SIGKILL),
        gone_peer(0),
        died(2, signal=signal.SIGTERM),
        exited("b", 247),
        exited("a", 1, "RuntimeError: Connection reset by peer"),
    ]
    verdict = judged(watch_of(), [signs[i] for i in order])
    assert (verdict.status, verdict.rank, verdict.lost_devices) == (Status.LOST, 1, ("b/0",))


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_a_mistake_of_the_job_is_the_cause_in_every_order(order: tuple[int, ...]) -> None:
    signs = [
        at(events.failure(1, InputError("no-data", "the folder is empty"))),
        gone_peer(0),
        died(2, signal=signal.SIGABRT),
        exited("a", 1),
    ]
    verdict = judged(watch_of(), [signs[i] for i in order])
    assert (verdict.status, verdict.code, verdict.rank, verdict.exit_code) == (Status.FAULT, "no-data", 1, 3)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_an_abort_counts_more_than_words_about_a_connection(order: tuple[int, ...]) -> None:
    signs = [died(2, signal=signal.SIGABRT), gone_peer(0), gone_peer(1)]
    verdict = judged(watch_of(), [signs[i] for i in order])
    assert (verdict.status, verdict.rank, verdict.signal) == (Status.LOST, 2, signal.SIGABRT)


def test_a_rank_that_says_so_itself_is_a_consequence() -> None:
    told = at(events.failed(0, code="lost-peer", message="odd words", exit_code=75, consequence=True))
    verdict = judged(watch_of(), [told, died(1, signal=signal.SIGSEGV)])
    assert (verdict.status, verdict.rank) == (Status.LOST, 1)


def test_consequences_alone_name_no_device() -> None:
    verdict = judged(watch_of(), [gone_peer(0), gone_peer(2)])
    assert (verdict.status, verdict.code, verdict.lost_devices) == (Status.FAULT, "connection-lost", ())


def test_a_silent_host_is_the_cause_though_its_peers_spoke_first() -> None:
    watch = watch_of()
    watch.take(gone_peer(0), 10.0)
    verdict, now_s = None, 10.0
    while verdict is None and now_s < 100:
        now_s += 1
        for host in ("a", "c"):
            watch.take(at(now(Kind.BEAT, ranks={}), host), now_s)
        verdict = watch.verdict(now_s)
    assert verdict is not None
    assert (verdict.status, verdict.code, verdict.host, verdict.lost_devices) == (
        Status.LOST,
        "host-lost",
        "b",
        ("b/0",),
    )


def test_all_ranks_that_are_killed_together_are_lost() -> None:
    verdict = judged(watch_of(), [died(2, signal=signal.SIGKILL), died(1, signal=signal.SIGKILL)])
    assert (verdict.rank, verdict.lost_devices) == (2, ("b/0", "c/0"))


def test_a_host_whose_connection_breaks_is_lost_with_its_devices() -> None:
    watch = watch_of()
    watch.closed("c", None, 10.0)
    verdict = judged(watch, [])
    assert (verdict.code, verdict.lost_hosts, verdict.lost_devices) == ("host-lost", ("c",), ("c/0",))


@pytest.mark.parametrize(("attempt", "status"), [(1, Status.REFUSED), (2, Status.LOST)])
def test_a_missing_host_is_a_mistake_at_first_and_a_loss_later(attempt: int, status: Status) -> None:
    watch = watch_of(attempt)
    watch.closed("b", ExecutorFailedError("host-unreachable", "no agent on host b"), 10.0)
    verdict = judged(watch, [])
    assert (verdict.status, verdict.code) == (status, "host-unreachable")
    assert verdict.lost_hosts == (("b",) if status is Status.LOST else ())


@pytest.mark.parametrize("kind", [Kind.WRONG_HOST, Kind.REFUSED])
def test_a_refusal_decides_at_once(kind: Kind) -> None:
    watch = watch_of(training=False)
    refusal = at(now(kind, code="port-taken", message="port 1 is in use", expected="x", found="y"), "b")
    watch.take(refusal, 10.0)
    verdict = watch.verdict(10.0)
    assert verdict is not None
    assert verdict.status is Status.REFUSED
    assert verdict.code == ("wrong-host" if kind is Kind.WRONG_HOST else "port-taken")


def beats(watch: ReplicaWatch, states: dict[int, str], now_s: float) -> None:
    for rank, host in HOST_OF.items():
        watch.take(at(now(Kind.BEAT, ranks={str(rank): [states.get(rank, "S"), 1.0]}), host), now_s)


def finish(watch: ReplicaWatch, now_s: float, *, exits: bool = True) -> None:
    for rank, host in HOST_OF.items():
        watch.take(at(events.finished(rank)), now_s)
        if exits:
            watch.take(exited(host, 0), now_s)
            watch.take(ended(host), now_s)


def test_the_end_of_all_is_the_end() -> None:
    watch = watch_of()
    assert watch.verdict(1.0) is None
    finish(watch, 2.0)
    verdict = watch.verdict(2.0)
    assert verdict is not None
    assert (verdict.status, verdict.exit_code) == (Status.FINISHED, 0)


def test_a_crash_after_the_work_is_done_is_no_failure() -> None:
    watch = watch_of()
    for rank in HOST_OF:
        watch.take(at(events.finished(rank)), 2.0)
    watch.take(died(1, signal=signal.SIGSEGV), 2.1)
    for host, code in (("a", 0), ("b", 139), ("c", 0)):
        watch.take(exited(host, code), 2.2)
        watch.take(ended(host), 2.2)
    verdict = watch.verdict(2.3)
    assert verdict is not None
    assert verdict.status is Status.FINISHED


def test_a_crash_while_another_rank_works_is_one() -> None:
    watch = watch_of()
    watch.take(at(events.finished(0)), 2.0)
    verdict = judged(watch, [died(1, signal=signal.SIGSEGV), exited("a", 0)])
    assert (verdict.status, verdict.rank) == (Status.LOST, 1)


def test_ranks_that_finished_and_linger_are_not_waited_for_for_ever() -> None:
    watch = watch_of()
    finish(watch, 2.0, exits=False)
    beats(watch, {}, 21.0)
    assert watch.verdict(21.9) is None
    verdict = watch.verdict(22.1)
    assert verdict is not None
    assert verdict.status is Status.FINISHED


def test_a_command_that_ends_well_without_its_ranks_is_a_fault() -> None:
    verdict = judged(watch_of(), [exited("b", 0), ended("b")])
    assert (verdict.status, verdict.code, verdict.rank) == (Status.FAULT, "rank-ended-early", 1)


@pytest.mark.parametrize(
    ("code", "error", "status"),
    [
        (137, "", Status.LOST),
        (247, "Connection closed by peer", Status.LOST),
        (1, "", Status.FAULT),
        (143, "", Status.FAULT),
        (247, "ValueError: no such optimiser", Status.FAULT),
    ],
)
def test_a_launcher_passes_on_that_a_process_below_it_was_killed(
    code: int, error: str, status: Status
) -> None:
    verdict = judged(watch_of(), [exited("b", code, error)])
    assert verdict.status is status
    assert verdict.lost_devices == (("b/0",) if status is Status.LOST else ())


def test_the_log_explains_a_rank_that_ended_without_a_word() -> None:
    signs = [died(1, code=1), exited("b", 1, "ImportError: no libfast.so")]
    verdict = judged(watch_of(), signs)
    assert verdict.message.endswith("ImportError: no libfast.so")


def test_the_start_deadline_names_who_is_missing() -> None:
    watch = watch_of(training=False)
    watch.take(at(events.ready(0)), 5.0)
    watch.take(at(events.ready(2)), 5.0)
    beats(watch, {}, 99.0)
    assert watch.verdict(99.0) is None
    verdict = watch.verdict(101.0)
    assert verdict is not None
    assert (verdict.code, verdict.rank) == ("not-ready", 1)
    assert "rank 1 (device b/0, host b) did not become ready within 100 s" in verdict.message


def step_of(rank: int, step: int, wall_s: float = 1.0) -> Event:
    return at(events.step(rank, step=step, loss=1.0, gradient_norm=1.0, wall_s=wall_s, cpu_s=1.0, tokens=8))


def test_a_stall_names_the_rank_that_is_behind() -> None:
    watch = watch_of()
    for rank in (0, 2):
        watch.take(step_of(rank, 7), 5.0)
    watch.take(step_of(1, 6), 5.0)
    beats(watch, {}, 54.0)
    assert watch.verdict(54.9) is None
    verdict = watch.verdict(55.1)
    assert verdict is not None
    assert (verdict.status, verdict.code, verdict.rank, verdict.step) == (Status.FAULT, "stalled", 1, 7)


@pytest.mark.parametrize("state", ["T", "D"])
def test_a_stall_with_a_rank_that_hangs_is_its_loss(state: str) -> None:
    watch = watch_of()
    beats(watch, {2: state}, 49.0)
    verdict = None
    for now_s in (50.5, 52.0):
        beats(watch, {2: state}, now_s)
        verdict = verdict or watch.verdict(now_s)
    assert verdict is not None
    assert (verdict.status, verdict.rank, verdict.lost_devices) == (Status.LOST, 2, ("c/0",))


def test_long_steps_are_no_stall() -> None:
    watch = watch_of(deadlines=replace(DEADLINES, stall_s=None, stall_min_s=10, stall_factor=20))
    watch.take(step_of(0, 1, wall_s=3.0), 10.0)
    beats(watch, {}, 60.0)
    assert watch.verdict(60.0) is None
    beats(watch, {}, 71.0)
    stalled = watch.verdict(71.0)
    assert stalled is not None
    assert stalled.code == "stalled"


def test_the_newest_checkpoint_is_known_across_starts() -> None:
    spec = spec_of(REPLICA, Path("/run"), port=1)
    watch = ReplicaWatch(spec, DEADLINES, 0.0, attempt=2, checkpoint=(40, "/run/40"))
    watch.take(at(events.checkpoint(0, step=30, folder="/run/30")), 1.0)
    assert (watch.so_far().checkpoint_step, watch.so_far().checkpoint) == (40, "/run/40")
    watch.take(at(events.checkpoint(0, step=50, folder="/run/50")), 1.0)
    assert (watch.so_far().checkpoint_step, watch.so_far().checkpoint) == (50, "/run/50")


def test_the_measured_speed_leaves_the_first_step_out() -> None:
    watch = watch_of()
    for step, wall_s in enumerate((8.0, 1.0, 2.0, 2.0), start=1):
        watch.take(step_of(0, step, wall_s), float(step))
    assert watch.so_far().tokens_per_s == 4.0


ANY_EVENT = st.builds(
    Event,
    kind=st.sampled_from(list(Kind)),
    time_s=st.just(0.0),
    rank=st.none() | st.integers(0, 4),
    host=st.sampled_from(["a", "b", "c", "elsewhere"]),
    data=st.dictionaries(
        st.sampled_from(["pid", "step", "code", "signal", "ranks", "message", "wall_s", "tokens", "folder"]),
        st.none() | st.integers(-3, 99) | st.text() | st.booleans() | st.dictionaries(st.text(), st.text()),
    ),
)


@settings(max_examples=50)
@given(st.lists(ANY_EVENT, max_size=12))
def test_no_event_upsets_the_watch(odd: list[Event]) -> None:
    watch = watch_of()
    for i, event in enumerate(odd):
        watch.take(event, float(i))
    verdict = watch.verdict(1000.0)
    assert verdict is None or verdict.status in Status
