"""The replacement after losses: checked, without any lost device, and without those of other replicas."""

from __future__ import annotations

from collections.abc import Sequence, Set

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from launches import plan_of, replica_of

from executors.failover import boundary_of, devices_of, next_replica
from planner.plan import Failover, Plan

FIRST = replica_of(["a/0", "b/0"])
OTHER = replica_of(["z/0"], name="lab-r1")


def entry(lost: Sequence[str], after: Sequence[str] | None, speed: float = 50.0) -> Failover:
    replacement = None if after is None else replica_of(after, tokens_per_s=speed)
    return Failover(
        devices=tuple(lost), replica="lab-r0", replacement=replacement, tokens_per_s=speed if after else 0.0
    )


PLAN = plan_of(
    [FIRST, OTHER],
    [
        entry(["a/0"], ["a/1", "b/0"], 100.0),
        entry(["b/0"], ["a/0"], 60.0),
        entry(["a/0", "b/0"], ["c/0"], 20.0),
    ],
)


@pytest.mark.parametrize(
    ("lost", "in_use", "chosen"),
    [
        ({"a/0"}, set(), 0),
        ({"b/0"}, set(), 1),
        ({"a/0", "b/0"}, set(), 2),
        # A second loss hits the replacement: the entry for both planned devices does without it.
        ({"a/0", "a/1"}, set(), 2),
        # The spare is taken by another replica.
        ({"a/0"}, {"a/1"}, 2),
        # A loss outside of the planned replica leaves all entries; the fastest is taken.
        ({"q/0"}, set(), 0),
        ({"b/0", "a/0", "c/0"}, set(), None),
        ({"b/0"}, {"a/0", "c/0"}, None),
    ],
)
def test_the_entry_that_covers_the_loss_is_taken(
    lost: Set[str], in_use: Set[str], chosen: int | None
) -> None:
    choice = next_replica(PLAN, "lab", "lab-r0", lost, in_use=in_use)
    assert choice.entry == chosen
    entries = PLAN.boundaries[0].failover
    assert choice.replacement == (None if chosen is None else entries[chosen].replacement)


@pytest.mark.parametrize(
    ("plan", "lost", "words"),
    [
        (PLAN, {"b/0", "a/0", "c/0"}, "failover entry 2 uses c/0, lost as well"),
        (plan_of([FIRST], []), {"a/0"}, "no replacement for the loss of a/0"),
        (plan_of([FIRST], [entry(["a/0"], None)]), {"a/0"}, "no replacement exists without a/0"),
        (plan_of([FIRST], [entry(["a/0"], ["b/0"])]), {"a/0", "b/0"}, "the loss of a/0, b/0 together"),
    ],
)
def test_the_reason_why_nothing_fits_is_told(plan: Plan, lost: Set[str], words: str) -> None:
    choice = next_replica(plan, "lab", "lab-r0", lost)
    assert choice.replacement is None
    assert words in choice.reason


def test_a_replica_is_found_in_its_boundary() -> None:
    assert boundary_of(PLAN, "lab-r1") == "lab"


NAMES = [f"{host}/{slot}" for host in "abcd" for slot in range(2)]
SETS = st.frozensets(st.sampled_from(NAMES), max_size=4)
ENTRIES = st.lists(
    st.builds(
        entry,
        st.frozensets(st.sampled_from(NAMES[:4]), min_size=1).map(sorted),
        st.none() | st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
        st.floats(1.0, 99.0),
    ),
    max_size=6,
)


@given(ENTRIES, SETS, SETS)
def test_whatever_is_chosen_can_run(entries: list[Failover], lost: Set[str], in_use: Set[str]) -> None:
    planned = replica_of(NAMES[:4])
    plan = plan_of([planned], entries)
    choice = next_replica(plan, "lab", planned.id, lost, in_use=in_use)
    able = [
        e
        for e in entries
        if e.replacement is not None and not devices_of(e.replacement) & (set(lost) | set(in_use))
    ]
    assert (choice.replacement is None) == (able == [])
    assert choice.reason
    if choice.replacement is None or choice.entry is None:
        return
    assert entries[choice.entry].replacement == choice.replacement
    assert not devices_of(choice.replacement) & (set(lost) | set(in_use))
    own = set(lost) & devices_of(planned)
    covering = [e for e in able if own <= set(e.devices)]
    best = max(e.tokens_per_s for e in covering or able)
    assert entries[choice.entry].tokens_per_s == best


@settings(max_examples=50)
@given(ENTRIES, SETS, SETS)
def test_more_losses_never_make_more_possible(
    entries: list[Failover], lost: Set[str], more: Set[str]
) -> None:
    plan = plan_of([replica_of(NAMES[:4])], entries)
    assume(next_replica(plan, "lab", "lab-r0", lost).replacement is None)
    assert next_replica(plan, "lab", "lab-r0", set(lost) | set(more)).replacement is None
