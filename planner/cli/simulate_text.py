"""What `echelon simulate` answers, as text and as JSON data."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from costmodels.units import format_seconds
from executors.simulate.bounds import closed_form_is_exact, closed_form_s, cycle_form_s, lower_bound_s
from executors.simulate.pipeline import StepSetup
from executors.simulate.result import LossRecord, PauseKind, ReplicaResult, SimulationResult
from executors.simulate.times import Schedule
from planner.canonical import inputs_from_documents
from planner.plan import Plan
from planner.render.summary import COLUMNS, INDENT, table
from planner.render.words import count, layers_text, percent, plain

HEADINGS = ("#", "layers", "head", "busy", "forward", "backward", "transfers", "sync", "waits")
REPLICAS_SHOWN_MAX = 8
LINKS_SHOWN_MAX = 3
QUEUED_SHOWN_FRAC = 0.001


def heading(plan: Plan, result: SimulationResult) -> str:
    """What was replayed, for the head of a picture."""
    inputs = inputs_from_documents(plan.inputs)
    steps, replicas = count(result.options.num_steps, "step"), count(len(result.replicas), "replica")
    return f"{inputs.fleet.name}: {steps} of {replicas} of {inputs.workload.model_name}"


def simulation_text(result: SimulationResult, *, every_replica: bool) -> str:
    """The replay in lines of at most 80 columns; replicas that run alike share a table."""
    steps, replicas = count(result.options.num_steps, "step"), count(len(result.replicas), "replica")
    lines = [
        *_labelled("simulated", f"{steps} of {replicas}, {format_seconds(result.elapsed_s)} of virtual time"),
        *_labelled("speed", _against(result.tokens_per_s, result.planned_tokens_per_s, "tokens/s")),
        *_labelled("how", _how(result)),
        *_link_lines(result),
        *_window_lines(result),
        *[
            line
            for replica in result.replicas
            for loss in replica.losses
            for line in _loss_lines(replica, loss)
        ],
    ]
    groups = _alike(result.replicas)
    shown = groups if every_replica else groups[:REPLICAS_SHOWN_MAX]
    for group in shown:
        lines += ["", *_replica_lines(group)]
    if len(shown) < len(groups):
        lines += ["", f"{count(len(groups) - len(shown), 'more different replica')}: -v lists them"]
    return "\n".join(plain(line) for line in lines)


def _labelled(label: str, words: str) -> list[str]:
    wrapped = textwrap.wrap(words, COLUMNS - INDENT - 1, break_on_hyphens=False) or [""]
    return [f"{label if i == 0 else '':<{INDENT}} {line}" for i, line in enumerate(wrapped)]


def _against(value: float, planned: float, unit: str) -> str:
    change = f" ({value / planned - 1.0:+.1%})" if planned > 0.0 else ""
    return f"{value:,.0f} {unit}, {planned:,.0f} planned{change}"


def _how(result: SimulationResult) -> str:
    kinds = dict.fromkeys(_transfers_text(replica.chains[0].setup) for replica in result.replicas)
    return f"schedule {result.options.schedule}, {'; '.join(kinds)}"


def _transfers_text(setup: StepSetup) -> str:
    if setup.blocking:
        return "transfers hold sender and receiver"
    ahead = setup.receives_ahead
    words = "any number of receives" if ahead is None else count(ahead, "receive") if ahead else "no receive"
    return f"overlapped transfers, {words} posted ahead"


def _link_lines(result: SimulationResult) -> list[str]:
    """The links that transfers queue for longest."""
    worth_s = QUEUED_SHOWN_FRAC * result.elapsed_s
    queued = sorted((use for use in result.links if use.queued_s > worth_s), key=lambda use: -use.queued_s)
    lines: list[str] = []
    for use in queued[:LINKS_SHOWN_MAX]:
        words = (
            f"{use.name}: in use {percent(use.held_s / result.elapsed_s)} of the time, transfers of"
            f" {count(len(use.replicas), 'replica')} queue {format_seconds(use.queued_s)} in all"
        )
        lines += _labelled("link", words)
    return lines


def _window_lines(result: SimulationResult) -> list[str]:
    if result.options.window is None:
        return []
    waited_s = sum(replica.paused_s(PauseKind.WINDOW) for replica in result.replicas)
    whole_s = sum(replica.end_s for replica in result.replicas)
    share = percent(waited_s / whole_s) if whole_s > 0.0 else "0%"
    return _labelled("windows", f"{len(result.windows)} closed, replicas wait {share} of their time for them")


def _loss_lines(replica: ReplicaResult, loss: LossRecord) -> list[str]:
    words = f"{loss.name} lost in step {loss.step} of {replica.id} at {format_seconds(loss.time_s)}: "
    if loss.resumed_s is None:
        return _labelled("loss", f"{words}the replica stops, since {loss.reason}")
    words += (
        f"goes on {format_seconds(loss.resumed_s - loss.time_s)} later with a replacement,"
        f" {count(loss.num_steps_repeated, 'step')} done again,"
        f" then {loss.tokens_per_s_after:,.0f} instead of {loss.tokens_per_s_before:,.0f} tokens/s planned"
    )
    return _labelled("loss", words)


def _alike(replicas: Sequence[ReplicaResult]) -> list[list[ReplicaResult]]:
    """Replicas with equal stages and steps together, by first appearance."""
    groups: dict[object, list[ReplicaResult]] = {}
    for replica in replicas:
        chain = replica.chains[0]
        layers = tuple(stage.layers for stage in chain.replica.stages)
        key = (chain.setup.stages, layers, chain.setup.num_micro_batches, f"{replica.step_s:.3g}")
        groups.setdefault(key, []).append(replica)
    return list(groups.values())


def _replica_lines(group: Sequence[ReplicaResult]) -> list[str]:
    replica = group[0]
    chain, alone = replica.chains[0], replica.alone[0]
    name = replica.id if len(group) == 1 else f"{replica.id} and {len(group) - 1} more like it"
    words = (
        f"{name}: step {format_seconds(replica.step_s)}, {format_seconds(replica.planned_step_s)} planned"
        f" ({replica.step_s / replica.planned_step_s - 1.0:+.1%}), stages wait {percent(alone.bubble_frac)}"
    )
    rows: list[tuple[str, ...]] = [HEADINGS]
    for stage, use in zip(chain.replica.stages, alone.uses, strict=True):
        seconds = (use.forward_s, use.backward_s, use.transfer_s, use.sync_s, use.idle_s)
        figures = tuple(format_seconds(value) if value else "-" for value in seconds)
        rows.append((str(stage.index), layers_text(stage), stage.head, percent(use.busy_frac), *figures))
    return [*_labelled("replica" if len(group) == 1 else "replicas", words), *table(rows, flexible=(2,))]


def simulation_data(result: SimulationResult) -> dict[str, Any]:
    """The replay as plain JSON values."""
    options = result.options
    return {
        "steps": options.num_steps,
        "schedule": str(options.schedule),
        "elapsed_s": result.elapsed_s,
        "tokens_per_s": result.tokens_per_s,
        "planned_tokens_per_s": result.planned_tokens_per_s,
        "replicas": [_replica_data(result, replica) for replica in result.replicas],
        "windows": [
            {"boundary": w.boundary, "index": w.index, "closed_s": w.closed_s, "replicas": list(w.replicas)}
            for w in result.windows
        ],
        "links": [
            {"name": u.name, "held_s": u.held_s, "queued_s": u.queued_s, "replicas": list(u.replicas)}
            for u in result.links
        ],
    }


def _meets_conditions(result: SimulationResult, replica: ReplicaResult) -> bool:
    """Whether the replica runs as the closed form assumes: 1f1b, overlapped, every transfer its own link."""
    chain = replica.chains[0]
    setup = chain.setup
    names = [way.link for b in setup.borders for way in (b.forward, b.backward) if way.link]
    own = {use.name for use in result.links if len(use.replicas) == 1}
    is_alone = len(set(names)) == len(names) and own.issuperset(names)
    is_overlapped = not setup.blocking and setup.receives_ahead != 0
    return setup.schedule is Schedule.ONE_FORWARD_ONE_BACKWARD and is_overlapped and is_alone


def _replica_data(result: SimulationResult, replica: ReplicaResult) -> dict[str, Any]:
    chain, alone = replica.chains[0], replica.alone[0]
    setup = chain.setup
    times = (setup.stages, setup.borders, setup.num_micro_batches)
    return {
        "id": replica.id,
        "boundary": replica.boundary,
        "executor": chain.replica.executor,
        "transfers": _transfers_text(setup),
        "planned_step_s": replica.planned_step_s,
        "step_s": replica.step_s,
        "step_alone_s": alone.step_s,
        "closed_form_s": closed_form_s(*times),
        "cycle_form_s": cycle_form_s(*times),
        "lower_bound_s": lower_bound_s(*times, blocking=setup.blocking),
        "closed_form_is_exact": _meets_conditions(result, replica) and closed_form_is_exact(*times),
        "bubble_frac": alone.bubble_frac,
        "steps_done": replica.num_steps_done,
        "end_s": replica.end_s,
        "is_stopped": replica.is_stopped,
        "lost_s": replica.lost_s,
        "paused_s": {str(kind): replica.paused_s(kind) for kind in PauseKind},
        "stages": [
            {
                "index": stage.index,
                "layers": list(stage.layers),
                "head": stage.head,
                "forward_s": use.forward_s,
                "backward_s": use.backward_s,
                "transfer_s": use.transfer_s,
                "sync_s": use.sync_s,
                "idle_s": use.idle_s,
                "busy_frac": use.busy_frac,
                "bubble_frac": use.bubble_frac,
            }
            for stage, use in zip(chain.replica.stages, alone.uses, strict=True)
        ],
        "losses": [
            {
                "name": loss.name,
                "devices": list(loss.lost_devices),
                "step": loss.step,
                "time_s": loss.time_s,
                "steps_repeated": loss.num_steps_repeated,
                "resumed_s": loss.resumed_s,
                "reason": loss.reason,
                "tokens_per_s_before": loss.tokens_per_s_before,
                "tokens_per_s_after": loss.tokens_per_s_after,
            }
            for loss in replica.losses
        ],
    }
