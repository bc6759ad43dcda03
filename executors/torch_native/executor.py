"""The executor `torch`: what it refuses, and what it would write and start."""

from __future__ import annotations

from executors.base import Command, LaunchSpec, Start
from executors.environment import rank_environment
from executors.layout import layout_of
from executors.rules import reasons
from executors.runfile import RUN_FILE, run_texts
from executors.script.declaration import START
from planner.canonical import inputs_from_documents
from planner.execution import TORCH, Reason
from planner.plan import Plan, ReplicaPlan
from planner.training import TrainingJob


class TorchExecutor:
    """Starts replicas rank by rank: unequal widths, sharding and tensor parallelism inside stages."""

    name = TORCH

    def supports(self, plan: Plan, replica: ReplicaPlan) -> tuple[Reason, ...]:
        """Every reason why it can't run the replica."""
        return reasons(self.name, plan, replica)

    def supports_job(self, plan: Plan, replica: ReplicaPlan, job: TrainingJob) -> tuple[Reason, ...]:
        """Every reason why it can't follow the job."""
        from executors.torch_native.rules import reasons as job_reasons

        return job_reasons(plan, replica, job)

    def prepare(self, plan: Plan, replica: ReplicaPlan, job: TrainingJob, start: Start) -> LaunchSpec:
        """Plan and run file, and one command per host that starts its ranks. Touches nothing."""
        layout = layout_of(inputs_from_documents(plan.inputs).fleet, replica)
        master = (start.master_addr(layout), start.port)
        hosts = ("localhost",) if start.one_machine else layout.hosts
        run_file, script = f"{start.folder}/{RUN_FILE}", start.script
        argv: tuple[str, ...] = (start.python, "-m", "executors.rank_starter", run_file)
        if script is not None:
            argv += ("--", start.python, "-m", START, run_file, *script.words)
        env = rank_environment(job, start.accelerator, own_script=script is not None)
        return LaunchSpec(
            executor=self.name,
            replica=replica,
            layout=layout,
            folder=start.folder,
            files=run_texts(plan, job, **start.run_fields(master)),
            commands=tuple(Command(host=host, argv=argv, env=env) for host in hosts),
            script=script,
        )
