"""Small pieces go, are named, and a newborn's kidney stays."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.config import PostprocessConfig
from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR_CYST, Target
from kidseg.postprocess import (
    LoneTumours,
    Piece,
    least_kidney_ml,
    lone_tumours,
    min_volume_ml,
    notable_tumour_ml,
    remove_lone_tumours,
    remove_small,
)


def labels_of(*boxes: tuple[tuple[slice, slice, slice], int]) -> Volume:
    """Voxels of 2 x 2 x 2.5 mm: 0.01 ml."""
    data = torch.zeros((1, 12, 20, 20), dtype=torch.uint8)
    for (z, y, x), label in boxes:
        data[0, z, y, x] = label
    return Volume(data, Grid.from_spacing((12, 20, 20), (2.5, 2.0, 2.0)))


LARGE = (slice(2, 8), slice(2, 12), slice(2, 7))  # 300 voxels, 3 ml
SMALL = (slice(4, 6), slice(15, 17), slice(15, 17))  # 8 voxels, 0.08 ml


def test_by_hand() -> None:
    labels = labels_of((LARGE, 1), (SMALL, 2))
    kept, removed = remove_small(labels, 0.1)
    assert torch.equal(kept.data, labels_of((LARGE, 1)).data)
    (piece,) = removed
    assert piece.volume_ml == pytest.approx(0.08)
    assert piece.voxels == {2: 8}
    assert piece.centre_mm == pytest.approx(tuple(labels.grid.mm([4.5, 15.5, 15.5]).tolist()))
    assert labels.data.sum() > kept.data.sum(), "the volume that was given is left as it was"


def test_nothing_below_the_threshold_is_the_same_volume() -> None:
    labels = labels_of((LARGE, 1), (SMALL, 2))
    for least in (0.0, 0.08):
        kept, removed = remove_small(labels, least)
        assert kept is labels and removed == ()


def test_kidney_and_tumour_count_as_one_piece() -> None:
    beside = (slice(4, 5), slice(12, 13), slice(4, 5))
    kept, removed = remove_small(labels_of((LARGE, 1), (beside, 2)), 0.1)
    assert removed == () and (kept.data == 2).sum() == 1


def test_what_reaches_the_ends_stays() -> None:
    for at in (slice(0, 1), slice(11, 12)):
        labels = labels_of(((at, slice(15, 17), slice(15, 17)), 1))
        assert remove_small(labels, 0.1)[1] == ()


def test_what_has_a_known_voxel_stays() -> None:
    labels = labels_of((LARGE, 1), (SMALL, 2))
    known = np.zeros(labels.grid.shape, dtype=bool)
    known[5, 16, 16] = True
    assert remove_small(labels, 0.1, known=known) == (labels, ())
    rule = LoneTumours(below_ml=100.0, kidney_ml=1.0, within_mm=1.0, kidney=(1,), mass=(2,))
    assert len(remove_lone_tumours(labels, rule)[1]) == 1
    assert remove_lone_tumours(labels, rule, known=known) == (labels, ())
    known[5, 16, 16], known[0] = False, True  # of the background
    assert len(remove_small(labels, 0.1, known=known)[1]) == 1


def test_an_empty_mask_stays_empty() -> None:
    kept, removed = remove_small(labels_of(), 5.0)
    assert not kept.data.any() and removed == ()


def one_by_one(labels: Volume, min_ml: float) -> tuple[np.ndarray, list[Piece]]:
    """What `remove_small` says it does, a piece at a time."""
    from scipy import ndimage

    values = labels.data[0].numpy()
    pieces, count = ndimage.label(values > 0)
    kept, removed = values.copy(), []
    for number in range(1, count + 1):
        there = pieces == number
        volume_ml = float(there.sum() * float(labels.grid.voxel_ml))
        if volume_ml >= min_ml or there[0].any() or there[-1].any():
            continue
        x, y, z = labels.grid.mm(np.argwhere(there).mean(0)).tolist()
        ids, counts = np.unique(values[there], return_counts=True)
        voxels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        removed.append(Piece(volume_ml=volume_ml, centre_mm=(x, y, z), voxels=voxels))
        kept[there] = 0
    return kept, sorted(removed, key=lambda piece: -piece.volume_ml)


@given(st.integers(0, 2**31 - 1), st.floats(0.02, 0.5), st.floats(0, 0.2))
@settings(max_examples=60)
def test_noise_is_removed_piece_by_piece(seed: int, density: float, min_ml: float) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 12, 3))
    values = rng.integers(1, 4, shape) * (rng.random(shape) < density)
    grid = Grid.from_spacing(shape, (2.5, 2.0, 2.0), (10.0, -40.0, 300.0))
    labels = Volume(torch.from_numpy(values.astype(np.uint8))[None], grid)
    before = labels.data.clone()
    kept, removed = remove_small(labels, min_ml)
    want, pieces = one_by_one(labels, min_ml)
    assert np.array_equal(kept.data[0].numpy(), want)
    assert torch.equal(labels.data, before)
    assert len(removed) == len(pieces)
    for piece, other in zip(removed, pieces, strict=True):
        assert (piece.volume_ml, piece.voxels) == (other.volume_ml, other.voxels)
        assert piece.centre_mm == pytest.approx(other.centre_mm, abs=1e-9)
        assert piece.as_dict() == asdict(piece)


def test_pieces_are_plain_numbers() -> None:
    """For JSON."""
    _, (piece,) = remove_small(labels_of((LARGE, 1), (SMALL, 2)), 0.1)
    assert json.loads(json.dumps(piece.as_dict()))["voxels"] == {"2": 8}


def test_a_threshold_in_voxels_is_of_a_grid_and_of_a_body_of_any_size() -> None:
    config = PostprocessConfig(min_voxels=9)
    for radius in (None, math.nan, 55.0, 150.0):
        assert min_volume_ml(config, radius, 0.01) == pytest.approx(0.09)
    labels = labels_of((SMALL, 1), ((slice(0, 2), slice(0, 2), slice(0, 2)), 2))
    for voxels, count in ((8, 0), (9, 2)):
        least = min_volume_ml(PostprocessConfig(min_voxels=voxels), None, 0.01)
        assert len(remove_small(labels, least, keep_ends=False)[1]) == count
    assert len(remove_small(labels, 0.09)[1]) == 1, "one reaches the first slice"


def test_the_default_keeps_a_newborns_kidney() -> None:
    """10 ml at least; a trunk of 11 cm effective diameter. Even a fiftieth of it stays."""
    least = min_volume_ml(PostprocessConfig(), 55.0)
    assert least < 10 / 50
    assert min_volume_ml(PostprocessConfig(), 150.0) == pytest.approx(3.0)
    assert min_volume_ml(PostprocessConfig(), 75.0) == pytest.approx(3.0 / 8)


def test_no_body_removes_nothing_and_a_giant_no_more_than_an_adult() -> None:
    assert min_volume_ml(PostprocessConfig(), None) == 0
    assert min_volume_ml(PostprocessConfig(), math.nan) == 0
    assert min_volume_ml(PostprocessConfig(), 300.0) == pytest.approx(3.0)


# Tumours without a kidney

RULE = LoneTumours(below_ml=2.0, kidney_ml=0.2, within_mm=5.0, kidney=(1,), mass=(2, 3))
KIDNEY = (slice(2, 8), slice(2, 7), slice(2, 7))  # 150 voxels, 1.5 ml; rows and columns up to 12 mm
FAR = (slice(4, 8), slice(12, 17), slice(12, 17))  # 100 voxels, 1 ml; 14 mm away


def test_a_tumour_far_from_any_kidney_is_removed() -> None:
    labels = labels_of((KIDNEY, 1), (FAR, 2))
    kept, (piece,) = remove_lone_tumours(labels, RULE)
    assert torch.equal(kept.data, labels_of((KIDNEY, 1)).data)
    assert (piece.reason, piece.voxels) == ("no-kidney", {2: 100})
    assert json.loads(json.dumps(piece.as_dict()))["reason"] == "no-kidney"
    assert (labels.data == 2).any(), "the volume that was given is left as it was"


@pytest.mark.parametrize("label", [2, 3])
def test_a_tumour_or_cyst_at_a_kidney_or_near_one_stays(label: int) -> None:
    for gap, stays in ((0, True), (1, True), (2, False)):
        start = 7 + gap  # 2 mm a row, so that the centres are 2, 4 and 6 mm apart
        lesion = (slice(4, 6), slice(start, start + 3), slice(2, 7))
        kept, removed = remove_lone_tumours(labels_of((KIDNEY, 1), (lesion, label)), RULE)
        assert bool((kept.data == label).any()) == stays == (not removed)


def test_distances_are_in_mm_whatever_the_direction() -> None:
    """Slices are 2.5 mm, rows 2 mm: 5 mm away is two slices, which is just near enough."""
    for first, stays in ((9, True), (10, False)):
        lesion = (slice(first, first + 1), slice(2, 7), slice(2, 7))
        _, removed = remove_lone_tumours(labels_of((KIDNEY, 1), (lesion, 2)), RULE)
        assert stays == (not removed)


def test_shreds_of_kidney_are_no_kidney_and_go_with_the_tumour() -> None:
    shred = (slice(4, 8), slice(11, 12), slice(12, 16))  # 16 voxels, 0.16 ml
    kidney = (slice(4, 8), slice(11, 12), slice(12, 17))  # 20 voxels, 0.2 ml
    kept, (piece,) = remove_lone_tumours(labels_of((FAR, 2), (shred, 1)), RULE)
    assert piece.voxels == {1: 16, 2: 100} and not kept.data.any()
    assert not remove_lone_tumours(labels_of((FAR, 2), (kidney, 1)), RULE)[1]


def test_a_tumour_that_has_replaced_its_kidney_stays_and_what_lies_near_it() -> None:
    large = (slice(1, 9), slice(2, 7), slice(2, 7))  # 200 voxels, 2 ml
    near = (slice(10, 11), slice(2, 7), slice(2, 7))
    assert not remove_lone_tumours(labels_of((large, 2), (near, 2)), RULE)[1]
    _, (piece,) = remove_lone_tumours(labels_of((large, 2), (near, 2), (FAR, 2)), RULE)
    assert piece.voxels == {2: 100}


def test_kidneys_and_other_labels_are_no_tumours() -> None:
    """A shred of kidney alone; a tumour in the liver (label 7), which stays a liver."""
    shred = (slice(4, 5), slice(15, 16), slice(15, 16))
    assert remove_lone_tumours(labels_of((shred, 1)), RULE)[1] == ()
    liver = (slice(2, 10), slice(10, 20), slice(10, 20))
    kept, (piece,) = remove_lone_tumours(labels_of((liver, 7), (FAR, 2)), RULE)
    assert piece.voxels == {2: 100} and (kept.data == 7).sum() == 700
    assert remove_lone_tumours(labels_of(), RULE)[1] == ()


@given(st.integers(0, 2**31 - 1), st.floats(0.02, 0.4), st.floats(0.0, 9.0))
@settings(max_examples=40)
def test_lone_tumours_are_those_by_their_definition(
    seed: int, density: float, within_mm: float
) -> None:
    """One component after the other, with all distances between voxels."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 8, 3))
    values = (rng.integers(1, 4, shape) * (rng.random(shape) < density)).astype(np.uint8)
    labels = Volume(torch.from_numpy(values)[None], Grid.from_spacing(shape, (2.5, 2.0, 1.0)))
    rule = LoneTumours(below_ml=0.1, kidney_ml=0.012, within_mm=within_mm, kidney=(1,), mass=(2,))
    kept, _ = remove_lone_tumours(labels, rule)
    known = np.where(values == 3, 0, values)
    pieces, count = ndimage.label(known)
    components = [pieces == k for k in range(1, count + 1)]
    spacing, voxel_ml = np.array([2.5, 2.0, 1.0]), 0.005

    def has_kidney(there: np.ndarray) -> bool:
        kidney = (known[there] == 1).sum() * voxel_ml
        return bool(kidney >= rule.kidney_ml or there.sum() * voxel_ml >= rule.below_ml)

    kidneys = [np.argwhere(there) * spacing for there in components if has_kidney(there)]
    want = values.copy()
    for there in components:
        at = np.argwhere(there) * spacing
        gaps = [np.linalg.norm(at[:, None] - k, axis=-1).min() for k in kidneys]
        is_near = min(gaps, default=math.inf) <= within_mm
        if (known[there] == 2).any() and not has_kidney(there) and not is_near:
            want[there] = 0
    assert np.array_equal(kept.data[0].numpy(), want)


def test_a_tenth_of_a_small_kidney_by_size_of_the_body() -> None:
    config = PostprocessConfig()
    scan = Grid.from_spacing((16, 8, 8), (2.5, 2.0, 2.0))
    assert least_kidney_ml(config, 150.0, scan) == least_kidney_ml(config, 220.0, scan) == 10.0
    assert least_kidney_ml(config, 75.0, scan) == pytest.approx(10.0 / 8)
    assert least_kidney_ml(config, 55.0, scan) < 1.0, "a newborn's kidney has 10 ml"
    thin = Grid.from_spacing((15, 8, 8), (2.5, 2.0, 2.0))
    assert least_kidney_ml(config, 150.0, thin) == least_kidney_ml(config, None, scan) == 0.0


def test_what_tumour_is_notable_depends_on_the_body() -> None:
    config = PostprocessConfig(body_radius_mm=150.0)
    assert notable_tumour_ml(config, 150.0) == notable_tumour_ml(config, 220.0) == 0.5
    assert notable_tumour_ml(config, 75.0) == pytest.approx(0.5 / 8)
    assert notable_tumour_ml(config, None) == notable_tumour_ml(config, math.nan) == 0.5


def test_which_tumours_are_lone_depends_on_body_stack_and_labels() -> None:
    config = PostprocessConfig(lone_tumour_ml=100.0, within_mm=5.0, stack_mm=40.0)
    target = Target.of_labels(KIDNEY_TUMOUR_CYST)

    def rule(
        slices: int = 20, radius: float | None = 150.0, target: Target = target
    ) -> LoneTumours:
        scan = Grid.from_spacing((slices, 8, 8), (2.0, 1.0, 1.0))
        return lone_tumours(config, radius, scan, KIDNEY_TUMOUR_CYST, target)

    found = rule()
    assert (found.below_ml, found.within_mm) == (100.0, 5.0)
    assert (found.kidney_ml, found.kidney, found.mass) == (10.0, (1,), (2, 3))
    assert rule(radius=75.0).below_ml == pytest.approx(100 / 8)
    assert rule(radius=300.0).below_ml == 100.0
    for none in (
        rule(slices=19),
        rule(slices=1),
        rule(radius=None),
        rule(radius=math.nan),
        rule(target=Target.merged(KIDNEY_TUMOUR_CYST)),
        rule(target=Target.alone(KIDNEY_TUMOUR_CYST, "tumour")),
    ):
        assert none.below_ml == 0
        assert not remove_lone_tumours(labels_of((FAR, 2)), none)[1]
