"""Ports on which the ranks of a launch meet."""

from __future__ import annotations

import json
from collections.abc import Sequence

from executors.base import LaunchSpec
from executors.runfile import RUN_FILE
from policies.errors import ExecutorFailedError


def meeting_of(spec: LaunchSpec) -> tuple[str, int]:
    """Address and port where the ranks meet, on the host of the first command; port 0 where none is named."""
    text = spec.files.get(RUN_FILE)
    record = json.loads(text) if text is not None else {}
    return str(record.get("master_addr", "")), int(record.get("master_port", 0))


def require_own_ports(specs: Sequence[LaunchSpec]) -> None:
    """No two replicas meet at the same place.

    Raises:
        ExecutorFailedError: `port-taken`.
    """
    taken: dict[tuple[str, int], str] = {}
    for spec in specs:
        place = meeting_of(spec)
        if place[1] and place in taken:
            raise ExecutorFailedError(
                "port-taken",
                f"replicas {taken[place]} and {spec.replica.id} would both meet at port {place[1]}"
                f" of {place[0] or 'this machine'}",
                hint="give each replica a port of its own",
            )
        taken[place] = spec.replica.id
