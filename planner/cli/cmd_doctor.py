"""`echelon doctor`: is this installation whole, and does every solver answer?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import metadata

import typer

from planner.cli.console import console_of
from planner.cli.probe_solvers import Finding, Verdict, check_solvers
from policies.errors import EchelonError
from policies.one_home import ForeignPackageError, files_unlike_record, recorded_hashes, require_one_home

CORE = ("numpy", "cryptography", "pydantic", "typer", "rich", "pyyaml")
EXTRAS: dict[str, tuple[str, ...]] = {
    "plan": ("ortools", "pulp", "numba"),
    "train": ("torch", "deepspeed", "peft", "transformers", "tokenizers", "safetensors"),
    "dev": (
        "pytest",
        "pytest-xdist",
        "hypothesis",
        "ruff",
        "mypy",
        "import-linter",
        "types-PyYAML",
        "hatchling",
    ),
}


def check_python() -> Iterable[Finding]:
    """Whether the interpreter is new enough."""
    version = ".".join(map(str, sys.version_info[:3]))
    new_enough = sys.version_info >= (3, 11)
    yield Finding(
        check="python",
        verdict=Verdict.OK if new_enough else Verdict.BROKEN,
        detail=f"{version} at {sys.executable}",
        hint="" if new_enough else "echelon needs Python 3.11 or newer",
    )


def check_packages() -> Iterable[Finding]:
    """Which distributions are there: the core must be whole, an extra may be absent but not half there."""
    have, lacking = _versions(CORE)
    hint = "install echelon again in this environment" if lacking else ""
    verdict = Verdict.BROKEN if lacking else Verdict.OK
    yield Finding(check="core packages", verdict=verdict, detail=_have_and_lack(have, lacking), hint=hint)
    for extra, names in EXTRAS.items():
        have, lacking = _versions(names)
        hint = f"from the checkout: pip install -c constraints.txt '.[{extra}]'" if lacking else ""
        verdict = Verdict.ABSENT if lacking else Verdict.OK
        yield Finding(
            check=f"extra {extra}", verdict=verdict, detail=_have_and_lack(have, lacking), hint=hint
        )


def check_one_home() -> Iterable[Finding]:
    """Whether our four packages come from one folder."""
    try:
        home = require_one_home()
    except ForeignPackageError as error:
        yield Finding(check="one home", verdict=Verdict.BROKEN, detail=error.message, hint=error.hint)
    else:
        yield Finding(check="one home", verdict=Verdict.OK, detail=str(home))


def check_files() -> Iterable[Finding]:
    """Whether the installed files are those that were installed."""
    name = "installed files"
    try:
        distribution = metadata.distribution("echelon")
    except metadata.PackageNotFoundError:
        yield Finding(
            check=name, verdict=Verdict.SKIPPED, detail="runs from a checkout that is not installed"
        )
        return
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        yield Finding(
            check=name, verdict=Verdict.SKIPPED, detail="editable install: the checkout is the source"
        )
        return
    unlike = files_unlike_record(distribution)
    if not unlike:
        num_files = len(recorded_hashes(distribution))
        yield Finding(check=name, verdict=Verdict.OK, detail=f"{num_files} files as recorded")
        return
    more = f" and {len(unlike) - 5} more" if len(unlike) > 5 else ""
    yield Finding(
        check=name,
        verdict=Verdict.BROKEN,
        detail=f"{len(unlike)} missing or changed since installation: {', '.join(unlike[:5])}{more}",
        hint="another distribution may have overwritten them: install echelon again, in its own environment",
    )


def all_findings() -> list[Finding]:
    """Every check, in the order of the report."""
    checks = (check_python, check_packages, check_one_home, check_files, check_solvers)
    return [finding for check in checks for finding in check()]


def report_text(findings: Sequence[Finding]) -> str:
    """One line for each finding, hints below their own."""
    width = max(len(finding.check) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.check:<{width}}  {finding.verdict.value:<7}  {finding.detail}")
        if finding.hint:
            lines.append(f"{'':<{width}}  {'':<7}  hint: {finding.hint}")
    return "\n".join(lines)


def register(app: typer.Typer) -> None:
    """Add `echelon doctor`."""

    @app.command()
    def doctor(ctx: typer.Context) -> None:
        """Check this installation: packages, files, solvers. Exit code 1 if anything is broken."""
        findings = all_findings()
        broken = [finding.check for finding in findings if finding.verdict is Verdict.BROKEN]
        error = None
        if broken:
            error = EchelonError(
                "installation-broken",
                f"{len(broken)} of {len(findings)} checks found a fault: {', '.join(broken)}",
            )
        data = {"findings": [asdict(finding) for finding in findings]}
        console_of(ctx).emit(data, report_text(findings), but=error)


def _versions(names: Sequence[str]) -> tuple[list[str], list[str]]:
    have: list[str] = []
    lacking: list[str] = []
    for name in names:
        try:
            have.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lacking.append(name)
    return have, lacking


def _have_and_lack(have: Sequence[str], lacking: Sequence[str]) -> str:
    parts = [", ".join(have)] if have else []
    if lacking:
        parts.append("not there: " + ", ".join(lacking))
    return "; ".join(parts)
