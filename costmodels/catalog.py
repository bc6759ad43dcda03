"""Data sheet figures of accelerators and processors, each with the public document it was taken from.

The figures stand in `catalog.json`; `docs/catalog.md` explains them. Peak rates are dense, with fp32
accumulation. What a training step sustains of them is assumed, by one stated rule per kind of device: measure
where you can.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from costmodels.units import parse_bytes, parse_bytes_per_s, parse_flop_per_s
from policies.errors import Fault, InputError

Kind = Literal["gpu", "accelerator", "cpu"]

CATALOG_PATH = Path(__file__).with_name("catalog.json")

# GDDR boards with error correction keep the check bits in a sixteenth of their own memory.
_LEFT_BY_INLINE_ECC_FRAC = 15 / 16
# PCI Express from 3.0 to 5.0 sends 130 bits for each 128.
_PCIE_TRANSFERS_PER_S = {"3.0": 8e9, "4.0": 16e9, "5.0": 32e9}
_PCIE = re.compile(r"PCIe (\d\.\d) x(\d+)")
_C2C_BYTES_PER_S = {"NVLink-C2C": 450e9, "NVLink-C2C shared by 2": 225e9}


class UnknownDeviceTypeError(InputError):
    """No device of that name is in the catalog."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceType:
    """One entry. Rates are bytes and floating-point operations per second, links count one direction.

    `memory_bytes` is what software sees (for boards that keep error-correction bits in their own memory,
    15/16 of what is fitted), and 0 for a processor, whose memory the fleet declares. `peak_flop_per_s` holds
    (dtype, dense rate) pairs; a dtype the chip has no faster units for is left out. `host_link_*` joins
    device and host, `peer_link_*` the devices of one host directly (None where they talk through the host).
    `sources` holds (figure, document and place) pairs.
    """

    name: str
    aliases: tuple[str, ...]
    vendor: str
    kind: Kind
    memory_bytes: int
    peak_flop_per_s: tuple[tuple[str, float], ...]
    sustained_frac: float
    memory_bytes_per_s: float
    host_link: str
    host_link_bytes_per_s: float
    peer_link: str | None
    peer_link_bytes_per_s: float | None
    sources: tuple[tuple[str, str], ...]
    note: str
    origin: str = "assumed"

    @property
    def sustained_flop_per_s(self) -> tuple[tuple[str, float], ...]:
        """(dtype, rate) pairs a training step is assumed to reach in dense matrix products."""
        return tuple((dtype, rate * self.sustained_frac) for dtype, rate in self.peak_flop_per_s)

    @property
    def device_link_bytes_per_s(self) -> float:
        """One direction between two such devices of a host: direct link, else through the host."""
        direct = self.peer_link_bytes_per_s
        return self.host_link_bytes_per_s if direct is None else direct


def device_type(name: str) -> DeviceType:
    """The entry with this name or alias; case, and the choice of space, `-` or `_`, don't matter.

    Raises:
        UnknownDeviceTypeError: `unknown-device-type`, with the nearest names as its hint.
    """
    entries = _by_spelling()
    found = entries.get(_spelling(name))
    if found is not None:
        return found
    wanted = _spelling(name)[:100]
    variants = [spelling for spelling in entries if wanted and spelling.startswith(f"{wanted}-")]
    close = difflib.get_close_matches(wanted, list(entries), n=9, cutoff=0.5)
    nearest = list(dict.fromkeys(entries[spelling].name for spelling in (*variants, *close)))[:4]
    hint = f"did you mean {' or '.join(f'`{item}`' for item in nearest)}?" if nearest else ""
    shown = repr(name[:60])
    limit = f"one of the {len(device_names())} types of the catalog"
    raise UnknownDeviceTypeError(
        "unknown-device-type",
        f"{shown} is not {limit}",
        faults=[Fault(place="device type", value=shown, limit=limit, hint=hint)],
        hint=hint or "give memory, rate and memory bandwidth of the device instead",
    )


def device_names() -> tuple[str, ...]:
    """Names of all entries, aliases left out, in the catalog's order."""
    return tuple(entry.name for entry in catalog())


@cache
def catalog() -> tuple[DeviceType, ...]:
    """Every entry."""
    content = _content()
    return tuple(_entry(raw, content["sustained"]) for raw in content["devices"])


def sustained_rules() -> Mapping[str, tuple[float, str]]:
    """Per kind of device, the assumed fraction of the peak and the rule it follows."""
    return {kind: (rule["frac"], rule["rule"]) for kind, rule in _content()["sustained"].items()}


def source_documents() -> Mapping[str, str]:
    """Title, publisher and year of each document, by the short name that `DeviceType.sources` uses."""
    return {
        key: f"{document['title']}, {document['publisher']}, {document['year']}"
        for key, document in _content()["documents"].items()
    }


def link_bytes_per_s(link: str) -> float:
    """Bytes per second and direction of a link such as `PCIe 4.0 x16`: transfers × lanes × 128/130 / 8."""
    if link in _C2C_BYTES_PER_S:
        return _C2C_BYTES_PER_S[link]
    match = _PCIE.fullmatch(link)
    if match is None:
        raise ValueError(f"{CATALOG_PATH.name}: unknown host link {link!r}")
    return _PCIE_TRANSFERS_PER_S[match[1]] * int(match[2]) * 128 / 130 / 8


def _content() -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(CATALOG_PATH.read_text(encoding="utf-8"))
    return content


def _entry(raw: Mapping[str, Any], sustained: Mapping[str, Any]) -> DeviceType:
    memory_bytes = parse_bytes(raw["memory"]) if raw["memory"] is not None else 0
    peer = raw["peer_link"]
    return DeviceType(
        name=raw["name"],
        aliases=tuple(raw["aliases"]),
        vendor=raw["vendor"],
        kind=raw["kind"],
        memory_bytes=int(memory_bytes * _LEFT_BY_INLINE_ECC_FRAC) if raw["inline_ecc"] else memory_bytes,
        peak_flop_per_s=tuple(sorted((dtype, parse_flop_per_s(rate)) for dtype, rate in raw["rate"].items())),
        sustained_frac=sustained[raw["kind"]]["frac"],
        memory_bytes_per_s=parse_bytes_per_s(raw["memory_bandwidth"]),
        host_link=raw["host_link"],
        host_link_bytes_per_s=link_bytes_per_s(raw["host_link"]),
        peer_link=peer["name"] if peer is not None else None,
        peer_link_bytes_per_s=parse_bytes_per_s(peer["bandwidth"]) if peer is not None else None,
        sources=tuple(raw["sources"].items()),
        note=raw.get("note", ""),
    )


@cache
def _by_spelling() -> Mapping[str, DeviceType]:
    """Entries under every spelling of their names and aliases."""
    return {_spelling(word): entry for entry in catalog() for word in (entry.name, *entry.aliases)}


def _spelling(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())
