"""DICOM SEG: each voxel in its place, whoever reads it; the series, the terms and the origin."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sr.codedict import codes

from dicom_files import Edit, assign, body, delete, enhanced, series
from kidseg.errors import InputError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions
from kidseg.io.dicom_source import SourceSeries, read_source
from kidseg.io.dicomseg import long_string, segment_names, write_dicom_segmentation
from kidseg.io.origin import Origin
from kidseg.io.rtstruct import write_structure_set
from kidseg.labels import LabelSchema
from labelled_series import (
    ANY,
    KINDS,
    ORIENTATIONS,
    ORIGIN,
    REPAIR,
    SCHEMA,
    assert_conforms,
    make_case,
    make_labels,
    needs_dciodvfy,
)

Voxels = dict[tuple[float, ...], int]


def issued_id(value: str) -> Dataset:
    """An item of Other Patient IDs Sequence."""
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = value, "TEXT"
    return item


def written(
    source: SourceSeries, labels: Volume, *, labelmap: bool = False, origin: Origin = ORIGIN
) -> Dataset:
    file = io.BytesIO()
    write_dicom_segmentation(labels, SCHEMA, source, origin, file, labelmap=labelmap)
    file.seek(0)
    return pydicom.dcmread(file)


def contoured(source: SourceSeries, labels: Volume) -> Dataset:
    """The same labels as an RT Structure Set."""
    file = io.BytesIO()
    write_structure_set(labels, SCHEMA, source, ORIGIN, file)
    file.seek(0)
    return pydicom.dcmread(file)


def truth(source: SourceSeries, labels: Volume) -> Voxels:
    """{LPS position: label} of the labels."""
    values = labels.data[0].numpy()
    index = np.argwhere(values > 0)
    places = index @ source.lps_from_index[:3, :3].T + source.lps_from_index[:3, 3]
    return _by_place(places, values[values > 0])


def _by_place(places: np.ndarray, values: np.ndarray) -> Voxels:
    rounded = np.round(places, 2) + 0.0
    return dict(zip(map(tuple, rounded.tolist()), values.tolist(), strict=True))


def by_pydicom(dataset: Dataset) -> Voxels:
    """{LPS position: label}, from the elements alone."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    along, down = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    apart = shared.PixelMeasuresSequence[0].PixelSpacing
    label_of = {s.SegmentNumber: s.SegmentLabel for s in dataset.SegmentSequence}
    numbers = {name: number for number, name in SCHEMA.names.items()}
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    found: Voxels = {}
    for frame, item in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        row, column = np.nonzero(frame)
        first = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        places = first + np.outer(row * apart[0], down) + np.outer(column * apart[1], along)
        values = frame[row, column]
        if "SegmentIdentificationSequence" in item:
            segment = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            values = np.full(len(row), numbers[label_of[segment]])
        found |= _by_place(places, values)
    return found


@pytest.mark.requirement("dicom")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labelmap", [False, True])
def test_every_voxel_is_in_its_place(tmp_path: Path, kind: str, labelmap: bool) -> None:
    source, labels = make_case(tmp_path, kind)
    dataset = written(source, labels, labelmap=labelmap)
    expected = truth(source, labels)
    assert len(expected) == int((labels.data > 0).sum()) and set(expected.values()) == {1, 2, 5}
    assert by_pydicom(dataset) == expected
    volume = highdicom.seg.Segmentation.from_dataset(dataset).get_volume(combine_segments=True)
    index = np.argwhere(volume.array > 0)
    segments = {1: 1, 2: 2, 3: 5, 5: 5}  # numbered 1, 2, 3 unless it is a label map
    values = np.array([segments[v] for v in volume.array[volume.array > 0].tolist()])
    assert _by_place(volume.map_indices_to_reference(index), values) == expected


@pytest.mark.requirement("dicom")
@pytest.mark.parametrize("kind", ["axial", "oblique", "multi-frame"])
def test_frames_refer_to_the_images_in_their_planes(tmp_path: Path, kind: str) -> None:
    source, labels = make_case(tmp_path, kind)
    positions = {
        (str(header.SOPInstanceUID), None): header.get("ImagePositionPatient")
        for header in source.headers
    }
    if source.is_multiframe:
        header = source.headers[0]
        positions = {
            (str(header.SOPInstanceUID), k + 1): frame.PlanePositionSequence[0].ImagePositionPatient
            for k, frame in enumerate(header.PerFrameFunctionalGroupsSequence)
        }
    for item in written(source, labels).PerFrameFunctionalGroupsSequence:
        image = item.DerivationImageSequence[0].SourceImageSequence[0]
        key = (str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber"))
        assert item.PlanePositionSequence[0].ImagePositionPatient == positions[key]


@pytest.mark.requirement("research use")
@pytest.mark.requirement("dicom")
def test_it_says_what_it_is_and_where_it_comes_from(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "axial")
    dataset = written(source, labels)
    first = source.headers[0]
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[name].value == first[name].value
    assert dataset.SeriesInstanceUID != first.SeriesInstanceUID
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
    assert "RESEARCH USE ONLY" in dataset.SeriesDescription
    assert dataset.ContentDescription == "Research use only. Not a medical device."
    (equipment,) = (e for e in dataset.ContributingEquipmentSequence if e.Manufacturer == "kidseg")
    for text in (dataset.ImageComments, equipment.ContributionDescription):
        assert "Research use only" in text and "ab" * 32 in text and "cd" * 32 in text
    assert dataset.preamble == b"\0" * 128
    kidney, tumour, other = dataset.SegmentSequence
    assert [s.SegmentLabel for s in dataset.SegmentSequence] == list(SCHEMA.names.values())
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeValue == codes.SCT.Kidney.value
    side = kind.SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeValue == codes.SCT.Left.value
    assert tumour.AnatomicRegionSequence[0].CodeValue == codes.SCT.Kidney.value
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Tissue.value
    assert {s.SegmentAlgorithmType for s in dataset.SegmentSequence} == {"AUTOMATIC"}
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert "ab" * 32 in algorithm.AlgorithmParameters
    colour = highdicom.color.CIELabColor.from_dicom_value(kidney.RecommendedDisplayCIELabValue)
    assert np.abs(np.array(colour.to_rgb()) - SCHEMA.labels[0].rgb).max() <= 2


@pytest.mark.requirement("research use")
@pytest.mark.parametrize("labelmap", [False, True])
def test_both_forms_are_for_research_only_and_name_scan_labels_and_model(
    tmp_path: Path, labelmap: bool
) -> None:
    source, labels = make_case(tmp_path, "axial")
    dataset = written(source, labels, labelmap=labelmap)
    assert dataset.SegmentationType == ("LABELMAP" if labelmap else "BINARY")
    assert "RESEARCH USE ONLY" in dataset.SeriesDescription
    assert dataset.ContentDescription == "Research use only. Not a medical device."
    (equipment,) = (e for e in dataset.ContributingEquipmentSequence if e.Manufacturer == "kidseg")
    for text in (dataset.ImageComments, equipment.ContributionDescription):
        assert "Research use only" in text
        for digest in (ORIGIN.scan_sha256, ORIGIN.model_sha256):
            assert digest and digest in text
    assert equipment.SoftwareVersions and dataset.PatientID == source.headers[0].PatientID


def test_labels_of_unknown_origin_claim_no_algorithm(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "axial")
    for segment in written(source, labels, origin=Origin(labels_sha256="ef")).SegmentSequence:
        assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
        assert segment.SegmentAlgorithmName == "unknown"
        assert "SegmentationAlgorithmIdentificationSequence" not in segment


def test_no_voxel_at_all(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "axial")
    empty = Volume(labels.data * 0, labels.grid)
    dataset = written(source, empty)
    assert by_pydicom(dataset) == {} and len(dataset.SegmentSequence) == 3


def test_names_in_other_scripts(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.PatientName = "Müller^Jörg"

    source = read_source(series(tmp_path, edit=edit), ANY)
    dataset = written(source, make_labels(source))
    assert str(dataset.PatientName) == "Müller^Jörg"
    assert dataset.SegmentSequence[2].SegmentLabel == "Milz größer"


@pytest.mark.parametrize(
    "name", ["PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_missing_identifiers_get_placeholders(tmp_path: Path, name: str) -> None:
    source = read_source(series(tmp_path, edit=delete(name)), ANY)
    dataset = written(source, make_labels(source))
    assert bool(dataset.get(name)) == (not name.startswith("Patient"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("StudyDate", "99999999"),
        ("PatientBirthDate", "unknown"),
        ("StudyTime", "noon"),
        ("PatientSex", "girl"),
        ("PatientAge", "7 years"),
        ("PatientName", "x" * 40 + "^" + "y" * 40),
        ("PatientName", ["A^B", "C^D"]),
        ("PatientName", "A\x01^B"),
        ("ReferringPhysicianName", ["Dr^A", "Dr^B"]),
        ("ReferringPhysicianName", "^^^^^^"),
        ("StudyID", "1" * 17),
        ("AccessionNumber", ["1", "2"]),
        ("StudyDescription", "two\nlines"),
        ("PatientComments", "x" * 10241),
        ("OtherPatientIDsSequence", [issued_id("1\n2")]),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_invalid_elements_are_left_empty_and_said(
    tmp_path: Path, name: str, value: str | list[str] | list[Dataset]
) -> None:
    source = read_source(series(tmp_path, edit=assign(name, value)), ANY)
    labels = make_labels(source)
    for dataset in (written(source, labels), contoured(source, labels)):
        assert dataset.get(name) in ("", None)
    (finding,) = (f for f in source.findings if f.code == "invalid-element")
    assert name in finding.cause and str(value) not in finding.cause


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientComments", "two\nlines"),
        ("MedicalAlerts", ["a", "b"]),
        ("PregnancyStatus", 4),
        ("LongitudinalTemporalOffsetFromEvent", 3.5),
        ("PatientWeight", 13.5),
    ],
)
def test_unusual_elements_that_are_valid_are_copied(
    tmp_path: Path, name: str, value: str | float | list[str]
) -> None:
    source = read_source(series(tmp_path, edit=assign(name, value)), ANY)
    assert written(source, make_labels(source))[name].value == value
    assert "invalid-element" not in [f.code for f in source.findings]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientID", "1" * 65),
        ("PatientID", ["1", "2"]),
        ("StudyInstanceUID", "1.02.3"),
        ("FrameOfReferenceUID", "1." + "2" * 70),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_identifiers_stay_as_they_are_and_invalid_ones_are_said(
    tmp_path: Path, name: str, value: str | list[str]
) -> None:
    """With others, the objects would belong to another patient or study."""
    source = read_source(series(tmp_path, edit=assign(name, value)), ANY)
    labels = make_labels(source)
    for dataset in (written(source, labels), contoured(source, labels)):
        assert dataset[name].value == value
    (finding,) = (f for f in source.findings if f.code == "invalid-identifier")
    assert name in finding.cause and str(value) not in finding.cause


def test_a_clinical_trial_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    def edit(ds: Dataset, _: int) -> None:
        ds.ClinicalTrialProtocolID, ds.ClinicalTrialSubjectID = "P", "S"
        ds.ClinicalTrialTimePointDescription = "Pre-dose"
        if is_whole:
            ds.ClinicalTrialSponsorName = "A"

    for is_whole in (True, False):
        source = read_source(series(tmp_path / str(is_whole), edit=edit), ANY)
        labels = make_labels(source)
        names = ("ClinicalTrialSubjectID", "ClinicalTrialSiteID", "ClinicalTrialProtocolName")
        for dataset in (written(source, labels), contoured(source, labels)):
            assert dataset.ClinicalTrialTimePointDescription == "Pre-dose"
            assert dataset.ClinicalTrialTimePointID == ""
            assert [name in dataset for name in names] == [is_whole] * 3
        assert ("invalid-element" in [f.code for f in source.findings]) != is_whole


@pytest.mark.parametrize("edit", [assign("SliceThickness", None), delete("SliceThickness")])
def test_a_missing_thickness(tmp_path: Path, edit: Edit) -> None:
    source = read_source(series(tmp_path, edit=edit), ANY)
    labels = make_labels(source)
    assert by_pydicom(written(source, labels)) == truth(source, labels)


def test_a_spacing_that_the_user_gives(tmp_path: Path) -> None:
    options = ReadOptions(values="any", spacing_mm=(2.5, 0.8, 0.6))
    source = read_source(series(tmp_path), options)
    labels = make_labels(source)
    assert by_pydicom(written(source, labels)) == truth(source, labels)


def test_a_single_slice(tmp_path: Path) -> None:
    source = read_source(series(tmp_path, body(0, (1, 32, 40))), ANY)
    labels = Volume(torch.zeros((1, 1, 32, 40), dtype=torch.uint8), source.native)
    labels.data[0, 0, 3:9, 5:8] = 2
    assert by_pydicom(written(source, labels)) == truth(source, labels)


def test_positions_and_cosines_may_be_rounded(tmp_path: Path) -> None:
    """Each frame still refers to its image, and has its position."""

    def edit(ds: Dataset, k: int) -> None:
        ds.ImagePositionPatient = [f"{float(v):.2f}" for v in ds.ImagePositionPatient]
        ds.ImageOrientationPatient = [f"{float(v):.4f}" for v in ds.ImageOrientationPatient]

    folder = series(tmp_path, iop=ORIENTATIONS["oblique"], edit=edit)
    source = read_source(folder, ANY)
    places = {str(h.SOPInstanceUID): h.ImagePositionPatient for h in source.headers}
    for frame in written(source, make_labels(source)).PerFrameFunctionalGroupsSequence:
        image = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert frame.PlanePositionSequence[0].ImagePositionPatient == places[image]


def test_names_that_dicom_could_not_hold(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "axial")
    schema = LabelSchema.from_names({1: "a\\b\n" + 70 * "x", 2: "tumour", 5: "c"})
    file = io.BytesIO()
    write_dicom_segmentation(labels, schema, source, ORIGIN, file)
    file.seek(0)
    name = pydicom.dcmread(file).SegmentSequence[0].SegmentLabel
    assert isinstance(name, str) and name.startswith("a/b x") and len(name) == 64


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("SOPInstanceUID", "1.2.3.4", "no-instance-uid"),
        ("FrameOfReferenceUID", "1.2.77", "mixed-series"),
        ("StudyInstanceUID", "1.2.78", "mixed-series"),
    ],
)
def test_a_series_to_which_no_object_can_refer(
    tmp_path: Path, name: str, value: str, code: str
) -> None:
    which = None if name == "SOPInstanceUID" else 2  # all images have it, or one has another
    folder = series(tmp_path, edit=assign(name, value, which))
    with pytest.raises(InputError) as caught:
        read_source(folder, REPAIR)
    assert caught.value.code == code and caught.value.path == str(folder)
    assert caught.value.next_step


Writer = Callable[[SourceSeries, Volume], object]
READ_BEFORE = {
    *("NumberOfFrames", "PerFrameFunctionalGroupsSequence", "PlaneOrientationSequence"),
    *("PlanePositionSequence", "FrameOfReferenceUID", "ImagePositionPatient"),
    "ImageOrientationPatient",
}
"""Without these a series is refused, or they are filled in, before anything is written."""


def refusal(write: Writer, source: SourceSeries | Path, labels: Volume | None) -> InputError | None:
    """The error of reading or writing; None if both succeed."""
    try:
        found = source if isinstance(source, SourceSeries) else read_source(source, REPAIR)
        write(found, make_labels(found) if labels is None else labels)
    except InputError as error:
        return error
    return None


def elements(dataset: Dataset) -> Iterator[tuple[Dataset, str]]:
    """All elements of a data set and of the items in it: where each one is, and its keyword."""
    for element in list(dataset):
        yield dataset, element.keyword
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


@pytest.mark.ci
@pytest.mark.parametrize("write", [written, contoured])
@pytest.mark.parametrize("kind", ["axial", "multi-frame"])
def test_what_a_header_lacks_is_said_of_its_file(tmp_path: Path, kind: str, write: Writer) -> None:
    """Each element of the first and of the last image, and of their functional groups.

    But those without which there is no source.
    """
    source, labels = make_case(tmp_path, kind)
    labels.data[:, 2:] = 0
    needed = set()
    for header in {id(each): each for each in (source.headers[0], source.headers[-1])}.values():
        for place, name in elements(header):
            if name in READ_BEFORE:
                continue
            lacking = place[name]
            del place[name]
            if (error := refusal(write, source, labels)) is not None:
                needed.add(name)
                where = f"({name} ({lacking.tag.group:04x},{lacking.tag.element:04x}) is missing in"
                assert f"{where} {Path(header.filename).name})" in str(error)
                assert error.code == "dicom-refused" and error.path == str(source.path)
            place[name] = lacking
    assert {"SOPClassUID", "SOPInstanceUID"} <= needed
    assert needed.isdisjoint({"ImageType", "SeriesDescription", "RescaleSlope"})


@pytest.mark.parametrize("write", [written, contoured])
def test_files_that_lack_an_element_are_read_or_refused_by_name(
    tmp_path: Path, write: Writer
) -> None:
    """Nothing else is raised, whatever an anonymizer has removed from one file."""
    whole = tmp_path / "whole"
    names = [element.keyword for element in pydicom.dcmread(next(series(whole).iterdir()))]
    values, refused = body(shape=(4, 24, 24)), {}
    for name in names:
        folder = series(tmp_path / name, values, edit=delete(name, which=1))
        found = refusal(write, folder, None)
        if found is not None:
            assert found.path and found.path.startswith(str(folder)) and found.next_step
            refused[name] = found.code
    assert refused["Rows"] and "PatientName" not in refused and "StudyDate" not in refused


def test_images_without_a_class_are_refused(tmp_path: Path) -> None:
    folder = series(tmp_path)
    dataset = pydicom.dcmread(file := folder / "000-0.dcm")
    del dataset.SOPClassUID, dataset.file_meta.MediaStorageSOPClassUID
    dataset.save_as(file)
    with pytest.raises(InputError, match=r"SOPClassUID \(0008,0016\) is missing in 000-0.dcm"):
        read_source(folder, ANY)


@pytest.mark.parametrize("write", [written, contoured])
@pytest.mark.parametrize(
    "error",
    [
        AttributeError("Rows", name="Rows", obj=Dataset()),
        AttributeError("'Segment' object has no attribute 'name'"),
        KeyError(pydicom.tag.Tag("Rows")),
        KeyError("kidney"),
        TypeError("unexpected keyword"),
        ValueError("too few"),
    ],
)
def test_errors_that_are_not_of_the_headers_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer, error: Exception
) -> None:
    """A fault of this package must not look like one of the series."""

    def fail(*_: object) -> None:
        raise error

    source, labels = make_case(tmp_path, "axial")
    monkeypatch.setattr("kidseg.io.dicomseg._descriptions", fail)
    monkeypatch.setattr("kidseg.io.rtstruct._contours", fail)
    with pytest.raises(type(error)) as caught:
        write(source, labels)
    assert caught.value is error


def test_what_the_libraries_refuse_is_an_error_of_the_series(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "axial")
    source.headers[0].SOPClassUID = "1.2.3"
    with pytest.raises(InputError, match=r"is 1\.2\.3, which no known kind") as caught:
        written(source, labels)
    assert caught.value.code == "dicom-refused" and caught.value.path == str(source.path)
    source, labels = make_case(tmp_path, "axial")
    source.headers[1].Rows = 7
    with pytest.raises(InputError, match="cannot be used") as caught:
        written(source, labels)
    assert caught.value.code == "dicom-refused" and caught.value.path == str(source.path)


def test_multi_frame_files_without_functional_groups(tmp_path: Path) -> None:
    file = enhanced(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(file)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    del dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence
    dataset.ImagePositionPatient = [-10, -20, 30]
    dataset.ImageOrientationPatient = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    dataset.PixelSpacing, dataset.SpacingBetweenSlices = [0.75, 0.5], 2.5
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.save_as(file)
    with pytest.raises(InputError) as caught:
        read_source(tmp_path, ANY)
    assert caught.value.code == "unsupported-source"


def test_frames_of_the_second_phase_in_a_file(tmp_path: Path) -> None:
    """Both phases have the same positions."""
    file = enhanced(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(file)
    frames, pixels = list(dataset.PerFrameFunctionalGroupsSequence), dataset.pixel_array
    both = [*frames, *(copy.deepcopy(frame) for frame in frames)]
    for k, frame in enumerate(both):
        content = Dataset()
        content.TemporalPositionIndex = content.FrameAcquisitionNumber = 1 + k // 6
        frame.FrameContentSequence = [content]
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = both, 12
    dataset.PixelData = np.concatenate(
        [pixels[:6], pixels[:6] + 300 * (pixels[:6] > 200)]
    ).tobytes()
    dataset.save_as(file)
    source = read_source(file, ReadOptions(values="any", series="3.2"))
    labels = make_labels(source)
    made = written(source, labels)
    assert by_pydicom(made) == truth(source, labels)
    images = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for frame in made.PerFrameFunctionalGroupsSequence
    ]
    assert {int(number) for number in images} == {8, 10, 11, 12}, "slices 2, 4, 5, 6 of the second"


def test_a_scan_of_another_format_has_no_series(tmp_path: Path) -> None:
    file = tmp_path / "scan.nrrd"
    file.write_bytes(b"NRRD0004\n\n")
    with pytest.raises(InputError) as caught:
        read_source(file, ANY)
    assert caught.value.code == "no-dicom-series"


def test_identifiers_that_only_the_file_meta_has(tmp_path: Path) -> None:
    source = read_source(series(tmp_path, edit=assign("SOPInstanceUID", "")), ANY)
    known = {str(header.file_meta.MediaStorageSOPInstanceUID) for header in source.headers}
    assert len(known) == 6
    assert {str(header.SOPInstanceUID) for header in source.headers} == known


def test_a_zip_is_read_and_named(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct")
    file = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", folder))
    assert read_source(file, ANY).native.same_as(read_source(folder, ANY).native)
    with pytest.raises(InputError) as caught:
        read_source(file, ReadOptions(values="any", series="77"))
    assert caught.value.path == str(file)


@pytest.mark.requirement("dicom")
@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize("kind", KINDS)
def test_it_conforms_to_dicom(tmp_path: Path, kind: str) -> None:
    source, labels = make_case(tmp_path / "ct", kind)
    with (tmp_path / "seg.dcm").open("wb") as file:
        write_dicom_segmentation(labels, SCHEMA, source, ORIGIN, file)
    assert_conforms(tmp_path / "seg.dcm", "Segmentation")


@given(
    st.lists(st.text(alphabet="ab \\\n", max_size=5), min_size=2, max_size=6, unique=True),
    st.booleans(),
)
def test_names_of_segments_are_different_and_valid(names: list[str], is_long: bool) -> None:
    tail = "x" * 70 if is_long else ""
    schema = LabelSchema.from_names({k: tail + name for k, name in enumerate(names, 3)})
    found = segment_names(schema)
    assert set(found) == set(schema.ids) and len(set(found.values())) == len(names)
    for name in found.values():
        assert 1 <= len(name) <= 64 and name == long_string(name)


def test_segments_with_the_same_long_name_are_tracked_apart(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "axial")
    schema = LabelSchema.from_names({1: "a" * 70, 2: "a" * 70 + "b", 5: "a\\b"})
    file = io.BytesIO()
    write_dicom_segmentation(labels, schema, source, ORIGIN, file)
    segments = pydicom.dcmread(io.BytesIO(file.getvalue())).SegmentSequence
    assert [s.SegmentLabel for s in segments] == ["a" * 64, "a" * 60 + " (2)", "a/b"]
    assert len({s.TrackingUID for s in segments}) == 3


def test_labels_without_voxels_are_written_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, labels = make_case(tmp_path, "axial")
    labels.data.zero_()
    dataset = written(source, labels)
    assert not dataset.pixel_array.any() and len(dataset.SegmentSequence) == 3
    assert not caplog.records
