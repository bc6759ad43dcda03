"""Chain fleets against published plans: value, proof and effort. `python tests/bench/bench_chain.py`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.chain_instances import (
    CASES,
    FOLDER,
    build_chain_problem,
    load_evaluator,
    load_instance,
    load_peer,
    placement_of,
)
from planner.solve.bottleneck import solve_bottleneck
from planner.solve.result import Limits, excess_frac

COLUMNS = (
    f"{'case':20}{'peer tok/s':>12}{'ours tok/s':>12}{'evaluated':>12}{'bound':>12}{'excess':>8}"
    f"{'any-flow bound':>16}{'stages':>8}  {'status':10}{'CPU s':>7}"
)


def measure(name: str, evaluator: ModuleType) -> dict[str, Any]:
    """Solve one case and lay the result beside the published one."""
    start_s = time.process_time()
    problem = build_chain_problem(load_instance(name))
    result = solve_bottleneck(problem, Limits(deadline_s=300.0))
    cpu_s = time.process_time() - start_s
    document = json.loads((FOLDER / f"{name}.json").read_text())
    (replica,) = result.replicas
    value, bound = result.value or 0.0, result.bound or float("inf")
    return {
        "peer": load_peer(name)["value"],
        "value": value,
        "evaluated": evaluator.evaluate(document, placement_of(problem, replica)),
        "bound": bound,
        "excess_frac": excess_frac(value, bound, maximise=True),
        "any_flow_bound": evaluator.upper_bound(document),
        "num_stages": len(replica.stages),
        "status": str(result.status),
        "solve_cpu_s": cpu_s,
    }


def row(name: str, found: Mapping[str, Any]) -> str:
    """One line of the table."""
    return (
        f"{name:20}{found['peer']:12.3f}{found['value']:12.3f}{found['evaluated']:12.3f}{found['bound']:12.3f}"
        f"{found['excess_frac']:8.2%}{found['any_flow_bound']:16.3f}"
        f"{found['num_stages']:8d}  {found['status']:10}{found['solve_cpu_s']:7.2f}"
    )


def main() -> int:
    """Print one row per case. `bound` covers all single chains, `any-flow bound` every split of the flow."""
    if not FOLDER.is_dir():
        print("the instances are not here", file=sys.stderr)
        return 1
    evaluator = load_evaluator("eval_chain.py")
    print(COLUMNS)
    for name in CASES:
        print(row(name, measure(name, evaluator)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
