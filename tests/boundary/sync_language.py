"""A small language model in numpy and the texts it learns: for the contest of sync policies.

Next character from the last C ones: embeddings, one tanh layer, softmax over V symbols. One flat fp32 vector
holds all parameters. Legend: P parameters, N examples, C context, E embedding, H hidden units, V symbols.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from executors.boundary.outer.local import LocalTask, take_steps
from executors.boundary.outer.vectors import Vector

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
NUM_SYMBOLS = 96
CONTEXT = 8
EMBEDDING = 12
HIDDEN = 64
SHAPES = (
    (NUM_SYMBOLS, EMBEDDING),
    (CONTEXT * EMBEDDING, HIDDEN),
    (HIDDEN,),
    (HIDDEN, NUM_SYMBOLS),
    (NUM_SYMBOLS,),
)
NUM_PARAMETERS = sum(int(np.prod(shape)) for shape in SHAPES)
HELD_OUT_FRAC = 0.1

Symbols = NDArray[np.int64]


def to_symbols(text: str) -> Symbols:
    """Printable ASCII as 0 to 94, everything else (line ends too) as 95."""
    codes = np.frombuffer(text.encode("ascii", errors="replace"), dtype=np.uint8).astype(np.int64) - 32
    return np.where((codes < 0) | (codes >= NUM_SYMBOLS - 1), NUM_SYMBOLS - 1, codes)


def standard_library_text(limit_chars: int = 1_000_000) -> str:
    """Sources of the standard library, in order of name."""
    parts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        if sum(map(len, parts)) > limit_chars:
            break
    return "".join(parts)[:limit_chars]


def python_manual_text() -> str:
    """The language reference that comes with Python."""
    from pydoc_data.topics import topics  # large, and needed here alone

    return "".join(topics[name] for name in sorted(topics))


@cache
def domains() -> tuple[tuple[str, Symbols], ...]:
    """Really different texts by name: verse and prose where the shared texts are, code and manual always."""
    shared = {"verse": "shakespeare.txt", "prose": "wikitext2-valid.txt"}
    found = [
        (name, (SHARED / file).read_text(encoding="utf-8", errors="replace"))
        for name, file in shared.items()
        if (SHARED / file).exists()
    ]
    texts = [*found[:1], ("code", standard_library_text()), *found[1:], ("manual", python_manual_text())]
    return tuple((name, to_symbols(text)) for name, text in texts)


def split(symbols: Symbols) -> tuple[Symbols, Symbols]:
    """Training part and held-out part, which is the end of the text."""
    cut = int(symbols.size * (1.0 - HELD_OUT_FRAC))
    return symbols[:cut], symbols[cut:]


def examples(symbols: Symbols, starts_N: Symbols) -> tuple[Symbols, Symbols]:
    """Contexts (N, C) and next symbols (N,)."""
    return symbols[starts_N[:, None] + np.arange(CONTEXT)], symbols[starts_N + CONTEXT]


def views(w_P: NDArray[Any]) -> list[NDArray[Any]]:
    """The parameters as arrays over the flat vector."""
    out: list[NDArray[Any]] = []
    at = 0
    for shape in SHAPES:
        size = int(np.prod(shape))
        out.append(w_P[at : at + size].reshape(shape))
        at += size
    return out


def first_vector(seed: int) -> Vector:
    """Random parameters of a sensible scale."""
    rng = np.random.default_rng(seed)
    w_P = np.zeros(NUM_PARAMETERS, dtype=np.float32)
    for view in views(w_P):
        if view.ndim == 2:
            view[:] = rng.normal(
                scale=view.shape[0] ** -0.5 if view.shape[0] != NUM_SYMBOLS else 0.3, size=view.shape
            )
    return w_P


def forward(w_P: NDArray[Any], contexts_NC: Symbols) -> tuple[Any, Any, Any]:
    """Inputs (N, C E), hidden values (N, H), log probabilities (N, V)."""
    embedding, in_w, in_b, out_w, out_b = views(w_P)
    inputs = embedding[contexts_NC].reshape(len(contexts_NC), -1)
    hidden = np.tanh(inputs @ in_w + in_b)
    scores = hidden @ out_w + out_b
    scores -= scores.max(axis=1, keepdims=True)
    return inputs, hidden, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def loss(w_P: NDArray[Any], contexts_NC: Symbols, next_N: Symbols) -> float:
    """Mean nats per character."""
    _, _, log_NV = forward(w_P, contexts_NC)
    return float(-log_NV[np.arange(len(next_N)), next_N].mean())


def gradient(w_P: Vector, contexts_NC: Symbols, next_N: Symbols) -> Vector:
    """Gradient of `loss`."""
    inputs, hidden, log_NV = forward(w_P, contexts_NC)
    g_P = np.zeros_like(w_P)
    g_embedding, g_in_w, g_in_b, g_out_w, g_out_b = views(g_P)
    _, in_w, _, out_w, _ = views(w_P)
    slope = np.exp(log_NV)
    slope[np.arange(len(next_N)), next_N] -= 1.0
    slope /= len(next_N)
    np.matmul(hidden.T, slope, out=g_out_w)
    g_out_b[:] = slope.sum(axis=0)
    slope = (slope @ out_w.T) * (1.0 - hidden * hidden)
    np.matmul(inputs.T, slope, out=g_in_w)
    g_in_b[:] = slope.sum(axis=0)
    np.add.at(g_embedding, contexts_NC, (slope @ in_w.T).reshape(*contexts_NC.shape, EMBEDDING))
    return g_P


@dataclass(slots=True)
class AdamW:
    """AdamW (0.9, 0.95, weight decay 0.01), whose moments stay with their participant."""

    rate: float
    first_P: Vector
    second_P: Vector
    num_steps: int = 0

    def step(self, w_P: Vector, g_P: Vector) -> Vector:
        """The next vector."""
        self.num_steps += 1
        self.first_P += 0.1 * (g_P - self.first_P)
        self.second_P += 0.05 * (g_P * g_P - self.second_P)
        first_P = self.first_P / (1.0 - 0.9**self.num_steps)
        second_P = self.second_P / (1.0 - 0.95**self.num_steps)
        next_P: Vector = w_P - np.float32(self.rate) * (
            first_P / (np.sqrt(second_P) + 1e-8) + np.float32(0.01) * w_P
        )
        return next_P


def new_adamw(rate: float) -> AdamW:
    """An optimiser with no memory."""
    zeros = np.zeros(NUM_PARAMETERS, dtype=np.float32)
    return AdamW(rate, zeros, zeros.copy())


class LanguageTraining:
    """Local training of all participants: boundary m prefers domain m, by the share `skew_frac`."""

    def __init__(self, *, num_boundaries: int, skew_frac: float, seed: int, batch: int, rate: float) -> None:
        texts = domains()
        self._texts = [split(texts[m % len(texts)][1]) for m in range(num_boundaries)]
        self._skew_frac = skew_frac
        self._seed = seed
        self._batch = batch
        self._rate = rate
        self._workers: dict[tuple[int, int], tuple[np.random.Generator, AdamW]] = {}

    def __call__(self, task: LocalTask) -> Vector:
        """The task's steps, with the participant's own data order and optimiser."""
        key = (task.boundary, task.participant)
        if key not in self._workers:
            rng = np.random.default_rng((self._seed, *key))
            self._workers[key] = (rng, new_adamw(self._rate))
        rng, adamw = self._workers[key]

        def step(w_P: Vector) -> Vector:
            return adamw.step(w_P, gradient(w_P, *self._draw(rng, task.boundary)))

        return take_steps(task, step, rate=self._rate)

    def _draw(self, rng: np.random.Generator, boundary: int) -> tuple[Symbols, Symbols]:
        is_own_N = rng.random(self._batch) < self._skew_frac
        domain_N = np.where(is_own_N, boundary, rng.integers(len(self._texts), size=self._batch))
        place_N = rng.random(self._batch)
        parts = []
        for d in range(len(self._texts)):
            train, _ = self._texts[d]
            starts = (place_N[domain_N == d] * (train.size - CONTEXT - 1)).astype(np.int64)
            parts.append(examples(train, starts))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def evaluate(self, w_P: Vector, *, num_examples: int = 600) -> float:
        """Mean over the domains in use of the loss on fixed held-out places."""
        losses = []
        for _, held_out in self._texts:
            starts = np.linspace(0, held_out.size - CONTEXT - 2, num_examples).astype(np.int64)
            losses.append(loss(w_P, *examples(held_out, starts)))
        return float(np.mean(losses))

    def warm_start(self, *, num_steps: int) -> Vector:
        """A model trained centrally on the even mixture of the domains in use."""
        rng = np.random.default_rng((self._seed, 999))
        adamw, w_P = new_adamw(3e-3), first_vector(self._seed)
        skew_frac, self._skew_frac = self._skew_frac, 0.0
        for _ in range(num_steps):
            w_P = adamw.step(w_P, gradient(w_P, *self._draw(rng, 0)))
        self._skew_frac = skew_frac
        return w_P
