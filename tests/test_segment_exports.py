"""`segment` in all formats: of a DICOM series, of scans without one, and after a stopped run."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch.nn.functional as F
from highdicom.sr import ComprehensiveSR

from ellipses import make_ellipse_patient, write_ellipse_dataset
from kidseg.errors import BatchError, InputError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read, save
from kidseg.io.dicom import write_series
from kidseg.measure import Midline, measure_sides
from kidseg.measure.measuring import Request, measure
from kidseg.segment import Predictor, Segmentation, load_predictor, segment
from kidseg.segment.removal import Decided
from kidseg.segment.review import Review
from kidseg.train import Setup, train
from pages import HERE, assert_loads_nothing, opened, with_viewer
from trained import SETTINGS

LABELS = ReadOptions(values="labels")
QUICK = (*SETTINGS, "segment.epochs=1", "segment.steps=12")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    root = tmp_path_factory.mktemp("exports")
    write_ellipse_dataset(root / "data", 2)
    train(root / "data", root / "run", Setup(method="plain", overrides=QUICK), device="cpu")
    return load_predictor(root / "run" / "model.safetensors", "cpu")


class WithoutTumour(Predictor):
    """Finds no tumour."""

    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        found = super().__call__(scan, name)
        kept = found.labels.data.clone()
        kept[kept != 1] = 0
        kept[0, 3:5, 20:30, 20:30] = 1
        return replace(found, labels=Volume(kept, found.labels.grid))


@pytest.fixture(scope="module")
def healthy(predictor: Predictor) -> Predictor:
    return WithoutTumour(**{f.name: getattr(predictor, f.name) for f in fields(Predictor)})


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_series(make_ellipse_patient(1).image, tmp_path / "child", facts={"seed": "1"})
    return tmp_path / "child"


def test_a_dicom_series_in_all_formats(series: Path, predictor: Predictor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (planned,) = segment([series], predictor, out, formats=HERE, dry_run=True)
    (entry,) = segment([series], predictor, out, formats=HERE)
    empty = {w["code"] for w in entry["warnings"]} & {"no-surface"}
    listed = {Path(file).name for file in planned["outputs"]}
    assert set(entry["outputs"]) == listed if not empty else set(entry["outputs"]) < listed
    there = {file.name for file in out.iterdir()} - {"result.json"}
    assert there == set(entry["outputs"])
    assert entry["formats"] == list(HERE) and entry["labels"] == {"1": "kidney", "2": "tumour"}
    dataset = pydicom.dcmread(out / "child_seg.dcm")
    first = pydicom.dcmread(next(series.glob("*.dcm")))
    assert dataset.StudyInstanceUID == first.StudyInstanceUID
    assert dataset.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert predictor.sha256 in dataset.ImageComments and entry["sha256"] in dataset.ImageComments
    labels = read(out / "child_seg.nii.gz", LABELS).volume.data[0].numpy()
    named = read(out / "child.seg.nrrd", LABELS).volume.data[0].numpy()
    assert labels.any() and np.array_equal(named, labels)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    assert int(frames.sum()) == int((labels > 0).sum())


def test_a_scan_without_a_series_fails_alone_and_early(
    series: Path, predictor: Predictor, tmp_path: Path
) -> None:
    save(make_ellipse_patient(2).image, tmp_path / "other.nii.gz")
    scans = [tmp_path / "other.nii.gz", series]
    with pytest.raises(BatchError, match="written only for a DICOM series"):
        segment(scans, predictor, tmp_path / "out", formats=["nii", "rtstruct"])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        *("child_seg.nii.gz", "child_rtstruct.dcm"),
        *("result.json", "summary.csv", "cohort.html"),
    }
    with pytest.raises(InputError) as caught:
        segment(scans[:1], predictor, tmp_path / "alone", formats=["dicomseg"])
    assert caught.value.code == "no-dicom-series"


def test_resume_knows_that_an_empty_label_has_no_surface(
    series: Path, healthy: Predictor, tmp_path: Path
) -> None:
    out, seen = tmp_path / "out", []
    (entry,) = segment([series], healthy, out, formats=["nii", "stl"])
    assert entry["outputs"] == ["child_seg.nii.gz", "child_seg_kidney.stl"]
    assert "no-surface" in {w["code"] for w in entry["warnings"]}
    assert list(entry["surfaces"]) == ["kidney"]
    again = {"resume": True, "report": seen.append}
    segment([series], healthy, out, formats=["nii", "stl"], **again)
    assert not seen, "it is complete"
    (out / "child_seg_kidney.stl").unlink()
    segment([series], healthy, out, formats=["nii", "stl"], overwrite=True, **again)
    assert len(seen) == 1 and (out / "child_seg_kidney.stl").exists(), "a file was missing"
    segment([series], healthy, out, formats=["nii", "obj"], overwrite=True, **again)
    assert len(seen) == 2, "a surface that was not requested then"


@pytest.mark.requirement("privacy")
@with_viewer
def test_a_report_is_of_the_labels_and_names_no_patient(
    series: Path, predictor: Predictor, tmp_path: Path
) -> None:
    for file in series.glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.PatientName, dataset.PatientID = "Secret^Person", "ID-4711"
        dataset.save_as(file)
    out = tmp_path / "out"
    (entry,) = segment([series], predictor, out, formats=["nii", "html"])
    assert entry["outputs"] == ["child_seg.nii.gz", "child_report.html"]
    assert entry["report"]["bytes"] == (out / "child_report.html").stat().st_size
    page = opened(out / "child_report.html")
    assert_loads_nothing(page)
    assert not re.search(r"Secret|ID-4711", page.text) and predictor.sha256 in page.words
    (again,) = segment([series], predictor, out, formats=["nii", "html"], resume=True)
    assert again == entry


class WithoutSettings(Predictor):
    """Its settings cannot be told."""

    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        found = super().__call__(scan, name)
        return replace(found, channels=())


@with_viewer
def test_a_report_that_fails_leaves_the_labels(predictor: Predictor, tmp_path: Path) -> None:
    save(make_ellipse_patient(2).image, tmp_path / "other.nii.gz")
    broken = WithoutSettings(**{f.name: getattr(predictor, f.name) for f in fields(Predictor)})
    (entry,) = segment([tmp_path / "other.nii.gz"], broken, tmp_path / "o", formats=["nii", "html"])
    assert entry["outputs"] == ["other_seg.nii.gz"] and "report" not in entry
    assert "no-report" in {warning["code"] for warning in entry["warnings"]}


@with_viewer
def test_all_outputs_tell_sides_by_the_middle_of_the_body(
    predictor: Predictor, tmp_path: Path
) -> None:
    """The patient lies far off the centre of the image, whose middle has both kidneys beside it."""
    patient, away = make_ellipse_patient(1), 60
    grid = patient.image.grid.crop((0, 0, -away), (8, 64, 64 + away))
    image = Volume(F.pad(patient.image.data, (away, 0), value=-1000), grid)
    truth = Volume(F.pad(patient.labels.data, (away, 0)), grid)

    class Knowing(Predictor):
        """Finds the truth."""

        def reviewed(self, *given: Any) -> tuple[Decided, Review]:
            decided, review = super().reviewed(*given)
            return replace(decided, labels=truth), review

    knowing = Knowing(**{f.name: getattr(predictor, f.name) for f in fields(Predictor)})
    series, out = tmp_path / "child", tmp_path / "out"
    write_series(image, series, facts={"seed": "1"})
    (entry,) = segment([series], knowing, out, formats=["nii", "dicomseg", "sr", "html"])
    by_image = measure_sides(truth, knowing.schema, Midline.of(grid))
    assert by_image is not None and 0 in (
        by_image.right.volumes_ml["kidney"],
        by_image.left.volumes_ml["kidney"],
    )
    assert entry["sides"]["midline"] == "body"
    measured = measure(out / "child_seg.nii.gz", Request(ct=series)).measurement
    sides = ("right", "left")
    kidneys = [entry["sides"][side]["volumes_ml"]["kidney"] for side in sides]
    volumes = [measured.sides[side]["kidney volume"].value for side in sides]
    assert min(kidneys) > 0 and kidneys == pytest.approx(volumes, rel=1e-4)
    words = opened(out / "child_report.html").words
    assert "right kidney" in words and "left kidney" in words and "middle of the body" in words
    report = ComprehensiveSR.from_dataset(pydicom.dcmread(out / "child_report.dcm"))
    groups = report.content.get_volumetric_roi_measurement_groups()
    names = {group.tracking_identifier for group in groups}
    assert {"right kidney (part of kidney)", "left kidney (part of kidney)"} <= names
