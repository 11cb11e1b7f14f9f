"""A training step is a value: two of the same make the same batch, and it cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from kidseg.stage import TrainStep


def test_a_training_step_is_a_value() -> None:
    step = TrainStep(seed=1, epoch=2, step=3)
    assert step == TrainStep(seed=1, epoch=2, step=3, rank=0, world=1)
    assert len({step, TrainStep(seed=1, epoch=2, step=3), TrainStep(seed=1, epoch=2, step=4)}) == 2
    with pytest.raises(FrozenInstanceError):
        step.step = 4  # type: ignore[misc]
