"""Work and activation bytes per token of each part of a model, without recomputation.

Source of the accounting: V. Korthikanti et al., "Reducing activation recomputation in large transformer
models", MLSys 2023, section 4.1, which counts 34 bytes per token and unit of width for a GPT block in 16 bits
apart from the attention matrix. Adapted as follows.

- Attention keeps no matrix but query, key, value, output and one fp32 number per head (T. Dao,
  "FlashAttention-2", ICLR 2024, algorithm 1), keys and values once per key-value head; it skips what the
  causal mask hides.
- Layer norms are single kernels that keep their input and fp32 statistics. RMS norms run step by step in
  transformers, keeping an fp32 copy of the input and, where their weights are trained, the normalised input;
  with fused kernels they keep their input alone. Either way an fp32 statistic.
- Query, key and value of one fused matrix are views of its output. Rotary positions make new queries and
  keys, while the value's view still holds the whole of that output.
- A gated feed-forward part keeps gate, up, activated gate and product: four inner widths. Activation
  functions that transformers composes of several steps keep more, unless kernels are fused.
- Experts keep gathered inputs, their inner tensors and outputs, once per expert a token passes; the router
  keeps its fp32 probabilities. Tokens are assumed to spread evenly.
- Dropout keeps one byte per number at each of the two residual branches; none where its rate is 0.
- A matrix keeps its input only where its own gradient needs it, that is unless it is frozen without an
  adapter. An adapter computes in the job's dtype and keeps the input it shares with the matrix plus `rank`
  numbers.

Residual streams between branches are not kept; rotary tables and expert indices are left out as smaller than
half a percent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from costmodels.architecture import Attention, Block, FeedForward, Linear, Mixture, Norm, Target

_FP32_BYTES = 4

# Tensors an activation function keeps besides its output, run step by step as transformers defines it; one
# (its input) where it is a single kernel. gelu_new keeps x, x / 2, tanh and 1 + tanh.
_KEPT_BY_ACTIVATION = {"relu": 0, "gelu_new": 4, "gelu_fast": 7, "quick_gelu": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What gets gradients: every weight (`adapter_rank` 0), or adapters of that rank on `targets`."""

    dtype_bytes: int
    adapter_rank: int
    targets: tuple[Target, ...]
    fused_kernels: bool = False

    def adapts(self, linear: Linear) -> bool:
        """Whether an adapter sits on this matrix."""
        return self.adapter_rank > 0 and not set(self.targets).isdisjoint(linear.targets)

    def keeps_input(self, linears: Iterable[Linear]) -> bool:
        """Whether backward needs the common input of these matrices."""
        return self.adapter_rank == 0 or any(self.adapts(linear) for linear in linears)

    def adapter_params(self, linears: Iterable[Linear]) -> int:
        """Adapter weights on these matrices."""
        return sum(linear.adapter_params(self.adapter_rank) for linear in linears if self.adapts(linear))

    def adapter_flops(self, linears: Iterable[Linear]) -> int:
        """Forward operations per token of the adapters: 2 × rank × (in + out) per active copy."""
        adapted = (linear for linear in linears if self.adapts(linear))
        return sum(2 * self.adapter_rank * x.num_active * (x.in_width + x.out_width) for x in adapted)

    def adapter_bytes(self, linears: Iterable[Linear]) -> int:
        """Bytes per token between the two factors of the adapters on these matrices."""
        adapted = (linear for linear in linears if self.adapts(linear))
        return sum(self.dtype_bytes * self.adapter_rank * linear.num_active for linear in adapted)


def mean_context_tokens(sequence_tokens: int, window: int | None) -> float:
    """Tokens attended to on average under a causal mask: mean of min(t, window), t = 1 .. sequence."""
    seen = sequence_tokens if window is None else min(window, sequence_tokens)
    return seen - seen * (seen - 1) / (2 * sequence_tokens)


def attention_flops_per_token(attention: Attention, sequence_tokens: int) -> float:
    """Forward operations per token of scores and weighted sum: 2 × 2 × heads × head width × mean context.

    With the whole sequence in view the mean context is (sequence + 1) / 2: half of what Narayanan et al. (SC
    2021, appendix) count, who ignore the mask; kernels skip the hidden half. Softmax is left out.
    """
    return 4.0 * attention.query_width * mean_context_tokens(sequence_tokens, attention.window)


def block_flops_per_token(block: Block, trained: Trained, sequence_tokens: int) -> float:
    """Forward operations per token: 2 per active weight, the adapters', and attention's own."""
    matrices = sum(linear.flops_per_token for linear in block.linears())
    adapters = trained.adapter_flops(block.linears())
    return matrices + adapters + attention_flops_per_token(block.attention, sequence_tokens)


def norm_activation_bytes(norm: Norm, trained: Trained) -> int:
    """Bytes kept per normalised row: input (fp32 in step-wise RMS norms), normalised input, statistics."""
    if norm.kind != "rms" or trained.fused_kernels:
        return norm.width * trained.dtype_bytes + norm.statistics_bytes
    normalised = trained.dtype_bytes if trained.adapter_rank == 0 else 0
    return norm.width * (_FP32_BYTES + normalised) + norm.statistics_bytes


def block_activation_bytes_per_token(block: Block, trained: Trained) -> float:
    """Bytes per token that backward of one block needs, its input included."""
    norms = 2 * norm_activation_bytes(block.norm, trained)
    if block.parallel:
        # Both branches normalise the same input.
        norms -= block.norm.width * trained.dtype_bytes
    dropout = 2 * block.attention.width if block.residual_dropout else 0
    return (
        norms
        + dropout
        + _attention_bytes(block.attention, trained)
        + _feed_forward_bytes(block.feed_forward, trained)
        + trained.adapter_bytes(block.linears())
    )


def _attention_bytes(attention: Attention, trained: Trained) -> int:
    """Common input of the projections; query, key, value and output; one fp32 number per head; head norms."""
    *inner, _ = attention.linears()
    numbers = 2 * attention.query_width + 2 * attention.kv_width
    if attention.fused_qkv and attention.rotary:
        numbers += attention.query_width + attention.kv_width
    if trained.keeps_input(inner):
        numbers += attention.width
    kept = numbers * trained.dtype_bytes + _FP32_BYTES * attention.num_heads
    if attention.head_norm is not None:
        heads = attention.num_heads + attention.num_kv_heads
        kept += heads * norm_activation_bytes(attention.head_norm, trained)
    return kept


def _feed_forward_bytes(part: FeedForward | Mixture, trained: Trained) -> int:
    """Common input, then what each dense part or the mixture keeps."""
    if isinstance(part, FeedForward):
        *inner, _ = part.linears()
        input_numbers = part.width if trained.keeps_input(inner) else 0
        return (input_numbers + _inner_numbers(part, trained)) * trained.dtype_bytes
    experts, shared = part.experts, part.shared
    *expert_inner, _ = experts.linears()
    shared_inner = shared.linears()[:-1] if shared is not None else ()
    # Router probabilities; outputs of experts, which the gradient of their weights needs; gathered inputs.
    fp32_numbers = experts.num_copies + experts.num_active
    numbers = experts.num_active * experts.width + _inner_numbers(experts, trained)
    if trained.keeps_input(expert_inner):
        numbers += experts.num_active * experts.width
    if trained.keeps_input((*part.router(), *shared_inner)):
        numbers += experts.width
    if shared is not None:
        numbers += shared.width + 1 + _inner_numbers(shared, trained)
    return numbers * trained.dtype_bytes + fp32_numbers * _FP32_BYTES


def _inner_numbers(part: FeedForward, trained: Trained) -> int:
    """Numbers per token kept between a feed-forward part's matrices.

    Gated: what the activation function keeps, its output and the up projection, which the product needs, and
    the product where the down projection needs its input. Otherwise: what the activation function keeps, and
    its output where the down projection needs that, or the function itself for lack of its input.
    """
    function = _KEPT_BY_ACTIVATION.get(part.activation, 1)
    if trained.fused_kernels:
        function = min(1, function)
    product = trained.keeps_input(part.linears()[-1:])
    kept = function + 2 + product if part.gated else function + (product or function == 0)
    return part.num_active * kept * part.inner_width
