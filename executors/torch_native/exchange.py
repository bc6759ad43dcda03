"""Sends and receives rows over the borders of a stage, beside the computation.

Legend of tensor suffixes: B rows of this rank, T tokens, H model width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from executors.layout import Layout, Rank
from executors.torch_native.groups import Group, Groups
from executors.torch_native.rows import common, row_ranges, transfers
from planner.plan import ReplicaPlan

NUM_UNFINISHED_SENDS_MAX = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows, counted from this rank's first one, that a peer sends or gets."""

    peer: int
    rows: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """What crosses a border beside its rows: tokens per sequence, width, element type and device."""

    tokens: int
    width: int
    dtype: torch.dtype
    device: torch.device


class Sender:
    """Sends the rows of one micro-batch after another to the peers of one border."""

    def __init__(self, pieces: Sequence[Piece], group: Group) -> None:
        self._pieces = pieces
        self._group = group
        self._unfinished: deque[tuple[list[Any], torch.Tensor]] = deque()

    def send(self, hidden_BTH: torch.Tensor) -> None:
        """Begin to send; the tensor is kept until all of it has left."""
        kept = hidden_BTH.detach().contiguous()
        operations = [
            dist.P2POp(dist.isend, kept[piece.rows.start : piece.rows.stop], piece.peer, self._group)
            for piece in self._pieces
            if piece.rows
        ]
        while len(self._unfinished) >= NUM_UNFINISHED_SENDS_MAX:
            self._wait_for_oldest()
        if operations:
            self._unfinished.append((dist.batch_isend_irecv(operations), kept))

    def finish(self) -> None:
        """Wait until everything has left."""
        while self._unfinished:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        for work in self._unfinished[0][0]:
            work.wait()
        self._unfinished.popleft()


class Receiver:
    """Receives the rows of one micro-batch after another; at most one is on its way ahead of its use."""

    def __init__(self, pieces: Sequence[Piece], group: Group) -> None:
        self._pieces = pieces
        self._group = group
        self._coming: tuple[list[Any], torch.Tensor] | None = None

    def expect(self, num_rows: int, form: Hidden) -> None:
        """Be ready for the next micro-batch, unless this is so already."""
        if self._coming is not None:
            return
        hidden_BTH = torch.empty(num_rows, form.tokens, form.width, dtype=form.dtype, device=form.device)
        operations = [
            dist.P2POp(dist.irecv, hidden_BTH[piece.rows.start : piece.rows.stop], piece.peer, self._group)
            for piece in self._pieces
            if piece.rows
        ]
        self._coming = (dist.batch_isend_irecv(operations) if operations else [], hidden_BTH)

    def receive(self, num_rows: int, form: Hidden) -> torch.Tensor:
        """The rows of the next micro-batch."""
        self.expect(num_rows, form)
        assert self._coming is not None
        works, hidden_BTH = self._coming
        for work in works:
            work.wait()
        self._coming = None
        return hidden_BTH


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The four ends of a rank; None at the ends of the pipeline."""

    activations_in: Receiver | None = None
    activations_out: Sender | None = None
    gradients_in: Receiver | None = None
    gradients_out: Sender | None = None

    def finish(self) -> None:
        """Wait until everything sent has left."""
        for sender in (self.activations_out, self.gradients_out):
            if sender is not None:
                sender.finish()


def build_exchange(
    replica: ReplicaPlan, layout: Layout, me: Rank, groups: Groups, num_rows: int | None = None
) -> Exchange:
    """The ends of this rank for micro-batches of `num_rows` rows, by default all of a micro-batch."""
    ends: dict[str, Any] = {}
    if me.stage > 0:
        group = groups.borders[me.stage - 1]
        arriving, leaving = _pieces(replica, layout, me, me.stage - 1, num_rows)
        ends["activations_in"] = Receiver(arriving, group.activations)
        ends["gradients_out"] = Sender(leaving, group.gradients)
    if me.stage + 1 < len(replica.stages):
        group = groups.borders[me.stage]
        arriving, leaving = _pieces(replica, layout, me, me.stage + 1, num_rows)
        ends["activations_out"] = Sender(leaving, group.activations)
        ends["gradients_in"] = Receiver(arriving, group.gradients)
    return Exchange(**ends)


def _pieces(
    replica: ReplicaPlan, layout: Layout, me: Rank, other: int, num_rows: int | None
) -> tuple[list[Piece], list[Piece]]:
    """What this rank gets from a neighbouring stage, and what it sends there."""
    mine, theirs = replica.stages[me.stage], replica.stages[other]
    own_rows = row_ranges(mine.micro_batch_shares)[me.dp_i]
    here = (me.dp_i, me.tp_i)

    def piece(peer: tuple[int, int], rows: range) -> Piece:
        within = rows if num_rows is None else common(rows, range(num_rows))
        shifted = range(within.start - own_rows.start, within.stop - own_rows.start)
        return Piece(peer=layout.rank_at(other, *peer), rows=shifted)

    arriving = transfers(theirs.micro_batch_shares, theirs.tp, mine.micro_batch_shares, mine.tp)
    leaving = transfers(mine.micro_batch_shares, mine.tp, theirs.micro_batch_shares, theirs.tp)
    return (
        [piece(one.source, one.rows) for one in arriving if one.target == here],
        [piece(one.target, one.rows) for one in leaving if one.source == here],
    )
