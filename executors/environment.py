"""Environment of the rank processes, the same for every executor."""

from __future__ import annotations

from pathlib import Path

from planner.training import TrainingJob

CPU = "cpu"
CUDA = "cuda"
AUTO = "auto"


def rank_environment(
    job: TrainingJob, accelerator: str, *, own_script: bool = False
) -> dict[str, str | None]:
    """What every rank process finds in its environment; None removes a variable.

    One thread per rank unless the job says otherwise: threads of ranks that share cores wait for each other.
    Our workers need no network beyond the other ranks; an own script may.
    """
    env: dict[str, str | None] = {
        "OMP_NUM_THREADS": str(job.threads_per_device or 1),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if not own_script:
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if accelerator == CPU:
        env["DS_ACCELERATOR"] = "cpu"
    return env


def accelerator_here() -> str:
    """What this machine computes on, judged by whether the NVIDIA driver is loaded; no torch is asked."""
    return CUDA if Path("/proc/driver/nvidia/version").is_file() else CPU
