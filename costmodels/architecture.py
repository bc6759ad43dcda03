"""The shape of a decoder-only language model: matrices, norms, position tables, exact weight counts.

Everything is listed matrix by matrix, so counts, work and adapter sizes are sums over the same list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
NormKind = Literal["rms", "layer", "layer-without-weights"]

# Every linear projection of a block, under the names that all families share here.
ALL_TARGETS: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One matrix, or `num_copies` equal ones (experts) of which each token passes `num_active`.

    `targets` are the adapter targets it answers to: a fused query-key-value matrix answers to three, a router
    or an embedding projection to none.
    """

    in_width: int
    out_width: int
    bias: bool = False
    num_copies: int = 1
    num_active: int = 1
    targets: tuple[Target, ...] = ()

    @property
    def params(self) -> int:
        """Weights and biases of all copies."""
        return self.num_copies * (self.in_width + self.bias) * self.out_width

    @property
    def flops_per_token(self) -> int:
        """Forward operations per token: 2 × in × out of every active copy; adding the bias is left out."""
        return 2 * self.num_active * self.in_width * self.out_width

    def adapter_params(self, rank: int) -> int:
        """Weights of a low-rank adapter on every copy: rank × (in + out).

        Source: E. Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, section 4.1.
        """
        return self.num_copies * rank * (self.in_width + self.out_width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A normalisation over `width` numbers: `rms` has one weight each, `layer` a weight and a bias."""

    kind: NormKind
    width: int

    @property
    def params(self) -> int:
        """Weights and biases."""
        return {"rms": 1, "layer": 2, "layer-without-weights": 0}[self.kind] * self.width

    @property
    def statistics_bytes(self) -> int:
        """Per normalised row: the inverse deviation in fp32, with `layer` also the mean."""
        return 4 if self.kind == "rms" else 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Causal self-attention.

    `window` limits how far back a token looks, None for the whole sequence. `rotary` turns queries and keys
    by position, which makes new tensors of them; `fused_qkv` takes query, key and value from one matrix.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    qkv_bias: bool = False
    out_bias: bool = False
    fused_qkv: bool = False
    rotary: bool = True
    head_norm: Norm | None = None
    window: int | None = None

    @property
    def query_width(self) -> int:
        """Numbers per token in all query heads."""
        return self.num_heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Numbers per token in all key heads (as many in the value heads)."""
        return self.num_kv_heads * self.head_width

    def linears(self) -> tuple[Linear, ...]:
        """Query, key and value projections (one matrix where fused) and the output projection."""
        out = Linear(in_width=self.query_width, out_width=self.width, bias=self.out_bias, targets=("o",))
        widths: tuple[tuple[int, tuple[Target, ...]], ...] = (
            (self.query_width, ("q",)),
            (self.kv_width, ("k",)),
            (self.kv_width, ("v",)),
        )
        if self.fused_qkv:
            widths = ((self.query_width + 2 * self.kv_width, ("q", "k", "v")),)
        inner = (
            Linear(in_width=self.width, out_width=width, bias=self.qkv_bias, targets=targets)
            for width, targets in widths
        )
        return (*inner, out)

    @property
    def norm_params(self) -> int:
        """Weights of the norms on query and key heads."""
        return 2 * self.head_norm.params if self.head_norm is not None else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """A feed-forward part, or `num_copies` experts of which `num_active` see a token.

    `gated` adds a third matrix whose activated output multiplies the second's. `activation` names the
    activation function the way transformers does.
    """

    width: int
    inner_width: int
    gated: bool = True
    bias: bool = False
    activation: str = "silu"
    num_copies: int = 1
    num_active: int = 1

    def linears(self) -> tuple[Linear, ...]:
        """Gate (where gated), up and down projections."""
        ways: tuple[tuple[Target, int, int], ...] = (
            ("gate", self.width, self.inner_width),
            ("up", self.width, self.inner_width),
            ("down", self.inner_width, self.width),
        )
        return tuple(
            Linear(
                in_width=in_width,
                out_width=out_width,
                bias=self.bias,
                num_copies=self.num_copies,
                num_active=self.num_active,
                targets=(target,),
            )
            for target, in_width, out_width in ways
            if self.gated or target != "gate"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Routed experts and, in some families, a shared expert that sees every token through its own gate."""

    experts: FeedForward
    shared: FeedForward | None = None

    def router(self) -> tuple[Linear, ...]:
        """The matrix that scores experts, and the one that weighs the shared expert."""
        scores = Linear(in_width=self.experts.width, out_width=self.experts.num_copies)
        weight = Linear(in_width=self.experts.width, out_width=1)
        return (scores, weight) if self.shared is not None else (scores,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One transformer block: two norms, attention, and a feed-forward part or a mixture of experts."""

    norm: Norm
    attention: Attention
    feed_forward: FeedForward | Mixture
    residual_dropout: bool = False
    parallel: bool = False

    def dense_linears(self) -> Iterator[Linear]:
        """Every matrix that all tokens pass: attention, router, shared expert or plain feed-forward part."""
        yield from self.attention.linears()
        if isinstance(self.feed_forward, FeedForward):
            yield from self.feed_forward.linears()
            return
        yield from self.feed_forward.router()
        if self.feed_forward.shared is not None:
            yield from self.feed_forward.shared.linears()

    def expert_linears(self) -> tuple[Linear, ...]:
        """Matrices of the routed experts; none in a dense block."""
        return self.feed_forward.experts.linears() if isinstance(self.feed_forward, Mixture) else ()

    def linears(self) -> tuple[Linear, ...]:
        """Every matrix of the block."""
        return (*self.dense_linears(), *self.expert_linears())

    @property
    def params(self) -> int:
        """All weights of the block, every expert included."""
        norms = 2 * self.norm.params + self.attention.norm_params
        return sum(linear.params for linear in self.linears()) + norms


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder-only language model.

    `embedding_width` differs from `width` where the family projects token embeddings in and logits out.
    `num_positions` are rows of a learned position table (0 with rotary positions). `tied` shares the token
    embedding with the output matrix. `final_norm` is None where the last block ends in a norm of its own.
    """

    model_type: str
    vocab_size: int
    width: int
    embedding_width: int
    num_positions: int
    max_sequence_tokens: int | None
    blocks: tuple[Block, ...]
    final_norm: Norm | None
    tied: bool
    embedding_dropout: bool = False

    @property
    def embedding_params(self) -> int:
        """Token embedding, learned positions and the projection of the embedding."""
        positions = self.num_positions * self.width
        return self.matrix_params + positions + sum(linear.params for linear in self.projection())

    @property
    def matrix_params(self) -> int:
        """Weights of the token embedding, which is also the output matrix where the two are tied."""
        return self.vocab_size * self.embedding_width

    @property
    def head_params(self) -> int:
        """Final norm, projection and output matrix, the latter counted whether tied or not."""
        norm = self.final_norm.params if self.final_norm is not None else 0
        return norm + self.matrix_params + sum(linear.params for linear in self.projection())

    @property
    def num_params(self) -> int:
        """Every weight once."""
        shared = self.matrix_params if self.tied else 0
        return self.embedding_params + sum(block.params for block in self.blocks) + self.head_params - shared

    def projection(self) -> tuple[Linear, ...]:
        """The matrix between embedding and model width, once at each end; none where the widths agree."""
        if self.embedding_width == self.width:
            return ()
        return (Linear(in_width=self.embedding_width, out_width=self.width),)
