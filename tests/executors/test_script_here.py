"""What a script finds out about its place in the plan, and how its rank starts and ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from script_plans import RankEnd, Stage, launched, pipeline, plan_of, run_ranks, script_in

from costmodels.workload import Recipe
from executors.layout import layout_of
from executors.script import here
from executors.script.declaration import CHOICES, Declaration
from planner.canonical import inputs_from_documents
from planner.plan import Plan
from policies.errors import InputError

ABLE = f"""ECHELON_CAN = {{
    "pipeline": True, "zero": {list(CHOICES["zero"])}, "tensor_parallel": True, "unequal_widths": True,
    "uneven_shares": True, "recompute": True, "tied_embeddings": True,
}}
"""
TELL = f"""{ABLE}
import json, os, sys
from executors.script import here
run = here.plan()
assert run is here.plan()
facts = {{name: getattr(run, name) for name in (
    "rank", "world_size", "local_rank", "host", "device", "stage", "dp_i", "dp", "tp_i", "tp", "head",
    "ranks", "cuts", "num_layers", "num_stages", "shares", "zero", "recompute", "micro_batches",
    "micro_batch_size", "sequence_tokens", "tokens_per_step", "seed", "resume", "dtype", "config", "executor",
    "replica",
)}}
facts |= {{"rows": [run.rows.start, run.rows.stop], "layers": list(run.layers), "cores": sorted(run.cores)}}
facts |= {{"recomputed": sorted(run.recomputed), "peers": run.peers(0), "folder": str(run.folder)}}
facts |= {{"argv": sys.argv, "cwd": os.getcwd(), "path": sys.path[0], "name": __name__}}
facts |= {{"env": dict(os.environ), "torch": "torch" in sys.modules}}
with open(f"facts-{{run.rank}}.json", "w") as file:
    json.dump(facts, file)
"""
SHAPES = (
    Stage(layers=(0, 3), shares=(2, 1), recompute=2),
    Stage(layers=(3, 4), shares=(3,), tp=2, zero=1),
)
HOSTS = {"lab-1": 1, "lab-2": 3}


def facts_of(plan: Plan, folder: Path, *arguments: str, **options: Any) -> list[dict[str, Any]]:
    """What a script is told on each rank."""
    spec = launched(plan, script_in(folder, TELL, *arguments), folder / "run", **options)
    ends = run_ranks(spec)
    assert [(end.code, end.out) for end in ends] == [(0, "")] * len(ends)
    return [json.loads((folder / f"facts-{rank}.json").read_text()) for rank in range(len(ends))]


def test_every_rank_is_told_its_part_of_the_plan(tmp_path: Path) -> None:
    plan = plan_of(SHAPES, hosts=HOSTS, recipe=Recipe(config_json='{"model_type": "llama"}'))
    replica = plan.boundaries[0].replicas[0]
    layout = layout_of(inputs_from_documents(plan.inputs).fleet, replica)
    for rank, told in zip(layout.ranks, facts_of(plan, tmp_path, "--lr", "1e-3"), strict=True):
        stage = replica.stages[rank.stage]
        assert (told["rank"], told["world_size"], told["local_rank"]) == (rank.rank, 4, rank.rank)
        assert (told["host"], told["device"], told["stage"]) == (rank.host, rank.device, rank.stage)
        assert (told["dp_i"], told["dp"]) == (rank.dp_i, stage.dp)
        assert (told["tp_i"], told["tp"]) == (rank.tp_i, stage.tp)
        assert told["ranks"][rank.stage][rank.dp_i][rank.tp_i] == rank.rank
        assert told["head"] == (rank.device == stage.head)
        assert (told["cuts"], told["num_layers"], told["num_stages"]) == ([0, 3, 4], 4, 2)
        assert told["layers"] == list(range(*stage.layers))
        assert told["shares"] == list(stage.micro_batch_shares)
        assert (told["zero"], told["recompute"]) == (stage.zero, stage.recompute)
        assert told["recomputed"] == ([0, 1] if rank.stage == 0 else [])
        assert (told["micro_batches"], told["micro_batch_size"]) == (4, 3)
        assert (told["sequence_tokens"], told["tokens_per_step"]) == (16, 192)
        assert told["config"] == {"model_type": "llama"}
        assert told["peers"] == [one.rank for one in layout.of_stage(0)]
        assert (told["argv"], told["name"]) == ([f"{tmp_path}/train.py", "--lr", "1e-3"], "__main__")
        assert (told["cwd"], told["path"]) == (str(tmp_path), str(tmp_path))
        assert told["folder"] == str(tmp_path / "run" / "lab-r0")
        assert not told["torch"] or "torch" in sys.modules, "a forked rank has what this process has"


def test_the_environment_says_the_same(tmp_path: Path) -> None:
    for told in facts_of(plan_of(SHAPES, hosts=HOSTS), tmp_path, resume=True):
        first, stop = told["layers"][0], told["layers"][-1] + 1
        expected = {
            "RANK": told["rank"],
            "LOCAL_RANK": told["local_rank"],
            "WORLD_SIZE": 4,
            "LOCAL_WORLD_SIZE": 4,
            "LOCAL_SIZE": 4,
            "MASTER_ADDR": "127.0.0.1",
            "ECHELON_RUN": f"{told['folder']}/run.json",
            "ECHELON_STAGE": told["stage"],
            "ECHELON_LAYERS": f"{first}-{stop}",
            "ECHELON_CUTS": "0,3,4",
            "ECHELON_DP_RANK": told["dp_i"],
            "ECHELON_DP_SIZE": told["dp"],
            "ECHELON_TP_RANK": told["tp_i"],
            "ECHELON_TP_SIZE": told["tp"],
            "ECHELON_MICRO_BATCHES": 4,
            "ECHELON_MICRO_BATCH_SIZE": 3,
            "ECHELON_ROWS": f"{told['rows'][0]}-{told['rows'][1]}",
            "ECHELON_ZERO": told["zero"],
            "ECHELON_FOLDER": told["folder"],
            "ECHELON_RESUME": 1,
        }
        assert {name: told["env"].get(name) for name in expected} == {
            name: str(value) for name, value in expected.items()
        }
        assert json.loads(told["env"]["ECHELON_RANKS"]) == told["ranks"]


def test_ranks_of_one_machine_take_its_cores_in_turn(tmp_path: Path) -> None:
    available = sorted(os.sched_getaffinity(0))
    told = facts_of(plan_of((Stage(layers=(0, 4), shares=(1, 1, 1)),)), tmp_path)
    assert [each["cores"] for each in told] == [[available[i % len(available)]] for i in range(3)]


@given(shares=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_rows_of_a_stage_are_the_whole_micro_batch(shares: list[list[int]]) -> None:
    for stage in shares:
        found = [row for dp_i in range(len(stage)) for row in _rank(tuple(stage), dp_i).rows]
        assert found == list(range(sum(stage)))


def test_outside_of_a_launch_the_way_in_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECHELON_RUN", raising=False)
    with pytest.raises(InputError, match="ECHELON_RUN is not set") as caught:
        here.plan()
    assert caught.value.code == "not-launched"
    assert "echelon launch plan.json -- SCRIPT" in caught.value.hint


def ended(text: str, folder: Path, *arguments: str) -> RankEnd:
    """How the one rank of a plan ends that runs this script."""
    spec = launched(plan_of((Stage(layers=(0, 4)),)), script_in(folder, text, *arguments), folder / "run")
    return run_ranks(spec)[0]


def by_itself(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the same script without a plan."""
    argv = [sys.executable, str(folder / "train.py"), *arguments]
    done = subprocess.run(
        argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


FAILING = """
import sys
def work():
    print("begun", flush=True)
    try:
        [][1]
    except IndexError as error:
        raise ValueError("no good") from error
"""


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (f"{FAILING}work()\n", "exception", "ValueError: no good"),
        (f"{FAILING}sys.exit(3)\n", "script-exit", "train.py ended with exit code 3"),
        (f"{FAILING}sys.exit('enough')\n", "script-exit", "train.py ended with exit code 1"),
        (f"{FAILING}sys.exit(256 + 7)\n", "script-exit", "train.py ended with exit code 7"),
        ("import no_such_module\n", "exception", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\nsys.excepthook = lambda *_: print('mine')\n1 / 0\n", "exception", "division by zero"),
    ],
)
def test_a_script_fails_as_by_itself(text: str, code: str, message: str, tmp_path: Path) -> None:
    end = ended(text, tmp_path)
    assert (end.code, end.out) == by_itself(tmp_path)
    assert end.kinds() == ["hello", "failed"]
    assert end.events[-1].data["code"] == code
    assert message in end.events[-1].data["message"]
    assert end.events[-1].data["exit_code"] == 9
    assert not end.events[-1].data["consequence"]


def test_a_syntax_error_of_this_interpreter_is_told_as_by_python(tmp_path: Path) -> None:
    # `ast.parse` lets it pass, compiling doesn't.
    end = ended("print('begun')\nreturn 3\n", tmp_path)
    code, out = by_itself(tmp_path)
    assert (end.code, end.out) == (code, out)
    assert "SyntaxError" in end.events[-1].data["message"]


@pytest.mark.parametrize("text", ["print('done')\n", "import sys\nsys.exit()\n", "raise SystemExit(0)\n"])
def test_the_end_of_a_script_is_told(text: str, tmp_path: Path) -> None:
    end = ended(text, tmp_path)
    assert (end.code, end.out) == by_itself(tmp_path)
    assert end.kinds() == ["hello", "finished"]
    assert end.events[-1].data["peak_bytes"] > 2**20


def test_a_lost_peer_is_a_consequence(tmp_path: Path) -> None:
    end = ended("raise RuntimeError('Connection closed by peer [127.0.0.1]:4711')\n", tmp_path)
    assert (end.code, end.events[-1].data["consequence"]) == (1, True)


def test_errors_of_the_helper_keep_their_names(tmp_path: Path) -> None:
    text = "from executors.script import here\nhere.plan().pipeline_module([], loss_fn=None)\n"
    end = ended(text, tmp_path)
    event = end.events[-1].data
    assert (end.code, event["code"], event["exit_code"]) == (1, "chain-length", 3)
    assert event["hint"]


def test_what_a_script_reports_are_events_of_its_rank(tmp_path: Path) -> None:
    text = """
from executors.script import here
run = here.plan()
run.ready(step=2, num_steps=9)
run.log_step(3, 1.5, gradient_norm=0.25)
run.log_step(4, float("nan"))
run.log_evaluation(4, 1.25)
run.log_evaluation(4, float("inf"))
run.log_checkpoint(4, run.folder / "own")
run.log_export(run.folder / "model")
run.finished()
"""
    end = ended(text, tmp_path)
    ready, first, second, evaluation, note, checkpoint, exported, finished = end.events[1:]
    assert end.kinds()[1:4] == ["ready", "step", "step"]
    assert (ready.data["step"], ready.data["num_steps"], ready.data["device"]) == (2, 9, "lab-1/0")
    assert (first.data["step"], first.data["loss"], first.data["gradient_norm"]) == (3, 1.5, 0.25)
    assert first.data["wall_s"] > 0.0
    assert first.data["cpu_s"] >= 0.0
    assert first.data["tokens"] == 4 * 2 * 16
    assert (second.data["loss"], second.data["gradient_norm"]) == (None, None)
    assert (evaluation.data["step"], evaluation.data["loss"]) == (4, 1.25)
    assert note.data["text"] == "the loss on held-out text is inf after 4 steps"
    assert checkpoint.data["folder"].endswith("/run/lab-r0/own")
    assert exported.data["folder"].endswith("/run/lab-r0/model")
    assert finished.kind.value == "finished"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda path: path.write_text("print('another')\n"), "script-changed"),
        (lambda path: path.unlink(), "script-missing"),
    ],
)
def test_a_host_with_another_script_is_refused(change: Any, code: str, tmp_path: Path) -> None:
    script = script_in(tmp_path, "print('begun')\n")
    spec = launched(plan_of((Stage(layers=(0, 4)),)), script, tmp_path / "run")
    change(tmp_path / "train.py")
    (end,) = run_ranks(spec)
    assert (end.code, end.kinds(), end.events[-1].data["code"]) == (9, ["hello", "failed"], code)
    assert "train.py" in end.out
    assert "begun" not in end.out


def test_a_host_without_the_folder_is_refused(tmp_path: Path) -> None:
    script = script_in(tmp_path, "print('begun')\n")
    spec = launched(plan_of((Stage(layers=(0, 4)),)), script, tmp_path / "run")
    run_file = spec.folder / "run.json"
    run_file.write_text(run_file.read_text().replace(f'"folder": "{tmp_path}"', '"folder": "/not/here"'))
    (end,) = run_ranks(spec)
    assert (end.code, end.events[-1].data["code"]) == (9, "script-missing")
    assert "/not/here" in end.events[-1].data["message"]


def test_a_run_without_a_script_is_no_place_for_one(tmp_path: Path) -> None:
    script = script_in(tmp_path, "")
    spec = launched(plan_of((Stage(layers=(0, 4)),)), script, tmp_path / "run")
    record = json.loads((spec.folder / "run.json").read_text())
    (spec.folder / "run.json").write_text(json.dumps({**record, "script": None}))
    (end,) = run_ranks(spec)
    assert (end.code, end.events[-1].data["code"]) == (9, "no-script-planned")


def test_deepspeed_gets_the_grid_of_the_plan(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    text = f"""{ABLE}
from executors.script import here
run = here.plan()
grid = run.deepspeed_topology()
for rank in range(run.world_size):
    at = grid.get_coord(rank)
    assert run.ranks[at.pipe][at.data][getattr(at, "model", 0)] == rank, (rank, at)
config = run.ds_config(steps_per_print=7)
assert config["gradient_accumulation_steps"] == 4, config
assert config["steps_per_print"] == 7, config
"""
    for stages in (pipeline(0, 1, 4, shares=(1, 1)), pipeline(0, 2, 4, shares=(1, 1), tp=2)):
        spec = launched(plan_of(stages), script_in(tmp_path, text), tmp_path / "run")
        (end,) = run_ranks(spec, ranks=[1])
        assert (end.code, end.kinds()[-1]) == (0, "finished"), end.out
    spec = launched(plan_of(SHAPES), script_in(tmp_path, text), tmp_path / "other")
    (end,) = run_ranks(spec, ranks=[0])
    assert end.events[-1].data["code"] == "unequal-widths"
    assert "2 x 1, 1 x 2" in end.events[-1].data["message"]


def _rank(shares: tuple[int, ...], dp_i: int) -> here.PlannedRank:
    """A rank of which nothing but its rows is looked at."""
    rank = object.__new__(here.PlannedRank)
    object.__setattr__(rank, "shares", shares)
    object.__setattr__(rank, "dp_i", dp_i)
    return rank


def test_the_manual_lists_every_key_variable_and_field(root: Path) -> None:
    manual = (root / "docs" / "scripts.md").read_text(encoding="utf-8")
    words = set(re.findall(r"[A-Za-z_]+", " ".join(re.findall(r"`([^`\n]+)`", manual))))
    keys = {each.name for each in fields(Declaration)}
    told = {each.name for each in fields(here.PlannedRank) if not each.name.startswith("_")}
    told |= {name for name in vars(here.PlannedRank) if not name.startswith("_")}
    assert sorted((keys | told | set(here.exported(_any_rank()))) - words) == []


def _any_rank() -> here.PlannedRank:
    rank = _rank((1,), 0)
    values = {"cuts": (0, 1), "ranks": (((0,),),), "folder": Path("run")}
    for each in fields(here.PlannedRank):
        if each.name not in ("shares", "dp_i"):
            object.__setattr__(rank, each.name, values.get(each.name, 0))
    return rank
