"""What would mend a conflict: the smallest change of each kind under which a plan exists, re-solved each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil, floor

from planner.explain import edits
from planner.explain.cases import Case, admissible
from planner.explain.demands import all_sizes, with_job
from planner.explain.judge import SOLVE_SECONDS, first_plan, judge
from planner.explain.reach import countable, least_usd_per_hour, reach
from planner.problem import BoundaryProblem, ObjectiveKind
from policies.policy import SpareKind

MEMORY_STEP_BYTES = 2.0**28
MEMORY_FACTOR_MAX = 8.0
HOSTS_MAX = 16
COHORT_FLOOR = 3


@dataclass(frozen=True, kw_only=True)
class Mend:
    """A change under which a plan was found. `tight`: `less` of it was proven not to do.

    `demand` is what it eases, `amount` how much in base units (bytes per device, hosts, tiers, USD per hour).
    `less` is the same change one step smaller, None where there is nothing between it and no change.
    """

    demand: str
    text: str
    amount: float
    tight: bool
    apply: Callable[[Case], Case]
    less: Callable[[Case], Case] | None = None


@dataclass(slots=True)
class Trials:
    """Asks whether changed cases can be planned, as long as there is time; counts the questions."""

    case: Case
    should_stop: Callable[[], bool]
    count: int = field(default=0)

    def possible(self, change: Callable[[Case], Case]) -> bool | None:
        """True or False where proven, None otherwise."""
        if self.should_stop():
            return None
        self.count += 1
        problem = admissible(change(self.case))
        if problem is None:
            return None
        return judge(problem, thorough=False, stop=self.should_stop).possible

    def least(self, change_by: Callable[[int], Callable[[Case], Case]], most: int) -> tuple[int, bool] | None:
        """The smallest step from 1 to `most` that helps, and whether one less is proven not to."""
        step = 1
        while self.possible(change_by(step)) is not True:
            if step >= most:
                return None
            step = min(2 * step, most)
        low = step // 2
        while step - low > 1:
            middle = (low + step) // 2
            if self.possible(change_by(middle)) is True:
                step = middle
            else:
                low = middle
        tight = step == 1 or self.possible(change_by(step - 1)) is False
        return (step, tight)


def mends_of(case: Case, members: tuple[str, ...], should_stop: Callable[[], bool]) -> Iterator[Mend]:
    """Mends of a conflict, the gentlest kinds first: changes of a file, then devices, then rules on data."""
    trials = Trials(case, should_stop)
    yield from _job_mends(trials, members)
    yield from _link_mends(trials, members)
    yield from _count_mends(trials, members)
    yield from _value_mends(trials, members)
    yield from _raise_tiers(trials, members)
    if "memory" in members:
        yield from _more_memory(trials)
    yield from _more_hosts(trials)
    yield from _lower_tiers(trials, members)


def _more_memory(trials: Trials) -> Iterator[Mend]:
    """More memory on every device of one type and tier."""
    largest = max((d.memory_bytes for d in trials.case.devices), default=0.0)
    most = ceil(largest * MEMORY_FACTOR_MAX / MEMORY_STEP_BYTES)
    for group in edits.groups_of(trials.case):

        def grown(step: int, group: edits.Group = group) -> Callable[[Case], Case]:
            return edits.memory_added(group, step * MEMORY_STEP_BYTES)

        if trials.possible(grown(most)) is not True:
            continue
        found = trials.least(grown, most)
        if found is not None:
            step, tight = found
            extra = step * MEMORY_STEP_BYTES
            yield Mend(
                demand="memory",
                text=f"give each of the {group.text} {extra / 2**30:g} GiB more memory",
                amount=extra,
                tight=tight,
                apply=grown(step),
                less=grown(step - 1) if step > 1 else None,
            )


def _more_hosts(trials: Trials) -> Iterator[Mend]:
    """More hosts like one there is."""
    for host_id in edits.kinds_of_host(trials.case):

        def grown(step: int, host_id: str = host_id) -> Callable[[Case], Case]:
            return edits.hosts_added(host_id, step)

        found = trials.least(grown, HOSTS_MAX)
        if found is not None:
            step, tight = found
            hosts = "1 host" if step == 1 else f"{step} hosts"
            yield Mend(
                demand="devices",
                text=f"add {hosts} like {host_id} ({edits.host_text(trials.case, host_id)})",
                amount=float(step),
                tight=tight,
                apply=grown(step),
                less=grown(step - 1) if step > 1 else None,
            )


def _raise_tiers(trials: Trials, members: tuple[str, ...]) -> Iterator[Mend]:
    """A higher clearance for hosts: the lowest tier that will do, then the fewest hosts of a kind."""
    if not any(_is_tier(name) for name in members):
        return
    tiers = trials.case.fleet.tiers
    for host_ids in edits.like_hosts(trials.case):
        own = max(d.tier_i for d in trials.case.devices if d.host_id == host_ids[0])
        for tier_i in range(own + 1, len(tiers)):

            def raised(
                step: int, host_ids: tuple[str, ...] = host_ids, tier_i: int = tier_i
            ) -> Callable[[Case], Case]:
                return edits.tier_raised(host_ids[:step], tier_i)

            found = trials.least(raised, len(host_ids))
            if found is not None:
                step, tight = found
                lower_fails = (
                    tier_i == own + 1 or trials.possible(edits.tier_raised(host_ids, tier_i - 1)) is False
                )
                names = " and ".join(host_ids[:step])
                yield Mend(
                    demand="tiers",
                    text=f"clear {names} ({edits.host_text(trials.case, host_ids[0])}"
                    f"{' each' if step > 1 else ''}) for tier `{tiers[tier_i]}`",
                    amount=float(tier_i - own),
                    tight=tight and lower_fails,
                    apply=raised(step),
                    less=raised(step - 1) if step > 1 else None,
                )
                break


def _lower_tiers(trials: Trials, members: tuple[str, ...]) -> Iterator[Mend]:
    """A lower required tier: the highest one under which a plan exists."""
    tiers = trials.case.fleet.tiers
    for name in members:
        if not _is_tier(name):
            continue
        required = tiers.index(edits.required_tier(trials.case, name))
        for tier_i in range(required - 1, -1, -1):
            change = edits.tier_lowered(name, tiers[tier_i])
            if trials.possible(change) is True:
                yield Mend(
                    demand=name,
                    text=f"lower {name} from `{tiers[required]}` to `{tiers[tier_i]}`",
                    amount=float(required - tier_i),
                    tight=True,
                    apply=change,
                )
                break


def _is_tier(name: str) -> bool:
    return name.startswith(("see.", "layer_tiers"))


def _job_mends(trials: Trials, members: tuple[str, ...]) -> Iterator[Mend]:
    job = trials.case.workload.job
    if "memory" in members and not job.recompute and trials.possible(edits.recompute_allowed) is True:
        yield Mend(
            demand="recompute",
            text="allow `recompute` in the job",
            amount=1.0,
            tight=True,
            apply=edits.recompute_allowed,
        )
    if "max_stages" in members:

        def longer(step: int) -> Callable[[Case], Case]:
            return lambda case: with_job(case, max_stages=job.max_stages + step)

        found = trials.least(longer, trials.case.workload.num_layers - job.max_stages)
        if found is not None:
            step, tight = found
            yield Mend(
                demand="max_stages",
                text=f"allow max_stages {job.max_stages + step}",
                amount=float(step),
                tight=tight,
                apply=longer(step),
                less=longer(step - 1) if step > 1 else None,
            )
    if "micro_batch_sizes" in members:
        for size in all_sizes(trials.case.workload):
            sizes = tuple(sorted({*job.micro_batch_sizes, size}))
            change = edits.sizes_set(sizes)
            if size not in job.micro_batch_sizes and trials.possible(change) is True:
                yield Mend(
                    demand="micro_batch_sizes",
                    text=f"allow micro-batches of {size} sequence{'s' if size > 1 else ''}",
                    amount=float(size),
                    tight=True,
                    apply=change,
                )
                break
    if "executor" in members and trials.possible(edits.any_executor) is True:
        yield Mend(
            demand="executor",
            text="take `--executor any`, which also runs unequal widths and tensor parallelism",
            amount=1.0,
            tight=True,
            apply=edits.any_executor,
        )


def _link_mends(trials: Trials, members: tuple[str, ...]) -> Iterator[Mend]:
    if "links" not in members:
        return
    sites = trials.case.own_sites
    for i, a in enumerate(sites):
        for b in sites[i + 1 :]:
            known = {(a, b), (b, a)} <= set(trials.case.fleet.link_by_ends)
            change = edits.linked(a, b)
            if not known and trials.possible(change) is True:
                yield Mend(
                    demand="links",
                    text=f"link {a} and {b} in both directions",
                    amount=1.0,
                    tight=True,
                    apply=change,
                )


def _count_mends(trials: Trials, members: tuple[str, ...]) -> Iterator[Mend]:
    policy = trials.case.policy
    for name, own, floor_of in (
        ("drop_tolerance", policy.drop_tolerance, 0),
        ("min_cohort", policy.min_cohort, COHORT_FLOOR),
    ):
        if own > floor_of and {"cohort.min", "cohort.drop_tolerance"} & set(members):

            def lowered(step: int, name: str = name, own: int = own) -> Callable[[Case], Case]:
                return edits.policy_set(**{name: own - step})

            found = trials.least(lowered, own - floor_of)
            if found is not None:
                step, tight = found
                key = "cohort.drop_tolerance" if name == "drop_tolerance" else "cohort.min"
                yield Mend(
                    demand=key,
                    text=f"lower {key} to {own - step}",
                    amount=float(step),
                    tight=tight,
                    apply=lowered(step),
                    less=lowered(step - 1) if step > 1 else None,
                )
    if "replicas_max" in members and policy.replicas_max is not None:
        most = len(trials.case.devices)
        now = policy.replicas_max

        def more(step: int) -> Callable[[Case], Case]:
            return edits.policy_set(replicas_max=now + step)

        found = trials.least(more, max(1, most - now))
        if found is not None:
            step, tight = found
            yield Mend(
                demand="replicas_max",
                text=f"allow replicas_max {now + step}",
                amount=float(step),
                tight=tight,
                apply=more(step),
                less=more(step - 1) if step > 1 else None,
            )
    if "one-replica" in members and trials.possible(edits.objective_tokens) is True:
        yield Mend(
            demand="one-replica",
            text="take another objective than step-time, which plans one replica only",
            amount=1.0,
            tight=True,
            apply=edits.objective_tokens,
        )
    if "spares" in members:
        yield from _spare_mends(trials)


def _spare_mends(trials: Trials) -> Iterator[Mend]:
    rule = trials.case.policy.spares
    options: list[tuple[str, Callable[[Case], Case]]] = []
    if rule.kind is SpareKind.DEDICATED:
        options.append(
            ("pool the spares instead of one for each stage", edits.spares_set(kind=SpareKind.POOLED))
        )
    if rule.kind is SpareKind.POOLED:
        fewer = range(rule.per_pool - 1, 0, -1)
        options += [(f"hold back {number} per pool", edits.spares_set(per_pool=number)) for number in fewer]
    options.append(("hold back no spares", edits.spares_set(kind=SpareKind.NONE)))
    for i, (text, change) in enumerate(options):
        if trials.possible(change) is True:
            yield Mend(demand="spares", text=text, amount=float(i + 1), tight=True, apply=change)
            return


def _value_mends(trials: Trials, members: tuple[str, ...]) -> Iterator[Mend]:
    ceiling = trials.case.policy.usd_per_hour_max
    if "price_max" in members and ceiling is not None:
        yield from _price_mend(trials)
    target = trials.case.objective.tokens_per_s_min
    if "tokens_per_s_min" in members and target is not None:
        free = admissible(edits.target_dropped(trials.case))
        best = None if free is None else _best_tokens_per_s(free)
        if best is not None:
            lower = floor(min(best, target) * (1.0 - 1e-9))
            change = edits.target_set(float(max(lower, 1)))
            if trials.possible(change) is True:
                yield Mend(
                    demand="tokens_per_s_min",
                    text=f"ask for {max(lower, 1):,} tokens/s",
                    amount=target - lower,
                    tight=False,
                    apply=change,
                )
    if "speed_ratio_max" in members:
        change = edits.policy_set(speed_ratio_max=None)
        if trials.possible(change) is True:
            yield Mend(
                demand="speed_ratio_max", text="drop speed_ratio_max", amount=1.0, tight=False, apply=change
            )


def _best_tokens_per_s(problem: BoundaryProblem) -> float | None:
    """Tokens/s of the best plan found within the usual time."""
    result, _ = first_plan(problem, lambda _value: False, lambda: False, SOLVE_SECONDS)
    return result.value if result.replicas else None


def _price_mend(trials: Trials) -> Iterator[Mend]:
    """The lowest ceiling under which a plan exists, to the cent."""
    free = admissible(edits.policy_set(usd_per_hour_max=None)(trials.case))
    if free is None:
        return
    if free.objective.kind is not ObjectiveKind.PRICE and countable(free):
        wanted = max(1, free.replicas_min)
        least = least_usd_per_hour(free, reach(free).minimal, wanted)
    else:
        least = sum(c.num_devices * c.device.usd_per_hour for c in free.classes)
    if not least < float("inf"):
        return
    cents = ceil(least * 100.0 - 1e-6)
    change = edits.policy_set(usd_per_hour_max=cents / 100.0)
    if trials.possible(change) is True:
        below = edits.policy_set(usd_per_hour_max=(cents - 1) / 100.0)
        yield Mend(
            demand="price_max",
            text=f"allow price_max {cents / 100.0:.2f} USD/h",
            amount=cents / 100.0,
            tight=trials.possible(below) is False,
            apply=change,
            less=below,
        )
