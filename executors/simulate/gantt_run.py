"""The whole replay as rows, one for each replica: steps, checkpoints, windows, and what a loss costs."""

from __future__ import annotations

from collections.abc import Sequence

from costmodels.units import format_seconds
from executors.simulate.gantt_step import LABEL_PX, SHARE_PX
from executors.simulate.result import PauseKind, ReplicaResult, SimulationResult, StepRecord
from executors.simulate.time_axis import AXIS_HEIGHT_PX, TimeAxis
from planner.render.cells import hatching
from planner.render.ink import Block, number, polygon, rect, text, titled
from planner.render.measure import fit, text_width
from planner.render.palette import SIZES

ROW_PX = 20.0
GAP_PX = 4.0
TITLE_PX = 20.0
NARROW_PX = 2.0
REPLICAS_MAX = 40
STEP, REPLACED, REPEATED, LOST, LOSS = "step", "replaced", "repeated", "lost", "loss"
CLASSES = {
    STEP: "t0",
    REPLACED: "t1",
    REPEATED: "t2",
    LOST: "hub",
    PauseKind.CHECKPOINT: "busy",
    PauseKind.WINDOW: "idle free",
    PauseKind.EXCHANGE: "f3",
    PauseKind.DETECT: "crossing",
    PauseKind.RESTART: "f5",
}


def run_block(result: SimulationResult, width: float) -> tuple[Block, set[str]]:
    """A row per replica over all of the time, and the kinds of marks that it uses."""
    axis = TimeAxis(left_px=LABEL_PX, width_px=width - LABEL_PX - SHARE_PX, end_s=result.elapsed_s)
    shown = result.replicas[:REPLICAS_MAX]
    used: set[str] = set()
    rows: list[str] = []
    y = TITLE_PX
    for replica in shown:
        rows.append(_row(replica, axis, y, used))
        y += ROW_PX + GAP_PX
    body = [
        text(0, 12, "the whole replay", "small b"),
        text(width, 12, "training", "tiny muted", anchor="end"),
        *axis.grid(TITLE_PX, y),
        *rows,
        *axis.labels(y),
    ]
    y += AXIS_HEIGHT_PX
    if len(result.replicas) > len(shown):
        y += 14.0
        body.append(
            text(0, y - 2, f"{len(result.replicas) - len(shown)} more replicas not drawn", "tiny muted")
        )
    return Block(width=width, height=y, body=tuple(body)), used


def _row(replica: ReplicaResult, axis: TimeAxis, y: float, used: set[str]) -> str:
    body = [rect(axis.left_px, y, axis.width_px, ROW_PX, "site")]
    for first, last in _runs(replica.steps, axis):
        kind = _kind(first)
        used.add(kind)
        left, right = axis.x(first.start_s), axis.x(last.end_s)
        body.append(rect(left, y + 1, max(0.5, right - left - 0.5), ROW_PX - 2, CLASSES[kind]))
        if kind == LOST and right - left > 3:
            marks = hatching(4, right - left - 0.5, ROW_PX - 2)
            body.append(f'<g transform="translate({number(left)} {number(y + 1)})">{marks}</g>')
        words = str(first.step) if first is last else f"{first.step}-{last.step}"
        if text_width(words, SIZES["cell"]) + 3 <= right - left and kind != LOST:
            body.append(text((left + right) / 2, y + 13.4, words, "cell", anchor="middle"))
    for pause in replica.pauses:
        used.add(pause.kind)
        left, right = axis.x(pause.start_s), axis.x(pause.end_s)
        body.append(rect(left, y + 1, max(0.8, right - left), ROW_PX - 2, CLASSES[pause.kind]))
    for loss in replica.losses:
        used.add(LOSS)
        x = axis.x(loss.time_s)
        tip = f"{loss.name} lost at {format_seconds(loss.time_s)}: " + (
            loss.reason or f"replaced, {loss.num_steps_repeated} steps repeated"
        )
        mark = [polygon([(x - 4, y - 3), (x + 4, y - 3), (x, y + 5)], "wiretip")]
        body.append(titled(tip, [*mark, rect(x - 0.5, y, 1, ROW_PX, "crossing")]))
    label = fit(replica.id, LABEL_PX - 8, SIZES["small"])
    trained_s = sum(r.end_s - r.start_s for r in replica.steps if not (r.lost or r.is_repeated))
    share = trained_s / axis.end_s if axis.end_s > 0.0 else 0.0
    sides = [
        text(0, y + 14, label, "small"),
        text(axis.left_px + axis.width_px + SHARE_PX, y + 14, f"{share:.0%}", "small", anchor="end"),
    ]
    tip = (
        f"{replica.id}: {replica.num_steps_done} steps, {format_seconds(replica.step_s)} each,"
        f" done at {format_seconds(replica.end_s)}"
    )
    return titled(tip, body) + "".join(sides)


def _kind(record: StepRecord) -> str:
    if record.lost:
        return LOST
    if record.is_repeated:
        return REPEATED
    return REPLACED if record.chain_i else STEP


def _runs(records: Sequence[StepRecord], axis: TimeAxis) -> list[tuple[StepRecord, StepRecord]]:
    """Steps to draw, as (first, last): neighbours of a kind that are too narrow become one block."""
    runs: list[tuple[StepRecord, StepRecord]] = []
    for record in records:
        narrow = axis.x(record.end_s) - axis.x(record.start_s) < NARROW_PX
        if runs and narrow:
            first, last = runs[-1]
            touches = axis.x(record.start_s) - axis.x(last.end_s) < 0.5
            last_narrow = axis.x(last.end_s) - axis.x(last.start_s) < NARROW_PX
            if touches and last_narrow and _kind(first) == _kind(record):
                runs[-1] = (first, record)
                continue
        runs.append((record, record))
    return runs
