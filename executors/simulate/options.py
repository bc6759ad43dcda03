"""What a simulation may be asked for, and whether a plan has what is asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from costmodels.fleet import Fleet
from executors.simulate.times import Schedule
from planner.faults import nearest
from planner.plan import Plan
from policies.errors import Fault, InputError

STEPS_MAX = 1_000_000


class Transfers(StrEnum):
    """How activations and gradients pass between stages.

    `auto` is what the replica's executor does: `blocking` for DeepSpeed, else overlapped with one receive of
    a kind posted ahead. `overlapped` has all receives posted ahead, `on-receive` none: a transfer starts when
    its receiver gets there. `blocking` holds sender and receiver.
    """

    AUTO = "auto"
    OVERLAPPED = "overlapped"
    ON_RECEIVE = "on-receive"
    BLOCKING = "blocking"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A device, or all of a host, is lost in the middle of a step of its replica. Steps count from 0."""

    name: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """Replicas of a boundary meet at windows and go on together.

    A replica comes to the window after `num_steps` steps, or with `seconds` after the first step that ends
    past the next multiple of them. A window closes once `quorum` replicas have come (None: all that still
    run) and takes `exchange_s`; who comes later comes to the next one.
    """

    num_steps: int | None = None
    seconds: float | None = None
    quorum: int | None = None
    exchange_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """What is replayed. A loss is noticed after `detect_s`, and work goes on `restart_s` later."""

    num_steps: int = 10
    schedule: Schedule = Schedule.ONE_FORWARD_ONE_BACKWARD
    transfers: Transfers = Transfers.AUTO
    losses: tuple[Loss, ...] = ()
    checkpoint_every: int = 50
    checkpoint_s: float = 0.0
    detect_s: float = 5.0
    restart_s: float = 30.0
    window: WindowRule | None = None


def require_options(plan: Plan, fleet: Fleet, options: SimulationOptions) -> None:
    """Refuse options that mean nothing for this plan.

    Raises:
        InputError: `simulation-options` with every fault.
    """
    faults = _number_faults(options)
    faults += _loss_faults(plan, fleet, options)
    if options.window is not None:
        faults += _window_faults(plan, options.window)
    if faults:
        number = "1 option means" if len(faults) == 1 else f"{len(faults)} options mean"
        raise InputError("simulation-options", f"{number} nothing for this plan", faults=faults)


def _number_faults(options: SimulationOptions) -> list[Fault]:
    faults: list[Fault] = []
    if not 1 <= options.num_steps <= STEPS_MAX:
        faults.append(Fault(place="steps", value=str(options.num_steps), limit=f"1 to {STEPS_MAX:,}"))
    if options.checkpoint_every < 1:
        faults.append(Fault(place="checkpoint-every", value=str(options.checkpoint_every), limit="1 or more"))
    for name in ("checkpoint_s", "detect_s", "restart_s"):
        seconds = getattr(options, name)
        if not (isfinite(seconds) and seconds >= 0.0):
            place = f"{name.removesuffix('_s')}-time"
            faults.append(Fault(place=place, value=repr(seconds), limit="finite seconds of 0 or more"))
    return faults


def _loss_faults(plan: Plan, fleet: Fleet, options: SimulationOptions) -> list[Fault]:
    running = [d for b in plan.boundaries for r in b.replicas for stage in r.stages for d in stage.devices]
    hosts = {fleet.device_by_id[d].host_id for d in running}
    faults: list[Fault] = []
    for loss in options.losses:
        place = f"fail {loss.name}@{loss.step}"
        if loss.name not in hosts and loss.name not in running:
            known = loss.name in fleet.device_by_id or loss.name in fleet.host_by_id
            faults.append(
                Fault(
                    place=place,
                    value="runs nothing in this plan" if known else "no such device or host",
                    limit="a device or host that runs a stage",
                    hint=nearest(loss.name, [*running, *hosts]),
                )
            )
        if not 0 <= loss.step < options.num_steps:
            limit = f"a step from 0 to {options.num_steps - 1}"
            faults.append(Fault(place=place, value=f"step {loss.step}", limit=limit, hint="raise --steps"))
    for (name, step), count in Counter((loss.name, loss.step) for loss in options.losses).items():
        if count > 1:
            faults.append(Fault(place=f"fail {name}@{step}", value=f"{count} times", limit="once"))
    return faults


def _window_faults(plan: Plan, window: WindowRule) -> list[Fault]:
    faults: list[Fault] = []
    if (window.num_steps is None) == (window.seconds is None):
        value = "neither" if window.num_steps is None else "both"
        faults.append(Fault(place="window-steps, window-time", value=value, limit="one of the two"))
    if window.num_steps is not None and window.num_steps < 1:
        faults.append(Fault(place="window-steps", value=str(window.num_steps), limit="1 or more"))
    if window.seconds is not None and not (isfinite(window.seconds) and window.seconds > 0.0):
        faults.append(Fault(place="window-time", value=repr(window.seconds), limit="finite, above 0"))
    if not (isfinite(window.exchange_s) and window.exchange_s >= 0.0):
        limit = "finite seconds of 0 or more"
        faults.append(Fault(place="exchange-time", value=repr(window.exchange_s), limit=limit))
    fewest = min((len(boundary.replicas) for boundary in plan.boundaries), default=0)
    if window.quorum is not None and not 1 <= window.quorum <= fewest:
        limit = f"1 to {fewest}, the replicas of the smallest boundary"
        faults.append(Fault(place="quorum", value=str(window.quorum), limit=limit))
    return faults
