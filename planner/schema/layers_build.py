"""Explicitly listed layers into core types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from costmodels.workload import LayerSpec
from planner.faults import nearest
from planner.schema.model import JobShape, LayerShape
from planner.schema.source import KeyPath, Source
from policies.errors import Fault
from policies.policy import LayerTier

PlacedTier = tuple[LayerTier, KeyPath]


def build_layers(
    layers: Sequence[LayerShape], job: JobShape, source: Source, faults: list[Fault]
) -> tuple[tuple[LayerSpec, ...], tuple[PlacedTier, ...]]:
    """Layers with `repeat` written out, ties turned into positions, and the tiers asked for."""
    position: dict[str, int] = {}
    written_at: dict[str, int] = {}
    start = 0
    params_of = {layer.kind: layer.params for layer in layers}
    for i, layer in enumerate(layers):
        if layer.kind in position:
            hint = f"also given at {source.place(('layers', written_at[layer.kind], 'kind'))}; use `repeat`"
            faults.append(source.fault(("layers", i, "kind"), "each kind once", hint=hint))
        position.setdefault(layer.kind, start)
        written_at.setdefault(layer.kind, i)
        start += layer.repeat
    _check_ties(layers, written_at, source, faults)
    specs: list[LayerSpec] = []
    tiers: list[PlacedTier] = []
    for i, layer in enumerate(layers):
        if layer.trainable_params is None and job.method == "lora":
            limit = "the adapter's weights, counted in `params` too (0 for a layer without adapter)"
            fault = source.fault(("layers", i, "trainable_params"), limit, value="missing")
            faults.append(fault)
        if layer.tier is not None:
            rule = LayerTier(start=len(specs), stop=len(specs) + layer.repeat, tier=layer.tier)
            tiers.append((rule, ("layers", i, "tier")))
        specs += [_layer_spec(layer, position, params_of)] * layer.repeat
    return tuple(specs), tuple(tiers)


def _layer_spec(layer: LayerShape, position: Mapping[str, int], params_of: Mapping[str, int]) -> LayerSpec:
    shared = layer.shared_params
    if shared is None:
        shared = min(layer.params, params_of.get(layer.tied_to or "", 0))
    return LayerSpec(
        kind=layer.kind,
        params=layer.params,
        trainable_params=layer.params if layer.trainable_params is None else layer.trainable_params,
        forward_flops_per_token=layer.flops,
        activation_bytes_per_token=layer.activation,
        input_bytes_per_token=layer.input,
        output_bytes_per_token=layer.output,
        transient_bytes_per_token=layer.transient,
        num_collectives=layer.collectives,
        expert_params=layer.expert_params,
        tensor_parallel_max=layer.tensor_parallel_max,
        tied_to=None if layer.tied_to is None else position.get(layer.tied_to),
        shared_params=shared,
    )


def _check_ties(
    layers: Sequence[LayerShape], written_at: Mapping[str, int], source: Source, faults: list[Fault]
) -> None:
    """A tie leads to an earlier single layer that owns its weights, and shares no more than there are."""
    for i, layer in enumerate(layers):
        held = layer.params if layer.tied_to is not None else 0
        target = written_at.get(layer.tied_to or "")
        most = held if target is None else min(held, layers[target].params)
        if layer.shared_params is not None and layer.shared_params > most:
            limit = f"at most {most:,}, what both layers hold" if held else "no such key without `tied_to`"
            faults.append(source.fault(("layers", i, "shared_params"), limit))
        if layer.tied_to is None:
            continue
        path = ("layers", i, "tied_to")
        if target is None:
            faults.append(
                source.fault(path, "the kind of another layer", hint=nearest(layer.tied_to, written_at))
            )
        elif circle := _circle(layers, written_at, i):
            hint = "leave the layer that owns the weights untied"
            faults.append(source.fault(path, "no circle", value=circle, hint=hint))
        elif layers[target].tied_to is not None:
            hint = f"tie it to `{layers[target].tied_to}` directly"
            faults.append(source.fault(path, "a layer that is not tied itself", hint=hint))
        elif target > i:
            hint = "write `tied_to` at the later of the two"
            faults.append(source.fault(path, "an earlier layer", hint=hint))
        elif layers[target].repeat > 1 or layer.repeat > 1:
            limit = "layers without `repeat` at both ends"
            faults.append(source.fault(path, limit, hint="write the tied layer out on its own"))


def _circle(layers: Sequence[LayerShape], written_at: Mapping[str, int], start: int) -> str:
    """`a -> b -> a` when ties starting at layer `start` lead back to it, else an empty text."""
    names = [layers[start].kind]
    while (after := layers[written_at[names[-1]]].tied_to) in written_at and after not in names[1:]:
        names.append(str(after))
        if after == names[0]:
            return " -> ".join(names)
    return ""
