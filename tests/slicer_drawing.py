"""Runs in a Python with slicer-core, as slicer_scene.py: segmentations drawn in a few slices.

    python slicer_drawing.py COMMAND FOLDER ...

`tests/test_slicer_drawn.py` starts it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

sys.path.insert(0, str(Path(__file__).parents[1] / "slicer" / "KidSeg" / "KidSeg"))

from KidSegLib.back_ends import Settings, back_end_of
from KidSegLib.drawn import drawn_on, write_drawn
from KidSegLib.run import Run, Wanted, segment
from KidSegLib.segmentations import fill_segmentation
from KidSegLib.volumes import grid_of
from slicer_scene import (
    SPACING,
    Failing,
    WrongPlace,
    code_of,
    facts_of,
    left_behind,
    load,
    main,
    make_transform,
    make_volume,
    on_volume,
    paint,
    scene,
    turned,
    volumes,
)

NAMES = ("Left kidney", "Tumour")
AXIAL = np.diag([-1.0, -1.0, 1.0])


def draw(volume: Any, labels: np.ndarray, names: Sequence[str] = NAMES) -> Any:
    """A segmentation drawn on a volume, as Segment Editor makes it; `labels` are 1, 2, ..."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "My drawing")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    for number, name in enumerate(names):
        node.GetSegmentation().AddEmptySegment(f"id_{number}", name)
        if (labels == number + 1).any():
            paint(node, f"id_{number}", labels == number + 1, volume)
    return node


def some_slices(volume: Any) -> np.ndarray:
    """Labels in two slices: where values are high."""
    values = slicer.util.arrayFromVolume(volume)
    labels = np.select([values > 600, values > 200], [2, 1], 0)
    labels[[0, 2, 3, 5]] = 0
    return labels


def places(folder: Path) -> dict[str, Any]:
    """Write drawn slices of a volume of each kind of place in the patient."""
    found = {}
    for volume in volumes():
        if slicer.util.arrayFromVolume(volume).shape[0] < 5:
            continue  # cropped
        labels, name = some_slices(volume), volume.GetName()
        node = draw(volume, labels)
        write_drawn(drawn_on(node, grid_of(volume)), folder / f"{name}.seg.nrrd")
        for number, name_ in enumerate(NAMES):
            assert np.array_equal(on_volume(node, f"id_{number}", volume), labels == number + 1), (
                name_
            )
        found[name] = labels.tolist()
    return found


def refusals(folder: Path) -> dict[str, Any]:
    """The answers to segmentations that cannot be completed."""
    volume = make_volume("CT", AXIAL)
    labels = some_slices(volume)
    moved, coarse = make_volume("CT", AXIAL), make_volume("CT", AXIAL)
    left, behind, below = volume.GetOrigin()
    moved.SetOrigin(left + 0.35, behind, below)
    coarse.SetSpacing(0.8, 0.8, SPACING[2])
    lower = make_volume("CT", AXIAL)
    lower.SetOrigin(left, behind, below - 2 * SPACING[2])
    around = make_volume("CT", turned(3, mirrored=False))
    bent = draw(volume, labels)
    bending = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    bending.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    bent.SetAndObserveTransformNodeID(bending.GetID())
    shift = np.eye(4)
    shift[2, 3] = 2 * SPACING[2]
    shifted = draw(lower, labels)  # by its transform it is where the scan is, two slices lower
    shifted.SetAndObserveTransformNodeID(make_transform(shift).GetID())
    surface, sphere = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S"), vtk.vtkSphereSource()
    sphere.Update()
    surface.GetSegmentation().SetSourceRepresentationName("Closed surface")
    surface.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "kidney", [1, 0, 0])
    overlapping = draw(volume, labels)
    paint(overlapping, "id_1", labels > 0, volume)
    hidden = draw(volume, labels, (*NAMES, "Empty"))
    hidden.GetDisplayNode().SetSegmentVisibility("id_1", False)
    corrected = fill_segmentation(draw(volume, labels).GetSegmentation(), volume, {})
    paint(corrected, "id_0", labels == 1, volume)
    nodes = {
        "result": corrected,
        "no segments": draw(volume, labels, ()),
        "empty": draw(volume, 0 * labels),
        "moved": draw(moved, labels),
        "coarse": draw(coarse, labels),
        "around": draw(around, labels),
        "beyond": draw(lower, np.roll(labels, -1, 0)),
        "bent": bent,
        "surface": surface,
        "overlapping": overlapping,
        "hidden": hidden,
        "shifted": shifted,
    }
    before = scene.GetNumberOfNodes()
    found: dict[str, Any] = {
        name: code_of(lambda node=node: segment(volume, Failing(), Wanted(drawn=node)))
        for name, node in nodes.items()
    }
    run = Run(volume, Failing(), Wanted(drawn=hidden))
    found["notes"] = run.notes
    run.close()
    server = back_end_of(Settings("server", address="https://kidseg.example"))
    found["server"] = code_of(lambda: Run(volume, server, Wanted(drawn=hidden)))
    found["new nodes"] = scene.GetNumberOfNodes() - before
    found["left"] = len(left_behind())
    return found


def layers(folder: Path) -> dict[str, Any]:
    """Segments in layers of their own that do not overlap are written in one."""
    volume = make_volume("axial", AXIAL)
    labels = some_slices(volume)
    node = draw(volume, labels, (*NAMES, "never used"))
    segmentation = node.GetSegmentation()
    paint(node, "id_1", labels > 0, volume)  # they overlap
    paint(node, "id_1", labels == 2, volume)
    count = segmentation.GetNumberOfLayers("Binary labelmap")
    write_drawn(drawn_on(node, grid_of(volume)), folder / "axial.seg.nrrd")
    return {
        "before": count,
        "after": segmentation.GetNumberOfLayers("Binary labelmap"),
        "axial": labels.tolist(),
    }


def whole(folder: Path, scan: str, truth: str, settings: str) -> dict[str, Any]:
    """Complete every fifth slice of a scan, into a new node, and into that of the drawing."""
    volume, said = load(Path(scan)), list[str]()
    labels = slicer.util.arrayFromVolume(load(Path(truth))).astype(int)
    labels[[k for k in range(len(labels)) if k % 5 != 2]] = 0
    back_end = back_end_of(Settings(**json.loads(settings)))
    unnamed = draw(volume, labels, ("Segment_1", "Tumour"))
    found: dict[str, Any] = {
        "unnamed": code_of(lambda: segment(volume, back_end, Wanted(drawn=unnamed)))
    }
    drawn = draw(volume, labels)
    run = Run(volume, back_end, Wanted(cpu=True, drawn=drawn))
    while run.is_running and not 0 < run.watch.done < 0.6:
        run.poll()
    run.cancel()
    while run.is_running:
        run.poll()
    found |= {"cancelled at": run.watch.done, "cancelled": code_of(run.finish)[0]}
    wanted = Wanted(cpu=True, formats=("seg.nrrd",), folder=folder, drawn=drawn)
    run, progress = Run(volume, back_end, wanted), [0.0]
    while run.is_running:
        said += run.poll(0.1)
        progress.append(run.watch.done)
    outcome = run.finish()
    assert progress == sorted(progress)
    for number in range(2):
        kept = on_volume(drawn, f"id_{number}", volume)
        assert np.array_equal(kept, labels == number + 1), "the drawing is as it was"
    facts = facts_of(outcome.segmentation, volume)
    again = segment(volume, WrongPlace(outcome.files[0]), Wanted(drawn=drawn), drawn)
    slices = np.flatnonzero(labels.any((1, 2)))
    same = facts_of(drawn, volume)
    return {
        **found,
        "labels": [np.argwhere(labels == k + 1).tolist() for k in range(2)],
        "slices": slices.tolist(),
        "of": len(labels),
        "facts": facts,
        "new node": outcome.segmentation is not drawn,
        "chosen node": again.segmentation is drawn,
        "same voxels": all(same[n]["voxels"] == facts[n]["voxels"] for n in ("kidney", "tumour")),
        "said": said,
        "steps": sorted({round(done, 2) for done in progress}),
        "notes": outcome.notes,
        "description": outcome.segmentation.GetDescription(),
        "rows": outcome.measures.GetTable().GetNumberOfRows(),
        "left": len(left_behind()),
    }


if __name__ == "__main__":
    main((places, refusals, layers, whole), sys.argv[1:])
