"""How a script's rank tells the launcher of its progress. No torch here."""

from __future__ import annotations

import math
import resource
import sys
import time
from pathlib import Path

from executors import events

_SHORTEST_S = 1e-9


class RankReporter:
    """Writes the events of one rank; wall and CPU seconds of a step run from the last word to this one."""

    def __init__(self, folder: Path, rank: int, tokens_per_step: int) -> None:
        self._rank, self._tokens_per_step = rank, tokens_per_step
        self._log = events.EventLog(events.rank_file(folder, rank))
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()
        self.has_finished = False

    def ready(self, step: int, num_steps: int | None, **place: object) -> None:
        """The first step comes next."""
        more = {} if num_steps is None else {"num_steps": num_steps}
        self._log(events.ready(self._rank, step, **place, **more))
        self._restart_clocks()

    def step(self, step: int, loss: float, gradient_norm: float | None) -> None:
        """Now `step` optimiser steps are done. Rank 0 counts the tokens of all ranks."""
        wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
        self._log(
            events.step(
                self._rank,
                step=step,
                loss=loss,
                gradient_norm=float("nan") if gradient_norm is None else gradient_norm,
                wall_s=max(wall_s, _SHORTEST_S),
                cpu_s=cpu_s,
                tokens=self._tokens_per_step if self._rank == 0 else 0,
            )
        )
        self._restart_clocks()

    def evaluation(self, step: int, loss: float) -> None:
        """Mean loss on held-out text. The time it took belongs to no step."""
        if math.isfinite(loss):
            self._log(events.evaluation(self._rank, step=step, loss=loss))
        else:
            self._log(events.note(f"the loss on held-out text is {loss} after {step} steps", self._rank))
        self._restart_clocks()

    def checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint lies complete in `folder`. The time it took belongs to no step."""
        self._log(events.checkpoint(self._rank, step=step, folder=str(folder)))
        self._restart_clocks()

    def exported(self, folder: Path) -> None:
        """The result lies complete in `folder`."""
        self._log(events.exported(self._rank, folder=str(folder)))

    def finished(self) -> None:
        """All work is done; said once."""
        if not self.has_finished:
            self.has_finished = True
            self._log(events.finished(self._rank, peak_bytes=peak_bytes()))

    def _restart_clocks(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()


def peak_bytes() -> int:
    """Most memory this process held: of its GPU where torch uses one, else its own."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
