"""A fleet of two hosts with one and two processor cores, and a plan that needs all three."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from planner.files import load_inputs
from planner.plan import Plan, dump_plan
from planner.problem import Objective
from planner.solve.result import Limits
from planner.solving import Request, solve_inputs

HOSTS = ("east", "west")
FLEET = """\
schema: echelon/fleet/1
name: two-hosts
tiers: [open]
boundaries: [here]
sites:
  - {name: room, boundary: here, fabric: 1 Gbit/s, latency: 100 us}
hosts:
  - name: east
    site: room
    link: 2 GB/s
    devices:
      - {type: core, memory: 2 GiB, rate: {fp32: 30 GFLOP/s}, memory_bandwidth: 8 GB/s}
  - name: west
    site: room
    link: 2 GB/s
    devices:
      - {type: core, memory: 1500 MiB, rate: {fp32: 30 GFLOP/s}, memory_bandwidth: 8 GB/s}
      - {type: core, memory: 1 GiB, rate: {fp32: 30 GFLOP/s}, memory_bandwidth: 8 GB/s}
"""
MODEL = """\
schema: echelon/model/1
name: tiny
config:
  model_type: llama
  vocab_size: 384
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 6
  num_attention_heads: 4
  num_key_value_heads: 2
  max_position_embeddings: 64
job:
  method: lora
  rank: 4
  dtype: fp32
  sequence: 32 tokens
  sequences_per_step: 8
  micro_batch_sizes: [2]
  recompute: false
"""
POLICY = """\
schema: echelon/policy/1
name: one-pipeline
replicas_max: 1
"""
JOB = """\
schema: echelon/job/1
data: python:prose
steps: 12
learning_rate: 3e-3
evaluation: {every: 6, sequences: 4}
checkpoints: {every: 3}
"""


def write_inputs(folder: Path, hosts: tuple[str, ...] = HOSTS) -> tuple[Path, Path, Path, Path]:
    """Fleet, model, policy and job file in the folder."""
    names = ("fleet", "model", "policy", "job")
    paths = tuple(folder / f"{name}.yaml" for name in names)
    fleet = FLEET
    for planned, name in zip(HOSTS, hosts, strict=True):
        fleet = fleet.replace(f"name: {planned}\n", f"name: {name}\n")
    for path, text in zip(paths, (fleet, MODEL, POLICY, JOB), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths[0], paths[1], paths[2], paths[3]


@cache
def _plan(folder: Path, executor: str, hosts: tuple[str, ...]) -> Plan:
    fleet, model, policy, _ = write_inputs(folder, hosts)
    request = Request(objective=Objective(), executor=executor)
    limits = Limits(deadline_s=20.0, deterministic=True)
    return solve_inputs(load_inputs(fleet, model, policy), request, limits).plan


def plan_in(folder: Path, executor: str = "deepspeed", hosts: tuple[str, ...] = HOSTS) -> tuple[Plan, Path]:
    """The plan, and its file in the folder."""
    plan = _plan(folder, executor, hosts)
    path = folder / f"plan-{executor}.json"
    path.write_text(dump_plan(plan), encoding="utf-8")
    return plan, path
