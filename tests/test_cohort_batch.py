"""Batches: labels of the drawn slices, those that do not count, and grids brought together."""

from __future__ import annotations

from dataclasses import replace

import torch

from cohorts import base_of, make_cohort
from kidseg.cohort.batch import Labelled, drawn_grid, drawn_labels, join
from kidseg.geometry import Grid, Volume, resample

DRAWN = [(1, 4), (0, 3), (1, 2)]


def test_drawn_labels_are_those_of_each_case() -> None:
    cohort = make_cohort(2, 1)
    grids = [base_of(subject).slicewise() for subject in cohort.training]
    found = drawn_labels(cohort.training, DRAWN, drawn_grid(grids, DRAWN))
    assert found.valid is None
    assert found.labels.data.dtype == torch.uint8
    for row, (case, k) in enumerate(DRAWN):
        subject = cohort.training[case]
        assert subject.labels is not None
        own = resample(subject.labels, base_of(subject), mode="nearest").data[0, k]
        assert torch.equal(found.labels.data[0, row], own) and own.any()


def test_pixels_that_do_not_count_are_those_of_their_case() -> None:
    """One case ignores some of its pixels, the other none."""
    cohort = make_cohort(2, 1)
    first, second = cohort.training
    data = torch.zeros((1, *second.image.grid.shape), dtype=torch.bool)
    data[:, 4, 20:30] = True
    marked = replace(second, ignore=Volume(data, second.image.grid))
    grids = [base_of(subject).slicewise() for subject in (first, second)]
    found = drawn_labels((first, marked), DRAWN, drawn_grid(grids, DRAWN))
    assert found.valid is not None and found.valid.shape == (3, 48, 48)
    assert found.valid[1:].all(), "another case, and another slice of the same"
    own = resample(marked.ignore, base_of(second), mode="nearest").data[0, 4]  # type: ignore[arg-type]
    assert torch.equal(found.valid[0], ~own) and own.any() and not own.all()


def test_on_a_device_labels_move_and_the_grid_stays() -> None:
    grid = Grid.from_spacing((2, 4, 4), (1.0, 1.0, 1.0)).slicewise()
    labels = Volume(torch.zeros((1, 2, 4, 4), dtype=torch.uint8), grid)
    valid = torch.ones((2, 4, 4), dtype=torch.bool)
    for known in (None, valid):
        moved = Labelled(labels=labels, valid=known).to(torch.device("meta"))
        assert moved.labels.data.device.type == "meta" and moved.labels.grid is grid
        assert (moved.valid is None) == (known is None)
        assert moved.valid is None or moved.valid.device.type == "meta"


def test_grids_joined_and_picked() -> None:
    """Slice after slice, volumetric or slice-wise; drawn_grid in the drawn order."""
    a = Grid.from_spacing((3, 4, 5), (5.0, 1.0, 1.0))
    b = Grid.from_spacing((5, 4, 5), (2.0, 3.0, 3.0)).slicewise()
    both = join([a, b])
    assert both.shape == (8, 4, 5)
    assert both.slices(0, 3).same_as(a.slicewise()) and both.slices(3, 8).same_as(b)
    drawn = [(1, 4), (0, 2), (1, 0), (0, 0)]
    found = drawn_grid([a.slicewise(), b], drawn)
    assert found.shape == (4, 4, 5)
    for row, (case, k) in enumerate(drawn):
        assert found.slices(row, row + 1).same_as((a, b)[case].slicewise().slices(k, k + 1))
