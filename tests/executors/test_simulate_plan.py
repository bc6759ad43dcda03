"""Plans replayed: shared links, windows, checkpoints, losses; the same answer every time."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from simulation_cases import two_site_fleet, two_site_plan

from costmodels.fleet import Link
from costmodels.interface import CostModel, Interval, StageCost
from executors.simulate.bounds import closed_form_is_exact, closed_form_s
from executors.simulate.losses import replacement_of
from executors.simulate.options import Loss, SimulationOptions, Transfers, WindowRule
from executors.simulate.result import Pause, PauseKind, ReplicaResult
from executors.simulate.simulator import simulate_plan
from executors.simulate.times import Schedule, StageTimes
from planner.check.rebuild import rebuild
from planner.check.referee import check
from planner.plan import Plan
from policies.errors import InputError


@pytest.fixture(scope="module")
def pair() -> Plan:
    """Two replicas over one pair of links, with two idle devices."""
    plan = two_site_plan(two_site_fleet(2, spares=2), 2)
    assert check(plan, quick=True).violations == ()
    return plan


@pytest.fixture(scope="module")
def single() -> Plan:
    """One replica and nothing idle that could take over."""
    return two_site_plan(two_site_fleet(1, spares=0), 1, cut=3)


def spans(replica: ReplicaResult) -> list[tuple[float, float, str]]:
    """Steps and pauses in order."""
    steps = [(r.start_s, r.end_s, "lost" if r.lost else f"step {r.step}") for r in replica.steps]
    return sorted([*steps, *((p.start_s, p.end_s, str(p.kind)) for p in replica.pauses)])


def require_gapless(replica: ReplicaResult) -> None:
    """A replica does something at every moment until it is done."""
    ordered = spans(replica)
    assert ordered[0][0] == 0.0
    for (_, end_s, _), (start_s, _, _) in pairwise(ordered):
        assert start_s == pytest.approx(end_s, rel=1e-12)
    assert replica.end_s == pytest.approx(ordered[-1][1], rel=1e-12)


def test_one_replica_is_the_planners_closed_form_where_that_is_exact(single: Plan) -> None:
    (replica,) = simulate_plan(single, SimulationOptions(num_steps=3)).replicas
    setup = replica.chains[0].setup
    times = (setup.stages, setup.borders, setup.num_micro_batches)
    assert closed_form_s(*times) == pytest.approx(replica.planned_step_s, rel=1e-12)
    assert closed_form_is_exact(*times), "the later stage has more layers, and transfers are short"
    assert replica.step_s == pytest.approx(replica.planned_step_s, rel=1e-9)
    assert [record.step for record in replica.steps] == [0, 1, 2]
    require_gapless(replica)


def test_stages_carry_the_cost_models_figures(single: Plan) -> None:
    (replica,) = simulate_plan(single, SimulationOptions(num_steps=1)).replicas
    for times, stage in zip(replica.chains[0].setup.stages, replica.chains[0].replica.stages, strict=True):
        assert times.busy_s == pytest.approx(stage.compute_s + stage.comm_s)
        assert times.update_s == pytest.approx(stage.sync_s)
    (border,) = replica.chains[0].setup.borders
    assert border.round_trip_s == pytest.approx(replica.chains[0].replica.stages[0].transfer_s)
    assert border.forward.latency_s == 0.01
    assert (border.forward.link, border.backward.link) == ("left -> right", "right -> left")


def test_exposed_communication_is_split_as_the_computation_is(single: Plan) -> None:
    class Exposed:
        """The analytic model with a second of exposed communication in each stage."""

        def __init__(self, model: CostModel) -> None:
            self.name, self._model = "exposed", model

        def stage(self, *args: Any) -> StageCost | None:
            cost = self._model.stage(*args)
            return None if cost is None else replace(cost, exposed_s=1.0)

        def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
            return self._model.transfer_s(link, border, micro_batch_size)

        def interval_key(self, interval: Interval) -> Hashable:
            return interval

    model = rebuild(single).problem.cost_model
    before, after = (
        simulate_plan(single, model=one).replicas[0].chains[0].setup.stages for one in (model, Exposed(model))
    )
    for a, b in zip(before, after, strict=True):
        assert b.busy_s == pytest.approx(a.busy_s + 1.0)
        assert b.forward_s / b.backward_s == pytest.approx(a.forward_s / a.backward_s)


def test_the_way_back_takes_its_own_links_rate() -> None:
    slow = two_site_plan(two_site_fleet(1, spares=0, back_bytes_per_s=1.25e7), 1)
    (replica,) = simulate_plan(slow, SimulationOptions(num_steps=1)).replicas
    (border,) = replica.chains[0].setup.borders
    assert border.backward.occupied_s == pytest.approx(10 * border.forward.occupied_s)
    assert replica.step_s > replica.planned_step_s * 1.05


def test_replicas_that_share_a_link_queue_for_it(pair: Plan) -> None:
    narrow = two_site_fleet(2, spares=0)
    links = tuple(replace(link, bytes_per_s=link.bytes_per_s / 20) for link in narrow.links)
    plan = two_site_plan(replace(narrow, links=links), 2, failover=False)
    result = simulate_plan(plan, SimulationOptions(num_steps=2))
    used = {use.name: use for use in result.links}
    assert used["left -> right"].replicas == ("lab-r0", "lab-r1")
    assert used["left -> right"].queued_s > 0.0
    for replica in result.replicas:
        assert replica.step_s > replica.alone[0].step_s
    assert used["left -> right"].held_s <= result.elapsed_s


def test_transfers_follow_the_executor(single: Plan) -> None:
    torch = simulate_plan(single).replicas[0].chains[0].setup
    assert (torch.blocking, torch.receives_ahead) == (False, 1)
    blocked = two_site_plan(two_site_fleet(1, spares=0), 1, executor="deepspeed", failover=False)
    assert simulate_plan(blocked).replicas[0].chains[0].setup.blocking
    forced = simulate_plan(blocked, SimulationOptions(transfers=Transfers.ON_RECEIVE)).replicas[0].chains[0]
    assert (forced.setup.blocking, forced.setup.receives_ahead) == (False, 0)
    piped = simulate_plan(single, SimulationOptions(schedule=Schedule.GPIPE)).replicas[0]
    assert piped.step_s >= simulate_plan(single).replicas[0].step_s * (1 - 1e-12)


def test_given_stage_times_stand_in_for_the_cost_model(single: Plan) -> None:
    times = [StageTimes(forward_s=0.5, backward_s=1.0)] * 2
    (replica,) = simulate_plan(single, stage_times={"lab-r0": times}).replicas
    assert replica.alone[0].uses[0].forward_s == pytest.approx(16 * 0.5)
    with pytest.raises(InputError, match="other stages"):
        simulate_plan(single, stage_times={"lab-r0": times[:1]})


def test_a_checkpoint_takes_its_time(single: Plan) -> None:
    options = SimulationOptions(num_steps=5, checkpoint_every=2, checkpoint_s=7.0)
    (replica,) = simulate_plan(single, options).replicas
    assert [pause.kind for pause in replica.pauses] == [PauseKind.CHECKPOINT] * 2
    assert replica.end_s == pytest.approx(5 * replica.step_s + 14.0)
    require_gapless(replica)


def test_after_a_loss_the_replacement_repeats_what_was_not_saved(pair: Plan) -> None:
    device = pair.boundaries[0].replicas[0].stages[0].devices[0]
    options = SimulationOptions(
        num_steps=6, losses=(Loss(name=device, step=3),), checkpoint_every=2, detect_s=5.0, restart_s=30.0
    )
    result = simulate_plan(pair, options)
    replica, other = result.replicas
    (loss,) = replica.losses
    entry = next(e for e in pair.boundaries[0].failover if e.replica == replica.id and device in e.devices)
    assert entry.replacement is not None
    assert replica.chains[1].replica == entry.replacement
    assert (loss.step, loss.num_steps_repeated, loss.lost_devices) == (3, 1, (device,))
    assert loss.resumed_s == pytest.approx(loss.time_s + 35.0)
    before, cut = replica.steps[2], replica.steps[3]
    assert cut.lost
    assert cut.end_s - cut.start_s == pytest.approx(replica.alone[0].step_s / 2)
    assert before.end_s == cut.start_s
    assert cut.timeline is not None
    assert max(span.end_s for span in cut.timeline.work) <= cut.end_s - cut.start_s, "it stopped there"
    after = [(r.step, r.chain_i, r.is_repeated) for r in replica.steps[4:]]
    assert after == [(2, 1, True), (3, 1, False), (4, 1, False), (5, 1, False)]
    assert replica.num_steps_done == 6
    assert not replica.is_stopped
    assert other.losses == ()
    require_gapless(replica)
    assert result.tokens_per_s < simulate_plan(pair, SimulationOptions(num_steps=6)).tokens_per_s


def test_a_lost_host_is_a_loss_of_its_devices(pair: Plan) -> None:
    device = pair.boundaries[0].replicas[1].stages[0].devices[0]
    host = device.split("/")[0]
    by_device, by_host = (
        simulate_plan(pair, SimulationOptions(num_steps=3, losses=(Loss(name=name, step=1),)))
        for name in (device, host)
    )
    assert by_host.replicas[1].losses[0].lost_devices == (device,)
    assert by_host.elapsed_s == by_device.elapsed_s


def test_without_a_replacement_the_replica_stops_and_the_others_go_on(pair: Plan, single: Plan) -> None:
    device = single.boundaries[0].replicas[0].stages[1].devices[0]
    options = SimulationOptions(num_steps=4, losses=(Loss(name=device, step=2),))
    (replica,) = simulate_plan(single, options).replicas
    assert replica.is_stopped
    assert replica.losses[0].reason == "the plan has no replacement for it"
    assert replica.num_steps_done == 2
    bare = replace(pair, boundaries=(replace(pair.boundaries[0], failover=()),))
    device = pair.boundaries[0].replicas[0].stages[0].devices[0]
    stopped, other = simulate_plan(
        bare, SimulationOptions(num_steps=4, losses=(Loss(name=device, step=1),))
    ).replicas
    assert stopped.is_stopped
    assert other.num_steps_done == 4


def test_a_replacement_covers_everything_that_is_lost(pair: Plan) -> None:
    entries = pair.boundaries[0].failover
    replica = pair.boundaries[0].replicas[0]
    left, right = (stage.devices[0] for stage in replica.stages)
    found = replacement_of(entries, replica.id, {right})
    assert found is not None
    assert right not in {d for stage in found.stages for d in stage.devices}
    assert replacement_of(entries, replica.id, {left, right}) is None
    assert replacement_of(entries, "lab-r9", {left}) is None


def test_two_replicas_can_not_take_the_same_spare() -> None:
    plan = two_site_plan(two_site_fleet(2, spares=1), 2)
    first, second = (replica.stages[0].devices[0] for replica in plan.boundaries[0].replicas)
    losses = (Loss(name=first, step=1), Loss(name=second, step=2))
    result = simulate_plan(plan, SimulationOptions(num_steps=4, losses=losses))
    assert not result.replicas[0].is_stopped
    assert result.replicas[1].is_stopped
    assert "has taken" in result.replicas[1].losses[0].reason


def test_a_second_loss_of_a_replica_stops_it(pair: Plan) -> None:
    stages = pair.boundaries[0].replicas[0].stages
    losses = tuple(Loss(name=stage.devices[0], step=i + 1) for i, stage in enumerate(stages))
    replica = simulate_plan(pair, SimulationOptions(num_steps=5, losses=losses)).replicas[0]
    assert replica.is_stopped
    assert [loss.reason for loss in replica.losses] == ["", "the plan prepares for one loss per replica"]
    require_gapless(replica)


def uneven(pair: Plan, factor: float) -> dict[str, list[StageTimes]]:
    """The second replica slower by a factor."""
    fast, slow = simulate_plan(pair).replicas
    stages = slow.chains[0].setup.stages
    scaled = [StageTimes(forward_s=s.forward_s * factor, backward_s=s.backward_s * factor) for s in stages]
    return {slow.id: scaled, fast.id: list(fast.chains[0].setup.stages)}


def test_replicas_meet_at_windows_of_steps(pair: Plan) -> None:
    rule = WindowRule(num_steps=2, exchange_s=3.0)
    result = simulate_plan(pair, SimulationOptions(num_steps=6, window=rule), stage_times=uneven(pair, 1.5))
    assert [window.index for window in result.windows] == [0, 1, 2]
    fast, slow = result.replicas
    for replica in result.replicas:
        require_gapless(replica)
        exchanges = [p for p in replica.pauses if p.kind is PauseKind.EXCHANGE]
        assert [p.start_s for p in exchanges] == [w.closed_s for w in result.windows]
        assert {round(p.end_s - p.start_s, 9) for p in exchanges} == {3.0}
    assert fast.paused_s(PauseKind.WINDOW) > 0.0
    assert slow.paused_s(PauseKind.WINDOW) == pytest.approx(0.0, abs=1e-9)
    assert fast.end_s == slow.end_s


def test_a_quorum_lets_the_fast_go_on_without_the_slow(pair: Plan) -> None:
    times = uneven(pair, 3.0)
    rule = WindowRule(num_steps=1, quorum=1)
    result = simulate_plan(pair, SimulationOptions(num_steps=6, window=rule), stage_times=times)
    assert all(replica.paused_s(PauseKind.WINDOW) == 0.0 for replica in result.replicas)
    assert len(result.windows) == 12
    whole = simulate_plan(
        pair, SimulationOptions(num_steps=6, window=replace(rule, quorum=2)), stage_times=times
    )
    assert whole.replicas[0].end_s > 2 * result.replicas[0].end_s


def test_windows_of_time_come_to_those_who_are_past_them(pair: Plan) -> None:
    step_s = simulate_plan(pair).replicas[0].step_s
    rule = WindowRule(seconds=2.5 * step_s)
    result = simulate_plan(pair, SimulationOptions(num_steps=7, window=rule))
    steps_before = [
        sum(r.end_s <= w.closed_s * (1 + 1e-9) for r in result.replicas[0].steps) for w in result.windows
    ]
    assert steps_before == [3, 5]
    for replica in result.replicas:
        require_gapless(replica)


def test_a_stopped_replica_keeps_no_window_open(pair: Plan) -> None:
    bare = replace(pair, boundaries=(replace(pair.boundaries[0], failover=()),))
    device = pair.boundaries[0].replicas[0].stages[0].devices[0]
    options = SimulationOptions(
        num_steps=6, window=WindowRule(num_steps=2), losses=(Loss(name=device, step=3),), detect_s=100.0
    )
    stopped, other = simulate_plan(bare, options).replicas
    assert stopped.is_stopped
    assert other.num_steps_done == 6
    waits = [p for p in other.pauses if p.kind is PauseKind.WINDOW]
    assert isinstance(waits[-1], Pause)
    assert waits[-1].end_s == pytest.approx(stopped.end_s), "until the loss is noticed"


def test_a_replay_is_the_same_every_time(pair: Plan) -> None:
    device = pair.boundaries[0].replicas[0].stages[0].devices[0]
    options = SimulationOptions(
        num_steps=4, losses=(Loss(name=device, step=2),), window=WindowRule(num_steps=2, quorum=1)
    )
    first, second = (simulate_plan(pair, options) for _ in range(2))
    assert [r.steps for r in first.replicas] == [r.steps for r in second.replicas]
    assert (first.windows, first.links) == (second.windows, second.links)


def test_options_that_mean_nothing_are_refused_together(pair: Plan) -> None:
    device = pair.boundaries[0].replicas[0].stages[0].devices[0]
    idle = pair.boundaries[0].excluded[0].device
    options = SimulationOptions(
        num_steps=5,
        losses=(Loss(name="left-9/0", step=1), Loss(name=idle, step=1), Loss(name=device, step=5)),
        checkpoint_every=0,
        detect_s=-1.0,
        window=WindowRule(quorum=3),
    )
    with pytest.raises(InputError) as refused:
        simulate_plan(pair, options)
    assert refused.value.code == "simulation-options"
    found = [(fault.place, fault.value) for fault in refused.value.faults]
    assert found == [
        ("checkpoint-every", "0"),
        ("detect-time", "-1.0"),
        ("fail left-9/0@1", "no such device or host"),
        (f"fail {idle}@1", "runs nothing in this plan"),
        (f"fail {device}@5", "step 5"),
        ("window-steps, window-time", "neither"),
        ("quorum", "3"),
    ]
    assert "did you mean `left-" in refused.value.faults[2].hint
