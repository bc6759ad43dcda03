"""Files become core types: values, units, defaults, short forms, references, and the bundled examples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from costmodels.catalog import device_type
from planner.agreement import (
    fleet_disagreements,
    joint_disagreements,
    policy_disagreements,
    workload_disagreements,
)
from planner.examples import generate_thousand
from planner.examples.bundled import example_folder, example_names
from planner.files import Inputs, load_fleet, load_inputs, load_model, load_policy
from policies.errors import InputError
from policies.policy import LayerTier, Policy, SpareKind

GOOD = Path(__file__).resolve().parents[1] / "corpus" / "good"
EXAMPLES = example_names()


def load_example(name: str) -> Inputs:
    folder = example_folder(name)
    return load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_figure_of_a_fleet_file_arrives_in_base_units() -> None:
    fleet = load_fleet(GOOD / "fleet.yaml")
    assert (fleet.name, fleet.tiers, fleet.boundaries) == ("small", ("open", "clinical"), ("north", "south"))
    assert fleet.memory_reserve_frac == 0.06
    assert [device.device_id for device in fleet.devices] == [
        *(f"gpu-0{host}/{k}" for host in (1, 2) for k in range(4)),
        "old-1/0",
        "old-1/1",
        "ward-1/0",
        "ward-1/1",
    ]
    own = fleet.device_by_id["old-1/0"]
    assert own.memory_bytes == 16 * 2**30
    assert own.flop_per_s == (("fp32", 10e12),)
    assert own.memory_bytes_per_s == 300e9
    assert (own.tier_i, own.usd_per_hour, own.mtbf_s, own.owner, own.origin) == (0, 0.0, None, "", "declared")
    bought = fleet.device_by_id["gpu-02/3"]
    assert (bought.tier_i, bought.usd_per_hour, bought.mtbf_s) == (1, 2.5, 2000 * 3600)
    assert (bought.owner, bought.origin) == ("radiology", "assumed")
    assert fleet.device_by_id["ward-1/0"].owner == "clinic"
    assert fleet.site_by_id["hall"].fabric_bytes_per_s == 100e9 / 8
    assert fleet.site_by_id["hall"].fabric_latency_s == 5e-6
    assert (
        fleet.link_by_ends["hall", "annex"].bytes_per_s
        == fleet.link_by_ends["annex", "hall"].bytes_per_s
        == 10e9 / 8
    )
    assert fleet.link_by_ends["hall", "ward"].bytes_per_s == 1e9 / 8
    assert fleet.link_by_ends["ward", "hall"].bytes_per_s == 500e6 / 8
    assert ("annex", "ward") not in fleet.link_by_ends


def test_a_catalog_type_brings_sustained_rates_and_the_link_inside_its_host() -> None:
    fleet = load_fleet(GOOD / "fleet.yaml")
    known = device_type("A100-80GB")
    device = fleet.device_by_id["gpu-01/0"]
    assert device.memory_bytes == known.memory_bytes
    assert device.rate_flop_per_s("bf16") == dict(known.sustained_flop_per_s)["bf16"]
    assert fleet.host_by_id["gpu-01"].link_bytes_per_s == known.device_link_bytes_per_s


@pytest.mark.parametrize(
    ("devices", "link_bytes_per_s"),
    [
        ("[4 x A100-80GB]", "device"),
        ("[2 x A100-80GB, 2 x a100 80gb]", "device"),
        ("[2 x A100-80GB, 2 x H100-80GB]", "host"),
        (
            "[3 x A100-80GB, {type: own, memory: 1 GiB, rate: {fp32: 1 TFLOP/s}, memory_bandwidth: 9 GB/s}]",
            12e9,
        ),
        ("[{type: own, memory: 1 GiB, rate: {fp32: 1 TFLOP/s}, memory_bandwidth: 9 GB/s}]", 12e9),
    ],
)
def test_unlike_devices_of_a_host_talk_through_the_host(
    devices: str, link_bytes_per_s: float | str, tmp_path: Path
) -> None:
    known = device_type("A100-80GB")
    rates = {"device": known.device_link_bytes_per_s, "host": known.host_link_bytes_per_s}
    assert rates["device"] > rates["host"]
    text = (GOOD / "fleet.yaml").read_text(encoding="utf-8").replace("4 x A100-80GB", devices)
    fleet = load_fleet(written(tmp_path, "fleet.yaml", text))
    expected = rates[link_bytes_per_s] if isinstance(link_bytes_per_s, str) else link_bytes_per_s
    assert fleet.host_by_id["gpu-01"].link_bytes_per_s == expected


def test_devices_without_a_rate_for_the_dtype_of_the_job_are_named(tmp_path: Path) -> None:
    text = (GOOD / "fleet.yaml").read_text(encoding="utf-8").replace("fp32: 10 TFLOP/s", "fp16: 10 TFLOP/s")
    fleet = written(tmp_path, "fleet.yaml", text)
    with pytest.raises(InputError) as caught:
        load_inputs(fleet, GOOD / "model.yaml", GOOD / "policy.yaml")
    (fault,) = caught.value.faults
    assert fault.place.startswith(f"{GOOD / 'model.yaml'}:")
    assert fault.place.endswith("job.dtype")
    assert "`home-made`" in fault.limit
    assert "old-1/0" in fault.limit
    assert "bf16" in fault.hint
    model = (GOOD / "model.yaml").read_text(encoding="utf-8").replace("job:", "job:\n  dtype: fp16")
    load_inputs(fleet, written(tmp_path, "model.yaml", model), GOOD / "policy.yaml")


def test_wan_defaults_fill_every_pair_that_is_not_listed(tmp_path: Path) -> None:
    text = (GOOD / "fleet.yaml").read_text(encoding="utf-8")
    wan = "wan: {inside: {bandwidth: 2 Gbit/s}, across: {bandwidth: 1 Mbit/s, latency: 9 ms}}\n"
    text = text.replace("  - {between: [hall, annex], bandwidth: 10 Gbit/s, latency: 1 ms}\n", "")
    fleet = load_fleet(written(tmp_path, "fleet.yaml", text + wan))
    assert fleet.link_by_ends["hall", "annex"].bytes_per_s == 2e9 / 8
    assert fleet.link_by_ends["annex", "ward"].bytes_per_s == 1e6 / 8
    assert fleet.link_by_ends["ward", "annex"].latency_s == 9e-3
    assert fleet.link_by_ends["hall", "ward"].bytes_per_s == 1e9 / 8, "listed links keep their own figures"
    assert len(fleet.links) == 3 * 2


def test_fleets_beyond_what_can_be_planned_are_refused(tmp_path: Path) -> None:
    text = (GOOD / "fleet.yaml").read_text(encoding="utf-8")
    crowd = written(
        tmp_path, "crowd.yaml", text.replace("gpu-[01-02]", "gpu-[1-16384]").replace("4 x", "8 x")
    )
    with pytest.raises(InputError, match="1 fault") as caught:
        load_fleet(crowd)
    assert caught.value.faults[0].limit == "at most 65,536 devices in a fleet"
    sites = "".join(f"  - {{name: s{i}, boundary: north, fabric: 1 Gbit/s}}\n" for i in range(300))
    with pytest.raises(InputError) as caught:
        load_fleet(written(tmp_path, "sites.yaml", text.replace("sites:\n", "sites:\n" + sites)))
    assert caught.value.faults[0].limit == "at most 256"


def test_json_is_read_by_the_same_road(tmp_path: Path) -> None:
    import json

    import yaml

    data = yaml.safe_load((GOOD / "fleet.yaml").read_text(encoding="utf-8"))
    path = written(tmp_path, "fleet.json", json.dumps(data, indent="\t"))
    assert load_fleet(path) == load_fleet(GOOD / "fleet.yaml")


def test_words_that_other_readers_take_for_booleans_are_names(tmp_path: Path) -> None:
    text = (GOOD / "fleet.yaml").read_text(encoding="utf-8").replace("north", "no").replace("open", "on")
    fleet = load_fleet(written(tmp_path, "fleet.yaml", text))
    assert (fleet.boundaries[0], fleet.tiers[0]) == ("no", "on")


def test_explicit_layers_keep_their_order_ties_and_repeats() -> None:
    workload = load_model(GOOD / "model.yaml")
    assert [layer.kind for layer in workload.layers] == ["embedding", *["block"] * 4, "head"]
    assert workload.layers[5].tied_to == 0
    assert workload.num_params == 1000 + 4 * 5000
    assert workload.layers[5].shared_params == 1000
    block = workload.layers[1]
    assert (block.params, block.trainable_params) == (5000, 5000)
    assert (block.forward_flops_per_token, block.activation_bytes_per_token) == (10e3, 2048.0)
    assert workload.job.tokens_per_step == 8 * 512


def test_a_config_inline_and_in_a_file_give_the_same_chain(tmp_path: Path) -> None:
    inline = (GOOD / "model-config.yaml").read_text(encoding="utf-8")
    config = inline[inline.index("  model_type") : inline.index("job:")]
    written(
        tmp_path,
        "config.json",
        "{"
        + ",".join(
            f'"{a.strip()}": {b.strip() if b.strip() != "llama" else chr(34) + "llama" + chr(34)}'
            for a, b in (line.split(":") for line in config.strip().splitlines())
        )
        + "}",
    )
    beside = written(tmp_path, "model.yaml", inline.replace("config:\n" + config, "config: config.json\n"))
    assert load_model(beside) == load_model(GOOD / "model-config.yaml")


@pytest.mark.parametrize(
    ("job", "state", "gradient"),
    [
        ("dtype: bf16\n  optimiser: adamw", 12.0, 2.0),
        ("dtype: fp32\n  optimiser: adamw", 8.0, 4.0),
        ("dtype: fp16\n  optimiser: adamw-8bit", 6.0, 2.0),
        ("dtype: fp16\n  optimiser: sgd", 4.0, 2.0),
        ("dtype: fp32\n  optimiser: sgd-momentum", 4.0, 4.0),
    ],
)
def test_optimiser_and_dtype_set_the_bytes_per_trained_weight(
    tmp_path: Path, job: str, state: float, gradient: float
) -> None:
    text = (GOOD / "model.yaml").read_text(encoding="utf-8").replace("method: full", f"method: full\n  {job}")
    found = load_model(written(tmp_path, "model.yaml", text)).job
    assert (found.optimiser_state_bytes_per_param, found.gradient_bytes_per_param) == (state, gradient)


def test_tokens_per_step_and_default_micro_batch_sizes(tmp_path: Path) -> None:
    text = (GOOD / "model.yaml").read_text(encoding="utf-8")
    text = text.replace("sequences_per_step: 8", "tokens_per_step: 3072 tokens").replace(
        "  micro_batch_sizes: [1, 2]\n", ""
    )
    job = load_model(written(tmp_path, "model.yaml", text)).job
    assert (job.sequences_per_step, job.micro_batch_sizes) == (6, (1, 2))


def test_targets_take_short_long_and_group_names(tmp_path: Path) -> None:
    def params(targets: str) -> int:
        text = (GOOD / "model-config.yaml").read_text(encoding="utf-8")
        return load_model(
            written(tmp_path, "model.yaml", text.replace("rank: 4", f"rank: 4\n  targets: {targets}"))
        ).num_params

    assert params("[q_proj, v]") == params("[v, q]") < params("[attention]") < params("[all]")
    assert params("[attention, mlp]") == params("[all]")


def test_sync_copies_are_kept_only_where_something_crosses_a_boundary(tmp_path: Path) -> None:
    both = load_inputs(GOOD / "fleet.yaml", GOOD / "model.yaml", GOOD / "policy.yaml")
    assert both.workload.job.sync_copies_bytes_per_param == 12.0
    alone = written(tmp_path, "policy.yaml", "schema: echelon/policy/1\nboundaries: [north]\n")
    assert (
        load_inputs(GOOD / "fleet.yaml", GOOD / "model.yaml", alone).workload.job.sync_copies_bytes_per_param
        == 0.0
    )
    text = (
        (GOOD / "model.yaml")
        .read_text(encoding="utf-8")
        .replace("method: full", "method: full\n  sync_copies: 1")
    )
    fixed = written(tmp_path, "model.yaml", text)
    assert load_inputs(GOOD / "fleet.yaml", fixed, alone).workload.job.sync_copies_bytes_per_param == 4.0


def test_tiers_of_explicit_layers_join_the_policy(tmp_path: Path) -> None:
    text = (GOOD / "model.yaml").read_text(encoding="utf-8").replace("repeat: 4", "repeat: 4, tier: clinical")
    inputs = load_inputs(GOOD / "fleet.yaml", written(tmp_path, "model.yaml", text), GOOD / "policy.yaml")
    assert inputs.policy.layer_tiers == (
        LayerTier(start=0, stop=2, tier="clinical"),
        LayerTier(start=1, stop=5, tier="clinical"),
    )


def test_policy_values_and_defaults(tmp_path: Path) -> None:
    policy = load_policy(GOOD / "policy.yaml")
    assert (policy.tokens_tier, policy.labels_tier, policy.activations_tier) == ("clinical", "clinical", None)
    assert policy.boundaries == ("north", "south")
    assert policy.accept_two_boundaries
    assert (policy.spares.kind, policy.spares.pool_min_devices) == (SpareKind.POOLED, 4)
    assert policy.usd_per_hour_max == 50.0
    assert load_policy(None) == Policy()
    least = load_policy(written(tmp_path, "policy.yaml", "schema: echelon/policy/1\n"))
    assert least == Policy(), "an empty policy file says what no policy file says"
    more = load_policy(
        written(
            tmp_path,
            "policy.yaml",
            "schema: echelon/policy/1\nsync: {method: diloco, local_steps: 100, outer_rate: 0.7}\n"
            f"audit_keys: {{north: 'ed25519:{'0f' * 32}'}}\n"
            "spill_over: {owners: [cloud], tokens_per_s_below: 5}\n",
        )
    )
    assert dict(more.sync) == {"method": "diloco", "local_steps": "100", "outer_rate": "0.7"}
    assert more.spill_over is not None
    assert more.spill_over.tokens_per_s_below == 5.0


def test_faults_of_all_files_are_told_at_once() -> None:
    bad = GOOD.parent / "bad"
    with pytest.raises(InputError) as caught:
        load_inputs(
            bad / "fleet-negative-memory.yaml", bad / "model-tie-cycle.yaml", bad / "policy-unknown-key.yaml"
        )
    places = [fault.place.removeprefix(f"{bad}/") for fault in caught.value.faults]
    assert places == [
        "fleet-negative-memory.yaml:21: hosts[1].devices[0].memory",
        "model-tie-cycle.yaml:4: layers[0].tied_to",
        "model-tie-cycle.yaml:6: layers[2].tied_to",
        "policy-unknown-key.yaml:6: boundary",
    ]
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_load_and_agree(name: str) -> None:
    inputs = load_example(name)
    assert not list(fleet_disagreements(inputs.fleet))
    assert not list(workload_disagreements(inputs.workload))
    assert not list(policy_disagreements(inputs.policy))
    assert not list(joint_disagreements(inputs.policy, inputs.fleet, inputs.workload))
    assert all(device.usd_per_hour > 0 for device in inputs.fleet.devices), "examples carry prices"
    for layer in inputs.workload.layers:
        assert layer.params >= layer.trainable_params


def test_the_examples_are_what_they_are_said_to_be() -> None:
    assert EXAMPLES == ("desk", "hospital", "thousand", "two-hospitals-and-a-lab", "university")
    hospital = load_example("hospital")
    assert Counter(device.type_name for device in hospital.fleet.devices) == {
        "A100-80GB": 4,
        "A10": 8,
        "T4": 6,
    }
    assert (len(hospital.fleet.tiers), len(hospital.fleet.boundaries), len(hospital.fleet.links)) == (3, 1, 4)
    assert hospital.workload.num_layers == 34
    job = hospital.workload.job
    held_bytes = hospital.workload.num_params * (
        job.weight_bytes_per_param + job.gradient_bytes_per_param + job.optimiser_state_bytes_per_param
    )
    assert held_bytes > max(device.memory_bytes for device in hospital.fleet.devices)
    three = load_example("two-hospitals-and-a-lab")
    assert three.policy.replicas_min(num_boundaries=len(three.fleet.boundaries)) == 4
    assert len(three.fleet.boundaries) == 3
    thousand = load_example("thousand").fleet
    assert (len(thousand.devices), len(thousand.boundaries), len(thousand.tiers)) == (1000, 12, 4)
    assert len({device.type_name for device in thousand.devices}) == 8
    assert {device.tier_i for device in thousand.devices} == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["two-hospitals-and-a-lab", "thousand"])
def test_every_boundary_has_cleared_memory_for_four_replicas(name: str) -> None:
    """Necessary, not sufficient: the frozen weights four times over on devices cleared for raw text."""
    inputs = load_example(name)
    cleared = inputs.fleet.tiers.index(inputs.policy.tokens_tier or inputs.fleet.tiers[0])
    weights_bytes = inputs.workload.num_params * inputs.workload.job.weight_bytes_per_param
    for boundary in inputs.fleet.boundaries:
        own = [d for d in inputs.fleet.devices if inputs.fleet.boundary_of(d) == boundary]
        assert sum(d.memory_bytes for d in own if d.tier_i >= cleared) > 4 * weights_bytes, boundary
        assert sum(d.tier_i >= cleared for d in own) >= 8, boundary


def test_thousand_is_what_its_script_writes() -> None:
    text = (example_folder("thousand") / "fleet.yaml").read_text(encoding="utf-8")
    assert generate_thousand.fleet_text() == text
    assert generate_thousand.fleet_text(seed=generate_thousand.SEED + 1) != text
