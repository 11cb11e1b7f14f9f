"""Segmentations of 3D Slicer: segments count as the labels that their names state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kidseg.cases.segments import Segment, labels_of_segments, read_label_file, segments_of
from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema

GRID = Grid.from_spacing((2, 3, 4), (3.0, 1.0, 1.0))
SIDES = LabelSchema.from_names({1: "kidney_left", 2: "kidney_right", 3: "mass", 4: "ureter"})
REGIONS = LabelSchema.from_names({1: "a", 2: "b"}, {"kidney": (1, 2), "tumor": (2,)})


def found(schema: LabelSchema, *names: str, ignore: int | None = None) -> list[int]:
    segments = [Segment(name=name, value=9 - k) for k, name in enumerate(names)]
    labels = labels_of_segments(segments, schema.names, schema.meaning, Path("x"), ignore)
    return [labels[9 - k] for k in range(len(names))]


def test_names_and_what_they_mean() -> None:
    assert found(SIDES, "Left Kidney", "R. kidney", "Wilms tumor", "URETER") == [1, 2, 3, 4]
    assert found(KIDNEY_TUMOUR, "left kidney", "right kidney", "tumor") == [1, 1, 2]
    assert found(REGIONS, "Kidney", "tumour") == [1, 2]
    assert found(KIDNEY_TUMOUR, "Kidney", "Ignore", ignore=7) == [1, 7]


@pytest.mark.parametrize("name", ["kidney", "adrenal", "Segment_1", "kidney and tumour", "ignore"])
def test_names_that_state_no_label_or_several(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}'.*4 ureter") as raised:
        found(SIDES, name)
    assert raised.value.code == "unknown-segment"


def with_lines(path: Path, *lines: str) -> Path:
    data = torch.zeros((1, *GRID.shape), dtype=torch.uint8)
    data[0, 0, 0], data[0, 1, 1, :2] = 2, 1
    save(Volume(data, GRID), path.with_name("plain.nrrd"))
    head, blank, voxels = path.with_name("plain.nrrd").read_bytes().partition(b"\n\n")
    path.write_bytes(b"\n".join([head, *(line.encode() for line in lines)]) + blank + voxels)
    return path


def test_a_file_is_read_by_names_or_by_numbers(tmp_path: Path) -> None:
    lines = [
        *("Segment0_ID:=Segment_1", "Segment0_Name:=Kidney", "Segment0_LabelValue:=2"),
        *("Segment1_Name:=tumor", "Segment1_LabelValue:=1", "Segment1_Layer:=0"),
        *("Segment2_Name:=é", "Segment2_LabelValue:=3", "Segmentation_MasterRepresentation:=x"),
    ]
    path = with_lines(tmp_path / "a.seg.nrrd", *lines)
    assert [(s.name, s.value) for s in segments_of(path)] == [("Kidney", 2), ("tumor", 1), ("é", 3)]
    names, meanings = KIDNEY_TUMOUR.names, KIDNEY_TUMOUR.meaning
    by_name = read_label_file(path, names, meanings)
    assert by_name.is_segmentation and by_name.labels.voxels == {1: 4, 2: 2}
    by_number = read_label_file(path, names, meanings, by_number=True)
    assert not by_number.is_segmentation and by_number.labels.voxels == {1: 2, 2: 4}
    assert torch.equal(by_name.labels.volume.data == 1, by_number.labels.volume.data == 2)
    plain = read_label_file(tmp_path / "plain.nrrd", names, meanings)
    assert not plain.is_segmentation and plain.labels.voxels == {1: 2, 2: 4}
    assert not segments_of(tmp_path / "plain.nrrd")


def test_two_segments_may_be_one_label(tmp_path: Path) -> None:
    lines = ["Segment0_Name:=left kidney", "Segment0_LabelValue:=1"]
    lines += ["Segment1_Name:=right kidney", "Segment1_LabelValue:=2"]
    path = with_lines(tmp_path / "a.seg.nrrd", *lines)
    labels = read_label_file(path, KIDNEY_TUMOUR.names, KIDNEY_TUMOUR.meaning).labels
    assert labels.voxels == {1: 6} and int(labels.volume.data.sum()) == 6


@pytest.mark.parametrize("value", ["0", "256", "-1", "1.5", "two", "9" * 400])
def test_values_that_no_label_can_have(tmp_path: Path, value: str) -> None:
    path = with_lines(tmp_path / "a.nrrd", "Segment0_Name:=kidney", f"Segment0_LabelValue:={value}")
    with pytest.raises(InputError) as raised:
        segments_of(path)
    assert raised.value.code == "bad-segment"
