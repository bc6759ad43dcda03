"""Quantities as people write them (`80 GiB`, `25 Gbit/s`, `3 ms`) to and from base SI units.

Nothing else in the product knows a prefix, and bit rates are divided by eight here and nowhere else. Units
are case-sensitive, since `Gb/s` and `GB/s` differ by eight. This module imports nothing else of the product.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

# Digits are bounded: `Decimal` itself refuses exponents beyond its own range with an error of its own.
_NUMBER = r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?"
_NUMBER_AND_UNIT = re.compile(rf"\s*({_NUMBER})\s*((?:[^\s0-9]\S*)?)\s*")
_LARGEST = Decimal("1e30")

_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
# `KB` is what many write for a thousand bytes; `K` alone is no SI prefix, so only bytes accept it.
_BYTES = {f"{p}B": Decimal(f) for p, f in (_DECIMAL | {"K": 10**3} | _BINARY).items()}
_BITS = {
    f"{p}{bit}": Decimal(f) / 8 for p, f in (_DECIMAL | _BINARY).items() for bit in ("bit/s", "b/s", "bps")
}
_FLOPS = {f"{p}{name}": Decimal(f) for p, f in _DECIMAL.items() for name in ("FLOP/s", "FLOPS")}
_SECONDS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),  # MICRO SIGN
    "μs": Decimal("1e-6"),  # GREEK SMALL LETTER MU
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}


class UnitError(ValueError):
    """A quantity can't be read.

    Attributes:
        value: the text found.
        limit: what would have been accepted, with an example.
    """

    def __init__(self, value: object, limit: str, reason: str) -> None:
        super().__init__(f"{value!r}: {reason}; expected {limit}")
        self.value = str(value)
        self.limit = limit
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantity:
    """A kind of quantity: the units it accepts (factor to the base unit) and how to say so."""

    factors: Mapping[str, Decimal]
    limit: str

    def parse(self, value: object) -> Decimal:
        """The number a text stands for; raises UnitError."""
        if not isinstance(value, str):
            raise UnitError(value, self.limit, "a number without a unit says too little")
        match = _NUMBER_AND_UNIT.fullmatch(value)
        if match is None:
            raise UnitError(value, self.limit, "not a finite decimal number followed by a unit")
        number, unit = Decimal(match[1]), match[2]
        if not unit:
            raise UnitError(value, self.limit, "the unit is missing")
        if unit not in self.factors:
            raise UnitError(value, self.limit, f"unknown unit {unit!r}")
        if number < 0:
            raise UnitError(value, self.limit, "negative")
        if number > _LARGEST / self.factors[unit]:
            raise UnitError(value, self.limit, f"larger than {_LARGEST:g} in base units")
        return number * self.factors[unit]


_MEMORY = _Quantity(
    factors=_BYTES, limit="a size of 0 or more in B, kB, MB, GB, TB, KiB, MiB, GiB or TiB, such as '80 GiB'"
)
_RATE = _Quantity(
    factors={f"{unit}/s": factor for unit, factor in _BYTES.items()} | _BITS,
    limit="a rate of 0 or more in bit/s or B/s with a prefix, such as '25 Gbit/s' or '900 GB/s'",
)
_TIME = _Quantity(
    factors=_SECONDS, limit="a time of 0 or more in ns, us, ms, s, min, h or d, such as '3 ms' or '30 d'"
)
_COMPUTE = _Quantity(
    factors=_FLOPS, limit="a rate of 0 or more in FLOP/s with a prefix, such as '312 TFLOP/s'"
)
_PRICE = _Quantity(
    factors={"USD/h": Decimal(1), "USD/hour": Decimal(1)},
    limit="a price of 0 or more in USD/h, such as '2.5 USD/h'",
)


def parse_bytes(value: object) -> int:
    """Bytes of a size such as `80 GiB`, rounded to whole bytes.

    Raises:
        UnitError: no number, no or an unknown unit, negative, or not finite.
    """
    return round(_MEMORY.parse(value))


def parse_bytes_per_s(value: object) -> float:
    """Bytes per second of a rate such as `25 Gbit/s` or `900 GB/s`.

    Raises:
        UnitError: no number, no or an unknown unit, negative, or not finite.
    """
    return float(_RATE.parse(value))


def parse_seconds(value: object) -> float:
    """Seconds of a time such as `3 ms` or `30 d`.

    Raises:
        UnitError: no number, no or an unknown unit, negative, or not finite.
    """
    return float(_TIME.parse(value))


def parse_flop_per_s(value: object) -> float:
    """Floating-point operations per second of a rate such as `312 TFLOP/s`.

    Raises:
        UnitError: no number, no or an unknown unit, negative, or not finite.
    """
    return float(_COMPUTE.parse(value))


def parse_usd_per_hour(value: object) -> float:
    """US dollars per hour of a price such as `2.5 USD/h`.

    Raises:
        UnitError: no number, no or an unknown unit, negative, or not finite.
    """
    return float(_PRICE.parse(value))


def format_bytes(value_bytes: float) -> str:
    """A size with three significant digits and a binary prefix: `79.6 GiB`."""
    return _scaled(value_bytes, "B", (("", 1.0), *((p, float(f)) for p, f in _BINARY.items())))


def format_bytes_per_s(value_bytes_per_s: float) -> str:
    """A rate with three significant digits and a decimal prefix: `25 GB/s`."""
    return _scaled(value_bytes_per_s, "B/s", _decimal_steps())


def format_bits_per_s(value_bytes_per_s: float) -> str:
    """The same rate as networks are sold by: 1.25e9 bytes per second as `10 Gbit/s`."""
    return _scaled(8.0 * value_bytes_per_s, "bit/s", _decimal_steps())


def format_flop_per_s(value_flop_per_s: float) -> str:
    """A compute rate with three significant digits and a decimal prefix: `312 TFLOP/s`."""
    return _scaled(value_flop_per_s, "FLOP/s", _decimal_steps())


def format_seconds(value_s: float) -> str:
    """A time with three significant digits in ns to d: `4.1 s`, `30 d`."""
    steps = tuple((unit, float(_SECONDS[unit])) for unit in ("ns", "us", "ms", "s", "min", "h", "d"))
    return _scaled(value_s, "", steps) if value_s != 0 else "0 s"


def _decimal_steps() -> tuple[tuple[str, float], ...]:
    return tuple((prefix, float(factor)) for prefix, factor in _DECIMAL.items())


def _scaled(value: float, unit: str, steps: tuple[tuple[str, float], ...]) -> str:
    """`value` in the largest step that leaves at least 1 after rounding; infinities pass through."""
    if not math.isfinite(value):
        return f"{value} {unit or 's'}"
    prefix, factor = steps[0]
    for next_prefix, next_factor in steps[1:]:
        # 999.7 kB rounds to 1000 kB, which reads better as 1 MB.
        if abs(_rounded(value / factor)) * factor < next_factor:
            break
        prefix, factor = next_prefix, next_factor
    return f"{_rounded(value / factor):g} {prefix}{unit}"


def _rounded(value: float) -> float:
    """`value` with three significant digits, but never less than its whole part below 10,000."""
    magnitude = abs(value)
    digits = 2 if magnitude < 10 else 1 if magnitude < 100 else 0
    if 0 < magnitude < 1:
        digits = 2 - math.floor(math.log10(magnitude))
    return round(value, digits)
