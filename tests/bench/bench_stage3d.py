"""Pipeline x data x tensor cases beside published plans: `python tests/bench/bench_stage3d.py [CASE ...]`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.chain_instances import load_evaluator
from bench.stage3d_instances import CASES, FOLDER, load_case, plan_of, solve_all_orders
from planner.solve.result import Limits, excess_frac

COLUMNS = (
    f"{'case':28}{'peer s':>14}{'ours s':>14}{'evaluated s':>14}{'bound s':>14}{'excess':>8}"
    f"{'compute bound':>15}{'stages':>8}  {'orders':>6}  {'status':11}{'CPU s':>7}"
)


def load_json(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def seconds(value: float | None) -> str:
    """A column of seconds per micro-batch."""
    return f"{'-' if value is None else format(value, '.9f'):>14}"


def measure(name: str, evaluator: ModuleType) -> dict[str, Any]:
    """Solve one case over all node orders; seconds per micro-batch, beside the published ones."""
    start_s = time.process_time()
    problem, result, num_orders = solve_all_orders(load_case(name), Limits(deadline_s=60.0))
    cpu_s = time.process_time() - start_s
    case = load_json(name)
    model = load_json(case["model"])
    value, bound = result.value, result.bound
    evaluated = None
    if result.replicas:
        report = evaluator.evaluate(model, case, plan_of(problem, result.replicas[0]))
        assert report["feasible"], report["problems"]
        evaluated = report["value"]
    return {
        "peer_s": load_json(f"{name}.peer")["value"],
        "ours_s": 1.0 / value if value else None,
        "evaluated_s": evaluated,
        "bound_s": 1.0 / bound if bound else None,
        "excess_frac": excess_frac(value, bound, maximise=True) if value and bound else None,
        "compute_bound_s": evaluator.lower_bound(model, case),
        "num_stages": len(result.replicas[0].stages) if result.replicas else 0,
        "num_orders": num_orders,
        "status": str(result.status),
        "solve_cpu_s": cpu_s,
    }


def row(name: str, found: Mapping[str, Any]) -> str:
    """One line of the table."""
    excess = found["excess_frac"]
    return (
        f"{name:28}{seconds(found['peer_s'])}{seconds(found['ours_s'])}"
        f"{seconds(found['evaluated_s'])}{seconds(found['bound_s'])}"
        f"{'-' if excess is None else format(excess, '.2%'):>8}{found['compute_bound_s']:15.9f}"
        f"{found['num_stages']:8d}  {found['num_orders']:6d}  {found['status']:11}{found['solve_cpu_s']:7.2f}"
    )


def main(names: list[str]) -> int:
    """Print one row per case; all figures in seconds per micro-batch."""
    if not FOLDER.is_dir():
        print("the instances are not here", file=sys.stderr)
        return 1
    evaluator = load_evaluator("eval_stage_tp_dp.py")
    print(COLUMNS)
    for name in names or CASES:
        print(row(name, measure(name, evaluator)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
