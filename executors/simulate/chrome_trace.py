"""The replay as a trace in Chrome's JSON format, for chrome://tracing and Perfetto.

Format: "Trace Event Format", complete events (`ph: X`) with `ts` and `dur` in microseconds and metadata
events (`ph: M`) for names. A replica is a process; its threads are its steps, its stages, and for each border
one direction of transfers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from executors.simulate.result import ReplicaResult, SimulationResult, StepRecord
from executors.simulate.timeline import Kind, Span

EVENTS_MAX = 250_000
_STEPS_TID = 0
_FIRST_STAGE_TID = 1
_FIRST_BORDER_TID = 1001
_NAMES = {Kind.FORWARD: "F", Kind.BACKWARD: "B", Kind.ACTIVATION: "act", Kind.GRADIENT: "grad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The JSON text, and how many steps of all replicas stand in it pass by pass."""

    text: str
    num_steps_detailed: int
    num_steps: int


def render_trace(result: SimulationResult, *, events_max: int = EVENTS_MAX) -> Trace:
    """Every step and pause; passes and transfers of the earliest steps, up to about `events_max` events."""
    records = sorted(
        (
            (record.start_s, pid, record)
            for pid, replica in enumerate(result.replicas)
            for record in replica.steps
        ),
        key=lambda item: item[:2],
    )
    lines = [line for pid, replica in enumerate(result.replicas) for line in _names(pid, replica)]
    lines += [line for pid, replica in enumerate(result.replicas) for line in _outline(pid, replica)]
    num_events, detailed = len(lines), 0
    for _, pid, record in records:
        if record.timeline is None:
            continue
        num_events += len(record.timeline.work) + len(record.timeline.transfers)
        if num_events > events_max and detailed:
            break
        lines += _step_lines(pid, record)
        detailed += 1
    body = ",\n".join(lines)
    head = '{"displayTimeUnit": "ms", "otherData": {"clock": "virtual"}, "traceEvents": [\n'
    return Trace(text=f"{head}{body}\n]}}\n", num_steps_detailed=detailed, num_steps=len(records))


def _names(pid: int, replica: ReplicaResult) -> Iterator[str]:
    """Names and order of the replica and its rows."""
    yield _metadata("process_name", pid, 0, name=f"{replica.boundary}: {replica.id}")
    yield _metadata("process_sort_index", pid, 0, sort_index=pid)
    longest = max((chain.replica for chain in replica.chains), key=lambda planned: len(planned.stages))
    rows = [(_STEPS_TID, 0, "steps")]
    for stage in longest.stages:
        words = f"stage {stage.index}"
        if len(replica.chains) == 1:
            words += f" [{stage.layers[0]},{stage.layers[1]}) {stage.head}"
        rows.append((_FIRST_STAGE_TID + stage.index, 1 + 3 * stage.index, words))
    for before, after in pairwise(range(len(longest.stages))):
        down, up = _border_tids(before)
        rows.append((down, 2 + 3 * before, f"activations {before} -> {after}"))
        rows.append((up, 3 + 3 * before, f"gradients {after} -> {before}"))
    for tid, order, words in rows:
        yield _metadata("thread_name", pid, tid, name=words)
        yield _metadata("thread_sort_index", pid, tid, sort_index=order)


def _metadata(what: str, pid: int, tid: int, **args: object) -> str:
    return json.dumps({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args})


def _outline(pid: int, replica: ReplicaResult) -> Iterator[str]:
    """Steps and pauses as blocks."""
    for record in replica.steps:
        name = f"step {record.step}" + (
            " (lost)" if record.lost else " (again)" if record.is_repeated else ""
        )
        kind = "lost" if record.lost else "repeated" if record.is_repeated else "step"
        yield _complete(name, kind, pid, _STEPS_TID, record.start_s, record.end_s)
    for pause in replica.pauses:
        yield _complete(pause.kind, pause.kind, pid, _STEPS_TID, pause.start_s, pause.end_s)


def _step_lines(pid: int, record: StepRecord) -> Iterator[str]:
    assert record.timeline is not None
    for span in _until(record.timeline.work, record):
        name = f"{_NAMES[span.kind]}{span.micro_batch}" if span.micro_batch >= 0 else str(span.kind)
        yield _span_line(name, pid, _FIRST_STAGE_TID + span.row, span, record)
    for span in _until(record.timeline.transfers, record):
        tid = _border_tids(span.row)[span.kind is Kind.GRADIENT]
        yield _span_line(f"{_NAMES[span.kind]}{span.micro_batch}", pid, tid, span, record)


def _until(spans: Sequence[Span], record: StepRecord) -> Iterator[Span]:
    """What was begun before the step ended or was cut off."""
    end_s = record.end_s - record.start_s
    for span in spans:
        if span.start_s < end_s:
            yield span if span.end_s <= end_s else span._replace(end_s=end_s)


def _span_line(name: str, pid: int, tid: int, span: Span, record: StepRecord) -> str:
    start_s, end_s = record.start_s + span.start_s, record.start_s + span.end_s
    args = f'{{"step": {record.step}, "micro_batch": {span.micro_batch}}}'
    return _complete(name, span.kind, pid, tid, start_s, end_s, args)


def _complete(
    name: str, kind: str, pid: int, tid: int, start_s: float, end_s: float, args: str = "{}"
) -> str:
    """One `X` event; names here need no escapes."""
    ts, end = round(start_s * 1e6, 3), round(end_s * 1e6, 3)
    return (
        f'{{"ph": "X", "name": "{name}", "cat": "{kind}", "pid": {pid}, "tid": {tid},'
        f' "ts": {ts:.3f}, "dur": {end - ts:.3f}, "args": {args}}}'
    )


def _border_tids(border: int) -> tuple[int, int]:
    """The rows of a border's activations and gradients."""
    return _FIRST_BORDER_TID + 2 * border, _FIRST_BORDER_TID + 2 * border + 1
