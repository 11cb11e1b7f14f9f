"""DICOM objects as reference and as prediction: matched by their images, scored on their voxels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from annotated_folders import Roi, annotated, headers_of, square, structure_set
from dicom_files import save
from kidseg.cases import survey_dataset
from kidseg.cases.roi_rules import RoiRules
from kidseg.errors import InputError, UsageError
from kidseg.evaluate import evaluate, read_run
from kidseg.evaluate.score_page import PAGE
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read
from kidseg.io.dicom_source import read_source
from kidseg.io.dicomseg import write_dicom_segmentation
from kidseg.io.rtstruct import write_structure_set
from kidseg.labels import KIDNEY_TUMOUR
from labelled_series import ANY, ORIGIN

KIDNEY = Roi(name="kidney", contours=[square(k, (5, 5), (25, 25)) for k in (1, 2, 3)])
TUMOUR = Roi(name="tumour", contours=[square(2, (10, 10), (14, 16))])


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    for n in range(2):
        annotated(
            tmp_path / "ref" / f"p{n}",
            [KIDNEY, TUMOUR],
            uid=f"1.2.{n}",
            patient=f"P{n}",
            study=f"1.{n}",
        )
    return tmp_path / "ref"


def labels_on(folder: Path) -> tuple[Volume, object]:
    """The reference's labels as a prediction would have them, without one slice of the kidney."""
    source = read_source(folder / "images", ANY)
    values = np.zeros(source.native.shape, np.uint8)
    values[1:3, 5:25, 5:25] = 1
    values[2, 10:14, 10:16] = 2
    return Volume(torch.from_numpy(values)[None], source.native), source


def dice_of_kidneys() -> float:
    wanted, found = 3 * 400 - 24, 2 * 400 - 24
    return 2 * found / (wanted + found)


def scores(pred: Path, ref: Path, out: Path, **options: object) -> dict[str, float]:
    summary = evaluate(pred, ref, out, **options)  # type: ignore[arg-type]
    assert json.loads((out / "summary.json").read_text())["n_cases"] == summary["n_cases"]
    return {name: one["dice"]["mean"] for name, one in summary["structures"].items()}


@pytest.mark.parametrize("kind", ["rtstruct", "both"])
def test_objects_are_matched_by_their_images(tmp_path: Path, reference: Path, kind: str) -> None:
    (tmp_path / "pred").mkdir()
    for n in range(2):
        labels, source = labels_on(reference / f"p{n}")
        if kind != "dicomseg":
            with (tmp_path / "pred" / f"{1 - n}.dcm").open("wb") as file:
                write_structure_set(labels, KIDNEY_TUMOUR, source, ORIGIN, file)  # type: ignore[arg-type]
        if kind != "rtstruct":
            with (tmp_path / "pred" / f"x{1 - n}").open("wb") as file:
                write_dicom_segmentation(labels, KIDNEY_TUMOUR, source, ORIGIN, file)  # type: ignore[arg-type]
    found = scores(tmp_path / "pred", reference, tmp_path / "out")
    assert found["tumour"] == 1 and found["kidney"] == pytest.approx(dice_of_kidneys())


def test_label_volumes_are_matched_by_case(tmp_path: Path, reference: Path) -> None:
    from kidseg.io import save as save_volume

    (tmp_path / "pred").mkdir()
    for case in survey_dataset(reference).dataset.cases:
        labels, _ = labels_on(case.images[0].parent)
        save_volume(labels, tmp_path / "pred" / f"{case.id}_seg.nii.gz")
    assert scores(tmp_path / "pred", reference, tmp_path / "out")["kidney"] == pytest.approx(
        dice_of_kidneys()
    )


def test_times_of_one_patient_are_apart_in_results(tmp_path: Path) -> None:
    for n, date in enumerate(["20240301", "20231115"]):
        path = tmp_path / "ref" / f"{n}"
        file = annotated(path, [KIDNEY, TUMOUR], uid=f"1.2.{n}", study=f"1.{n}", date=date)
        (tmp_path / "pred").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "pred" / f"{n}.dcm")
    evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    rows = [row for row in read_run(tmp_path / "out").rows if row.structure == "kidney"]
    assert len({row.patient for row in rows}) == 1 and len({row.case for row in rows}) == 2
    uids = {case.id: case.annotation for case in survey_dataset(tmp_path / "ref").dataset.cases}
    assert {(uids[r.case].series, r.time_point) for r in rows} == {("1.2.0", "2"), ("1.2.1", "1")}  # type: ignore[union-attr]
    page = (tmp_path / "out" / PAGE).read_text()
    for row in rows:
        assert f"{row.case}</button></th><td>{row.patient}</td><td>{row.time_point}</td>" in page
    assert "20240301" not in page, "no date"


def test_one_file_for_the_only_case(tmp_path: Path, reference: Path) -> None:
    from kidseg.io import save as save_volume

    labels, source = labels_on(reference / "p0")
    save_volume(labels, tmp_path / "any.nii.gz")
    with (tmp_path / "any.dcm").open("wb") as file:
        write_structure_set(labels, KIDNEY_TUMOUR, source, ORIGIN, file)  # type: ignore[arg-type]
    for k, name in enumerate(("any.nii.gz", "any.dcm")):
        found = scores(tmp_path / name, reference / "p0", tmp_path / f"out{k}")
        assert found["kidney"] == pytest.approx(dice_of_kidneys())


def test_copies_that_differ_are_refused(tmp_path: Path, reference: Path) -> None:
    images = headers_of(reference / "p0" / "images")
    for k, rois in enumerate(([KIDNEY], [TUMOUR, KIDNEY])):
        save(structure_set(rois, images), tmp_path / "pred" / f"{k}.dcm")
    with pytest.raises(InputError) as caught:
        evaluate(tmp_path / "pred", reference / "p0", tmp_path / "out")
    assert caught.value.code == "duplicate-case"


def test_an_object_of_no_case_is_said(tmp_path: Path, reference: Path) -> None:
    images = headers_of(reference / "p0" / "images")
    save(structure_set([KIDNEY, TUMOUR], images), tmp_path / "pred" / "a.dcm")
    other = annotated(tmp_path / "elsewhere", [KIDNEY], uid="1.2.77", study="1.77")
    shutil.copy(other, tmp_path / "pred" / "b.dcm")
    summary = evaluate(tmp_path / "pred", reference / "p0", tmp_path / "out")
    assert summary["structures"]["kidney"]["dice"]["mean"] == 1
    assert "missing-images" in {finding["code"] for finding in summary["findings"]}


def test_structures_of_a_prediction_that_are_no_label(tmp_path: Path, reference: Path) -> None:
    images = headers_of(reference / "p0" / "images")
    spleen = Roi(name="spleen", contours=KIDNEY.contours)
    save(structure_set([spleen], images), tmp_path / "pred" / "a.dcm")
    with pytest.raises(InputError) as caught:
        evaluate(tmp_path / "pred", reference / "p0", tmp_path / "out")
    assert caught.value.code == "no-label"


def test_rules_are_refused_for_other_references(tmp_path: Path) -> None:
    (tmp_path / "ref").mkdir()
    (tmp_path / "ref" / "a.nii.gz").touch()
    with pytest.raises(UsageError) as caught:
        evaluate(tmp_path / "x", tmp_path / "ref", tmp_path / "out", rules=RoiRules())
    assert caught.value.code == "no-annotations"


def test_the_reference_is_read_as_for_training(reference: Path) -> None:
    (case, _) = survey_dataset(reference).dataset.cases
    assert case.labels is not None
    scan = read(case.labels, case.reading(ReadOptions(values="labels")))
    assert (scan.volume.data == 1).sum() == 3 * 400 - 24
