"""The training job beyond the plan: which text, how long, how fast it learns, what is kept.

People write it as a job file (`echelon/job/1`); executors read it as plain JSON. What is trained (model,
adapters, dtype, sequence length, sequences per step) stands in the plan, not here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from math import cos, pi
from typing import Any

from planner.plan_reading import record_from_json

BUNDLED_TEXTS = ("python:prose", "python:code")


class LearningRateSchedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class PipelineSchedule(StrEnum):
    """Order of forward and backward passes in a pipeline; plans are priced for `1f1b`."""

    ONE_FORWARD_ONE_BACKWARD = "1f1b"
    GPIPE = "gpipe"
    INTERLEAVED = "interleaved"
    ZERO_BUBBLE = "zero-bubble"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """What an executor trains on and how; paths are absolute.

    `data` lists text files and folders, or the texts that every Python carries: `python:prose` and
    `python:code`. `tokenizer` is a `tokenizer.json` or a folder with one; None trains one on the data.
    `start` is a folder with a transformers checkpoint; None draws random weights from `seed`.
    `evaluation_frac` of the text is held out; `evaluation_every` 0 means no evaluation. A checkpoint is
    written every `checkpoint_every` steps and after the last one, the newest `checkpoint_keep` are kept.
    `adapter_merged` exports the whole model with the adapter merged into it, beside the adapter.
    `clip_norm` bounds the global gradient norm, 0 means no clipping. The learning rate falls to
    `learning_rate * final_frac`.
    """

    data: tuple[str, ...]
    tokenizer: str | None = None
    start: str | None = None
    steps: int = 100
    learning_rate: float = 3e-4
    schedule: LearningRateSchedule = LearningRateSchedule.COSINE
    warmup_steps: int = 10
    final_frac: float = 0.1
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    adapter_alpha: float | None = None
    adapter_dropout: float = 0.0
    adapter_merged: bool = False
    evaluation_frac: float = 0.05
    evaluation_every: int = 50
    evaluation_sequences: int = 16
    checkpoint_every: int = 50
    checkpoint_keep: int = 2
    pipeline: PipelineSchedule = PipelineSchedule.ONE_FORWARD_ONE_BACKWARD
    threads_per_device: int | None = None
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0: linear warm-up, then the schedule."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule is LearningRateSchedule.CONSTANT:
            return self.learning_rate
        done_frac = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        left_frac = 1.0 - done_frac
        if self.schedule is LearningRateSchedule.COSINE:
            left_frac = 0.5 * (1.0 + cos(pi * done_frac))
        return self.learning_rate * (self.final_frac + (1.0 - self.final_frac) * left_frac)


def training_to_json(training: TrainingJob) -> dict[str, Any]:
    """The job as plain JSON values, every field by its name."""
    plain = asdict(training)
    plain["data"] = list(training.data)
    plain["schedule"] = training.schedule.value
    plain["pipeline"] = training.pipeline.value
    return plain


def training_from_json(data: Any, *, place: str = "training") -> TrainingJob:
    """The job in parsed JSON, as `training_to_json` wrote it.

    Raises:
        InputError: `bad-training` with every fault: missing, unknown or wrongly typed fields.
    """
    return record_from_json(
        TrainingJob, data, place=place, code="bad-training", hint="start again from the job file"
    )
