"""The shape of a job file and its way to the core type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from planner.faults import nearest, show
from planner.schema.shape import Fraction, Shape
from planner.schema.source import KeyPath, Source
from planner.training import BUNDLED_TEXTS, LearningRateSchedule, PipelineSchedule, TrainingJob
from policies.errors import Fault

BUNDLED_PREFIX = "python:"
WARMUP_STEPS = 10

Steps = Annotated[int, Field(ge=1, le=10**9)]
Beta = Annotated[float, Field(ge=0, lt=1)]
PathText = Annotated[str, Field(min_length=1, max_length=4096)]


def _listed(value: Any) -> Any:
    """One text as the list it is short for."""
    if not isinstance(value, str | list):
        raise PydanticCustomError("data", "no texts", {"limit": "a path or a list of paths", "hint": ""})
    return [value] if isinstance(value, str) else value


def _peak(value: Any) -> Any:
    """A plain learning rate as the mapping it is short for."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"peak": value}
    if not isinstance(value, dict):
        limit = "a number such as 3e-4, or a mapping with `peak`"
        raise PydanticCustomError("learning_rate", "no learning rate", {"limit": limit, "hint": ""})
    return value


class LearningRateShape(Shape):
    """Linear warm-up to `peak`, then the schedule down to `final_frac` of it at the last step."""

    peak: Annotated[float, Field(gt=0, le=100)]
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] | None = None
    final_frac: Fraction = 0.1


class AdamWShape(Shape):
    """Settings of the optimiser; the decay holds for matrices alone."""

    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    beta1: Beta = 0.9
    beta2: Beta = 0.95
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8


class EvaluationShape(Shape):
    """The held-out share of the text and how often its loss is taken."""

    frac: Fraction = 0.05
    every: Steps = 50
    sequences: Annotated[int, Field(ge=1, le=10**6)] = 16


class CheckpointsShape(Shape):
    """How often a checkpoint is written and how many are kept."""

    every: Steps = 50
    keep: Annotated[int, Field(ge=1, le=1000)] = 2


class AdapterShape(Shape):
    """Settings of LoRA beyond its rank and targets, which stand in the model file.

    `merged`: the whole model with the adapter merged into it is exported beside the adapter.
    """

    alpha: Annotated[float, Field(gt=0, le=10**6)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    merged: bool = False


LearningRate = Annotated[
    LearningRateShape, BeforeValidator(_peak, json_schema_input_type=float | LearningRateShape)
]
Data = Annotated[
    list[PathText],
    BeforeValidator(_listed, json_schema_input_type=PathText | list[PathText]),
    Field(min_length=1, max_length=10_000),
]


class TrainingShape(Shape):
    """A job file. Paths are relative to it and read on every host that trains."""

    schema_version: Literal["echelon/job/1"] = Field(alias="schema")
    data: Data
    tokenizer: PathText | None = None
    start: PathText | None = None
    steps: Steps = 100
    learning_rate: LearningRate = LearningRateShape(peak=3e-4)
    adamw: AdamWShape = AdamWShape()
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    adapter: AdapterShape = AdapterShape()
    evaluation: EvaluationShape = EvaluationShape()
    checkpoints: CheckpointsShape = CheckpointsShape()
    pipeline: Literal["1f1b", "gpipe", "interleaved", "zero-bubble"] = "1f1b"
    threads_per_device: Annotated[int, Field(ge=1, le=1024)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0


def build_training(shape: TrainingShape, source: Source) -> tuple[TrainingJob | None, list[Fault]]:
    """The job in core types with absolute paths, or every fault of it."""
    faults: list[Fault] = []
    short = source.value_at(("data",))
    data = tuple(
        _text_source(text, ("data",) if isinstance(short, str) else ("data", i), source, faults)
        for i, text in enumerate(shape.data)
    )
    faults += _repeated(data, source)
    tokenizer = _path(shape.tokenizer, ("tokenizer",), source, faults)
    start = _path(shape.start, ("start",), source, faults)
    rate = shape.learning_rate
    if rate.warmup_steps is not None and rate.warmup_steps > shape.steps:
        limit = f"at most the {shape.steps:,} steps of the job"
        faults.append(source.fault(("learning_rate", "warmup_steps"), limit))
    if faults:
        return None, faults
    return TrainingJob(
        data=data,
        tokenizer=tokenizer,
        start=start,
        steps=shape.steps,
        learning_rate=rate.peak,
        schedule=LearningRateSchedule(rate.schedule),
        warmup_steps=min(WARMUP_STEPS, shape.steps) if rate.warmup_steps is None else rate.warmup_steps,
        final_frac=rate.final_frac,
        weight_decay=shape.adamw.weight_decay,
        beta1=shape.adamw.beta1,
        beta2=shape.adamw.beta2,
        epsilon=shape.adamw.epsilon,
        clip_norm=shape.clip_norm,
        adapter_alpha=shape.adapter.alpha,
        adapter_dropout=shape.adapter.dropout,
        adapter_merged=shape.adapter.merged,
        evaluation_frac=shape.evaluation.frac,
        evaluation_every=shape.evaluation.every if shape.evaluation.frac else 0,
        evaluation_sequences=shape.evaluation.sequences,
        checkpoint_every=shape.checkpoints.every,
        checkpoint_keep=shape.checkpoints.keep,
        pipeline=PipelineSchedule(shape.pipeline),
        threads_per_device=shape.threads_per_device,
        seed=shape.seed,
    ), []


def _text_source(text: str, path: KeyPath, source: Source, faults: list[Fault]) -> str:
    """A text that every Python carries by its name, or an absolute path."""
    if not text.startswith(BUNDLED_PREFIX):
        return _path(text, path, source, faults) or ""
    if text not in BUNDLED_TEXTS:
        limit = "`python:prose`, `python:code` or a path"
        faults.append(source.fault(path, limit, hint=nearest(text, BUNDLED_TEXTS)))
    return text


def _path(text: str | None, path: KeyPath, source: Source, faults: list[Fault]) -> str | None:
    """The absolute path; links stay as they are, since they may lead elsewhere on another host."""
    if text is None:
        return None
    if text.startswith("~"):
        hint = "write the folder out: every host reads it, and homes differ"
        faults.append(source.fault(path, "a path without `~`", hint=hint))
    if not text.isprintable():
        faults.append(source.fault(path, "a path of printable characters"))
    return str((Path(source.name).parent / text).absolute())


def _repeated(data: tuple[str, ...], source: Source) -> list[Fault]:
    """Texts named again: they would count twice, on both sides of the held-out share."""
    hint = "remove one of the two"
    return [
        source.fault(
            ("data", i), "each text once", value=f"{show(source.value_at(('data', i)))} again", hint=hint
        )
        for i, text in enumerate(data)
        if text in data[:i]
    ]
