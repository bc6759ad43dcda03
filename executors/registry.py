"""Executors by name: the built-in ones, and those of other packages by entry point."""

from __future__ import annotations

from importlib import metadata

from executors.base import Executor
from executors.ds_pipeline.executor import DeepSpeedExecutor
from executors.torch_native.executor import TorchExecutor
from policies.errors import EchelonError

GROUP = "echelon.executors"


def executor_named(name: str) -> Executor:
    """The executor of that name.

    Raises:
        EchelonError: `unknown-executor`, or `bad-executor` when an entry point gives something else.
    """
    built_in: dict[str, type[Executor]] = {each.name: each for each in (DeepSpeedExecutor, TorchExecutor)}
    if name in built_in:
        return built_in[name]()
    foreign = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in foreign:
        known = ", ".join(sorted({*built_in, *foreign}))
        raise EchelonError("unknown-executor", f"there is no executor `{name}`", hint=f"known are {known}")
    made = foreign[name].load()()
    if not isinstance(made, Executor):
        raise EchelonError(
            "bad-executor",
            f"entry point {foreign[name].value} of group {GROUP} gives {type(made).__name__}, no executor",
            hint="it must name a class with `supports`, `supports_job` and `prepare`",
        )
    return made
