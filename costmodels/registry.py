"""Cost models by name: built in, registered in Python, or brought by another package through an entry point.

A factory takes the workload and its settings as keywords, and returns an object with the members of
`costmodels.interface.CostModel`. Nothing of another package is imported before its cost model is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from costmodels.interface import CostModel
from costmodels.workload import Workload
from policies.errors import InputError

ENTRY_POINT_GROUP = "echelon.costmodels"
BUILT_IN = {
    "analytic": "costmodels.analytic:AnalyticCostModel",
    "measured": "costmodels.measured_model:MeasuredCostModel",
}
_MEMBERS = ("name", "stage", "transfer_s", "interval_key")

Factory = Callable[..., CostModel]


class UnknownCostModelError(InputError):
    """No cost model has this name."""


class DuplicateCostModelError(InputError):
    """Two cost models claim one name."""


class BrokenCostModelError(InputError):
    """A cost model can't be loaded, refuses its settings, or lacks members of the interface."""


class Registry:
    """Names and factories of cost models.

    Args:
        built_in: `module:attribute` by name.
        advertised: entry points of installed packages, read anew at each question.
    """

    def __init__(self, built_in: dict[str, str], advertised: Callable[[], Iterable[EntryPoint]]) -> None:
        self._built_in = dict(built_in)
        self._advertised = advertised
        self._registered: dict[str, Factory] = {}

    def register(self, name: str, factory: Factory) -> None:
        """Add a cost model under `name` for this process.

        Raises:
            DuplicateCostModelError: `cost-model-duplicate`, the name is taken.
        """
        targets = self._targets()
        if name in targets or name in self._registered:
            owner = targets.get(name, ["a registration in this process"])[0]
            raise DuplicateCostModelError(
                "cost-model-duplicate",
                f"cost model `{name}` exists already, from {owner}",
                hint="register yours under another name",
            )
        self._registered[name] = factory

    def forget(self, name: str) -> None:
        """Take back a registration made in this process; a name not registered is let pass."""
        self._registered.pop(name, None)

    def names(self) -> tuple[str, ...]:
        """All known names, sorted, including those whose package turns out not to load."""
        return tuple(sorted({*self._targets(), *self._registered}))

    def build(self, name: str, workload: Workload, **settings: object) -> CostModel:
        """The cost model of this name for a workload.

        Raises:
            UnknownCostModelError: `cost-model-unknown`, with the names there are.
            DuplicateCostModelError: `cost-model-duplicate`, two packages claim the name.
            BrokenCostModelError: `cost-model-broken` or `cost-model-incomplete`.
            InputError: whatever the cost model itself says about its settings.
        """
        model = _called(name, self._factory(name), workload, settings)
        missing = [member for member in _MEMBERS if not hasattr(model, member)]
        if missing:
            raise BrokenCostModelError(
                "cost-model-incomplete",
                f"cost model `{name}` has no {', '.join(missing)}",
                hint="docs/costmodel.md lists what a cost model must have",
            )
        return model

    def _factory(self, name: str) -> Factory:
        if name in self._registered:
            return self._registered[name]
        targets = self._targets().get(name, [])
        if not targets:
            raise UnknownCostModelError(
                "cost-model-unknown",
                f"no cost model is called `{name}`; known are {', '.join(self.names())}",
                hint=f"install the package that brings it, or check its entry point in {ENTRY_POINT_GROUP}",
            )
        if len(targets) > 1:
            raise DuplicateCostModelError(
                "cost-model-duplicate",
                f"cost model `{name}` is claimed by {' and by '.join(targets)}",
                hint="uninstall one of the packages, or rename its entry point",
            )
        return _loaded(name, targets[0])

    def _targets(self) -> dict[str, list[str]]:
        """`module:attribute` by name; more than one where packages disagree."""
        targets = {name: [target] for name, target in self._built_in.items()}
        for point in self._advertised():
            known = targets.setdefault(point.name, [])
            # An installation that lists the built-in models, or is found twice on the path, repeats a target.
            if point.value not in known:
                known.append(point.value)
        return targets


def _loaded(name: str, target: str) -> Factory:
    try:
        factory: Factory = EntryPoint(name=name, value=target, group=ENTRY_POINT_GROUP).load()
    except Exception as error:  # whatever another package does while it is imported
        raise BrokenCostModelError(
            "cost-model-broken",
            f"cost model `{name}` can't be loaded from {target}: {error}",
            hint="reinstall the package that brings it",
        ) from error
    if not callable(factory):
        raise BrokenCostModelError(
            "cost-model-broken",
            f"cost model `{name}`: {target} is {type(factory).__name__}, not a class or function",
            hint="let the entry point name a class or a function that takes the workload",
        )
    return factory


def _called(name: str, factory: Factory, workload: Workload, settings: dict[str, object]) -> CostModel:
    try:
        inspect.signature(factory).bind(workload, **settings)
    except TypeError as error:
        raise BrokenCostModelError(
            "cost-model-settings",
            f"cost model `{name}` doesn't take settings {sorted(settings)}: {error}",
            hint=f"it takes {inspect.signature(factory)}",
        ) from error
    return factory(workload, **settings)


_REGISTRY = Registry(BUILT_IN, lambda: entry_points(group=ENTRY_POINT_GROUP))


def cost_model(name: str, workload: Workload, **settings: object) -> CostModel:
    """The cost model called `name` for a workload; see `Registry.build` for what can go wrong."""
    return _REGISTRY.build(name, workload, **settings)


def register(name: str, factory: Factory) -> None:
    """Make a cost model known under `name` in this process; see `Registry.register`."""
    _REGISTRY.register(name, factory)


def forget(name: str) -> None:
    """Take a registration of this process back."""
    _REGISTRY.forget(name)


def known_names() -> tuple[str, ...]:
    """Names `cost_model` answers to."""
    return _REGISTRY.names()
