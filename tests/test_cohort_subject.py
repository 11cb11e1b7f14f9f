"""A scan made ready: where the grids lie, what they hold, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ellipses import make_ellipse_patient
from kidseg.cohort.subject import Subject, masks_at, pixel_mm, prepare
from kidseg.config import ViewConfig
from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import Normalisation, Statistics
from kidseg.plan import Configuration, Plan, Topology

STATISTICS = Statistics(
    mean=100.0,
    sd=50.0,
    median=100.0,
    min=0.0,
    max=250.0,
    percentile_00_5=0.0,
    percentile_99_5=250.0,
)


def plan_of(channel: str = "CT", spacing: float = 4.0, side: float = 64.0) -> Plan:
    topology = Topology(features=(8,), kernels=((3, 3),), strides=((1, 1),))
    planned = Configuration(
        spacing_mm=(spacing, spacing),
        median_shape=(side, side),
        patch_size=(64, 64),
        batch_size=2,
        topology=topology,
    )
    return Plan(
        channels=(Normalisation.of_channel(channel, STATISTICS),),
        labels={1: "kidney", 2: "tumour"},
        cyst=None,
        median_spacing_mm=(10.0, spacing, spacing),
        configurations={"2d": planned},
        training=("a",),
    )


def subject_of(seed: int = 0, **view: object) -> Subject:
    patient = make_ellipse_patient(seed)
    return prepare(
        patient.image,
        ViewConfig(**{"size": 48, **view}),
        plan_of(),
        name="a",
        multiple=8,
        labels=patient.labels,
    )


def test_the_pixel_is_the_plans_or_as_coarse_as_the_field_asks() -> None:
    assert pixel_mm(ViewConfig(size=64), plan_of()) == pytest.approx(4.0)
    assert pixel_mm(ViewConfig(size=128), plan_of()) == pytest.approx(4.0)
    assert pixel_mm(ViewConfig(size=32), plan_of()) == pytest.approx(8.0)
    assert pixel_mm(ViewConfig(size=32, pixel_mm=3.0), plan_of()) == pytest.approx(3.0)


def test_the_base_grid_is_centred_on_the_body() -> None:
    subject = subject_of()
    assert subject.base.shape == (8, 48, 48)
    body = masks_at(subject, subject.base).data[0]
    axis = torch.arange(48) - 23.5
    for profile in (body.sum((0, 1)), body.sum((0, 2))):
        assert abs(float((profile * axis).sum() / profile.sum())) < 0.2


def test_the_whole_grid_holds_the_body_and_is_the_base_grid_grown() -> None:
    """Pixels of 2 mm: 48 of them do not hold a body of some 180 mm."""
    subject = subject_of(pixel_mm=2.0)
    rows, columns = subject.whole.shape[1:]
    assert rows >= 48 and columns > 48
    assert (rows - 48) % 8 == 0 and (columns - 48) % 8 == 0
    start = ((rows - 48) // 2, (columns - 48) // 2)
    assert subject.whole.crop((0, *start), (8, 48, 48)).same_as(subject.base, 1e-6)
    body = masks_at(subject, subject.whole).data[0]
    voxels = float(body.sum() * subject.whole.voxel_ml)
    all_of_it = float((subject.masks.data[0] > 0).sum() * subject.image.grid.voxel_ml)
    assert voxels == pytest.approx(all_of_it, rel=0.01)


def test_labels_on_the_whole_grid_keep_their_volume() -> None:
    patient, subject = make_ellipse_patient(0), subject_of()
    assert subject.labels is not None and subject.labels.grid is subject.whole
    for label in (1, 2):
        before = float((patient.labels.data == label).sum() * patient.labels.grid.voxel_ml)
        after = float((subject.labels.data == label).sum() * subject.whole.voxel_ml)
        assert after == pytest.approx(before, rel=0.1)
    shown = subject.shown(3)
    assert shown.shape == (8, 2)
    there = torch.stack([(patient.labels.data[0] == c).flatten(1).any(1) for c in (1, 2)], dim=1)
    assert (torch.from_numpy(shown) == there).all()
    assert subject.labelled_or_all == (1, 6)
    assert subject.fullest in (3, 4)


def test_fine_pixels_are_averaged_before_they_are_interpolated() -> None:
    """A checkerboard of 1 mm pixels seen with 4 mm ones is flat, not aliased."""
    grid = Grid.from_spacing((2, 200, 200), (5.0, 1.0, 1.0))
    rows, columns = torch.arange(200)[:, None], torch.arange(200)[None]
    board = (100 * ((rows + columns) % 2)).to(torch.int16).expand(1, 2, 200, 200)
    subject = prepare(
        Volume(board, grid), ViewConfig(size=48, pixel_mm=4.0), plan_of(), name="a", multiple=8
    )
    assert subject.image.grid.spacing_mm.tolist() == pytest.approx([5.0, 4.0, 4.0])
    inner = subject.base.crop((0, 4, 4), (2, 40, 40))
    assert resample(subject.image, inner).data.unique().tolist() == [50.0]


def test_bone_is_found_and_a_kidney_is_none() -> None:
    subject = subject_of()
    assert subject.labels is not None
    bone = masks_at(subject, subject.whole).data[1]
    assert bone.max() > 0.9
    assert bone[subject.labels.data[0] > 0].max() < 0.5


def test_small_pieces_of_bone_are_dropped() -> None:
    patient = make_ellipse_patient(0)
    image = patient.image.data.clone()
    image[0, 4, 32, 32] = 2000
    speckled = Volume(image, patient.image.grid)
    at = patient.image.grid.mm([4, 32, 32])
    for least, expected in ((0.0, True), (5.0, False)):
        view = ViewConfig(size=48, bone_least_ml=least, bone_blur_mm=0.0)
        subject = prepare(speckled, view, plan_of(), name="a", multiple=8)
        k, row, column = (round(float(i)) for i in subject.image.grid.index(at))
        assert bool(subject.masks.data[1, k, row, column] > 0) == expected


def test_an_empty_scan_is_seen_whole() -> None:
    grid = Grid.from_spacing((3, 64, 64), (5.0, 4.0, 4.0))
    air = Volume(torch.full((1, 3, 64, 64), -1000, dtype=torch.int16), grid)
    subject = prepare(air, ViewConfig(size=32), plan_of(), name="a", multiple=8)
    assert not subject.body.radii_mm.isfinite().any()
    assert subject.whole.shape == (3, 32, 32)
    torch.testing.assert_close(subject.base.centre_mm, grid.centre_mm)
    assert subject.labelled_or_all == (0, 2)


def test_ignored_voxels_do_not_count_and_are_background() -> None:
    patient = make_ellipse_patient(0)
    subject = prepare(
        patient.image,
        ViewConfig(size=48),
        plan_of(),
        name="a",
        multiple=8,
        labels=patient.labels,
        ignore_label=2,
    )
    assert subject.ignore is not None and subject.labels is not None
    assert subject.ignore.data.any()
    assert not subject.labels.data[subject.ignore.data].any()
    assert subject_of().ignore is None


def test_what_is_no_ct_is_refused() -> None:
    patient = make_ellipse_patient(0)
    two = replace(plan_of(), channels=plan_of().channels * 2)
    for plan in (plan_of("T1"), two):
        with pytest.raises(InputError) as error:
            prepare(patient.image, ViewConfig(size=48), plan, name="scan.nii", multiple=8)
        assert error.value.code == "not-ct" and error.value.path == "scan.nii"
