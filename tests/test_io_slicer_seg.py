"""Segmentations of 3D Slicer: read by our own readers, and, as a slow test, by 3D Slicer itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from kidseg.cases.segments import segments_of
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read
from kidseg.io.mesh import surface_of
from kidseg.io.mesh_files import write_glb, write_obj, write_stl
from kidseg.io.slicer_seg import write_slicer_segmentation
from kidseg.labels import LabelSchema
from test_io_mesh import bounds_lps, oblique

SLICER = os.environ.get("SLICER_PYTHON", "")
SCHEMA = LabelSchema.from_names({1: "left kidney", 2: "Tumör", 7: "Milz \\ x", 9: "cyst"})
LABELS = ReadOptions(values="labels")


def make_labels(grid: Grid) -> Volume:
    values = np.zeros(grid.shape, np.uint8)
    values[1:4, 2:6, 1:5], values[2:4, 4:8, 4:7], values[4:, 1:3, 6:9] = 1, 2, 7
    return Volume(torch.from_numpy(values)[None], grid)


def write(path: Path, labels: Volume, schema: LabelSchema = SCHEMA) -> Path:
    with path.open("wb") as file:
        write_slicer_segmentation(labels, schema, file, "Research use only.\nkidseg")
    return path


@pytest.mark.parametrize("seed", range(3))
def test_voxels_and_names_are_read_again(tmp_path: Path, seed: int) -> None:
    labels = make_labels(oblique((6, 9, 10), (2.0, 0.7, 0.8), seed))
    path = write(tmp_path / "a.seg.nrrd", labels)
    scan = read(path, LABELS)
    assert scan.native.same_as(labels.grid)
    index = np.argwhere(scan.volume.data[0].numpy() == 2).astype(float)
    expected = np.argwhere(labels.data[0].numpy() == 2).astype(float)
    places = sorted(scan.volume.grid.mm(index).round(decimals=3).tolist())
    assert np.allclose(places, sorted(labels.grid.mm(expected).round(decimals=3).tolist()))
    assert {s.value: s.name for s in segments_of(path)} == SCHEMA.names


def test_header_has_colours_terms_extents_and_the_intended_use(tmp_path: Path) -> None:
    labels = make_labels(Grid.from_spacing((6, 9, 10), (2.0, 0.7, 0.8)))
    path = write(tmp_path / "a.seg.nrrd", labels)
    lines = path.read_bytes().split(b"\n\n", 1)[0].decode().splitlines()
    fields = dict(line.split(":=") for line in lines if ":=" in line)
    assert "# Research use only. kidseg" in lines
    assert fields["Segment0_Extent"] == "1 4 2 5 1 3" and fields["Segment3_Extent"].startswith(
        "0 -1"
    )
    assert "SCT^64033007^Kidney~SCT^7771000^Left~" in fields["Segment0_Tags"]
    assert "SCT^108369006^Neoplasm~^^~" in fields["Segment1_Tags"]
    assert fields["Segment2_Name"] == "Milz \\\\ x", "a backslash is escaped"
    colour = [float(part) for part in fields["Segment1_Color"].split()]
    assert np.allclose(colour, np.array(SCHEMA.labels[1].rgb) / 255, atol=1e-5)


def test_the_same_labels_give_the_same_bytes(tmp_path: Path) -> None:
    labels = make_labels(Grid.from_spacing((6, 9, 10), (2.0, 0.7, 0.8)))
    one, other = (write(tmp_path / f"{k}.seg.nrrd", labels) for k in range(2))
    assert one.read_bytes() == other.read_bytes()


READER = """
import json, sys
import numpy as np, slicer, vtk
from vtk.util.numpy_support import vtk_to_numpy
scene, found = slicer.vtkMRMLScene(), {"segments": [], "models": []}
def load(kind, path):
    node = scene.AddNewNodeByClass(f"vtkMRML{kind}Node")
    storage = scene.AddNewNodeByClass(f"vtkMRML{kind}StorageNode")
    storage.SetFileName(path)
    assert storage.ReadData(node)
    return node
node = load("Segmentation", sys.argv[1])
segmentation, terms = node.GetSegmentation(), slicer.vtkSlicerTerminologiesModuleLogic()
for k in range(segmentation.GetNumberOfSegments()):
    segment, matrix = segmentation.GetNthSegment(k), vtk.vtkMatrix4x4()
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(k), image)
    image.GetImageToWorldMatrix(matrix)
    scalars, sizes = image.GetPointData().GetScalars(), image.GetDimensions()
    values = vtk_to_numpy(scalars).reshape(sizes[::-1]) if scalars else np.zeros((1, 1, 1))
    index = np.argwhere(values)[:, ::-1] + np.array(image.GetExtent()[::2])
    matrix = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
    tag, entry = vtk.reference(""), slicer.vtkSlicerTerminologyEntry()
    segment.GetTag("TerminologyEntry", tag)
    assert terms.DeserializeTerminologyEntry(str(tag), entry)
    parts = [entry.GetCategoryObject(), entry.GetTypeObject()]
    parts += [entry.GetTypeModifierObject(), entry.GetRegionObject()]
    found["segments"].append({
        "name": segment.GetName(), "colour": segment.GetColor(), "value": segment.GetLabelValue(),
        "places": (index @ matrix[:3, :3].T + matrix[:3, 3]).tolist(),
        "codes": [part.GetCodeValue() if part else None for part in parts],
    })
reader = vtk.vtkGLTFReader()
reader.SetFileName(sys.argv[2])
reader.Update()
parts, places = reader.GetOutput().NewIterator(), []
while not parts.IsDoneWithTraversal():
    places.append(parts.GetCurrentDataObject().GetBounds())
    parts.GoToNextItem()
found["glb"] = places
for path in sys.argv[3:]:
    bounds = [0.0] * 6
    load("Model", path).GetRASBounds(bounds)
    found["models"].append(bounds)
print("found:" + json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not SLICER, reason="SLICER_PYTHON is not a Python with slicer-core")
@pytest.mark.parametrize("seed", range(2))
def test_3d_slicer_reads_names_colours_terms_and_places(tmp_path: Path, seed: int) -> None:
    labels = make_labels(oblique((6, 9, 10), (2.0, 0.7, 0.8), seed))
    surface = surface_of(labels.data[0].numpy() == 1, labels.grid)
    assert surface is not None
    paths = [write(tmp_path / "a.seg.nrrd", labels), tmp_path / "a.stl", tmp_path / "a.obj"]
    with paths[1].open("wb") as file:
        write_stl(surface, file)
    with paths[2].open("wb") as file:
        write_obj([(SCHEMA.labels[0], surface)], file, "notes")
    with (tmp_path / "a.glb").open("wb") as file:
        write_glb([(SCHEMA.labels[0], surface)], file, "notes")
    paths.insert(1, tmp_path / "a.glb")
    run = subprocess.run([SLICER, "-c", READER, *paths], capture_output=True, text=True)
    found = json.loads(run.stdout.partition("found:")[2] or run.stderr)
    for segment, label in zip(found["segments"], SCHEMA.labels, strict=True):
        assert (segment["name"], segment["value"]) == (label.name, label.id)
        assert np.allclose(segment["colour"], np.array(label.rgb) / 255, atol=1e-5)
        index = np.argwhere(labels.data[0].numpy() == label.id).astype(float)
        expected = sorted(labels.grid.mm(index).round(decimals=2).tolist())
        places = sorted(np.round(segment["places"], 2).tolist())
        assert len(places) == len(expected)
        assert not places or np.allclose(places, expected, atol=0.02)
    kidney, tumour, *_ = (segment["codes"] for segment in found["segments"])
    assert kidney == ["91723000", "64033007", "7771000", None]
    assert tumour == ["49755003", "108369006", None, "64033007"]
    lps = bounds_lps(surface)
    (bounds,) = found["glb"]
    assert np.allclose(np.reshape(bounds, (3, 2)).T, lps, atol=1e-3)
    ras = [-lps[1, 0], -lps[0, 0], -lps[1, 1], -lps[0, 1], lps[0, 2], lps[1, 2]]
    for bounds in found["models"]:
        assert np.allclose(bounds, ras, atol=1e-3)
