"""The training loop, the same for every engine: steps, evaluation, checkpoints, events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from executors import events
from executors.events import Event
from executors.training.checkpoint import Checkpoints
from executors.training.clock import Kind, NoWatch, Spent, StepClock, StepWatch
from executors.training.engine import Engine
from planner.training import TrainingJob
from policies.errors import ExecutorFailedError

Emit = Callable[[Event], None]


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a rank's training has come to. `step_s` and `cpu_s` hold one entry for each step of this start."""

    first_step: int
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    spent: list[Mapping[Kind, Spent]] = field(default_factory=list)


class Loop:
    """Trains from `first_step` to the job's last step. `barrier` waits for all ranks of the replica.

    Rank 0 speaks for the replica where all ranks know alike.
    """

    def __init__(
        self,
        engine: Engine,
        training: TrainingJob,
        checkpoints: Checkpoints,
        clock: StepClock,
        *,
        emit: Emit,
        barrier: Callable[[], None],
        rank: int,
        tokens_per_step: int,
        watch: StepWatch | None = None,
    ) -> None:
        self.engine, self.training, self.checkpoints, self.clock = engine, training, checkpoints, clock
        self.emit, self.barrier, self.rank, self.leads = emit, barrier, rank, rank == 0
        self.tokens_per_step = tokens_per_step
        self.watch: StepWatch = watch or NoWatch()

    def run(self, first_step: int) -> Progress:
        """Every step, with what is due after it.

        Raises:
            ExecutorFailedError: `loss-not-finite`, `disk-full`.
        """
        progress = Progress(first_step=first_step)
        job = self.training
        if job.evaluation_every and first_step < job.steps:
            self._evaluate(first_step, progress)
        for step in range(first_step, job.steps):
            self._step(step, progress)
            done = step + 1
            last = done == job.steps
            if job.evaluation_every and (last or done % job.evaluation_every == 0):
                self._evaluate(done, progress)
            if last or (job.checkpoint_every and done % job.checkpoint_every == 0):
                self._checkpoint(done)
        return progress

    def _step(self, step: int, progress: Progress) -> None:
        self.clock.take()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        with self.watch.step():
            result = self.engine.train_step(step, self.training.learning_rate_at(step))
        progress.step_s.append(time.perf_counter() - wall_s)
        progress.cpu_s.append(time.process_time() - cpu_s)
        progress.spent.append(self.clock.take())
        if not math.isfinite(result.loss):
            raise ExecutorFailedError(
                "loss-not-finite",
                f"the loss of step {step + 1} is {result.loss}",
                hint="lower the learning rate or clip the gradients; the newest checkpoint is from before",
            )
        progress.losses.append(result.loss)
        progress.gradient_norms.append(result.gradient_norm)
        self.emit(
            events.step(
                self.rank,
                step=step + 1,
                loss=result.loss,
                gradient_norm=result.gradient_norm,
                wall_s=progress.step_s[-1],
                cpu_s=progress.cpu_s[-1],
                tokens=self.tokens_per_step if self.leads else 0,
            )
        )

    def _evaluate(self, step: int, progress: Progress) -> None:
        loss = self.engine.evaluate()
        progress.evaluations.append((step, loss))
        if self.leads:
            self.emit(events.evaluation(self.rank, step=step, loss=loss))

    def _checkpoint(self, step: int) -> None:
        self.checkpoints.write_layers(step, self.engine.layer_states())
        self.barrier()
        if self.leads:
            folder = self.checkpoints.finish(step, self.training.checkpoint_keep)
            self.emit(events.checkpoint(self.rank, step=step, folder=str(folder)))
        self.barrier()
