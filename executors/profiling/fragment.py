"""A measured host as an entry of a fleet file. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from costmodels.discover import MIB, plain_name
from costmodels.measured_profile import LinkCurve, Profile
from costmodels.units import format_bytes_per_s, format_flop_per_s
from executors.profiling.answers import rank_answer_from_json

HEAD = (
    "# For a fleet file; `site` is yours to fill in, and `tier` where the fleet has more than one.",
    "# measured: in running steps on this host; declared: said by its system or driver.",
    "hosts:",
)


def measured_fragment(profile: Profile, documents: Sequence[Mapping[str, Any]]) -> str:
    """Entries for the list `hosts`, whose types, links and rates are those that the profile knows."""
    lines = list(HEAD)
    for document in documents:
        lines += _host_lines(profile, document)
    fabrics = sorted({curve.ceiling_bytes_per_s for curve in profile.outer.values()})
    if fabrics:
        curve = min(profile.outer.values(), key=lambda one: one.ceiling_bytes_per_s)
        lines.append(f"# between hosts, measured: fabric {_rate(curve)}, latency {_latency(curve)}")
    return "\n".join(lines) + "\n"


def _host_lines(profile: Profile, document: Mapping[str, Any]) -> list[str]:
    answers = [rank_answer_from_json(value) for value in document["ranks"]]
    device_type, count = document["device_type"], len(answers)
    lines = [f"  - name: {plain_name(document['host'])}", "    site: my-site"]
    curve = profile.inner.get((device_type, count))
    if curve is not None:
        lines += [
            f"    link: {_rate(curve)}  # measured: sends between two ranks",
            f"    link_latency: {_latency(curve)}  # measured",
        ]
    rates = ", ".join(
        f"{dtype}: {format_flop_per_s(float(np.mean([one.rates_flop_per_s[dtype] for one in answers])))}"
        for dtype in answers[0].rates_flop_per_s
    )
    bandwidth = format_bytes_per_s(float(np.mean([one.memory_bytes_per_s for one in answers])))
    return [
        *lines,
        "    devices:",
        f"      - type: {device_type}  # the profile has its layers",
        f"        count: {count}",
        f"        memory: {_memory_mib(document, count)} MiB  # declared{_shared(document, count)}",
        f"        rate: {{{rates}}}  # measured: matrix products, all ranks at once",
        f"        memory_bandwidth: {bandwidth}  # measured: copies, all ranks at once",
    ]


def _memory_mib(document: Mapping[str, Any], count: int) -> int:
    machine = document["machine"]
    if document["accelerator"] == "cuda" and machine["gpus"]:
        return int(machine["gpus"][0]["memory_bytes"] // MIB)
    return int(machine["memory_bytes"] // count // MIB)


def _shared(document: Mapping[str, Any], count: int) -> str:
    shares = document["accelerator"] != "cuda" and count > 1
    return f": main memory, shared by {count} ranks" if shares else ""


def _rate(curve: LinkCurve) -> str:
    return format_bytes_per_s(curve.ceiling_bytes_per_s)


def _latency(curve: LinkCurve) -> str:
    return f"{curve.latency_s * 1e6:.0f} us"
