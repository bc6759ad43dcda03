"""plan.json into a `Plan`: nothing is trusted, every structural fault is listed with its place.

Standard library only. Whether the plan is true is for the referee; here only its shape is judged.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from planner.faults import nearest, refused, show
from planner.plan import SCHEMA, Plan
from policies.errors import Fault, InputError

R = TypeVar("R")

MAX_FILE_BYTES = 256 * 2**20
MAX_DEPTH = 64
MAX_WHOLE_NUMBER = 2**63 - 1
MAX_FAULTS = 1000
HINT = "write it with `echelon solve ... -o plan.json`"


class _Refused(ValueError):
    """JSON that the standard parser would let pass."""


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        InputError: `bad-plan-file`: missing, unreadable, larger than 256 MiB, not UTF-8, not JSON, nested
        deeper than
            64 levels, a key given twice, NaN, an infinity, or a number too large to hold.
    """
    try:
        if not path.is_file():
            raise _unreadable(path, "a folder" if path.is_dir() else "no such file", "a plan.json")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, reason, "a file that can be read") from None
    if len(raw) > MAX_FILE_BYTES:
        raise _unreadable(path, "a larger file", f"at most {MAX_FILE_BYTES:,} bytes")
    return parse_json(raw, place=str(path))


def parse_json(raw: bytes, *, place: str) -> Any:
    """The JSON value in UTF-8 bytes; see `read_json` for what is refused."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_once_each,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except UnicodeDecodeError as error:
        raise _unreadable(
            place, f"byte 0x{raw[error.start]:02x} at offset {error.start}", "UTF-8 text"
        ) from None
    except json.JSONDecodeError as error:
        where = f"{place}:{error.lineno}:{error.colno}"
        raise _unreadable(where, error.msg, "JSON") from None
    except _Refused as error:
        raise _unreadable(place, str(error), "plain JSON") from None
    except RecursionError:
        raise _unreadable(place, "nested too deeply", f"at most {MAX_DEPTH} levels") from None
    if _deeper_than(value, MAX_DEPTH):
        raise _unreadable(place, "nested too deeply", f"at most {MAX_DEPTH} levels")
    return value


def plan_from_json(data: Any, *, place: str = "plan.json") -> Plan:
    """The plan in parsed JSON.

    Raises:
        InputError: `bad-plan-file` with every fault: another schema, missing, unknown or wrongly typed
        fields.
    """
    if not isinstance(data, Mapping):
        raise _unreadable(place, show(data), "a JSON object")
    if data.get("schema") != SCHEMA:
        raise _unreadable(f"{place}: schema", show(data.get("schema")), SCHEMA)
    faults: list[Fault] = []
    flat = dict(data)
    graph = flat.pop("graph", None)
    if not isinstance(graph, Mapping) or set(graph) != {"nodes", "edges"}:
        faults.append(
            Fault(place=f"{place}: graph", value=show(graph), limit="an object with nodes and edges")
        )
    else:
        flat |= graph
    for key in sorted({"nodes", "edges"} & set(data)):
        faults += [Fault(place=f"{place}: {key}", value="unknown field", limit=f"graph.{key}")]
    plan = _record(Plan, flat, "", faults)
    if faults:
        listed = [_at(place, fault) for fault in faults[:MAX_FAULTS]]
        number = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError("bad-plan-file", f"{number} in {place}", faults=listed, hint=HINT)
    assert isinstance(plan, Plan)
    return plan


def record_from_json(record: type[R], data: Any, *, place: str, code: str = "bad-file", hint: str = "") -> R:
    """The dataclass `record` in parsed JSON, with every dataclass, tuple, mapping and enum inside it.

    Args:
        record: a dataclass; fields with a default may be absent.
        data: what stands in the file.
        place: how faults call the file or the part of it.
        code: code of the error.
        hint: way out told with it.

    Raises:
        InputError: `code` with every fault: missing, unknown or wrongly typed fields.
    """
    faults: list[Fault] = []
    found: R = _record(record, data, "", faults)
    if faults:
        listed = [
            Fault(
                place=f"{place}: {fault.place}".removesuffix(": "),
                value=fault.value,
                limit=fault.limit,
                hint=fault.hint,
            )
            for fault in faults[:MAX_FAULTS]
        ]
        number = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError(code, f"{number} in {place}", faults=listed, hint=hint)
    return found


def _at(place: str, fault: Fault) -> Fault:
    if fault.place.startswith(f"{place}: "):
        return fault
    inner = f"graph.{fault.place}" if fault.place.startswith(("nodes", "edges")) else fault.place
    return Fault(place=f"{place}: {inner}", value=fault.value, limit=fault.limit, hint=fault.hint)


def _unreadable(place: object, value: str, limit: str) -> InputError:
    error = refused([Fault(place=str(place), value=value, limit=limit)], where=str(place))
    return InputError("bad-plan-file", error.message, faults=error.faults, hint=HINT)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _value in pairs:
            if key in seen:
                raise _Refused(f"key {show(key)} given twice")
            seen.add(key)
    return found


def _no_constant(word: str) -> Any:
    raise _Refused(f"{word} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused(f"number {text[:40]} is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_WHOLE_NUMBER:
        raise _Refused(f"number {text[:40]} is too large")
    return int(text)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


@cache
def _hints(record: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(record)
    return {field.name: hints[field.name] for field in fields(record)}


@cache
def _required(record: Any) -> frozenset[str]:
    return frozenset(f.name for f in fields(record) if f.default is MISSING and f.default_factory is MISSING)


def _record(record: Any, value: Any, place: str, faults: list[Fault]) -> Any:
    """An instance of a dataclass, or None with the faults recorded."""
    if not isinstance(value, Mapping):
        faults.append(Fault(place=place, value=show(value), limit="an object"))
        return None
    hints, before = _hints(record), len(faults)
    faults += [
        Fault(place=_below(place, show(key)), value="unknown field", limit="", hint=nearest(key, hints))
        for key in value
        if key not in hints
    ]
    lacking = sorted(_required(record) - set(value))
    faults += [Fault(place=_below(place, key), value="missing", limit="a value") for key in lacking]
    found = {
        key: _decode(hints[key], value[key], _below(place, key), faults) for key in hints if key in value
    }
    return record(**found) if len(faults) == before else None


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _decode(hint: Any, value: Any, place: str, faults: list[Fault]) -> Any:
    """`value` as `hint`; None with a fault recorded where it doesn't fit."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(choice for choice in typing.get_args(hint) if choice is not types.NoneType)
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return _record(hint, value, place, faults)
    if origin is tuple:
        return _decode_tuple(arguments, value, place, faults)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            faults.append(Fault(place=place, value=show(value), limit="an object"))
            return None
        return {
            key: _decode(arguments[1], item, f"{place}[{show(key)}]", faults) for key, item in value.items()
        }
    return _decode_plain(hint, value, place, faults)


def _decode_tuple(arguments: tuple[Any, ...], value: Any, place: str, faults: list[Fault]) -> Any:
    many = len(arguments) == 2 and arguments[1] is Ellipsis
    if not isinstance(value, list) or (not many and len(value) != len(arguments)):
        limit = "a list" if many else f"a list of {len(arguments)}"
        faults.append(Fault(place=place, value=show(value), limit=limit))
        return None
    inner = [arguments[0]] * len(value) if many else list(arguments)
    return tuple(
        _decode(hint, item, f"{place}[{i}]", faults)
        for i, (hint, item) in enumerate(zip(inner, value, strict=True))
    )


def _decode_plain(hint: Any, value: Any, place: str, faults: list[Fault]) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if isinstance(hint, type) and issubclass(hint, Enum):
        known = {choice.value: choice for choice in hint}
        if type(value) is str and value in known:
            return known[value]
        limit = f"one of {', '.join(map(repr, known))}"
        faults.append(Fault(place=place, value=show(value), limit=limit))
        return None
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    faults.append(Fault(place=place, value=show(value), limit=names.get(hint, "a value")))
    return None
