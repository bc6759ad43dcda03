"""The plan as a typed graph: who sends what to whom, and what of it crosses a boundary.

Each stage holds its own layers, so each sends its own part of the replica's update. Training traffic
(activation, gradient, collective) and masked updates stay inside; with more than one boundary aggregates go
up to the coordinator and the global state comes back (law 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from planner.plan import BoundaryPlan, GraphEdge, GraphNode

COORDINATOR = GraphNode(id="coordinator", kind="coordinator", boundary="global")


def stage_node_id(replica_id: str, index: int) -> str:
    """The id of a stage's node."""
    return f"{replica_id}/{index}"


def build_graph(
    boundaries: Sequence[BoundaryPlan],
) -> tuple[tuple[GraphNode, ...], tuple[GraphEdge, ...]]:
    """Nodes and edges of all stages and aggregators, and of a coordinator between several boundaries."""
    crossing = len(boundaries) > 1
    nodes: list[GraphNode] = [COORDINATOR] if crossing else []
    edges: list[GraphEdge] = []
    for boundary in boundaries:
        hub = GraphNode(id=f"{boundary.name}/aggregator", kind="aggregator", boundary=boundary.name)
        nodes.append(hub)
        if crossing:
            edges += [
                _edge(hub.id, COORDINATOR.id, "aggregate-delta", crossing=True),
                _edge(COORDINATOR.id, hub.id, "global-state", crossing=True),
            ]
        exchanging = crossing or len(boundary.replicas) > 1
        for replica in boundary.replicas:
            ids = [stage_node_id(replica.id, stage.index) for stage in replica.stages]
            nodes += [GraphNode(id=i, kind="stage", boundary=boundary.name) for i in ids]
            for before, after in pairwise(ids):
                edges += [_edge(before, after, "activation"), _edge(after, before, "gradient")]
            for node_id, stage in zip(ids, replica.stages, strict=True):
                if len(stage.devices) > 1:
                    edges.append(_edge(node_id, node_id, "collective"))
                if exchanging:
                    edges += [_edge(node_id, hub.id, "masked-update"), _edge(hub.id, node_id, "global-state")]
    return tuple(nodes), tuple(edges)


def _edge(source: str, target: str, kind: str, *, crossing: bool = False) -> GraphEdge:
    return GraphEdge(source=source, target=target, kind=kind, crossing=crossing)
