"""Pairs of scans, before and after chemotherapy: the same child, volumes as published, truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands import call_cli
from kidseg.cases import open_dataset
from kidseg.check import check
from kidseg.config import PhantomConfig, load
from kidseg.errors import KidsegError
from kidseg.io import read
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.measure.criteria import read_criteria
from kidseg.measure.measurement import Measurement, measure_parts
from kidseg.measure.midline import Midline
from kidseg.measure.parts import Labelled, Parts, find_parts
from kidseg.measure.person import Patient
from kidseg.measure.response import changes
from kidseg.phantom import DigitalPatient, make_patient, write_patients
from kidseg.phantom.child import (
    FIRST_OF_TWO,
    draw_child,
    draw_treated_volume_ml,
    draw_tumour_volume_ml,
    trunk_ml,
)
from kidseg.phantom.patient import draw_age
from kidseg.phantom.people import after_chemotherapy, draw_anatomy
from kidseg.phantom.writing import Layout

PAIRS = PhantomConfig(size=64, max_slices=28, phase="portal-venous", tumour_share=1.0, timepoints=2)
TINY = PhantomConfig(size=32, max_slices=4, timepoints=2)


@pytest.fixture(scope="module")
def pair() -> tuple[DigitalPatient, DigitalPatient]:
    before, after = (make_patient(PAIRS, seed=4, index=1, timepoint=t) for t in (0, 1))
    return before, after


def test_volumes_before_and_after_are_those_of_the_trials() -> None:
    """Median 551 and 110 ml; change of the middle half -89 to -54 %; some grow."""
    before, after = [], []
    bodies = [
        draw_child(np.random.default_rng(k), age, tumour="none").body
        for k, age in enumerate((0.5, 2.0, 3.0, 4.0, 8.0))
    ]
    for k in range(2000):
        rng = np.random.default_rng([5, k])
        age = draw_age(rng, (0.0, 16.0))
        body = bodies[int(np.searchsorted((1.0, 2.5, 3.5, 6.0), age))]
        most = FIRST_OF_TWO.share_of_trunk * trunk_ml(body)
        before.append(draw_tumour_volume_ml(rng, age, most, FIRST_OF_TWO))
        after.append(draw_treated_volume_ml(rng, before[-1], body))
    assert np.median(before) == pytest.approx(551, rel=0.15)
    assert np.median(after) == pytest.approx(110, rel=0.2)
    change = 100 * (np.array(after) / np.array(before) - 1)
    assert np.percentile(change, [25, 50, 75]) == pytest.approx([-88.7, -78.2, -54.3], abs=4)
    assert 0.03 < (change > 0).mean() < 0.12


def test_a_treated_child_is_the_same_but_for_the_tumours() -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        before = draw_anatomy(rng, 3.0, tumour="one-sided", first_of_two=True)
        after = after_chemotherapy(np.random.default_rng(seed + 9), before)
        assert replace(after, tumours=before.tumours) == before
        for old, new in zip(before.tumours, after.tumours, strict=True):
            assert (old.side, old.origin_mm, old.lobes) == (new.side, new.origin_mm, new.lobes)
            assert new.volume_ml != old.volume_ml and new.necrosis >= 0.3


def test_both_scans_are_of_one_child_who_lies_differently(
    pair: tuple[DigitalPatient, DigitalPatient],
) -> None:
    before, after = (patient.truth for patient in pair)
    assert (before["timepoint"], after["timepoint"]) == ("before", "after")
    assert before["age_years"] == after["age_years"] and before["kidneys"] == after["kidneys"]
    assert before["pose"] != after["pose"]
    assert before["response"][0]["before_ml"] == after["response"][0]["before_ml"]


def test_measured_volumes_and_change_are_the_truth(
    pair: tuple[DigitalPatient, DigitalPatient],
) -> None:
    found: list[tuple[Parts, Measurement]] = []
    for patient in pair:
        middle = float(np.array(patient.truth["scanner_from_anatomy"])[0, 3])
        labelled = Labelled(
            labels=patient.labels, schema=KIDNEY_TUMOUR, midline=Midline.at(middle, "body")
        )
        parts = find_parts(labelled, 0.1)
        person = Patient(age_years=patient.truth["age_years"])
        measured = measure_parts(
            labelled, parts, read_criteria(), person=person, margin_mm=5.0, entered={}
        )
        (tumour,) = patient.truth["tumours"]
        volume = measured.sides[tumour["side"]]["tumour volume"]
        assert volume.value == pytest.approx(tumour["volume_ml"], rel=0.02)
        assert volume.value == pytest.approx(patient.truth["tumour_ml"], rel=1e-6)
        found.append((parts, measured))
    truth = pair[1].truth["response"][0]
    (change,) = [one for one in changes(*found) if one.subject == f"{truth['side']} tumours"]
    assert change.relative is not None
    assert change.relative.value == pytest.approx(truth["change_percent"], abs=2)
    assert change.relative.low is not None and change.relative.high is not None
    assert change.relative.low < truth["change_percent"] < change.relative.high
    lesions = [one for one in changes(*found) if one.before and one.after]
    assert len(lesions) == 1


@pytest.mark.ci
@pytest.mark.parametrize(
    "layout",
    [
        "nnunet",
        pytest.param("kits19", marks=pytest.mark.slow),
        pytest.param("dicom", marks=pytest.mark.slow),
    ],
)
def test_pairs_are_cases_of_one_patient_in_every_layout(tmp_path: Path, layout: Layout) -> None:
    summary = write_patients(tmp_path / "out", TINY, patients=1, seed=5, layout=layout)
    assert len(summary["cases"]) == 2
    assert [str(f) for f in check(tmp_path / "out").findings if f.severity == "error"] == []
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset.cases) == 2 and len({case.patient for case in dataset.cases}) == 1
    truths = [
        json.loads((tmp_path / "out" / "truth" / f"{case['case']}.json").read_text())
        for case in summary["cases"]
    ]
    assert [truth["timepoint"] for truth in truths] == ["before", "after"]
    if layout == "dicom":
        scans = [read(case.images[0]) for case in dataset.cases]
        assert scans[0].facts["patient_id"] == scans[1].facts["patient_id"] == "phantom_0000"
        assert scans[0].facts["series_uid"] != scans[1].facts["series_uid"]


def test_pairs_are_of_children() -> None:
    with pytest.raises(KidsegError, match="before and after chemotherapy"):
        load(PhantomConfig, overrides=["timepoints=2", "ages_years=[0, 60]"])


def run(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert call_cli(*arguments) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_both_sides_of_a_pair_are_compared_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kidseg phantom makes a child with a tumour on either side; kidseg measure --before both."""
    folder = tmp_path / "pairs"
    settings = ("max_slices=40", "timepoints=2", "tumours=bilateral", "kidneys=separate")
    options = [word for each in settings for word in ("--set", each)]
    made = ("phantom", folder, "-n", "1", "--seed", "4", "--size", "96", "--quiet")
    run(*made, *options, capsys=capsys)
    labels, scans = (
        [next((folder / part).glob(f"*_{when}*.nii.gz")) for when in ("after", "before")]
        for part in ("labelsTr", "imagesTr")
    )
    now = ("measure", labels[0], "--ct", scans[0])
    found = json.loads(
        run(*now, "--before", labels[1], "--before-ct", scans[1], "--json", capsys=capsys)
    )
    truth = json.loads(next((folder / "truth").glob("*_after.json")).read_text())
    assert {each["side"] for each in truth["response"]} == {"right", "left"}
    changes = found["response"]["changes"]
    for true in truth["response"]:
        (total,) = [one for one in changes if one["subject"] == f"{true['side']} tumours"]
        (lesion,) = [one for one in changes if one["subject"] == f"{true['side']} tumour 1"]
        assert lesion["before"] == lesion["after"] == [lesion["subject"]]
        for one in (total, lesion):
            before, after = one["volume_before"], one["volume_after"]
            assert before["value"] == pytest.approx(true["before_ml"], rel=0.03)
            assert after["value"] == pytest.approx(true["now_ml"], rel=0.03)
            change = one["relative"]
            assert change["value"] == pytest.approx(true["change_percent"], abs=2)
            assert change["low"] < true["change_percent"] < change["high"]
    (sides,) = [q for q in found["patient"] if q["name"] == "sides with a tumour"]
    assert sides["value"] == 2
