"""The shape of a U-Net as a plan gives it: by hand, and what is no such shape."""

from __future__ import annotations

import pytest

from kidseg.topology import Topology

FLAT = Topology(
    features=(4, 8, 16),
    kernels=((3, 3), (3, 3), (3, 3)),
    strides=((1, 1), (2, 2), (2, 2)),
)
# Thick slices: in the planes alone first, then a stage that halves two axes of three.
THICK = Topology(
    features=(4, 8, 16, 20),
    kernels=((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)),
)


def test_divisors_are_the_products_of_strides() -> None:
    assert FLAT.divisors == (4, 4)
    assert THICK.divisors == (4, 8, 4)
    assert (FLAT.dimensions, THICK.dimensions) == (2, 3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"features": (4, 8)}, "agree"),
        ({"kernels": ((3, 3), (3, 3), (3, 3, 3))}, "agree"),
        ({"features": (), "kernels": (), "strides": ()}, "agree"),
        ({"features": (4, 0, 16)}, "at least 1"),
        ({"convolutions": 0}, "at least 1"),
        ({"strides": ((2, 2), (2, 2), (2, 2))}, "first strides"),
        ({"kernels": ((2, 3), (3, 3), (3, 3))}, "odd"),
    ],
)
def test_a_topology_that_is_none_is_refused(change: dict[str, object], match: str) -> None:
    whole = {"features": FLAT.features, "kernels": FLAT.kernels, "strides": FLAT.strides}
    with pytest.raises(ValueError, match=match):
        Topology(**{**whole, **change})  # type: ignore[arg-type]
