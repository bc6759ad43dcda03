"""Many host names in one pattern, the way cluster tools write them: `gpu-[01-08,12]` and `r[1-2]n[1-4]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import product

HOSTS_MAX = 16_384
PATTERN_LIMIT = (
    f"a host name, or a pattern such as `gpu-[01-08,12]` that stands for at most {HOSTS_MAX:,} hosts"
)

_PART = re.compile(r"\[([0-9,-]*)\]|([A-Za-z0-9._-]+)")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})")


class PatternError(ValueError):
    """A host pattern can't be read; the message says why."""


def expand_pattern(pattern: str) -> list[str]:
    """The host names a pattern stands for, in order; leading zeros keep their width.

    Raises:
        PatternError: not a pattern, a backward range, the same host twice, or more than HOSTS_MAX.
    """
    choices: list[list[str]] = []
    position, num_hosts = 0, 1
    while position < len(pattern):
        match = _PART.match(pattern, position)
        if match is None:
            raise PatternError(f"unexpected {pattern[position]!r}")
        choices.append([match[2]] if match[2] is not None else _expand_ranges(match[1]))
        num_hosts *= len(choices[-1])
        if num_hosts > HOSTS_MAX:
            raise PatternError(f"more than {HOSTS_MAX:,} hosts")
        position = match.end()
    names = ["".join(parts) for parts in product(*choices)]
    for name in names:
        if not _NAME.fullmatch(name):
            raise PatternError("a host name starts with a letter or digit and has at most 128 characters")
    if len(set(names)) != len(names):
        raise PatternError("the same host twice")
    return names


def _expand_ranges(text: str) -> list[str]:
    """`01-03,7` as `01 02 03 7`."""
    numbers: list[str] = []
    for item in text.split(","):
        match = _RANGE.fullmatch(item)
        if match is None:
            raise PatternError(f"{item!r} is neither a number nor a range such as `01-08`")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise PatternError(f"range {item!r} runs backwards")
        if int(last) - int(first) >= HOSTS_MAX:
            raise PatternError(f"more than {HOSTS_MAX:,} hosts")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        if len(numbers) > HOSTS_MAX:
            raise PatternError(f"more than {HOSTS_MAX:,} hosts")
    return numbers


def compress_names(names: Iterable[str]) -> list[str]:
    """Patterns that expand to exactly `names`, by first appearance; only the last number is folded."""
    parts = [(name, _NUMBERED.fullmatch(name)) for name in names]
    # `n10` folds with `n09`, whose leading zero shows that two digits are meant; else `n9` folds with `n10`.
    padded = {
        (match[1], len(match[2])) for _, match in parts if match and match[2][0] == "0" and len(match[2]) > 1
    }
    numbers_by_stem: dict[tuple[str, int], list[int]] = {}
    order: list[tuple[str, int] | str] = []
    for name, match in parts:
        if match is None:
            order.append(name)
            continue
        width = len(match[2]) if (match[1], len(match[2])) in padded else 0
        if (match[1], width) not in numbers_by_stem:
            numbers_by_stem[match[1], width] = []
            order.append((match[1], width))
        numbers_by_stem[match[1], width].append(int(match[2]))
    return [key if isinstance(key, str) else _fold(key[0], key[1], numbers_by_stem[key]) for key in order]


def _fold(stem: str, width: int, numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(numbers) == 1:
        return f"{stem}{numbers[0]:0{width}d}"
    text = ",".join(f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in runs)
    return f"{stem}[{text}]"
