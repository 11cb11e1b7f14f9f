"""A scan made ready: what is kept of it, on which pixels, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cohorts import base_of, masks_on, material_of
from ellipses import in_fine_pixels, make_ellipse_patient
from kidseg.cohort.subject import BodyMasks, Material, Subject, adapt, prepare
from kidseg.config import ViewConfig
from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import Normalisation, Scaling, Statistics

STATISTICS = Statistics(
    mean=100.0,
    sd=50.0,
    median=100.0,
    min=0.0,
    max=250.0,
    percentile_00_5=0.0,
    percentile_99_5=250.0,
)
CT = (Normalisation.of_channel("CT", STATISTICS),)
MR = tuple(Normalisation.of_channel(name, STATISTICS) for name in ("T1", "T2"))
VIEW = ViewConfig(size=48)
FINE = Grid.from_spacing((1, 4, 4), (5.0, 1.0, 1.0))


def subject_of(seed: int = 0, view: ViewConfig = VIEW) -> Subject:
    patient = make_ellipse_patient(seed)
    return prepare(patient.image, material_of(view), CT, name="a", labels=patient.labels)


def labelled(rows: list[list[int]], pixel_mm: float, ignore: int | None = None) -> Subject:
    """One slice of these labels, of pixels of 1 mm."""
    labels = torch.tensor(rows, dtype=torch.uint8)[None, None]
    grid = Grid.from_spacing(labels.shape[1:], (5.0, 1.0, 1.0))
    image = Volume(torch.zeros(labels.shape, dtype=torch.int16), grid)
    return prepare(
        image,
        Material(pixel_mm=pixel_mm),
        CT,
        name="a",
        labels=Volume(labels, grid),
        ignore_label=ignore,
    )


def test_labels_lie_on_the_images_own_pixels() -> None:
    patient, subject = make_ellipse_patient(0), subject_of()
    assert subject.labels is not None
    assert torch.equal(subject.labels.data, patient.labels.data)
    assert subject.labels.grid.same_as(subject.image.grid)
    shown = subject.shown([(1,), (2,)])
    assert shown.shape == (8, 2)
    there = torch.stack([(patient.labels.data[0] == c).flatten(1).any(1) for c in (1, 2)], dim=1)
    assert (torch.from_numpy(shown) == there).all()
    assert subject.labelled_or_all == (1, 6)
    assert subject.fullest in (3, 4)


def test_counts_are_of_every_label_in_every_slice() -> None:
    subject = subject_of()
    assert subject.labels is not None
    for k in range(subject.slices):
        for label in (0, 1, 2, 3):
            assert subject.counts[k, label] == int((subject.labels.data[0, k] == label).sum())
    assert subject.counts.shape == (8, 256) and (subject.counts.sum(1) == 64 * 64).all()


def test_a_group_is_shown_where_one_of_its_labels_is() -> None:
    counts = np.zeros((4, 256), dtype=np.int64)
    counts[0, 1] = counts[1, 20] = counts[2, 3] = 1
    shown = replace(subject_of(), counts=counts).shown([(1, 20), (3,)])
    assert shown.T.tolist() == [[True, True, False, False], [False, False, True, False]]


def test_other_labels_are_counted_anew_and_nothing_of_them_is_ignored() -> None:
    subject = subject_of()
    ignored = torch.ones_like(subject.image.data, dtype=torch.bool)
    subject = replace(subject, ignore=Volume(ignored, subject.image.grid))
    data = torch.zeros((1, 8, 64, 64), dtype=torch.uint8)
    data[:, 2, :3, :5] = 2
    other = subject.with_labels(Volume(data, subject.image.grid))
    assert other.labelled_or_all == (2, 2) and other.fullest == 2
    assert other.counts[2, 2] == 15 and not other.shown([(1,)]).any()
    assert other.ignore is None and other.image is subject.image
    assert subject.labelled_or_all == (1, 6), "the one before is as it was"


def test_of_no_labels_all_slices_count() -> None:
    bare = prepare(make_ellipse_patient(0).image, material_of(VIEW), CT, name="a")
    assert bare.labels is None and bare.ignore is None
    assert bare.labelled_or_all == (0, 7) and bare.fullest == 4
    none = bare.shown([(1,), (2,)])
    assert not none.any() and none.shape == (8, 2)


def test_a_block_takes_the_label_that_most_of_its_pixels_have() -> None:
    """Four blocks of 2 x 2: three of four; two of four, and two others; a tie; a tie with 0."""
    subject = labelled(
        [
            [1, 1, 2, 2],
            [1, 2, 1, 0],
            [2, 1, 2, 0],
            [1, 2, 0, 2],
        ],
        2.0,
    )
    assert subject.labels is not None
    assert subject.labels.data[0, 0].tolist() == [[1, 2], [1, 0]]
    assert subject.labels.data.dtype == torch.uint8
    assert subject.labels.grid.same_as(subject.image.grid)
    assert subject.counts[0, :4].tolist() == [1, 2, 1, 0], "of blocks"


def test_a_block_beyond_the_edge_goes_on_with_the_edge() -> None:
    """Three columns in blocks of two: the last block has its column twice."""
    subject = labelled([[1, 1, 2], [1, 2, 2]], 2.0)
    assert subject.labels is not None and subject.labels.data[0, 0].tolist() == [[1, 2]]


def test_labels_of_blocks_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows = rng.choice([0, 1, 2, 200, 255], (12, 15), p=[0.3, 0.2, 0.2, 0.2, 0.1])
    subject = labelled(rows.tolist(), 3.0)
    assert subject.labels is not None
    for i in range(4):
        for j in range(5):
            block = rows[3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
            wanted = np.bincount(block.ravel()).argmax()  # the first of those that are most
            assert subject.labels.data[0, 0, i, j] == wanted


def test_finer_pixels_are_averaged_and_coarser_ones_stay() -> None:
    """As many as fit into the pixel that is asked for, never more."""
    for pixel_mm, factor in ((None, 1), (0.5, 1), (1.0, 1), (1.9, 1), (2.0, 2), (3.5, 3)):
        assert Material(pixel_mm=pixel_mm).factor(FINE) == factor
    aslant = Grid.from_spacing((1, 4, 4), (5.0, 1.0, 2.0))
    assert Material(pixel_mm=2.0).factor(aslant) == 1, "the larger side decides"


def test_fine_pixels_are_averaged_before_they_are_interpolated() -> None:
    """A checkerboard of 1 mm pixels seen with 4 mm ones is flat, not aliased."""
    grid = Grid.from_spacing((2, 200, 200), (5.0, 1.0, 1.0))
    rows, columns = torch.arange(200)[:, None], torch.arange(200)[None]
    board = (100 * ((rows + columns) % 2)).to(torch.int16).expand(1, 2, 200, 200)
    view = ViewConfig(size=48, pixel_mm=4.0)
    subject = prepare(Volume(board, grid), material_of(view), CT, name="a")
    assert subject.image.grid.spacing_mm.tolist() == pytest.approx([5.0, 4.0, 4.0])
    inner = base_of(subject, view).crop((0, 4, 4), (2, 40, 40))
    assert resample(subject.image, inner).data.unique().tolist() == [50.0]


def test_masks_are_made_where_they_are_asked_for() -> None:
    subject = subject_of()
    image = make_ellipse_patient(0).image
    bare = prepare(image, replace(material_of(VIEW), masks=None), CT, name="a")
    assert bare.masks is None and subject.masks is not None
    assert bare.body is not None and subject.body is not None
    assert torch.equal(bare.body.whole.radii_mm, subject.body.whole.radii_mm)
    there = subject.masks.data[0].any(0)
    rows, columns = there.any(1).nonzero()[:, 0], there.any(0).nonzero()[:, 0]
    box = (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))
    assert bare.body.box == subject.body.box == box
    long, short = subject.body.whole.radii_mm.tolist()
    assert subject.body.radius_mm == pytest.approx((long * short) ** 0.5)


def test_bone_is_found_and_a_kidney_is_none() -> None:
    subject = subject_of()
    assert subject.labels is not None
    bone = masks_on(subject, subject.image.grid)[:, 1]
    assert bone.max() > 0.9
    assert bone[subject.labels.data[0] > 0].max() < 0.5


def test_small_pieces_of_bone_are_dropped() -> None:
    patient = make_ellipse_patient(0)
    image = patient.image.data.clone()
    image[0, 4, 32, 32] = 2000
    speckled = Volume(image, patient.image.grid)
    at = patient.image.grid.mm([4, 32, 32])
    for least, expected in ((0.0, True), (5.0, False)):
        how = BodyMasks(bone_hu=VIEW.bone_hu, bone_least_ml=least, bone_blur_mm=0.0)
        subject = prepare(speckled, Material(masks=how), CT, name="a")
        assert subject.masks is not None
        k, row, column = (round(float(i)) for i in subject.image.grid.index(at))
        assert bool(subject.masks.data[1, k, row, column] > 0) == expected


@pytest.mark.parametrize(
    ("fine", "pixel_mm", "mask_mm"),
    [(4, 1.0, 2.0), (8, 0.5, 2.0), (3, 4 / 3, 4 / 3), (1, 4.0, 4.0)],
)
def test_masks_have_pixels_of_up_to_2_mm_and_no_finer_than_the_images(
    fine: int, pixel_mm: float, mask_mm: float
) -> None:
    """They lie where the image lies, whatever its pixels."""
    patient = make_ellipse_patient(0)
    patient = in_fine_pixels(patient, fine) if fine > 1 else patient
    subject = prepare(patient.image, replace(material_of(VIEW), pixel_mm=None), CT, name="a")
    assert subject.masks is not None
    assert subject.image.grid.spacing_mm[1:].tolist() == pytest.approx([pixel_mm] * 2)
    assert subject.masks.grid.spacing_mm.tolist() == pytest.approx([10.0, mask_mm, mask_mm])
    assert subject.masks.data.shape == (2, 8, 256 / mask_mm, 256 / mask_mm)
    assert subject.masks.data.dtype == torch.uint8
    for place in (subject.image.grid, subject.masks.grid):
        corner = place.mm([0, -0.5, -0.5])
        torch.testing.assert_close(corner, patient.image.grid.mm([0, -0.5, -0.5]))


def test_masks_of_a_fine_image_agree_with_those_of_the_coarser_one() -> None:
    """1 mm pixels, and the same averaged to 2 mm: body and bone on the same grid nearly alike."""
    patient = in_fine_pixels(make_ellipse_patient(0), 4)
    fine, coarse = (
        prepare(patient.image, replace(material_of(VIEW), pixel_mm=pixel), CT, name="a")
        for pixel in (None, 2.0)
    )
    assert fine.masks is not None and coarse.masks is not None
    assert fine.masks.grid.same_as(coarse.masks.grid)
    assert fine.image.grid.shape[1] == 2 * coarse.image.grid.shape[1]
    for own, other in zip(fine.masks.data.float(), coarse.masks.data.float(), strict=True):
        dice = 2 * torch.minimum(own, other).sum() / (own.sum() + other.sum())
        assert dice > 0.98
    assert fine.body is not None and coarse.body is not None
    assert fine.body.radius_mm == pytest.approx(coarse.body.radius_mm, rel=0.01)


def test_an_empty_scan_has_no_body() -> None:
    grid = Grid.from_spacing((3, 64, 64), (5.0, 4.0, 4.0))
    air = Volume(torch.full((1, 3, 64, 64), -1000, dtype=torch.int16), grid)
    subject = prepare(air, material_of(ViewConfig(size=32)), CT, name="a")
    assert subject.body is not None and subject.body.box is None
    assert not subject.body.whole.radii_mm.isfinite().any()
    assert np.isnan(subject.body.radius_mm)
    assert subject.labelled_or_all == (0, 2)


def test_ignored_voxels_do_not_count_and_are_background() -> None:
    patient = make_ellipse_patient(0)
    subject = prepare(
        patient.image, material_of(VIEW), CT, name="a", labels=patient.labels, ignore_label=2
    )
    assert subject.ignore is not None and subject.labels is not None
    assert torch.equal(subject.ignore.data, patient.labels.data == 2) and subject.ignore.data.any()
    assert not subject.labels.data[subject.ignore.data].any()
    assert not subject.counts[:, 2].any() and subject.counts[:, 1].any()
    assert subject_of().ignore is None


def test_a_block_is_ignored_where_most_of_its_pixels_are() -> None:
    subject = labelled([[3, 3, 3, 1], [3, 1, 1, 1]], 2.0, ignore=3)
    assert subject.labels is not None and subject.ignore is not None
    assert subject.ignore.data[0, 0].tolist() == [[True, False]]
    assert subject.labels.data[0, 0].tolist() == [[0, 1]]


def mr_scan(seed: int = 0, scale: float = 1.0) -> Volume:
    """Two channels, 0 around a block of other values."""
    data = torch.zeros((2, 4, 16, 20))
    rng = np.random.default_rng(seed)
    values = scale * rng.uniform([[[[100]]], [[[500]]]], [[[[300]]], [[[900]]]], (2, 3, 9, 8))
    data[:, 1:, 3:12, 4:12] = torch.from_numpy(values.round()).float()
    return Volume(data, Grid.from_spacing((4, 16, 20), (5.0, 1.0, 1.0)))


def test_channels_that_are_no_ct_are_scaled_by_the_box_of_what_is_not_0() -> None:
    scan = mr_scan()
    subject = prepare(scan, Material(), MR, name="a")
    assert subject.body is None and subject.masks is None
    inside = scan.data[:, 1:, 3:12, 4:12].double()
    for scaling, values in zip(subject.scalings, inside, strict=True):
        assert scaling.shift == pytest.approx(float(values.mean()), rel=1e-12)
        assert scaling.scale == pytest.approx(float(values.std(correction=0)), rel=1e-12)
        assert scaling.low is None and scaling.high is None


def test_scalings_are_of_the_scan_and_not_of_its_blocks() -> None:
    scan = mr_scan()
    fine, coarse = (prepare(scan, Material(pixel_mm=p), MR, name="a") for p in (None, 2.0))
    assert coarse.image.grid.spacing_mm[1] == 2.0 and fine.scalings == coarse.scalings
    assert fine.scalings != prepare(mr_scan(1), Material(), MR, name="a").scalings


def test_of_a_ct_the_scaling_is_the_plans_and_of_an_empty_image_harmless() -> None:
    (scaling,) = subject_of().scalings
    assert scaling == Scaling(low=0.0, high=250.0, shift=100.0, scale=50.0)
    empty = Volume(torch.zeros(2, 4, 16, 20), mr_scan().grid)
    scalings = prepare(empty, Material(), MR, name="a").scalings
    assert all(s.shift == 0.0 and 0 < s.scale < 1e-6 for s in scalings)


def test_values_are_kept_in_the_least_that_holds_them() -> None:
    whole, odd = mr_scan(), mr_scan(scale=0.37)
    odd = Volume(odd.data + 0.25, odd.grid)
    wide = Volume(whole.data * 1000, whole.grid)
    for scan, dtype in ((whole, torch.int16), (odd, torch.float32), (wide, torch.float32)):
        image = prepare(scan, Material(), MR, name="a").image
        assert image.data.dtype == dtype
        assert torch.equal(image.data.float(), scan.data)
    ct = prepare(Volume(odd.data[:1], odd.grid), Material(), CT, name="a").image
    assert ct.data.dtype == torch.int16
    assert torch.equal(ct.data.float(), odd.data[:1].round())


def test_what_does_not_fit_the_channels_is_refused() -> None:
    patient = make_ellipse_patient(0)
    masks = material_of(VIEW)
    colours = (Normalisation.of_channel("rgb_to_0_1", STATISTICS),)
    for scan, material, channels, code in (
        (patient.image, masks, MR[:1], "not-ct"),
        (mr_scan(), masks, CT * 2, "not-ct"),
        (mr_scan(), masks, MR, "not-ct"),
        (patient.image, Material(), CT * 2, "wrong-channels"),
        (mr_scan(), Material(), MR[:1], "wrong-channels"),
        (patient.image, masks, CT * 2, "wrong-channels"),
        (patient.image, Material(), colours, "bad-values"),
    ):
        with pytest.raises(InputError) as error:
            prepare(scan, material, channels, name="scan.nii")
        assert error.value.code == code and error.value.path == "scan.nii"
        assert error.value.next_step


# ---- one that was prepared for other methods ----------------------------------------------------


def assert_same(a: Subject, b: Subject) -> None:
    assert (a.id, a.scalings) == (b.id, b.scalings)
    for name in ("image", "masks", "labels", "ignore"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.data.dtype == other.data.dtype and torch.equal(one.data, other.data), name
            assert torch.equal(one.grid.mm_from_index, other.grid.mm_from_index)
    assert (a.body is None) == (b.body is None)
    if a.body is not None and b.body is not None:
        assert a.body.box == b.body.box
        for part in ("whole", "per_slice"):
            for value in ("centre_mm", "angle_rad", "radii_mm"):
                x, y = (getattr(getattr(s.body, part), value) for s in (a, b))
                assert torch.equal(x.nan_to_num(-1.0), y.nan_to_num(-1.0))
    assert (a.counts == b.counts).all()


MASKS = material_of(VIEW).masks


@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        (Material(), Material(pixel_mm=8.0, masks=MASKS)),
        (Material(), Material(pixel_mm=13.0)),
        (Material(), Material(masks=MASKS)),
        (Material(pixel_mm=8.0), Material(pixel_mm=8.0, masks=MASKS)),
        (Material(masks=MASKS), Material(pixel_mm=8.0, masks=MASKS)),
    ],
)
def test_what_is_lacking_is_made_as_if_from_the_scan(
    kept: Material, wanted: Material, fractions: bool
) -> None:
    """To the bit, with voxels that do not count; of HU that are no whole numbers, too."""
    patient = make_ellipse_patient(0)
    image, labels = patient.image, patient.labels.data.clone()
    if fractions:
        image = Volume(image.data.float() * 0.3 + 0.1, image.grid)
    labels[:, 3, :31] = 3
    known = {"name": "a", "labels": Volume(labels, image.grid), "ignore_label": 3}
    had = prepare(image, kept, CT, **known)  # type: ignore[arg-type]
    made = prepare(image, wanted, CT, **known)  # type: ignore[arg-type]
    assert made.ignore is not None and made.ignore.data.any()
    assert_same(adapt(had, wanted, CT, image.grid), made)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
def test_several_channels_are_averaged_as_if_from_the_scan(dtype: torch.dtype) -> None:
    scan = mr_scan(scale=0.37)
    scan = Volume((scan.data.double() * 1.1).to(dtype), scan.grid)
    had = prepare(scan, Material(), MR, name="a")
    wanted = Material(pixel_mm=2.0)
    assert_same(adapt(had, wanted, MR, scan.grid), prepare(scan, wanted, MR, name="a"))


def test_what_lacks_nothing_stays_what_it_is() -> None:
    image = make_ellipse_patient(0).image
    full = prepare(image, material_of(VIEW), CT, name="a")
    for wanted in (Material(), material_of(VIEW), Material(pixel_mm=5.0)):
        assert adapt(full, wanted, CT, image.grid) is full


@pytest.mark.parametrize("pixel_mm", [None, 4.0, 13.0])
def test_other_blocks_are_refused(pixel_mm: float | None) -> None:
    """Finer pixels are gone; of blocks of 2 none of 3 can be made."""
    image = make_ellipse_patient(0).image
    blocks = prepare(image, Material(pixel_mm=8.0), CT, name="a")
    with pytest.raises(InputError, match="averaged over blocks of 2 x 2; blocks of") as error:
        adapt(blocks, Material(pixel_mm=pixel_mm), CT, image.grid)
    assert error.value.code == "too-coarse" and error.value.path == "a"
    assert "original pixels" in (error.value.next_step or "")


def test_other_organs_tell_no_level() -> None:
    """Kidney in slices 3 to 5, most of it in 5, tumour in 4; most of the liver in 1, none in 5."""
    counts = np.zeros((8, 256), dtype=np.int64)
    counts[:5, 3], counts[1, 3] = 100, 500
    counts[3:6, 1], counts[5, 1] = 10, 40
    counts[4, 2] = 20
    subject = replace(subject_of(), counts=counts)
    of_kidneys = replace(subject, renal=(1, 2))
    assert (subject.labelled_or_all, subject.fullest) == ((0, 5), 1)
    assert (of_kidneys.labelled_or_all, of_kidneys.fullest) == ((3, 5), 5)
    assert of_kidneys.renal_voxels.tolist() == [0, 0, 0, 10, 30, 40, 0, 0]
    assert of_kidneys.small_sections([2]).tolist() == [False] * 8
    liver_alone = replace(of_kidneys, counts=np.where(np.arange(256) == 3, counts, 0))
    assert (liver_alone.labelled_or_all, liver_alone.fullest) == ((0, 7), 4)


def test_small_sections_are_the_ends_and_tumours_alone() -> None:
    """Kidney of 20 voxels, of 4 (below a quarter of them), of 5; a tumour with and without it."""
    counts = np.zeros((7, 256), dtype=np.int64)
    counts[:, 0] = 100
    counts[1, 1], counts[2, 1], counts[3, 1] = 4, 5, 20
    counts[4, 1], counts[4, 2] = 1, 12
    counts[5, 2] = 12
    subject = replace(subject_of(), counts=counts)
    assert subject.small_sections([2]).tolist() == [False, True, False, False, False, True, False]
    assert subject.small_sections([]).tolist() == [False, True, *[False] * 5]
    counts[:, 1:] = 0
    assert not subject.small_sections([2]).any()
