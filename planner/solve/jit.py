"""Machine code for the innermost loops, compiled once per machine and kept on disk.

Compiled functions hold no lock on the interpreter, so threads run them side by side. Only modules named
`*_kernels` are compiled; nothing outside `planner.solve` imports them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """The function as machine code, same answers: no reordered sums, no fused shortcuts."""
    return _compiled(function)


def compiled_part(function: F) -> F:
    """As `compiled`, for functions that only compiled ones call: called from Python they end the process."""
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _compiled(function: F, **options: bool) -> F:
    try:
        return cast(F, numba.njit(cache=True, nogil=True, fastmath=False, **options)(function))
    except RuntimeError:  # there is no folder to keep it in: every process compiles for itself
        return cast(F, numba.njit(nogil=True, fastmath=False, **options)(function))
