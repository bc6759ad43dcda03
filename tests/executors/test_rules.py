"""What the planner offers an executor and what the executor refuses: the two never disagree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.registry import executor_named
from executors.rules import reasons, replica_reasons
from planner.build import build_problem
from planner.candidates import CandidateRule, width_fits
from planner.canonical import Inputs
from planner.files import load_inputs
from planner.plan import Plan, ReplicaPlan, StagePlan
from planner.problem import BoundaryProblem, Template
from policies.errors import EchelonError

EXAMPLES = Path(__file__).resolve().parents[2] / "planner" / "examples"


def inputs_of(example: str) -> Inputs:
    folder = EXAMPLES / example
    return load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")


def problem_of(inputs: Inputs, executor: str) -> BoundaryProblem:
    """Small clusters of one or two kinds, every ZeRO level."""
    from costmodels.analytic import AnalyticCostModel

    rule = CandidateRule(cluster_devices_max=4, mixed_classes_max=2)
    model = AnalyticCostModel(inputs.workload)
    problem = build_problem(inputs.fleet, inputs.workload, inputs.policy, model, executor=executor, rule=rule)
    return problem.boundaries[0]


def replica_of(problem: BoundaryProblem, chosen: list[Template], size: int, executor: str) -> ReplicaPlan:
    """A replica over these clusters; layers and figures play no part here."""
    stages = tuple(_stage(template, index, size) for index, template in enumerate(chosen))
    return ReplicaPlan(
        id="r",
        executor=executor,
        tokens_per_s=1.0,
        step_time_s=1.0,
        micro_batches=1,
        micro_batch_size=size,
        stages=stages,
    )


def _stage(template: Template, index: int, size: int) -> StagePlan:
    devices = tuple(device.device_id for device in template.cluster.devices)
    dp, tp = template.strategy.dp, template.strategy.tp
    share, more = divmod(size, dp)
    return StagePlan(
        index=index,
        layers=(index, index + 1),
        devices=devices,
        dp=dp,
        tp=tp,
        zero=template.strategy.zero,
        micro_batch_shares=tuple(share + (i < more) for i in range(dp)),
        ranks=tuple(devices[i * tp : (i + 1) * tp] for i in range(dp)),
        recompute=0,
        in_flight=1,
        head=devices[0],
        spares=(),
        memory_bytes={},
        compute_s=1.0,
        comm_s=0.0,
        sync_s=0.0,
        transfer_s=0.0,
    )


def offered(problem: BoundaryProblem, chosen: list[Template], size: int) -> bool:
    """Whether some mode of the planner lets these clusters form a replica."""
    return any(
        mode.micro_batch_size == size
        and len(chosen) <= mode.max_stages
        and all(template.template_i in mode.templates for template in chosen)
        and (mode.width is None or all(t.strategy.dp == mode.width for t in chosen))
        for mode in problem.modes
    )


INPUTS = {name: inputs_of(name) for name in ("hospital", "university")}
PROBLEMS = {
    (name, executor): problem_of(inputs, executor)
    for name, inputs in INPUTS.items()
    for executor in ("deepspeed", "torch")
}


@given(data=st.data())
def test_the_planner_offers_exactly_what_an_executor_supports(data: st.DataObject) -> None:
    name, executor = data.draw(st.sampled_from(sorted(PROBLEMS)))
    problem, inputs = PROBLEMS[name, executor], INPUTS[name]
    size = data.draw(st.sampled_from(inputs.workload.job.micro_batch_sizes))
    fitting = [t for t in problem.templates if width_fits(t.strategy.dp, size, inputs.workload.job)]
    chosen = data.draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=3))
    refused = replica_reasons(executor, inputs.fleet, replica_of(problem, chosen, size, executor))
    assert offered(problem, chosen, size) == (not refused), refused


def test_both_answers_occur_for_deepspeed() -> None:
    problem = PROBLEMS["hospital", "deepspeed"]
    fleet = INPUTS["hospital"].fleet
    answers = {
        bool(replica_reasons("deepspeed", fleet, replica_of(problem, [template, template], 4, "deepspeed")))
        for template in problem.templates
    }
    assert answers == {True, False}


def test_a_model_of_explicit_layers_and_foreign_optimisers_are_refused_by_name() -> None:
    inputs = INPUTS["hospital"]
    recipe = inputs.workload.recipe
    assert recipe is not None
    for workload, code in (
        (replace(inputs.workload, recipe=None), "no-recipe"),
        (replace(inputs.workload, recipe=replace(recipe, optimiser="sgd")), "optimiser-not-run"),
        (inputs.workload, "dtype-not-run"),  # fp16
    ):
        plan = plan_of(Inputs(fleet=inputs.fleet, workload=workload, policy=inputs.policy))
        replica = replica_of(
            PROBLEMS["hospital", "torch"], [PROBLEMS["hospital", "torch"].templates[0]], 1, "torch"
        )
        assert code in {reason.code for reason in reasons("torch", plan, replica)}


def plan_of(inputs: Inputs) -> Plan:
    """A plan with nothing but its inputs."""
    from planner.canonical import input_documents
    from planner.plan import Certificate

    certificate = Certificate(
        objective="tokens",
        value=1.0,
        bound=None,
        excess_frac=None,
        covers="candidates",
        stop="",
        proof={},
        seed=0,
        versions={},
        limits={},
    )
    return Plan(
        inputs=input_documents(inputs),
        job="j",
        tokens_per_step=1,
        settings={},
        certificate=certificate,
        boundaries=(),
    )


def test_an_unknown_executor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EchelonError) as caught:
        executor_named("horovod")
    assert caught.value.code == "unknown-executor"
    assert "deepspeed, torch" in caught.value.hint
