"""What can be found wrong with a job on this machine before anything starts. No torch here."""

from __future__ import annotations

from pathlib import Path

from executors.training.model_spec import model_spec
from executors.training.text import find_documents
from executors.training.tokenizer import load_tokenizer, read_tokenizer
from planner.canonical import inputs_from_documents
from planner.plan import Plan
from planner.training import TrainingJob
from policies.errors import InputError


def require_material(plan: Plan, training: TrainingJob) -> None:
    """Text, tokenizer and start weights that the job names are here.

    Raises:
        InputError: `data-missing`, `data-empty`, `tokenizer-missing`, `tokenizer-too-large`, `start-missing`,
            and what else reading them finds.
    """
    spec = model_spec(inputs_from_documents(plan.inputs).workload, training)
    find_documents(training.data)
    if training.tokenizer is not None:
        load_tokenizer(read_tokenizer(training.tokenizer), spec.vocab_size)
    start = None if training.start is None else Path(training.start)
    if start is not None and not (start / "config.json").is_file():
        raise InputError(
            "start-missing",
            f"{start} holds no transformers checkpoint: there is no config.json",
            hint="name the folder that `save_pretrained` wrote, or leave `start` out for random weights",
        )
