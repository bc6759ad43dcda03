"""Tiny problems that show whether each installed solver works, each in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

PROBE_TIMEOUT_S = 120.0

# Each solves max x + y with x + 2 y <= 4, 3 x + y <= 6: the optimum is 2.8, over the integers 2.
_LINEAR = """
from ortools.linear_solver import pywraplp
s = pywraplp.Solver.CreateSolver({name!r})
x, y = s.NumVar(0, 9, "x"), s.NumVar(0, 9, "y")
s.Add(x + 2 * y <= 4); s.Add(3 * x + y <= 6); s.Maximize(x + y)
assert s.Solve() == pywraplp.Solver.OPTIMAL
print(round(s.Objective().Value(), 6))
"""
_CP_SAT = """
from ortools.sat.python import cp_model
m = cp_model.CpModel()
x, y = m.new_int_var(0, 9, "x"), m.new_int_var(0, 9, "y")
m.add(x + 2 * y <= 4); m.add(3 * x + y <= 6); m.maximize(x + y)
s = cp_model.CpSolver()
s.parameters.num_workers = 1
assert s.solve(m) == cp_model.OPTIMAL
print(round(s.objective_value, 6))
"""
_CBC = """
import pulp
p = pulp.LpProblem("doctor", pulp.LpMaximize)
x, y = pulp.LpVariable("x", 0, 9), pulp.LpVariable("y", 0, 9)
p += x + y
p += x + 2 * y <= 4
p += 3 * x + y <= 6
assert p.solve(pulp.PULP_CBC_CMD(msg=False)) == pulp.LpStatusOptimal
print(round(pulp.value(p.objective), 6))
"""
_BOTH = "import ortools.linear_solver.pywraplp, ortools.sat.python.cp_model, pulp; print('together')"


class Verdict(StrEnum):
    """What a check found. Only `BROKEN` makes the command fail."""

    OK = "ok"
    ABSENT = "absent"
    SKIPPED = "skipped"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check, with a way out when something is wrong."""

    check: str
    verdict: Verdict
    detail: str
    hint: str = ""


def check_solvers() -> Iterable[Finding]:
    """Whether each solver answers a tiny problem rightly; every one in a process of its own, all at once."""
    if importlib.util.find_spec("ortools") is None or importlib.util.find_spec("pulp") is None:
        hint = "from the checkout: pip install -c constraints.txt '.[plan]'"
        yield Finding(
            check="solvers",
            verdict=Verdict.ABSENT,
            detail="this machine can check plans, not find them",
            hint=hint,
        )
        return
    probes = {
        f"solver {name.lower()}": (_LINEAR.format(name=name), "2.8") for name in ("GLOP", "SCIP", "HIGHS")
    }
    probes["solver cp-sat"] = (_CP_SAT, "2.0")
    probes["solver cbc"] = (_CBC, "2.8")
    if importlib.util.find_spec("highspy") is not None:
        probes["highspy beside ortools"] = (_BOTH, "together")
    running = {name: _start(code) for name, (code, _) in probes.items()}
    for name, process in running.items():
        yield _answer(name, process, expected=probes[name][1])


def _start(code: str) -> subprocess.Popen[str]:
    # -P keeps the working directory off the import path: a folder `ortools` there must not be asked.
    argv = [sys.executable, "-P", "-c", code]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )


def _answer(name: str, process: subprocess.Popen[str], *, expected: str) -> Finding:
    hint = "install ortools and pulp again: pip install --force-reinstall ortools 'pulp<4'"
    if name.startswith("highspy"):
        hint = "both carry the same solver and clash in one process: pip uninstall highspy"
    try:
        answer, complaint = process.communicate(timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        detail = f"no answer within {PROBE_TIMEOUT_S:.0f} s"
        return Finding(check=name, verdict=Verdict.BROKEN, detail=detail, hint=hint)
    if process.returncode != 0:
        last = (complaint.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return Finding(check=name, verdict=Verdict.BROKEN, detail=last[:200], hint=hint)
    # Some solvers print a banner of their own first.
    answer = (answer.strip().splitlines() or [""])[-1]
    if answer != expected:
        detail = f"answered {answer[:40]!r} where {expected} is right"
        return Finding(check=name, verdict=Verdict.BROKEN, detail=detail, hint=hint)
    return Finding(
        check=name, verdict=Verdict.OK, detail="answers" if expected != "together" else "load together"
    )
