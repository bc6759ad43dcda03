"""What the parts of a measurement tell each other, as plain JSON. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from executors.profiling.layers import LayerBytes
from executors.profiling.spans import LayerSpans

SCHEMA = "echelon/profile-part/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOrder:
    """What one rank process is to do.

    `phase` is `layers` (links, rates, sizes and layers, each rank on its own) or the name of an executor
    (a pipeline over all ranks). `join` says where ranks meet: `file:PATH` on one host, or `tcp:HOST:PORT`.
    `chosen` are the layers of the chain to run, `sizes` the micro-batch sizes.
    """

    phase: str
    rank: int
    world_size: int
    slot: int
    join: str
    accelerator: str
    model: Mapping[str, Any]
    chosen: tuple[int, ...]
    sizes: tuple[int, ...]
    micro_batches: int
    steps: int
    warm_up_steps: int
    probe_s: float
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class RankAnswer:
    """What one rank of the phase `layers` measured.

    Positions in `spans` and `sizes` are those in the whole chain. `update_s` is the optimiser's part of a
    step, for `update_params` trained weights. `links` has one-way seconds by payload bytes for every other
    rank this one timed. `step_s` are the seconds of each timed step by micro-batch size.
    """

    rank: int
    spans: tuple[LayerSpans, ...]
    update_s: float
    update_params: int
    sizes: Mapping[int, LayerBytes]
    rates_flop_per_s: Mapping[str, float]
    memory_bytes_per_s: float
    links: Mapping[int, Mapping[int, float]]
    step_s: Mapping[int, Sequence[float]]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorAnswer:
    """What one rank of an executor's pipeline measured beside its layers, which are given by position.

    `update_s` is the optimiser's part of its best step, `base_bytes` what the process held before the first
    weight, `peaks_bytes` the most it held by micro-batch size. A rank for which the chain had no layer left
    has none.
    """

    rank: int
    executor: str
    micro_batch_overhead_s: float
    update_s: float
    peaks_bytes: Mapping[int, int]
    base_bytes: int
    layers: tuple[int, ...]
    in_flight: int
    step_s: Sequence[float]


def answer_to_json(answer: RankAnswer | ExecutorAnswer) -> dict[str, Any]:
    """Plain values; keys of mappings become text."""
    return asdict(answer)


def rank_answer_from_json(value: Mapping[str, Any]) -> RankAnswer:
    """The answer that `answer_to_json` wrote."""
    return RankAnswer(
        **{
            **value,
            "spans": tuple(spans_from_json(each) for each in value["spans"]),
            "sizes": {int(i): LayerBytes(**each) for i, each in value["sizes"].items()},
            "links": {int(r): {int(b): s for b, s in timed.items()} for r, timed in value["links"].items()},
            "step_s": {int(size): seconds for size, seconds in value["step_s"].items()},
        }
    )


def executor_answer_from_json(value: Mapping[str, Any]) -> ExecutorAnswer:
    """The answer that `answer_to_json` wrote."""
    peaks_bytes = {int(size): peak_bytes for size, peak_bytes in value["peaks_bytes"].items()}
    return ExecutorAnswer(**{**value, "layers": tuple(value["layers"]), "peaks_bytes": peaks_bytes})


def spans_from_json(value: Mapping[str, Any]) -> LayerSpans:
    """Spans with the layers' positions as numbers again."""

    def way(name: str) -> dict[int, list[tuple[float, float]]]:
        return {int(i): [(wall, cpu) for wall, cpu in entries] for i, entries in value[name].items()}

    return LayerSpans(
        micro_batch_size=value["micro_batch_size"],
        micro_batches=value["micro_batches"],
        forward=way("forward"),
        backward=way("backward"),
        lost_s=tuple(value.get("lost_s", ())),
    )
