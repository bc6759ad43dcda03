"""Jobs whose overhead is measured: plan, weights, tokens and settings, made beforehand for everyone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodels.workload import Workload
from executors.launching import Launch, LaunchOptions, plan_launches
from executors.training.model_spec import model_spec
from planner.canonical import inputs_from_documents
from planner.examples.bundled import example_texts
from planner.execution import DEEPSPEED
from planner.files import load_inputs, load_training_job
from planner.plan import Plan, dump_plan
from planner.problem import Objective
from planner.solve.result import Limits
from planner.solving import Request, solve_inputs
from planner.training import TrainingJob

CASES = ("desk", "full")
FLEET = """\
schema: echelon/fleet/1
name: two-cores
tiers: [open]
boundaries: [here]
sites:
  - {name: room, boundary: here, fabric: 1 Gbit/s, latency: 100 us}
hosts:
  - name: box
    site: room
    link: 20 MB/s  # so narrow that a pipeline is the best plan
    devices:
      - {count: 2, type: core, memory: 2 GiB, rate: {fp32: 30 GFLOP/s}, memory_bandwidth: 8 GB/s}
"""
MODEL = """\
schema: echelon/model/1
name: full
config:
  model_type: llama
  vocab_size: 512
  hidden_size: 128
  intermediate_size: 344
  num_hidden_layers: 8
  num_attention_heads: 4
  num_key_value_heads: 4
  max_position_embeddings: 64
  tie_word_embeddings: false
job:
  method: full
  dtype: fp32
  sequence: 64 tokens
  sequences_per_step: 32
  micro_batch_sizes: [4]
  recompute: false
"""
POLICY = """\
schema: echelon/policy/1
name: one-pipeline
replicas_max: 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job laid out in a folder. `tokens_per_step` counts those that are predicted."""

    plan: Plan
    plan_file: Path
    job: TrainingJob
    job_file: Path
    settings_file: Path
    cut: tuple[int, ...]
    tokens_per_step: int

    def launch(self, folder: Path, port: int) -> Launch:
        """The plan's one replica, its files written, for a start of all ranks on this machine."""
        options = LaunchOptions(
            folder=folder, one_machine=True, port_of=lambda number: port, accelerator="cpu"
        )
        (launch,) = plan_launches(self.plan, self.job, options)
        launch.spec.folder.mkdir(parents=True, exist_ok=True)
        for name, text in launch.spec.files.items():
            (launch.spec.folder / name).write_text(text, encoding="utf-8")
        return launch


def prepare(name: str, folder: Path, steps: int) -> Prepared:
    """Solve the case, draw weights and cut the bundled text, once for every contestant."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"fleet.yaml": FLEET, "model.yaml": MODEL, "policy.yaml": POLICY}
    texts = texts if name == "full" else example_texts(name)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    inputs = load_inputs(folder / "fleet.yaml", folder / "model.yaml", folder / "policy.yaml")
    request = Request(objective=Objective(), executor=DEEPSPEED)
    plan = solve_inputs(inputs, request, Limits(deadline_s=30.0, deterministic=True)).plan
    plan_file = folder / "plan.json"
    plan_file.write_text(dump_plan(plan), encoding="utf-8")
    (replica,) = plan.boundaries[0].replicas
    cut = (*(stage.layers[0] for stage in replica.stages), replica.stages[-1].layers[1])
    if len(cut) < 3 or any(stage.dp > 1 for stage in replica.stages):
        raise ValueError(f"case {name} should be a pipeline of single devices, not {replica.stages}")
    job_file = folder / "job.yaml"
    job_file.write_text(_job_text(folder / "model", steps), encoding="utf-8")
    prepared = Prepared(
        plan=plan,
        plan_file=plan_file,
        job=load_training_job(job_file),
        job_file=job_file,
        settings_file=folder / "settings.json",
        cut=cut,
        tokens_per_step=inputs.workload.job.tokens_per_step,
    )
    adapter = _write_weights(folder, prepared, inputs.workload)
    _write_tokens(folder, prepared)
    prepared.settings_file.write_text(json.dumps(_settings(folder, prepared, adapter)), encoding="utf-8")
    return prepared


def _job_text(start: Path, steps: int) -> str:
    """The job as a file for `echelon launch`; JSON is YAML too.

    The limit of the gradient norm lies above every norm that comes up. DeepSpeed's own clipping of a pipeline
    in fp32 counts the gradients of the first stage alone, so below it losses would differ.
    """
    fields = {
        "schema": "echelon/job/1",
        "data": "python:prose",
        "start": str(start),
        "steps": steps,
        "clip_norm": 10.0,
        "evaluation": {"every": steps},
        "checkpoints": {"every": steps},
    }
    return json.dumps(fields)


def _settings(folder: Path, prepared: Prepared, adapter: Path | None) -> Mapping[str, Any]:
    """What the scripts written by hand are told."""
    job = prepared.job
    return {
        "model": str(job.start),
        "adapter": None if adapter is None else str(adapter),
        "tokens": str(folder / "tokens.npy"),
        "cut": list(prepared.cut),
        "steps": job.steps,
        "learning_rate": job.learning_rate,
        "warmup_steps": job.warmup_steps,
        "final_frac": job.final_frac,
        "betas": [job.beta1, job.beta2],
        "epsilon": job.epsilon,
        "clip_norm": job.clip_norm,
    }


def _write_weights(folder: Path, prepared: Prepared, workload: Workload) -> Path | None:
    """A transformers folder with random weights, and where adapters are trained those our job begins with."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from executors.training.adapters import is_adapter
    from executors.training.chain import Chain
    from executors.training.export import write_adapter

    spec = model_spec(workload, prepared.job)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_dict(dict(spec.config))).save_pretrained(folder / "model")
    if spec.full:
        return None
    chain = Chain(spec)
    states = {
        i: {f"weight:{own}": p.data for own, p in chain.build(i).named_parameters() if is_adapter(own)}
        for i in range(chain.num_layers)
    }
    write_adapter(folder / "adapter", spec, states, {})
    return folder / "adapter"


def _write_tokens(folder: Path, prepared: Prepared) -> None:
    """The tokens that our job reads: (step, micro-batch, row, token)."""
    import numpy as np

    from executors.training.batches import Batches
    from executors.training.prepare import prepare_text

    (replica,) = prepared.plan.boundaries[0].replicas
    inputs = inputs_from_documents(prepared.plan.inputs)
    text = prepare_text(
        prepared.job,
        folder=folder,
        vocab_size=model_spec(inputs.workload, prepared.job).vocab_size,
        sequence_tokens=inputs.workload.job.sequence_tokens,
    )
    batches = Batches(text, prepared.job.seed)
    count, size = replica.micro_batches, replica.micro_batch_size
    tokens = [
        [batches.micro_batch(step, j, micro_batches=count, micro_batch_size=size) for j in range(count)]
        for step in range(prepared.job.steps)
    ]
    np.save(folder / "tokens.npy", np.array(tokens, dtype=np.uint16))
