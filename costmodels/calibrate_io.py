"""Measured runs and calibrations as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from costmodels.calibrate import Calibration
from costmodels.calibrate_model import NAMES, Platform, TrainingRun
from costmodels.interface import Origin
from policies.errors import Fault, InputError

SCHEMA = "echelon/calibration/1"
FIELDS = {
    "gpus": "num_devices",
    "global_batch": "global_batch",
    "micro_batch": "micro_batch_size",
    "hidden": "hidden",
    "heads": "heads",
    "layers": "layers",
    "seq": "sequence_tokens",
    "tp": "tp",
    "dp": "dp",
    "pp": "pp",
}


def parse_runs(
    rows: Sequence[Mapping[str, Any]], *, recompute_above_devices: float = float("inf")
) -> list[TrainingRun]:
    """Measured runs from rows with the keys of `FIELDS`, `iteration_ms` and, where known, `recompute`.

    A row that doesn't say whether it recomputes activations is taken to do so on more than
    `recompute_above_devices` devices.

    Raises:
        InputError: `runs-malformed`, listing every row that lacks a key or holds no number.
    """
    runs: list[TrainingRun] = []
    faults: list[Fault] = []
    for position, row in enumerate(rows):
        name = str(row.get("id", position))
        try:
            sizes = {field: int(row[key]) for key, field in FIELDS.items()}
            recompute = bool(row.get("recompute", sizes["num_devices"] > recompute_above_devices))
            seconds = float(row["iteration_ms"]) / 1e3
        except (KeyError, TypeError, ValueError) as fault:
            faults.append(Fault(place=name, value=f"{type(fault).__name__} {fault}", limit=", ".join(FIELDS)))
            continue
        runs.append(TrainingRun(name=name, recompute=recompute, iteration_s=seconds, **sizes))
    if faults:
        message = f"{len(faults)} of {len(rows)} measured runs can't be read"
        raise InputError("runs-malformed", message, faults=faults, hint="give every row all keys")
    return runs


def calibration_to_document(calibration: Calibration) -> dict[str, Any]:
    """The calibration as JSON values; `calibration_from_document` reads it back equal."""
    return {
        "schema": SCHEMA,
        "coefficients": dict(calibration.coefficients),
        "platform": asdict(calibration.platform),
        "origin": asdict(calibration.origin),
    }


def calibration_from_document(document: Mapping[str, Any]) -> Calibration:
    """The calibration that `calibration_to_document` wrote.

    Raises:
        InputError: `calibration-malformed` for another schema, missing parts or unknown coefficients.
    """
    try:
        coefficients = {name: float(document["coefficients"][name]) for name in NAMES}
        wrong = document["schema"] != SCHEMA or min(coefficients.values()) <= 0.0
        wrong = wrong or set(document["coefficients"]) != set(NAMES)
        platform, origin = Platform(**document["platform"]), Origin(**document["origin"])
    except (KeyError, TypeError, ValueError) as fault:
        raise InputError(
            "calibration-malformed", f"{type(fault).__name__} {fault}", hint="fit it anew from measured runs"
        ) from fault
    if wrong:
        raise InputError(
            "calibration-malformed",
            f"schema {document['schema']!r} and coefficients {sorted(coefficients)} don't match {SCHEMA!r}",
            hint="fit it anew from measured runs",
        )
    return Calibration(coefficients=coefficients, platform=platform, origin=origin)
