"""The labels of kidseg as a segmentation of the scene: exactly on the voxels of the scan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from .problems import KidSegError
from .volumes import ScanGrid, as_array, as_matrix

__all__ = ["USE", "fill_segmentation", "is_result", "place_beside", "read_segmentation"]

USE = "For research use only. Not a medical device."
_MODEL = "KidSeg.ModelSHA256"
"""Attribute of a node with a result of kidseg; it is kept with the scene."""

_FAR_MM = 1e-3
_OPACITY = 0.4


def read_segmentation(path: Path, grid: ScanGrid) -> Any:
    """Read a `.seg.nrrd` file, with names, colours and terminology.

    Args:
        path: of kidseg.
        grid: of the scan that was segmented.

    Returns:
        A vtkSegmentation on the voxels of the scan, without its transform. It is in no scene, so
        nothing of the scene has changed if this fails.

    Raises:
        KidSegError: "bad-labels": the file is invalid; "other-grid": it is of another scan.
    """
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    if not storage.ReadData(node) or node.GetSegmentation().GetNumberOfSegments() == 0:
        raise KidSegError("the labels of kidseg cannot be read", code="bad-labels")
    segmentation = slicer.vtkSegmentation()
    segmentation.DeepCopy(node.GetSegmentation())
    kind = segmentation.GetSourceRepresentationName()
    for layer in range(segmentation.GetNumberOfLayers(kind)):
        image = segmentation.GetLayerDataObject(layer, kind)
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        extent = np.array(image.GetExtent()).reshape(3, 2)
        inside = (extent[:, 1] < grid.size).all() and (extent[:, 0] >= 0).all()
        is_empty = (extent[:, 1] < extent[:, 0]).any()
        if not (inside or is_empty) or _distance_mm(as_array(matrix), grid) > _FAR_MM:
            raise KidSegError(
                "the labels are not on the voxels of the scan",
                "Please report this, with the geometry of the volume (module Volumes).",
                code="other-grid",
            )
        # The file has rounded numbers.
        image.SetImageToWorldMatrix(as_matrix(grid.own))
    return segmentation


def fill_segmentation(
    segmentation: Any, volume: Any, record: Mapping[str, Any], output: Any = None
) -> Any:
    """Show a segmentation in the scene of its volume.

    Args:
        segmentation: of `read_segmentation`.
        volume: the scan.
        record: of kidseg, for the model and its version.
        output: a segmentation node, whose segments are replaced; None: a new one.

    Returns:
        The segmentation node, with 3D surfaces, under the transform of the volume.
    """
    scene = volume.GetScene()
    name = f"{volume.GetName()} kidseg"
    node = output or scene.AddNewNodeByClass(
        "vtkMRMLSegmentationNode", scene.GenerateUniqueName(name)
    )
    changes = node.StartModify()
    try:
        node.GetSegmentation().DeepCopy(segmentation)
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        node.CreateClosedSurfaceRepresentation()
        display = node.GetDisplayNode()
        display.SetOpacity2DFill(_OPACITY)
        display.SetVisibility3D(True)
        node.SetDescription(f"{USE} {_origin(record)}")
        node.SetAttribute(_MODEL, str((record.get("model") or {}).get("sha256", "")))
    finally:
        node.EndModify(changes)
    return node


def is_result(node: Any) -> bool:
    """Is it a segmentation that kidseg made, corrected or not?"""
    return node.GetAttribute(_MODEL) is not None


def place_beside(node: Any, volume: Any) -> None:
    """Put a node into the patient's study of the volume, in the subject hierarchy."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume.GetScene())
    item = tree.GetItemByDataNode(volume)
    parent = tree.GetItemParent(item) if item else tree.GetSceneItemID()
    known = tree.GetItemByDataNode(node)
    if known:
        tree.SetItemParent(known, parent)
    else:
        tree.CreateItem(parent, node)


def _distance_mm(ras_from_ijk: NDArray[np.float64], grid: ScanGrid) -> float:
    """The largest distance between the same corners of both grids."""
    ends = [(0, size) for size in grid.size]
    corners = np.array([(i, j, k, 1) for i in ends[0] for j in ends[1] for k in ends[2]])
    away = corners @ (ras_from_ijk - grid.world).T
    return float(np.linalg.norm(away[:, :3], axis=1).max())


def _origin(record: Mapping[str, Any]) -> str:
    model, versions = record.get("model") or {}, record.get("versions") or {}
    return (
        f"kidseg {versions.get('kidseg', '')}, model {model.get('name', model.get('method', ''))},"
        f" SHA-256 {model.get('sha256', '')}"
    )
