"""The contest's arms, treatments, tuning trials and single runs; results are plain data that can be kept.

Everything that decides a run is in its `Job`, so a kept result is found again by the job's key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from boundary.sync_language import LanguageTraining
from executors.boundary.outer.diloco import diloco
from executors.boundary.outer.echelon import echelon_fixed
from executors.boundary.outer.echelon_da import echelon_da
from executors.boundary.outer.fedbuff import fedbuff
from executors.boundary.outer.fedprox import fedprox
from executors.boundary.outer.overlapped import overlapped_diloco
from executors.boundary.outer.policy import SyncPolicy
from executors.boundary.virtual.fleet import VirtualFleet, VirtualLink, even_boundaries
from executors.boundary.virtual.records import Limits, SyncRecord
from executors.boundary.virtual.simulation import Simulation
from policies.drift import DriftRule

STEP_S = 0.02
SECURE_SUM_S = 0.05
LINK_BYTES_PER_S = 10e6
INNER_RATE = 1e-3
REFERENCE_STEPS = 20
NESTEROVS = ((0.7, 0.9), (0.9, 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is run. `num_ref_steps`: local steps per participant that the token budget stands for."""

    num_participants: int = 5
    batch: int = 32
    num_ref_steps: int = 400
    num_warm_steps: int = 1200
    num_trials: int = 8
    tuning_seeds: tuple[int, ...] = (101, 102)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    factors: tuple[str, ...] = ("delay", "skew", "dropout", "spread", "boundaries")


SMOKE = Size(
    num_participants=4,
    batch=16,
    num_ref_steps=60,
    num_warm_steps=200,
    num_trials=2,
    tuning_seeds=(101,),
    seeds=(1, 2),
    factors=("delay",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """One environment; `delay_rounds` is the round trip over a reference round of the mean participant."""

    delay_rounds: float = 0.5
    skew_frac: float = 0.5
    dropout_frac: float = 0.0
    speed_spread: float = 4.0
    num_boundaries: int = 2


BASE = Treatment()
FACTORS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "delay": ("delay_rounds", (0.0, 0.1, 0.5, 1.0, 2.0)),
    "skew": ("skew_frac", (0.0, 0.5, 1.0)),
    "dropout": ("dropout_frac", (0.0, 0.1, 0.3)),
    "spread": ("speed_spread", (1.0, 4.0, 10.0)),
    "boundaries": ("num_boundaries", (2, 3, 4)),
}
Setting = Mapping[str, float]


def _grid(values: tuple[tuple[tuple[str, float], ...], ...]) -> tuple[dict[str, float], ...]:
    steps = (20, 10, 40, 5)
    return tuple({"h": h, **dict(extra)} for h in steps for extra in values)


_OUTER = tuple((("rate", rate), ("momentum", momentum)) for rate, momentum in NESTEROVS)
TRIALS: Mapping[str, tuple[dict[str, float], ...]] = {
    "echelon-fixed": _grid(_OUTER),
    "echelon-da": tuple(
        {"h": h, "theta": theta, "rate": rate, "momentum": momentum}
        for h in (20, 10)
        for theta in (0.8, 0.5)
        for rate, momentum in NESTEROVS
    ),
    "diloco": _grid(_OUTER),
    "overlapped-diloco": _grid(_OUTER),
    "fedprox": _grid(((("mu", 0.01),), (("mu", 0.1),))),
    "fedbuff": _grid(((("rate", 1.0),), (("rate", 0.5),))),
}
ARMS = tuple(TRIALS)


def build_policy(arm: str, setting: Setting, *, num_boundaries: int) -> SyncPolicy:
    """The arm under one setting of its trials."""
    h = int(setting["h"])
    rate, momentum = setting.get("rate", 1.0), setting.get("momentum", 0.0)
    builders: dict[str, Callable[[], SyncPolicy]] = {
        "echelon-fixed": lambda: echelon_fixed(num_local_steps=h, rate=rate, momentum=momentum),
        "echelon-da": lambda: echelon_da(
            drift=DriftRule(h_fixed=h, h_min=5, h_max=80, theta_frac=setting["theta"]),
            rate=rate,
            momentum=momentum,
        ),
        "diloco": lambda: diloco(num_local_steps=h, rate=rate, momentum=momentum),
        "overlapped-diloco": lambda: overlapped_diloco(num_local_steps=h, rate=rate, momentum=momentum),
        "fedprox": lambda: fedprox(num_local_steps=h, mu=setting["mu"]),
        "fedbuff": lambda: fedbuff(
            num_local_steps=h, close_frac=0.6, rate=setting["rate"], num_boundaries=num_boundaries
        ),
    }
    return builders[arm]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run, complete."""

    arm: str
    setting: Setting
    treatment: Treatment
    seed: int
    size: Size = field(default_factory=Size)

    @property
    def key(self) -> str:
        """A name that differs wherever a run could differ."""
        size = replace(self.size, num_trials=0, tuning_seeds=(), seeds=(), factors=())
        parts = (self.arm, sorted(self.setting.items()), asdict(self.treatment), self.seed, asdict(size))
        return repr(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Where trajectories are compared: what a reference DiLoCo run (H = 20) uses up in `num_ref_steps`."""

    num_tokens: int
    num_bytes: int
    at_s: float
    num_syncs: int

    def limits(self) -> Limits:
        """The same as limits of a run."""
        return Limits(**asdict(self))


def round_trip_s(treatment: Treatment) -> float:
    """Delay in seconds: the ratio times a reference round of the mean participant."""
    mean_step_s = STEP_S * (1.0 + treatment.speed_spread) / 2.0
    return treatment.delay_rounds * REFERENCE_STEPS * mean_step_s


def budgets(size: Size, *, payload_bytes: int, treatment: Treatment = BASE) -> Budgets:
    """Budgets by arithmetic, before any run."""
    num_syncs = size.num_ref_steps // REFERENCE_STEPS
    slowest_s = STEP_S * treatment.speed_spread * REFERENCE_STEPS
    transfer_s = 2.0 * payload_bytes / LINK_BYTES_PER_S
    return Budgets(
        num_tokens=size.num_ref_steps * size.batch * size.num_participants * treatment.num_boundaries,
        num_bytes=num_syncs * 2 * treatment.num_boundaries * payload_bytes,
        at_s=num_syncs * (slowest_s + SECURE_SUM_S + round_trip_s(treatment) + transfer_s),
        num_syncs=num_syncs,
    )


def build_fleet(job: Job) -> VirtualFleet:
    """The environment of one run."""
    t = job.treatment
    link = VirtualLink(round_trip_s=round_trip_s(t), bytes_per_s=LINK_BYTES_PER_S)
    slowest_round_s = STEP_S * t.speed_spread * 80
    return VirtualFleet(
        boundaries=even_boundaries(
            num_boundaries=t.num_boundaries,
            num_participants=job.size.num_participants,
            step_s=STEP_S,
            speed_spread=t.speed_spread,
            link=link,
        ),
        secure_sum_s=SECURE_SUM_S,
        dropout_frac=t.dropout_frac,
        down_s=REFERENCE_STEPS * STEP_S,
        window_deadline_s=2.0 * slowest_round_s,
        seed=job.seed,
    )


def run_job(job: Job, until: Budgets) -> dict[str, Any]:
    """Trajectory and cost as plain data; ends when all budgets are used up, or at 4 times the tokens."""
    cpu_s = time.process_time()
    t = job.treatment
    training = LanguageTraining(
        num_boundaries=t.num_boundaries,
        skew_frac=t.skew_frac,
        seed=job.seed,
        batch=job.size.batch,
        rate=INNER_RATE,
    )
    start_P = training.warm_start(num_steps=job.size.num_warm_steps)
    simulation = Simulation(
        build_fleet(job),
        build_policy(job.arm, job.setting, num_boundaries=t.num_boundaries),
        start_P=start_P,
        train=training,
        evaluate=training.evaluate,
        tokens_per_step=job.size.batch,
    )
    result = simulation.run(Limits(num_tokens=4 * until.num_tokens), enough=until.limits())
    return {
        "key": job.key,
        "arm": job.arm,
        "setting": dict(job.setting),
        "treatment": asdict(t),
        "seed": job.seed,
        "start_loss": training.evaluate(start_P),
        "trajectory": [_point(record) for record in result.records],
        "cpu_s": time.process_time() - cpu_s,
    }


def _point(record: SyncRecord) -> dict[str, float | None]:
    return {
        "num_tokens": record.num_tokens,
        "num_bytes": record.crossing_bytes,
        "at_s": record.at_s,
        "num_syncs": record.num_syncs,
        "loss": record.loss,
        "h": record.num_local_steps,
    }
