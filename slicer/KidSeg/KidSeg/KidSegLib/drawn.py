"""Slices that the user has drawn: segments of the scene as a file on the voxels of the scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from .problems import KidSegError
from .segmentations import is_result
from .volumes import ScanGrid, as_array, as_matrix, transform_of

__all__ = ["drawn_on", "hidden_segments", "write_drawn"]

_LABELS = "Binary labelmap"
_NEAR = 0.01
"""Voxels of labels and scan that are nearer than this, in voxels, are the same."""


def drawn_on(node: Any, grid: ScanGrid) -> Any:
    """The segments of a node on the voxels of a scan.

    Args:
        node: a segmentation node; it stays as it is.
        grid: of the scan.

    Returns:
        A vtkSegmentation in one layer, where the scan is shown. It is in no scene.

    Raises:
        KidSegError: "result-not-drawn": kidseg made it; "nothing-drawn"; "no-labelmap": a segment
            is a surface only; "overlapping-segments"; "other-grid": it is drawn on other voxels;
            "not-linear".
    """
    name = node.GetName()
    if is_result(node):
        raise KidSegError(
            f"'{name}' is a result of kidseg: each of its slices would count as drawn, corrected or"
            " not",
            "Choose the segmentation in which you drew. To draw on what kidseg found, copy single"
            " slices into a new segmentation (module Segment Editor).",
            code="result-not-drawn",
        )
    found = slicer.vtkSegmentation()
    found.DeepCopy(node.GetSegmentation())
    segments = [found.GetNthSegment(k) for k in range(found.GetNumberOfSegments())]
    surfaces = [s.GetName() for s in segments if s.GetRepresentation(_LABELS) is None]
    if surfaces:
        raise KidSegError(
            f"segments of '{name}' are surfaces, not drawn in slices: {', '.join(surfaces)}",
            "Choose a segmentation that was drawn in the module Segment Editor.",
            code="no-labelmap",
        )
    found.SetSourceRepresentationName(_LABELS)
    found.CollapseBinaryLabelmaps(False)
    layers = [found.GetLayerDataObject(k, _LABELS) for k in range(found.GetNumberOfLayers(_LABELS))]
    filled = [k for k, image in enumerate(layers) if _box_of(image) is not None]
    if not filled:
        raise KidSegError(
            f"'{name}' is empty: no slice is drawn",
            "Draw kidneys and tumours in a few slices, one in six or more.",
            code="nothing-drawn",
        )
    if len(layers) > 1:
        over = [s.GetName() for s in segments if s.GetRepresentation(_LABELS) is not layers[0]]
        raise KidSegError(
            f"segments of '{name}' overlap others: {', '.join(over)}",
            "Each voxel belongs to one: in the module Segment Editor, subtract the tumour from the"
            " kidney (Logical operators).",
            code="overlapping-segments",
        )
    _put(layers[0], transform_of(node), grid, name)
    return found


def hidden_segments(node: Any) -> list[str]:
    """The names of segments that are not shown."""
    display, segmentation = node.GetDisplayNode(), node.GetSegmentation()
    if display is None:
        return []
    ids = [segmentation.GetNthSegmentID(k) for k in range(segmentation.GetNumberOfSegments())]
    hidden = [id_ for id_ in ids if not display.GetSegmentVisibility(id_)]
    return [segmentation.GetSegment(id_).GetName() for id_ in hidden]


def write_drawn(segmentation: Any, path: Path) -> None:
    """Write a segmentation of `drawn_on` with its names, cropped to what is drawn.

    Raises:
        KidSegError: "not-written".
    """
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.SetAndObserveSegmentation(segmentation)
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    storage.CropToMinimumExtentOn()
    if not storage.WriteData(node) or not path.is_file():
        raise KidSegError(
            f"the drawn slices could not be written to {path.parent}",
            "Check that the disk has room.",
            code="not-written",
        )


def _put(image: Any, transform: NDArray[np.float64], grid: ScanGrid, name: str) -> None:
    """Give labels the indices and the matrix of the scan; their voxels stay.

    Raises:
        KidSegError: "other-grid".
    """
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    scan_from_labels = np.linalg.inv(grid.world) @ transform @ as_array(matrix)
    shift = scan_from_labels[:3, 3].round().astype(int)
    box = _box_of(image)
    assert box is not None
    ends = np.array(
        [(*(box[axis, end] for axis, end in enumerate(at)), 1) for at in np.ndindex(2, 2, 2)]
    )
    away = ends @ scan_from_labels.T[:, :3] - (ends[:, :3] + shift)
    inside = (box[:, 0] + shift >= 0).all() and (box[:, 1] + shift < grid.size).all()
    if np.abs(away).max() > _NEAR or not inside:
        raise KidSegError(
            f"'{name}' is drawn on other voxels than those of the scan, or beyond it",
            "Choose the scan on which it was drawn. Or set its geometry to this scan, in the module"
            " Segment Editor (button beside the source volume).",
            code="other-grid",
        )
    extent = np.array(image.GetExtent()).reshape(3, 2) + shift[:, None]
    image.SetExtent(*extent.ravel().tolist())
    image.SetImageToWorldMatrix(as_matrix(grid.world))


def _box_of(image: Any) -> NDArray[np.int64] | None:
    """(columns, rows, slices) x (first, last) index of voxels with a label; None: there is none."""
    scalars = image.GetPointData().GetScalars()
    if scalars is None or min(image.GetDimensions()) < 1:
        return None
    labelled = vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1]) != 0
    if not labelled.any():
        return None
    first = image.GetExtent()[::2]
    used = [np.flatnonzero(labelled.any(others)) for others in ((0, 1), (0, 2), (1, 2))]
    return np.array([(at[0] + k, at[-1] + k) for at, k in zip(used, first)])
