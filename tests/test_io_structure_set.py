"""RT Structure Sets: what is read, and what is refused, whatever is wrong with the file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian

from annotated_folders import Roi, annotated, circle, headers_of, square, structure_set
from dicom_files import save, series
from kidseg.contours import contour_volumes
from kidseg.errors import InputError, KidsegError
from kidseg.io.structure_set import read_structure_set

ROIS = [
    Roi(name="Kidney_R", contours=[circle(1), circle(2)], volume_ml=3.5, tracking_id="k1"),
    Roi(name="GTV 2", contours=[square(3, (4, 5), (9, 11))], code=("108369006", "SCT")),
    Roi(name="empty"),
]


def saved(ds: Dataset, folder: Path) -> Path:
    return save(ds, folder / "rs.dcm")


def refusal(ds: Dataset, folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_structure_set(saved(ds, folder))
    assert caught.value.path and caught.value.path.endswith("rs.dcm") and caught.value.next_step
    return caught.value


def test_what_it_says(tmp_path: Path) -> None:
    images = headers_of(series(tmp_path / "ct"))
    ds = structure_set(ROIS, images)
    ds.ClinicalTrialTimePointDescription = "Post-chemotherapy #1"
    found = read_structure_set(saved(ds, tmp_path))
    head, (kidney, tumour, empty) = found.head, found.head.structures
    assert (kidney.name, kidney.side, kidney.stored_ml, kidney.tracking_id) == (
        *("Kidney_R", "right", 3.5, "k1"),
    )
    assert [code.value for code in tumour.codes] == ["108369006"] and tumour.counted == 2
    assert empty.number == 3 and not found.contours.get(3)
    assert head.time_point == "Post-chemotherapy #1" and head.label == "SET"
    assert head.referenced_series == {"1.2.3"} and head.frames_of_reference == {"1.2.9"}
    assert len(head.drawn_on) == 3 and len(head.referenced_images) == 6
    points = found.contours[1][1].points_mm
    assert np.abs(points - circle(2)).max() < 1e-4


def test_the_same_from_every_transfer_syntax(tmp_path: Path) -> None:
    ds = structure_set(ROIS)
    explicit = read_structure_set(saved(ds, tmp_path))
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    again = dcmread(saved(ds, tmp_path / "b"))
    implicit = read_structure_set(saved(again, tmp_path / "c"))
    for number in (1, 2):
        for one, other in zip(explicit.contours[number], implicit.contours[number], strict=True):
            assert np.array_equal(one.points_mm, other.points_mm)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("1\\2\\nan\\3\\4\\5\\6\\7\\8", "not finite"),
        ("1\\2\\inf\\3\\4\\5\\6\\7\\8", "not finite"),
        ("1\\2\\1e9\\3\\4\\5\\6\\7\\8", "over 100 m"),
        ("1\\2\\x\\3\\4\\5\\6\\7\\8", "not a number"),
        ("1\\2\\\\3\\4\\5\\6\\7\\8", "not a number"),
        ("1\\2\\" + "9" * 90, "not a number"),
        ("1\\2\\3\\4", "not three for each point"),
    ],
)
def test_coordinates_that_cannot_be_used(tmp_path: Path, data: str, said: str) -> None:
    ds = structure_set([Roi(name="kidney", contours=[circle(0)])])
    path = saved(ds, tmp_path)
    good = "\\".join(f"{v:.4f}" for v in circle(0).ravel())
    content = path.read_bytes()
    assert content.count(good.encode()) == 1
    bad = data.ljust(len(good)).encode()  # same length: the elements around stay whole
    path.write_bytes(content.replace(good.encode(), bad))
    (contour,) = read_structure_set(path).contours[1]
    assert said in contour.fault and not len(contour.points_mm)


def test_decimal_commas_are_read_as_points(tmp_path: Path) -> None:
    ds = structure_set([Roi(name="kidney", contours=[circle(0), circle(1)], volume_ml=31.25)])
    path = saved(ds, tmp_path)
    content = path.read_bytes()
    good = "\\".join(f"{v:.4f}" for v in circle(0).ravel()).encode()
    changed = content.replace(good, good.replace(b".", b",")).replace(b"31.25", b"31,25")
    path.write_bytes(changed)
    first, second = read_structure_set(path).contours[1]
    assert np.abs(first.points_mm - circle(0)).max() < 1e-4
    assert not second.comma and "," in first.comma
    (volume,) = contour_volumes(path)
    assert volume.structure.stored_ml == 31.25 and volume.volume_ml is not None
    said = {finding.code: finding.cause for finding in volume.findings}
    assert "1 of 2 contours" in said["decimal-comma"] and first.comma in said["decimal-comma"]


def test_a_wrong_number_of_points_is_noticed(tmp_path: Path) -> None:
    ds = structure_set([Roi(name="kidney", contours=[circle(0)])])
    ds.ROIContourSequence[0].ContourSequence[0].NumberOfContourPoints = 2**31 - 1
    (contour,) = read_structure_set(saved(ds, tmp_path)).contours[1]
    assert "states '2147483647' points, but has 80" in contour.fault


def test_contours_without_data_or_type(tmp_path: Path) -> None:
    ds = structure_set([Roi(name="kidney", contours=[circle(0), circle(1)])])
    first, second = ds.ROIContourSequence[0].ContourSequence
    del first.ContourData, second.ContourGeometricType
    faulty, untyped = read_structure_set(saved(ds, tmp_path)).contours[1]
    assert "no Contour Data" in faulty.fault and untyped.kind == "without type"


def test_structures_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    twice = structure_set(ROIS)
    twice.StructureSetROISequence[1].ROINumber = 1
    assert refusal(twice, tmp_path).code == "bad-structure-set"
    orphan = structure_set(ROIS)
    orphan.ROIContourSequence[1].ReferencedROINumber = 77
    assert "'77'" in str(refusal(orphan, tmp_path))
    unnumbered = structure_set(ROIS)
    del unnumbered.StructureSetROISequence[0].ROINumber
    assert refusal(unnumbered, tmp_path).code == "bad-structure-set"


def test_missing_sequences(tmp_path: Path) -> None:
    for name in ("StructureSetROISequence",):
        ds = structure_set(ROIS)
        delattr(ds, name)
        assert refusal(ds, tmp_path).code == "bad-structure-set"
    ds = structure_set(ROIS)
    for name in ("ROIContourSequence", "RTROIObservationsSequence"):
        delattr(ds, name)
    del ds.ReferencedFrameOfReferenceSequence
    found = read_structure_set(saved(ds, tmp_path))
    assert not found.contours and not found.head.referenced_images


def test_another_object_is_not_one(tmp_path: Path) -> None:
    (file, *_) = sorted(series(tmp_path / "ct").iterdir())
    with pytest.raises(InputError) as caught:
        read_structure_set(file)
    assert caught.value.code == "not-a-structure-set"
    text = tmp_path / "rs.txt"
    text.write_text("no DICOM")
    with pytest.raises(InputError) as caught:
        read_structure_set(text)
    assert caught.value.code == "bad-dicom"
    with pytest.raises(InputError) as caught:
        read_structure_set(tmp_path / "missing.dcm")
    assert caught.value.code == "not-found"


def test_truncated_and_mutated_files_give_only_errors_of_kidseg(tmp_path: Path) -> None:
    path = annotated(tmp_path, ROIS)
    content = path.read_bytes()
    generator = random.Random(3)
    refused = []
    for _ in range(70):
        data = bytearray(content)
        if generator.random() < 0.3:
            del data[generator.randrange(len(data)) :]
        for _ in range(generator.randint(0, 6)):
            if data:
                data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(bytes(data))
        try:
            read_structure_set(path)
        except KidsegError as error:
            refused.append(error)
    assert len(refused) > 10 and all(str(path) in str(e) and e.code for e in refused)


def test_sequences_nested_without_end_are_an_error(tmp_path: Path) -> None:
    ds = structure_set(ROIS)
    path = saved(ds, tmp_path)
    opened = b"\x06\x30\x39\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(path.read_bytes() + opened * 3000)
    with pytest.raises(KidsegError) as caught:
        read_structure_set(path)
    assert caught.value.path == str(path)
