"""The plan's typed graph: it must show the same stages and chains, and nothing that law 1 forbids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from planner.check.report import Findings
from planner.plan import GraphEdge, GraphNode, Plan, ReplicaPlan

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
    _check_chains(plan, findings)


def _stage_ids(replica: ReplicaPlan) -> list[str]:
    return [f"{replica.id}/{stage.index}" for stage in replica.stages]


def _check_nodes(plan: Plan, findings: Findings) -> None:
    """One node per stage, one aggregator per boundary, a coordinator above several boundaries."""
    wanted = Counter(
        (node_id, "stage", boundary.name)
        for boundary in plan.boundaries
        for replica in boundary.replicas
        for node_id in _stage_ids(replica)
    )
    wanted.update(
        (f"{boundary.name}/aggregator", "aggregator", boundary.name) for boundary in plan.boundaries
    )
    found = Counter((node.id, node.kind, node.boundary) for node in plan.nodes if node.kind != "coordinator")
    for entry in (wanted - found) + (found - wanted):
        findings.add("graph", "graph.nodes", f"{entry} {found[entry]} times", f"{wanted[entry]} times")
    names = {boundary.name for boundary in plan.boundaries}
    coordinators = [node for node in plan.nodes if node.kind == "coordinator"]
    if len(coordinators) > 1 or (len(names) > 1 and not coordinators):
        findings.add(
            "graph", "graph.nodes", f"{len(coordinators)} coordinators", "one above several boundaries"
        )
    for node in coordinators:
        if node.boundary in names:
            findings.add(
                "graph", "graph.nodes", f"coordinator inside {node.boundary}", "outside all boundaries"
            )


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


def _check_chains(plan: Plan, findings: Findings) -> None:
    """Activations run from each stage to the next one of its replica and nowhere else; gradients run back."""
    wanted = sorted(
        pair
        for boundary in plan.boundaries
        for replica in boundary.replicas
        for pair in pairwise(_stage_ids(replica))
    )
    forward = sorted((edge.source, edge.target) for edge in plan.edges if edge.kind == "activation")
    backward = sorted((edge.target, edge.source) for edge in plan.edges if edge.kind == "gradient")
    if forward != wanted:
        findings.add(
            "graph", "graph.edges", "activations unlike stages", "one edge from each stage to its next"
        )
    if backward != wanted:
        findings.add("graph", "graph.edges", "gradients unlike stages", "each activation edge reversed")
