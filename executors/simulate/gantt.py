"""The replay as an SVG picture: the whole run, then one step of each different chain."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from costmodels.units import format_seconds
from executors.simulate import gantt_run, gantt_step
from executors.simulate.planned import Chain
from executors.simulate.result import PauseKind, ReplicaResult, SimulationResult
from executors.simulate.timeline import Kind, StepTimeline
from planner.render.cells import hatching
from planner.render.ink import Block, extent, flow, number, placed, polygon, rect, text
from planner.render.measure import fit, text_width
from planner.render.palette import SIZES, style_sheet
from planner.render.words import count, plain

WIDTH_PX = 1240.0
MARGIN_PX = 20.0
PANEL_GAP_PX = 18.0
LEGEND_ROW_PX = 22.0
LEGEND_GAP_PX = 18.0
MARK_PX = 16.0
# Further chains are left out once the picture is this high.
HEIGHT_MAX_PX = 1800.0
_WORDS = {
    Kind.FORWARD: "forward",
    gantt_step.NUMBERED: "with its micro-batch",
    Kind.BACKWARD: "backward",
    gantt_step.MIXED: "too narrow to tell apart",
    Kind.ACTIVATION: "activations on a link",
    Kind.GRADIENT: "gradients on a link",
    Kind.UPDATE: "gradient sync and optimiser",
    gantt_run.STEP: "step",
    gantt_run.REPLACED: "step of the replacement",
    gantt_run.REPEATED: "step done again",
    gantt_run.LOST: "step cut off",
    gantt_run.LOSS: "loss",
    PauseKind.DETECT: "not noticed yet",
    PauseKind.RESTART: "restart",
    PauseKind.CHECKPOINT: "checkpoint",
    PauseKind.WINDOW: "waiting for a window",
    PauseKind.EXCHANGE: "window's exchange",
}


def render_gantt(result: SimulationResult, heading: str) -> str:
    """The picture under a heading; the same result gives the same bytes."""
    panels: list[Block] = []
    used: set[str] = set()
    if max(len(replica.steps) for replica in result.replicas) > 1:
        panel, marks = gantt_run.run_block(result, WIDTH_PX)
        panels.append(panel)
        used |= marks
    height = sum(panel.height for panel in panels)
    groups = list(_groups(result))
    num_drawn = 0
    for title, chain, timeline in groups:
        needed = gantt_step.block_height(timeline.num_stages, blocking=chain.setup.blocking)
        if num_drawn and height + needed > HEIGHT_MAX_PX:
            break
        panel, marks = gantt_step.step_block(title, chain, timeline, WIDTH_PX)
        panels.append(panel)
        used |= marks
        height += needed + PANEL_GAP_PX
        num_drawn += 1
    top = _top(result, heading)
    legend = _legend(used, idle=num_drawn > 0)
    blocks = [top, legend, *panels]
    if num_drawn < len(groups):
        words = f"{count(len(groups) - num_drawn, 'more chain')} not drawn; the trace has all of them"
        blocks.append(Block(width=WIDTH_PX, height=16.0, body=(text(0, 12, words, "small muted"),)))
    return _document(blocks, heading)


def _top(result: SimulationResult, heading: str) -> Block:
    size = SIZES["h1"]
    lines = [f"{_speed(result)}; {_how(result)}"]
    body = [text(0, 16, fit(heading, WIDTH_PX, size, bold=True), "h1")]
    body += [
        text(0, 38 + 18 * i, fit(words, WIDTH_PX, SIZES["body"]), "body") for i, words in enumerate(lines)
    ]
    return Block(width=WIDTH_PX, height=30.0 + 18.0 * len(lines), body=tuple(body))


def _speed(result: SimulationResult) -> str:
    planned = result.planned_tokens_per_s
    change = f" ({result.tokens_per_s / planned - 1.0:+.1%})" if planned > 0.0 else ""
    return f"{result.tokens_per_s:,.0f} tokens/s simulated, {planned:,.0f} planned{change}"


def _how(result: SimulationResult) -> str:
    modes = dict.fromkeys(
        "blocking" if replica.chains[0].setup.blocking else "overlapped" for replica in result.replicas
    )
    return f"schedule {result.options.schedule}, {' and '.join(modes)} transfers"


def _groups(result: SimulationResult) -> Iterator[tuple[str, Chain, StepTimeline]]:
    """One step of each different chain with its title; replicas that run alike share one."""
    found: dict[object, list[tuple[ReplicaResult, int]]] = {}
    for replica in result.replicas:
        for chain_i, (chain, alone) in enumerate(zip(replica.chains, replica.alone, strict=True)):
            ways = tuple((b.forward.total_s, b.backward.total_s) for b in chain.setup.borders)
            key = (chain.setup.stages, ways, chain.setup.num_micro_batches, alone.step_s, chain_i > 0)
            found.setdefault(key, []).append((replica, chain_i))
    for alike in found.values():
        (replica, chain_i), number_alike = alike[0], len(alike)
        records = (r for r in replica.steps if r.chain_i == chain_i and not r.lost and r.timeline is not None)
        record = next(records, None)
        timeline = replica.alone[chain_i] if record is None else record.timeline
        assert timeline is not None
        chain = replica.chains[chain_i]
        name = replica.id if number_alike == 1 else f"{replica.id} and {number_alike - 1} more like it"
        name += ", after its loss" if chain_i else ""
        step = "a step" if record is None else f"step {record.step}"
        title = (
            f"{name}: {step}, {format_seconds(timeline.step_s)} simulated,"
            f" {format_seconds(chain.replica.step_time_s)} planned, stages wait {timeline.bubble_frac:.0%}"
        )
        yield fit(title, WIDTH_PX - 60, SIZES["small"], bold=True), chain, timeline


def _legend(used: set[str], *, idle: bool) -> Block:
    """The marks that the picture uses, in the order of a step and then of a run."""
    kinds = {Kind.UPDATE if kind == Kind.SYNC else kind for kind in used}
    items = [_item(_mark(kind), words) for kind, words in _WORDS.items() if kind in kinds]
    if idle:
        items.append(_item([rect(0, 4, MARK_PX, 13, "idle")], "waiting for a neighbour"))
    spots = flow([(item.width, LEGEND_ROW_PX) for item in items], WIDTH_PX, LEGEND_GAP_PX, 0.0)
    width, height = extent(spots, [(item.width, LEGEND_ROW_PX) for item in items])
    body = tuple(placed(item, x, y) for item, (x, y) in zip(items, spots, strict=True))
    return Block(width=width, height=height, body=body)


def _mark(kind: str) -> list[str]:
    if kind == gantt_run.LOSS:
        return [polygon([(3, 4), (13, 4), (8, 14)], "wiretip")]
    box = [rect(0, 4, MARK_PX, 13, (gantt_step.CLASSES | gantt_run.CLASSES)[kind])]
    if kind == gantt_run.LOST:
        box.append(f'<g transform="translate(0 4)">{hatching(4, MARK_PX, 13)}</g>')
    if kind == gantt_step.NUMBERED:
        box.append(text(MARK_PX / 2, 14, "3", "cell", anchor="middle"))
    return box


def _item(mark: list[str], words: str) -> Block:
    width = MARK_PX + 6 + text_width(words, SIZES["small"])
    return Block(width=width, height=LEGEND_ROW_PX, body=(*mark, text(MARK_PX + 6, 15, words, "small")))


def _document(blocks: list[Block], heading: str) -> str:
    body: list[str] = []
    y = MARGIN_PX
    for block in blocks:
        body.append(placed(block, MARGIN_PX, y))
        y += block.height + PANEL_GAP_PX
    width, height = WIDTH_PX + 2 * MARGIN_PX, y - PANEL_GAP_PX + MARGIN_PX
    size = f'width="{number(width)}" height="{number(height)}" viewBox="0 0 {number(width)} {number(height)}"'
    title = escape(plain(f"Gantt chart: {heading}"), quote=False)
    return "\n".join(
        (
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="gantt-title">',
            f'<title id="gantt-title">{title}</title>',
            f"<style>{style_sheet()}</style>",
            rect(0, 0, width, height, "page"),
            *body,
            "</svg>\n",
        )
    )
