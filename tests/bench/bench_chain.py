"""Chain fleets against published plans: value, proof and effort. `python tests/bench/bench_chain.py`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType

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


def row(name: str, evaluator: ModuleType) -> str:
    """Solve one case and lay the result beside the published one."""
    start_s = time.process_time()
    problem = build_chain_problem(load_instance(name))
    result = solve_bottleneck(problem, Limits(deadline_s=300.0))
    cpu_s = time.process_time() - start_s
    document = json.loads((FOLDER / f"{name}.json").read_text())
    (replica,) = result.replicas
    value, bound = result.value or 0.0, result.bound or float("inf")
    evaluated = evaluator.evaluate(document, placement_of(problem, replica))
    return (
        f"{name:20}{load_peer(name)['value']:12.3f}{value:12.3f}{evaluated:12.3f}{bound:12.3f}"
        f"{excess_frac(value, bound, maximise=True):8.2%}{evaluator.upper_bound(document):16.3f}"
        f"{len(replica.stages):8d}  {result.status:10}{cpu_s:7.2f}"
    )


def main() -> int:
    """Print one row per case. `bound` covers all single chains, `any-flow bound` every split of the flow."""
    if not FOLDER.is_dir():
        print("the instances are not here", file=sys.stderr)
        return 1
    evaluator = load_evaluator("eval_chain.py")
    print(COLUMNS)
    for name in CASES:
        print(row(name, evaluator), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
