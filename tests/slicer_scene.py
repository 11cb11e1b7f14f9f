"""Runs in a Python with slicer-core: the extension of 3D Slicer on real nodes of its scene.

    python slicer_scene.py COMMAND FOLDER ...

It prints "found:" and a JSON object. `tests/test_slicer_scene.py` starts it and checks that.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

sys.path.insert(0, str(Path(__file__).parents[1] / "slicer" / "KidSeg" / "KidSeg"))

from KidSegLib.back_ends import Settings, back_end_of
from KidSegLib.job import Found
from KidSegLib.problems import KidSegError
from KidSegLib.run import Run, Wanted, remove_stale, segment
from KidSegLib.segmentations import fill_segmentation, read_segmentation
from KidSegLib.volumes import as_array, as_matrix, check_volume, grid_of, write_volume

SHAPE = (6, 7, 9)
SPACING = (0.7123456789, 0.8, 2.5)
scene = slicer.vtkMRMLScene()
slicer.mrmlScene = scene
slicer.vtkSlicerSegmentationsModuleLogic().SetMRMLScene(scene)  # registers the conversions


def make_volume(name: str, directions: np.ndarray, kind: str = "ScalarVolume") -> Any:
    """A volume with random values; `directions` are unit columns in RAS."""
    random = np.random.default_rng(len(name))
    values = random.integers(-1000, 1000, SHAPE).astype(np.int16)
    matrix = np.eye(4)
    matrix[:3, :3] = directions * SPACING
    matrix[:3, 3] = 12.3456789, -98.7, 1234.5
    node = slicer.util.addVolumeFromArray(values, matrix, name, f"vtkMRML{kind}Node")
    assert np.array_equal(slicer.util.arrayFromVolume(node), values)
    return node


def turned(seed: int, *, mirrored: bool) -> np.ndarray:
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    if (np.linalg.det(axes) < 0) != mirrored:
        axes[:, 0] *= -1
    return axes


def make_transform(matrix: np.ndarray, parent: Any = None) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetMatrixTransformToParent(as_matrix(matrix))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def rigid(seed: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = turned(seed, mirrored=False)
    matrix[:3, 3] = np.random.default_rng(seed).uniform(-50, 50, 3)
    return matrix


def volumes() -> Iterator[Any]:
    """One of each kind of place in the patient."""
    axial = np.diag([-1.0, -1.0, 1.0])  # as most CT: columns to the left, rows to posterior
    yield make_volume("axial", axial)
    for axis in range(3):
        flip = np.ones(3)
        flip[axis] = -1
        yield make_volume(f"flipped {axis}", axial * flip)
    yield make_volume("coronal", axial[:, [0, 2, 1]])
    yield make_volume("sagittal", axial[:, [1, 2, 0]])
    for seed in range(2):
        yield make_volume(f"oblique {seed}", turned(seed, mirrored=False))
        yield make_volume(f"oblique mirrored {seed}", turned(seed, mirrored=True))
    moved = make_volume("moved", axial)
    moved.SetAndObserveTransformNodeID(make_transform(rigid(5)).GetID())
    yield moved
    twice = make_volume("moved twice", turned(7, mirrored=False))
    inner = make_transform(rigid(8), make_transform(np.diag([1.1, 1.1, 1.1, 1.0]) @ rigid(9)))
    twice.SetAndObserveTransformNodeID(inner.GetID())
    yield twice
    yield crop(make_volume("whole", turned(3, mirrored=False)))


def crop(volume: Any) -> Any:
    """The middle of it, cut out by the module Crop Volume."""
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    to_ras = as_array(matrix)
    directions = to_ras[:3, :3] / np.linalg.norm(to_ras[:3, :3], axis=0)
    placed = np.eye(4)
    placed[:3, :3] = directions
    placed[:3, 3] = (to_ras @ [4, 3, 2.5, 1])[:3]
    roi.SetAndObserveObjectToNodeMatrix(as_matrix(placed))
    roi.SetSize(4 * SPACING[0], 3 * SPACING[1], 3 * SPACING[2])
    found = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "cropped")
    slicer.vtkSlicerCropVolumeLogic().CropVoxelBased(roi, volume, found)
    assert slicer.util.arrayFromVolume(found).shape < slicer.util.arrayFromVolume(volume).shape
    return found


def export(folder: Path) -> dict[str, Any]:
    """Write each volume, and tell where its voxels are and what they are."""
    found = {}
    for volume in volumes():
        name, grid = volume.GetName(), grid_of(volume)
        for ending in ("nrrd", "nii.gz"):
            write_volume(volume, grid, folder / f"{name}.{ending}", compress=ending == "nii.gz")
        values = slicer.util.arrayFromVolume(volume)
        found[name] = {"world": grid.world.tolist(), "values": values.tolist()}
    return found


def back(folder: Path) -> dict[str, Any]:
    """Read labels of each volume, and tell in which voxels of the volume they are."""
    found = {}
    for volume in volumes():
        grid = grid_of(volume)
        segmentation = read_segmentation(folder / f"{volume.GetName()}.seg.nrrd", grid)
        node = fill_segmentation(segmentation, volume, {})
        found[volume.GetName()] = facts_of(node, volume)
    return found


def facts_of(node: Any, volume: Any) -> dict[str, Any]:
    """What is known of a segmentation node."""
    segmentation, terms = node.GetSegmentation(), slicer.vtkSlicerTerminologiesModuleLogic()
    facts: dict[str, Any] = {"transform": node.GetTransformNodeID() == volume.GetTransformNodeID()}
    for number in range(segmentation.GetNumberOfSegments()):
        id_, segment_ = segmentation.GetNthSegmentID(number), segmentation.GetNthSegment(number)
        tag, entry = vtk.reference(""), slicer.vtkSlicerTerminologyEntry()
        segment_.GetTag("TerminologyEntry", tag)
        assert terms.DeserializeTerminologyEntry(str(tag), entry)
        inside = on_volume(node, id_, volume)
        surface = segment_.GetRepresentation("Closed surface")
        edges = vtk.vtkFeatureEdges()
        edges.SetInputData(surface)
        edges.FeatureEdgesOff()
        edges.ManifoldEdgesOff()
        edges.NonManifoldEdgesOff()
        edges.Update()
        facts[segment_.GetName()] = {
            "voxels": np.argwhere(inside).tolist(),
            "colour": segment_.GetColor(),
            "code": entry.GetTypeObject().GetCodeValue(),
            "faces": surface.GetNumberOfPolys(),
            "open edges": edges.GetOutput().GetNumberOfLines(),
            "centre": surface.GetCenter() if surface.GetNumberOfPoints() else None,
        }
    return facts


def on_volume(node: Any, segment_id: str, volume: Any) -> np.ndarray:
    """A segment on the voxels of the volume, by 3D Slicer's own conversion."""
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "temporary")
    ids = vtk.vtkStringArray()
    ids.InsertNextValue(segment_id)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.ExportSegmentsToLabelmapNode(node, ids, labels, volume)
    inside = slicer.util.arrayFromVolume(labels) != 0
    scene.RemoveNode(labels)
    return inside


def code_of(act: Callable[[], object]) -> list[str]:
    """The code and the words of its refusal."""
    try:
        act()
    except KidSegError as error:
        return [error.code, str(error)]
    return ["", ""]


class Failing:
    """A back end that fails after it was started."""

    compress = False

    def check(self, job: Any) -> None:
        pass

    def segment(self, job: Any, watch: Any) -> Any:
        raise ZeroDivisionError("by chance")


class WrongPlace(Failing):
    """A back end whose labels are of another scan."""

    def __init__(self, labels: Path) -> None:
        self.labels = labels

    def segment(self, job: Any, watch: Any) -> Found:
        return Found(self.labels, {})


def refusals(folder: Path) -> dict[str, Any]:
    """The answers to what cannot be segmented."""
    axial = np.diag([-1.0, -1.0, 1.0])
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    labels = make_volume("labels", axial, "LabelMapVolume")
    colours = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colours")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_SHORT, 3)
    colours.SetAndObserveImageData(image)
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    pet = make_volume("a scan", axial)
    tree.SetItemAttribute(tree.CreateItem(tree.GetSceneItemID(), pet), "DICOM.Modality", "PT")
    bent = make_volume("bent", axial)
    grid_transform = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    grid_transform.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    bent.SetAndObserveTransformNodeID(grid_transform.GetID())
    sheared, shear = make_volume("sheared", axial), np.eye(4)
    shear[0, 1] = 0.1
    sheared.SetAndObserveTransformNodeID(make_transform(shear).GetID())
    volume = make_volume("sound", axial)
    write_labels_elsewhere = folder / "elsewhere.seg.nrrd"
    before = scene.GetNumberOfNodes()
    found = {
        "none": code_of(lambda: check_volume(None)),
        "empty": code_of(lambda: Run(empty, Failing())),
        "labels": code_of(lambda: Run(labels, Failing())),
        "colours": code_of(lambda: Run(colours, Failing())),
        "pet": code_of(lambda: Run(pet, Failing())),
        "bent": code_of(lambda: Run(bent, Failing())),
        "sheared": code_of(lambda: Run(sheared, Failing())),
        "format": code_of(lambda: Run(volume, Failing(), Wanted(formats=("dicomseg",)))),
        "folder": code_of(lambda: Run(volume, Failing(), Wanted(formats=("stl",)))),
        "tag": code_of(lambda: Run(volume, back_end_of(Settings("container", image="k:latest")))),
        "failing": code_of(lambda: segment(volume, Failing())),
        "elsewhere": code_of(lambda: segment(volume, WrongPlace(write_labels_elsewhere))),
        "notes": check_volume(make_volume("T1 of the abdomen", axial)),
        "no notes": check_volume(make_volume("Tumour US-Army dust", axial * [1, 1, -1])),
    }
    found["new nodes"] = scene.GetNumberOfNodes() - before - 2 * 2  # volumes with displays
    found["left"] = len(left_behind())
    (stale := Path(tempfile.mkdtemp(prefix="kidseg-slicer-"))).joinpath("in").mkdir()
    os.utime(stale, (0, 0))
    remove_stale()
    found["stale"] = stale.exists()
    return found


def left_behind() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("kidseg-slicer-*"))


def load(path: Path) -> Any:
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", path.name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(volume)
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    patient = tree.CreateSubjectItem(tree.GetSceneItemID(), "patient")
    tree.CreateItem(tree.CreateStudyItem(patient, "study"), volume)
    return volume


def whole(folder: Path, scan: str, settings: str) -> dict[str, Any]:
    """Segment a scan with a real back end, and again into the same node."""
    volume, said = load(Path(scan)), list[str]()
    back_end = back_end_of(Settings(**json.loads(settings)))
    wanted = Wanted(cpu=True, formats=("stl", "seg.nrrd"), folder=folder)
    outcome = segment(volume, back_end, wanted, say=said.append)
    facts = facts_of(outcome.segmentation, volume)
    run, progress = Run(volume, back_end, Wanted(cpu=True), outcome.segmentation), [0.0]
    while run.is_running:
        run.poll(0.1)
        progress.append(run.watch.done)
    again = run.finish()
    assert progress == sorted(progress)
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    nodes = (outcome.segmentation, outcome.measures, outcome.criteria)
    items = [tree.GetItemByDataNode(node) for node in nodes if node is not None]
    return {
        "facts": facts,
        "said": said,
        "done": run.watch.done,
        "half": min(progress, key=lambda done: abs(done - 0.5)),
        "notes": outcome.notes,
        "files": [path.name for path in outcome.files],
        "places": [tree.GetItemName(tree.GetItemParent(item)) for item in items],
        "table": table_of(outcome.measures),
        "criteria": None if outcome.criteria is None else table_of(outcome.criteria),
        "description": outcome.segmentation.GetDescription(),
        "same node": again.segmentation is outcome.segmentation,
        "segmentations": scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"),
        "tables": scene.GetNumberOfNodesByClass("vtkMRMLTableNode"),
        "segments": again.segmentation.GetSegmentation().GetNumberOfSegments(),
        "left": len(left_behind()),
    }


def table_of(node: Any) -> list[list[Any]]:
    table = node.GetTable()
    rows, columns = range(table.GetNumberOfRows()), range(table.GetNumberOfColumns())
    names = [table.GetColumnName(column) for column in columns]
    return [names, *([table.GetColumn(c).GetValue(r) for c in columns] for r in rows)]


def cancel(folder: Path, scan: str, settings: str) -> dict[str, Any]:
    """Cancel while kidseg works, and end 3D Slicer while it works."""
    volume = load(Path(scan))
    before = scene.GetNumberOfNodes()
    found: dict[str, Any] = {}
    for way in ("cancel", "close"):
        run = Run(volume, back_end_of(Settings(**json.loads(settings))), Wanted(cpu=True))
        begin = time.monotonic()
        while not children() and time.monotonic() - begin < 20:
            run.poll()
        time.sleep(1.0)
        working = children()
        begin = time.monotonic()
        if way == "cancel":
            run.cancel()
            while run.is_running:
                run.poll()
            found[way] = code_of(run.finish)
        else:
            run.close()
        found[f"{way} took_s"] = time.monotonic() - begin
        found[f"{way} worked"] = len(working)
        found[f"{way} running"] = len(children())
    found |= {"new nodes": scene.GetNumberOfNodes() - before, "left": len(left_behind())}
    return found


def follow(folder: Path, scan: str, lines: str) -> dict[str, Any]:
    """Load a scan, run lines of the Python console, correct by hand, save `corrected.seg.nrrd`."""
    volume = load(Path(scan))
    console: dict[str, Any] = {"slicer": slicer}
    exec(Path(lines).read_text(), console)
    node = console["outcome"].segmentation
    id_ = node.GetSegmentation().GetSegmentIdBySegmentName("kidney")
    before = on_volume(node, id_, volume)
    after = before.copy()
    after[np.flatnonzero(before.any((1, 2)))[0]] = False  # the lowest slice is erased
    paint(node, id_, after, volume)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(folder / "corrected.seg.nrrd"))
    assert storage.WriteData(node)
    assert np.array_equal(on_volume(node, id_, volume), after)
    return {"before": int(before.sum()), "after": int(after.sum()), "left": len(left_behind())}


def paint(node: Any, segment_id: str, inside: np.ndarray, volume: Any) -> None:
    """Let a segment have these voxels of the volume, as the effects of Segment Editor do."""
    logic, matrix = slicer.vtkSlicerSegmentationsModuleLogic, vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    labels = slicer.util.addVolumeFromArray(
        inside.astype(np.uint8), as_array(matrix), "painted", "vtkMRMLLabelMapVolumeNode"
    )
    image = logic.CreateOrientedImageDataFromVolumeNode(labels)
    assert logic.SetBinaryLabelmapToSegment(image, node, segment_id, logic.MODE_REPLACE)
    scene.RemoveNode(labels)


def children() -> list[str]:
    """The processes below this one."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,stat"], capture_output=True, text=True).stdout
    rows = [line.split() for line in lines.splitlines()[1:]]
    below, grown = {str(os.getpid())}, True
    while grown:
        more = {pid for pid, parent, state in rows if parent in below and "Z" not in state}
        grown = not more <= below
        below |= more
    ps = [pid for pid in below if Path(f"/proc/{pid}").exists()]
    return [pid for pid in ps if pid != str(os.getpid())]


def main(commands: Sequence[Callable[..., dict[str, Any]]], words: Sequence[str]) -> None:
    """Run a command by its name, with a folder and more words."""
    vtk.vtkObject.GlobalWarningDisplayOff()
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # so that kidseg ends too
    signal.alarm(1500)
    command = next(each for each in commands if each.__name__ == words[0])
    sys.stdout.write("found:" + json.dumps(command(Path(words[1]), *words[2:])))


if __name__ == "__main__":
    main((export, back, refusals, whole, cancel, follow), sys.argv[1:])
