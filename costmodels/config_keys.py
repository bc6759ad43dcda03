"""Typed look-ups in a configuration mapping that collect every fault instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from policies.errors import Fault

_LARGEST = 10**9


class ConfigKeys:
    """Look-ups by key; a faulty value is noted in `faults` and read as the default."""

    def __init__(self, config: Mapping[str, object]) -> None:
        self._config = config
        self.faults: list[Fault] = []

    def first_present(self, *names: str) -> str:
        """The first of several names for one thing that the configuration uses, or the first of all."""
        return next((name for name in names if name in self._config), names[0])

    def count(self, key: str, default: int) -> int:
        """A whole number of at least 1."""
        return self._whole(key, default, least=1)

    def number(self, key: str, default: int) -> int:
        """A whole number of at least 0."""
        return self._whole(key, default, least=0)

    def optional_count(self, key: str, default: int | None) -> int | None:
        """A whole number of at least 1, or None where the configuration says null."""
        if key in self._config and self._config[key] is None:
            return None
        if key not in self._config:
            return default
        return self._whole(key, default or 1, least=1)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._config.get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.refuse(key, value, "true or false")
        return default

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._config.get(key)
        if value is None or isinstance(value, str):
            return default if value is None else value
        self.refuse(key, value, "a name in quotes")
        return default

    def rate(self, key: str, default: float) -> float:
        """A number from 0 up to, but not including, 1."""
        value = self._config.get(key)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
            return float(value)
        self.refuse(key, value, "a rate of 0 or more and below 1")
        return default

    def positions(self, key: str, num_blocks: int) -> frozenset[int]:
        """A list of block positions."""
        value = self._config.get(key)
        if value is None:
            return frozenset()
        limit = f"a list of positions from 0 to {num_blocks - 1}"
        if not isinstance(value, list | tuple) or not all(
            _is_whole(i) and 0 <= i < num_blocks for i in value
        ):
            self.refuse(key, value, limit)
            return frozenset()
        return frozenset(value)

    def layer_types(self, num_blocks: int) -> list[bool] | None:
        """Whether each block's attention slides, from `layer_types`; None where that key is absent."""
        value = self._config.get("layer_types")
        if value is None:
            return None
        names = ("full_attention", "sliding_attention")
        if (
            not isinstance(value, list | tuple)
            or len(value) != num_blocks
            or not all(name in names for name in value)
        ):
            self.refuse("layer_types", value, f"{num_blocks} names, each {' or '.join(names)}")
            return None
        return [name == "sliding_attention" for name in value]

    def head_width(self, width: int, num_heads: int) -> int:
        """Model width per head, which must come out whole."""
        self.require(
            width % num_heads == 0, "num_attention_heads", num_heads, f"a divisor of the width {width}"
        )
        return max(1, width // num_heads)

    def require(self, holds: bool, key: str, value: object, limit: str) -> None:
        """Note a fault unless the condition holds."""
        if not holds:
            self.refuse(key, value, limit)

    def refuse(self, key: str, value: object, limit: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(place=key, value=repr(value), limit=limit))

    def _whole(self, key: str, default: int, *, least: int) -> int:
        value = self._config.get(key)
        if value is None:
            return default
        if _is_whole(value) and least <= value <= _LARGEST:
            return value
        self.refuse(key, value, f"a whole number from {least} to {_LARGEST:,}")
        return default


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
