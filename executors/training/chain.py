"""The model as a chain of layers that can be built one by one, alike in every process and under every cut."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from executors.training.adapters import PEFT_PREFIX, add_adapters, is_adapter, peft_name
from executors.training.families import FAMILIES, Family
from executors.training.layers import BlockLayer, ChainLayer, token_loss, with_recompute
from executors.training.model_spec import ModelSpec
from executors.training.positions import Positions
from policies.errors import Fault, InputError

__all__ = ["Chain", "token_loss", "with_recompute"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_TIED_PARAMETERS = {"first": "words.weight", "last": "output.weight"}


class Chain:
    """A causal language model as layers 0 (embedding), 1 to n - 2 (blocks) and n - 1 (final norm, loss head).

    Layer 0 takes tokens (B, T) int64, the last one gives logits (B, T, V), and between any two layers passes
    one tensor of hidden states (B, T, H).
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.num_layers = spec.num_layers
        self.family = _family(spec)
        _require_dtype(spec.dtype)
        self.config = _config(spec)
        self.tied: tuple[int, int] | None = (
            (0, self.num_layers - 1) if self.config.tie_word_embeddings else None
        )
        self._positions: Positions | None = None

    def build(self, layer_i: int) -> ChainLayer:
        """A layer on the CPU with its weights in the job's dtype, ready to train.

        Only what is to be trained has `requires_grad`: every weight, or the adapters alone.
        """
        layer = self._with_weights(layer_i)
        layer.requires_grad_(self.spec.full)
        if not self.spec.full and 0 < layer_i < self.num_layers - 1:
            with _Drawing(self.spec.seed, "adapter", layer_i):
                add_adapters(layer, self.spec, self.family)
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(_DTYPES[self.spec.dtype])
        layer.train()
        return layer

    def checkpoint_name(self, layer_i: int, parameter_name: str) -> str:
        """The name of a layer's parameter in the whole model's weights, or in a PEFT adapter's."""
        name = self._whole_name(layer_i, peft_name(parameter_name))
        return PEFT_PREFIX + name if is_adapter(parameter_name) else name

    def tied_parameter(self, layer_i: int) -> str | None:
        """The name inside this layer of the weight that first and last layer share, or None."""
        if self.tied is None or layer_i not in self.tied:
            return None
        return _TIED_PARAMETERS["first" if layer_i == 0 else "last"]

    def _whole_name(self, layer_i: int, parameter_name: str) -> str:
        part, _, rest = parameter_name.partition(".")
        if part == "projection":
            part = "projection.in" if layer_i == 0 else "projection.out"
        return f"{self.family.names[part].format(layer_i - 1)}.{rest}"

    def _with_weights(self, layer_i: int) -> ChainLayer:
        layer = self._without_weights(layer_i)
        layer.to_empty(device="cpu")
        with _Drawing(self.spec.seed, "weights", layer_i):
            layer.apply(self._initialiser()._init_weights)
        if self.tied is not None and layer_i == self.tied[1]:
            layer.output.weight.data.copy_(self._with_weights(0).words.weight)
        return layer

    def _without_weights(self, layer_i: int) -> ChainLayer:
        """The layer's modules with shapes alone."""
        if not 0 <= layer_i < self.num_layers:
            raise IndexError(f"layer {layer_i} of a chain of {self.num_layers}")
        with torch.device("meta"):
            if layer_i == 0:
                return self.family.embedding(self.config)
            if layer_i == self.num_layers - 1:
                return self.family.head(self.config, self.family)
            block = self.family.get(self.family.block_suffix)(self.config, layer_idx=layer_i - 1)
        return BlockLayer(block, self._shared_positions(), self.family.window(self.config, layer_i - 1))

    def _shared_positions(self) -> Positions:
        if self._positions is None:
            rotary = self.family.get("RotaryEmbedding")(self.config) if self.family.rotary else None
            self._positions = Positions(rotary)
        return self._positions

    def _initialiser(self) -> Any:
        """The family's model without its layers: it knows how each module's first weights are drawn."""
        model_class = self.family.get("PreTrainedModel")
        model = model_class.__new__(model_class)
        torch.nn.Module.__init__(model)
        model.config = self.config
        return model


class _Drawing:
    """A random generator of its own for one purpose and layer; the process's generator stays as it was."""

    def __init__(self, seed: int, purpose: str, layer_i: int) -> None:
        digest = hashlib.sha256(f"{seed}/{purpose}/{layer_i}".encode()).digest()
        self._seed = int.from_bytes(digest[:7], "big")

    def __enter__(self) -> None:
        self._before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.default_generator.set_state(self._before)


def _family(spec: ModelSpec) -> Family:
    model_type = spec.config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise InputError(
            "model-family-not-built",
            f"models of type {model_type} can be planned, but not built: buildable are {known}",
            faults=[Fault(place="model_type", value=repr(model_type), limit=f"one of {known}")],
            hint="choose one of these families, or launch a script of your own",
        )
    return family


def _require_dtype(dtype: str) -> None:
    if dtype == "fp16" and not torch.cuda.is_available():
        raise InputError(
            "fp16-on-cpu",
            "the job's dtype is fp16, which this machine's processor does not train in",
            faults=[Fault(place="job.dtype", value="fp16", limit="bf16 or fp32 without a GPU")],
            hint="set the dtype to bf16 or fp32 and plan again",
        )


def _config(spec: ModelSpec) -> Any:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[spec.config["model_type"]].from_dict(dict(spec.config))
    config._attn_implementation = "sdpa"
    config.use_cache = False
    return config
