"""What every file shape is built of: strict mappings, names, and quantities with their units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from costmodels import units
from planner.faults import nearest, show
from planner.schema.source import KeyPath, Source
from policies.errors import Fault

S = TypeVar("S", bound="Shape")

NAME_LIMIT = (
    "a name of letters, digits, `.`, `_`, `-` that starts with a letter or digit, at most 64 characters"
)
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_PERCENT_SIGN = "%"


class Shape(BaseModel):
    """A mapping in a file: unknown keys are refused and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _quantity(parse: Callable[[object], float], *, positive: bool) -> Callable[[Any], float]:
    """A validator that reads one quantity; `positive` refuses zero."""

    def read(value: Any) -> float:
        """The quantity as a number in SI units."""
        try:
            amount = float(parse(value))
        except units.UnitError as error:
            context = {"limit": error.limit, "reason": error.reason}
            raise PydanticCustomError("quantity", "not a quantity", context) from None
        if positive and amount == 0:
            raise PydanticCustomError("quantity", "zero", {"limit": "more than 0", "hint": ""})
        return amount

    return read


def _fraction(value: Any) -> float:
    """A share given as `6 %` or as a number from 0 to below 1."""
    amount: Any = value
    if isinstance(value, str) and value.rstrip().endswith(_PERCENT_SIGN):
        try:
            amount = float(value.rstrip()[:-1]) / 100
        except ValueError:
            amount = None
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < 1:
        context = {"limit": "a share such as '6 %' or 0.06, below 1", "hint": ""}
        raise PydanticCustomError("quantity", "no share", context)
    return float(amount)


def _tokens(value: Any) -> int:
    """A number of tokens given as `4096` or `4096 tokens`."""
    text = str(value).removesuffix("tokens").strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 15:
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, int) or not 1 <= text <= 10**15:
        limit = "a whole number of tokens, such as '4096 tokens'"
        raise PydanticCustomError("quantity", "no token count", {"limit": limit, "hint": ""})
    return text


def _read_as(parse: Callable[[object], float], *, positive: bool = True) -> BeforeValidator:
    return BeforeValidator(_quantity(parse, positive=positive), json_schema_input_type=str)


def _example(text: str) -> Any:
    return Field(examples=[text])


Name = Annotated[str, StringConstraints(pattern=_NAME_PATTERN)]
Bytes = Annotated[float, _read_as(units.parse_bytes), _example("80 GiB")]
Bytes0 = Annotated[float, _read_as(units.parse_bytes, positive=False), _example("16 KiB")]
BytesPerS = Annotated[float, _read_as(units.parse_bytes_per_s), _example("25 Gbit/s")]
FlopPerS = Annotated[float, _read_as(units.parse_flop_per_s), _example("312 TFLOP/s")]
Seconds = Annotated[float, _read_as(units.parse_seconds), _example("2000 h")]
Latency = Annotated[float, _read_as(units.parse_seconds, positive=False), _example("3 ms")]
UsdPerHour = Annotated[float, _read_as(units.parse_usd_per_hour, positive=False), _example("2.5 USD/h")]
Fraction = Annotated[float, BeforeValidator(_fraction, json_schema_input_type=str | float), _example("6 %")]
Tokens = Annotated[int, BeforeValidator(_tokens, json_schema_input_type=str | int), _example("4096 tokens")]


def read_shape(shape: type[S], source: Source) -> tuple[S | None, list[Fault]]:
    """The file in its shape, or every fault of it."""
    try:
        return shape.model_validate(source.data), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        # A key without a value is in the file, and was reported when the file was read.
        told = [d for d in details if not (d["type"] == "missing" and d["loc"] in source.line_of)]
        return None, [_fault(shape, source, detail) for detail in told]


def _fault(shape: type[Shape], source: Source, detail: Any) -> Fault:
    """One pydantic error in the words of the file."""
    location: KeyPath = tuple(part for part in detail["loc"] if part != "[key]")
    kind, context = detail["type"], detail.get("ctx", {})
    path = source.written(location)
    if kind == "missing":
        return source.fault((*path, location[-1]), "this key", value="missing")
    if kind == "extra_forbidden":
        known = _keys_at(shape, location[:-1])
        hint = nearest(str(location[-1]), known)
        return source.fault(location, "a known key", value="an unknown key", hint=hint)
    value = show(source.value_at(path))
    if "reason" in context:
        value = f"{value} ({context['reason']})"
    limit = context.get("limit") or _limit(kind, context, detail["msg"])
    hint = str(context.get("hint", ""))
    if kind == "literal_error":
        known = [word.strip(" '") for word in str(context["expected"]).replace(" or ", ",").split(",")]
        near = nearest(str(source.value_at(path)), known)
        hint = near if near.startswith("did you mean") else ""
    return source.fault(path, str(limit), value=value, hint=hint)


_BOUNDS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}


def _limit(kind: str, context: dict[str, Any], message: str) -> str:
    """What a built-in check would have accepted."""
    words = {
        "string_type": "a text",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "list_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
    }
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return NAME_LIMIT if pattern == _NAME_PATTERN else f"a text of the form {pattern}"
    if kind in words:
        return words[kind]
    if kind in _BOUNDS:
        bound = next(iter(context.values()))
        return f"{_BOUNDS[kind]} {bound:,}" if isinstance(bound, int) else f"{_BOUNDS[kind]} {bound:g}"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind == "string_too_short":
        return f"a text of at least {_characters(context['min_length'])}"
    if kind == "string_too_long":
        return f"a text of at most {_characters(context['max_length'])}"
    if kind == "too_short":
        return f"at least {context['min_length']}"
    if kind == "too_long":
        return f"at most {context['max_length']}"
    return message


def _characters(number: int) -> str:
    return "1 character" if number == 1 else f"{number:,} characters"


def _keys_at(shape: type[Shape], path: KeyPath) -> list[str]:
    """The keys that the mapping at `path` may have."""
    found: type[Shape] | None = shape
    for part in path:
        if isinstance(part, str) and found is not None:
            fields = {field.alias or name: field for name, field in found.model_fields.items()}
            found = _shape_in(fields[part].annotation) if part in fields else found
    return [] if found is None else [field.alias or name for name, field in found.model_fields.items()]


def _shape_in(annotation: Any) -> type[Shape] | None:
    """The shape inside an annotation such as `list[X] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Shape):
        return annotation
    inner = (_shape_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((shape for shape in inner if shape is not None), None)
