"""A training step is a value; stages share the time of a run."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidseg.config import StageConfig
from kidseg.errors import UsageError
from kidseg.stage import TrainStep, shares


def test_a_training_step_is_a_value() -> None:
    step = TrainStep(seed=1, epoch=2, step=3)
    assert step == TrainStep(seed=1, epoch=2, step=3, rank=0, world=1)
    assert len({step, TrainStep(seed=1, epoch=2, step=3), TrainStep(seed=1, epoch=2, step=4)}) == 2
    with pytest.raises(FrozenInstanceError):
        step.step = 4  # type: ignore[misc]


@given(st.integers(1, 6), st.integers(1, 5))
def test_processes_share_the_positions_of_a_batch(world: int, each: int) -> None:
    steps = [TrainStep(seed=0, epoch=0, step=0, rank=r, world=world) for r in range(world)]
    parts = [list(step.positions(each * world)) for step in steps]
    assert sorted(position for part in parts for position in part) == list(range(each * world))
    assert {len(share) for share in parts} == {each}
    if world > 1:
        with pytest.raises(UsageError, match="not divisible") as error:
            steps[0].positions(each * world + 1)
        assert error.value.code == "bad-batch-size"


def spent(configs: list[StageConfig], whole_s: float) -> list[float]:
    """The time of each stage, if all use their share of what is left."""
    left_s, used = whole_s, []
    for share in shares(configs):
        used.append(share * left_s)
        left_s -= used[-1]
    return used


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=6))
def test_stages_share_the_time_as_their_budgets(budgets: list[float]) -> None:
    used = spent([StageConfig(budget_s=budget) for budget in budgets], 100.0)
    assert used == pytest.approx([100.0 * budget / sum(budgets) for budget in budgets])


def test_stages_share_the_time_equally_if_one_has_no_budget() -> None:
    """And what a stage leaves goes to all those after it."""
    configs = [StageConfig(budget_s=7.0), StageConfig(), StageConfig()]
    assert spent(configs, 90.0) == pytest.approx([30.0, 30.0, 30.0])
    assert shares(configs) == pytest.approx([1 / 3, 1 / 2, 1.0])
    assert shares([]) == []
