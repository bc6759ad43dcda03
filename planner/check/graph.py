"""The plan's typed graph: it must show the same stages and chains, and nothing that law 1 forbids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from planner.check.report import Findings
from planner.plan import GraphEdge, GraphNode, Plan

INSIDE_KINDS = frozenset({"activation", "gradient", "collective", "masked-update"})
ENDS = {
    "activation": {("stage", "stage")},
    "gradient": {("stage", "stage")},
    "collective": {("stage", "stage")},
    "masked-update": {("stage", "aggregator")},
    "aggregate-delta": {("aggregator", "coordinator")},
    "global-state": {("coordinator", "aggregator"), ("aggregator", "stage"), ("coordinator", "stage")},
}


def check_graph(plan: Plan, findings: Findings) -> None:
    """`graph`, `law-1`: nodes and edges fit the stages, and training traffic stays inside its boundary."""
    nodes = {node.id: node for node in plan.nodes}
    if len(nodes) != len(plan.nodes):
        findings.add("graph", "graph.nodes", "an id twice", "unique ids")
    _check_nodes(plan, findings)
    for i, edge in enumerate(plan.edges):
        _check_edge(edge, nodes, findings, f"graph.edges[{i}]")
    _check_chains(plan, nodes, findings)


def _check_nodes(plan: Plan, findings: Findings) -> None:
    stages = {b.name: sum(len(replica.stages) for replica in b.replicas) for b in plan.boundaries}
    counts = Counter((node.kind, node.boundary) for node in plan.nodes)
    for name, count in stages.items():
        findings.require_same("graph", f"graph.nodes: stages of {name}", counts[("stage", name)], count)
        findings.require_same("graph", f"graph.nodes: aggregators of {name}", counts[("aggregator", name)], 1)
    for (kind, boundary), count in counts.items():
        if kind == "coordinator":
            findings.require_same("graph", "graph.nodes: coordinators", count, 1)
        elif kind not in ("stage", "aggregator") or boundary not in stages:
            findings.add("graph", "graph.nodes", f"{kind} in {boundary}", "stage, aggregator or coordinator")


def _check_edge(edge: GraphEdge, nodes: Mapping[str, GraphNode], findings: Findings, place: str) -> None:
    source, target = nodes.get(edge.source), nodes.get(edge.target)
    if source is None or target is None:
        findings.add("graph", place, f"{edge.source} to {edge.target}", "two nodes of the graph")
        return
    crossing = source.boundary != target.boundary
    findings.require_same("graph", f"{place}.crossing", edge.crossing, crossing)
    if edge.kind not in ENDS or (source.kind, target.kind) not in ENDS[edge.kind]:
        findings.add(
            "graph", f"{place}.kind", f"{edge.kind} from {source.kind} to {target.kind}", sorted(ENDS)
        )
    if crossing and edge.kind in INSIDE_KINDS:
        limit = f"{edge.kind} stays inside {source.boundary}"
        findings.add("law-1", place, f"{edge.kind} from {source.boundary} to {target.boundary}", limit)


def _check_chains(plan: Plan, nodes: Mapping[str, GraphNode], findings: Findings) -> None:
    """Activations run along chains, one per replica and as long as it has stages; gradients run back."""
    pairs = {
        kind: [(edge.source, edge.target) for edge in plan.edges if edge.kind == kind]
        for kind in ("activation", "gradient")
    }
    forward = dict(pairs["activation"])
    backward = sorted((target, source) for source, target in pairs["gradient"])
    if len(forward) < len(pairs["activation"]) or len(set(forward.values())) < len(pairs["activation"]):
        findings.add("graph", "graph.edges", "activations that fork or join", "one chain per replica")
        return
    if backward != sorted(pairs["activation"]):
        findings.add("graph", "graph.edges", "gradients unlike activations", "each activation edge reversed")
    lengths: Counter[tuple[str, int]] = Counter()
    starts = {node.id for node in plan.nodes if node.kind == "stage"} - set(forward.values())
    for start in starts:
        length, at = 1, start
        while at in forward:
            length, at = length + 1, forward[at]
        lengths[(nodes[start].boundary, length)] += 1
    planned = Counter((b.name, len(replica.stages)) for b in plan.boundaries for replica in b.replicas)
    if lengths != planned:
        findings.add("graph", "graph.edges", dict(lengths), f"chains (boundary, stages): {dict(planned)}")
