"""RTSTRUCT: contours around exactly the centres of the voxels, on the planes of the images."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from pydicom import Dataset

from dicom_files import series
from kidseg.errors import InputError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, save
from kidseg.io.dicom_source import SourceSeries, read_source
from kidseg.io.origin import Origin
from kidseg.io.rtstruct import contours_of, write_structure_set
from kidseg.labels import LabelSchema
from labelled_series import (
    ANY,
    KINDS,
    ORIGIN,
    SCHEMA,
    assert_conforms,
    make_case,
    make_labels,
    needs_dciodvfy,
)


def written(source: SourceSeries, labels: Volume, origin: Origin = ORIGIN) -> Dataset:
    file = io.BytesIO()
    write_structure_set(labels, SCHEMA, source, origin, file)
    file.seek(0)
    return pydicom.dcmread(file)


def filled(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres are inside an odd number of polygons of (row, column) points."""
    row, column = np.indices(shape)
    centres = np.column_stack([row.ravel(), column.ravel()])
    inside = np.zeros(len(centres), bool)
    for polygon in polygons:
        inside ^= Polygon(np.vstack([polygon, polygon[:1]])).contains_points(centres)
    return inside.reshape(shape)


def voxels(dataset: Dataset, number: int, source: SourceSeries) -> np.ndarray:
    """The voxels of a structure on the grid of the series, from the file alone."""
    found = np.zeros(source.native.shape, bool)
    (roi,) = (r for r in dataset.ROIContourSequence if r.ReferencedROINumber == number)
    index_from_lps = np.linalg.inv(source.lps_from_index)
    polygons: dict[int, list[np.ndarray]] = {}
    for contour in roi.get("ContourSequence", []):
        places = np.reshape(contour.ContourData, (-1, 3)).astype(float)
        assert len(places) == contour.NumberOfContourPoints
        index = places @ index_from_lps[:3, :3].T + index_from_lps[:3, 3]
        k = round(float(index[0, 0]))
        assert np.abs(index[:, 0] - k).max() < 1e-3, "planar, on a slice"
        polygons.setdefault(k, []).append(index[:, 1:])
    for k, each in polygons.items():
        found[k] = filled(each, source.native.shape[1:])
    return found


@given(
    st.tuples(st.integers(1, 14), st.integers(1, 14)), st.floats(0.05, 0.95), st.integers(0, 999)
)
def test_contours_contain_the_centres_of_the_pixels(
    shape: tuple[int, int], share: float, seed: int
) -> None:
    inside = np.random.default_rng(seed).random(shape) < share
    assert np.array_equal(filled(contours_of(inside), shape), inside)


def test_a_hole_and_an_island_in_it() -> None:
    inside = np.zeros((20, 20), bool)
    inside[1:19, 1:19] = True
    inside[3:9, 3:9] = inside[12:17, 4:16] = False
    inside[5:7, 5:7] = True
    outer, island = sorted(contours_of(inside), key=len, reverse=True)
    assert np.array_equal(filled([outer, island], inside.shape), inside)
    assert len(contours_of(inside)) == 2, "holes are joined to the contour around them"


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_gives_the_same_voxels(tmp_path: Path, kind: str) -> None:
    source, labels = make_case(tmp_path, kind)
    dataset = written(source, labels)
    for number, label in enumerate(SCHEMA.ids, start=1):
        expected = labels.data[0].numpy() == label
        assert np.array_equal(voxels(dataset, number, source), expected), "Dice 1"


def test_contours_refer_to_the_images_in_their_planes(tmp_path: Path) -> None:
    for kind in ("oblique", "tilted", "multi-frame"):
        source, labels = make_case(tmp_path / kind, kind)
        of = {str(h.SOPInstanceUID): h for h in source.headers}
        for roi in written(source, labels).ROIContourSequence:
            for contour in roi.ContourSequence:
                (image,) = contour.ContourImageSequence
                header = of[image.ReferencedSOPInstanceUID]
                position, cosines = _plane(header, image.get("ReferencedFrameNumber"))
                normal = np.cross(*np.reshape(cosines, (2, 3)))
                place = np.array(contour.ContourData[:3], float)
                assert abs((place - np.array(position)) @ normal) < 0.01


def _plane(header: Dataset, frame: int | None) -> tuple[list[float], list[float]]:
    if frame is None:
        return header.ImagePositionPatient, header.ImageOrientationPatient
    shared = header.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    own = header.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0]
    return own.ImagePositionPatient, shared.ImageOrientationPatient


def test_interpolated_slices_have_no_image(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "uneven")
    labels.data[0, 3, 4:9, 4:9] = 1
    contours = written(source, labels).ROIContourSequence[0].ContourSequence
    for contour in contours:
        is_new = abs(float(contour.ContourData[2]) - 37.5) < 0.01
        assert ("ContourImageSequence" in contour) != is_new


@pytest.mark.requirement("research use")
def test_it_says_what_it_is_and_where_it_comes_from(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "axial")
    dataset = written(source, labels)
    first = source.headers[0]
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[name].value == first[name].value
    assert dataset.Modality == "RTSTRUCT" and dataset.ApprovalStatus == "UNAPPROVED"
    assert "RESEARCH USE ONLY" in dataset.SeriesDescription
    assert "Research use only" in dataset.StructureSetDescription
    assert "ab" * 32 in dataset.ContributingEquipmentSequence[0].ContributionDescription
    frame = dataset.ReferencedFrameOfReferenceSequence[0]
    listed = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert listed.SeriesInstanceUID == first.SeriesInstanceUID
    assert len(listed.ContourImageSequence) == len(source.headers)
    rois = dataset.StructureSetROISequence
    assert [roi.ROIName for roi in rois] == list(SCHEMA.names.values())
    for roi, label in zip(rois, SCHEMA.ids, strict=True):
        count = int((labels.data == label).sum())
        assert float(roi.ROIVolume) == pytest.approx(count * float(labels.grid.voxel_ml), rel=1e-5)
        assert roi.ROIGenerationAlgorithm == "AUTOMATIC"
    (kidney, *_) = dataset.RTROIObservationsSequence
    assert kidney.RTROIInterpretedType == "ORGAN"
    assert kidney.RTROIIdentificationCodeSequence[0].CodeValue == "64033007"
    other = written(source, labels, Origin(labels_sha256="ef"))
    assert {roi.ROIGenerationAlgorithm for roi in other.StructureSetROISequence} == {""}


def test_an_empty_structure_has_no_contour(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path, "axial")
    dataset = written(source, Volume(labels.data * 0, labels.grid))
    assert len(dataset.StructureSetROISequence) == 3
    assert not any("ContourSequence" in roi for roi in dataset.ROIContourSequence)


def test_long_contours_are_written_whole(tmp_path: Path) -> None:
    """A comb has more coordinates than explicit VR can hold in one element."""
    source = read_source(series(tmp_path, np.zeros((3, 120, 120), np.int16)), ANY)
    values = np.zeros((3, 120, 120), np.uint8)
    values[1, 2:118, 1:119:2] = values[1, 2, 1:119] = 1
    values[1, 4:118:2, 1:119:4] = 0
    values[1, 3:118, 2:119:4] = 1
    labels = make_labels(source)
    labels.data[0] = labels.data.new_tensor(values)
    dataset = written(source, labels)
    longest = max(len(c.ContourData) for c in dataset.ROIContourSequence[0].ContourSequence)
    assert longest > 9000, "of at least 8 bytes each"
    assert np.array_equal(voxels(dataset, 1, source), values == 1)


def test_invalid_headers_are_an_error_of_the_series(tmp_path: Path) -> None:
    source = read_source(series(tmp_path), ANY)
    del source.headers[2].SOPClassUID
    with pytest.raises(InputError) as caught:
        written(source, make_labels(source))
    assert caught.value.code == "dicom-refused"


@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize("kind", KINDS)
def test_it_conforms_to_dicom(tmp_path: Path, kind: str) -> None:
    source, labels = make_case(tmp_path / "ct", kind)
    with (tmp_path / "rs.dcm").open("wb") as file:
        write_structure_set(labels, SCHEMA, source, ORIGIN, file)
    assert_conforms(tmp_path / "rs.dcm", "RTStructureSet")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="plastimatch is not installed")
def test_plastimatch_reads_the_same_voxels(tmp_path: Path) -> None:
    """On a smooth shape in an axial series, which is what it supports."""
    source = read_source(series(tmp_path / "ct", np.zeros((9, 64, 64), np.int16)), ANY)
    z, y, x = np.ogrid[:9, :64, :64]
    far = ((z - 4) / 3.5) ** 2 + ((y - 30) / 20) ** 2 + ((x - 34) / 24) ** 2
    labels = make_labels(source)
    labels.data[0] = labels.data.new_tensor(((far < 1) & (far > 0.2)).astype(np.uint8))
    schema = LabelSchema.from_names({1: "kidney"})
    with (tmp_path / "rs.dcm").open("wb") as file:
        write_structure_set(labels, schema, source, ORIGIN, file)
    save(labels, tmp_path / "truth.mha")
    command: list[str | Path] = ["plastimatch", "convert", "--input", tmp_path / "rs.dcm"]
    command += ["--referenced-ct", tmp_path / "ct", "--output-prefix", tmp_path / "masks"]
    subprocess.run([*command, "--prefix-format", "mha"], check=True, capture_output=True)
    from kidseg.io import read

    options = ReadOptions(values="labels")
    mask = read(tmp_path / "masks" / "kidney.mha", options).volume.data[0].numpy() > 0
    truth = read(tmp_path / "truth.mha", options).volume.data[0].numpy() > 0
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) >= 0.98
