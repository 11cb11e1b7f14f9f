"""Write surfaces as STL, OBJ or GLB, in LPS millimetres as 3D Slicer does.

STL and OBJ say so in their header ("SPACE=LPS"). glTF counts in metres; here, too, the numbers are
patient millimetres, as the extras of the scene say.

Sources: 3D Slicer, vtkMRMLModelStorageNode.cxx; Khronos, glTF 2.0 specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from kidseg.errors import printable
from kidseg.io.mesh import Surface
from kidseg.io.orientation import ras_from_lps
from kidseg.labels import Label
from kidseg.provenance import RESEARCH_USE

if TYPE_CHECKING:
    import trimesh

__all__ = ["write_glb", "write_obj", "write_stl"]

_STL_HEADER = 80  # bytes
_SPACE = "SPACE=LPS"


def write_stl(surface: Surface, file: BinaryIO) -> None:
    """Write one surface as a binary STL file."""
    from trimesh.exchange.stl import export_stl

    header = f"{_SPACE} unit=mm {RESEARCH_USE}".encode().ljust(_STL_HEADER)[:_STL_HEADER]
    file.write(header + export_stl(_mesh(surface))[_STL_HEADER:])


def write_obj(surfaces: Sequence[tuple[Label, Surface]], file: BinaryIO, notes: str) -> None:
    """Write surfaces as the objects of an OBJ file, with their names and colours of vertices."""
    lines, first = [f"# {' '.join(printable(notes).split())}", f"# {_SPACE}", "# unit=mm"], 1
    for label, surface in surfaces:
        colour = " ".join(f"{channel / 255:.4f}" for channel in label.rgb)
        lines.append(f"o {_one_word(label.name)}")
        lines += [f"v {x:.5f} {y:.5f} {z:.5f} {colour}" for x, y, z in _lps_mm(surface)]
        lines += [f"f {a} {b} {c}" for a, b, c in surface.faces + first]
        first += len(surface.vertices_mm)
    file.write(("\n".join(lines) + "\n").encode())


def write_glb(surfaces: Sequence[tuple[Label, Surface]], file: BinaryIO, notes: str) -> None:
    """Write surfaces as the nodes of a binary glTF file, with their names and colours."""
    import trimesh
    from trimesh.exchange.gltf import export_glb
    from trimesh.visual.material import PBRMaterial
    from trimesh.visual.texture import TextureVisuals

    scene = trimesh.Scene(metadata={"notes": printable(notes), "space": "LPS", "unit": "mm"})
    for label, surface in surfaces:
        mesh, name = _mesh(surface), printable(label.name)
        material = PBRMaterial(
            name=name, baseColorFactor=[*label.rgb, 255], metallicFactor=0.0, roughnessFactor=0.7
        )
        mesh.visual = TextureVisuals(material=material)
        scene.add_geometry(mesh, node_name=name, geom_name=name)
    file.write(export_glb(scene, include_normals=True))


def _mesh(surface: Surface) -> trimesh.Trimesh:
    import trimesh

    return trimesh.Trimesh(_lps_mm(surface), surface.faces, process=False)


def _lps_mm(surface: Surface) -> np.ndarray:
    """(vertices, 3); from RAS it is a half turn, so that faces still point outwards."""
    return np.asarray(surface.vertices_mm @ ras_from_lps[:3, :3])


def _one_word(name: str) -> str:
    return "_".join(printable(name).split()) or "unnamed"
