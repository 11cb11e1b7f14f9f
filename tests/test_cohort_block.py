"""Blocks to learn from: a pure function of the step, some of them on labels, all inside."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from cohorts import make_cohort
from kidseg.cohort.block import Block, draw_blocks
from kidseg.cohort.subject import Subject
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Volume
from kidseg.stage import TrainStep

NOW = TrainStep(seed=0, epoch=0, step=0)
PATCH = (4, 16, 20)


@pytest.fixture(scope="module")
def subjects() -> tuple[Subject, ...]:
    return make_cohort(3, 1).training


def own(subjects: tuple[Subject, ...]) -> list[Grid]:
    return [subject.image.grid for subject in subjects]


def drawn(
    subjects: tuple[Subject, ...],
    step: TrainStep = NOW,
    *,
    size: int = 6,
    share: float = 1 / 3,
    grids: list[Grid] | None = None,
    patch: tuple[int, int, int] = PATCH,
) -> list[Block]:
    return draw_blocks(
        subjects, grids or own(subjects), patch, step, batch_size=size, foreground_share=share
    )


def same(one: Block, other: Block) -> bool:
    alike = (one.case, one.label) == (other.case, other.label)
    return alike and one.grid.same_as(other.grid) and one.grid.shape == other.grid.shape


def test_the_step_alone_decides(subjects: tuple[Subject, ...]) -> None:
    first, again = drawn(subjects), drawn(subjects)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    for other in (replace(NOW, seed=1), replace(NOW, epoch=1), replace(NOW, step=1)):
        assert not all(same(a, b) for a, b in zip(first, drawn(subjects, other), strict=True))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_the_batch(subjects: tuple[Subject, ...], world: int) -> None:
    whole = drawn(subjects)
    parts = [drawn(subjects, replace(NOW, rank=rank, world=world)) for rank in range(world)]
    assert {len(part) for part in parts} == {6 // world}
    for place, block in enumerate(whole):
        assert same(block, parts[place % world][place // world])


def test_a_batch_that_cannot_be_shared_is_refused(subjects: tuple[Subject, ...]) -> None:
    with pytest.raises(UsageError, match="batch size of 6 is not divisible by 4") as error:
        drawn(subjects, replace(NOW, world=4))
    assert error.value.code == "bad-batch-size"


@pytest.mark.parametrize(
    ("size", "share", "on_labels"),
    [(6, 1 / 3, 2), (6, 0.0, 0), (6, 1.0, 6), (2, 1 / 3, 1), (3, 1 / 3, 1), (5, 0.5, 3)],
)
def test_the_last_places_are_centred_on_labels(
    subjects: tuple[Subject, ...], size: int, share: float, on_labels: int
) -> None:
    """Of two blocks one, as in nnU-Net; of five a half is rounded to three."""
    for step in range(5):
        blocks = drawn(subjects, replace(NOW, step=step), size=size, share=share)
        assert [block.label > 0 for block in blocks] == [False] * (size - on_labels) + [
            True
        ] * on_labels


def test_their_middle_is_a_voxel_of_their_label(subjects: tuple[Subject, ...]) -> None:
    """With odd sides, to the voxel, as far as the block needs not be moved inside."""
    inside = 0
    for step in range(30):
        for block in drawn(subjects, replace(NOW, step=step), share=1.0, patch=(3, 9, 7)):
            scan = subjects[block.case]
            assert scan.labels is not None
            middle = block.grid.mm([1, 4, 3])
            k, row, column = (round(v) for v in scan.image.grid.index(middle).tolist())
            if 1 < k < 6:
                inside += 1
                assert int(scan.labels.data[0, k, row, column]) == block.label
    assert inside > 50


def test_in_other_voxels_they_are_centred_to_half_a_voxel(subjects: tuple[Subject, ...]) -> None:
    grids = [grid.with_spacing((5.0, 3.0, 3.0)) for grid in own(subjects)]
    for step in range(20):
        for block in drawn(subjects, replace(NOW, step=step), share=1.0, grids=grids):
            scan = subjects[block.case]
            assert scan.labels is not None
            there = (scan.labels.data[0] == block.label).nonzero().double()
            at = block.grid.index(scan.image.grid.mm(there))
            middle = torch.tensor([(n - 1) / 2 for n in PATCH], dtype=at.dtype)
            off = (at - middle).abs()
            free = [0 < s < n - w for s, n, w in zip(*start_of(block, grids), PATCH, strict=True)]
            assert bool((off[:, free] <= 0.5 + 1e-3).all(1).any())


def start_of(block: Block, grids: list[Grid]) -> tuple[list[int], tuple[int, ...]]:
    """First voxel of a block in its case's grid, and the grid's shape."""
    grid = grids[block.case]
    found = grid.index(block.grid.mm([0, 0, 0])).tolist()
    assert found == pytest.approx([round(v) for v in found], abs=1e-3)
    return [round(v) for v in found], grid.shape


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_blocks_stay_inside_and_come_everywhere(
    subjects: tuple[Subject, ...], share: float
) -> None:
    seen: list[list[int]] = []
    for step in range(60):
        for block in drawn(subjects, replace(NOW, step=step), share=share):
            start, shape = start_of(block, own(subjects))
            assert block.grid.shape == PATCH
            assert all(0 <= s <= n - w for s, n, w in zip(start, shape, PATCH, strict=True))
            seen.append(start)
    if not share:
        assert {start[0] for start in seen} == set(range(5))
        assert {start[1] for start in seen} > {0, 48} and {start[2] for start in seen} > {0, 44}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_block_larger_than_the_grid_is_centred_on_it(
    subjects: tuple[Subject, ...], share: float
) -> None:
    """11 slices over 8 begin one before the first; rows fit; 64 columns are all there are."""
    for block in drawn(subjects, share=share, patch=(11, 16, 64)):
        start, shape = start_of(block, own(subjects))
        assert start[0] == -1 and 0 <= start[1] <= shape[1] - 16 and start[2] == 0


def test_each_label_is_as_likely_however_large(subjects: tuple[Subject, ...]) -> None:
    """A tumour of one voxel; of 600 within five standard deviations, as each case of a third."""
    scans = []
    for scan in subjects:
        assert scan.labels is not None
        few = (scan.labels.data > 0).byte()
        few[0, 4, 32, 32] = 2
        scans.append(scan.with_labels(replace(scan.labels, data=few)))
    blocks = [
        block
        for step in range(100)
        for block in drawn(tuple(scans), replace(NOW, step=step), share=1.0)
    ]
    labels, cases = (Counter(getattr(b, name) for b in blocks) for name in ("label", "case"))
    assert set(labels) == {1, 2} and abs(labels[1] - 300) < 5 * (600 * 1 / 4) ** 0.5
    assert all(abs(cases[k] - 200) < 5 * (600 * 2 / 9) ** 0.5 for k in range(3))


def test_every_voxel_of_a_label_may_be_the_middle(subjects: tuple[Subject, ...]) -> None:
    """A label of three voxels in two slices: all come, none else."""
    labels = torch.zeros_like(subjects[0].image.data, dtype=torch.uint8)
    places = [(3, 20, 30), (3, 40, 31), (5, 33, 33)]
    for k, row, column in places:
        labels[0, k, row, column] = 7
    scan = subjects[0].with_labels(replace(subjects[0].image, data=labels))
    seen = Counter()
    for step in range(30):
        for block in drawn((scan,), replace(NOW, step=step), share=1.0, patch=(1, 5, 5)):
            assert block.label == 7
            middle = scan.image.grid.index(block.grid.mm([0, 2, 2])).tolist()
            seen[tuple(round(v) for v in middle)] += 1
    assert set(seen) == set(places) and min(seen.values()) > 30


def test_a_subject_without_labels_gives_blocks_anywhere(subjects: tuple[Subject, ...]) -> None:
    empty = subjects[0].with_labels(
        replace(subjects[0].image, data=torch.zeros_like(subjects[0].image.data).byte())
    )
    for block in drawn((empty,), share=1.0):
        assert block.label == 0
        start, shape = start_of(block, own((empty,)))
        assert all(0 <= s <= n - w for s, n, w in zip(start, shape, PATCH, strict=True))


def test_blocks_are_centred_on_slices_that_count(subjects: tuple[Subject, ...]) -> None:
    """Of the first case one slice counts; the other is drawn as before."""
    ignored = torch.ones((1, *subjects[0].image.grid.shape), dtype=torch.bool)
    ignored[:, 5] = False
    first = replace(subjects[0], ignore=Volume(ignored, subjects[0].image.grid))
    some, grids = (first, *subjects[1:]), own(subjects)
    middles = Counter[int]()
    for k in range(40):
        step = TrainStep(seed=0, epoch=0, step=k)
        pair = (
            draw_blocks(cases, grids, (1, 8, 8), step, batch_size=4, foreground_share=0.0)
            for cases in (some, subjects)
        )
        for block, before in zip(*pair, strict=True):
            start, _ = start_of(block, grids)
            if block.case == 0:
                middles[start[0]] += 1
            else:
                assert same(block, before)
    assert set(middles) == {5}
    nothing = replace(first, ignore=Volume(torch.ones_like(ignored), first.image.grid))
    for block, before in zip(drawn((nothing, *subjects[1:])), drawn(subjects), strict=True):
        assert block.case != 0 or block.label > 0 or same(block, before)
