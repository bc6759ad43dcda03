"""The whole referee on whole plans: sound ones pass, and one wrong figure anywhere is found and named."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from costmodels import registry
from costmodels.workload import Workload
from planner.build import build_problem
from planner.canonical import Inputs, content_sha256
from planner.check.dual import DualCheck
from planner.check.multipliers import read_multipliers
from planner.check.referee import check, check_against
from planner.check.report import CheckReport, Findings
from planner.plan import Plan, dump_plan
from planner.plan_reading import parse_json, plan_from_json
from planner.problem import ObjectiveKind
from policies.errors import InputError
from solver.micro_fleets import CONDITIONS, Condition, ForeignCostModel, MicroCase, micro_case
from solver.referee_plans import best_per_usage, best_set, make_plan, random_boxes, random_prices

MODEL = "foreign-table"


def _foreign(workload: Workload, *, seed: int, roomy_frac: float, payload_bytes: float) -> ForeignCostModel:
    return ForeignCostModel(seed, roomy_frac=roomy_frac, payload_bytes=payload_bytes)


@pytest.fixture(autouse=True)
def _foreign_cost_model() -> Iterator[None]:
    registry.register(MODEL, _foreign)
    yield
    registry._REGISTRY.forget(MODEL)


def settings_of(case: MicroCase) -> dict[str, Any]:
    """What the problem of a case is built with."""
    model = case.cost_model
    assert isinstance(model, ForeignCostModel)
    return {
        "objective": case.objective.kind.value,
        "tokens_per_s_min": case.objective.tokens_per_s_min,
        "executor": case.condition.executor,
        "cost_model": MODEL,
        "cost_model_settings": {
            "seed": model.seed,
            "roomy_frac": model.roomy_frac,
            "payload_bytes": model.payload_bytes,
        },
        "rule": asdict(case.rule),
    }


def sound_plan(seed: int, condition: Condition, num_devices: int | None = None) -> Plan | None:
    """The best plan of a case with a dual proof from random prices and boxes; None when nothing fits."""
    case = micro_case(seed, condition, num_devices=num_devices)
    if condition.objective is ObjectiveKind.PRICE:
        speeds = [case.workload.job.tokens_per_step / real.step_s for real in best_per_usage(case.problem())]
        case = case.with_target(0.6 * max(speeds, default=1.0))
    problem = build_problem(
        case.fleet,
        case.workload,
        case.policy,
        case.cost_model,
        objective=case.objective,
        executor=condition.executor,
        rule=case.rule,
    )
    boundary = problem.boundaries[0]
    best = best_set(boundary)
    if best is None:
        return None
    proof: dict[str, Any] = {
        "kind": "dual",
        "prices": random_prices(random.Random(seed), boundary),
        "rho": 0.0 if boundary.replicas_max is None else 0.7,
        "nu": 0.0,
        "factor": 1.0,
        "modes": random_boxes(random.Random(seed), boundary),
    }
    multipliers = read_multipliers(boundary, proof, Findings(), "p", coupled=False)
    assert multipliers is not None
    walk = DualCheck(problem=boundary, multipliers=multipliers, findings=Findings(), place="p")
    proof["factor"] = walk.run(proof["modes"])
    scaled = read_multipliers(boundary, proof, Findings(), "p", coupled=False)
    assert scaled is not None
    proof["bound"] = bound = scaled.bound(boundary)
    value = best[0]
    if condition.objective is ObjectiveKind.STEP_TIME:
        value, bound = boundary.tokens_per_step / value, boundary.tokens_per_step / bound
    if condition.objective is ObjectiveKind.PRICE and bound <= 0.0:
        return None
    inputs = Inputs(fleet=case.fleet, workload=case.workload, policy=case.policy)
    return make_plan(
        inputs,
        problem,
        [best[1]],
        value=value,
        bound=bound,
        proof={boundary.name: proof},
        settings=settings_of(case),
    )


def reread(plan: Plan) -> Plan:
    """The plan after a trip through its own text."""
    return plan_from_json(parse_json(dump_plan(plan).encode(), place="plan.json"))


def described(report: CheckReport) -> str:
    return "\n".join(f"{v.rule} at {v.place}: {v.found}, limit {v.limit}" for v in report.violations)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.name)
def test_a_sound_plan_passes(condition: Condition) -> None:
    judged = 0
    for seed in range(8):
        plan = sound_plan(seed, condition, num_devices=3 + seed % 2)
        if plan is None or condition.replicas_min > 1:
            continue
        judged += 1
        report = check(reread(plan))
        assert report.holds, described(report)
        assert report.value == pytest.approx(plan.certificate.value, rel=1e-12)
        assert report.bound == pytest.approx(plan.certificate.bound, rel=1e-12)
        assert "re-derived" in report.scope
        quick = check(plan, quick=True)
        assert quick.holds, described(quick)
        assert "NOT" in quick.scope
    assert judged >= 2 or condition.replicas_min > 1


@cache
def _example() -> dict[str, Any]:
    """A plan with several stages in several replicas, as JSON, with idle devices and two hosts."""
    condition = Condition(name="example", replicas_max=2)
    for seed in range(400):
        plan = sound_plan(seed, condition, num_devices=5)
        if plan is None:
            continue
        boundary = plan.boundaries[0]
        stages = [stage for replica in boundary.replicas for stage in replica.stages]
        proof = plan.certificate.proof["b"]
        has_boxes = any(len(mode["boxes"]) > 1 for mode in proof["modes"])
        hosts = {d.split("d")[0] for stage in stages for d in stage.devices}
        if (
            len(stages) >= 3
            and boundary.excluded
            and has_boxes
            and len(hosts) > 1
            and len(boundary.replicas) > 1
        ):
            data: dict[str, Any] = json.loads(dump_plan(plan))
            return data
    raise AssertionError("no seed gives a rich example")


def rules_after(change: Callable[[dict[str, Any]], None]) -> set[str]:
    """Rules broken by one change to the example, with every hash made to fit again."""
    data = deepcopy(_example())
    change(data)
    for document in data["inputs"]:
        document["sha256"] = content_sha256(document["content"])
    try:
        report = check(plan_from_json(data))
    except InputError as error:
        return {error.code}
    return {violation.rule for violation in report.violations}


def replica(data: dict[str, Any], i: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = data["boundaries"][0]["replicas"][i]
    return found


def stage(data: dict[str, Any], i: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = [s for r in data["boundaries"][0]["replicas"] for s in r["stages"]][i]
    return found


def long_replica(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = max(data["boundaries"][0]["replicas"], key=lambda r: len(r["stages"]))
    return found


def proof(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["certificate"]["proof"]["b"]
    return found


def scale(
    owner: Callable[[dict[str, Any]], dict[str, Any]], key: str, by: float
) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        owner(data)[key] *= by

    return change


def put(
    owner: Callable[[dict[str, Any]], dict[str, Any]], key: str, value: Any
) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        owner(data)[key] = value(data) if callable(value) else value

    return change


def rename(data: dict[str, Any], old: str, new: str) -> None:
    text = json.dumps(data["boundaries"])
    data["boundaries"] = json.loads(text.replace(f'"{old}"', f'"{new}"'))


def use_idle(data: dict[str, Any]) -> None:
    """Put an idle device where a used one is, and nothing else."""
    idle = data["boundaries"][0]["excluded"][0]["device"]
    stage(data)["devices"][0] = idle


def move_border(data: dict[str, Any]) -> None:
    stages = long_replica(data)["stages"]
    stages[0]["layers"][1] += 1
    stages[1]["layers"][0] += 1


def shift_memory(data: dict[str, Any]) -> None:
    kinds = stage(data)["memory_bytes"][stage(data)["devices"][0]]
    kinds["weights"] *= 1.0 + 1e-6


def raise_limit(data: dict[str, Any]) -> None:
    stage(data)["memory_bytes"][stage(data)["devices"][0]]["limit"] *= 2.0


def first_box(data: dict[str, Any]) -> dict[str, Any]:
    return next(m["boxes"][0] for m in proof(data)["modes"] if len(m["boxes"]) > 1)


def drop_box(data: dict[str, Any]) -> None:
    proof(data)["modes"][0]["boxes"].pop()


def drop_mode(data: dict[str, Any]) -> None:
    proof(data)["modes"].pop()


def better_claim(data: dict[str, Any]) -> None:
    """A value a little higher, with a matching excess."""
    certificate = data["certificate"]
    certificate["value"] *= 1.0 + 1e-6
    certificate["excess_frac"] = certificate["bound"] / certificate["value"] - 1.0


def tighter_claim(data: dict[str, Any]) -> None:
    """A bound closer to the value, stated everywhere, with the factor scaled to fit."""
    certificate = data["certificate"]
    middle = (certificate["bound"] + certificate["value"]) / 2.0
    proof(data)["factor"] *= middle / certificate["bound"]
    proof(data)["bound"] = certificate["bound"] = middle
    certificate["excess_frac"] = middle / certificate["value"] - 1.0


def restated_bound(data: dict[str, Any]) -> None:
    """A bound of the certificate's own, with the excess that belongs to it; the proof stays as it is."""
    certificate = data["certificate"]
    certificate["bound"] = (certificate["bound"] + certificate["value"]) / 2.0
    certificate["excess_frac"] = certificate["bound"] / certificate["value"] - 1.0


def cheaper_prices(data: dict[str, Any]) -> None:
    """All prices smaller and the bound with them: the factor would have to grow."""
    certificate = data["certificate"]
    proof(data)["prices"] = {name: price * 0.9 for name, price in proof(data)["prices"].items()}
    proof(data)["rho"] *= 0.9
    proof(data)["bound"] = certificate["bound"] = certificate["bound"] * 0.9
    certificate["excess_frac"] = max(0.0, certificate["bound"] / certificate["value"] - 1.0)


def one_price(data: dict[str, Any]) -> None:
    name = sorted(proof(data)["prices"])[0]
    proof(data)["prices"][name] *= 1.01


def one_cut(data: dict[str, Any]) -> None:
    for mode in proof(data)["modes"]:
        for box in mode["boxes"]:
            box["cuts"] = [cut for cut in box["cuts"] if cut["c"] == 0.0]


def more_devices(data: dict[str, Any]) -> None:
    """A device twice in two replicas."""
    stage(data, 1)["devices"][0] = stage(data, 0)["devices"][0]


def lose_excluded(data: dict[str, Any]) -> None:
    data["boundaries"][0]["excluded"].pop()


def larger_memory(data: dict[str, Any]) -> None:
    """The fleet's own figure changed: everything derived from it moves."""
    fleet = next(d["content"] for d in data["inputs"] if d["kind"] == "fleet")
    for device in fleet["devices"]:
        device["memory_bytes"] *= 1.5


def cross(data: dict[str, Any]) -> None:
    edge = next(e for e in data["graph"]["edges"] if e["kind"] == "activation")
    edge["target"] = "coordinator"
    edge["crossing"] = True


def lose_edge(kind: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        edges = data["graph"]["edges"]
        edges.remove(next(e for e in edges if e["kind"] == kind))

    return change


def failover(data: dict[str, Any], **changes: Any) -> None:
    """A failover entry for the first device of the first replica."""
    entry = {
        "devices": [stage(data)["devices"][0]],
        "replica": replica(data)["id"],
        "replacement": None,
        "tokens_per_s": 0.0,
    }
    data["boundaries"][0]["failover"] = [{**entry, **changes}]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], set[str]]] = {
    "device": (use_idle, {"rank-grid", "memory", "candidate", "excluded"}),
    "unknown device": (lambda d: rename(d, stage(d)["devices"][0], "nobody"), {"device-known"}),
    "device twice": (more_devices, {"device-once"}),
    "layer border": (move_border, {"memory", "compute", "in-flight", "tier"}),
    "layer gap": (lambda d: stage(d)["layers"].__setitem__(0, 1), {"layers"}),
    "layers short": (lambda d: long_replica(d)["stages"].pop(), {"layers"}),
    "share": (put(stage, "micro_batch_shares", [7]), {"shares"}),
    "memory": (shift_memory, {"memory"}),
    "memory limit": (raise_limit, {"memory"}),
    "in flight": (scale(stage, "in_flight", 2), {"in-flight"}),
    "recompute": (put(stage, "recompute", 1), {"recompute"}),
    "compute": (scale(stage, "compute_s", 0.999), {"compute"}),
    "comm": (scale(stage, "comm_s", 0.999), {"comm"}),
    "sync": (lambda d: stage(d).update(sync_s=stage(d)["sync_s"] + 1e-3), {"sync"}),
    "transfer": (lambda d: long_replica(d)["stages"][0].update(transfer_s=0.5), {"transfer"}),
    "step time": (scale(replica, "step_time_s", 0.999999), {"step-time"}),
    "tokens": (scale(replica, "tokens_per_s", 1.000001), {"tokens"}),
    "executor": (put(replica, "executor", "elsewhere"), {"executor"}),
    "micro-batches": (scale(replica, "micro_batches", 2), {"micro-batches"}),
    "micro-batch size": (put(replica, "micro_batch_size", 3), {"micro-batches"}),
    "zero": (put(stage, "zero", 9), {"candidate"}),
    "head": (put(stage, "head", "h9d9"), {"head"}),
    "ranks": (put(stage, "ranks", [["h9d9"]]), {"rank-grid"}),
    "width": (put(stage, "dp", 1_000_000_000), {"rank-grid"}),
    "spare": (put(stage, "spares", lambda d: [d["boundaries"][0]["excluded"][0]["device"]]), {"spare"}),
    "tied": (put(replica, "tied_layers", [[0, 1]]), {"tied-layers"}),
    "replica id": (lambda d: replica(d, 1).update(id=replica(d)["id"]), {"frame"}),
    "excluded": (lose_excluded, {"excluded"}),
    "aggregator": (lambda d: d["boundaries"][0]["aggregator"].update(host="nowhere"), {"aggregator"}),
    "standby": (lambda d: d["boundaries"][0]["aggregator"].update(standby=None), {"aggregator"}),
    "fewer replicas": (lambda d: d["boundaries"][0]["replicas"].clear(), {"replicas-min"}),
    "value": (better_claim, {"value"}),
    "bound": (scale(lambda d: d["certificate"], "bound", 0.999999), {"bound", "excess"}),
    "bound restated": (restated_bound, {"bound"}),
    "excess": (put(lambda d: d["certificate"], "excess_frac", 0.0), {"excess"}),
    "covers": (put(lambda d: d["certificate"], "covers", "all clusters"), {"covers"}),
    "objective": (put(lambda d: d["certificate"], "objective", "price"), {"objective"}),
    "tighter": (tighter_claim, {"proof-factor"}),
    "factor": (scale(proof, "factor", 1.00001), {"proof-bound"}),
    "factor far up": (scale(proof, "factor", 1.003), {"proof-factor"}),
    "factor down": (scale(proof, "factor", 0.99999), {"proof-factor"}),
    "price": (one_price, {"proof-factor", "proof-bound"}),
    "cheaper prices": (cheaper_prices, {"proof-factor"}),
    "negative price": (lambda d: proof(d)["prices"].update({"class[0]": -1.0}), {"proof-multipliers"}),
    "no such row": (lambda d: proof(d)["prices"].update({"class[99]": 1.0}), {"proof-multipliers"}),
    "nu": (put(proof, "nu", 1e9), {"proof-factor"}),
    "rho": (put(proof, "rho", 1e9), {"proof-bound"}),
    "rho text": (put(proof, "rho", "0"), {"proof-multipliers"}),
    "box edge": (
        lambda d: first_box(d).update(upto_s=first_box(d)["upto_s"] * 50),
        {"proof-cover", "proof-factor"},
    ),
    "box edge down": (lambda d: first_box(d).update(upto_s=-1.0), {"proof-cover"}),
    "last box": (drop_box, {"proof-cover"}),
    "mode": (drop_mode, {"proof-cover"}),
    "cuts": (one_cut, {"proof-factor"}),
    "proof kind": (put(proof, "kind", "trust me"), {"proof-kind"}),
    "no proof": (lambda d: d["certificate"]["proof"].clear(), {"proof-kind"}),
    "none with bound": (lambda d: d["certificate"].update(proof={"b": {"kind": "none"}}), {"bound"}),
    "rate with this bound": (
        lambda d: d["certificate"].update(proof={"b": {"kind": "rate", "bound": 1.0}}),
        {"proof-bound"},
    ),
    "closure": (lambda d: proof(d).update(kind="closure", factor=1e-9), {"proof-factor"}),
    "memory of the fleet": (larger_memory, {"memory"}),
    "job": (put(lambda d: d, "job", "other"), {"frame"}),
    "tokens per step": (scale(lambda d: d, "tokens_per_step", 2), {"frame"}),
    "edge across": (cross, {"law-1"}),
    "activation lost": (lose_edge("activation"), {"graph"}),
    "gradient lost": (lose_edge("gradient"), {"graph"}),
    "node": (lambda d: d["graph"]["nodes"].pop(), {"graph"}),
    "node twice": (lambda d: d["graph"]["nodes"].append(d["graph"]["nodes"][-1]), {"graph"}),
    "settings": (lambda d: d["settings"].update(executor="deepspeed"), {"executor"}),
    "cost model": (lambda d: d["settings"]["cost_model_settings"].update(seed=-1), {"compute"}),
    "objective setting": (lambda d: d["settings"].update(objective="steady-state"), {"objective"}),
    "unknown cost model": (lambda d: d["settings"].update(cost_model="nothing"), {"cost-model-unknown"}),
    "setting lost": (lambda d: d["settings"].pop("rule"), {"bad-settings"}),
    "input lost": (lambda d: d["inputs"].pop(), {"bad-input"}),
    "failover kept device": (
        lambda d: failover(d, replacement=replica(d), tokens_per_s=replica(d)["tokens_per_s"]),
        {"failover"},
    ),
    "failover elsewhere": (lambda d: failover(d, replica="r99"), {"failover"}),
    "failover speed": (lambda d: failover(d, tokens_per_s=1.0), {"failover"}),
    "failover of others": (lambda d: failover(d, devices=["h9d9"]), {"failover"}),
}


def test_the_example_itself_passes() -> None:
    assert rules_after(lambda data: None) == set()
    assert rules_after(failover) == set()


@pytest.mark.parametrize("name", CHANGES)
def test_one_changed_figure_is_found_though_all_hashes_fit(name: str) -> None:
    change, expected = CHANGES[name]
    found = rules_after(change)
    assert found & expected, found


def test_quick_leaves_the_proof_alone_and_says_so() -> None:
    data = deepcopy(_example())
    data["certificate"]["proof"]["b"]["factor"] *= 0.5
    report = check(plan_from_json(data), quick=True)
    assert report.holds
    assert "NOT" in report.scope
    assert not check(plan_from_json(data)).holds


def test_quick_finds_a_value_beyond_all_rates() -> None:
    data = deepcopy(_example())
    plan = plan_from_json(data)
    report = check(plan, quick=True)
    assert report.bound is not None
    assert report.value is not None
    assert report.bound >= report.value


def test_no_bound_is_accepted_only_without_a_proof() -> None:
    data = deepcopy(_example())
    data["certificate"].update(bound=None, excess_frac=None, proof={"b": {"kind": "none"}})
    report = check(plan_from_json(data))
    assert report.holds, described(report)
    assert report.bound is None
    data["certificate"]["proof"] = _example()["certificate"]["proof"]
    assert {v.rule for v in check(plan_from_json(data)).violations} == {"bound"}


def test_a_stale_hash_is_refused_too() -> None:
    data = deepcopy(_example())
    data["inputs"][0]["sha256"] = "0" * 64
    with pytest.raises(InputError) as caught:
        check(plan_from_json(data))
    assert caught.value.code == "bad-input"


def test_progress_is_told() -> None:
    told: list[str] = []
    check(plan_from_json(_example()), report=told.append)
    assert any("mode" in line for line in told)


def test_the_referee_shares_nothing_with_solvers() -> None:
    root = Path(__file__).resolve().parents[2]
    for path in sorted((root / "planner" / "check").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        banned = [n for n in names if n.startswith(("planner.solve", "planner.objective", "ortools", "pulp"))]
        assert not banned, (path.name, banned)


def test_a_given_problem_is_judged_without_inputs() -> None:
    case = micro_case(5, Condition(), num_devices=3)
    plan = sound_plan(5, Condition(), num_devices=3)
    assert plan is not None
    problem = build_problem(case.fleet, case.workload, case.policy, case.cost_model, rule=case.rule)
    assert check_against(plan, problem, rule=case.rule).holds
