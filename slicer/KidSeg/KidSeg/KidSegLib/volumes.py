"""A volume of the scene as a file: its voxels, and where they are in the patient.

3D Slicer keeps positions in RAS, files have them in LPS; its own storage nodes convert them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from .problems import KidSegError

__all__ = [
    "ScanGrid",
    "as_array",
    "as_matrix",
    "check_volume",
    "grid_of",
    "transform_of",
    "write_volume",
]

_SHEAR = 1e-4
_NOT_CT = re.compile(r"(?<![a-z])(mri?|t[12]w?|flair|dwi|adc|pet|suv|ultrasound|us)(?![a-z])")
_MODALITY = "DICOM.Modality"


@dataclass(frozen=True)
class ScanGrid:
    """Where the voxels of a volume are.

    Attributes:
        size: columns, rows, slices.
        own: (4, 4) RAS in mm of an index (column, row, slice), without the volume's transform.
        world: the same with it, as the volume is shown.
    """

    size: tuple[int, int, int]
    own: NDArray[np.float64]
    world: NDArray[np.float64]


def check_volume(volume: Any) -> list[str]:
    """Check whether kidseg can segment a volume node.

    Returns:
        Notes for the user about what is doubtful.

    Raises:
        KidSegError: "no-volume", "no-image", "label-map", "several-components", "not-ct".
    """
    if volume is None:
        raise KidSegError("no volume is chosen", "Choose a CT scan.", code="no-volume")
    name = volume.GetName() or "The volume"
    image = volume.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    if scalars is None or min(image.GetDimensions()) < 1 or scalars.GetNumberOfTuples() == 0:
        raise KidSegError(
            f"the volume '{name}' has no image",
            "Load the scan again, or choose another volume.",
            code="no-image",
        )
    if volume.IsA("vtkMRMLLabelMapVolumeNode"):
        raise KidSegError(
            f"'{name}' is a label map, not a scan", "Choose the CT scan.", code="label-map"
        )
    if (count := image.GetNumberOfScalarComponents()) != 1:
        raise KidSegError(
            f"'{name}' has {count} values per voxel: it is a 4D series or a colour image",
            "Load or extract one phase as a volume of its own, and choose that.",
            code="several-components",
        )
    modality = _modality_of(volume)
    if modality not in ("", "CT"):
        raise KidSegError(
            f"'{name}' is {modality}, not CT", "kidseg segments CT only.", code="not-ct"
        )
    notes = []
    if not modality and (word := _NOT_CT.search(name.lower())):
        notes.append(f"The name '{name}' has '{word[0]}' in it. kidseg is for CT only.")
    if volume.GetAttribute("Sequences.BaseName") is not None or _is_frame(volume):
        notes.append(f"'{name}' is a frame of a sequence: the frame that is shown is segmented.")
    return notes


def grid_of(volume: Any) -> ScanGrid:
    """Where the voxels of a volume are, with its transforms.

    Raises:
        KidSegError: "not-linear", "sheared": the transform does not keep right angles.
    """
    name, matrix = volume.GetName(), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    own = as_array(matrix)
    world = transform_of(volume) @ own
    directions = world[:3, :3] / np.linalg.norm(world[:3, :3], axis=0)
    if np.abs(directions.T @ directions - np.eye(3)).max() > _SHEAR:
        raise KidSegError(
            f"the axes of '{name}' are not at right angles",
            "Resample it first, in the module Crop Volume or Resample Scalar/Vector/DWI Volume.",
            code="sheared",
        )
    columns, rows, slices = volume.GetImageData().GetDimensions()
    return ScanGrid((columns, rows, slices), own, world)


def transform_of(node: Any) -> NDArray[np.float64]:
    """The transform of a node to the world, (4, 4).

    Raises:
        KidSegError: "not-linear".
    """
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise KidSegError(
            f"the transform of '{node.GetName()}' bends it",
            "In the module Data, right-click it, and choose 'Harden transform'.",
            code="not-linear",
        )
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return as_array(matrix)


def write_volume(volume: Any, grid: ScanGrid, path: Path, *, compress: bool) -> None:
    """Write a volume as it is shown: with its linear transforms, whether it was saved or not.

    Args:
        volume: a scalar volume node; it stays as it is.
        grid: of `grid_of`.
        path: NRRD, or NIfTI, whose header has single precision.
        compress: make the file smaller, which takes time.

    Raises:
        KidSegError: "not-written".
    """
    copy = slicer.vtkMRMLScalarVolumeNode()
    copy.SetAndObserveImageData(volume.GetImageData())
    copy.SetIJKToRASMatrix(as_matrix(grid.world))
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetUseCompression(int(compress))
    if not storage.WriteData(copy) or not path.is_file():
        raise KidSegError(
            f"the volume '{volume.GetName()}' could not be written to {path.parent}",
            "Check that the disk has room.",
            code="not-written",
        )


def as_array(matrix: Any) -> NDArray[np.float64]:
    """A vtkMatrix4x4 as an array (4, 4)."""
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def as_matrix(array: NDArray[np.float64]) -> Any:
    """An array (4, 4) as a vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    for row, column in np.ndindex(4, 4):
        matrix.SetElement(row, column, float(array[row, column]))
    return matrix


def _modality_of(volume: Any) -> str:
    """Its DICOM modality, as the subject hierarchy knows it; "" if it does not."""
    scene = volume.GetScene()
    if scene is None:
        return ""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = tree.GetItemByDataNode(volume)
    return str(tree.GetItemAttribute(item, _MODALITY) or "").upper() if item else ""


def _is_frame(volume: Any) -> bool:
    """Is it the current frame of a sequence?"""
    scene = volume.GetScene()
    browsers = scene.GetNodesByClass("vtkMRMLSequenceBrowserNode") if scene else None
    if browsers is None:
        return False
    browsers.UnRegister(None)
    nodes = [browsers.GetItemAsObject(k) for k in range(browsers.GetNumberOfItems())]
    return any(browser.IsProxyNode(volume.GetID()) for browser in nodes)
