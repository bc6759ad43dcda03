"""`--profile`: plans priced by measurements hold on their own; profiles of no use are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.measured import RunPlan, RunReplica, RunStage, predict
from costmodels.measured_profile import LayerSizes, LayerTimes, LinkCurve, Profile, RunFacts
from costmodels.profile_io import profile_to_document, save_profile
from measured_instances import MEASURED_FOLDER, opt350_profile
from planner.files import load_inputs
from planner.plan import read_plan
from planner.solving import Request, cost_settings

Cli = Callable[..., Any]
FILES = ("fleet.yaml", "model.yaml")
PRICED = ("--cost-model", "measured", "--profile", "profile.json")
NUM_LAYERS = 4

FLEET = """\
schema: echelon/fleet/1
name: bench
tiers: [open]
boundaries: [{name: lab}]
sites: [{name: room, boundary: lab, fabric: 80 Gbit/s}]
memory_reserve: 10 %
hosts:
  - {name: fast, site: room, price: 2 USD/h, link: 20 GB/s,
     devices: {count: 2, type: A, memory: 4 GB, rate: {fp32: 10 TFLOP/s}, memory_bandwidth: 1 TB/s}}
  - {name: new, site: room, price: 1 USD/h, link: 20 GB/s,
     devices: {count: 1, type: N, memory: 4 GB, rate: {fp32: 10 TFLOP/s}, memory_bandwidth: 1 TB/s}}
"""
LAYER = """\
  - {kind: KIND, repeat: REPEAT, params: 1000000, flops: 2 MFLOP, activation: 4 kB, input: 1 kB, output: 1 kB}
"""
MODEL = (
    "schema: echelon/model/1\nname: four\nlayers:\n"
    + LAYER.replace("KIND", "embedding").replace("REPEAT", "1")
    + LAYER.replace("KIND", "block").replace("REPEAT", "2")
    + LAYER.replace("KIND", "head").replace("REPEAT", "1")
    + "job: {method: full, dtype: fp32, sequence: 8, micro_batch_sizes: [1, 2], sequences_per_step: 8}\n"
)
GH200_FLEET = """\
schema: echelon/fleet/1
name: superchips
tiers: [open]
boundaries: [{name: lab}]
sites: [{name: room, boundary: lab, fabric: 200 Gbit/s}]
hosts:
  - {name: "node-[1-2]", site: room, price: 4 USD/h, link: 150 GB/s,
     devices: {count: 4, type: GH-96, memory: 96 GB, rate: {fp32: 50 TFLOP/s}, memory_bandwidth: 4 TB/s}}
"""
GH200_MODEL = """\
schema: echelon/model/1
name: opt-350
config: {model_type: opt, hidden_size: 1024, num_hidden_layers: 24, num_attention_heads: 16, ffn_dim: 4096,
         vocab_size: 50688, word_embed_proj_dim: 1024, max_position_embeddings: 2048,
         tie_word_embeddings: false}
job: {method: full, dtype: fp32, sequence: 2048 tokens, micro_batch_sizes: [1, 2, 4],
      sequences_per_step: 16, max_stages: 2}
"""


def profile_of(num_layers: int = NUM_LAYERS) -> Profile:
    """Type A alone, at tensor degree 1."""
    sizes_M = np.array([[1.0], [2.0]])
    ones_L = np.ones(num_layers)
    times = LayerTimes(
        micro_batch_sizes=(1, 2),
        forward_s_ML=0.01 * sizes_M * ones_L,
        backward_s_ML=0.02 * sizes_M * ones_L,
        update_s_ML=0.003 * np.ones((2, num_layers)),
    )
    sizes = LayerSizes(
        params_L=1e6 * ones_L,
        weight_bytes_L=4e6 * ones_L,
        activation_bytes_L=3e7 * ones_L,
        input_bytes_L=1e6 * ones_L,
        output_bytes_L=2e6 * ones_L,
    )
    facts = RunFacts(
        gradient_bytes_per_param=4.0,
        optimiser_bytes_per_param=8.0,
        update_traffic_bytes_per_param=28.0,
        overhead_bytes=5e8,
        memory_bytes_per_s=1e12,
    )
    curve = LinkCurve(gigabytes_per_s=(2.0, 4.0), ceiling_bytes_per_s=10e9, latency_s=1e-4)
    return Profile(
        model_name="four",
        times={"A": {1: times}},
        sizes={1: sizes},
        outer={("A", "A"): curve},
        inner={},
        facts=facts,
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder with fleet, model and profile."""
    (tmp_path / "fleet.yaml").write_text(FLEET, encoding="utf-8")
    (tmp_path / "model.yaml").write_text(MODEL, encoding="utf-8")
    save_profile(profile_of(), tmp_path / "profile.json")
    return tmp_path


def edited(change: Callable[[dict[str, Any]], None], source: str, target: str) -> None:
    document = json.loads(Path(source).read_text(encoding="utf-8"))
    change(document)
    Path(target).write_text(json.dumps(document), encoding="utf-8")


def embedded(plan: dict[str, Any]) -> Any:
    return plan["settings"]["cost_model_settings"]["profile"]


def test_a_measured_plan_is_judged_from_itself_alone(cli: Cli, files: Path) -> None:
    done = cli("solve", *FILES, *PRICED, "-o", "plan.json", "--deterministic")
    assert done.code == 0, done.err
    for name in (*FILES, "profile.json"):
        (files / name).unlink()
    judged = cli("check", "plan.json")
    assert judged.code == 0, judged.err
    explained = cli("explain", "plan.json")
    assert explained.code == 0, explained.err
    plan = read_plan(files / "plan.json")
    assert plan.settings["cost_model"] == "measured"
    settings = json.loads(json.dumps(profile_to_document(profile_of())))
    assert plan.settings["cost_model_settings"] == {"memory_reserve_frac": 0.1, "profile": settings}
    stages = [stage for replica in plan.boundaries[0].replicas for stage in replica.stages]
    assert {device.split("/")[0] for stage in stages for device in stage.devices} == {"fast"}
    assert {kinds["limit"] for stage in stages for kinds in stage.memory_bytes.values()} == {3.6e9}


@pytest.mark.parametrize(
    "change",
    [
        lambda profile: profile["times"]["A"]["1"]["backward_s_ML"][0].__setitem__(1, 0.019),
        lambda profile: profile["times"]["A"]["1"]["backward_s_ML"][0].__setitem__(1, -0.019),
        lambda profile: profile["sizes"]["1"]["weight_bytes_L"].__setitem__(0, 3.9e6),
        lambda profile: profile["facts"].update(overhead_bytes=4e8),
        lambda profile: profile["times"]["A"]["1"]["forward_s_ML"].pop(),
    ],
)
def test_a_changed_figure_of_the_embedded_profile_is_caught(
    cli: Cli, files: Path, change: Callable[[Any], None]
) -> None:
    # One micro-batch size, so that every plan uses its row of the times.
    (files / "model.yaml").write_text(MODEL.replace("[1, 2]", "[1]"), encoding="utf-8")
    assert cli("solve", *FILES, *PRICED, "-o", "plan.json", "--deterministic").code == 0
    assert cli("check", "plan.json").code == 0
    edited(lambda plan: change(embedded(plan)), "plan.json", "edited.json")
    judged = cli("check", "edited.json")
    assert judged.code == 3
    assert "error[plan-refused]" in judged.err or "error[profile-incomplete]" in judged.err


@pytest.mark.parametrize("command", ["solve", "explain"])
def test_profile_and_cost_model_belong_together(cli: Cli, files: Path, command: str) -> None:
    for options in ((), ("--cost-model", "analytic"), ("--cost-model", "nobodys")):
        done = cli(command, *FILES, *options, "--profile", "profile.json")
        assert (done.code, done.out) == (2, "")
        assert "--profile" in done.err
        assert "--cost-model measured" in done.err
    done = cli(command, *FILES, "--cost-model", "measured")
    assert (done.code, done.out) == (3, "")
    assert "error[cost-model-settings]" in done.err
    assert "--profile FILE" in done.err


def test_a_plan_is_explained_by_its_own_profile(cli: Cli, files: Path) -> None:
    done = cli("explain", "plan.json", *PRICED)
    assert (done.code, done.out) == (2, "")
    assert "a plan holds its own profile" in done.err


@pytest.mark.parametrize("command", ["solve", "explain"])
@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        (None, "profile-unreadable", "bad.json: [Errno 2]"),
        ("{\n", "profile-unreadable", "bad.json: Expecting property name"),
        ("[" * 200_000, "profile-unreadable", "bad.json: "),
        ('{"schema": "echelon/plan/1"}', "profile-schema", "bad.json: schema 'echelon/plan/1' found"),
        ('{"schema": "echelon/profile/1"}', "profile-incomplete", "bad.json: profile: KeyError 'facts'"),
    ],
)
def test_a_profile_that_is_none_is_refused_with_its_place(
    cli: Cli, files: Path, command: str, text: str | None, code: str, place: str
) -> None:
    if text is not None:
        (files / "bad.json").write_text(text, encoding="utf-8")
    done = cli(command, *FILES, "--cost-model", "measured", "--profile", "bad.json")
    assert (done.code, done.out) == (3, "")
    assert f"error[{code}]: {place}" in done.err


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda p: p.update(times={}), "times"),
        (lambda p: p.update(sizes={}), "sizes"),
        (lambda p: p["times"].update(B={"0": p["times"]["A"]["1"]}), "times.B.0"),
        (lambda p: p["times"]["A"]["1"]["update_s_ML"].pop(), "times.A.1.update_s_ML"),
        (
            lambda p: p["times"]["A"]["1"]["forward_s_ML"][1].__setitem__(2, -1.0),
            "times.A.1.forward_s_ML[1][2]",
        ),
        (lambda p: p["times"]["A"]["1"].update(micro_batch_sizes=[2, 1]), "times.A.1.micro_batch_sizes"),
        (lambda p: p["sizes"]["1"].update(params_L=1.0), "sizes.1"),
        (lambda p: p["sizes"]["1"]["output_bytes_L"].append(1.0), "sizes.1.output_bytes_L"),
        (lambda p: p["sizes"]["1"]["params_L"].__setitem__(0, float("nan")), "sizes.1.params_L[0]"),
        (lambda p: p["outer"][0].update(smallest_bytes=0), "outer[A, A]"),
        (lambda p: p["outer"][0].update(gigabytes_per_s=[-1.0]), "outer[A, A]"),
        (lambda p: p["outer"][0].update(gigabytes_per_s=[]), "outer[A, A]"),
        (lambda p: p["facts"].update(overhead_bytes="1 GB"), "facts.overhead_bytes"),
        (lambda p: p["facts"].update(memory_bytes_per_s=0), "facts.memory_bytes_per_s"),
        (lambda p: p["facts"].update(fused_update=1), "facts.fused_update"),
    ],
)
def test_every_figure_that_can_not_be_used_is_told_with_its_place(
    cli: Cli, files: Path, change: Callable[[dict[str, Any]], None], place: str
) -> None:
    edited(change, "profile.json", "bad.json")
    done = cli("solve", *FILES, "--cost-model", "measured", "--profile", "bad.json")
    assert (done.code, done.out) == (3, "")
    assert "error[profile-incomplete]: bad.json: " in done.err
    assert f"bad.json: {place}" in done.err


def test_what_a_profile_says_besides_stays_out_of_the_plan(cli: Cli, files: Path) -> None:
    edited(lambda p: p.update(remark=float("inf")), "profile.json", "profile.json")
    assert cli("solve", *FILES, *PRICED, "-o", "plan.json").code == 0
    assert cli("check", "plan.json").code == 0


def test_a_profile_of_another_model_is_refused(cli: Cli, files: Path) -> None:
    save_profile(profile_of(NUM_LAYERS + 1), files / "profile.json")
    done = cli("solve", *FILES, *PRICED)
    assert done.code == 3
    assert "error[profile-model-differs]" in done.err


def test_what_fits_nowhere_is_explained_from_measurements(cli: Cli, files: Path) -> None:
    (files / "fleet.yaml").write_text(FLEET.replace("4 GB", "0.5 GB"), encoding="utf-8")
    explained = cli("explain", *FILES, *PRICED)
    assert (explained.code, explained.out) == (4, ""), explained.err
    solved = cli("solve", *FILES, *PRICED, "-o", "plan.json")
    assert (solved.code, solved.err) == (4, explained.err)


def test_the_memory_a_fleet_reserves_reaches_both_built_in_models(files: Path) -> None:
    inputs = load_inputs(files / "fleet.yaml", files / "model.yaml")
    profile = {"profile": profile_to_document(profile_of())}
    said = {"memory_reserve_frac": 0.1}
    assert (
        cost_settings(inputs, Request(cost_model="measured", cost_model_settings=profile)) == said | profile
    )
    assert cost_settings(inputs, Request()) == said | {"sync_layer": False}
    asked = {"memory_reserve_frac": 0.2}
    for name, rest in (("measured", {}), ("analytic", {"sync_layer": False})):
        assert cost_settings(inputs, Request(cost_model=name, cost_model_settings=asked)) == asked | rest
    assert cost_settings(inputs, Request(cost_model="foreign")) == {}
    assert cost_settings(inputs, Request(cost_model="foreign", cost_model_settings=asked)) == asked


@pytest.mark.skipif(not MEASURED_FOLDER.is_dir(), reason="no shared measurements beside this checkout")
def test_superchips_are_planned_by_their_published_profile(cli: Cli, tmp_path: Path) -> None:
    profile = opt350_profile()
    save_profile(profile, tmp_path / "profile.json")
    (tmp_path / "fleet.yaml").write_text(GH200_FLEET, encoding="utf-8")
    (tmp_path / "model.yaml").write_text(GH200_MODEL, encoding="utf-8")
    done = cli("solve", *FILES, *PRICED, "-o", "plan.json", "--deterministic")
    assert done.code == 0, done.err
    judged = cli("check", "plan.json")
    assert judged.code == 0, judged.err
    plan = read_plan(tmp_path / "plan.json")
    assert plan.certificate.excess_frac is not None
    replicas = plan.boundaries[0].replicas
    assert [(len(r.stages), r.stages[0].dp, r.stages[0].tp) for r in replicas] == [(1, 1, 4)] * 2
    rank = RunReplica(type_name="GH-96", tp=4)
    run = RunPlan(
        stages=(RunStage(first=0, end=profile.num_layers, replicas=(rank,)),),
        micro_batch_size=replicas[0].micro_batch_size,
        global_batch=16,
    )
    assert replicas[0].step_time_s == pytest.approx(predict(profile, run).iteration_s)

    def faster(data: dict[str, Any]) -> None:
        for row in embedded(data)["times"]["GH-96"]["4"]["forward_s_ML"]:
            row[5] *= 0.99

    edited(faster, "plan.json", "edited.json")
    assert cli("check", "edited.json").code == 3
