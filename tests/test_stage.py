"""A moment is a value: two of the same make the same batch, and it cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from kidseg.stage import Moment


def test_a_moment_is_a_value() -> None:
    moment = Moment(seed=1, epoch=2, step=3)
    assert moment == Moment(seed=1, epoch=2, step=3, rank=0, world=1)
    assert len({moment, Moment(seed=1, epoch=2, step=3), Moment(seed=1, epoch=2, step=4)}) == 2
    with pytest.raises(FrozenInstanceError):
        moment.step = 4  # type: ignore[misc]
