"""Contestants that take turns: each has its own processes, and only those of one compute at a time.

On a machine that others use too, seconds drift; what is compared has to be measured close together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

WAIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """`count` blocks of `steps_each` steps, after a warm-up that nobody waits in."""

    count: int
    steps_each: int
    warm_up_steps: int

    @property
    def steps(self) -> int:
        """Steps of one side in all."""
        return self.warm_up_steps + self.count * self.steps_each


@dataclass(slots=True, kw_only=True)
class Turns:
    """One process of side number `place` of `num_sides`: lets it wait between blocks and takes its time.

    `barrier` is shared by all processes of all sides. `cpu_s` has the CPU seconds of each block, `step_s` the
    wall seconds of each step after the warm-up.
    """

    blocks: Blocks
    num_sides: int
    place: int
    barrier: Any
    losses: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    _phase: int = 0
    _step_began_s: float = 0.0
    _block_began_s: float = 0.0

    def after_step(self, loss: float) -> None:
        """Called at the end of each step; comes back when the next one may begin."""
        self.losses.append(loss)
        done = len(self.losses) - self.blocks.warm_up_steps
        if done > 0:
            self.step_s.append(time.perf_counter() - self._step_began_s)
        if done == 0:
            self._wait()
            self._wait_for_turn()
        elif done > 0 and done % self.blocks.steps_each == 0:
            self.cpu_s.append(time.process_time() - self._block_began_s)
            self._next_phase()
            self._wait_for_turn()
        self._step_began_s = time.perf_counter()

    def _wait_for_turn(self) -> None:
        num_phases = self.num_sides * self.blocks.count
        while self._phase < num_phases and self._phase % self.num_sides != self.place:
            self._next_phase()
        self._block_began_s = time.process_time()

    def _next_phase(self) -> None:
        self._wait()
        self._phase += 1

    def _wait(self) -> None:
        self.barrier.wait(WAIT_S)
