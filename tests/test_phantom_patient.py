"""One digital patient: reproducible, consistent with its ground truth, within its settings."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from kidseg.config import PhantomConfig
from kidseg.io.orientation import canonical
from kidseg.phantom import ORGANS, DigitalPatient, draw_patient, make_patient
from kidseg.phantom.patient import draw_age, draw_phase

pytestmark = pytest.mark.ci

SMALL = PhantomConfig(size=64, max_slices=20, phase="early-arterial", tumour_share=1.0)


@pytest.fixture(scope="module")
def patients() -> list[DigitalPatient]:
    return [make_patient(SMALL, seed=11, index=k) for k in range(3)]


def same(a: DigitalPatient, b: DigitalPatient) -> bool:
    pairs = [(a.scan, b.scan), (a.labels, b.labels), (a.organs, b.organs)]
    equal = all(torch.equal(p.data, q.data) and p.grid.same_as(q.grid, 0.0) for p, q in pairs)
    return equal and json.dumps(a.truth) == json.dumps(b.truth)


def test_a_patient_is_the_same_alone_or_among_others(patients: list[DigitalPatient]) -> None:
    assert same(make_patient(SMALL, seed=11, index=2), patients[2])


def test_other_indices_and_seeds_are_other_patients(patients: list[DigitalPatient]) -> None:
    ages = {p.truth["age_years"] for p in patients}
    assert len(ages) == len(patients)
    assert make_patient(SMALL, seed=12, index=0).truth["age_years"] not in ages


@pytest.mark.slow
def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys.modules["kidseg.phantom.render"], "_SLAB_VOXELS", 4000
    )  # many slabs, also of a small patient
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(make_patient(SMALL, seed=11, index=1))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert same(*made)


def test_the_same_child_comes_at_any_size(patients: list[DigitalPatient]) -> None:
    finer = make_patient(
        PhantomConfig(size=128, max_slices=40, phase="early-arterial", tumour_share=1.0),
        seed=11,
        index=0,
    )
    coarse = patients[0]
    assert finer.truth["anatomy"] == coarse.truth["anatomy"]
    assert finer.truth["pose"] == coarse.truth["pose"]
    for key in ("kidney_ml", "tumour_ml"):
        assert finer.truth[key] == pytest.approx(coarse.truth[key], rel=0.15)
    wide, narrow = (p.scan.grid.spacing_mm[2] * p.scan.grid.shape[2] for p in (finer, coarse))
    assert float(wide) == pytest.approx(float(narrow))


def test_volumes_fit_each_other_and_are_canonical(patients: list[DigitalPatient]) -> None:
    for patient in patients:
        scan = patient.scan
        assert scan.data.dtype == torch.int16
        assert patient.labels.data.dtype == patient.organs.data.dtype == torch.uint8
        assert scan.grid.same_as(patient.labels.grid) and scan.grid.same_as(patient.organs.grid)
        assert canonical(scan).grid.same_as(scan.grid)
        assert int(scan.data.min()) >= -1024 and int(scan.data.max()) <= 3071
        assert set(patient.labels.data.unique().tolist()) <= {0, 1, 2}
        assert set(patient.organs.data.unique().tolist()) <= {0, *ORGANS}


def test_truth_is_plain_and_counts_the_voxels(patients: list[DigitalPatient]) -> None:
    for patient in patients:
        truth = json.loads(json.dumps(patient.truth, allow_nan=False))
        ml = float(patient.labels.grid.voxel_ml)
        labels = patient.labels.data
        assert truth["kidney_ml"] == pytest.approx(int((labels == 1).sum()) * ml)
        assert truth["tumour_ml"] == pytest.approx(int((labels == 2).sum()) * ml)
        assert sum(truth["organs_ml"].values()) == pytest.approx(
            int((patient.organs.data > 0).sum()) * ml
        )
        assert set(truth["organs_ml"]) == set(ORGANS.values())
        for key in ("age_years", "sex", "phase", "body_scale", "effective_diameter_mm", "pose"):
            assert key in truth
        sides = {tumour["side"] for tumour in truth["tumours"]}
        assert truth["tumour_side"] == ("bilateral" if len(sides) == 2 else sides.pop())


def test_the_drawn_tumour_is_the_labelled_one(patients: list[DigitalPatient]) -> None:
    for patient in patients:
        drawn = sum(tumour["volume_ml"] for tumour in patient.truth["tumours"])
        assert patient.truth["tumour_ml"] == pytest.approx(drawn, rel=0.25, abs=3.0)


def test_kidneys_and_tumours_are_whole_within_the_scan(patients: list[DigitalPatient]) -> None:
    for patient in patients:
        labels = patient.labels.data[0] > 0
        assert labels.any()
        assert not labels[0].any() and not labels[-1].any()
        assert not labels[:, [0, -1]].any() and not labels[:, :, [0, -1]].any()


def test_kidneys_are_brighter_than_what_surrounds_them(patients: list[DigitalPatient]) -> None:
    for patient in patients:
        hu, labels = patient.scan.data.float(), patient.labels.data
        body = (patient.organs.data > 0) & (labels == 0)
        assert hu[labels == 1].mean() > 80
        assert hu[labels == 1].mean() > hu[body].mean()
        assert hu[labels == 1].mean() > hu[labels == 2].mean()


@pytest.mark.parametrize(
    ("kidneys", "tumours", "parts"),
    [
        ("separate", "bilateral", 2),
        ("single", "one-sided", 1),
        ("horseshoe", "bilateral", 1),
        ("fused", "one-sided", 1),
        ("absent", "bilateral", 0),
    ],
)
def test_every_form_of_the_kidneys_can_be_asked_for(kidneys: Any, tumours: Any, parts: int) -> None:
    """As many parts of kidney and tumour, all within the scan."""
    config = replace(SMALL, size=40, max_slices=12, kidneys=kidneys, tumours=tumours)
    made = make_patient(config, seed=6, index=0)
    _, count = ndimage.label(made.labels.data[0].numpy() > 0, structure=np.ones((3, 3, 3)))
    assert count == parts and made.truth["kidney_form"] == kidneys
    side = made.truth["tumour_side"]
    assert (side == "bilateral") == (tumours == "bilateral" and parts > 0)
    assert (made.truth["tumour_ml"] > 0) == (side is not None) == (parts > 0)


def test_without_tumours_there_are_none() -> None:
    healthy = make_patient(PhantomConfig(size=64, max_slices=12, tumour_share=0.0), seed=0, index=0)
    assert healthy.truth["tumours"] == []
    assert healthy.truth["tumour_side"] is None
    assert healthy.truth["tumour_ml"] == 0
    assert (healthy.labels.data != 2).all()
    assert healthy.truth["kidney_ml"] > 0


@pytest.mark.parametrize("age", [0.0, 16.0])
def test_the_youngest_and_the_oldest(age: float) -> None:
    config = PhantomConfig(size=64, max_slices=10, ages_years=(age, age))
    patient = make_patient(config, seed=4, index=0)
    assert patient.truth["age_years"] == age
    assert patient.scan.grid.shape[0] <= 10
    assert (patient.labels.data == 1).any()


def test_rotation_stays_within_the_settings() -> None:
    straight = PhantomConfig(size=32, max_slices=4, max_angle_deg=0.0)
    assert make_patient(straight, seed=0, index=0).truth["pose"]["angle_deg"] == 0.0
    wide = PhantomConfig(size=32, max_slices=4, max_angle_deg=90.0)
    angles = [make_patient(wide, seed=0, index=k).truth["pose"]["angle_deg"] for k in range(4)]
    assert max(abs(a) for a in angles) <= 90


# ---- draws -------------------------------------------------------------------------------------


def test_ages_are_mostly_around_two_and_every_band_occurs() -> None:
    rng = np.random.default_rng(0)
    ages = np.array([draw_age(rng, (0.0, 16.0)) for _ in range(2000)])
    assert ages.min() >= 0 and ages.max() <= 16
    assert 1.8 < np.median(ages) < 3.0
    counts, _ = np.histogram(ages, [0, 1, 2, 5, 10, 16])
    assert (counts > 0.05 * len(ages)).all()


@pytest.mark.parametrize("ages", [(3.0, 3.0), (12.0, 16.0), (0.0, 0.5), (0.0, 0.0)])
def test_ages_stay_within_their_range(ages: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_age(rng, ages) for _ in range(200)]
    assert ages[0] <= min(drawn) and max(drawn) <= ages[1]
    if ages[1] > ages[0]:
        assert max(drawn) - min(drawn) > 0.5 * (ages[1] - ages[0])


def test_a_range_beyond_childhood_has_children_and_adults_around_sixty() -> None:
    rng = np.random.default_rng(3)
    ages = np.array([draw_age(rng, (0.0, 90.0)) for _ in range(2000)])
    assert np.mean(ages <= 16) == pytest.approx(1 / 3, abs=0.04)
    adults = ages[ages > 16]
    assert 54 < np.median(adults) < 62 and adults.min() < 25 and adults.max() > 85
    old = [draw_age(rng, (40.0, 60.0)) for _ in range(200)]
    assert min(old) >= 40 and max(old) <= 60
    assert all(16 <= draw_age(rng, (16.0, 30.0)) <= 30 for _ in range(50))


@pytest.mark.parametrize(
    ("settings", "broad"),
    [
        ({}, False),
        ({"ages_years": (0.0, 90.0)}, True),
        ({"variety": "broad"}, True),
        ({"variety": "children"}, False),
    ],
)
def test_variety_comes_with_adult_ages_or_on_request(
    settings: dict[str, object], broad: bool
) -> None:
    assert PhantomConfig(**settings).is_broad is broad  # type: ignore[arg-type]


def test_adults_are_not_of_the_childrens_variety() -> None:
    with pytest.raises(ValueError, match="children"):
        PhantomConfig(ages_years=(0.0, 40.0), variety="children")
    with pytest.raises(ValueError, match="0 to 90"):
        PhantomConfig(ages_years=(0.0, 91.0))


def test_an_adult_with_a_mass_is_consistent() -> None:
    config = PhantomConfig(size=96, max_slices=40, ages_years=(60.0, 60.0), tumour_share=1.0)
    patient = make_patient(config, seed=5, index=2)
    truth = json.loads(json.dumps(patient.truth, allow_nan=False))
    drawn = sum(tumour["volume_ml"] for tumour in truth["tumours"])
    assert truth["tumour_ml"] == pytest.approx(drawn, rel=0.25, abs=3.0)
    assert 120 < truth["kidney_ml"] < 800
    assert truth["anatomy"]["tumours"][0]["tissue"] in ("solid", "cystic", "fatty")
    assert same(patient, make_patient(config, seed=5, index=2))


def test_phases_are_the_chosen_one_or_mostly_early_arterial() -> None:
    rng = np.random.default_rng(2)
    assert {draw_phase(rng, PhantomConfig(phase="excretory")) for _ in range(20)} == {"excretory"}
    mixed = Counter(draw_phase(rng, PhantomConfig()) for _ in range(1000))
    assert mixed.most_common(1)[0][0] == "early-arterial"
    assert len(mixed) == 4


def test_arms_and_table_can_be_asked_for(patients: list[DigitalPatient]) -> None:
    """The same child in the same field; only arms and table come and go."""
    number = next(number for number, name in ORGANS.items() if name == "arm")
    with_arms = make_patient(SMALL, seed=11, index=0, arms=True)
    bare = make_patient(SMALL, seed=11, index=0, arms=False, table=False)
    assert bool((with_arms.organs.data == number).any())
    assert not bool((bare.organs.data == number).any())
    assert with_arms.scan.grid.same_as(bare.scan.grid, 0.0)
    assert torch.equal(with_arms.labels.data, bare.labels.data)
    assert bare.truth["scanner"]["table"] is None
    assert with_arms.truth["scanner"]["table"] == patients[0].truth["scanner"]["table"] is not None


def test_a_drawn_patient_is_rendered_on_other_voxels_too() -> None:
    drawn = draw_patient(SMALL, seed=11, index=0)
    grid = drawn.scanner.grid()
    made = drawn.rendered(grid)
    assert np.array_equal(made.labels, make_patient(SMALL, seed=11, index=0).labels.data[0])
    fine = grid.with_spacing([float(step) / 2 for step in grid.spacing_mm])
    coarse_ml, fine_ml = (
        np.bincount(drawn.rendered(each).labels.ravel(), minlength=3) * float(each.voxel_ml)
        for each in (grid, fine)
    )
    assert fine_ml[1:] == pytest.approx(coarse_ml[1:], rel=0.05)
