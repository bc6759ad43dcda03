from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from planner.cli import cmd_doctor, probe_solvers
from planner.cli.probe_solvers import Finding, Verdict
from policies.one_home import ForeignPackageError

needs_solvers = pytest.mark.skipif(
    importlib.util.find_spec("ortools") is None or importlib.util.find_spec("pulp") is None,
    reason="the extra `plan` is not installed",
)


def only(findings: Any) -> Finding:
    """The single finding of a check."""
    (finding,) = list(findings)
    assert isinstance(finding, Finding)
    return finding


@needs_solvers
def test_a_whole_installation_is_found_whole(cli: Callable[..., Any]) -> None:
    result = cli("doctor", "--format", "json")
    assert result.code == 0, result.out
    findings = {item["check"]: item["verdict"] for item in json.loads(result.out)["data"]["findings"]}
    assert findings["python"] == findings["core packages"] == findings["one home"] == "ok"
    solvers = {name: verdict for name, verdict in findings.items() if name.startswith("solver ")}
    assert solvers == dict.fromkeys(
        ["solver glop", "solver scip", "solver highs", "solver cp-sat", "solver cbc"], "ok"
    )


def test_broken_checks_end_in_exit_code_1_with_the_report_on_stdout(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        Finding(check="python", verdict=Verdict.OK, detail="3.11"),
        Finding(check="solver glop", verdict=Verdict.BROKEN, detail="gone", hint="install it"),
    ]
    monkeypatch.setattr(cmd_doctor, "all_findings", lambda: findings)
    result = cli("doctor")
    assert result.code == 1
    assert result.out.splitlines() == [
        "python       ok       3.11",
        "solver glop  broken   gone",
        "                      hint: install it",
    ]
    assert result.err == "error[installation-broken]: 1 of 2 checks found a fault: solver glop\n"


def test_absent_extras_break_nothing(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    absent = [Finding(check="extra train", verdict=Verdict.ABSENT, detail="not there: torch")]
    monkeypatch.setattr(cmd_doctor, "all_findings", lambda: absent)
    assert cli("doctor").code == 0


def test_a_missing_core_package_is_broken_and_an_extra_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmd_doctor, "CORE", ("numpy", "no-such-distribution"))
    monkeypatch.setattr(cmd_doctor, "EXTRAS", {"some": ("no-such-distribution",)})
    core, extra = cmd_doctor.check_packages()
    assert (core.verdict, extra.verdict) == (Verdict.BROKEN, Verdict.ABSENT)
    assert "not there: no-such-distribution" in core.detail
    assert "[some]" in extra.hint


def test_a_foreign_package_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise ForeignPackageError("foreign-package", "elsewhere", hint="leave")

    monkeypatch.setattr(cmd_doctor, "require_one_home", refuse)
    assert only(cmd_doctor.check_one_home()) == Finding(
        check="one home", verdict=Verdict.BROKEN, detail="elsewhere", hint="leave"
    )


class Installed:
    """A distribution as `importlib.metadata` would give it."""

    def __init__(self, direct_url: str | None) -> None:
        self.direct_url = direct_url

    def read_text(self, name: str) -> str | None:
        """The content of one of its files."""
        return {"direct_url.json": self.direct_url, "RECORD": "a.py,sha256=x,1\nb.py,sha256=y,1\nc,,\n"}[name]


@pytest.mark.parametrize(
    ("direct_url", "unlike", "verdict", "words"),
    [
        ('{"dir_info": {"editable": true}}', ("a.py",), Verdict.SKIPPED, "editable"),
        (None, (), Verdict.OK, "2 files"),
        ('{"url": "file:///x"}', ("a.py",), Verdict.BROKEN, "1 missing or changed since installation: a.py"),
        (None, tuple("abcdefg"), Verdict.BROKEN, "a, b, c, d, e and 2 more"),
    ],
)
def test_installed_files_are_compared_unless_editable(
    monkeypatch: pytest.MonkeyPatch,
    direct_url: str | None,
    unlike: tuple[str, ...],
    verdict: Verdict,
    words: str,
) -> None:
    monkeypatch.setattr("planner.cli.cmd_doctor.metadata.distribution", lambda name: Installed(direct_url))
    monkeypatch.setattr(cmd_doctor, "files_unlike_record", lambda distribution: unlike)
    finding = only(cmd_doctor.check_files())
    assert finding.verdict is verdict
    assert words in finding.detail


def test_a_bare_checkout_has_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("planner.cli.cmd_doctor.metadata.distribution", absent)
    assert only(cmd_doctor.check_files()).verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("code", "verdict", "words"),
    [
        ("print('banner'); print(2.8)", Verdict.OK, "answers"),
        ("print(2.7)", Verdict.BROKEN, "answered '2.7' where 2.8 is right"),
        ("pass", Verdict.BROKEN, "answered ''"),
        ("raise ImportError('undefined symbol: x')", Verdict.BROKEN, "ImportError: undefined symbol: x"),
        ("import os; os._exit(9)", Verdict.BROKEN, "exit code 9"),
        ("import time; time.sleep(60)", Verdict.BROKEN, "no answer within"),
    ],
)
def test_a_solver_is_judged_by_its_answer(
    monkeypatch: pytest.MonkeyPatch, code: str, verdict: Verdict, words: str
) -> None:
    if "sleep" in code:
        monkeypatch.setattr(probe_solvers, "PROBE_TIMEOUT_S", 0.2)
    finding = probe_solvers._answer("solver x", probe_solvers._start(code), expected="2.8")
    assert finding.verdict is verdict
    assert words in finding.detail
    assert bool(finding.hint) == (verdict is Verdict.BROKEN)


def test_without_the_extra_solvers_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert only(probe_solvers.check_solvers()).verdict is Verdict.ABSENT
