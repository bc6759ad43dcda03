"""Fixtures every test may use: shared data, golden files, and the command line run inside this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"

# `ci` finds the same examples every time; `HYPOTHESIS_PROFILE=explore` looks for new ones.
settings.register_profile(
    "ci", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CliResult:
    """How one command line ended."""

    code: int
    out: str
    err: str


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite golden files with what is produced now"
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line on how many code blocks of the documents ran, so that skipped ones stay in sight."""
    num_ran = num_skipped = 0
    for reports in terminalreporter.stats.values():
        for report in reports:
            properties = dict(getattr(report, "user_properties", []))
            if getattr(report, "when", "") == "call":
                num_ran += int(properties.get("blocks_ran", 0))
                num_skipped += int(properties.get("blocks_skipped", 0))
    if num_ran or num_skipped:
        terminalreporter.write_line(
            f"documents: {num_ran} code blocks ran, {num_skipped} marked as not to be run"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Remember which tests carry a marker of `ECHELON_MUST_RUN`."""
    wanted = {name for name in os.environ.get("ECHELON_MUST_RUN", "").split(",") if name}
    for item in items:
        if wanted & {marker.name for marker in item.iter_markers()}:
            item.user_properties.append(("must_run", True))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Fail a test that must run here and was skipped."""
    if report.skipped and ("must_run", True) in report.user_properties and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but ECHELON_MUST_RUN asks for it: {report.longrepr}"


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data kept beside the checkout; tests that need it skip where it is absent."""
    folder = (ROOT / ".." / "shared").resolve()
    if not folder.is_dir():
        pytest.skip("no shared data beside this checkout")
    return folder


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with `tests/golden/<name>`, or write it there under `--update-golden`."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        if not path.is_file():
            pytest.fail(f"no golden file {name}: look at the text, then run pytest with --update-golden")
        assert text == path.read_text(encoding="utf-8"), (
            f"{name} differs; --update-golden accepts the new text"
        )

    return compare


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., CliResult]:
    """`cli("check", "plan.json")` runs `echelon check plan.json` in an empty folder, inside this process."""
    from planner.cli.main import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*argv: str) -> CliResult:
        capsys.readouterr()
        code = run(argv)
        captured = capsys.readouterr()
        return CliResult(code=code, out=captured.out, err=captured.err)

    return call
