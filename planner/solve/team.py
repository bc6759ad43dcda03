"""Pricing shared between this process and a forked helper: each looks after every second load box.

Answers are merged in a fixed order, so a run with counted limits is repeatable. A helper holds no state that
a certificate rests on: cuts and factors come back to this process, where the larger factor counts.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from multiprocessing.connection import Connection

from planner.problem import BoundaryProblem
from planner.solve.boxes import Duals
from planner.solve.certify import Certified, certify
from planner.solve.columns import Column, Shape
from planner.solve.pricing import Pricer
from planner.solve.tables import ModeTables

POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTask:
    """Price the boxes whose last worth is at least `least_worth`.

    `learn` raises usage multipliers, `wide` looks at other angles too.
    """

    duals: Duals
    worth: float
    least_worth: float
    learn: bool
    wide: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyTask:
    """Bound the worth over all boxes, see `certify`."""

    duals: Duals
    known: float
    tolerance: float
    give_up_above: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineTask:
    """Cut boxes worth at least `least_worth` until their edges are within `ratio`."""

    least_worth: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAnswer:
    """Columns found and the largest worth among the boxes (infinite ones left out)."""

    columns: tuple[Column, ...]
    top: float
    num_dps: int


Task = RoundTask | CertifyTask | RefineTask


def perform(pricer: Pricer, task: Task, should_stop: Callable[[], bool]) -> RoundAnswer | Certified | None:
    """Carry out a task on the boxes of one pricer."""
    if isinstance(task, CertifyTask):
        return certify(
            pricer,
            task.duals,
            known=task.known,
            tolerance=task.tolerance,
            should_stop=should_stop,
            give_up_above=task.give_up_above,
        )
    if isinstance(task, RefineTask):
        pricer.refine(task.least_worth, task.ratio)
        return None
    columns: list[Column] = []
    for box in pricer.boxes:
        if box.worth >= task.least_worth:
            if should_stop():
                break
            columns += pricer.price_box(box, task.duals, task.worth, learn=task.learn)
            if task.wide:
                columns += pricer.look_around(box, task.duals)
    top = max((box.worth for box in pricer.boxes if isfinite(box.worth)), default=0.0)
    return RoundAnswer(columns=tuple(columns), top=top, num_dps=pricer.num_dps)


class _Peer:
    """The forked helper and its pipe."""

    def __init__(self, pricer: Pricer) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, far = context.Pipe()
        self.halt = context.Event()
        self.process = context.Process(target=_serve, args=(pricer, far, self.halt), daemon=True)
        self.process.start()
        far.close()


def _serve(pricer: Pricer, pipe: Connection, halt: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    checked_s = 0.0
    stopped = False

    def should_stop() -> bool:
        nonlocal checked_s, stopped
        now_s = time.monotonic()
        if not stopped and now_s - checked_s > POLL_S:
            checked_s, stopped = now_s, halt.is_set()  # type: ignore[attr-defined]
        return stopped

    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        if task is None:
            return
        checked_s, stopped = 0.0, False
        pipe.send(perform(pricer, task, should_stop))


class Team:
    """Pricing by one or two processes behind the same calls."""

    def __init__(
        self, problem: BoundaryProblem, shape: Shape, tables: Sequence[ModeTables], *, processes: int
    ) -> None:
        self.problem = problem
        self.local = Pricer(problem, shape, tables)
        self._peer: _Peer | None = None
        if processes > 1 and len(self.local.boxes) > 1:
            mine, others = self.local.boxes[0::2], self.local.boxes[1::2]
            self.local.boxes = others
            self._peer = _Peer(self.local)
            self.local.boxes = mine

    def _ask(self, task: Task, should_stop: Callable[[], bool]) -> list[RoundAnswer | Certified | None]:
        if self._peer is None:
            return [perform(self.local, task, should_stop)]
        peer = self._peer
        peer.halt.clear()
        peer.pipe.send(task)
        answers = [perform(self.local, task, should_stop)]
        while not peer.pipe.poll(POLL_S):
            if should_stop():
                peer.halt.set()
        answers.append(peer.pipe.recv())
        return answers

    def round(self, task: RoundTask, should_stop: Callable[[], bool]) -> tuple[list[Column], float]:
        """Columns of all boxes asked for, and the largest worth."""
        answers = [a for a in self._ask(task, should_stop) if isinstance(a, RoundAnswer)]
        return [c for a in answers for c in a.columns], max(a.top for a in answers)

    def certify(self, task: CertifyTask, should_stop: Callable[[], bool]) -> Certified:
        """One certificate over the boxes of both processes."""
        parts = [a for a in self._ask(task, should_stop) if isinstance(a, Certified)]
        boxes = sorted((b for part in parts for b in part.boxes), key=lambda box: (box.mode_i, box.upto_s))
        return Certified(
            factor=max(part.factor for part in parts),
            duals=task.duals,
            boxes=tuple(boxes),
            columns=tuple(c for part in parts for c in part.columns),
            complete=all(part.complete for part in parts),
        )

    def refine(self, task: RefineTask) -> None:
        """Narrower boxes where the worth is high."""
        self._ask(task, lambda: False)

    def close(self) -> None:
        """End the helper process."""
        if self._peer is not None:
            self._peer.pipe.send(None)
            self._peer.process.join()
            self._peer.pipe.close()
            self._peer = None
