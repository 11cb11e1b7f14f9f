"""Batches: a pure function of the training step, with their share of every label."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cohorts import make_cohort
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import SliceIndex, draw, steps_per_epoch
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Volume
from kidseg.labels import LabelSchema
from kidseg.stage import TrainStep


def index_of(label_share: float = 1 / 3) -> SliceIndex:
    """Three cases of 10, 20 and 30 slices; a fifth shows kidney, a tenth tumour."""
    random = np.random.default_rng(0)
    shown = [random.random((n, 2)) < (0.2, 0.1) for n in (10, 20, 30)]
    return SliceIndex.of_cases(shown, label_share)


def at(step: int, *, epoch: int = 0, seed: int = 0, rank: int = 0, world: int = 1) -> TrainStep:
    return TrainStep(seed=seed, epoch=epoch, step=step, rank=rank, world=world)


@settings(max_examples=50)
@given(
    batch=st.integers(1, 40),
    step=st.integers(0, 200),
    epoch=st.integers(0, 50),
    share=st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]),
)
def test_every_label_has_its_share(batch: int, step: int, epoch: int, share: float) -> None:
    index = index_of(share)
    drawn = draw(index, at(step, epoch=epoch), batch)
    assert len(drawn) == batch
    rows = [np.flatnonzero((index.every == pair).all(1))[0] for pair in drawn]
    wanted = min(math.ceil(share * batch - 1e-9), batch // 2)
    for group in index.groups:
        assert np.isin(rows, group).sum() >= wanted


def test_the_same_step_draws_the_same_batch_and_another_another() -> None:
    index = index_of()
    first = draw(index, at(3, epoch=2, seed=5), 12)
    assert first == draw(index, at(3, epoch=2, seed=5), 12)
    others = [at(4, epoch=2, seed=5), at(3, epoch=1, seed=5), at(3, epoch=2, seed=6)]
    assert all(draw(index, other, 12) != first for other in others)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_processes_share_the_batch(world: int) -> None:
    index = index_of()
    whole = draw(index, at(7), 12)
    parts = [draw(index, at(7, rank=rank, world=world), 12) for rank in range(world)]
    assert [parts[k % world][k // world] for k in range(12)] == whole


def test_an_uneven_share_is_refused() -> None:
    with pytest.raises(UsageError, match="not divisible by") as error:
        draw(index_of(), at(0, world=5), 12)
    assert error.value.code == "bad-batch-size"


def test_no_slice_comes_again_before_all_have_come() -> None:
    """Without shares an epoch of 60 slices in batches of 8 starts with 56 different ones."""
    index = index_of(0.0)
    drawn = [pair for step in range(7) for pair in draw(index, at(step), 8)]
    assert len(set(drawn)) == 56
    more = drawn + draw(index, at(7), 8)
    assert set(more) == {tuple(pair) for pair in index.every.tolist()}


def test_a_label_that_no_slice_shows_leaves_its_places() -> None:
    index = SliceIndex.of_cases([np.array([[True, False]] * 4)], 1 / 3)
    assert len(draw(index, at(0), 9)) == 9


def test_no_slices_are_refused() -> None:
    with pytest.raises(ValueError, match="no slices"):
        SliceIndex.of_cases([np.zeros((0, 2), dtype=bool)], 1 / 3)


def test_steps_cover_all_slices() -> None:
    assert steps_per_epoch(index_of(), 32) == 2
    assert steps_per_epoch(index_of(), 60) == 1
    assert steps_per_epoch(index_of(), 59) == 2


def grouped(shares: tuple[float, ...], *, members_only: bool = False) -> SliceIndex:
    """Twelve slices: 0-5 in no group, 6-8 in the first, 9-10 in the second, 11 in both."""
    member = np.zeros((12, 2), dtype=bool)
    member[6:9, 0] = member[9:11, 1] = member[11] = True
    return SliceIndex.of_groups([member], shares, members_only=members_only)


@pytest.mark.parametrize(
    ("shares", "batch", "counts"),
    [
        ((0.5, 0.25), 8, (4, 2)),
        ((0.5, 0.25), 7, (4, 2)),
        ((0.5, 0.5), 5, (2, 2)),
        ((0.75, 0.75), 8, (4, 4)),
        ((0.0, 1.0), 6, (0, 6)),
    ],
)
def test_every_group_has_its_own_share(
    shares: tuple[float, ...], batch: int, counts: tuple[int, int]
) -> None:
    """Rounded up where the batch has room; the rest comes from all slices."""
    index = grouped(shares)
    for step in range(20):
        rows = [k for _, k in draw(index, at(step), batch)]
        for group, count in zip(index.groups, counts, strict=True):
            assert np.isin(rows, group).sum() >= count
        assert len(rows) == batch
    if sum(counts) == batch:
        assert min(rows) >= 6, "none is left for slices of no group"


def test_slices_of_no_group_can_be_left_out() -> None:
    """A group without a share does not count."""
    assert grouped((0.5, 0.5), members_only=True).every[:, 1].tolist() == [*range(6, 12)]
    index = grouped((0.0, 0.5), members_only=True)
    assert index.every[:, 1].tolist() == [9, 10, 11]
    assert [group.tolist() for group in index.groups] == [[2], [0, 1, 2]]
    with pytest.raises(ValueError, match="no slices"):
        grouped((0.0, 0.0), members_only=True)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 3), (0.5, 6)])
def test_a_batch_has_its_share_of_small_sections(share: float, expected: int) -> None:
    """12 samples, 3 of each label; one slice of each patient shows a single voxel of kidney."""
    cohort = make_cohort(3, 1)
    cases = []
    for case in cohort.training:
        counts = np.full((case.slices, 256), 10)
        counts[1, 1:] = 0
        counts[1, 1] = 1
        cases.append(replace(case, counts=counts))
    config = replace(cohort.config, label_share=0.25, small_share=share)
    index = replace(cohort, training=tuple(cases), config=config).index
    for step in range(20):
        drawn = draw(index, at(step), 12)
        assert len(drawn) == 12
        assert sum(k == 1 for _, k in drawn) >= expected


def test_without_a_share_of_small_sections_the_batches_are_those_of_the_labels() -> None:
    cohort = make_cohort(3, 1)
    present = [case.counts[:, 1:3] > 0 for case in cohort.training]
    of_labels = SliceIndex.of_cases(present, cohort.config.label_share)
    assert all(draw(cohort.index, at(k), 8) == draw(of_labels, at(k), 8) for k in range(10))


def cohort_of(names: dict[int, str]) -> Cohort:
    """Three patients of 40 slices, each of which shows each label in an eighth of its slices."""
    cohort, random = make_cohort(3, 1), np.random.default_rng(0)
    cases = []
    for case in cohort.training:
        counts = np.zeros((40, 256), dtype=np.int64)
        counts[:, 1 : len(names) + 1] = random.random((40, len(names))) < 1 / 8
        cases.append(replace(case, counts=counts))
    schema = LabelSchema.from_names(names)
    return replace(cohort, training=tuple(cases), schema=schema)


SEVENTEEN_ORGANS = {label: f"organ {label}" for label in range(1, 18)}


@pytest.mark.parametrize("batch", [2, 12, 32])
@pytest.mark.parametrize(
    ("names", "kidney", "tumour"),
    [
        ({1: "kidney", 2: "tumour"}, [1], [2]),
        ({1: "tumour", 2: "kidney"}, [2], [1]),
        ({1: "kidney", 2: "tumour", 3: "cyst"}, [1], [2]),
        ({1: "left kidney", 2: "right kidney", 3: "tumour", 4: "cyst"}, [1, 2], [3]),
        (
            {**SEVENTEEN_ORGANS, 18: "kidney_left", 19: "kidney_right", 20: "tumour"},
            [18, 19],
            [20],
        ),
    ],
    ids=["two", "turned", "three", "four", "twenty"],
)
def test_a_third_of_a_batch_shows_kidney_and_a_third_tumour_whatever_else_is_labelled(
    names: dict[int, str], kidney: list[int], tumour: list[int], batch: int
) -> None:
    cohort = cohort_of(names)
    for step in range(20):
        drawn = draw(cohort.index, at(step), batch)
        assert len(drawn) == batch
        for labels in (kidney, tumour):
            shows = [cohort.training[case].counts[k, labels].any() for case, k in drawn]
            assert sum(shows) >= math.ceil(batch / 3)


@pytest.mark.parametrize(
    "names", [{1: "kidney", 2: "tumour"}, {1: "tumour", 2: "kidney"}, {1: "liver", 2: "spleen"}]
)
def test_of_two_labels_each_is_a_group_in_their_order(names: dict[int, str]) -> None:
    """So that a training draws the batches that it always drew."""
    cohort = cohort_of(names)
    present = [case.counts[:, 1:3] > 0 for case in cohort.training]
    of_labels = SliceIndex.of_cases(present, cohort.config.label_share)
    assert all(draw(cohort.index, at(k), 12) == draw(of_labels, at(k), 12) for k in range(10))


def test_labels_without_a_meaning_have_a_share_each() -> None:
    cohort = cohort_of({1: "liver", 2: "spleen", 3: "pancreas"})
    for step in range(20):
        drawn = draw(cohort.index, at(step), 12)
        shows = [cohort.training[case].counts[k, 1:4] > 0 for case, k in drawn]
        assert (np.sum(shows, axis=0) >= 4).all()


def test_slices_that_do_not_count_are_not_drawn() -> None:
    member = [np.array([[True], [False], [True]]), np.array([[False], [True]])]
    counted = [np.array([True, False, True]), np.array([False, True])]
    index = SliceIndex.of_groups(member, [0.5], counted=counted)
    assert index.every.tolist() == [[0, 0], [0, 2], [1, 1]]
    assert index.groups[0].tolist() == [0, 1, 2]
    only = SliceIndex.of_groups(member, [0.5], counted=counted, members_only=True)
    assert only.every.tolist() == [[0, 0], [0, 2], [1, 1]]


def test_slices_that_are_ignored_as_a_whole_are_not_drawn() -> None:
    """One voxel that counts is enough."""
    cohort = make_cohort(2, 1)
    first, second = cohort.training
    assert first.labels is not None
    ignored = torch.ones(first.labels.data.shape, dtype=torch.bool)
    ignored[:, 3] = False
    ignored[0, 5, 7, 9] = False
    first = replace(first, ignore=Volume(ignored, first.labels.grid))
    index = replace(cohort, training=(first, second)).index
    assert [k for case, k in index.every.tolist() if case == 0] == [3, 5]
    assert sum(case == 1 for case, _ in index.every.tolist()) == second.slices
    nothing = replace(first, ignore=Volume(torch.ones_like(ignored), first.labels.grid))
    with pytest.raises(InputError) as error:
        _ = replace(cohort, training=(nothing,)).index
    assert error.value.code == "all-ignored"
