"""A plan replayed in virtual time: `simulate_plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from costmodels.interface import CostModel, priced_for, without_waiting
from executors.simulate.losses import hits_by_replica
from executors.simulate.options import SimulationOptions, require_options
from executors.simulate.planned import ChainPricer
from executors.simulate.replay import Replay
from executors.simulate.result import SimulationResult
from executors.simulate.times import StageTimes
from planner.check.rebuild import rebuild
from planner.plan import Plan
from planner.render.view import plan_view


def simulate_plan(
    plan: Plan,
    options: SimulationOptions | None = None,
    *,
    model: CostModel | None = None,
    stage_times: Mapping[str, Sequence[StageTimes]] | None = None,
    report: Callable[[str], None] | None = None,
) -> SimulationResult:
    """What the plan's replicas do, from the inputs that the plan embeds. Equal calls have equal answers.

    Args:
        plan: the plan; it is taken at its word where it says what runs where.
        options: what is replayed.
        model: prices stages and transfers instead of the plan's own cost model.
        stage_times: seconds of the stages of replicas by their id, for instance measured ones, instead of the
            cost model's. A replacement after a loss is always priced by the cost model.
        report: told now and then how far the replay is.

    Raises:
        InputError: `simulation-options`, `simulation-times`, `simulation-schedule`, `plan-misfit`; what
            `rebuild` refuses.
    """
    options = options or SimulationOptions()
    # Its faults come before those of single chains, since it lists everything that doesn't fit the fleet.
    plan_view(plan)
    rebuilt = rebuild(plan)
    fleet = rebuilt.inputs.fleet
    require_options(plan, fleet, options)
    model = without_waiting(priced_for(model or rebuilt.problem.cost_model, rebuilt.problem.executor))
    pricer = ChainPricer(
        fleet=fleet,
        workload=rebuilt.inputs.workload,
        model=model,
        options=options,
        stage_times=stage_times or {},
    )
    spare = ChainPricer(
        fleet=fleet, workload=rebuilt.inputs.workload, model=model, options=options, stage_times={}
    )
    chains = [
        pricer.chain(replica, boundary.name) for boundary in plan.boundaries for replica in boundary.replicas
    ]
    boundary_of = {chain.replica.id: chain.boundary for chain in chains}
    hits = {
        name: [
            (hit, None if hit.replacement is None else spare.chain(hit.replacement, boundary_of[name]))
            for hit in found
        ]
        for name, found in hits_by_replica(plan, fleet, options.losses).items()
    }
    replay = Replay(chains, hits, options, report)
    replay.play()
    return SimulationResult(
        options=options,
        tokens_per_step=plan.tokens_per_step,
        planned_tokens_per_s=plan.tokens_per_s,
        replicas=replay.results(),
        windows=replay.windows(),
        links=replay.link_uses(),
    )
