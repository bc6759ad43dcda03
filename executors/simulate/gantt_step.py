"""One step of a chain as rows: what each stage does, and when the links between two stages are held."""

from __future__ import annotations

from collections.abc import Sequence

from costmodels.units import format_seconds
from executors.simulate.planned import Chain
from executors.simulate.time_axis import AXIS_HEIGHT_PX, TimeAxis
from executors.simulate.timeline import Kind, Span, StageUse, StepTimeline
from planner.render.ink import Block, rect, text, titled
from planner.render.measure import fit, text_width
from planner.render.palette import SIZES
from planner.render.words import layers_text

LABEL_PX = 150.0
SHARE_PX = 46.0
STAGE_PX = 18.0
LINK_PX = 4.0
GAP_PX = 3.0
NARROW_PX = 1.5
TITLE_PX = 20.0
MIXED, NUMBERED = "mixed", "numbered"
CLASSES = {
    Kind.FORWARD: "f0",
    Kind.BACKWARD: "f1",
    Kind.ACTIVATION: "f2",
    Kind.GRADIENT: "f4",
    Kind.SYNC: "f3",
    Kind.UPDATE: "f3",
    MIXED: "f5",
    NUMBERED: "f0",
}


def step_block(title: str, chain: Chain, timeline: StepTimeline, width: float) -> tuple[Block, set[str]]:
    """The rows under a title, and the kinds of marks that they use."""
    axis = TimeAxis(left_px=LABEL_PX, width_px=width - LABEL_PX - SHARE_PX, end_s=timeline.step_s)
    work = _by_row(timeline.work, timeline.num_stages)
    moved = _by_row(timeline.transfers, max(0, timeline.num_stages - 1))
    used: set[str] = set()
    body: list[str] = []
    y = TITLE_PX
    for s, use in enumerate(timeline.uses):
        body.append(_stage_row(chain, s, use, work[s], axis, y, used))
        y += STAGE_PX + GAP_PX
        if s + 1 < timeline.num_stages and not chain.setup.blocking:
            body.append(_link_rows(s, moved[s], axis, y, used))
            y += 2 * LINK_PX + 1.0 + GAP_PX
    heading = [
        text(0, 12, title, "small b"),
        text(width, 12, "busy", "tiny muted", anchor="end"),
    ]
    rows = [*axis.grid(TITLE_PX, y), *body, *axis.labels(y)]
    return Block(width=width, height=y + AXIS_HEIGHT_PX, body=(*heading, *rows)), used


def block_height(num_stages: int, *, blocking: bool) -> float:
    """Pixels that `step_block` takes."""
    links = 0.0 if blocking else (num_stages - 1) * (2 * LINK_PX + 1.0 + GAP_PX)
    return TITLE_PX + num_stages * (STAGE_PX + GAP_PX) + links + AXIS_HEIGHT_PX


def _by_row(spans: Sequence[Span], num_rows: int) -> list[list[Span]]:
    rows: list[list[Span]] = [[] for _ in range(num_rows)]
    for span in spans:
        rows[span.row].append(span)
    return rows


def _stage_row(
    chain: Chain, s: int, use: StageUse, spans: Sequence[Span], axis: TimeAxis, y: float, used: set[str]
) -> str:
    """A bar of passes on a ground that shows where the stage waits, with its name and its share of work."""
    stage = chain.replica.stages[s]
    name = fit(f"{s} {layers_text(stage)} {stage.head}", LABEL_PX - 8, SIZES["small"])
    body = [rect(axis.left_px, y, axis.width_px, STAGE_PX, "idle")]
    number_px = text_width(str(chain.setup.num_micro_batches - 1), SIZES["cell"]) + 2
    for kind, start_s, end_s, i in _merged(spans, axis):
        left, right = axis.x(start_s), axis.x(end_s)
        used.add(kind)
        body.append(rect(left, y + 1, right - left, STAGE_PX - 2, CLASSES[kind]))
        if kind in (Kind.FORWARD, Kind.BACKWARD) and i >= 0 and number_px <= right - left:
            used.add(NUMBERED)
            body.append(text((left + right) / 2, y + 12.4, str(i), "cell", anchor="middle"))
    tip = (
        f"stage {s}, layers {layers_text(stage)}, {stage.head}\n"
        f"forward {format_seconds(use.forward_s)}, backward {format_seconds(use.backward_s)},"
        f" transfers {format_seconds(use.transfer_s)}, sync and update {format_seconds(use.sync_s)},"
        f" waiting {format_seconds(use.idle_s)}"
    )
    sides = [
        text(0, y + 12.8, name, "small"),
        text(
            axis.left_px + axis.width_px + SHARE_PX, y + 12.8, f"{use.busy_frac:.0%}", "small", anchor="end"
        ),
    ]
    return titled(tip, body) + "".join(sides)


def _link_rows(border: int, spans: Sequence[Span], axis: TimeAxis, y: float, used: set[str]) -> str:
    """Two thin lines between two stages: activations above, gradients below."""
    body: list[str] = []
    for line_i, kind in enumerate((Kind.ACTIVATION, Kind.GRADIENT)):
        of_kind = [span for span in spans if span.kind is kind]
        for _, start_s, end_s, _ in _merged(of_kind, axis, mixed=kind):
            used.add(kind)
            left, right = axis.x(start_s), axis.x(end_s)
            top = y + line_i * (LINK_PX + 1.0)
            body.append(rect(left, top, max(right - left, 0.6), LINK_PX, CLASSES[kind]))
    held = sum(span.end_s - span.start_s for span in spans)
    return titled(f"between stages {border} and {border + 1}: links held {format_seconds(held)}", body)


def _merged(spans: Sequence[Span], axis: TimeAxis, mixed: str = MIXED) -> list[tuple[str, float, float, int]]:
    """(kind, start, end, micro-batch) to draw: neighbours too narrow to tell apart become one block."""
    drawn: list[tuple[str, float, float, int]] = []
    per_s = axis.width_px / axis.end_s if axis.end_s > 0.0 else 0.0
    for kind, _, i, start_s, end_s in sorted(spans, key=lambda span: span.start_s):
        narrow = (end_s - start_s) * per_s < NARROW_PX
        if not narrow:
            drawn.append((kind, start_s, end_s, i))
        elif drawn and drawn[-1][3] == -2 and (start_s - drawn[-1][2]) * per_s < NARROW_PX:
            before = drawn[-1]
            shown = before[0] if before[0] == kind else mixed
            drawn[-1] = (shown, before[1], max(end_s, before[2]), -2)
        else:
            drawn.append((kind, start_s, end_s, -2))
    return drawn
