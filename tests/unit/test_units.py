from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.units import (
    UnitError,
    format_bytes,
    format_bytes_per_s,
    format_flop_per_s,
    format_seconds,
    parse_bytes,
    parse_bytes_per_s,
    parse_flop_per_s,
    parse_seconds,
    parse_usd_per_hour,
)

PARSERS: list[Callable[[object], float]] = [
    parse_bytes,
    parse_bytes_per_s,
    parse_seconds,
    parse_flop_per_s,
    parse_usd_per_hour,
]


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (parse_bytes, "80 GiB", 85_899_345_920),
        (parse_bytes, "80GiB", 85_899_345_920),
        (parse_bytes, "80 GB", 80_000_000_000),
        (parse_bytes, "1.5 KiB", 1536),
        (parse_bytes, "2 KB", 2000),
        (parse_bytes, "2 kB", 2000),
        (parse_bytes, "0 B", 0),
        (parse_bytes, "1e3 MB", 1_000_000_000),
        (parse_bytes_per_s, "25 Gbit/s", 3.125e9),
        (parse_bytes_per_s, "25 Gbps", 3.125e9),
        (parse_bytes_per_s, "25 Gb/s", 3.125e9),
        (parse_bytes_per_s, "25 GB/s", 25e9),
        (parse_bytes_per_s, "8 Kibit/s", 1024.0),
        (parse_bytes_per_s, "1 TiB/s", 2.0**40),
        (parse_seconds, "3 ms", 0.003),
        (parse_seconds, "250 µs", 250e-6),
        (parse_seconds, "250 us", 250e-6),
        (parse_seconds, "30 d", 2_592_000.0),
        (parse_seconds, "1.5 h", 5400.0),
        (parse_seconds, ".5 min", 30.0),
        (parse_flop_per_s, "312 TFLOP/s", 312e12),
        (parse_flop_per_s, "19.5 TFLOPS", 19.5e12),
        (parse_flop_per_s, "2.5 PFLOP/s", 2.5e15),
        (parse_usd_per_hour, " 2.5 USD/h ", 2.5),
    ],
)
def test_what_people_write_becomes_base_units(
    parse: Callable[[object], float], text: str, expected: float
) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "bad",
    ["", "80", "GiB", "nan GiB", "inf s", "Infinity B", "-1 B", "-3 ms", "-2 USD/h", "-1 FLOP/s", "-1 B/s",
     "1,5 GiB", "1_0 B", "٣ s", "1 parsec", "1 2 B", "0x10 B", 80, 80.0, None, True, ["80 GiB"]],
)  # fmt: skip
def test_every_parser_refuses_what_is_no_quantity(parse: Callable[[object], float], bad: object) -> None:
    with pytest.raises(UnitError) as caught:
        parse(bad)
    assert caught.value.value == str(bad)
    assert "such as '" in caught.value.limit
    assert repr(bad) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("parse", "text", "reason"),
    [
        (parse_bytes, "80", "unit is missing"),
        (parse_bytes, "80 Gbit", "unknown unit"),
        (parse_bytes, "80 gb", "unknown unit"),
        (parse_bytes, "80 GiB/s", "unknown unit"),
        (parse_bytes, "-1 GiB", "negative"),
        (parse_bytes, "1e400 GiB", "larger than"),
        (parse_bytes, "1e9999999999999999999999 GiB", "not a finite"),
        (parse_bytes, "1e9999GiB", "unknown unit"),
        (parse_bytes_per_s, "25 GB", "unknown unit"),
        (parse_bytes_per_s, "25 mB/s", "unknown unit"),
        (parse_seconds, "3 Ms", "unknown unit"),
        (parse_flop_per_s, "3 TFLOP", "unknown unit"),
        (parse_usd_per_hour, "3 EUR/h", "unknown unit"),
        (parse_usd_per_hour, 3, "number without a unit"),
    ],
)
def test_the_reason_for_a_refusal_is_named(
    parse: Callable[[object], float], text: object, reason: str
) -> None:
    with pytest.raises(UnitError) as caught:
        parse(text)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(85_899_345_920), "80 GiB"),
        (format_bytes(0), "0 B"),
        (format_bytes(512), "512 B"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(1536), "1.5 KiB"),
        (format_bytes(2**30 - 1), "1 GiB"),
        (format_bytes(1010 * 2**30), "1010 GiB"),
        (format_bytes(-1536), "-1.5 KiB"),
        (format_bytes(math.inf), "inf B"),
        (format_bytes_per_s(3.125e9), "3.12 GB/s"),
        (format_bytes_per_s(999_700), "1 MB/s"),
        (format_flop_per_s(312e12), "312 TFLOP/s"),
        (format_flop_per_s(9.895e14), "990 TFLOP/s"),
        (format_seconds(0), "0 s"),
        (format_seconds(4.1), "4.1 s"),
        (format_seconds(0.00325), "3.25 ms"),
        (format_seconds(90), "1.5 min"),
        (format_seconds(7200), "2 h"),
        (format_seconds(2_592_000), "30 d"),
        (format_seconds(1e-12), "0.001 ns"),
        (format_seconds(math.inf), "inf s"),
    ],
)
def test_formats_read_well(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    ("fmt", "parse"),
    [
        (format_bytes, parse_bytes),
        (format_bytes_per_s, parse_bytes_per_s),
        (format_flop_per_s, parse_flop_per_s),
        (format_seconds, parse_seconds),
    ],
)
@given(value=st.floats(min_value=1.0, max_value=1e21))
def test_what_is_printed_can_be_read_back(
    fmt: Callable[[float], str], parse: Callable[[object], float], value: float
) -> None:
    assert parse(fmt(value)) == pytest.approx(value, rel=0.006, abs=0.51 if fmt is format_bytes else 0.0)


@given(number=st.integers(min_value=0, max_value=10**6))
def test_a_bit_rate_is_an_eighth_of_the_byte_rate(number: int) -> None:
    assert parse_bytes_per_s(f"{number} Gbit/s") * 8 == parse_bytes_per_s(f"{number} GB/s")
