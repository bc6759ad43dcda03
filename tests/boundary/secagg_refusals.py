"""What the tests of attacks share: the victim, its own vector, and a refusal by name."""

from __future__ import annotations

from typing import Any

import pytest
from numpy.typing import NDArray

from boundary.secagg_house import House, update_of, weight_of
from executors.boundary.secagg.fixed_point import encode_update
from executors.boundary.secagg.reasons import Reason, RefusedError

VICTIM = "p001"


def own_vector(house: House, name: str) -> NDArray[Any]:
    """What only this member should ever know."""
    return encode_update(update_of(name, house.descriptor.length), weight_of(name), house.descriptor)


def refused(reason: Reason, call: Any, *args: Any, **kwargs: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        call(*args, **kwargs)
    assert caught.value.reason is reason
    assert caught.value.code == f"secagg-{reason.value}"
    return caught.value
