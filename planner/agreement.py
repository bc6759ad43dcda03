"""Whether the core types are sound in themselves and agree with each other. Standard library only.

Every check answers with a path in core names, so that a file's reader can say where the user wrote it and the
reader of a plan can name the field.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from costmodels.fleet import Fleet
from costmodels.workload import DTYPE_BYTES, Job, LayerSpec, Workload
from planner.faults import nearest
from policies.policy import Policy
from policies.sync import sync_settings

_LAYER_AMOUNTS = (
    "params",
    "trainable_params",
    "forward_flops_per_token",
    "activation_bytes_per_token",
    "input_bytes_per_token",
    "output_bytes_per_token",
    "transient_bytes_per_token",
    "num_collectives",
    "expert_params",
    "shared_params",
)
_JOB_AMOUNTS = (
    "adapter_rank",
    "gradient_bytes_per_param",
    "optimiser_state_bytes_per_param",
    "sync_copies_bytes_per_param",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """One thing wrong: where (core field names and positions), what stands there, what may, and a way out."""

    path: tuple[str | int, ...]
    value: str
    limit: str
    hint: str = ""


def fleet_disagreements(fleet: Fleet) -> Iterator[Disagreement]:
    """Duplicate ids, dangling references and impossible figures of a fleet."""
    yield from _ids(("tiers",), fleet.tiers)
    yield from _ids(("boundaries",), fleet.boundaries)
    yield from _ids(("sites",), [site.site_id for site in fleet.sites], "site_id")
    yield from _ids(("hosts",), [host.host_id for host in fleet.hosts], "host_id")
    yield from _ids(("devices",), [device.device_id for device in fleet.devices], "device_id")
    yield from _site_disagreements(fleet)
    yield from _device_disagreements(fleet)
    yield from _link_disagreements(fleet)
    yield from _within(("memory_reserve_frac",), fleet.memory_reserve_frac, 0.0, 1.0, below=True)


def _site_disagreements(fleet: Fleet) -> Iterator[Disagreement]:
    for i, site in enumerate(fleet.sites):
        yield from _known(("sites", i, "boundary_id"), site.boundary_id, fleet.boundaries, "a boundary")
        yield from _positive(("sites", i, "fabric_bytes_per_s"), site.fabric_bytes_per_s)
        yield from _at_least_0(("sites", i, "fabric_latency_s"), site.fabric_latency_s)
    for i, host in enumerate(fleet.hosts):
        yield from _known(("hosts", i, "site_id"), host.site_id, fleet.site_by_id, "a site")
        yield from _positive(("hosts", i, "link_bytes_per_s"), host.link_bytes_per_s)
        yield from _at_least_0(("hosts", i, "link_latency_s"), host.link_latency_s)


def _device_disagreements(fleet: Fleet) -> Iterator[Disagreement]:
    last_tier_i = len(fleet.tiers) - 1
    for i, device in enumerate(fleet.devices):
        path = ("devices", i)
        yield from _known((*path, "host_id"), device.host_id, fleet.host_by_id, "a host")
        yield from _positive((*path, "memory_bytes"), device.memory_bytes)
        yield from _positive((*path, "memory_bytes_per_s"), device.memory_bytes_per_s)
        yield from _at_least_0((*path, "usd_per_hour"), device.usd_per_hour)
        if not 0 <= device.tier_i <= last_tier_i:
            limit = f"a position from 0 to {last_tier_i} in the list of tiers"
            yield Disagreement(path=(*path, "tier_i"), value=str(device.tier_i), limit=limit)
        if device.mtbf_s is not None:
            yield from _positive((*path, "mtbf_s"), device.mtbf_s)
        rates = [dtype for dtype, _ in device.flop_per_s]
        yield from _ids((*path, "flop_per_s"), rates)
        if not rates:
            yield Disagreement(
                path=(*path, "flop_per_s"), value="no rate", limit="a rate of at least one dtype"
            )
        for j, (dtype, rate) in enumerate(device.flop_per_s):
            yield from _known((*path, "flop_per_s", j), dtype, DTYPE_BYTES, "a dtype")
            yield from _positive((*path, "flop_per_s", j), rate)
        yield from _known((*path, "origin"), device.origin, ("measured", "declared", "assumed"), "an origin")


def _link_disagreements(fleet: Fleet) -> Iterator[Disagreement]:
    seen: set[tuple[str, str]] = set()
    for i, link in enumerate(fleet.links):
        ends = (link.source_site_id, link.target_site_id)
        for field, site_id in zip(("source_site_id", "target_site_id"), ends, strict=True):
            yield from _known(("links", i, field), site_id, fleet.site_by_id, "a site")
        if ends[0] == ends[1]:
            hint = "the speed inside a site is the site's fabric"
            yield Disagreement(
                path=("links", i), value=f"{ends[0]} to itself", limit="two different sites", hint=hint
            )
        if ends in seen:
            yield Disagreement(
                path=("links", i), value=f"{ends[0]} to {ends[1]} again", limit="each direction once"
            )
        seen.add(ends)
        yield from _positive(("links", i, "bytes_per_s"), link.bytes_per_s)
        yield from _at_least_0(("links", i, "latency_s"), link.latency_s)


def workload_disagreements(workload: Workload) -> Iterator[Disagreement]:
    """Impossible figures, ties that lead nowhere or in circles, and job settings that do not fit together."""
    if not workload.layers:
        yield Disagreement(path=("layers",), value="an empty list", limit="at least one layer")
    for i, layer in enumerate(workload.layers):
        path = ("layers", i)
        for name in _LAYER_AMOUNTS:
            yield from _at_least_0((*path, name), getattr(layer, name))
        for name in ("trainable_params", "expert_params"):
            if getattr(layer, name) > layer.params:
                limit = f"at most params ({layer.params:,})"
                yield Disagreement(path=(*path, name), value=f"{getattr(layer, name):,}", limit=limit)
        if layer.tensor_parallel_max < 1:
            yield Disagreement(
                path=(*path, "tensor_parallel_max"), value=str(layer.tensor_parallel_max), limit="at least 1"
            )
    yield from _tie_disagreements([layer.tied_to for layer in workload.layers])
    yield from _share_disagreements(workload.layers)
    yield from _job_disagreements(workload.job)


def _tie_disagreements(tied_to: Sequence[int | None]) -> Iterator[Disagreement]:
    for i, target in enumerate(tied_to):
        if target is None:
            continue
        path = ("layers", i, "tied_to")
        if not 0 <= target < len(tied_to):
            yield Disagreement(path=path, value=str(target), limit=f"a layer from 0 to {len(tied_to) - 1}")
        elif target == i:
            yield Disagreement(path=path, value=str(target), limit="another layer")
        elif tied_to[target] is not None:
            hint = "tie both to the layer that owns the weights, and leave that one untied"
            limit = "a layer that owns its weights"
            yield Disagreement(
                path=path, value=f"{target}, itself tied to {tied_to[target]}", limit=limit, hint=hint
            )


def _share_disagreements(layers: Sequence[LayerSpec]) -> Iterator[Disagreement]:
    """Layers that share more weights than both ends of their tie hold."""
    for i, layer in enumerate(layers):
        path = ("layers", i, "shared_params")
        owner = layer.tied_to
        if owner is None and layer.shared_params > 0:
            yield Disagreement(path=path, value=f"{layer.shared_params:,}", limit="0 without a tie")
        elif owner is not None and 0 <= owner < len(layers):
            most = min(layer.params, layers[owner].params)
            if layer.shared_params > most:
                limit = f"at most {most:,}, what both ends of the tie hold"
                yield Disagreement(path=path, value=f"{layer.shared_params:,}", limit=limit)


def _job_disagreements(job: Job) -> Iterator[Disagreement]:
    yield from _known(("job", "dtype"), job.dtype, DTYPE_BYTES, "a dtype")
    for name in ("sequence_tokens", "sequences_per_step", "max_stages"):
        if getattr(job, name) < 1:
            yield Disagreement(path=("job", name), value=str(getattr(job, name)), limit="at least 1")
    for name in _JOB_AMOUNTS:
        yield from _at_least_0(("job", name), getattr(job, name))
    sizes = job.micro_batch_sizes
    if not sizes:
        yield Disagreement(
            path=("job", "micro_batch_sizes"), value="an empty list", limit="at least one size"
        )
    yield from _ids(("job", "micro_batch_sizes"), [str(size) for size in sizes])
    for i, size in enumerate(sizes):
        path = ("job", "micro_batch_sizes", i)
        if size < 1:
            yield Disagreement(path=path, value=str(size), limit="at least 1")
        elif job.sequences_per_step >= 1 and job.sequences_per_step % size:
            limit = f"a divisor of the {job.sequences_per_step} sequences per step"
            hint = "change sequences_per_step (or tokens_per_step), or leave this size out"
            yield Disagreement(path=path, value=str(size), limit=limit, hint=hint)


def policy_disagreements(policy: Policy) -> Iterator[Disagreement]:
    """What is wrong with a policy whatever the fleet."""
    if policy.min_cohort < 1:
        yield Disagreement(path=("min_cohort",), value=str(policy.min_cohort), limit="at least 1")
    yield from _at_least_0(("drop_tolerance",), policy.drop_tolerance)
    yield from _ids(("boundaries",), policy.boundaries or ())
    if policy.boundaries == ():
        yield Disagreement(path=("boundaries",), value="an empty list", limit="at least one boundary")
    for i, rule in enumerate(policy.layer_tiers):
        if not 0 <= rule.start < rule.stop:
            limit = "[first, one past the last], not empty"
            yield Disagreement(path=("layer_tiers", i), value=f"[{rule.start}, {rule.stop})", limit=limit)
    for name in ("per_pool", "pool_min_devices"):
        if getattr(policy.spares, name) < 1:
            yield Disagreement(
                path=("spares", name), value=str(getattr(policy.spares, name)), limit="at least 1"
            )
    if policy.spill_over is not None:
        yield from _ids(("spill_over", "owners"), policy.spill_over.owners)
        if policy.spill_over.tokens_per_s_below is not None:
            yield from _positive(("spill_over", "tokens_per_s_below"), policy.spill_over.tokens_per_s_below)
    if policy.usd_per_hour_max is not None:
        yield from _at_least_0(("usd_per_hour_max",), policy.usd_per_hour_max)
    if policy.speed_ratio_max is not None:
        yield from _within(("speed_ratio_max",), policy.speed_ratio_max, 1.0, math.inf)
    if policy.replicas_max is not None and policy.replicas_max < 1:
        yield Disagreement(path=("replicas_max",), value=str(policy.replicas_max), limit="at least 1")
    keys = [key for key, _ in policy.sync]
    yield from _ids(("sync",), keys)
    for fault in sync_settings(policy.sync)[1]:
        place = ("sync", keys.index(fault.key)) if fault.key in keys else ("sync",)
        yield Disagreement(path=place, value=fault.value, limit=fault.limit)
    yield from _ids(("audit_keys",), [key for key, _ in policy.audit_keys])


def joint_disagreements(
    policy: Policy, fleet: Fleet | None, workload: Workload | None
) -> Iterator[Disagreement]:
    """Where the policy names what the fleet or the model doesn't have; None for one that can't be read."""
    if fleet is not None:
        for name in ("tokens_tier", "labels_tier", "activations_tier", "weights_tier"):
            if getattr(policy, name) is not None:
                yield from _known((name,), getattr(policy, name), fleet.tiers, "a tier of the fleet")
        for i, rule in enumerate(policy.layer_tiers):
            yield from _known(("layer_tiers", i, "tier"), rule.tier, fleet.tiers, "a tier of the fleet")
        for i, boundary in enumerate(policy.boundaries or ()):
            yield from _known(("boundaries", i), boundary, fleet.boundaries, "a boundary of the fleet")
        for i, (boundary, _) in enumerate(policy.audit_keys):
            yield from _known(("audit_keys", i), boundary, fleet.boundaries, "a boundary of the fleet")
        owners = {device.owner for device in fleet.devices if device.owner}
        for i, owner in enumerate(policy.spill_over.owners if policy.spill_over else ()):
            yield from _known(("spill_over", "owners", i), owner, owners, "an owner of a device of the fleet")
    if workload is not None:
        for i, rule in enumerate(policy.layer_tiers):
            if rule.stop > workload.num_layers:
                limit = f"inside the model's chain of {workload.num_layers} layers"
                hint = f"layer 0 is the embedding, layer {workload.num_layers - 1} the loss head"
                value = f"[{rule.start}, {rule.stop})"
                yield Disagreement(path=("layer_tiers", i), value=value, limit=limit, hint=hint)


def rate_disagreements(fleet: Fleet, workload: Workload) -> Iterator[Disagreement]:
    """Types of device that have no rate for the dtype of the job, nor one for fp32 that stands in."""
    dtype = workload.job.dtype
    idle = {
        device.type_name: device for device in reversed(fleet.devices) if device.rate_flop_per_s(dtype) <= 0
    }
    for name, device in sorted(idle.items()):
        rated = ", ".join(other for other, rate in device.flop_per_s if rate > 0) or "none"
        limit = f"a dtype that `{name}` has a rate of: {rated} (device {device.device_id})"
        hint = f"give `{name}` a {dtype} rate in the fleet, or leave its hosts out"
        yield Disagreement(path=("job", "dtype"), value=f"`{dtype}`", limit=limit, hint=hint)


def _ids(path: tuple[str | int, ...], ids: Sequence[str], field: str | None = None) -> Iterator[Disagreement]:
    """Ids are given once and are not empty."""
    if len(set(ids)) == len(ids) and all(ids):
        return
    counted: Counter[str] = Counter()
    for i, name in enumerate(ids):
        counted[name] += 1
        where = (*path, i) if field is None else (*path, i, field)
        if not name:
            yield Disagreement(path=where, value="an empty name", limit="a name")
        elif counted[name] > 1:
            yield Disagreement(
                path=where, value=f"`{name}` again", limit="each name once", hint="remove or rename it"
            )


def _known(path: tuple[str | int, ...], name: str, known: Iterable[str], what: str) -> Iterator[Disagreement]:
    names = known if isinstance(known, dict | set) else tuple(known)
    if name not in names:
        yield Disagreement(path=path, value=f"`{name}`", limit=what, hint=nearest(name, names))


def _positive(path: tuple[str | int, ...], value: float) -> Iterator[Disagreement]:
    if not (math.isfinite(value) and value > 0):
        yield Disagreement(path=path, value=repr(value), limit="more than 0 and finite")


def _at_least_0(path: tuple[str | int, ...], value: float) -> Iterator[Disagreement]:
    if not (math.isfinite(value) and value >= 0):
        yield Disagreement(path=path, value=repr(value), limit="0 or more and finite")


def _within(
    path: tuple[str | int, ...], value: float, low: float, high: float, *, below: bool = False
) -> Iterator[Disagreement]:
    if not (low <= value <= high and math.isfinite(value)) or (below and value == high):
        limit = (
            f"at least {low:g}"
            if math.isinf(high)
            else f"from {low:g} to {'below ' if below else ''}{high:g}"
        )
        yield Disagreement(path=path, value=repr(value), limit=limit)
