"""For training scripts: what the plan gives to this rank.

    from executors.script import here

    run = here.plan()

Torch is imported by the methods that need it, not before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.layout import Layout, Rank, layout_of
from executors.runfile import Run, read_run
from executors.script.reporting import RankReporter
from executors.training.place import device_of, join_group, local_rank_of
from planner.training import TrainingJob
from policies.errors import InputError

if TYPE_CHECKING:
    import torch

    from executors.script.groups import RankGroups

RUN_VARIABLE = "ECHELON_RUN"


@dataclass(frozen=True, kw_only=True)
class PlannedRank:
    """This rank's part of the plan.

    It is rank `rank` of `world_size`, on device `device` of host `host`, which torch knows as number
    `local_rank` there; `cores` are the processors it may use. It belongs to stage `stage`, at (`dp_i`,
    `tp_i`) of its grid of `dp` data-parallel by `tp` tensor-parallel ranks; `head` marks the rank that leads
    the stage. `ranks[s][d][t]` are the ranks of all stages, and stage s holds the layers [`cuts[s]`,
    `cuts[s + 1]`).

    A step has `micro_batches` micro-batches of `micro_batch_size` sequences, which each stage splits over its
    data-parallel ranks: `shares[d]` rows in rank order. `config` is the transformers configuration, None
    where the model file lists layers. `job` is the job file, its defaults where none was given. Text is to be
    split over `num_participants` replicas, of which this is number `participant`. With `resume` the newest
    checkpoint of an earlier start is to be continued. Results belong into `folder`.
    """

    rank: int
    world_size: int
    local_rank: int
    host: str
    device: str
    cores: frozenset[int]
    executor: str
    boundary: str
    replica: str
    stage: int
    dp_i: int
    dp: int
    tp_i: int
    tp: int
    head: bool
    ranks: tuple[tuple[tuple[int, ...], ...], ...]
    cuts: tuple[int, ...]
    micro_batches: int
    micro_batch_size: int
    shares: tuple[int, ...]
    zero: int
    recompute: int
    tied_layers: tuple[tuple[int, int], ...]
    dtype: str
    sequence_tokens: int
    tokens_per_step: int
    config: Mapping[str, Any] | None
    job: TrainingJob
    seed: int
    participant: int
    num_participants: int
    resume: bool
    folder: Path
    _run: Run = field(repr=False, compare=False)
    _layout: Layout = field(repr=False, compare=False)
    _reporter: RankReporter = field(repr=False, compare=False)

    @property
    def num_stages(self) -> int:
        """Stages of the replica."""
        return len(self.ranks)

    @property
    def num_layers(self) -> int:
        """Length of the chain: embedding, blocks, norm and loss head."""
        return self.cuts[-1]

    @property
    def layers(self) -> range:
        """The layers of this rank's stage."""
        return range(self.cuts[self.stage], self.cuts[self.stage + 1])

    @property
    def rows(self) -> range:
        """This rank's rows of every micro-batch."""
        first = sum(self.shares[: self.dp_i])
        return range(first, first + self.shares[self.dp_i])

    @property
    def recomputed(self) -> frozenset[int]:
        """The layers of this stage that keep no activations: `recompute` of them, those that were priced."""
        from executors.training.recompute import recomputed_layers

        workload, interval = self._run.inputs.workload, (self.layers.start, self.layers.stop)
        return recomputed_layers(workload, *interval, self.recompute, tp=self.tp)

    def peers(self, stage: int) -> tuple[int, ...]:
        """The ranks of a stage, data-parallel rank by data-parallel rank."""
        return tuple(rank for row in self.ranks[stage] for rank in row)

    def init(self) -> torch.device:
        """Join the process group with all ranks of the plan; what comes back is this rank's device.

        Raises:
            InputError: `no-accelerator`.
        """
        import torch

        torch.set_num_threads(self.job.threads_per_device or 1)
        device = device_of(self._run, self._layout.ranks[self.rank])
        join_group(self.executor, device)
        return device

    def groups(self) -> RankGroups:
        """This rank's process groups. Collective: call it once, on every rank, after `init`."""
        from executors.script.groups import build_groups

        return build_groups(self.ranks, self.rank)

    def deepspeed_topology(self) -> Any:
        """DeepSpeed's grid of stages, data-parallel and tensor-parallel ranks, filled as the plan fills it.

        Raises:
            InputError: `unequal-widths`: DeepSpeed knows one width for all stages.
        """
        from executors.ds_pipeline.cut import planned_topology

        shapes = {(len(stage), len(stage[0])) for stage in self.ranks}
        if len(shapes) > 1:
            told = ", ".join(f"{dp} x {tp}" for dp, tp in ((len(s), len(s[0])) for s in self.ranks))
            raise InputError(
                "unequal-widths",
                f"the stages have {told} ranks, and DeepSpeed's pipeline has the same number in all",
                hint="plan with `--executor deepspeed`, or leave `unequal_widths` out of ECHELON_CAN",
            )
        return planned_topology(self._layout, self.num_stages, self.dp, self.tp)

    def pipeline_module(
        self, layer_specs: Sequence[Any], loss_fn: Callable[..., Any], **options: Any
    ) -> torch.nn.Module:
        """A DeepSpeed `PipelineModule` that is cut where the plan cuts, on the plan's ranks.

        A layer's first weights depend on `seed` and its position alone, the planned layers are recomputed,
        and a stage that trains nothing is kept alive. Collective, after `init`.

        Args:
            layer_specs: the whole chain, one LayerSpec, module or function for each layer of the plan.
            loss_fn: takes the last layer's output and the labels.
            options: more arguments for `PipelineModule`.

        Raises:
            InputError: `chain-length`, `unequal-widths`.
        """
        if len(layer_specs) != self.num_layers:
            raise InputError(
                "chain-length",
                f"the script has {len(layer_specs)} layers, the plan was made for {self.num_layers}",
                hint="count the embedding as one layer, and norm with loss head as one",
            )
        from executors.script.pipeline import ScriptModule

        return ScriptModule(
            layer_specs,
            self.cuts,
            self.deepspeed_topology(),
            recomputed=self.recomputed,
            seed=self.seed,
            loss_fn=loss_fn,
            **options,
        )

    def ds_config(self, **changes: Any) -> dict[str, Any]:
        """What `deepspeed.initialize` needs: batch sizes, ZeRO level, dtype; `changes` replace keys."""
        from executors.ds_pipeline.command import ds_config

        return {**ds_config(self._run.replica, self.dtype, self.job.clip_norm), **changes}

    def ready(self, step: int = 0, num_steps: int | None = None) -> None:
        """Tell the launcher that training goes on after `step` steps, of `num_steps` in all."""
        self._reporter.ready(step, num_steps, device=self.device, stage=self.stage)

    def log_step(self, step: int, loss: float, gradient_norm: float | None = None) -> None:
        """Tell the launcher that now `step` steps are done. Every rank does; a loss it can't know is NaN."""
        self._reporter.step(step, float(loss), None if gradient_norm is None else float(gradient_norm))

    def log_evaluation(self, step: int, loss: float) -> None:
        """Tell the launcher the loss on held-out text; one rank does."""
        self._reporter.evaluation(step, float(loss))

    def log_checkpoint(self, step: int, folder: Path | str) -> None:
        """Tell the launcher of a checkpoint that lies complete in `folder`; one rank does."""
        self._reporter.checkpoint(step, Path(folder))

    def log_export(self, folder: Path | str) -> None:
        """Tell the launcher where the result lies; one rank does."""
        self._reporter.exported(Path(folder))

    def finished(self) -> None:
        """Tell the launcher that this rank's work is done; the end of the script says it too."""
        self._reporter.finished()


def plan() -> PlannedRank:
    """What the plan gives to this rank; the same object at every call.

    Raises:
        InputError: `not-launched` outside of a launch, or what reading the run file raises.
    """
    path, rank = os.environ.get(RUN_VARIABLE), os.environ.get("RANK")
    if path is None or rank is None:
        missing = RUN_VARIABLE if path is None else "RANK"
        raise InputError(
            "not-launched",
            f"no plan gives this process a part: {missing} is not set",
            hint="start the script with `echelon launch plan.json -- SCRIPT ARGS`",
        )
    return _planned(path, int(rank))


def exported(run: PlannedRank) -> dict[str, str]:
    """The same facts as environment variables, for scripts that don't ask this module."""
    return {
        "ECHELON_STAGE": str(run.stage),
        "ECHELON_LAYERS": f"{run.layers.start}-{run.layers.stop}",
        "ECHELON_CUTS": ",".join(map(str, run.cuts)),
        "ECHELON_RANKS": json.dumps(run.ranks, separators=(",", ":")),
        "ECHELON_DP_RANK": str(run.dp_i),
        "ECHELON_DP_SIZE": str(run.dp),
        "ECHELON_TP_RANK": str(run.tp_i),
        "ECHELON_TP_SIZE": str(run.tp),
        "ECHELON_MICRO_BATCHES": str(run.micro_batches),
        "ECHELON_MICRO_BATCH_SIZE": str(run.micro_batch_size),
        "ECHELON_ROWS": f"{run.rows.start}-{run.rows.stop}",
        "ECHELON_ZERO": str(run.zero),
        "ECHELON_FOLDER": str(run.folder),
        "ECHELON_RESUME": str(int(run.resume)),
    }


@cache
def _planned(path: str, rank: int) -> PlannedRank:
    run = read_run(Path(path))
    layout = layout_of(run.inputs.fleet, run.replica)
    return _planned_rank(run, layout, layout.ranks[rank])


def _planned_rank(run: Run, layout: Layout, me: Rank) -> PlannedRank:
    workload, replica, stage = run.inputs.workload, run.replica, run.replica.stages[me.stage]
    recipe = workload.recipe
    return PlannedRank(
        rank=me.rank,
        world_size=layout.world_size,
        local_rank=local_rank_of(run, me),
        host=me.host,
        device=me.device,
        cores=frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset(),
        executor=replica.executor,
        boundary=run.file.boundary,
        replica=replica.id,
        stage=me.stage,
        dp_i=me.dp_i,
        dp=stage.dp,
        tp_i=me.tp_i,
        tp=stage.tp,
        head=me.device == stage.head,
        ranks=tuple(
            tuple(tuple(layout.rank_at(s.index, d, t) for t in range(s.tp)) for d in range(s.dp))
            for s in replica.stages
        ),
        cuts=(*(s.layers[0] for s in replica.stages), workload.num_layers),
        micro_batches=replica.micro_batches,
        micro_batch_size=replica.micro_batch_size,
        shares=stage.micro_batch_shares,
        zero=stage.zero,
        recompute=stage.recompute,
        tied_layers=replica.tied_layers,
        dtype=workload.job.dtype,
        sequence_tokens=workload.job.sequence_tokens,
        tokens_per_step=workload.job.tokens_per_step,
        config=None if recipe is None else json.loads(recipe.config_json),
        job=run.training,
        seed=run.training.seed,
        participant=run.file.participant,
        num_participants=run.file.num_participants,
        resume=run.file.resume,
        folder=run.folder,
        _run=run,
        _layout=layout,
        _reporter=RankReporter(run.folder, me.rank, workload.job.tokens_per_step),
    )
