"""What an epoch tells."""

from __future__ import annotations

import pytest

from kidseg.config import StageConfig
from kidseg.train.epochs import group_metrics, seconds_left


def test_dice_is_named_by_region() -> None:
    assert group_metrics({"score": 0.8, "dice_kidney": 0.7, "dice_dice_x": 0.9}) == {
        "score": 0.8,
        "dice": {"kidney": 0.7, "dice_x": 0.9},
    }
    assert group_metrics({"score": 0.8, "body": 0.9}) == {"score": 0.8, "body": 0.9}


@pytest.mark.parametrize(
    ("budget_s", "epochs", "spent_s", "left_s"),
    [
        (None, 1, 2.0, 18.0),  # nine more epochs of 2 s
        (None, 10, 20.0, 0.0),
        (15.0, 1, 2.0, 13.0),  # the budget ends first
        (100.0, 5, 10.0, 10.0),  # the epochs end first
        (5.0, 3, 6.0, 0.0),  # the last epoch exceeded it
    ],
)
def test_time_left(budget_s: float | None, epochs: int, spent_s: float, left_s: float) -> None:
    config = StageConfig(epochs=10, min_epochs=0, budget_s=budget_s)
    assert seconds_left(config, epochs, spent_s) == pytest.approx(left_s)
