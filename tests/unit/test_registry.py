"""Cost models by name: built in, registered, and brought by entry points."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from costmodels import registry
from costmodels.analytic import AnalyticCostModel
from costmodels.fleet import Link
from costmodels.interface import Cluster, Interval, StageCost, Strategy
from costmodels.registry import (
    ENTRY_POINT_GROUP,
    BrokenCostModelError,
    DuplicateCostModelError,
    Registry,
    UnknownCostModelError,
    cost_model,
    known_names,
)
from costmodels.workload import Job, LayerSpec, Workload
from policies.errors import InputError

LAYER = LayerSpec(
    kind="block",
    params=10,
    trainable_params=10,
    forward_flops_per_token=20.0,
    activation_bytes_per_token=8.0,
    input_bytes_per_token=2.0,
    output_bytes_per_token=2.0,
)
WORKLOAD = Workload(model_name="two", layers=(LAYER, LAYER), job=Job())


class Flat:
    """One second per layer, wherever it runs."""

    name = "flat"

    def __init__(self, workload: Workload, *, layer_s: float = 1.0) -> None:
        self.workload = workload
        self.layer_s = layer_s

    def stage(
        self, cluster: Cluster, interval: Interval, strategy: Strategy, micro_batch_size: int, in_flight: int
    ) -> StageCost | None:
        seconds = self.layer_s * (interval[1] - interval[0])
        return StageCost(
            forward_s=seconds,
            backward_s=0.0,
            exposed_s=0.0,
            sync_s=0.0,
            shares=(micro_batch_size,),
            memory_bytes=({},),
            limit_bytes=(0.0,),
        )

    def transfer_s(self, link: Link, border: int, micro_batch_size: int) -> float:
        return 0.0

    def interval_key(self, interval: Interval) -> int:
        return interval[1] - interval[0]


def point(name: str, target: str) -> EntryPoint:
    return EntryPoint(name=name, value=target, group=ENTRY_POINT_GROUP)


def registry_with(*points: EntryPoint) -> Registry:
    return Registry({"analytic": "costmodels.analytic:AnalyticCostModel"}, lambda: points)


def test_the_analytic_model_is_built_in_with_its_settings() -> None:
    model = cost_model("analytic", WORKLOAD, hidden_frac=0.25, sync_layer=True)
    assert isinstance(model, AnalyticCostModel)
    assert model.settings.hidden_frac == 0.25
    assert model.sync_layer
    assert "analytic" in known_names()


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_built_in_name_can_be_loaded(name: str) -> None:
    with pytest.raises(BrokenCostModelError) as caught:
        cost_model(name, WORKLOAD, setting_nobody_has=1)
    assert caught.value.code == "cost-model-settings", caught.value.message


@pytest.fixture
def flat_registered() -> Iterator[None]:
    registry.register("flat", Flat)
    yield
    registry.forget("flat")


@pytest.mark.usefixtures("flat_registered")
def test_a_cost_model_registered_in_python_is_found_by_name() -> None:
    model = cost_model("flat", WORKLOAD, layer_s=3.0)
    assert isinstance(model, Flat)
    assert model.layer_s == 3.0
    assert known_names() == tuple(sorted(known_names()))
    assert "flat" in known_names()


@pytest.mark.usefixtures("flat_registered")
@pytest.mark.parametrize("name", ["flat", "analytic"])
def test_a_name_is_given_once(name: str) -> None:
    with pytest.raises(DuplicateCostModelError) as caught:
        registry.register(name, Flat)
    assert caught.value.code == "cost-model-duplicate"
    assert f"`{name}`" in caught.value.message


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    known = registry_with(point("theirs", "elsewhere:Model"))
    with pytest.raises(UnknownCostModelError) as caught:
        known.build("analytical", WORKLOAD)
    assert isinstance(caught.value, InputError)
    assert caught.value.code == "cost-model-unknown"
    assert caught.value.message == "no cost model is called `analytical`; known are analytic, theirs"
    assert ENTRY_POINT_GROUP in caught.value.hint


def test_an_entry_point_is_loaded_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    flat = source[source.index("class Flat:") : source.index("def point(")]
    imports = "from costmodels.interface import StageCost\n"
    annotations = "from __future__ import annotations\n"
    (tmp_path / "foreign_costs.py").write_text(annotations + imports + flat, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    model = registry_with(point("foreign", "foreign_costs:Flat")).build("foreign", WORKLOAD, layer_s=2.0)
    assert model.name == "flat"
    assert type(model).__module__ == "foreign_costs"


def test_an_installed_package_is_found_through_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "foreign-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n", encoding="utf-8")
    target = "foreign_by_metadata = costmodels.analytic:AnalyticCostModel"
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{target}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "foreign_by_metadata" in known_names()
    assert isinstance(cost_model("foreign_by_metadata", WORKLOAD), AnalyticCostModel)


def test_packages_that_claim_one_name_are_both_named() -> None:
    rivals = registry_with(point("theirs", "one:Model"), point("theirs", "two:Model"))
    with pytest.raises(DuplicateCostModelError) as caught:
        rivals.build("theirs", WORKLOAD)
    assert "one:Model and by two:Model" in caught.value.message


def test_a_package_cannot_take_a_built_in_name_but_may_repeat_ours() -> None:
    repeated = registry_with(point("analytic", "costmodels.analytic:AnalyticCostModel"))
    assert isinstance(repeated.build("analytic", WORKLOAD), AnalyticCostModel)
    with pytest.raises(DuplicateCostModelError):
        registry_with(point("analytic", "one:Model")).build("analytic", WORKLOAD)


@pytest.mark.parametrize(
    "target", ["no_such_package:Model", "costmodels.analytic:NoSuchModel", "costmodels.registry:BUILT_IN"]
)
def test_a_cost_model_that_cannot_be_loaded_says_from_where(target: str) -> None:
    with pytest.raises(BrokenCostModelError) as caught:
        registry_with(point("theirs", target)).build("theirs", WORKLOAD)
    assert caught.value.code == "cost-model-broken"
    assert target in caught.value.message


def test_settings_a_cost_model_does_not_take_are_refused_before_it_is_built() -> None:
    with pytest.raises(BrokenCostModelError) as caught:
        cost_model("analytic", WORKLOAD, overlap=0.5)
    assert caught.value.code == "cost-model-settings"
    assert "overlap" in caught.value.message
    assert "hidden_frac" in caught.value.hint


def test_an_error_inside_a_cost_model_keeps_its_own_type() -> None:
    known = registry_with()

    def failing(workload: Workload) -> Flat:
        raise TypeError(workload.model_name)

    known.register("failing", failing)
    with pytest.raises(TypeError, match="two"):
        known.build("failing", WORKLOAD)


def test_a_cost_model_without_all_members_is_refused() -> None:
    known = registry_with()
    known.register("half", lambda workload: object())  # type: ignore[arg-type, return-value]
    with pytest.raises(BrokenCostModelError) as caught:
        known.build("half", WORKLOAD)
    assert caught.value.code == "cost-model-incomplete"
    assert "stage, transfer_s, interval_key" in caught.value.message
