"""DICOM SR: what was measured of each segment, whom it concerns, and where it comes from."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom
import pydicom
import pytest
from pydicom import Dataset

from kidseg.io.dicom_report import volumes_of, write_measurement_report
from kidseg.io.dicomseg import write_dicom_segmentation
from kidseg.io.origin import Origin
from labelled_series import KINDS, ORIGIN, SCHEMA, make_case


def written(folder: Path, kind: str = "axial", **changed: Any) -> tuple[Dataset, Dataset, dict]:
    """(the report, its segmentation, {label: volume in ml})."""
    source, labels = make_case(folder, kind)
    if "without" in changed:
        labels.data[labels.data == changed["without"]] = 0
    origin = changed.get("origin", ORIGIN)
    segmentation, report = io.BytesIO(), io.BytesIO()
    write_dicom_segmentation(labels, SCHEMA, source, origin, segmentation)
    segmentation.seek(0)
    known = pydicom.dcmread(segmentation)
    volumes = volumes_of(labels, SCHEMA)
    write_measurement_report(volumes, known, SCHEMA, source, origin, report)
    report.seek(0)
    voxel_ml = float(labels.grid.voxel_ml)
    counted = {n: int((labels.data == n).sum()) * voxel_ml for n in SCHEMA.ids}
    return pydicom.dcmread(report), known, counted


def groups(report: Dataset) -> list[Any]:
    """The measurement groups, as highdicom finds them."""
    content = highdicom.sr.ComprehensiveSR.from_dataset(report).content
    assert isinstance(content, highdicom.sr.MeasurementReport)
    found: list[Any] = content.get_volumetric_roi_measurement_groups()
    return found


@pytest.mark.parametrize("kind", ["axial", "tilted", "multi-frame"])
def test_volumes_are_read_again(tmp_path: Path, kind: str) -> None:
    report, segmentation, volumes = written(tmp_path, kind)
    found = groups(report)
    assert len(found) == 3
    for group, label, segment in zip(found, SCHEMA.ids, segmentation.SegmentSequence, strict=True):
        (measured,) = group.get_measurements()
        assert measured.name.value == "118565006" and measured.unit.value == "cm3"
        assert float(measured.value) == pytest.approx(volumes[label], abs=1e-4)
        assert group.tracking_uid == segment.TrackingUID
        assert group.tracking_identifier == segment.TrackingID == SCHEMA.names[label]
        assert group.finding_type.value == segment.SegmentedPropertyTypeCodeSequence[0].CodeValue
        reference = group.reference_type
        assert reference is not None
    kidney, tumour, _ = found
    assert kidney.finding_sites[0].laterality.value == "7771000"
    assert tumour.finding_sites[0].value.value == "64033007"
    assert tumour.finding_sites[0].laterality is None


def test_it_is_preliminary_and_says_what_it_is(tmp_path: Path) -> None:
    report, segmentation, _ = written(tmp_path)
    assert report.Modality == "SR" and report.StudyInstanceUID == segmentation.StudyInstanceUID
    assert report.PatientID == segmentation.PatientID
    flags = (report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag)
    assert flags == ("PARTIAL", "PRELIMINARY", "UNVERIFIED")
    assert "RESEARCH USE ONLY" in report.SeriesDescription
    equipment = report.ContributingEquipmentSequence
    notes = " ".join(item.ContributionDescription for item in equipment)
    assert "Research use only" in notes and "ab" * 32 in notes
    text = report.to_json()
    assert "kidseg (research use only)" in text and str(segmentation.SOPInstanceUID) in text


def test_labels_without_voxels_are_left_out(tmp_path: Path) -> None:
    report, _, _ = written(tmp_path, without=2)
    assert [group.tracking_identifier for group in groups(report)] == ["left kidney", "Milz größer"]


def test_labels_of_unknown_origin_claim_no_algorithm(tmp_path: Path) -> None:
    report, _, _ = written(tmp_path, origin=Origin(labels_sha256="ef"))
    assert len(groups(report)) == 3 and "Algorithm Name" not in str(report)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_it_conforms_to_dicom(tmp_path: Path, kind: str) -> None:
    report, _, _ = written(tmp_path / "ct", kind)
    report.save_as(tmp_path / "sr.dcm")
    found = subprocess.run(["dciodvfy", tmp_path / "sr.dcm"], capture_output=True, text=True)
    assert "ComprehensiveSR" in found.stderr and "Error" not in found.stderr
