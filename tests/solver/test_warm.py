"""The warm-up reaches every compiled function, so that no later solve compiles anything."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from numba.core import caching
from numba.core.dispatcher import Dispatcher

import planner.solve.warm as warm
from planner.solve.jit import compiled

FOLDER = Path(warm.__file__).parent


def entry_points() -> dict[str, Any]:
    """The compiled functions that other modules of the solvers call, by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        module = importlib.import_module(f"planner.solve.{path.stem}")
        for name, value in vars(module).items():
            if isinstance(value, Dispatcher) and not path.stem.endswith("_kernels"):
                found[f"{path.stem}: {name}"] = value
    return found


def test_the_warm_up_reaches_every_compiled_function() -> None:
    warm.compile_all()
    functions = entry_points()
    assert len(functions) >= 5
    assert [name for name, function in functions.items() if not function.signatures] == []


def test_the_warm_up_is_quiet_when_there_is_little_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "compile_all", lambda: None)
    warm.main()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(warm, "QUIET_S", -1.0)
    warm.main()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("warm-up: ")
    assert told.err.count("\n") == 1


def test_without_a_folder_for_the_cache_functions_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])
    doubled = compiled(twice)
    assert isinstance(doubled, Dispatcher)
    assert doubled(21) == 42


def twice(number: int) -> int:
    return 2 * number
