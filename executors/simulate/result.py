"""What a simulation answers. Times are virtual seconds from the start of all replicas."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from executors.simulate.options import SimulationOptions
from executors.simulate.planned import Chain
from executors.simulate.timeline import StepTimeline


class PauseKind(StrEnum):
    """Why a replica trains nothing for a while."""

    CHECKPOINT = "checkpoint"
    WINDOW = "window"
    EXCHANGE = "exchange"
    DETECT = "detect"
    RESTART = "restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A time without training: a checkpoint, waiting for a window, its exchange, after a loss."""

    kind: PauseKind
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step as it ran. `chain_i` says on which of the replica's chains, `lost` that a loss cut it off.

    `is_repeated` marks steps that had been done before a loss. `timeline` counts from the step's own start
    and may go on beyond a cut; it is None where steps are too many to keep each of them.
    """

    step: int
    start_s: float
    end_s: float
    chain_i: int
    timeline: StepTimeline | None
    lost: bool = False
    is_repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRecord:
    """A loss and what came of it: steps to repeat, and when the replacement goes on, or why there is none."""

    name: str
    step: int
    time_s: float
    lost_devices: tuple[str, ...]
    num_steps_repeated: int
    resumed_s: float | None
    reason: str
    tokens_per_s_before: float
    tokens_per_s_after: float


@dataclass(frozen=True, kw_only=True)
class ReplicaResult:
    """What one replica did. `alone` holds for each of its chains a step with all links to itself."""

    chains: tuple[Chain, ...]
    alone: tuple[StepTimeline, ...]
    steps: tuple[StepRecord, ...]
    pauses: tuple[Pause, ...]
    losses: tuple[LossRecord, ...]
    num_steps_done: int
    end_s: float
    is_stopped: bool

    @property
    def id(self) -> str:
        """The replica's name in the plan."""
        return self.chains[0].replica.id

    @property
    def boundary(self) -> str:
        """The boundary it belongs to."""
        return self.chains[0].boundary

    @property
    def planned_step_s(self) -> float:
        """The plan's own figure."""
        return self.chains[0].replica.step_time_s

    @property
    def step_s(self) -> float:
        """Mean of the whole steps on the chain it began with; of a step alone where there was none."""
        whole = [
            record.end_s - record.start_s for record in self.steps if record.chain_i == 0 and not record.lost
        ]
        return sum(whole) / len(whole) if whole else self.alone[0].step_s

    def paused_s(self, kind: PauseKind) -> float:
        """Seconds in pauses of a kind."""
        return sum(pause.end_s - pause.start_s for pause in self.pauses if pause.kind is kind)

    @property
    def lost_s(self) -> float:
        """Seconds of training that losses cost: steps cut off and steps repeated."""
        return sum(r.end_s - r.start_s for r in self.steps if r.lost or r.is_repeated)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRecord:
    """A window of a boundary: who came, and when it closed."""

    boundary: str
    index: int
    closed_s: float
    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """A link: seconds it was held, seconds transfers queued for it, and the replicas that use it."""

    name: str
    held_s: float
    queued_s: float
    replicas: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """The replay of a plan."""

    options: SimulationOptions
    tokens_per_step: int
    planned_tokens_per_s: float
    replicas: tuple[ReplicaResult, ...]
    windows: tuple[WindowRecord, ...]
    links: tuple[LinkUse, ...]

    @property
    def elapsed_s(self) -> float:
        """When the last replica was done."""
        return max((replica.end_s for replica in self.replicas), default=0.0)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the steps done, over the time to each replica's end; over all time where it stopped."""
        return sum(
            replica.num_steps_done * self.tokens_per_step / seconds
            for replica in self.replicas
            if (seconds := self.elapsed_s if replica.is_stopped else replica.end_s) > 0.0
        )
