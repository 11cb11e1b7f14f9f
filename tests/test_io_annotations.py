"""Structures of DICOM objects as labels: a round trip in all orientations, and what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from annotated_folders import Roi, annotated, circle, square
from dicom_files import series
from kidseg.errors import InputError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read
from kidseg.io.annotations import annotation_files, read_object_head, sop_class
from kidseg.io.dicom_source import SourceSeries
from kidseg.io.dicomseg import write_dicom_segmentation
from kidseg.io.orientation import canonical
from kidseg.io.rtstruct import write_structure_set
from kidseg.io.structures import Annotation, Part
from labelled_series import KINDS, ORIGIN, SCHEMA, make_case, make_series

LABELS = ReadOptions(values="labels")


def written(kind: str, labels: Volume, source: SourceSeries, path: Path) -> Path:
    with path.open("wb") as file:
        if kind == "rtstruct":
            write_structure_set(labels, SCHEMA, source, ORIGIN, file)
        else:
            is_map = kind == "labelmap"
            write_dicom_segmentation(labels, SCHEMA, source, ORIGIN, file, labelmap=is_map)
    return path


def annotation_of(folder: Path, path: Path, labels: dict[int, int]) -> Annotation:
    """{structure: label} of an object on the only series in a folder."""
    return Annotation(
        folder=folder,
        images=tuple(sorted(folder.rglob("*.dcm"))),
        series="1.2.3",
        parts=tuple(Part(path=path, number=n, label=label) for n, label in labels.items()),
    )


@pytest.mark.parametrize(
    ("orientation", "kind"),
    [
        *((orientation, "rtstruct") for orientation in KINDS),
        *(("oblique", "dicomseg"), ("tilted", "labelmap"), ("multi-frame", "dicomseg")),
        *(("flipped", "labelmap"), ("uneven", "dicomseg")),
    ],
)
def test_a_round_trip_gives_the_same_voxels(tmp_path: Path, orientation: str, kind: str) -> None:
    source, labels = make_case(tmp_path / "ct", orientation)
    path = written(kind, labels, source, tmp_path / "object.dcm")
    numbers = (1, 2, 5) if kind == "labelmap" else (1, 2, 3)
    _, options = make_series(tmp_path / "again", orientation)
    annotation = annotation_of(tmp_path / "ct", path, dict(zip(numbers, (1, 2, 5), strict=True)))
    scan = read(path, replace(options, values="labels", annotation=annotation))
    expected = canonical(labels)
    assert scan.volume.grid.same_as(expected.grid)
    assert np.array_equal(scan.volume.data.numpy(), expected.data.numpy()), "voxel-exact"
    image = read(tmp_path / "ct", options)
    assert scan.volume.grid.same_as(image.volume.grid)
    assert {volume.name for volume in scan.structures} == set(SCHEMA.names.values())


def test_a_structure_is_only_read_as_the_label_it_is_given(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path / "ct", "axial")
    path = written("dicomseg", labels, source, tmp_path / "object.dcm")
    annotation = annotation_of(tmp_path / "ct", path, {2: 7})
    scan = read(path, replace(LABELS, annotation=annotation))
    assert np.array_equal(scan.volume.data.numpy() == 7, canonical(labels).data.numpy() == 2)
    assert set(np.unique(scan.volume.data.numpy())) == {0, 7}


def test_higher_labels_count_where_structures_overlap(tmp_path: Path) -> None:
    inner = square(2, (10, 10), (14, 16))
    path = annotated(
        tmp_path,
        [
            Roi(name="tumour", contours=[inner]),
            Roi(name="kidney", contours=[square(2, (5, 5), (20, 25))]),
        ],
    )
    annotation = annotation_of(tmp_path / "images", path, {1: 2, 2: 1})
    scan = read(path, replace(LABELS, annotation=annotation))
    values = scan.volume.data.numpy()
    assert (values == 2).sum() == 24 and (values == 1).sum() == 15 * 20 - 24
    (overlap,) = [f for f in scan.findings if f.code == "overlapping-structures"]
    assert f"{24 * 2.5 * 0.75 * 0.5 / 1000:.2f} ml" in overlap.cause


def test_drawings_that_share_a_label_and_a_place_are_said(tmp_path: Path) -> None:
    rois = [
        Roi(name="kidney", contours=[square(2, (5, 5), (15, 15))]),
        Roi(name="Kidney again", contours=[square(2, (5, 5), (15, 10))]),
        Roi(name="elsewhere", contours=[square(4, (5, 5), (15, 10))]),
    ]
    path = annotated(tmp_path, rois)
    annotation = annotation_of(tmp_path / "images", path, {1: 1, 2: 1, 3: 1})
    scan = read(path, replace(LABELS, annotation=annotation))
    assert int((scan.volume.data == 1).sum()) == 150
    (said,) = [f for f in scan.findings if f.code == "overlapping-structures"]
    assert "'Kidney again'" in said.cause and "100% of it" in said.cause
    assert f"{50 * 2.5 * 0.75 * 0.5 / 1000:.2f} ml" in said.cause and said.next_step


def test_structures_without_contours_or_voxels_are_said(tmp_path: Path) -> None:
    rois = [Roi(name="kidney", contours=[circle(2)]), Roi(name="planned")]
    contours = annotated(tmp_path, rois)
    source, labels = make_case(tmp_path / "ct", "axial")
    labels.data[labels.data == 5] = 0
    segments = written("dicomseg", labels, source, tmp_path / "object.dcm")
    for path, images, empty in ((contours, "images", 2), (segments, "ct", 3)):
        for number in (1, empty):
            annotation = annotation_of(tmp_path / images, path, {number: 1})
            findings = read(path, replace(LABELS, annotation=annotation)).findings
            assert ("empty-structure" in {f.code for f in findings}) == (number == empty)


def test_segments_of_every_second_slice_are_said(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path / "ct", "axial")
    for first, is_sparse in ((0, True), (3, False)):
        labels.data[:] = 0
        labels.data[0, first::2, 5:9, 5:9] = 1
        labels.data[0, 4, 5:9, 5:9] = 1  # so that there are two neighbours
        labels.data[0, 3:5, 12:15, 5:9] = 2
        path = written("labelmap", labels, source, tmp_path / "object.dcm")
        annotation = annotation_of(tmp_path / "ct", path, {1: 1, 2: 2})
        said = {
            f.code: f.cause for f in read(path, replace(LABELS, annotation=annotation)).findings
        }
        assert ("only one slice in 2" in said.get("sparse-segment", "")) == is_sparse
        assert all("left kidney" in one for one in said.values())


def test_the_stored_volume_is_compared(tmp_path: Path) -> None:
    contours = [circle(k, 6.0) for k in range(1, 5)]
    true_ml = np.pi * 36 * 2.5 * 4 / 1000
    for factor, differs in ((1.05, False), (1.3, True), (0.001, True)):
        path = annotated(
            tmp_path / str(factor),
            [Roi(name="kidney", contours=contours, volume_ml=true_ml * factor)],
        )
        annotation = annotation_of(path.parents[1] / "images", path, {1: 1})
        scan = read(path, replace(LABELS, annotation=annotation))
        found = [f for f in scan.findings if f.code == "volume-differs"]
        assert bool(found) == differs
        (volume,) = scan.structures
        assert volume.voxels_ml == pytest.approx(true_ml, rel=0.02)
        assert volume.stored_ml == pytest.approx(true_ml * factor, rel=1e-4)
        assert volume.as_dict()["difference"] == pytest.approx(1 / factor - 1, rel=0.03, abs=0.03)


def test_a_fault_of_a_structure_is_an_error_that_names_it(tmp_path: Path) -> None:
    rois = [
        Roi(name="kidney", contours=[circle(2)]),
        Roi(name="line", contours=[circle(3)], kind="OPEN_PLANAR"),
    ]
    path = annotated(tmp_path, rois)
    of_kidney = annotation_of(tmp_path / "images", path, {1: 1})
    assert read(path, replace(LABELS, annotation=of_kidney)).volume.data.any()
    both = annotation_of(tmp_path / "images", path, {1: 1, 2: 2})
    with pytest.raises(InputError) as caught:
        read(path, replace(LABELS, annotation=both))
    assert caught.value.code == "open-contours" and "'line'" in caught.value.cause
    assert caught.value.path == str(path)


def test_a_structure_in_another_frame_of_reference_is_an_error(tmp_path: Path) -> None:
    path = annotated(tmp_path, [Roi(name=name, contours=[circle(2)]) for name in ("a", "b")])
    ds = dcmread(path)
    ds.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.9.9"
    ds.save_as(path)
    first = annotation_of(tmp_path / "images", path, {1: 1})
    assert read(path, replace(LABELS, annotation=first)).volume.data.any()
    both = annotation_of(tmp_path / "images", path, {1: 1, 2: 1})
    with pytest.raises(InputError) as caught:
        read(path, replace(LABELS, annotation=both))
    assert caught.value.code == "other-frame-of-reference" and "'b'" in caught.value.cause


def test_objects_are_found_by_content(tmp_path: Path) -> None:
    source, labels = make_case(tmp_path / "ct", "axial")
    seg = written("dicomseg", labels, source, tmp_path / "seg.bin")
    rt = written("rtstruct", labels, source, tmp_path / "ct" / "000")
    ds = dcmread(rt)
    plain = tmp_path / "plain"
    ds.save_as(plain, implicit_vr=True, little_endian=True, enforce_file_format=False)
    del ds.file_meta, ds.preamble
    (tmp_path / "text.dcm").write_text("1.2.840.10008.5.1.4.1.1.481.3")
    assert set(annotation_files(tmp_path)) == {seg, rt, plain}
    assert sop_class(rt) == sop_class(plain) == "1.2.840.10008.5.1.4.1.1.481.3"
    assert sop_class(tmp_path / "text.dcm") == sop_class(tmp_path / "missing") == ""
    assert [read_object_head(file).kind for file in (seg, rt)] == ["SEG", "RTSTRUCT"]
    with pytest.raises(InputError) as caught:
        read_object_head(next((tmp_path / "ct").glob("*.dcm")))
    assert caught.value.code == "not-a-segmentation"


def test_images_of_other_series_in_the_folder_are_not_read(tmp_path: Path) -> None:
    path = annotated(tmp_path, [Roi(name="kidney", contours=[circle(2)])])
    annotation = annotation_of(tmp_path / "images", path, {1: 1})
    series(tmp_path / "images" / "more", uid="1.2.4")
    options = replace(LABELS, annotation=annotation, files=annotation.images)
    assert read(path, options).volume.grid.shape == (6, 32, 40)
    image = read(tmp_path / "images", replace(options, values="ct"))
    assert image.facts["series_uid"] == "1.2.3" and not image.findings
