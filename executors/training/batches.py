"""Micro-batches by random access: which sequences a step reads depends on seed, participant and step alone.

Legend of shape suffixes: N positions asked for, T tokens of a sequence.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from executors.training.prepare import PreparedText
from policies.errors import InputError

Int64s = npt.NDArray[np.int64]

ALL_ROWS = slice(None)
_ROUNDS = 8
# Constants of the splitmix64 generator, here used to mix bits only.
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Batches:
    """Sequences of a prepared text, each once per epoch, in an order drawn anew for every epoch.

    To go on after a step, ask for the next one: what a call returns depends on its arguments alone.
    """

    def __init__(self, prepared: PreparedText, seed: int) -> None:
        self.prepared = prepared
        self.seed = seed
        self._tokens: npt.NDArray[np.unsignedinteger] = np.load(prepared.tokens_path, mmap_mode="r")
        self._held_out: npt.NDArray[np.unsignedinteger] | None = None
        if prepared.num_held_out_sequences:
            self._held_out = np.load(prepared.held_out_path, mmap_mode="r")
        # Reading a whole step costs hardly more than reading one micro-batch of it.
        self._read: tuple[object, Int64s] | None = None

    @property
    def sha256(self) -> str:
        """Hash of tokens, held-out tokens and tokenizer: equal where they are."""
        return self.prepared.sha256

    @property
    def num_sequences(self) -> int:
        """Sequences in an epoch."""
        return self.prepared.num_sequences

    @property
    def num_held_out_sequences(self) -> int:
        """Sequences that evaluation can read."""
        return self.prepared.num_held_out_sequences

    def micro_batch(
        self, step: int, j: int, *, micro_batches: int, micro_batch_size: int, rows: slice = ALL_ROWS
    ) -> Int64s:
        """Rows of micro-batch `j` of a step (both from 0), as tokens [rows, T + 1].

        The sequences of a whole step are the same however it is divided into micro-batches.
        """
        if not 0 <= j < micro_batches:
            raise ValueError(f"micro-batch {j} of {micro_batches}")
        key = (step, micro_batches, micro_batch_size, rows.start, rows.stop, rows.step)
        if self._read is None or self._read[0] != key:
            position_N = step * micro_batches * micro_batch_size + np.arange(micro_batches * micro_batch_size)
            of_rows_N = self.sequences_at(position_N).reshape(micro_batches, micro_batch_size)[:, rows]
            tokens_NT = self._cut(self._tokens, of_rows_N.ravel())
            self._read = key, tokens_NT.reshape(*of_rows_N.shape, tokens_NT.shape[1])
        found_NT: Int64s = self._read[1][j]
        return found_NT

    def evaluation(self, k: int, size: int, rows: slice = ALL_ROWS) -> Int64s:
        """Rows of the `k`-th batch of `size` held-out sequences, as tokens [rows, T + 1].

        Their order, spread over all of the held-out text, is the same for every seed and participant. After
        the last one the first comes again.

        Raises:
            InputError: `nothing-held-out`.
        """
        if self._held_out is None:
            raise InputError(
                "nothing-held-out",
                "the job holds out no text, so there is nothing to evaluate on",
                hint="set `evaluation.frac` in the job file above 0",
            )
        position_N = (k * size + _rows_N(size, rows)) % self.num_held_out_sequences
        key = _round_keys("held out")
        return self._cut(self._held_out, permuted(position_N, self.num_held_out_sequences, key))

    def sequences_at(self, position_N: Int64s) -> Int64s:
        """Which sequence is read at each position counted from the start of training."""
        epoch_N, place_N = np.divmod(position_N, self.num_sequences)
        found_N = np.empty_like(place_N)
        for epoch in np.unique(epoch_N):
            chosen = epoch_N == epoch
            key = _round_keys(f"{self.seed} {self.prepared.participant} {epoch}")
            found_N[chosen] = permuted(place_N[chosen], self.num_sequences, key)
        return found_N

    def _cut(self, tokens: npt.NDArray[np.unsignedinteger], sequence_N: Int64s) -> Int64s:
        length = self.prepared.sequence_tokens
        place_NT = sequence_N[:, None] * length + np.arange(length + 1)
        found_NT: Int64s = tokens[place_NT].astype(np.int64)
        return found_NT


def permuted(position_N: Int64s, size: int, round_keys: npt.NDArray[np.uint64]) -> Int64s:
    """Where a keyed permutation of 0 to `size - 1` sends each position, without listing the permutation.

    A balanced Feistel network permutes the smallest 4^h that holds `size`; what falls outside is sent on
    until it falls inside (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, section 4).
    """
    half_bits = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    found_N = _feistel(position_N.astype(np.uint64), half_bits, round_keys)
    while (outside := found_N >= size).any():
        found_N[outside] = _feistel(found_N[outside], half_bits, round_keys)
    return found_N.astype(np.int64)


def _feistel(
    value_N: npt.NDArray[np.uint64], half_bits: np.uint64, round_keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left_N, right_N = value_N >> half_bits, value_N & mask
    for key in round_keys:
        left_N, right_N = right_N, left_N ^ (_mixed(right_N + key) & mask)
    return (left_N << half_bits) | right_N


def _mixed(value_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the value."""
    value_N = (value_N ^ (value_N >> np.uint64(30))) * _MIX_1
    value_N = (value_N ^ (value_N >> np.uint64(27))) * _MIX_2
    return value_N ^ (value_N >> np.uint64(31))


def _round_keys(word: str) -> npt.NDArray[np.uint64]:
    digest = hashlib.blake2b(word.encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _rows_N(size: int, rows: slice) -> Int64s:
    return np.arange(size, dtype=np.int64)[rows]
