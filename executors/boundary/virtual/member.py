"""One simulated participant: its copy, its unreleased updates, and steps taken lazily up to now."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from executors.boundary.outer.exchange import LocalCopy
from executors.boundary.outer.local import LocalTask, LocalTraining, Proximal
from executors.boundary.outer.vectors import Vector

# A step counts as done this share of a step early, so that times computed in two ways agree.
_EPSILON_STEPS = 1e-6


@dataclass(slots=True, kw_only=True)
class Member:
    """`num_steps` counts since the last commit; `running_since_s` is None while it waits or is away."""

    boundary: int
    participant: int
    step_s: float
    num_examples: float
    copy: LocalCopy
    base_version: int = 0
    num_updates: int = 0
    num_steps: int = 0
    total_steps: int = 0
    is_waiting: bool = False
    is_up: bool = True
    awaits_outer_step: bool = False
    has_missed_pull: bool = False
    running_since_s: float | None = None
    turn: int = 0
    unreleased: dict[int, Vector] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The name its windows know it by."""
        return f"{self.boundary}/{self.participant}"

    def advance(self, now_s: float, *, steps_max: int, train: LocalTraining, proximal: Proximal) -> None:
        """Take the whole steps that fit before now, at most up to `steps_max` since the commit."""
        if self.running_since_s is None:
            return
        num_done = math.floor((now_s - self.running_since_s) / self.step_s + _EPSILON_STEPS)
        num_done = min(num_done, steps_max - self.num_steps)
        if num_done <= 0:
            return
        task = LocalTask(
            boundary=self.boundary,
            participant=self.participant,
            start_P=self.copy.now_P,
            anchor_P=self.copy.anchor_P,
            num_steps=num_done,
            proximal=proximal,
        )
        self.copy = self.copy.move_to(train(task))
        self.num_steps += num_done
        self.total_steps += num_done
        self.running_since_s += num_done * self.step_s

    def take_update(self) -> tuple[int, Vector]:
        """The next update id and its delta; the copy keeps training from here."""
        self.copy, delta_P = self.copy.send()
        self.num_updates += 1
        self.unreleased[self.num_updates] = delta_P
        self.num_steps = 0
        self.is_waiting = True
        return self.num_updates, delta_P
