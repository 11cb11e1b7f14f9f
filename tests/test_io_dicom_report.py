"""DICOM SR: what was measured of each segment, whom it concerns, and where it comes from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from pydicom import Dataset
from pydicom.sr.codedict import codes

from dicom_files import series
from kidseg.geometry import Volume
from kidseg.io.dicom_report import CODED, write_measurement_report
from kidseg.io.dicom_source import SourceSeries, read_source
from kidseg.io.dicomseg import write_dicom_segmentation
from kidseg.io.label_writing import Exported
from kidseg.io.origin import Origin
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema
from labelled_series import (
    ANY,
    KINDS,
    ORIGIN,
    SCHEMA,
    assert_conforms,
    make_case,
    needs_dciodvfy,
    reported,
)

Case = tuple[SourceSeries, Volume]


def written(
    case: Case, schema: LabelSchema = SCHEMA, origin: Origin = ORIGIN
) -> tuple[Dataset, Dataset, Exported]:
    """(the report, its segmentation, the labels with what was measured)."""
    source, labels = case
    exported = Exported(
        labels=labels, schema=schema, origin=origin, like=labels.grid, source=source
    )
    exported, _ = reported(exported, Path("labels"))
    segmentation, report = io.BytesIO(), io.BytesIO()
    write_dicom_segmentation(labels, schema, source, origin, segmentation)
    segmentation.seek(0)
    known = pydicom.dcmread(segmentation)
    write_measurement_report(exported.reported, known, schema, source, origin, report)
    report.seek(0)
    return pydicom.dcmread(report), known, exported


def groups(report: Dataset) -> list[Any]:
    """The measurement groups, as highdicom finds them."""
    content = highdicom.sr.ComprehensiveSR.from_dataset(report).content
    assert isinstance(content, highdicom.sr.MeasurementReport)
    found: list[Any] = content.get_volumetric_roi_measurement_groups()
    return found


def uncertainties(measurement: Any) -> dict[str, tuple[float, str]]:
    """{code of the concept: (value, unit)} of the numbers below a measurement."""
    found = {}
    for item in measurement[0].ContentSequence:
        if item.ValueType == "NUM":
            (value,) = item.MeasuredValueSequence
            unit = value.MeasurementUnitsCodeSequence[0].CodeValue
            name = item.ConceptNameCodeSequence[0].CodeValue
            found[name] = (float(value.NumericValue), unit)
    return found


def two_kidneys(tmp_path: Path) -> Case:
    """A kidney on each side of the middle, the right one with two tumours."""
    source = read_source(series(tmp_path / "ct", np.zeros((10, 40, 72), np.int16)), ANY)
    values = np.zeros(source.native.shape, np.uint8)
    values[1:9, 4:36, 4:28] = values[1:9, 4:36, 44:68] = 1
    values[2:8, 6:18, 6:18] = values[2:8, 24:34, 6:16] = 2
    return source, Volume(torch.from_numpy(values)[None], source.native)


@pytest.mark.parametrize("kind", ["axial", "tilted", "multi-frame"])
def test_segments_have_their_volumes_and_tracking_identifiers(tmp_path: Path, kind: str) -> None:
    case = make_case(tmp_path, kind)
    report, segmentation, _ = written(case)
    labels, found = case[1], {group.tracking_uid: group for group in groups(report)}
    for label, segment in zip(SCHEMA.ids, segmentation.SegmentSequence, strict=True):
        group = found[segment.TrackingUID]
        assert group.tracking_identifier == segment.TrackingID == SCHEMA.names[label]
        assert group.finding_type.value == segment.SegmentedPropertyTypeCodeSequence[0].CodeValue
        volume = group.get_measurements(codes.SCT.Volume)[0]
        true = int((labels.data == label).sum()) * float(labels.grid.voxel_ml)
        assert float(volume.value) == pytest.approx(true, abs=1e-4) and volume.unit.value == "cm3"
        assert volume.method == codes.DCM.SumOfSegmentedVoxelMethodForVolume
    assert len({group.tracking_uid for group in groups(report)}) == len(groups(report))


@pytest.mark.parametrize("kind", ["axial", "uneven", "multi-frame"])
@pytest.mark.parametrize("schema", [SCHEMA, LabelSchema.from_names({2: "tumour"})])
def test_groups_name_the_images_of_their_voxels_also_of_the_only_label(
    tmp_path: Path, kind: str, schema: LabelSchema
) -> None:
    source, labels = make_case(tmp_path, kind)
    labels.data[~torch.isin(labels.data, torch.tensor(schema.ids))] = 0
    found = groups(written((source, labels), schema)[0])
    uids, seen = [str(header.SOPInstanceUID) for header in source.headers], set()
    for group in found:
        segment, *items = (each.ReferencedSOPSequence[0] for each in group.referenced_segment)
        seen.add(segment.ReferencedSegmentNumber)
        images = {
            (each.ReferencedSOPInstanceUID, *np.atleast_1d(each.get("ReferencedFrameNumber", [])))
            for each in items
        }
        number = sorted(schema.ids)[segment.ReferencedSegmentNumber - 1]
        slices = (labels.data[0] == number).flatten(1).any(1).nonzero().flatten().tolist()
        places = [(source.lps_from_index @ (k, 0, 0, 1))[:3] for k in slices]
        drawn = [k for place in places if (k := source.image_at(place)) is not None]
        if kind == "multi-frame":
            assert images == {(uids[0], *sorted(int(source.frames[k]) + 1 for k in drawn))}
        elif kind == "axial":
            assert images == {(uids[k],) for k in drawn} and drawn
        else:  # slices of a repaired series are made from several images
            assert images == {(uid,) for uid in uids}
    assert seen == set(range(1, len(schema.ids) + 1))


def test_every_measure_is_read_again_with_its_interval(tmp_path: Path) -> None:
    report, _, exported = written(two_kidneys(tmp_path), KIDNEY_TUMOUR)
    found = groups(report)
    assert len(found) == len(exported.reported) == 6
    for group, said in zip(found, exported.reported, strict=True):
        assert len(group.get_measurements()) == len(said.values)
        for value in said.values:
            coded = CODED[value.name]
            name = getattr(getattr(codes, coded.scheme), coded.keyword)
            (measured,) = group.get_measurements(name)
            assert float(measured.value) == pytest.approx(value.value, abs=1e-4)
            unit = {"mL": "cm3", "mm": "mm"}[value.unit]
            assert measured.unit.value == unit and measured.unit.scheme_designator == "UCUM"
            assert value.low is not None
            ends = {"371885007": (pytest.approx(value.value - value.low, abs=1e-4), unit)}
            if value.high is not None:
                ends["371886008"] = (pytest.approx(value.high - value.value, abs=1e-4), unit)
            assert uncertainties(measured) == ends


def test_kidneys_and_lesions_of_a_label_are_groups_with_their_sides(tmp_path: Path) -> None:
    report, segmentation, _ = written(two_kidneys(tmp_path), KIDNEY_TUMOUR)
    found = {group.tracking_identifier: group for group in groups(report)}
    assert list(found) == [
        "kidney",
        "right kidney (part of kidney)",
        "left kidney (part of kidney)",
        "tumour",
        "right tumour 1 (part of tumour)",
        "right tumour 2 (part of tumour)",
    ]
    assert found["kidney"].finding_sites[0].laterality is None
    right, left = "24028007", "7771000"
    for name, side in (("right kidney", right), ("left kidney", left)):
        assert found[f"{name} (part of kidney)"].finding_sites[0].laterality.value == side
    lesion = found["right tumour 1 (part of tumour)"]
    assert lesion.finding_sites[0].value.value == "64033007"
    assert lesion.finding_sites[0].laterality.value == right
    whole = found["tumour"].get_measurements(codes.SCT.Volume)[0]
    parts = [
        float(
            found[f"right tumour {k} (part of tumour)"].get_measurements(codes.SCT.Volume)[0].value
        )
        for k in (1, 2)
    ]
    assert float(whole.value) == pytest.approx(sum(parts), abs=1e-3)
    assert segmentation.SegmentSequence[1].TrackingUID == found["tumour"].tracking_uid


def test_a_label_that_is_one_structure_is_one_group(tmp_path: Path) -> None:
    source, labels = two_kidneys(tmp_path)
    data = labels.data.clone()
    data[..., 40:] = 0
    data[:, :, 20:][data[:, :, 20:] == 2] = 1
    report, segmentation, _ = written((source, Volume(data, labels.grid)), KIDNEY_TUMOUR)
    found = groups(report)
    assert [group.tracking_identifier for group in found] == ["kidney", "tumour"]
    assert [group.tracking_uid for group in found] == [
        segment.TrackingUID for segment in segmentation.SegmentSequence
    ]
    for group in found:
        assert group.finding_sites[0].laterality.value == "24028007"
        assert len(group.get_measurements()) == len(CODED)


def test_what_the_scan_cuts_off_is_a_lower_bound_and_said(tmp_path: Path) -> None:
    source, labels = two_kidneys(tmp_path)
    labels.data[0, 0][labels.data[0, 1] == 1] = 1
    report, _, _ = written((source, labels), KIDNEY_TUMOUR)
    for group in groups(report):
        evaluations = group.get_qualitative_evaluations(codes.DCM.QualityFinding)
        is_cut = group.finding_type == codes.SCT.Kidney
        assert [each.value for each in evaluations] == (
            [codes.DCM.AnatomyCoverageIncomplete] if is_cut else []
        )
        volume = group.get_measurements(codes.SCT.Volume)[0]
        assert ("371886008" in uncertainties(volume)) != is_cut


def test_a_structure_of_several_labels_has_no_segment_and_that_is_said(tmp_path: Path) -> None:
    source, labels = two_kidneys(tmp_path)
    schema = LabelSchema.from_names({1: "renal cortex", 2: "renal medulla"})
    exported = Exported(
        labels=labels, schema=schema, origin=ORIGIN, like=labels.grid, source=source
    )
    measured, findings = reported(exported, Path("a.nii.gz"))
    (finding,) = [each for each in findings if each.code == "no-segment"]
    assert "the right kidney (renal cortex, renal medulla)" in finding.cause
    assert [each.name for each in measured.reported] == [
        "renal cortex",
        "left kidney",
        "renal medulla",
    ]


@pytest.mark.requirement("research use")
def test_it_is_preliminary_and_says_what_it_is(tmp_path: Path) -> None:
    report, segmentation, _ = written(make_case(tmp_path, "axial"))
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
    source, labels = make_case(tmp_path, "axial")
    labels.data[labels.data == 2] = 0
    names = [group.tracking_identifier for group in groups(written((source, labels))[0])]
    assert not [name for name in names if "tumour" in name] and "Milz größer" in names


def test_labels_of_unknown_origin_claim_no_algorithm_that_made_them(tmp_path: Path) -> None:
    case = make_case(tmp_path, "axial")
    named = written(case)[0].to_json().count("kidseg homogenized")
    report = written(case, origin=Origin(labels_sha256="ef"))[0].to_json()
    assert named >= 3 and "kidseg homogenized" not in report and "kidseg measure" in report


def test_every_unit_and_name_is_one_of_dicom() -> None:
    for coded in CODED.values():
        assert getattr(getattr(codes, coded.scheme), coded.keyword).meaning
        assert not coded.method or getattr(codes.DCM, coded.method).meaning


@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize("kind", [*KINDS, "kidneys"])
@pytest.mark.parametrize("schema", [SCHEMA, LabelSchema.from_names({2: "tumour"})])
def test_it_conforms_to_dicom(tmp_path: Path, kind: str, schema: LabelSchema) -> None:
    source, labels = (
        two_kidneys(tmp_path) if kind == "kidneys" else make_case(tmp_path / "ct", kind)
    )
    labels.data[~torch.isin(labels.data, torch.tensor(schema.ids))] = 0
    report, _, _ = written((source, labels), schema)
    report.save_as(tmp_path / "sr.dcm")
    assert_conforms(tmp_path / "sr.dcm", "ComprehensiveSR")
