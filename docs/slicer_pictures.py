"""Draws the pictures of the extension of 3D Slicer, from its real nodes, without a screen.

    kidseg phantom patients --patients 3 --seed 21 --size 256 --ages 3-8
    SLICER_PYTHON docs/slicer_pictures.py patients/imagesTr/phantom_0002_0000.nii.gz KIDSEG

`KIDSEG` is the path of the program, `SLICER_PYTHON` a Python with slicer-core and matplotlib.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import slicer
import vtk

sys.path.insert(0, str(Path(__file__).parents[1] / "slicer" / "KidSeg" / "KidSeg"))

from KidSegLib.back_ends import Settings, back_end_of
from KidSegLib.run import segment
from KidSegLib.volumes import grid_of

EXTENSION = Path(__file__).parents[1] / "slicer" / "KidSeg"
WINDOW_HU = (400.0, 40.0)
# View: from which side, and what is up (RAS). The patient's right is on the left, as in reports.
VIEWS = {"axial": ((0, 0, -1), (0, 1, 0)), "coronal": ((0, 1, 0), (0, 0, 1))}
SIZE = (1100, 520)


def draw_icon(path: Path) -> None:
    """Two kidneys, one with a tumour."""
    figure = plt.figure(figsize=(1.28, 1.28), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1, 1), ylim=(-1, 1))
    axes.axis("off")
    angle = np.linspace(0, 2 * np.pi, 200)
    for side in (-1, 1):
        hilum = 0.24 * np.exp(-((angle - np.pi) ** 2) / 0.35)
        x = side * (0.5 + (0.36 - hilum) * np.cos(angle) * (1 - 0.1 * np.sin(angle)))
        y = 0.72 * np.sin(angle)
        axes.fill(x, y, facecolor="#12a37c", edgecolor="#0a5c46", linewidth=2)
    axes.fill(
        0.62 + 0.34 * np.cos(angle),
        -0.42 + 0.34 * np.sin(angle),
        facecolor="#f5a70a",
        edgecolor="#8f6206",
        linewidth=2,
    )
    figure.savefig(path, transparent=True)


def load(path: str) -> Any:
    """A scan in a scene of its own."""
    scene = slicer.vtkMRMLScene()
    slicer.vtkSlicerSegmentationsModuleLogic().SetMRMLScene(scene)
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(path)
    assert storage.ReadData(volume), path
    return scene, volume


def placed(image: Any, matrix: Any) -> Any:
    """An image slice in RAS."""
    mapper, found = vtk.vtkImageResliceMapper(), vtk.vtkImageSlice()
    mapper.SetInputData(image)
    mapper.SliceFacesCameraOn()
    mapper.SliceAtFocalPointOn()
    found.SetMapper(mapper)
    found.SetUserMatrix(matrix)
    return found


def segments_of(node: Any) -> list[Any]:
    """The segments of a segmentation node."""
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(k) for k in range(segmentation.GetNumberOfSegments())]


def slice_renderer(volume: Any, node: Any, focus: np.ndarray, view: str) -> Any:
    """The scan, with the labels on it and the cut of their surfaces."""
    renderer, matrix = vtk.vtkRenderer(), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    flat = vtk.vtkImageData()
    flat.DeepCopy(volume.GetImageData())
    scan = placed(flat, matrix)
    scan.GetProperty().SetColorWindow(WINDOW_HU[0])
    scan.GetProperty().SetColorLevel(WINDOW_HU[1])
    renderer.AddViewProp(scan)
    from_side, up = (np.array(v, float) for v in VIEWS[view])
    plane = vtk.vtkPlane()
    plane.SetOrigin(*focus)
    plane.SetNormal(*from_side)
    for segment_ in segments_of(node):
        cutter, stripper, filled = vtk.vtkCutter(), vtk.vtkStripper(), vtk.vtkContourTriangulator()
        cutter.SetInputData(segment_.GetRepresentation("Closed surface"))
        cutter.SetCutFunction(plane)
        stripper.SetInputConnection(cutter.GetOutputPort())
        filled.SetInputConnection(stripper.GetOutputPort())
        for source, opacity in ((stripper, 1.0), (filled, 0.35)):
            mapper, actor = vtk.vtkPolyDataMapper(), vtk.vtkActor()
            mapper.SetInputConnection(source.GetOutputPort())
            mapper.ScalarVisibilityOff()
            actor.SetMapper(mapper)
            actor.GetProperty().SetColor(segment_.GetColor())
            actor.GetProperty().SetOpacity(opacity)
            actor.GetProperty().SetLineWidth(2)
            actor.GetProperty().LightingOff()
            actor.AddPosition(*(from_side * 0.5))  # before the scan
            renderer.AddActor(actor)
    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()
    camera.SetFocalPoint(*focus)
    camera.SetPosition(*(focus + 500 * from_side))
    camera.SetViewUp(*up)
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    low, high = np.array(bounds[::2]), np.array(bounds[1::2])
    half = np.abs(high - low) @ np.abs(np.cross(up, from_side)) / 2
    camera.SetParallelScale(half * (SIZE[1] / (SIZE[0] / 2)))
    renderer.ResetCameraClippingRange()
    return renderer


def surface_renderer(node: Any) -> Any:
    """The surfaces, from the front."""
    renderer = vtk.vtkRenderer()
    renderer.SetBackground(0.7, 0.71, 0.88)
    for segment_ in segments_of(node):
        mapper, actor = vtk.vtkPolyDataMapper(), vtk.vtkActor()
        mapper.SetInputData(segment_.GetRepresentation("Closed surface"))
        mapper.ScalarVisibilityOff()
        actor.SetMapper(mapper)
        actor.GetProperty().SetColor(segment_.GetColor())
        actor.GetProperty().SetSpecular(0.2)
        renderer.AddActor(actor)
    renderer.ResetCamera()
    camera = renderer.GetActiveCamera()
    focus = np.array(camera.GetFocalPoint())
    camera.SetPosition(*(focus + camera.GetDistance() * np.array([0.25, 0.95, 0.2])))
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    camera.Zoom(1.4)
    return renderer


def write(path: Path, renderers: list[Any]) -> None:
    """The renderers side by side as a picture, with what they must not be used for."""
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetMultiSamples(8)
    window.SetSize(*SIZE)
    for number, renderer in enumerate(renderers):
        share = 1 / len(renderers)
        renderer.SetViewport(number * share, 0, (number + 1) * share, 1)
        window.AddRenderer(renderer)
    text = vtk.vtkTextActor()
    text.SetInput("Digital patient. For research use only.")
    text.GetTextProperty().SetFontSize(16)
    text.SetPosition(12, 10)
    renderers[0].AddViewProp(text)
    window.Render()
    source, writer = vtk.vtkWindowToImageFilter(), vtk.vtkPNGWriter()
    source.SetInput(window)
    writer.SetFileName(str(path))
    writer.SetCompressionLevel(9)
    writer.SetInputConnection(source.GetOutputPort())
    writer.Write()


def main(scan: str, command: str) -> None:
    """Draw everything."""
    draw_icon(EXTENSION / "KidSeg" / "Resources" / "Icons" / "KidSeg.png")
    _scene, volume = load(scan)
    outcome = segment(volume, back_end_of(Settings(command=command)), say=print)
    tumour = segments_of(outcome.segmentation)[-1].GetRepresentation("Closed surface")
    kidney = segments_of(outcome.segmentation)[0].GetRepresentation("Closed surface")
    focus = (np.array(tumour.GetCenter()) + np.array(kidney.GetCenter())) / 2
    middle = grid_of(volume).world @ [*[(n - 1) / 2 for n in grid_of(volume).size], 1]
    focus[0] = middle[0]
    folder = EXTENSION / "Screenshots"
    views = [slice_renderer(volume, outcome.segmentation, focus, view) for view in VIEWS]
    write(folder / "slices.png", views)
    write(folder / "surfaces.png", [surface_renderer(outcome.segmentation)])
    for path in folder.iterdir():
        shutil.copyfile(path, Path(__file__).with_name(f"slicer_{path.name}"))


if __name__ == "__main__":
    main(*sys.argv[1:])
