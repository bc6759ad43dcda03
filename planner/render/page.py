"""The plan as one HTML file that needs nothing else: no script, no font, no clock; same plan, same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from costmodels.units import format_bytes, format_seconds
from planner.plan import Failover
from planner.render.palette import DARK, FONT, LIGHT, Scheme
from planner.render.svg import figure
from planner.render.view import BoundaryView, PlanView, ReplicaView, StageView
from planner.render.words import (
    alike,
    bound_sentence,
    count,
    counted_note,
    device_ranges,
    headline,
    idle_groups,
    layers_text,
    numbers_text,
    percent,
    plain,
    reason_text,
    strategy_text,
    used_text,
    value_text,
)

OPEN_STAGES_MAX = 40


def render_html(view: PlanView) -> str:
    """The whole page: figures, picture, tables of replicas, stages and idle devices, certificate."""
    title = _safe(f"{view.fleet.name}: training topology")
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{title}</title>",
        f"<style>{_style_sheet()}</style>",
        "</head>",
        "<body>",
        *_heading(view),
        '<div class="picture" role="region" aria-label="Picture of the plan" tabindex="0">',
        figure(view, heading=False),
        "</div>",
        *_replicas(view),
        *_stages(view),
        *_idle(view),
        *_failovers(view),
        *_certificate(view),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _safe(words: object) -> str:
    return escape(plain(str(words)))


def _style_sheet() -> str:
    fixed = (
        f"body{{font:14px/1.5 {FONT};margin:0 auto;padding:24px 20px 48px;max-width:1720px}}"
        "h1{font-size:26px;line-height:1.2;margin:0 0 2px}h2{font-size:18px;margin:36px 0 8px}"
        "h3{font-size:15px;margin:20px 0 4px}p{margin:4px 0}.lede{font-size:16px}"
        "dl.figures{display:flex;flex-wrap:wrap;gap:8px 36px;margin:16px 0 20px}"
        "dl.figures dt,dl.facts dt{font-size:12px}dl.figures dd{margin:0;font-size:19px;font-weight:600}"
        "dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:2px 20px}dl.facts dd{margin:0}"
        "dl.facts dd{overflow-wrap:anywhere}"
        ".picture{overflow-x:auto}.picture svg{display:block}"
        ".wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
        "th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid;vertical-align:top;"
        "white-space:nowrap}td.long{white-space:normal;min-width:16em}"
        "th{font-size:12px;font-weight:600}th.n,td.n{text-align:right}caption{text-align:left;padding:4px 0}"
        "summary{cursor:pointer;padding:4px 0;font-weight:600}code{font-size:13px}"
        ".bar{display:inline-block;width:64px;height:9px;border:1px solid;border-radius:2px;margin-right:8px}"
        ".bar i{display:block;height:100%}"
    )
    return f"{fixed}{_colours(LIGHT)}@media (prefers-color-scheme:dark){{{_colours(DARK)}}}"


def _colours(scheme: Scheme) -> str:
    blue = scheme.tiers[0]
    return (
        f"body{{background:{scheme.page};color:{scheme.ink}}}"
        f"dt,th,caption,.quiet{{color:{scheme.muted}}}th,td{{border-color:{scheme.site_edge}}}"
        f".bar{{border-color:{blue.edge}}}.bar i{{background:{blue.fill}}}"
    )


def _heading(view: PlanView) -> list[str]:
    certificate = view.certificate
    workload = view.inputs.workload
    excess = certificate.excess_frac
    sentence = bound_sentence(certificate)
    figures = [
        ("value", value_text(certificate)),
        ("bound", "none" if certificate.bound is None else f"{certificate.bound:,.6g}"),
        ("excess", "unknown" if excess is None else f"{excess:.2%}"),
        ("devices in use", used_text(view.boundaries)),
    ]
    if view.usd_per_hour > 0.0:
        figures.append(("price", f"{view.usd_per_hour:,.2f} USD/h"))
    job = f"{workload.model_name}, {count(workload.num_layers, 'layer')}, {workload.num_params:,} parameters"
    return [
        "<header>",
        f"<h1>{_safe(view.fleet.name)}</h1>",
        f'<p class="lede">{_safe(headline(view))}.</p>',
        f'<p class="lede">{_safe(sentence[:1].upper() + sentence[1:])}.</p>',
        f'<p class="quiet">{_safe(job)}; job {_safe(view.plan.job)},'
        f" {view.plan.tokens_per_step:,} tokens per step and replica;"
        f" objective {_safe(certificate.objective)}</p>",
        f'<dl class="figures">{_pairs(figures)}</dl>',
        f'<p class="quiet">{_safe(note[:1].upper() + note[1:])}.</p>' if (note := counted_note(view)) else "",
        "</header>",
    ]


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{_safe(name)}</dt><dd>{_safe(words)}</dd></div>" for name, words in pairs)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of HTML texts; a heading that ends in `#` marks a column of numbers, one in `~` of lists."""
    marks = [
        ' class="n"' if h.endswith("#") else ' class="long"' if h.endswith("~") else "" for h in headings
    ]
    names = [h.rstrip("#~") for h in headings]
    head = "".join(f'<th scope="col"{mark}>{_safe(h)}</th>' for h, mark in zip(names, marks, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{mark}>{cell}</td>" for cell, mark in zip(row, marks, strict=True)) + "</tr>"
        for row in rows
    )
    title = f"<caption>{_safe(caption)}</caption>" if caption else ""
    whole = f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="wide">{whole}</div>'


def _replicas(view: PlanView) -> list[str]:
    headings = (
        *(("boundary",) if len(view.boundaries) > 1 else ()),
        "replicas",
        "tokens/s, each#",
        "step#",
        "micro-batches#",
        "stages#",
        "devices, each",
        "slowest stage",
        "executor",
    )
    rows = [
        (*((_safe(boundary.name),) if len(view.boundaries) > 1 else ()), *_replica_row(group))
        for boundary in view.boundaries
        for group in alike(boundary.replicas)
    ]
    return ["<h2>Replicas</h2>", _table(headings, rows)]


def _replica_row(group: Sequence[ReplicaView]) -> tuple[str, ...]:
    replica = group[0]
    kinds: Counter[str] = Counter()
    for stage in replica.stages:
        kinds.update(dict(stage.kinds))
    slowest = max(replica.stages, key=lambda stage: stage.busy_s)
    return (
        _safe(numbers_text([item.number for item in group])),
        f"{replica.plan.tokens_per_s:,.0f}",
        _safe(format_seconds(replica.plan.step_time_s)),
        f"{replica.plan.micro_batches} × {replica.plan.micro_batch_size}",
        str(len(replica.stages)),
        _safe(" + ".join(f"{number} × {name}" for name, number in kinds.items())),
        _safe(f"stage {slowest.plan.index}, {format_seconds(slowest.busy_s)} per micro-batch"),
        _safe(replica.plan.executor),
    )


def _stages(view: PlanView) -> list[str]:
    total = sum(len(replica.stages) for replica in view.replicas)
    parts = ["<h2>Stages</h2>"]
    for boundary in view.boundaries:
        if not boundary.replicas:
            continue
        rows = [_stage_row(view, replica, stage) for replica in boundary.replicas for stage in replica.stages]
        opened = " open" if total <= OPEN_STAGES_MAX else ""
        words = f"{boundary.name}: {count(len(rows), 'stage')}"
        parts.append(f"<details{opened}><summary>{_safe(words)}</summary>")
        parts.append(_table(_STAGE_HEADINGS, rows))
        parts.append("</details>")
    return parts


_STAGE_HEADINGS = (
    "replica",
    "stage#",
    "layers",
    "site",
    "devices",
    "tier",
    "head",
    "memory of the fullest device",
    "strategy",
    "compute#",
    "exposed#",
    "to the next#",
    "spares",
)


def _stage_row(view: PlanView, replica: ReplicaView, stage: StageView) -> tuple[str, ...]:
    plan = stage.plan
    share = min(100.0, 100.0 * stage.used_frac)
    kinds = max(plan.memory_bytes.values(), key=lambda kinds: sum(kinds.values()) - 2 * kinds["limit"])
    limit = format_bytes(kinds["limit"])
    bar = f'<span class="bar"><i style="width:{share:.0f}%"></i></span>'
    return (
        f"r{replica.number}",
        str(plan.index),
        _safe(layers_text(plan)),
        _safe(stage.site_id),
        _safe(stage.devices_text),
        _safe(view.fleet.tiers[stage.tier_i]),
        _safe(plan.head),
        f"{bar}{percent(stage.used_frac)} of {_safe(limit)}",
        _safe(strategy_text(plan)),
        _safe(format_seconds(plan.compute_s)),
        _safe(format_seconds(plan.comm_s)),
        _safe(format_seconds(plan.transfer_s)),
        _safe(", ".join(device_ranges(plan.spares)) or "-"),
    )


def _idle(view: PlanView) -> list[str]:
    rows = [
        (
            _safe(boundary.name),
            _safe(reason_text(reason)),
            str(len(ids)),
            _safe(type_name),
            _safe(", ".join(device_ranges(ids))),
        )
        for boundary in view.boundaries
        for reason, type_name, ids in idle_groups(boundary)
    ]
    if not rows:
        return ["<h2>Idle devices</h2>", "<p>None: every device runs a stage.</p>"]
    return [
        "<h2>Idle devices</h2>",
        _table(("boundary", "why", "number#", "type", "devices~"), rows),
    ]


def _failovers(view: PlanView) -> list[str]:
    rows = [
        _failover_row(boundary, entry)
        for boundary in view.boundaries
        if boundary.plan is not None
        for entry in boundary.plan.failover
    ]
    if not rows:
        return []
    return [
        "<h2>When a device fails</h2>",
        f"<details><summary>{count(len(rows), 'prepared replacement')}</summary>",
        _table(("boundary", "when lost~", "replica", "then", "boundary's tokens/s#"), rows),
        "</details>",
    ]


def _failover_row(boundary: BoundaryView, entry: Failover) -> tuple[str, ...]:
    then = "the replica stops, the others go on"
    if entry.replacement is not None:
        replacement = entry.replacement
        then = f"{count(len(replacement.stages), 'stage')}, {replacement.tokens_per_s:,.0f} tokens/s"
    return (
        _safe(boundary.name),
        _safe(", ".join(device_ranges(entry.devices))),
        _safe(entry.replica),
        _safe(then),
        f"{entry.tokens_per_s:,.0f}",
    )


def _certificate(view: PlanView) -> list[str]:
    certificate = view.certificate
    proofs = Counter(
        str(proof.get("kind", "none")) if isinstance(proof, dict) else "none"
        for proof in certificate.proof.values()
    )
    origins = Counter(item.device.origin for item in view.devices)
    facts = [
        ("value", value_text(certificate)),
        ("bound", bound_sentence(certificate)),
        ("covers", certificate.covers),
        (
            "proof",
            ", ".join(
                f"{kind} ({count(number, 'boundary', 'boundaries')})" for kind, number in proofs.items()
            ),
        ),
        ("solver stopped", certificate.stop),
        ("limits", _listed(certificate.limits.items())),
        ("seed", str(certificate.seed)),
        ("cost model", str(view.plan.settings.get("cost_model", "not recorded"))),
        ("device figures", _listed(origins.items())),
        ("versions", _listed(certificate.versions.items())),
        *((f"{document['kind']} sha256", str(document["sha256"])) for document in view.plan.inputs),
    ]
    listed = "".join(f"<dt>{_safe(name)}</dt><dd>{_safe(words)}</dd>" for name, words in facts)
    return [
        "<h2>Certificate</h2>",
        "<p><code>echelon check</code> on the plan file derives value, bound and feasibility again.</p>",
        f'<dl class="facts">{listed}</dl>',
    ]


def _listed(pairs: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name} {words}" for name, words in pairs)
