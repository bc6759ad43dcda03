"""Each member of a conflict in the fleet's own words, with the figures that make it one.

Sums of bytes in these lines are facts about job and fleet that help a reader; the proof is the exact search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from costmodels.fleet import Device
from costmodels.units import format_bytes
from planner.explain.cases import Case
from planner.explain.demands import with_job
from planner.explain.edits import required_tier
from planner.explain.judge import Judgement, judge
from planner.explain.reach import countable, least_usd_per_hour, reach
from planner.problem import BoundaryProblem
from policies.policy import SpareKind


def reasons(case: Case, members: tuple[str, ...], reduced: Case, verdict: Judgement) -> tuple[str, ...]:
    """One line per thing that takes part. `reduced` makes the members' demands alone, `verdict` judges it."""
    problem = reduced.problem()
    lines = [*_tier_lines(case, members, problem)]
    if "memory" in members:
        lines += _memory_lines(case, members, problem, verdict)
    if "max_stages" in members:
        lines.append(_stages_line(reduced))
    if "micro_batch_sizes" in members:
        sizes = ", ".join(str(size) for size in case.workload.job.micro_batch_sizes)
        lines.append(f"micro-batches may have {sizes} sequences, so at most that many ranks share a stage")
    if "executor" in members:
        lines.append(
            f"executor `{case.executor}` runs equal widths only, and ZeRO-2 and 3 without a pipeline only"
        )
    if "links" in members:
        lines += _link_lines(case)
    lines += _count_lines(case, members, verdict)
    lines += _value_lines(case, members, reduced, verdict)
    if not members:
        lines.append(_bare_line(case, problem))
    return tuple(lines)


def _tier_lines(case: Case, members: tuple[str, ...], problem: BoundaryProblem) -> Iterator[str]:
    by_tier: dict[str, list[str]] = {}
    for name in members:
        if name.startswith(("see.", "layer_tiers")):
            by_tier.setdefault(required_tier(case, name), []).append(_who_needs(case, name))
    for tier, needs in by_tier.items():
        tier_i = case.fleet.tiers.index(tier)
        cleared = [d for d in case.devices if d.tier_i >= tier_i]
        have = f"only {_devices_text(cleared)} ha{'s' if len(cleared) == 1 else 've'} it"
        if not cleared:
            have = f"no device of {case.boundary} has it"
        elif len(cleared) == len(case.devices):
            have = "every device has it"
        yield f"{' and '.join(needs)} need{'s' if len(needs) == 1 else ''} tier `{tier}`, and {have}"


def _who_needs(case: Case, name: str) -> str:
    last = case.workload.num_layers - 1
    if name == "see.tokens":
        return "the stage with layer 0, which sees the tokens,"
    if name == "see.labels":
        return f"the stage with layer {last}, which sees the labels,"
    if name.startswith("see."):
        return f"whoever holds {name.removeprefix('see.')}"
    rule = case.policy.layer_tiers[int(name[len("layer_tiers[") : -1])]
    return f"whoever holds one of {layers_text(rule.start, min(rule.stop, last + 1))}"


def layers_text(start: int, stop: int) -> str:
    """`layer 3` or `layers 3-7` for [start, stop)."""
    return f"layer {start}" if stop == start + 1 else f"layers {start}-{stop - 1}"


def _devices_text(devices: list[Device]) -> str:
    kinds = Counter(d.type_name for d in devices)
    hosts = list(dict.fromkeys(d.host_id for d in devices))
    shown = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more hosts" if len(hosts) > 3 else "")
    return " + ".join(f"{count} x {name}" for name, count in kinds.items()) + f" on {shown}"


def _memory_lines(
    case: Case, members: tuple[str, ...], problem: BoundaryProblem, verdict: Judgement
) -> Iterator[str]:
    job = case.workload.job
    per_param = job.weight_bytes_per_param
    per_trained = job.gradient_bytes_per_param + job.optimiser_state_bytes_per_param
    layers = case.workload.layers
    held = [
        (0 if layer.tied_to is not None else layer.params * per_param) + layer.trainable_params * per_trained
        for layer in layers
    ]
    strictest = max(problem.tier_required, default=0)
    if strictest > 0:
        chosen = [i for i, tier_i in enumerate(problem.tier_required) if tier_i == strictest]
        devices = [d for d in case.devices if d.tier_i >= strictest]
        tier = f" cleared for `{case.fleet.tiers[strictest]}`"
    else:
        chosen, devices, tier = list(range(len(layers))), list(case.devices), ""
    need = sum(held[i] for i in chosen)
    have = sum(d.memory_bytes for d in devices)
    which = "all layers" if len(chosen) == len(layers) else _positions_text(chosen)
    verb = "hold" if len(chosen) > 1 else "holds"
    who = f"the {_plural(len(devices), 'device')}{tier} {'have' if len(devices) != 1 else 'has'}"
    state = "of weights, gradients and optimiser state, activations apart"
    in_sum = f"{which} {verb} {format_bytes(need)} {state}, and {who} {format_bytes(have)} of memory"
    both_ends = strictest > 0 and chosen[0] == 0 and chosen[-1] == len(layers) - 1
    tight = _hardest_layer(problem)
    if tight is not None:
        layer, short = tight
        size = f"{format_bytes(short)} per device too large"
        yield f"layer {layer} is {size} for every cluster that may hold it"
    elif devices and (need > have or not both_ends):
        yield in_sum
    elif devices:
        have_text = f"{who} {format_bytes(have)} of memory"
        whole = f"{format_bytes(sum(held))} {state}"
        yield (
            f"both ends need it, so one stage holds the whole model, {whole},"
            f" or two stages take cleared devices, and {have_text}"
        )
    if verdict.num_replicas == 0 and verdict.lowest is not None and 0 < verdict.lowest < len(layers):
        yield f"the longest end of the chain that fits is {layers_text(verdict.lowest, len(layers))}"


def _positions_text(chosen: list[int]) -> str:
    """`layers 0-3 and 33`."""
    runs: list[list[int]] = []
    for i in chosen:
        if runs and runs[-1][1] == i:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1])
    words = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in runs]
    return f"layer{'s' if len(chosen) > 1 else ''} {' and '.join(words)}"


def _hardest_layer(problem: BoundaryProblem) -> tuple[int, float] | None:
    """A layer that fits no cluster on its own, with the bytes short per device; None if there is none."""
    model = problem.cost_model
    for layer in range(problem.num_layers):
        least = float("inf")
        for mode in problem.modes:
            for template in (problem.templates[i] for i in mode.templates):
                if template.tier_i < problem.tier_required[layer]:
                    continue
                cost = model.stage(
                    template.cluster, (layer, layer + 1), template.strategy, mode.micro_batch_size, 1
                )
                if cost is not None:
                    short = max(
                        sum(kinds.values()) - limit
                        for kinds, limit in zip(cost.memory_bytes, cost.limit_bytes, strict=True)
                    )
                    least = min(least, short)
        if 0.0 < least < float("inf"):
            return layer, least
    return None


def _stages_line(reduced: Case) -> str:
    allowed = reduced.workload.job.max_stages
    for more in range(allowed + 1, reduced.workload.num_layers + 1):
        if judge(with_job(reduced, max_stages=more).problem(), thorough=False).possible is True:
            return f"a replica may have {_plural(allowed, 'stage')}, and {more} are needed"
    return f"a replica may have {_plural(allowed, 'stage')}"


def _link_lines(case: Case) -> Iterator[str]:
    known = case.fleet.link_by_ends
    sites = case.own_sites
    unlinked = [
        f"{a} and {b}"
        for i, a in enumerate(sites)
        for b in sites[i + 1 :]
        if (a, b) not in known or (b, a) not in known
    ]
    if unlinked:
        shown = ", ".join(unlinked[:4]) + (
            f" and {len(unlinked) - 4} more pairs" if len(unlinked) > 4 else ""
        )
        yield f"no link joins {shown} in both directions"
    else:
        yield "the links between sites are too slow"


def _count_lines(case: Case, members: tuple[str, ...], verdict: Judgement) -> Iterator[str]:
    policy = case.policy
    only = "only " if verdict.num_replicas else ""
    found = f"and {only}{_plural(verdict.num_replicas, 'replica')} can be formed"
    if {"cohort.min", "cohort.drop_tolerance"} & set(members):
        wanted = policy.min_cohort + policy.drop_tolerance
        parts = f"cohort.min {policy.min_cohort} and cohort.drop_tolerance {policy.drop_tolerance}"
        yield f"{parts} ask for {wanted} replicas in {case.boundary}, {found} under these demands"
    if "replicas_max" in members:
        yield f"replicas_max allows {_plural(policy.replicas_max or 0, 'replica')}"
    if "one-replica" in members:
        yield "objective step-time plans one replica"
    if "spares" in members:
        rule = policy.spares
        if rule.kind is SpareKind.DEDICATED:
            yield "every stage holds back a device of its own (spares dedicated)"
        else:
            pools = f"every pool of at least {rule.pool_min_devices} devices"
            yield f"{_plural(rule.per_pool, 'device')} of {pools} stay unused (spares pooled)"


def _value_lines(case: Case, members: tuple[str, ...], reduced: Case, verdict: Judgement) -> Iterator[str]:
    if "price_max" in members and case.policy.usd_per_hour_max is not None:
        line = f"price_max is {case.policy.usd_per_hour_max:g} USD/h"
        problem = reduced.problem()
        if countable(problem) and "tokens_per_s_min" not in members:
            usd = least_usd_per_hour(problem, reach(problem).minimal, verdict.wanted)
            if usd < float("inf"):
                cheapest = "replica costs" if verdict.wanted == 1 else f"{verdict.wanted} replicas cost"
                line += f", and the cheapest {cheapest} {usd:.2f} USD/h"
        yield line
    if "tokens_per_s_min" in members:
        line = f"the target is {case.objective.tokens_per_s_min:,.6g} tokens/s"
        if verdict.bound_tokens_per_s is not None:
            line += f", and no plan is faster than {verdict.bound_tokens_per_s:,.6g}"
        yield line
    if "speed_ratio_max" in members:
        yield f"replicas count at most {case.policy.speed_ratio_max:g} times the slowest (speed_ratio_max)"


def _bare_line(case: Case, problem: BoundaryProblem) -> str:
    if not case.devices:
        return f"boundary {case.boundary} has no devices"
    if any(mode.templates for mode in problem.modes):
        return f"no chain of clusters of {case.boundary} runs all layers, whatever else is dropped"
    return f"no cluster of {case.boundary} can share the job's micro-batches"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
