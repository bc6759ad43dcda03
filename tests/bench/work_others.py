"""Benchmark work other than solving generated fleets and examples; each returns what one case found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "corpus"
NEW_CASES = re.compile(r"(\d+) (passed|failed|error)")


def chain(*, name: str) -> dict[str, Any]:
    """One published chain fleet."""
    from bench.bench_chain import measure
    from bench.chain_instances import load_evaluator

    return measure(name, load_evaluator("eval_chain.py"))


def stage3d(*, name: str) -> dict[str, Any]:
    """One published pipeline x data x tensor case."""
    from bench.bench_stage3d import measure
    from bench.chain_instances import load_evaluator

    return measure(name, load_evaluator("eval_stage_tp_dp.py"))


def measured() -> dict[str, Any]:
    """Errors of the measured cost model."""
    from bench.bench_measured import figures

    return figures()


def overhead(*, case: str, num_pairs: int, num_launches: int) -> dict[str, Any]:
    """CPU seconds per step of our DeepSpeed worker beside a script written by hand, and plain PyTorch."""
    from bench.bench_overhead import BLOCKS, figures

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    return figures(case, num_pairs=num_pairs, blocks=BLOCKS, num_launches=num_launches, say=say)


def agreement(*, sweep: int) -> dict[str, Any]:
    """Runs of the suite that compares every proof with an exhaustive search over devices."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/solver/test_agreement.py"]
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, "ECHELON_SWEEP": str(sweep)},
        capture_output=True,
        text=True,
        check=False,
    )
    from solver import test_agreement

    counts = {word: int(number) for number, word in NEW_CASES.findall(done.stdout.splitlines()[-1])}
    return {
        "num_cases": 16 * sweep * 15,
        "solvers": sorted(test_agreement.PROVING),
        "counts": counts,
        "agreed": done.returncode == 0,
        "last": [*done.stdout.strip().splitlines()[-3:], f"exit code {done.returncode}"],
    }


def bad_input() -> dict[str, Any]:
    """`echelon check` on every broken file of the corpus, each in a folder and process of its own.

    Each broken file replaces one of three sound ones.
    """
    names = sorted(path.name for path in (CORPUS / "bad").iterdir())
    wrong: dict[str, str] = {}
    for name in names:
        said = _refusal(name)
        if said:
            wrong[name] = said
    return {"num_files": len(names), "wrong": wrong}


def _refusal(name: str) -> str:
    """What is wrong with the way one broken file is refused; empty when all is well."""
    kinds = ("fleet", "model", "policy")
    kind = name.split("-")[0]
    paths = [CORPUS / ("bad" if other == kind else "good") / f"{other}.yaml" for other in kinds]
    paths[kinds.index(kind)] = CORPUS / "bad" / name
    program = "import sys; from planner.cli.main import run; sys.exit(run(sys.argv[1:]))"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, "check", *map(str, paths)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        written = [path.name for path in Path(folder).iterdir()]
    text = done.stdout + done.stderr
    if done.returncode != 3:
        return f"exit code {done.returncode}"
    if "Traceback" in text:
        return "a traceback"
    return "" if f"{name}" in text and not written else "no place told, or something written"


def check(*, plan_file: str) -> dict[str, Any]:
    """The referee on a plan that a case before wrote."""
    from planner.check import referee
    from planner.plan import read_plan

    report = referee.check(read_plan(Path(plan_file)))
    return {"holds": report.holds, "excess_frac": report.excess_frac}
