"""The sum is exact whoever is lost and whenever."""

from __future__ import annotations

import numpy as np

from boundary.secagg_house import House, Run, expected_sum


def test_everyone_stays() -> None:
    house = House(5)
    run = Run(house).finish()
    result = run.aggregator.combine()
    wanted = expected_sum(house, house.names)
    assert np.array_equal(result.sum_N.view(np.uint32), wanted[:-4])
