"""Losses in the middle of a run: resumed from the newest checkpoint, or stopped with the reason."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from launches import QUICK, Heard, fleet_of, local, mark, marked, plan_of, replica_of, spec_of
from small_worker import Behaviour

from executors.base import LaunchSpec
from executors.events import Event, Kind
from executors.outcome import LaunchOutcome, Status
from executors.relaunch import run_with_failover
from planner.plan import Failover, Plan, ReplicaPlan
from policies.errors import EchelonError

__all__ = ["mark"]

pytestmark = pytest.mark.usefixtures("mark")

FLEET = fleet_of({"a": 2, "b": 1, "c": 1})
FIRST = replica_of(["a/0", "b/0"], tokens_per_s=100.0)
OTHER = replica_of(["c/0"], name="lab-r1")


def entry(lost: Sequence[str], after: Sequence[str] | None, speed: float = 50.0) -> Failover:
    replacement = None if after is None else replica_of(after, tokens_per_s=speed)
    return Failover(devices=tuple(lost), replica="lab-r0", replacement=replacement, tokens_per_s=speed)


PLAN = plan_of(
    [FIRST],
    [
        entry(["a/0"], ["a/1", "b/0"], 90.0),
        entry(["b/0"], ["a/0"], 60.0),
        entry(["a/0", "b/0"], ["c/0"], 20.0),
    ],
)
QUIET = Behaviour(steps=40, checkpoint_every=4)


@dataclass(slots=True)
class Launch:
    """One run with failover: start number k behaves as `then[k]` says, else as `again` does."""

    folder: Path
    plan: Plan = PLAN
    again: Behaviour = QUIET
    then: dict[int, Behaviour] = field(default_factory=dict)
    react: Callable[[Event], None] = lambda event: None
    prepared: list[dict[str, Any]] = field(default_factory=list)
    heard: Heard = field(default_factory=Heard)

    def run(self, *specs: LaunchSpec, max_failovers: int = 3, on_this_machine: bool = False) -> LaunchOutcome:
        self.heard.react = self.react
        return run_with_failover(
            self.plan,
            FLEET,
            specs,
            self.prepare,
            local(),
            self.heard,
            deadlines=QUICK,
            max_failovers=max_failovers,
            on_this_machine=on_this_machine,
        )

    def prepare(self, replica: ReplicaPlan, **about: Any) -> LaunchSpec:
        self.prepared.append(about)
        return spec_of(replica, self.folder, self.then.get(about["attempt"], self.again))


def test_a_lost_rank_is_replaced_from_the_newest_checkpoint(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    outcome = launch.run(
        spec_of(FIRST, tmp_path, Behaviour(steps=40, checkpoint_every=4, rank=0, at=10, how="kill"))
    )
    (finished,) = outcome.replicas
    assert (finished.status, finished.attempt, finished.step) == (Status.FINISHED, 2, 40)
    assert launch.prepared == [{"boundary": "lab", "failover": 0, "resume": True, "attempt": 2}]
    (failover,) = launch.heard.of(Kind.FAILOVER)
    assert failover.replica == "lab-r0"
    assert failover.data["lost"] == ["a/0"]
    assert failover.data["entry"] == 0
    assert failover.data["planned_tokens_per_s"] == {"before": 100.0, "after": 90.0}
    steps = {name: failover.data[name] for name in ("from_replica_step", "resumed_step", "lost_steps")}
    assert steps == {"from_replica_step": 10, "resumed_step": 8, "lost_steps": 2}
    assert "rank 0 (device a/0, host a) was ended by signal 9" in failover.data["reason"]
    (resumed,) = launch.heard.of(Kind.RESUMED)
    assert (resumed.data["resumed_step"], resumed.data["lost_steps"]) == (8, 2)
    assert all(resumed.data["measured_tokens_per_s"].values())
    starts = [event.data["step"] for event in launch.heard.of(Kind.READY)]
    assert starts == [0, 0, 8, 8]


def test_losses_add_up_until_nothing_fits(tmp_path: Path) -> None:
    """First a/0, then its replacement a/1, then c/0, which was all that the plan had left."""
    dies = Behaviour(steps=1000, checkpoint_every=4, rank=0, at=6, how="kill")

    def react(event: Event) -> None:
        # Replacements resume behind step 6, so they are killed from outside.
        if event.kind is Kind.STEP and event.rank == 0 and event.data["step"] >= 12:
            pid = launch.heard.pids()[0]
            if pid not in killed:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    killed: list[int] = []
    launch = Launch(tmp_path, again=Behaviour(steps=1000, checkpoint_every=4), react=react)
    (lost,) = launch.run(spec_of(FIRST, tmp_path, dies)).replicas
    assert [about["failover"] for about in launch.prepared] == [0, 2]
    assert (lost.status, lost.attempt, lost.device) == (Status.LOST, 3, "c/0")
    assert "not resumed: failover entry 0 uses a/1, lost as well; " in lost.message
    assert lost.message.endswith("failover entry 2 uses c/0, lost as well")
    assert [event.data["lost"] for event in launch.heard.of(Kind.FAILOVER)] == [["a/0"], ["a/0", "a/1"]]


def test_a_loss_before_the_next_checkpoint_resumes_from_the_same_one(tmp_path: Path) -> None:
    dies = replace(QUIET, rank=0, at=10, how="kill")
    launch = Launch(tmp_path, then={2: replace(dies, at=9)})
    (finished,) = launch.run(spec_of(FIRST, tmp_path, dies)).replicas
    assert (finished.status, finished.attempt) == (Status.FINISHED, 3)
    first, second = (event.data for event in launch.heard.of(Kind.FAILOVER))
    assert (first["resumed_step"], first["lost_steps"]) == (8, 2)
    assert (second["resumed_step"], second["lost_steps"]) == (8, 1)


def test_a_lost_host_takes_its_idle_devices_along(tmp_path: Path) -> None:
    """Entry 0 would use a/1, on the host that is gone."""

    def react(event: Event) -> None:
        if event.kind is Kind.STEP and event.rank == 0 and event.data["step"] == 6 and not launch.prepared:
            os.kill(
                next(e.data["pid"] for e in launch.heard.of(Kind.STARTED) if e.host == "a"), signal.SIGKILL
            )

    launch = Launch(tmp_path, react=react)
    (finished,) = launch.run(spec_of(FIRST, tmp_path, Behaviour(steps=1000, checkpoint_every=4))).replicas
    assert finished.status is Status.FINISHED
    assert [about["failover"] for about in launch.prepared] == [2]
    assert launch.heard.of(Kind.FAILOVER)[0].data["lost"] == ["a/0", "a/1"]


@pytest.mark.parametrize("what", ["agent", "runner"])
def test_processes_lost_on_this_machine_start_again_on_the_same_devices(tmp_path: Path, what: str) -> None:
    """After a lost rank the replica runs as entry 0 says, and goes on as that one."""

    def react(event: Event) -> None:
        starts = [e for e in launch.heard.of(Kind.STARTED) if e.host == "b"]
        if event.kind is Kind.STEP and event.rank == 0 and len(starts) == 2 and not killed:
            killed.append(True)
            runner = starts[-1].data["pid"]
            agent = int(Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(agent if what == "agent" else runner, signal.SIGKILL)

    killed: list[bool] = []
    launch = Launch(tmp_path, react=react, then={2: Behaviour(steps=1000, checkpoint_every=4)})
    dies = replace(QUIET, rank=0, at=10, how="kill")
    (finished,) = launch.run(spec_of(FIRST, tmp_path, dies), on_this_machine=True).replicas
    assert (finished.status, finished.attempt) == (Status.FINISHED, 3)
    assert [about["failover"] for about in launch.prepared] == [0, 0]
    lost, again = (event.data for event in launch.heard.of(Kind.FAILOVER))
    assert (lost["lost"], again["lost"]) == (["a/0"], [])
    assert again["reason"].endswith("its devices are on this machine and still there")


def test_a_mistake_of_the_job_is_not_tried_again(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    outcome = launch.run(spec_of(FIRST, tmp_path, Behaviour(rank=1, at=2, how="raise")))
    assert outcome.replicas[0].status is Status.FAULT
    assert launch.prepared == []


def test_there_is_a_limit(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    dies = Behaviour(rank=0, at=2, how="kill")
    (lost,) = launch.run(spec_of(FIRST, tmp_path, dies), max_failovers=0).replicas
    assert (lost.status, launch.prepared) == (Status.LOST, [])
    assert "0 failovers were allowed and are used up" in lost.message


def test_a_replacement_that_can_not_be_prepared_ends_its_replica_alone(tmp_path: Path) -> None:
    def refuse(replica: ReplicaPlan, **about: Any) -> LaunchSpec:
        raise EchelonError("no-such-executor", "there is no such executor")

    launch = Launch(tmp_path, plan_of([FIRST, OTHER], PLAN.boundaries[0].failover))
    outcome = run_with_failover(
        launch.plan,
        FLEET,
        [
            spec_of(FIRST, tmp_path / "r0", Behaviour(rank=0, at=2, how="kill")),
            spec_of(OTHER, tmp_path / "r1", Behaviour(steps=100)),
        ],
        refuse,
        local(),
        launch.heard,
        deadlines=QUICK,
    )
    assert [each.status for each in outcome.replicas] == [Status.LOST, Status.FINISHED]
    assert outcome.replicas[0].message.endswith("can't be started: there is no such executor")


def test_devices_of_another_replica_are_not_taken(tmp_path: Path) -> None:
    """Both entries for b/0 would do, but the faster one uses a device on which lab-r1 runs."""
    failover = [entry(["b/0"], ["c/0"], 99.0), entry(["b/0"], ["a/0"], 60.0)]
    launch = Launch(tmp_path / "r0", plan_of([FIRST, OTHER], failover))
    run_with_failover(
        launch.plan,
        FLEET,
        [
            spec_of(FIRST, tmp_path / "r0", Behaviour(rank=1, at=2, how="kill")),
            spec_of(OTHER, tmp_path / "r1", Behaviour(steps=100_000)),
        ],
        launch.prepare,
        local(),
        launch.heard,
        deadlines=QUICK,
        should_stop=lambda: bool(launch.prepared),
    )
    assert [about["failover"] for about in launch.prepared] == [1]


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_a_random_moment_is_resumed_or_explained(tmp_path: Path, mark: str, seed: int) -> None:
    """Any process of the launch but the launcher, at any event: finished, or stopped with a reason."""
    chance = random.Random(seed)
    moment = chance.randrange(1, 60)

    def react(_: Event) -> None:
        if len(launch.heard.events) == moment:
            found = marked(mark)
            if found:
                os.kill(chance.choice(sorted(found)), signal.SIGKILL)

    launch = Launch(tmp_path, again=QUIET, react=react)
    (outcome,) = launch.run(spec_of(FIRST, tmp_path, QUIET)).replicas
    if outcome.status is Status.LOST:
        assert "not resumed: " in outcome.message
    elif outcome.status is not Status.FINISHED:
        # Killed before it could say a word.
        assert (outcome.status, outcome.code) == (Status.REFUSED, "host-unreachable")
    assert not list(tmp_path.glob("checkpoints/*.partial"))
    assert marked(mark) == []
