"""PLAIN AVERAGING, FOR TESTS ONLY: the aggregator sees every single update. Nothing here hides anything.

It computes what a masked window computes, on the same ring elements, so that a test can compare the two.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from executors.boundary.secagg.descriptor import Descriptor
from executors.boundary.secagg.fixed_point import Aggregate, decode_sum, encode_update
from executors.boundary.secagg.masks import zeros

LABEL = "PLAIN AVERAGING: UPDATES ARE NOT PROTECTED"


def average_unprotected(
    updates: Iterable[tuple[NDArray[np.float32], float]], descriptor: Descriptor, *, label: str
) -> Aggregate:
    """The aggregate of updates and weights, with no protection at all.

    `label` must be `LABEL`, so that whoever calls this has read it.
    """
    if label != LABEL:
        raise ValueError(f"plain averaging hides nothing; say so by the label {LABEL!r}")
    total_N = zeros(descriptor)
    cohort_size = 0
    for update_N, weight in updates:
        np.add(total_N, encode_update(update_N, weight, descriptor), out=total_N)
        cohort_size += 1
    return decode_sum(total_N, cohort_size, descriptor)
