"""The sentences and numbers that all renderings share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import isfinite

from costmodels.units import format_seconds
from planner.hostnames import compress_names
from planner.plan import Certificate, StagePlan
from planner.render.view import RUNNING, BoundaryView, PlanView, ReplicaView

UNITS = {"tokens": "tokens/s", "steady-state": "tokens/s", "price": "USD/h", "step-time": "s per step"}
MINIMISED = {"price": "dearer than the best", "step-time": "slower than the best"}
REASONS = {
    "spare": "spare of its stage",
    "pooled-spare": "held back as a spare for its pool",
    "not-cleared": "its tier may hold no layer of this model",
    "no-stage-fits": "no candidate cluster with it holds even one layer",
    "not-needed": "the plan is no better with it",
    "not-in-plan": "its boundary or owner takes no part in this plan",
}


def plain(text: str) -> str:
    """A text from a plan without control characters, which terminals obey and XML forbids."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 replica`, `2 replicas`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def percent(fraction: float) -> str:
    """A share as whole percent; an overfull device shows above 100%."""
    return f"{fraction:.0%}" if isfinite(fraction) else "?"


def layers_text(stage: StagePlan) -> str:
    """The half-open layer range as written in plans."""
    return f"[{stage.layers[0]},{stage.layers[1]})"


def strategy_text(stage: StagePlan) -> str:
    """`dp 4 zero-2`, `tp 2`, or `plain` for one device alone, with recomputed layers."""
    words = [f"dp {stage.dp}"] if stage.dp > 1 else []
    words += [f"tp {stage.tp}"] if stage.tp > 1 else []
    words += [f"zero-{stage.zero}"] if stage.zero else []
    words += [f"recompute {stage.recompute}"] if stage.recompute else []
    return " ".join(words) or "plain"


def headline(view: PlanView) -> str:
    """What the plan runs, over what, how fast and at what price."""
    words = f"{count(len(view.replicas), 'replica')} over {used_text(view.boundaries)}"
    figures = [f"{view.plan.tokens_per_s:,.0f} tokens/s"]
    if len(view.replicas) == 1:
        figures.append(f"step {format_seconds(view.replicas[0].plan.step_time_s)}")
    if view.usd_per_hour > 0.0:
        figures.append(f"{view.usd_per_hour:,.2f} USD/h")
    return f"{words}, {', '.join(figures)}"


def used_text(boundaries: Sequence[BoundaryView]) -> str:
    """`12 of 18 devices`."""
    used = sum(boundary.num_used for boundary in boundaries)
    return f"{used:,} of {count(sum(len(boundary.devices) for boundary in boundaries), 'device')}"


def bound_sentence(certificate: Certificate) -> str:
    """What no plan can do better, and so how far this one is from the best."""
    if certificate.bound is None:
        return "nothing is proven about better plans"
    unit = UNITS.get(certificate.objective, "")
    excess = certificate.excess_frac
    if excess is not None and excess <= 1e-9:
        return f"no plan of the candidate list beats {certificate.value:,.6g} {unit}: this one is the best"
    claim = f"no plan can beat {certificate.bound:,.6g} {unit}"
    if excess is None or not isfinite(excess):
        return claim
    distance = MINIMISED.get(certificate.objective)
    if distance is None:
        return f"{claim}, so the best is at most {excess:.2%} faster than this one"
    return f"{claim}, so this one is at most {excess:.2%} {distance}"


def value_text(certificate: Certificate) -> str:
    """The plan's value with its unit."""
    return f"{certificate.value:,.6g} {UNITS.get(certificate.objective, '')}".rstrip()


def counted_note(view: PlanView) -> str:
    """Why the value is less than the replicas' speeds together, where it is."""
    certificate = view.certificate
    counted = certificate.objective in ("tokens", "steady-state")
    if counted and certificate.value < view.plan.tokens_per_s * (1.0 - 1e-9):
        return "the value counts replicas as no faster than the policy's speed ratio allows"
    return ""


def reason_text(reason: str) -> str:
    """Why a device doesn't run, in words."""
    return REASONS.get(reason, plain(reason.replace("-", " ")))


def device_ranges(device_ids: Iterable[str]) -> list[str]:
    """Device ids by host, hosts with the same slots folded: `clinic-[1-3]/[0-1]`."""
    slots_by_host: dict[str, list[str]] = defaultdict(list)
    for device_id in device_ids:
        host, _, slot = device_id.rpartition("/")
        slots_by_host[host].append(slot)
    hosts_by_slots: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for host, slots in slots_by_host.items():
        hosts_by_slots[tuple(slots)].append(host)
    ranges = []
    for folded, hosts in hosts_by_slots.items():
        for slot in compress_names(folded):
            ranges += [f"{host}/{slot}" if host else slot for host in compress_names(hosts)]
    return [plain(item) for item in ranges]


def idle_groups(boundary: BoundaryView) -> list[tuple[str, str, list[str]]]:
    """(reason, device type, device ids) of what doesn't run, in the fleet's order."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in boundary.devices:
        if item.role != RUNNING:
            groups[item.reason, item.device.type_name].append(item.device.device_id)
    return [(reason, type_name, ids) for (reason, type_name), ids in groups.items()]


def alike(replicas: Sequence[ReplicaView]) -> list[tuple[ReplicaView, ...]]:
    """Replicas with equal chains and speed together, by first appearance."""
    groups: dict[object, list[ReplicaView]] = defaultdict(list)
    for replica in replicas:
        chain = tuple(
            (stage.plan.layers, stage.devices_text, stage.site_id, stage.tier_i, strategy_text(stage.plan))
            for stage in replica.stages
        )
        plan = replica.plan
        groups[chain, plan.micro_batches, plan.micro_batch_size, f"{plan.tokens_per_s:.6g}"].append(replica)
    return [tuple(group) for group in groups.values()]


def numbers_text(numbers: Sequence[int]) -> str:
    """`r0-3, r7` for the numbers of replicas."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"r{a}" if a == b else f"r{a}-{b}" for a, b in runs)
