"""`echelon solve`: answers, files and exit codes; every plan it writes holds before the referee."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from planner.check.referee import check
from planner.cli.cmd_solve import interruptible
from planner.cli.solve_options import parse_deadline, parse_frac
from planner.cli.solve_text import progress_line
from planner.examples.bundled import example_folder
from planner.files import load_inputs
from planner.plan import read_plan
from planner.solve.result import Limits, Progress
from planner.solving import Request, solve_inputs

Cli = Callable[..., Any]

FLEET = """\
schema: echelon/fleet/1
name: lab
tiers: [open, secret]
boundaries: [{name: lab}]
sites: [{name: room, boundary: lab, fabric: 10 Gbit/s, latency: 20 us}]
hosts:
  - {name: big, site: room, devices: 2 x A100-40GB, tier: secret, price: 2 USD/h}
  - {name: old, site: room, devices: 2 x V100-32GB, tier: open, price: 1 USD/h}
"""
MODEL = """\
schema: echelon/model/1
name: small
architecture: ARCHITECTURE
job:
  method: full
  dtype: fp16
  optimiser: adamw
  sequence: 512 tokens
  micro_batch_sizes: [2]
  sequences_per_step: 8
  max_stages: 3
"""
POLICY = """\
schema: echelon/policy/1
name: rules
see: {tokens: secret, labels: secret}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str, str]:
    """Fleet, model and policy of a small lab."""
    texts = {"fleet.yaml": FLEET, "model.yaml": MODEL.replace("ARCHITECTURE", "gpt2"), "policy.yaml": POLICY}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return ("fleet.yaml", "model.yaml", "policy.yaml")


def example_files(name: str) -> list[str]:
    folder = example_folder(name)
    return [str(folder / file) for file in ("fleet.yaml", "model.yaml", "policy.yaml")]


def test_a_plan_is_written_proven_and_shown(cli: Cli, files: tuple[str, ...]) -> None:
    result = cli("solve", *files, "-o", "plan.json")
    assert (result.code, result.err) == (0, "")
    plan = read_plan(Path("plan.json"))
    assert check(plan).violations == ()
    assert plan.certificate.excess_frac == pytest.approx(0.0, abs=1e-3)
    lines = result.out.splitlines()
    assert lines[0].startswith("plan      ")
    assert lines[1].startswith("bound     no plan ")
    assert any(line.startswith("stage  layers") for line in lines)
    assert [path.name for path in Path().glob("*plan*")] == ["plan.json"]


def test_counted_limits_give_the_same_bytes(cli: Cli, files: tuple[str, ...]) -> None:
    texts = set()
    for name in ("one.json", "two.json"):
        assert cli("solve", *files, "-o", name, "--deterministic").code == 0
        texts.add(Path(name).read_text(encoding="utf-8"))
    assert len(texts) == 1
    limits = json.loads(texts.pop())["certificate"]["limits"]
    assert limits["deadline_s"] is None


@pytest.mark.parametrize("objective", ["price", "step-time", "steady-state"])
def test_other_objectives_hold_too(cli: Cli, files: tuple[str, ...], objective: str) -> None:
    options = ["--tokens-per-s-min", "1000"] if objective == "price" else []
    result = cli("solve", *files, "-o", "plan.json", "--objective", objective, *options)
    assert result.code == 0, result.err
    report = check(read_plan(Path("plan.json")))
    assert report.violations == ()
    assert report.bound is not None


@pytest.mark.parametrize("solver", ["milp", "cpsat", "cbc", "bruteforce"])
def test_every_solver_finds_the_same_value_and_its_proof_holds(
    cli: Cli, files: tuple[str, ...], solver: str
) -> None:
    Path("fleet.yaml").write_text(FLEET.replace("devices: 2 x V100-32GB", "devices: 1 x V100-32GB"))
    Path("model.yaml").write_text(
        MODEL.replace("ARCHITECTURE", "gpt2").replace("max_stages: 3", "max_stages: 2")
    )
    values = []
    for name in ("decomposition", solver):
        result = cli("solve", *files, "-o", f"{name}.json", "--solver", name, "--executor", "deepspeed")
        assert result.code == 0, result.err
        report = check(read_plan(Path(f"{name}.json")))
        assert report.violations == ()
        values.append(report.value)
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_json_answer(cli: Cli, files: tuple[str, ...]) -> None:
    result = cli("solve", *files, "--solver", "greedy", "--format", "json")
    answer = json.loads(result.out)
    assert (result.code, answer["status"], answer["error"]) == (0, "ok", None)
    data = answer["data"]
    assert data["unit"] == "tokens/s"
    assert data["bound"] is None
    assert data["plan"]["certificate"]["value"] == data["value"]
    assert data["boundaries"][0]["name"] == "lab"
    written = json.loads(cli("solve", *files, "--solver", "greedy", "--format", "json", "-o", "p.json").out)
    assert written["data"]["file"] == "p.json"
    assert "plan" not in written["data"]


def test_a_plan_further_from_the_bound_than_asked_for_is_still_given(
    cli: Cli, files: tuple[str, ...]
) -> None:
    result = cli("solve", *files, "--solver", "greedy", "--max-excess", "1%", "-o", "plan.json")
    assert result.code == 6
    assert result.out.startswith("plan      ")
    assert "error[excess-too-large]" in result.err
    assert Path("plan.json").is_file()


def test_what_fits_nowhere_is_proven_infeasible(cli: Cli, files: tuple[str, ...]) -> None:
    Path("model.yaml").write_text(MODEL.replace("ARCHITECTURE", "llama-2-70b"), encoding="utf-8")
    result = cli("solve", *files, "-o", "plan.json")
    assert result.code == 4
    assert result.out == ""
    assert result.err.startswith("error[")
    assert not Path("plan.json").exists()


def test_two_boundaries_are_refused_by_policy(cli: Cli, tmp_path: Path) -> None:
    fleet, model, _ = example_files("two-hospitals-and-a-lab")
    (tmp_path / "pair.yaml").write_text(POLICY.replace("secret", "clinical") + "boundaries: [north, south]\n")
    assert cli("solve", fleet, model, "pair.yaml").code == 7


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--deadline", "soon"), 2),
        (("--deadline", "0s"), 2),
        (("--max-excess", "-1%"), 2),
        (("--solver", "magic"), 2),
        (("--tokens-per-s-min", "5"), 2),
        (("--objective", "price"), 1),
        (("--cost-model", "nobodys"), 3),
        (("--warm-start", "missing.json"), 3),
        (("-o", "no/such/folder/plan.json"), 3),
        (("-o", "."), 3),
    ],
)
def test_wrong_options_end_before_the_search(
    cli: Cli, files: tuple[str, ...], options: tuple[str, ...], code: int
) -> None:
    result = cli("solve", *files, "--solver", "greedy", *options)
    assert result.code == code, result.err
    assert result.out == ""


def test_all_faults_of_all_files_are_told_at_once(cli: Cli, files: tuple[str, ...]) -> None:
    Path("fleet.yaml").write_text(FLEET.replace("10 Gbit/s", "10 Gbit"), encoding="utf-8")
    Path("policy.yaml").write_text(POLICY + "price_max: 3\n", encoding="utf-8")
    result = cli("solve", *files)
    assert result.code == 3
    assert "fleet.yaml" in result.err
    assert "policy.yaml" in result.err


def test_keep_reports_how_many_devices_move(cli: Cli, files: tuple[str, ...]) -> None:
    assert cli("solve", *files, "-o", "plan.json").code == 0
    again = cli("solve", *files, "--keep", "plan.json", "--format", "json", "-o", "again.json")
    assert json.loads(again.out)["data"]["moved"] == []
    assert "0 of " in again.err
    assert check(read_plan(Path("again.json"))).violations == ()


def test_warm_start_is_never_made_worse(cli: Cli, files: tuple[str, ...]) -> None:
    assert cli("solve", *files, "-o", "best.json").code == 0
    assert cli("solve", *files, "--solver", "greedy", "--warm-start", "best.json", "-o", "p.json").code == 0
    best, started = (read_plan(Path(name)).certificate.value for name in ("best.json", "p.json"))
    assert started >= best * (1.0 - 1e-9)


def test_told_to_stop_it_gives_what_it_has() -> None:
    inputs = load_inputs(*example_files("two-hospitals-and-a-lab"))
    seen: list[float] = []

    def report(progress: Progress) -> None:
        if progress.value is not None:
            seen.append(progress.value)

    limits = Limits(should_stop=lambda: bool(seen), report=report)
    answer = solve_inputs(inputs, Request(), limits)
    assert answer.plan.certificate.value >= seen[0] * (1.0 - 1e-9)
    assert check(answer.plan, quick=True).violations == ()


def test_the_first_interrupt_asks_and_the_second_ends() -> None:
    with interruptible() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60.0), ("1.5 min", 90.0), ("2", 2.0), ("500ms", 0.5)])
def test_deadlines(text: str, seconds: float) -> None:
    assert parse_deadline(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "fraction"), [("1%", 0.01), ("0.5 %", 0.005), ("0.02", 0.02), ("0", 0.0)])
def test_fractions(text: str, fraction: float) -> None:
    assert parse_frac(text, "--max-excess") == pytest.approx(fraction)


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "one", "%"])
def test_what_is_no_fraction(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_frac(text, "--max-excess")


def test_progress_tells_value_bound_and_distance() -> None:
    progress = Progress(elapsed_s=3.2, value=100.0, bound=110.0, note="packing")
    assert progress_line(progress, "tokens") == (
        "  3.2 s   best 100 tokens/s   bound 110   gap 10.00%   packing"
    )
    assert "no plan yet" in progress_line(replace(progress, value=None), "price")
