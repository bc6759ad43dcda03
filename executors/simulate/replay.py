"""Many steps of many replicas in virtual time: shared links, checkpoints, windows, losses.

A replica whose links nobody shares runs the same step again and again, so that step is simulated once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from executors.simulate.events import Clock, Links
from executors.simulate.losses import Hit
from executors.simulate.options import SimulationOptions
from executors.simulate.pipeline import StepRun, start_step
from executors.simulate.planned import Chain
from executors.simulate.result import (
    LinkUse,
    LossRecord,
    Pause,
    PauseKind,
    ReplicaResult,
    StepRecord,
    WindowRecord,
)
from executors.simulate.step import run_alone, timeline_of
from executors.simulate.timeline import StepTimeline
from executors.simulate.windows import BoundaryWindows

SPANS_KEPT_MAX = 400_000
Report = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class _Running:
    """A replica under way."""

    index: int
    chains: list[Chain]
    hits: list[tuple[Hit, Chain | None]]
    next_step: int = 0
    furthest: int = 0
    saved: int = 0
    met: int = 0
    chain_i: int = 0
    began_s: float = 0.0
    end_s: float = 0.0
    stopped: bool = False
    run: StepRun | None = None
    # Counts starts, so that what was meant for a step cut off is known when it comes.
    epoch: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    losses: list[LossRecord] = field(default_factory=list)

    @property
    def chain(self) -> Chain:
        return self.chains[self.chain_i]


class Replay:
    """Replicas with the chains that may take over for them, replayed together.

    Args:
        chains: every replica as planned.
        hits: for each replica by its id, its losses, each with the chain that takes over or None.
        options: what is replayed.
        report: told now and then how far it is.
    """

    def __init__(
        self,
        chains: Sequence[Chain],
        hits: Mapping[str, Sequence[tuple[Hit, Chain | None]]],
        options: SimulationOptions,
        report: Report | None = None,
    ) -> None:
        self.options = options
        self.links = Links()
        self._clock = Clock()
        self._report = report
        self._replicas = [
            _Running(index=i, chains=[chain], hits=list(hits.get(chain.replica.id, ())))
            for i, chain in enumerate(chains)
        ]
        self._lost: set[str] = set()
        self._shared = _shared_links(self._replicas)
        self._alone: dict[int, tuple[StepTimeline, Links]] = {}
        self._num_spans_kept = 0
        self._windows = self._boundary_windows()

    def play(self) -> None:
        """Let everything happen."""
        for replica in self._replicas:
            self._begin_step(replica, 0.0)
        self._clock.run(self._tell)

    def results(self) -> tuple[ReplicaResult, ...]:
        """What each replica did."""
        return tuple(
            ReplicaResult(
                chains=tuple(replica.chains),
                alone=tuple(self._alone_timeline(chain) for chain in replica.chains),
                steps=tuple(replica.steps),
                pauses=tuple(replica.pauses),
                losses=tuple(replica.losses),
                num_steps_done=replica.next_step,
                end_s=replica.end_s,
                is_stopped=replica.stopped,
            )
            for replica in self._replicas
        )

    def windows(self) -> tuple[WindowRecord, ...]:
        """Every window that closed."""
        return tuple(
            WindowRecord(
                boundary=name,
                index=i,
                closed_s=closed_s,
                replicas=tuple(self._replicas[r].chains[0].replica.id for r in came),
            )
            for name, windows in self._windows.items()
            for i, (closed_s, came) in enumerate(windows.closed)
        )

    def link_uses(self) -> tuple[LinkUse, ...]:
        """Every link that replicas may share, by name."""
        held_s, queued_s = Counter(self.links.held_s), Counter(self.links.waited_s)
        users: dict[str, list[str]] = {}
        for replica in self._replicas:
            for chain in replica.chains:
                for link in sorted(chain.links):
                    users.setdefault(link, []).append(replica.chains[0].replica.id)
            for record in replica.steps:
                chain = replica.chains[record.chain_i]
                if not (record.lost or chain.links & self._shared):
                    links = self._alone[id(chain)][1]
                    held_s.update({link: links.held_s.get(link, 0.0) for link in chain.links})
                    queued_s.update({link: links.waited_s.get(link, 0.0) for link in chain.links})
        return tuple(
            LinkUse(
                name=link,
                held_s=held_s[link],
                queued_s=queued_s[link],
                replicas=tuple(dict.fromkeys(users[link])),
            )
            for link in sorted(users)
        )

    # Steps.

    def _begin_step(self, replica: _Running, now_s: float) -> None:
        if replica.next_step >= self.options.num_steps:
            self._leave(replica, now_s)
            return
        replica.began_s = now_s
        replica.epoch += 1
        alone = self._alone_timeline(replica.chain)
        ended = partial(self._end_step, replica, replica.epoch)
        if replica.chain.links & self._shared:
            replica.run = start_step(replica.chain.setup, self._clock, self.links, ended, replica.index)
            replica.run.begin(now_s)
        else:
            replica.run = None
            self._clock.at(now_s + alone.step_s, (replica.index, -1), ended)
        if replica.hits and replica.hits[0][0].loss.step <= replica.next_step:
            lose = partial(self._lose, replica, *replica.hits.pop(0))
            self._clock.at(now_s + alone.step_s / 2.0, (replica.index, -1), lose)

    def _end_step(self, replica: _Running, epoch: int, now_s: float) -> None:
        if epoch != replica.epoch:
            return
        self._record(replica, now_s, lost=False)
        replica.next_step += 1
        replica.furthest = max(replica.furthest, replica.next_step)
        is_saved = replica.next_step % self.options.checkpoint_every == 0
        if is_saved and self.options.checkpoint_s > 0.0:
            ready_s = now_s + self.options.checkpoint_s
            replica.pauses.append(Pause(kind=PauseKind.CHECKPOINT, start_s=now_s, end_s=ready_s))
            self._clock.at(ready_s, (replica.index, -1), partial(self._saved, replica))
        elif is_saved:
            self._saved(replica, now_s)
        else:
            self._after_step(replica, now_s)

    def _saved(self, replica: _Running, now_s: float) -> None:
        replica.saved = replica.next_step
        self._after_step(replica, now_s)

    def _after_step(self, replica: _Running, now_s: float) -> None:
        windows = self._windows.get(replica.chain.boundary)
        if windows is not None and windows.is_due(now_s, replica.next_step - replica.met):
            windows.come(replica.index, now_s)
        else:
            self._begin_step(replica, now_s)

    def _record(self, replica: _Running, now_s: float, *, lost: bool) -> None:
        timeline: StepTimeline | None = self._alone_timeline(replica.chain)
        if replica.run is not None:
            timeline = None
            num_spans = len(replica.run.work) + len(replica.run.transfers)
            if self._num_spans_kept + num_spans <= SPANS_KEPT_MAX:
                self._num_spans_kept += num_spans
                timeline = timeline_of(replica.run, replica.began_s, now_s)
        replica.steps.append(
            StepRecord(
                step=replica.next_step,
                start_s=replica.began_s,
                end_s=now_s,
                chain_i=replica.chain_i,
                timeline=timeline,
                lost=lost,
                is_repeated=replica.next_step < replica.furthest,
            )
        )

    def _leave(self, replica: _Running, now_s: float) -> None:
        replica.end_s = now_s
        windows = self._windows.get(replica.chain.boundary)
        if windows is not None:
            windows.leave(replica.index, now_s)

    # Windows.

    def _boundary_windows(self) -> dict[str, BoundaryWindows]:
        if self.options.window is None:
            return {}
        members: dict[str, set[int]] = {}
        for replica in self._replicas:
            members.setdefault(replica.chain.boundary, set()).add(replica.index)
        return {
            name: BoundaryWindows(rule=self.options.window, running=running, release=self._go_on)
            for name, running in members.items()
        }

    def _go_on(self, index: int, came_s: float, closed_s: float) -> None:
        """A window has closed: after the exchange the replica takes its next step."""
        assert self.options.window is not None
        replica = self._replicas[index]
        replica.met = replica.next_step
        ready_s = closed_s + self.options.window.exchange_s
        for kind, start_s, end_s in (
            (PauseKind.WINDOW, came_s, closed_s),
            (PauseKind.EXCHANGE, closed_s, ready_s),
        ):
            if end_s > start_s:
                replica.pauses.append(Pause(kind=kind, start_s=start_s, end_s=end_s))
        self._clock.at(ready_s, (index, -1), partial(self._begin_step, replica))

    # Losses.

    def _lose(self, replica: _Running, hit: Hit, takes_over: Chain | None, now_s: float) -> None:
        """The step is void; the replacement goes on from the last checkpoint, or the replica stops."""
        self._lost |= hit.lost
        if not hit.own & replica.chain.devices:
            return
        replica.epoch += 1
        if replica.run is not None:
            replica.run.cancel(now_s)
        self._record(replica, now_s, lost=True)
        reason = self._refusal(replica, takes_over)
        before = replica.chain.replica.tokens_per_s
        noticed_s = now_s + self.options.detect_s
        resumed_s = None
        self._pause(replica, PauseKind.DETECT, now_s, noticed_s)
        repeated = replica.next_step - replica.saved
        if takes_over is not None and not reason:
            resumed_s = noticed_s + self.options.restart_s
            self._pause(replica, PauseKind.RESTART, noticed_s, resumed_s)
            replica.chains.append(takes_over)
            replica.chain_i = len(replica.chains) - 1
            replica.next_step = replica.saved
            self._clock.at(resumed_s, (replica.index, -1), partial(self._begin_step, replica))
        else:
            repeated = 0
            replica.stopped = True
            self._clock.at(noticed_s, (replica.index, -1), partial(self._leave, replica))
        replica.losses.append(
            LossRecord(
                name=hit.loss.name,
                step=hit.loss.step,
                time_s=now_s,
                lost_devices=tuple(sorted(hit.own)),
                num_steps_repeated=repeated,
                resumed_s=resumed_s,
                reason=reason,
                tokens_per_s_before=before,
                tokens_per_s_after=0.0 if reason or takes_over is None else takes_over.replica.tokens_per_s,
            )
        )

    def _refusal(self, replica: _Running, takes_over: Chain | None) -> str:
        """Why the replacement can't run now; empty where it can."""
        if replica.chain_i > 0:
            return "the plan prepares for one loss per replica"
        if takes_over is None:
            return "the plan has no replacement for it"
        gone = sorted(takes_over.devices & self._lost)
        if gone:
            return f"its replacement needs {gone[0]}, which is lost too"
        for other in self._replicas:
            if other is not replica and not other.stopped:
                taken = sorted(takes_over.devices & other.chain.devices)
                if taken:
                    return f"its replacement needs {taken[0]}, which {other.chains[0].replica.id} has taken"
        return ""

    def _pause(self, replica: _Running, kind: PauseKind, start_s: float, end_s: float) -> None:
        if end_s > start_s:
            replica.pauses.append(Pause(kind=kind, start_s=start_s, end_s=end_s))

    # What is known of chains.

    def _alone_timeline(self, chain: Chain) -> StepTimeline:
        if id(chain) not in self._alone:
            self._alone[id(chain)] = run_alone(chain.setup)
        return self._alone[id(chain)][0]

    def _tell(self, now_s: float) -> None:
        if self._report is not None:
            slowest = min((replica.next_step for replica in self._replicas if not replica.stopped), default=0)
            self._report(f"step {slowest} of {self.options.num_steps}, {now_s:,.0f} s of virtual time")


def _shared_links(replicas: Sequence[_Running]) -> frozenset[str]:
    """Links that more than one replica may use, the chains that may take over included."""
    users = Counter(
        link
        for replica in replicas
        for link in frozenset().union(
            *(chain.links for chain in (*replica.chains, *(c for _, c in replica.hits if c is not None)))
        )
    )
    return frozenset(link for link, count in users.items() if count > 1)
