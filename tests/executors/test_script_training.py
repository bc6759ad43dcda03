"""Scripts that really train under plans: the two that are shipped, and some that try what they don't."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from forked import free_port
from script_plans import NO_JOB, RankEnd, Stage, launched, pipeline, plan_of, run_ranks, script_in

from executors.events import EVENTS_FILE, Event, parse_event
from executors.launching import LaunchOptions, plan_launches
from executors.outcome import Status
from executors.remote import transport_from
from executors.running import run_launches
from executors.script import examples
from executors.script.declaration import Script, read_script
from planner.plan import Plan

pytestmark = pytest.mark.deepspeed

EXAMPLES = Path(next(iter(examples.__path__)))
PIPELINE, DATA_PARALLEL = "deepspeed_pipeline.py", "torch_data_parallel.py"
STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def frameworks() -> None:
    """Imported once, so that no forked rank has to."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("torch", "deepspeed"):
            pytest.importorskip(name)
        # What the first optimiser and the first engine would import in every rank.
        for name in ("torch._dynamo", "torch.nn.parallel", "executors.ds_pipeline.engine"):
            importlib.import_module(name)


def example(name: str, folder: Path) -> Script:
    """A shipped script, started in the folder for a few steps."""
    return read_script((str(EXAMPLES / name), "--steps", str(STEPS)), folder)


def trained(plan: Plan, script: Script, folder: Path) -> list[RankEnd]:
    """How all ranks ended, every one well and with the same losses."""
    ends = run_ranks(launched(plan, script, folder))
    for end in ends:
        assert (end.code, end.kinds()[-1]) == (0, "finished"), end.out
        assert end.steps() == ends[0].steps()
    return ends


def test_the_pipeline_script_learns_alike_under_every_plan(tmp_path: Path) -> None:
    plans = {
        "alone": plan_of(pipeline(0, 5)),
        "early": plan_of(pipeline(0, 1, 5, recompute=1)),
        "late": plan_of(pipeline(0, 4, 5, shares=(1, 1), zero=1)),
    }
    losses = {
        name: trained(plan, example(PIPELINE, tmp_path), tmp_path / name)[0].steps()
        for name, plan in plans.items()
    }
    assert len(losses["alone"]) == STEPS
    assert losses["alone"][-1] < losses["alone"][0]
    for name in ("early", "late"):
        assert losses[name] == pytest.approx(losses["alone"], rel=1e-5)
    layers = {path.name for path in (tmp_path / "late" / "lab-r0" / "own" / "last").glob("layer_*")}
    assert {name.partition("-")[0] for name in layers} == {f"layer_{i:02d}" for i in range(5)}


def test_the_data_parallel_script_learns_alike_on_unequal_ranks(tmp_path: Path) -> None:
    alone = plan_of((Stage(layers=(0, 4), shares=(3,)),), executor="torch")
    shared = plan_of((Stage(layers=(0, 4), shares=(2, 1)),), executor="torch")
    expected = trained(alone, example(DATA_PARALLEL, tmp_path), tmp_path / "alone")[0].steps()
    found = trained(shared, example(DATA_PARALLEL, tmp_path), tmp_path / "shared")
    assert found[0].steps() == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    assert "exported" in found[0].kinds()
    tokens = [[e.data["tokens"] for e in end.events if e.kind.value == "step"] for end in found]
    assert tokens == [[shared.tokens_per_step] * STEPS, [0] * STEPS]
    assert (tmp_path / "shared" / "lab-r0" / "model.pt").is_file()


FROZEN = """
ECHELON_CAN = {"pipeline": True}
import deepspeed, torch
from deepspeed.pipe import LayerSpec
from torch import nn
from executors.script import here

class Frozen(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.requires_grad_(False)

run = here.plan()
run.init()
chain = [LayerSpec(Frozen), LayerSpec(nn.Linear, 4, 4), LayerSpec(Frozen)]
module = run.pipeline_module(chain, loss_fn=nn.functional.mse_loss)
optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
engine, *_ = deepspeed.initialize(model=module, optimizer=optimiser, config=run.ds_config())
assert list(engine.module.parts) == [0, 1, 2, 3]
assert engine.module.stage_id == run.stage
assert not engine.module.seed_layers
rows = torch.arange(8.0).reshape(2, 4) / 8
before = {name: p.detach().clone() for name, p in module.named_parameters()}
for step in range(3):
    loss = engine.train_batch(iter([(rows, 1 - rows)] * run.micro_batches))
    run.log_step(step + 1, float(loss))
changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
assert changed == ({"1.weight", "1.bias"} if run.stage == 1 else set()), changed
"""


def test_stages_that_train_nothing_are_kept_alive(tmp_path: Path) -> None:
    plan = plan_of(pipeline(0, 1, 2, 3))
    losses = trained(plan, script_in(tmp_path, FROZEN), tmp_path / "run")[0].steps()
    assert losses[2] < losses[1] < losses[0]


COUNTING = """
ECHELON_CAN = {"pipeline": True, "recompute": True}
import deepspeed, torch
from deepspeed.pipe import LayerSpec
from torch import nn
from executors.script import here

class Counting(nn.Linear):
    calls = 0
    def forward(self, given):
        self.calls += 1
        return super().forward(given)

run = here.plan()
run.init()
last = lambda given: 2 * given
module = run.pipeline_module([LayerSpec(Counting, 4, 4) for _ in range(3)] + [last], nn.functional.mse_loss)
optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
engine, *_ = deepspeed.initialize(model=module, optimizer=optimiser, config=run.ds_config())
rows = torch.ones(2, 4)
engine.train_batch(iter([(rows, rows)] * run.micro_batches))
found = {int(name): layer.calls for name, layer in module.named_children() if name.isdigit()}
expected = {i: run.micro_batches * (2 if i in run.recomputed else 1) for i in run.layers if i < 3}
assert found == expected, (found, expected)
assert len(run.recomputed) == run.recompute
"""


def test_planned_layers_are_computed_twice(tmp_path: Path) -> None:
    stages = (Stage(layers=(0, 2), recompute=1), Stage(layers=(2, 4), recompute=2))
    trained(plan_of(stages), script_in(tmp_path, COUNTING), tmp_path / "run")


GROUPS = """
ECHELON_CAN = {"pipeline": True, "unequal_widths": True, "tensor_parallel": True}
import torch
import torch.distributed as dist
from executors.script import here

run = here.plan()
device = run.init()
assert device == torch.device("cpu")
assert torch.get_num_threads() == 1
groups = run.groups()
own = run.ranks[run.stage]
expected = {
    "stage": sorted(rank for row in own for rank in row),
    "data_parallel": sorted(row[run.tp_i] for row in own),
    "tensor_parallel": sorted(own[run.dp_i]),
}
alike = len({(len(stage), len(stage[0])) for stage in run.ranks}) == 1
if alike:
    expected["pipeline"] = sorted(stage[run.dp_i][run.tp_i] for stage in run.ranks)
else:
    assert groups.pipeline is None
for name, ranks in expected.items():
    group = getattr(groups, name)
    assert dist.get_process_group_ranks(group) == ranks, (name, ranks)
    total = torch.tensor(float(run.rank))
    dist.all_reduce(total, group=group)
    assert total == sum(ranks), (name, total)
"""


@pytest.mark.parametrize(
    "stages",
    [
        (Stage(layers=(0, 1), shares=(1, 1)), Stage(layers=(1, 2), shares=(2,))),
        pipeline(0, 1, 2, tp=2),
    ],
)
def test_a_rank_gets_its_groups(stages: tuple[Stage, ...], tmp_path: Path) -> None:
    trained(plan_of(stages, executor="torch"), script_in(tmp_path, GROUPS), tmp_path / "run")


def really(plan: Plan, script: Script, folder: Path) -> tuple[Any, list[Event]]:
    """A launch through its real starter, and what was told of it."""
    port = free_port()
    options = LaunchOptions(
        folder=folder,
        one_machine=True,
        accelerator="cpu",
        script=script,
        python=sys.executable,
        port_of=lambda _: port,
    )
    launches = plan_launches(plan, NO_JOB, options)
    told: list[Event] = []
    ended = run_launches(
        plan, NO_JOB, launches, transport_from("local", verify=False), folder, told.append, failover=False
    )
    lines = (folder / EVENTS_FILE).read_bytes().splitlines()
    assert [event.kind for event in told] == [parse_event(line).kind for line in lines]
    return ended, told


@pytest.mark.net
@pytest.mark.parametrize(
    ("name", "plan"),
    [
        (PIPELINE, plan_of(pipeline(0, 2, 4))),
        (DATA_PARALLEL, plan_of((Stage(layers=(0, 4), shares=(2, 1)),), executor="torch")),
    ],
)
def test_the_shipped_scripts_run_through_the_real_starters(name: str, plan: Plan, tmp_path: Path) -> None:
    ended, told = really(plan, example(name, tmp_path), tmp_path / "run")
    (outcome,) = ended.outcome.replicas
    assert outcome.status is Status.FINISHED, (outcome, _logs(tmp_path))
    assert outcome.step == STEPS
    report = ended.reports["lab-r0"]
    assert len(report["losses"]) == STEPS
    assert report["losses"][-1] < report["losses"][0]
    assert report["measured"]["step_s"]["best"] > 0.0
    assert report["measured"]["tokens_per_s"] > 0.0
    for stage in report["stages"]:
        assert stage["measured"]["busy_s"] is None
        assert stage["measured"]["busy_cpu_s"] > 0.0
        assert stage["measured"]["peak_bytes"] > 2**20
    tokens = [event.data["tokens"] for event in told if event.kind.value == "step"]
    assert sum(tokens) == STEPS * plan.tokens_per_step


def test_a_script_that_fails_ends_the_launch_with_its_error(tmp_path: Path) -> None:
    text = """
ECHELON_CAN = {"executors": ["torch"]}
import os, signal
if os.environ["RANK"] == "1":
    raise FileNotFoundError("no such text")
signal.pause()
"""
    plan = plan_of((Stage(layers=(0, 4), shares=(1, 1)),), executor="torch")
    ended, _ = really(plan, script_in(tmp_path, text), tmp_path / "run")
    (outcome,) = ended.outcome.replicas
    assert (outcome.status, outcome.code, outcome.exit_code) == (Status.FAULT, "exception", 9)
    assert "FileNotFoundError: no such text" in outcome.message
    assert not ended.reports
    assert "train.py" in (tmp_path / "run" / "lab-r0" / "rank-1.log").read_text()


def test_a_script_that_reports_nothing_ends_in_peace(tmp_path: Path) -> None:
    plan = plan_of((Stage(layers=(0, 4), shares=(1, 1)),), executor="torch")
    ended, told = really(plan, script_in(tmp_path, "print('done')\n"), tmp_path / "run")
    assert ended.outcome.finished
    assert not ended.reports
    assert "ready" not in {event.kind.value for event in told}


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.log")))
