"""From what a plan embeds back to the problem it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from costmodels.registry import cost_model
from planner.build import build_problem, without_owners
from planner.candidates import CandidateRule
from planner.canonical import Inputs, inputs_from_documents
from planner.plan import Plan
from planner.problem import Objective, ObjectiveKind, Problem
from policies.errors import Fault, InputError

KEYS = frozenset({"objective", "tokens_per_s_min", "executor", "cost_model", "cost_model_settings", "rule"})
OPTIONAL_KEYS = frozenset({"without_owners"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The inputs, the problem made of them, and the candidate rule that was named (None for the default)."""

    inputs: Inputs
    problem: Problem
    rule: CandidateRule | None


def rebuild(plan: Plan) -> Rebuilt:
    """The problem a plan answers, from its embedded inputs and settings alone.

    Raises:
        InputError: `bad-input` or `bad-settings` with every fault; errors of the cost model registry.
        EchelonError: whatever `build_problem` refuses.
    """
    inputs = inputs_from_documents(plan.inputs)
    settings = plan.settings
    faults = [
        Fault(place=f"settings.{key}", value="missing" if key in KEYS else "unknown", limit="a known setting")
        for key in sorted((KEYS ^ set(settings)) - OPTIONAL_KEYS)
    ]
    objective = _objective(settings, faults)
    rule = _rule(settings.get("rule"), faults)
    name, model_settings = settings.get("cost_model"), settings.get("cost_model_settings")
    if not isinstance(name, str):
        faults.append(
            Fault(place="settings.cost_model", value=repr(name)[:60], limit="the name of a cost model")
        )
    if not isinstance(model_settings, Mapping):
        value = repr(model_settings)[:60]
        faults.append(Fault(place="settings.cost_model_settings", value=value, limit="settings by name"))
    executor = settings.get("executor")
    if not isinstance(executor, str):
        faults.append(
            Fault(place="settings.executor", value=repr(executor)[:60], limit="any, deepspeed or torch")
        )
    owners = _owners(settings.get("without_owners", ()), inputs, faults)
    if faults or objective is None:
        raise InputError("bad-settings", "the plan's settings can't be rebuilt", faults=faults)
    model = cost_model(str(name), inputs.workload, **dict(model_settings or {}))
    problem = build_problem(
        without_owners(inputs.fleet, owners) if owners else inputs.fleet,
        inputs.workload,
        inputs.policy,
        model,
        objective=objective,
        executor=str(executor),
        rule=rule,
    )
    return Rebuilt(inputs=inputs, problem=problem, rule=rule)


def _objective(settings: Mapping[str, Any], faults: list[Fault]) -> Objective | None:
    kind, target = settings.get("objective"), settings.get("tokens_per_s_min")
    kinds = [known.value for known in ObjectiveKind]
    if kind not in kinds:
        faults.append(
            Fault(place="settings.objective", value=repr(kind)[:60], limit=f"one of {', '.join(kinds)}")
        )
        return None
    is_number = isinstance(target, int | float) and not isinstance(target, bool) and target > 0
    if target is not None and not is_number:
        faults.append(
            Fault(place="settings.tokens_per_s_min", value=repr(target)[:60], limit="a number > 0 or null")
        )
        return None
    return Objective(kind=ObjectiveKind(kind), tokens_per_s_min=None if target is None else float(target))


def _rule(value: object, faults: list[Fault]) -> CandidateRule | None:
    if value is None:
        return None
    known = {field.name for field in fields(CandidateRule)}
    if not isinstance(value, Mapping) or set(value) != known:
        limit = f"null, or exactly {', '.join(sorted(known))}"
        faults.append(Fault(place="settings.rule", value=repr(value)[:60], limit=limit))
        return None
    default = CandidateRule()
    found: dict[str, Any] = {}
    for name in known:
        wanted, given = type(getattr(default, name)), value[name]
        levels = isinstance(given, list | tuple) and all(
            type(level) is int and 0 <= level <= 3 for level in given
        )
        if wanted is tuple and levels and given:
            found[name] = tuple(given)
        elif type(given) is wanted and wanted is not tuple and 0 <= given <= 1024:
            found[name] = given
        else:
            place = f"settings.rule.{name}"
            faults.append(
                Fault(place=place, value=repr(given)[:60], limit=f"a value like {getattr(default, name)!r}")
            )
    return CandidateRule(**found) if len(found) == len(known) else None


def _owners(value: object, inputs: Inputs, faults: list[Fault]) -> tuple[str, ...]:
    """Owners of spill-over capacity that the problem leaves out: none, or exactly those the policy names."""
    spill_over = inputs.policy.spill_over
    allowed = () if spill_over is None else spill_over.owners
    owners = tuple(value) if isinstance(value, list | tuple) else None
    if owners is None or (owners and set(owners) != set(allowed)):
        limit = f"nothing, or the policy's spill-over owners {list(allowed)}"
        faults.append(Fault(place="settings.without_owners", value=repr(value)[:60], limit=limit))
        return ()
    return owners
