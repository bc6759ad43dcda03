"""Profiles as plain JSON: layer times, layer sizes and link curves in, one profile file out.

Accepted layout of the four measurement files (units in the last lines):
    times   model > device type > tensor degree > micro-batch size > per layer [forward, backward, update] s
    sizes   model > tensor degree > per layer {params_floats, params_bytes, act_mem_bytes, act_input_bytes,
            act_output_bytes}, activations of one sequence
    outer   type > count > type > count > [polynomial, highest bytes/s]
    inner   type > count > [polynomial, highest bytes/s]
    A polynomial in log2(megabytes), highest power first, gives GB/s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.interface import Origin
from costmodels.measured_profile import (
    MEASURED,
    ExecutorFacts,
    LayerSizes,
    LayerTimes,
    LinkCurve,
    Profile,
    ProfiledJob,
    RunFacts,
    repair_times,
)
from costmodels.profile_faults import profile_faults
from policies.errors import InputError

SCHEMA = "echelon/profile/1"
ANEW = "measure and write it anew"


def read_json(path: Path) -> Any:
    """The content of one JSON file.

    Raises:
        InputError: `profile-unreadable`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError("profile-unreadable", f"{path}: {fault}", hint="give a file of JSON") from fault


def parse_times(by_size: Mapping[str, Any], *, note: str = "") -> LayerTimes:
    """Layer times of one device type at one tensor degree, cold entries repaired."""
    sizes = sorted(by_size, key=int)
    table_MLC = np.array([by_size[size] for size in sizes], dtype=np.float64)
    return repair_times(
        LayerTimes(
            micro_batch_sizes=tuple(int(size) for size in sizes),
            forward_s_ML=table_MLC[:, :, 0],
            backward_s_ML=table_MLC[:, :, 1],
            update_s_ML=table_MLC[:, :, 2],
            origin=Origin(kind=MEASURED, note=note),
        )
    )


def parse_sizes(layers: list[Mapping[str, float]]) -> LayerSizes:
    """Layer sizes at one tensor degree."""

    def column(name: str) -> Any:
        return np.array([layer[name] for layer in layers], dtype=np.float64)

    return LayerSizes(
        params_L=column("params_floats"),
        weight_bytes_L=column("params_bytes"),
        activation_bytes_L=column("act_mem_bytes"),
        input_bytes_L=column("act_input_bytes"),
        output_bytes_L=column("act_output_bytes"),
    )


def parse_curve(pair: Any) -> LinkCurve:
    """A link curve from its polynomial and highest rate."""
    polynomial, ceiling_bytes_per_s = pair
    coefficients = tuple(float(value) for value in polynomial)
    return LinkCurve(gigabytes_per_s=coefficients, ceiling_bytes_per_s=float(ceiling_bytes_per_s))


def build_profile(
    model_name: str, *, times: Any, sizes: Any, outer: Any, inner: Any, facts: RunFacts, note: str = ""
) -> Profile:
    """A profile of one model from the four measurement files, already read.

    Raises:
        InputError: `profile-incomplete` when a part is missing or the layer counts differ.
    """
    try:
        profile = Profile(
            model_name=model_name,
            times={
                type_name: {int(tp): parse_times(by_size, note=note) for tp, by_size in by_tp.items()}
                for type_name, by_tp in times[model_name].items()
            },
            sizes={int(tp): parse_sizes(layers) for tp, layers in sizes[model_name].items()},
            outer={
                (a, b): parse_curve(by_count["1"])
                for a, from_a in outer.items()
                for b, by_count in from_a["1"].items()
            },
            inner={(a, int(n)): parse_curve(pair) for a, by_n in inner.items() for n, pair in by_n.items()},
            facts=facts,
        )
        lengths = {t.forward_s_ML.shape[1] for by_tp in profile.times.values() for t in by_tp.values()}
        lengths |= {s.params_L.size for s in profile.sizes.values()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as fault:
        raise InputError(
            "profile-incomplete",
            f"measurements of {model_name!r} can't be read: {type(fault).__name__} {fault}",
            hint="compare with the layout in docs/measured.md",
        ) from fault
    if len(lengths) != 1:
        raise InputError(
            "profile-incomplete",
            f"measurements of {model_name!r} disagree on the number of layers: {sorted(lengths)}",
            hint="times and sizes must list the same layers",
        )
    return profile


def profile_to_document(profile: Profile) -> dict[str, Any]:
    """The profile as JSON values, ready for `json.dumps`; `profile_from_document` reads it back equal."""

    def curve(value: LinkCurve) -> dict[str, Any]:
        written = {**asdict(value), "gigabytes_per_s": list(value.gigabytes_per_s)}
        timed = [list(pair) for pair in written.pop("seconds_at")]
        return {**written, "seconds_at": timed} if timed else written

    def to_list(item: Any) -> Any:
        return item.tolist() if isinstance(item, np.ndarray) else item

    def arrays(value: LayerTimes | LayerSizes) -> dict[str, Any]:
        return {name: to_list(item) for name, item in asdict(value).items() if item is not None}

    document = {
        "schema": SCHEMA,
        "model": profile.model_name,
        "times": {d: {str(tp): arrays(t) for tp, t in by_tp.items()} for d, by_tp in profile.times.items()},
        "sizes": {str(tp): arrays(s) for tp, s in profile.sizes.items()},
        "outer": [{"from": a, "to": b, **curve(c)} for (a, b), c in profile.outer.items()],
        "inner": [{"type": a, "count": n, **curve(c)} for (a, n), c in profile.inner.items()],
        "facts": asdict(profile.facts),
    }
    if profile.job is not None:
        document["job"] = asdict(profile.job)
    if profile.executors:
        document["executors"] = {
            name: {**asdict(facts), "zero_levels": list(facts.zero_levels)}
            for name, facts in profile.executors.items()
        }
    return document


def profile_from_document(document: object) -> Profile:
    """The profile that `profile_to_document` wrote.

    Raises:
        InputError: `profile-schema` for another schema, `profile-incomplete` for a missing or malformed part;
            figures that the formulas can't work with are all listed in its faults.
    """
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, Mapping) else type(document).__name__
        raise InputError("profile-schema", f"schema {found!r} found, {SCHEMA!r} expected", hint="write anew")
    try:
        facts = RunFacts(**_with_origins(document["facts"]))
        profile = Profile(
            model_name=str(document["model"]),
            times={
                d: {int(tp): _times(value) for tp, value in by_tp.items()}
                for d, by_tp in document["times"].items()
            },
            sizes={
                int(tp): LayerSizes(**{name: np.array(item, dtype=float) for name, item in value.items()})
                for tp, value in document["sizes"].items()
            },
            outer={(value["from"], value["to"]): _curve(value) for value in document["outer"]},
            inner={(value["type"], int(value["count"])): _curve(value) for value in document["inner"]},
            facts=facts,
            job=None if document.get("job") is None else ProfiledJob(**document["job"]),
            executors={name: _executor(value) for name, value in document.get("executors", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
        raise InputError(
            "profile-incomplete", f"profile: {type(fault).__name__} {fault}", hint=ANEW
        ) from fault
    faults = profile_faults(profile)
    if faults:
        message = f"profile of {profile.model_name}: {len(faults)} of its figures can't be used"
        raise InputError("profile-incomplete", message, faults=faults, hint=ANEW)
    return profile


def _times(value: Mapping[str, Any]) -> LayerTimes:
    return LayerTimes(
        micro_batch_sizes=tuple(int(size) for size in value["micro_batch_sizes"]),
        forward_s_ML=np.array(value["forward_s_ML"], dtype=np.float64),
        backward_s_ML=np.array(value["backward_s_ML"], dtype=np.float64),
        update_s_ML=np.array(value["update_s_ML"], dtype=np.float64),
        origin=Origin(**value["origin"]),
    )


def _with_origins(value: Mapping[str, Any]) -> dict[str, Any]:
    origins = {name: Origin(**origin) for name, origin in value.get("origins", {}).items()}
    return {**value, "origins": origins}


def _executor(value: Mapping[str, Any]) -> ExecutorFacts:
    known = _with_origins(value)
    return ExecutorFacts(**{**known, "zero_levels": tuple(known.get("zero_levels", (0,)))})


def _curve(value: Mapping[str, Any]) -> LinkCurve:
    return LinkCurve(
        gigabytes_per_s=tuple(float(item) for item in value["gigabytes_per_s"]),
        ceiling_bytes_per_s=float(value["ceiling_bytes_per_s"]),
        smallest_bytes=float(value["smallest_bytes"]),
        latency_s=float(value["latency_s"]),
        origin=Origin(**value["origin"]),
        seconds_at=tuple((float(size), float(seconds)) for size, seconds in value.get("seconds_at", ())),
    )


def load_profile(path: Path) -> Profile:
    """The profile in one JSON file."""
    return profile_from_document(read_json(path))


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile; the file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(profile_to_document(profile), sort_keys=True, indent=1)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
