"""`echelon explain` from the shell: a plan, one of its stages, and inputs that no plan satisfies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

FLEET = """schema: echelon/fleet/1
name: two-rooms
tiers: [open, secret]
boundaries: [{{name: lab}}]
sites:
  - {{name: room, boundary: lab, fabric: 25 Gbit/s}}
hosts:
  - {{name: safe, site: room, devices: 2 x T4, tier: {tier}, price: 0.30 USD/h}}
  - {{name: desk, site: room, devices: 1 x A10, tier: open, price: 0.70 USD/h}}
"""
MODEL = """schema: echelon/model/1
name: small
architecture: gpt2
job:
  method: full
  dtype: fp16
  optimiser: adamw
  sequence: 512 tokens
  micro_batch_sizes: [1]
  sequences_per_step: 8
"""
POLICY = """schema: echelon/policy/1
name: notes
see: {tokens: secret}
"""


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], tuple[str, str, str]]:
    """Fleet, model and policy files; the tier is that of the host called safe."""

    def write(tier: str) -> tuple[str, str, str]:
        texts = {"fleet": FLEET.format(tier=tier), "model": MODEL, "policy": POLICY}
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return "fleet.yaml", "model.yaml", "policy.yaml"

    return write


@pytest.fixture
def plan(cli: Cli, files: Callable[[str], tuple[str, str, str]]) -> str:
    """A solved plan."""
    done = cli("solve", *files("secret"), "-o", "plan.json", "--deterministic")
    assert done.code == 0, done.err
    return "plan.json"


def test_inputs_without_a_plan_end_in_exit_code_4_with_reason_and_way_out(
    cli: Cli, files: Callable[[str], tuple[str, str, str]]
) -> None:
    done = cli("explain", *files("open"))
    assert done.code == 4
    assert done.out == ""
    assert "error[infeasible]: no placement satisfies all rules" in done.err
    assert "because the stage with layer 0, which sees the tokens, needs tier `secret`" in done.err
    assert "no plan exists (proven by" in done.err
    assert "hint: clear safe (2 x T4) for tier `secret`" in done.err


def test_a_solve_without_a_plan_tells_the_same(
    cli: Cli, files: Callable[[str], tuple[str, str, str]]
) -> None:
    explained = cli("explain", *files("open"))
    solved = cli("solve", *files("open"), "-o", "plan.json")
    assert solved.code == 4
    assert solved.err == explained.err
    assert not Path("plan.json").exists()


def test_json_holds_conflict_methods_and_mends(
    cli: Cli, files: Callable[[str], tuple[str, str, str]]
) -> None:
    done = cli("explain", *files("open"), "--format", "json")
    assert done.code == 4
    answer = json.loads(done.out)
    assert answer["error"]["code"] == "infeasible"
    conflict = answer["data"]["conflicts"][0]
    assert conflict["members"] == ["see.tokens"]
    assert conflict["minimal"] is True
    assert len(conflict["methods"]) == 2
    assert conflict["mends"][0]["text"] == "clear safe (2 x T4) for tier `secret`"


def test_inputs_with_a_plan_are_told_so(cli: Cli, files: Callable[[str], tuple[str, str, str]]) -> None:
    done = cli("explain", *files("secret"))
    assert done.code == 0
    assert done.out.startswith("a plan exists")


def test_a_plan_is_explained_part_by_part(cli: Cli, plan: str) -> None:
    done = cli("explain", plan)
    assert done.code == 0, done.err
    for title in ("what binds", "what limits each stage", "idle devices", "what to add next"):
        assert f"\n{title}\n" in done.out
    data = json.loads(cli("explain", plan, "--format", "json").out)["data"]
    assert data["status"] == "planned"
    assert {"lab.binding", "lab.stages", "lab.idle", "lab.next"} == set(data["sections"])


def test_one_stage_is_explained_and_an_unknown_one_refused(cli: Cli, plan: str) -> None:
    done = cli("explain", plan, "--stage", "lab/lab-r0/0")
    assert done.code == 0, done.err
    assert "stage 0 of lab-r0" in done.out
    assert cli("explain", plan, "--stage", "lab-r0/0").out == done.out
    refused = cli("explain", plan, "--stage", "nowhere/0")
    assert refused.code == 3
    assert "error[no-such-stage]" in refused.err


@pytest.mark.parametrize(
    "argv",
    [
        ("a.yaml", "b.yaml", "c.yaml", "d.yaml"),
        ("a.yaml", "b.yaml", "--stage", "lab/lab-r0/0"),
        ("a.yaml", "b.yaml", "--tokens-per-s-min", "10"),
    ],
)
def test_what_does_not_go_together_is_a_usage_fault(cli: Cli, argv: tuple[str, ...]) -> None:
    assert cli("explain", *argv).code == 2
