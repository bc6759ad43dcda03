"""The executor `deepspeed`: what it refuses, and what it would write and start."""

from __future__ import annotations

from collections.abc import Mapping

from executors.base import Command, LaunchSpec, Start
from executors.ds_pipeline import command
from executors.environment import rank_environment
from executors.layout import layout_of
from executors.rules import reasons
from executors.runfile import run_texts
from planner.canonical import inputs_from_documents
from planner.execution import DEEPSPEED, Reason
from planner.plan import Plan, ReplicaPlan
from planner.training import PipelineSchedule, TrainingJob


class DeepSpeedExecutor:
    """Starts replicas through the `deepspeed` runner, one command per host and none over ssh by itself."""

    name = DEEPSPEED

    def supports(self, plan: Plan, replica: ReplicaPlan) -> tuple[Reason, ...]:
        """Every reason why DeepSpeed can't run the replica; `planner.execution` lists them."""
        return reasons(self.name, plan, replica)

    def supports_job(self, plan: Plan, replica: ReplicaPlan, job: TrainingJob) -> tuple[Reason, ...]:
        """DeepSpeed's pipeline knows one order of passes."""
        if job.pipeline is PipelineSchedule.ONE_FORWARD_ONE_BACKWARD:
            return ()
        return (
            Reason(
                code="deepspeed-schedule",
                place="job.pipeline",
                value=str(job.pipeline.value),
                limit="1f1b, or the executor torch",
            ),
        )

    def prepare(self, plan: Plan, replica: ReplicaPlan, job: TrainingJob, start: Start) -> LaunchSpec:
        """Hostfile, configuration, plan and run file, and one runner command per host. Touches nothing."""
        inputs = inputs_from_documents(plan.inputs)
        layout = layout_of(inputs.fleet, replica)
        slots = command.slots_of(layout, one_machine=start.one_machine, first_slot=start.first_core)
        folder = str(start.folder)
        master = (start.master_addr(layout), start.port)
        files = {
            command.HOSTFILE: command.hostfile_text(slots),
            command.DS_CONFIG: command.ds_config_text(replica, inputs.workload.job.dtype, job.clip_norm),
            **run_texts(plan, job, **start.run_fields(master)),
        }
        return LaunchSpec(
            executor=self.name,
            replica=replica,
            layout=layout,
            folder=start.folder,
            files=files,
            commands=tuple(
                Command(
                    host=host,
                    argv=command.runner_argv(start.python, folder, slots, node_rank, master, start.script),
                    env=_environment(job, start),
                )
                for node_rank, host in enumerate(slots)
            ),
            script=start.script,
        )


def _environment(job: TrainingJob, start: Start) -> Mapping[str, str | None]:
    # The runner reads CUDA_VISIBLE_DEVICES as a filter of its own, which would contradict --include.
    env = rank_environment(job, start.accelerator, own_script=start.script is not None)
    return {**env, "CUDA_VISIBLE_DEVICES": None}
