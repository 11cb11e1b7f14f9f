"""Mining of hard slices: which they are, and that batches have their share of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cohorts import PLAN, TARGET, base_of, make_cohort
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import SliceIndex, draw
from kidseg.config import METHODS, CohortConfig, load
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.intensity import Scaling
from kidseg.methods.mining import HardSlices
from kidseg.pipeline import Planes
from kidseg.stage import TrainStep

CPU = choose_device("cpu", "fp32")
NOW = TrainStep(seed=0, epoch=0, step=0)


class Brighter(nn.Module):
    """Takes everything that is brighter than a threshold for kidney."""

    def __init__(self, hu: float) -> None:
        super().__init__()
        self.threshold = (hu - 130) / 50  # as the plan of these cohorts normalises

    def forward(self, image: Tensor) -> list[Tensor]:
        kidney = (image[:, :1] > self.threshold).float() * 20 - 10
        return [torch.cat([-kidney, kidney, torch.full_like(kidney, -99.0)], dim=1)]


def view(scalings: Sequence[Sequence[Scaling]]) -> Planes:
    return Planes(scalings=scalings, padding=PLAN.padding, device=CPU)


def mined(cohort: Cohort, net: nn.Module, step: TrainStep = NOW) -> np.ndarray:
    grids = [base_of(subject).slicewise() for subject in cohort.training]
    hard = HardSlices(net=net, cohort=cohort, grids=grids, view=view, target=TARGET)
    assert not len(hard.rows)
    hard.find(step)
    return hard.rows


def with_candidates(cohort: Cohort, count: int) -> Cohort:
    config = CohortConfig(hard_share=0.5, hard_candidates=count)
    return replace(cohort, config=config)


def test_a_network_without_false_pixels_has_no_hard_slices() -> None:
    cohort = with_candidates(make_cohort(2, 1), 400)
    assert not len(mined(cohort, Brighter(1000.0)))


def test_where_everything_is_labelled_slices_with_most_background_are_hard() -> None:
    cohort = with_candidates(make_cohort(3, 1), 400)
    index = cohort.index
    rows = mined(cohort, Brighter(-1e9))
    assert len(rows) == round(0.25 * len(index)) and list(rows) == sorted(set(rows.tolist()))
    labelled = np.array([cohort.training[c].counts[k, 1:].sum() for c, k in index.every])
    assert labelled[rows].max() <= np.delete(labelled, rows).min() + 20  # pixels of another grid


def test_only_candidates_are_hard_and_each_epoch_has_others() -> None:
    cohort = with_candidates(make_cohort(3, 1), 8)
    net = Brighter(-1e9)
    epochs = [mined(cohort, net, replace(NOW, epoch=epoch)).tolist() for epoch in range(6)]
    assert all(len(rows) == 2 for rows in epochs) and len({tuple(rows) for rows in epochs}) > 1
    assert mined(cohort, net).tolist() == epochs[0]
    assert mined(cohort, net, replace(NOW, rank=1, world=2)).tolist() == epochs[0]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 3), (1.0, 4)])
def test_a_batch_has_its_share_of_hard_slices(share: float, expected: int) -> None:
    """12 samples: 4 of each label, and at most the other 4 are hard."""
    shown = np.zeros((40, 2), dtype=bool)
    shown[:10, 0], shown[5:10, 1] = True, True
    index = SliceIndex.of_cases([shown], 1 / 3, share)
    hard = np.arange(30, 34)
    for step in range(20):
        drawn = draw(index, replace(NOW, step=step), 12, hard)
        found = sum(k in hard for _, k in drawn)
        assert len(drawn) == 12 and found >= expected
    without = draw(index, NOW, 12, np.zeros(0, dtype=np.int64))
    assert without == draw(index, NOW, 12)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"plain", "homogenized"}))
@pytest.mark.parametrize("share", ["hard_share", "small_share"])
def test_methods_that_draw_neither_hard_slices_nor_small_sections_refuse(
    method: str, share: str
) -> None:
    with pytest.raises(UsageError, match="only methods 'plain' and 'homogenized' draw"):
        load(METHODS[method], overrides=[f"cohort.{share}=0.1"])


@pytest.mark.parametrize(
    ("method", "instead"),
    [("multistage", "a fixed share"), ("plain3d", r"blocks\.foreground_share")],
)
def test_methods_that_fill_batches_otherwise_refuse_a_share_of_labels(
    method: str, instead: str
) -> None:
    with pytest.raises(UsageError, match=f"cohort.label_share has no effect here: {instead}"):
        load(METHODS[method], overrides=["cohort.label_share=0.1"])
    load(METHODS[method], overrides=[f"cohort.label_share={1 / 3}"])
