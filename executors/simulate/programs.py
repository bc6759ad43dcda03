"""What each stage does, in order: its passes, and with blocking transfers when it meets whom.

A program is a list of (action, micro-batch).
"""

from __future__ import annotations

from enum import IntEnum

from executors.simulate.times import Schedule


class Action(IntEnum):
    """One entry of a program. Sends and receives stand in programs only where transfers block."""

    FORWARD = 0
    BACKWARD = 1
    SEND_ACTIVATION = 2
    RECEIVE_ACTIVATION = 3
    SEND_GRADIENT = 4
    RECEIVE_GRADIENT = 5


Program = list[tuple[Action, int]]


def compute_program(in_flight: int, num_micro_batches: int) -> Program:
    """`in_flight` forward passes, then backward and forward in turn, then the backward passes that are left.

    With `in_flight` micro-batches all forward passes come first.
    """
    ahead = min(in_flight, num_micro_batches)
    program: Program = [(Action.FORWARD, i) for i in range(ahead)]
    for i in range(num_micro_batches - ahead):
        program += [(Action.BACKWARD, i), (Action.FORWARD, ahead + i)]
    return program + [(Action.BACKWARD, i) for i in range(num_micro_batches - ahead, num_micro_batches)]


def blocking_program(stage: int, num_stages: int, num_micro_batches: int, schedule: Schedule) -> Program:
    """The passes of a stage with its sends and receives, neighbours in orders that never wait in a circle."""
    if schedule is Schedule.GPIPE:
        return _blocking_gpipe(stage, num_stages, num_micro_batches)
    return _blocking_1f1b(stage, num_stages, num_micro_batches)


def _blocking_gpipe(stage: int, num_stages: int, num_micro_batches: int) -> Program:
    """Receive, compute, send: first all forward passes, then all backward passes."""
    first, last = stage == 0, stage == num_stages - 1
    program: Program = []
    for i in range(num_micro_batches):
        program += [] if first else [(Action.RECEIVE_ACTIVATION, i)]
        program.append((Action.FORWARD, i))
        program += [] if last else [(Action.SEND_ACTIVATION, i)]
    for i in range(num_micro_batches):
        program += [] if last else [(Action.RECEIVE_GRADIENT, i)]
        program.append((Action.BACKWARD, i))
        program += [] if first else [(Action.SEND_GRADIENT, i)]
    return program


def _blocking_1f1b(stage: int, num_stages: int, num_micro_batches: int) -> Program:
    """The order of DeepSpeed's `TrainSchedule` (deepspeed/runtime/pipe/schedule.py, 0.19).

    In slot t a stage runs forward where t + stage is even, else backward. What a pass made is sent one slot
    later, beside the receive that the next pass needs: a pair of neighbours exchanges both ways in one order,
    gradient first.
    """
    first, last = stage == 0, stage == num_stages - 1
    program: Program = []
    made = -1
    for slot in range(2 * (num_micro_batches + num_stages - 1)):
        forward = (slot + stage) % 2 == 0
        now = (slot - stage) // 2 if forward else (slot + stage + 1) // 2 - num_stages
        runs, has_made = 0 <= now < num_micro_batches, 0 <= made < num_micro_batches
        if forward and not first:
            program += [(Action.SEND_GRADIENT, made)] if has_made else []
            program += [(Action.RECEIVE_ACTIVATION, now)] if runs else []
        if not forward and not last:
            program += [(Action.RECEIVE_GRADIENT, now)] if runs else []
            program += [(Action.SEND_ACTIVATION, made)] if has_made else []
        if runs:
            program.append((Action.FORWARD if forward else Action.BACKWARD, now))
        made = now
    return program
