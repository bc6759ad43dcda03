"""The inputs of a plan as plain JSON and back, exactly.

Standard library only: executors and the referee run where nothing else is installed. Canonical JSON has
sorted keys, no spaces and floats by `repr`; its sha256 names the content. The content is the core types field
by field, so that a plan depends neither on the layout of the files it came from nor on a later catalog.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

from costmodels.fleet import Fleet
from costmodels.workload import Workload
from planner.agreement import (
    Disagreement,
    fleet_disagreements,
    joint_disagreements,
    policy_disagreements,
    rate_disagreements,
    workload_disagreements,
)
from planner.faults import nearest, refused, show
from policies.errors import Fault
from policies.policy import Policy

KINDS: Mapping[str, type[Any]] = {"fleet": Fleet, "model": Workload, "policy": Policy}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a plan is made from."""

    fleet: Fleet
    workload: Workload
    policy: Policy

    @property
    def canonical(self) -> dict[str, Any]:
        """The inputs as plain JSON values by kind; `inputs_from_canonical` is the inverse."""
        return canonical(self)


def canonical(inputs: Inputs) -> dict[str, Any]:
    """The inputs as plain JSON values under `fleet`, `model` and `policy`."""
    return {
        "fleet": to_plain(inputs.fleet),
        "model": to_plain(inputs.workload),
        "policy": to_plain(inputs.policy),
    }


def input_documents(inputs: Inputs) -> tuple[dict[str, Any], ...]:
    """What plan.json holds under `inputs`: kind, content and sha256 of the content's canonical JSON."""
    return tuple(
        {"kind": kind, "content": content, "sha256": content_sha256(content)}
        for kind, content in canonical(inputs).items()
    )


def canonical_json(content: object) -> str:
    """JSON text with sorted keys, no spaces and floats by `repr`.

    Raises:
        ValueError: NaN or an infinity inside.
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_sha256(content: object) -> str:
    """Lower-case hex sha256 of the canonical JSON in UTF-8."""
    return hashlib.sha256(canonical_json(content).encode("utf-8", "surrogatepass")).hexdigest()


def inputs_from_canonical(mapping: object, *, place: str = "inputs") -> Inputs:
    """The inputs that `canonical` wrote down.

    Raises:
        InputError: `bad-input` with every fault: wrong types, unknown or missing keys, impossible figures,
            and names that one part uses and another doesn't have.
    """
    faults: list[Fault] = []
    found: dict[str, Any] = {}
    contents = _mapping(mapping, place, faults)
    faults += _key_faults(contents, set(KINDS), place)
    for kind, core_type in KINDS.items():
        if kind in contents:
            found[kind] = _decode(core_type, contents[kind], f"{place}.{kind}", faults)
    if faults:
        raise refused(faults, where=place)
    inputs = Inputs(fleet=found["fleet"], workload=found["model"], policy=found["policy"])
    faults = _agreement_faults(inputs, place)
    if faults:
        raise refused(faults, where=place)
    return inputs


def inputs_from_documents(documents: object, *, place: str = "inputs", hashes: bool = True) -> Inputs:
    """The inputs embedded in a plan; the inverse of `input_documents`.

    With `hashes` each sha256 must fit its content. That catches accidents, not attackers, who recompute them.

    Raises:
        InputError: `bad-input` with every fault.
    """
    faults: list[Fault] = []
    contents: dict[str, Any] = {}
    if not isinstance(documents, list | tuple):
        raise refused([Fault(place=place, value=show(documents), limit="a list of inputs")], where=place)
    for i, item in enumerate(documents):
        where = f"{place}[{i}]"
        document = _mapping(item, where, faults)
        faults += _key_faults(document, {"kind", "content", "sha256"}, where)
        kind = document.get("kind")
        if not isinstance(kind, str) or kind not in KINDS or kind in contents:
            limit = f"each of {', '.join(KINDS)} once"
            faults.append(Fault(place=f"{where}.kind", value=show(kind), limit=limit))
            continue
        contents[kind] = document.get("content")
        if hashes and not _hash_fits(document):
            hint = "the file was edited or damaged: solve again from the inputs"
            value = show(document.get("sha256"))
            faults.append(
                Fault(place=f"{where}.sha256", value=value, limit="the sha256 of the content", hint=hint)
            )
    if faults:
        raise refused(faults, where=place)
    return inputs_from_canonical(contents, place=place)


def to_plain(value: Any) -> Any:
    """Core types as JSON values: dataclasses become mappings, tuples lists, and float fields are floats."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {name: _plain_as(hints[name], getattr(value, name)) for name in hints}
    return _plain_as(None, value)


def _plain_as(hint: Any, value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [
            _plain_as(inner, item) for inner, item in zip(_item_hints(hint, len(value)), value, strict=True)
        ]
    # An int in a float field is the same number, but its JSON text would differ.
    if isinstance(value, int) and not isinstance(value, bool) and float in _alternatives(hint):
        return float(value)
    return value


@cache
def _hints(core_type: Any) -> dict[str, Any]:
    """Type of each field of a dataclass."""
    hints = typing.get_type_hints(core_type)
    return {field.name: hints[field.name] for field in fields(core_type)}


@cache
def _required(core_type: Any) -> frozenset[str]:
    """Fields without a default. All are written; a reader of an older file fills in what came later."""
    return frozenset(
        field.name
        for field in fields(core_type)
        if field.default is MISSING and field.default_factory is MISSING
    )


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """`X | None` as `(X, NoneType)`, anything else as itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _item_hints(hint: Any, num_items: int) -> Sequence[Any]:
    """The type of each item of a tuple type."""
    chosen = next((a for a in _alternatives(hint) if typing.get_origin(a) is tuple), None)
    arguments = typing.get_args(chosen)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return [arguments[0]] * num_items
    return list(arguments) if len(arguments) == num_items else [None] * num_items


def _decode(hint: Any, value: object, place: str, faults: list[Fault]) -> Any:
    """`value` as the type `hint`; what does not fit is added to `faults` and comes back as None."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(choice for choice in typing.get_args(hint) if choice is not types.NoneType)
    if is_dataclass(hint) and isinstance(hint, type):
        return _decode_mapping(hint, value, place, faults)
    if typing.get_origin(hint) is tuple:
        return _decode_tuple(hint, value, place, faults)
    if isinstance(hint, type) and issubclass(hint, Enum):
        words = [str(choice.value) for choice in hint]
        if isinstance(value, str) and value in words:
            return hint(value)
        faults.append(Fault(place=place, value=show(value), limit=f"one of {', '.join(words)}"))
        return None
    return _decode_scalar(hint, value, place, faults)


def _decode_scalar(hint: Any, value: object, place: str, faults: list[Fault]) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and is_number:
        number = _finite(value)
        if number is not None:
            return number
    elif (hint is int and is_number and isinstance(value, int)) or (hint is not int and type(value) is hint):
        return value
    limits = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text"}
    faults.append(Fault(place=place, value=show(value), limit=limits[hint]))
    return None


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _decode_mapping(core_type: Any, value: object, place: str, faults: list[Fault]) -> Any:
    num_before = len(faults)
    mapping = _mapping(value, place, faults)
    if len(faults) > num_before:
        return None
    hints = _hints(core_type)
    faults += _key_faults(mapping, set(hints), place, required=_required(core_type))
    arguments = {
        name: _decode(hint, mapping[name], f"{place}.{name}", faults)
        for name, hint in hints.items()
        if name in mapping
    }
    return None if len(faults) > num_before else core_type(**arguments)


def _decode_tuple(hint: Any, value: object, place: str, faults: list[Fault]) -> Any:
    if not isinstance(value, list | tuple):
        faults.append(Fault(place=place, value=show(value), limit="a list"))
        return ()
    inner = typing.get_args(hint)
    if inner[-1] is not Ellipsis and len(inner) != len(value):
        faults.append(Fault(place=place, value=f"a list of {len(value)}", limit=f"a list of {len(inner)}"))
        return ()
    hints = _item_hints(hint, len(value))
    return tuple(
        _decode(item_hint, item, f"{place}[{i}]", faults)
        for i, (item_hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _mapping(value: object, place: str, faults: list[Fault]) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return value
    faults.append(Fault(place=place, value=show(value), limit="a mapping"))
    return {}


def _key_faults(
    mapping: Mapping[str, Any], known: set[str], place: str, *, required: Iterable[str] | None = None
) -> list[Fault]:
    unknown = [
        Fault(
            place=f"{place}.{key[:64]}", value="an unknown key", limit="a known key", hint=nearest(key, known)
        )
        for key in mapping
        if key not in known
    ]
    missing = sorted(set(known if required is None else required) - set(mapping))
    return unknown + [Fault(place=f"{place}.{key}", value="missing", limit="this key") for key in missing]


def _agreement_faults(inputs: Inputs, place: str) -> list[Fault]:
    found: list[tuple[str, Disagreement]] = []
    found += (("fleet", item) for item in fleet_disagreements(inputs.fleet))
    found += (("model", item) for item in workload_disagreements(inputs.workload))
    found += (("policy", item) for item in policy_disagreements(inputs.policy))
    found += (("policy", item) for item in joint_disagreements(inputs.policy, inputs.fleet, inputs.workload))
    found += (("model", item) for item in rate_disagreements(inputs.fleet, inputs.workload))
    return [
        Fault(
            place=f"{place}.{kind}{''.join(f'[{p}]' if isinstance(p, int) else f'.{p}' for p in item.path)}",
            value=item.value,
            limit=item.limit,
            hint=item.hint,
        )
        for kind, item in found
    ]


def _hash_fits(document: Mapping[str, Any]) -> bool:
    try:
        return bool(document.get("sha256") == content_sha256(document.get("content")))
    except (ValueError, TypeError, RecursionError):
        return False
