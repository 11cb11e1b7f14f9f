"""Places in training cases: what is counted, which planes and voxels are drawn, what is sampled."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from cohorts import PLAN, make_cohort
from kidseg.cohort.items import draw
from kidseg.cohort.place import (
    Place,
    draw_centres,
    place_of,
    plane_index,
    planes_of,
    sampled_patches,
)
from kidseg.cohort.subject import Subject
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Volume
from kidseg.intensity import Scaling
from kidseg.pipeline import Blocks, Planes
from kidseg.stage import TrainStep

CPU = choose_device("cpu", "fp32")
GRID = Grid.from_spacing((4, 6, 8), (3, 1, 1))
GROUPS = ((1, 3), (2,))
NOW = TrainStep(seed=0, epoch=0, step=0)


def subject_with(labels: torch.Tensor, name: str = "a", ignore: bool = False) -> Subject:
    """HU 10 times the label."""
    image = Volume((labels[None] * 10).to(torch.int16), GRID)
    return Subject(
        id=name,
        image=image,
        scalings=(Scaling(),),
        labels=Volume(labels[None], GRID),
        ignore=Volume(labels[None] == 3, GRID) if ignore else None,
    )


def labels() -> torch.Tensor:
    """Kidney in slices 1 and 2, a tumour of two voxels in slice 2, a cyst in slice 3."""
    values = torch.zeros(GRID.shape, dtype=torch.uint8)
    values[1:3, 1:3, 1:5] = 1
    values[2, 4, 5:7] = 2
    values[3, 0, 0] = 3
    return values


def planes(subject: Subject) -> Planes:
    return Planes(scalings=[subject.scalings], padding=(-1000.0,), device=CPU)


def test_voxels_are_counted_by_plane_in_any_orientation() -> None:
    subject = subject_with(labels())
    axial = place_of(subject, 0, GRID, GROUPS)
    assert axial.counts.tolist() == [[48, 0, 0], [40, 8, 0], [38, 8, 2], [47, 1, 0]]
    sagittal = place_of(subject, 0, GRID.permuted((2, 0, 1)), GROUPS)
    assert sagittal.counts.sum(0).tolist() == [173, 17, 2]
    assert sagittal.counts[:, 2].tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    outside = place_of(subject, 0, GRID.crop((3, 0, 0), (3, 6, 8)), GROUPS)
    assert outside.counts.tolist() == [[47, 1, 0], [48, 0, 0], [48, 0, 0]]


def test_planes_are_drawn_by_choice() -> None:
    """Half of them with tumour, though one plane in four has it."""
    place = place_of(subject_with(labels()), 0, GRID, GROUPS)
    index = plane_index([place, place], [lambda counts: counts[:, 2] > 0], 0.5)
    drawn = draw(index, NOW, 8)
    assert sum(k == 2 for _, k in drawn) >= 4 and {n for n, _ in drawn} == {0, 1}
    assert len(plane_index([place], [], 0.0)) == 4
    (case, grid), *_ = planes_of([place], [(0, 2)])
    assert case == 0 and grid.same_as(GRID.slices(2, 3))


def test_centres_are_a_third_each_and_lie_where_they_say() -> None:
    """Over several steps, whatever the batch size; every tumour voxel has its turn."""
    subject = subject_with(labels())
    bare = subject_with(torch.zeros(GRID.shape, dtype=torch.uint8), "b")
    subjects = [bare, subject]
    places = [
        place_of(bare, 0, GRID, GROUPS),
        place_of(subject, 1, GRID.crop((1, 0, 0), (3, 6, 8)), GROUPS),
    ]
    groups: Counter[int] = Counter()
    tumours = set()
    for step in range(12):
        for centre in draw_centres(subjects, places, GROUPS, replace(NOW, step=step), 4):
            place = places[centre.place]
            index = GRID.index(place.grid.mm(centre.voxel)).round().int().tolist()
            own = subjects[place.case].labels
            assert own is not None
            label = int(own.data[0][tuple(index)])
            assert label in {0: (0,), 1: (1, 3), 2: (2,)}[centre.group]
            groups[centre.group] += 1
            if centre.group == 2:
                tumours.add(tuple(index))
    assert set(groups.values()) == {16} and tumours == {(2, 4, 5), (2, 4, 6)}


def test_processes_draw_shares_of_the_same_batch() -> None:
    places = [place_of(subject_with(labels()), 0, GRID, GROUPS)]
    subjects = [subject_with(labels())]
    whole = draw_centres(subjects, places, GROUPS, NOW, 6)
    for rank in range(2):
        assert (
            draw_centres(subjects, places, GROUPS, replace(NOW, rank=rank, world=2), 6)
            == whole[rank::2]
        )
    with pytest.raises(UsageError) as error:
        draw_centres(subjects, places, GROUPS, replace(NOW, world=4), 6)
    assert error.value.code == "bad-batch-size"


def test_a_group_that_nobody_has_is_replaced_by_any_voxel() -> None:
    bare = subject_with(torch.zeros(GRID.shape, dtype=torch.uint8))
    centres = draw_centres([bare], [place_of(bare, 0, GRID, GROUPS)], GROUPS, NOW, 30)
    assert len(centres) == 30
    assert all(0 <= v < n for c in centres for v, n in zip(c.voxel, GRID.shape, strict=True))


def test_planes_and_blocks_are_sampled_with_their_labels() -> None:
    subject = subject_with(labels(), ignore=True)
    slices = sampled_patches([subject], [(0, GRID.slices(k, k + 1)) for k in (2, 3)], planes)
    assert slices.image.shape == (2, 1, 6, 8) and slices.labels.shape == (2, 6, 8)
    assert torch.equal(slices.image[:, 0], slices.labels * 10.0)
    assert slices.valid is not None and slices.valid.shape == (2, 6, 8)
    assert not slices.valid[1, 0, 0] and int((~slices.valid).sum()) == 1
    blocks = sampled_patches(
        [subject],
        [(0, GRID.crop((2, 3, 4), (2, 3, 4)))],
        lambda each: Blocks(
            patch=(2, 3, 4),
            overlap=0.5,
            scalings=[each.scalings],
            padding=(-1000.0,),
            device=CPU,
        ),
    )
    assert blocks.image.shape == (1, 1, 2, 3, 4) and blocks.labels.shape == (1, 2, 3, 4)
    assert torch.equal(blocks.image[:, 0], blocks.labels * 10.0) and blocks.names == ("a",)


def test_a_mask_is_a_further_channel_as_it_is() -> None:
    subject = subject_with(labels())
    seen = []

    def mask(number: int, grid: Grid) -> torch.Tensor:
        seen.append((number, grid.shape))
        return torch.full((1, *grid.shape), float(number))

    batch = sampled_patches([subject], planes_of(_places(subject), [(0, 1), (0, 2)]), planes, mask)
    assert batch.image.shape == (2, 2, 6, 8) and batch.valid is None
    assert batch.image[:, 1].flatten(1).unique(dim=1).tolist() == [[0.0], [1.0]]
    assert seen == [(0, (1, 6, 8)), (1, (1, 6, 8))]


def test_the_patches_of_a_cohort_are_those_of_its_scans() -> None:
    """Sagittal planes across the scan's slices."""
    subject = make_cohort(1, 1).training[0]
    grid = subject.image.grid.permuted((2, 0, 1))
    place = place_of(subject, 0, grid, ((1,), (2,)))
    batch = sampled_patches([subject], planes_of([place], [(0, 20)]), _view_of_plan)
    assert subject.labels is not None
    assert torch.equal(batch.labels[0], subject.labels.data[0, :, :, 20])
    hu = subject.image.data[0, :, :, 20].float().clamp(40, 230)
    torch.testing.assert_close(batch.image[0, 0], (hu - 130) / 50)
    assert np.array_equal(
        place.counts[20], np.bincount(batch.labels[0].numpy().ravel(), minlength=3)
    )


def _view_of_plan(subject: Subject) -> Planes:
    return Planes(scalings=[subject.scalings], padding=PLAN.padding, device=CPU)


def _places(subject: Subject) -> list[Place]:
    return [place_of(subject, 0, GRID, GROUPS)]
