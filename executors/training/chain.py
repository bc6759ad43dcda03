"""The model as a chain of layers that can be built one by one, alike in every process and under every cut."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from executors.training.adapters import PEFT_PREFIX, add_adapters, is_adapter, peft_name
from executors.training.configuration import family_of, read_configuration
from executors.training.layers import BlockLayer, ChainLayer, token_loss, with_recompute
from executors.training.model_spec import ModelSpec
from executors.training.positions import Positions
from executors.training.weights import WeightFolder
from policies.errors import Fault, InputError

__all__ = ["TORCH_DTYPES", "Chain", "token_loss", "with_recompute"]

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Chain:
    """A causal language model as layers 0 (embedding), 1 to n - 2 (blocks) and n - 1 (final norm, loss head).

    Layer 0 takes tokens (B, T) int64, the last one gives logits (B, T, V), and between any two layers passes
    one tensor of hidden states (B, T, H). A layer's weights depend on the seed and its own number alone, or
    stand in the start folder. Attention, feed-forward part and norms are those of transformers, which
    includes the dropout a configuration asks for. Mixtures of experts train without auxiliary loss.

    `tied` are the two layers that share the word embedding, or None.

    Raises:
        InputError: `model-not-built` (family or setting), `fp16-on-cpu`, `start-of-another-model`.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.num_layers = spec.num_layers
        self.family = family_of(spec)
        _require_dtype(spec.dtype)
        self.config = read_configuration(spec, self.family)
        self.tied: tuple[int, int] | None = (
            (0, self.num_layers - 1) if self.config.tie_word_embeddings else None
        )
        self._positions: Positions | None = None
        self._start: WeightFolder | None = None

    def build(self, layer_i: int) -> ChainLayer:
        """A layer on the CPU with its weights in the job's dtype, ready to train.

        Only what is to be trained has `requires_grad`: every weight, or the adapters alone.

        Raises:
            InputError: `bad-weights`: the start folder lacks a weight or has it in another shape.
        """
        layer = self._drawn(layer_i) if self.spec.start is None else self._loaded(layer_i)
        layer.requires_grad_(self.spec.full)
        if not self.spec.full and 0 < layer_i < self.num_layers - 1:
            with _random_numbers(self.spec.seed, "adapter", layer_i):
                add_adapters(layer, self.spec, self.family)
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(TORCH_DTYPES[self.spec.dtype])
        layer.train()
        return layer

    def checkpoint_name(self, layer_i: int, parameter_name: str) -> str:
        """The name of a layer's parameter in the whole model's weights, or in a PEFT adapter's."""
        part, _, rest = peft_name(parameter_name).partition(".")
        if part == "projection":
            part = "projection.in" if layer_i == 0 else "projection.out"
        name = f"{self.family.names[part].format(layer_i - 1)}.{rest}"
        return PEFT_PREFIX + name if is_adapter(parameter_name) else name

    def tied_parameter(self, layer_i: int) -> str | None:
        """The name inside this layer of the weight that first and last layer share, or None."""
        if self.tied is None or layer_i not in self.tied:
            return None
        return "words.weight" if layer_i == self.tied[0] else "output.weight"

    def without_weights(self, layer_i: int) -> ChainLayer:
        """The layer without adapters on the `meta` device: modules, names and shapes alone."""
        if not 0 <= layer_i < self.num_layers:
            raise IndexError(f"layer {layer_i} of a chain of {self.num_layers}")
        with torch.device("meta"):
            if layer_i == 0:
                return self.family.embedding(self.config)
            if layer_i == self.num_layers - 1:
                return self.family.head(self.config)
            block = self.family.get(self.family.block)(self.config, layer_idx=layer_i - 1)
        window = self.family.window(self.config, layer_i - 1)
        return BlockLayer(block, self._shared_positions(), window)

    def _drawn(self, layer_i: int) -> ChainLayer:
        """The layer with random weights, drawn the way the family's model draws them."""
        layer = self.without_weights(layer_i)
        layer.to_empty(device="cpu")
        with _random_numbers(self.spec.seed, "weights", layer_i):
            layer.apply(self._initialiser()._init_weights)
        if self.tied is not None and layer_i == self.tied[1]:
            layer.output.weight.data.copy_(self._drawn(0).words.weight)
        return layer

    def _loaded(self, layer_i: int) -> ChainLayer:
        """The layer with the start folder's weights."""
        if self._start is None:
            self._start = WeightFolder(Path(str(self.spec.start)), self.family)
            self._start.require_no_block(self.family.names["layer"].format(self.num_layers - 2))
        layer = self.without_weights(layer_i)
        name_of = {own: self.checkpoint_name(layer_i, own) for own, _ in layer.named_parameters()}
        if self.tied is not None and layer_i == self.tied[1]:
            name_of["output.weight"] = self.checkpoint_name(0, "words.weight")
        shapes = {name_of[own]: tuple(parameter.shape) for own, parameter in layer.named_parameters()}
        tensors = self._start.read(shapes, TORCH_DTYPES[self.spec.dtype])
        layer.load_state_dict({own: tensors[name] for own, name in name_of.items()}, assign=True)
        return layer

    def _shared_positions(self) -> Positions:
        if self._positions is None:
            learned = self.family.first_position is not None
            self._positions = Positions(None if learned else self.family.get("RotaryEmbedding")(self.config))
        return self._positions

    def _initialiser(self) -> Any:
        """The family's model without its layers: it knows how each module's first weights are drawn."""
        model_class = self.family.get("PreTrainedModel")
        model = model_class.__new__(model_class)
        torch.nn.Module.__init__(model)
        model.config = self.config
        return model


@contextmanager
def _random_numbers(seed: int, purpose: str, layer_i: int) -> Iterator[None]:
    """Random numbers for one purpose and layer; afterwards the process's own go on as before."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{layer_i}".encode()).digest()
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int.from_bytes(digest[:7], "big"))
    try:
        yield
    finally:
        generator.set_state(before)


def _require_dtype(dtype: str) -> None:
    if dtype == "fp16" and not torch.cuda.is_available():
        raise InputError(
            "fp16-on-cpu",
            "the job's dtype is fp16, which this machine's processor does not train in",
            faults=[Fault(place="job.dtype", value="fp16", limit="bf16 or fp32 without a GPU")],
            hint="set the dtype to bf16 or fp32 and plan again",
        )
