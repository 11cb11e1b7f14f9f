"""Surfaces of labels: closed, outward, in place, of the volume of the voxels; and their files."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.geometry import Grid
from kidseg.io.mesh import Surface, surface_of
from kidseg.io.mesh_files import write_glb, write_obj, write_stl
from kidseg.io.orientation import ras_from_lps
from kidseg.labels import LabelSchema

SCHEMA = LabelSchema.from_names({1: "left kidney", 2: "Tumör"})


def oblique(shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int) -> Grid:
    """A grid in any direction, left-handed or right-handed."""
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = axes * spacing
    matrix[:3, 3] = random.uniform(-200, 200, 3)
    return Grid(shape, torch.from_numpy(matrix))


def ellipsoid(grid: Grid, centre: np.ndarray, radii_mm: tuple[float, float, float]) -> np.ndarray:
    index = np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3).astype(float)
    off = (grid.mm(index).numpy() - centre) / radii_mm
    return np.asarray(((off**2).sum(axis=1) < 1).reshape(grid.shape))


def is_closed(surface: Surface) -> bool:
    """Is each edge in two faces, once in each direction?"""
    faces = surface.faces
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = {tuple(edge) for edge in edges.tolist()}
    return len(there) == len(edges) and all((b, a) in there for a, b in there)


@pytest.mark.requirement("surfaces")
@settings(max_examples=60)
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.floats(0.0, 1.0),
    st.sampled_from([(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (0.5, 2.0, 1.0)]),
    st.integers(0, 999),
)
def test_any_voxels_have_a_closed_outward_surface_of_their_volume(
    shape: tuple[int, int, int], share: float, spacing: tuple[float, float, float], seed: int
) -> None:
    inside = np.random.default_rng(seed).random(shape) < share
    surface = surface_of(inside, oblique(inside.shape, spacing, seed))
    if not inside.any():
        assert surface is None
        return
    assert surface is not None and is_closed(surface)
    assert surface.voxels_ml == pytest.approx(inside.sum() * np.prod(spacing) / 1000)
    assert surface.volume_ml > 0 and abs(surface.change) < 0.01


@pytest.mark.requirement("surfaces")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.9, 0.9)])
def test_an_ellipsoid_is_in_place(spacing: tuple[float, float, float], seed: int) -> None:
    shape = (round(48 / spacing[0]), round(48 / spacing[1]), round(48 / spacing[2]))
    grid = oblique(shape, spacing, seed)
    centre = grid.centre_mm.numpy() + np.array([0.3, 0.2, -0.4])
    radii = (20.0, 14.0, 17.0)
    surface = surface_of(ellipsoid(grid, centre, radii), grid)
    assert surface is not None
    truth_ml = 4 / 3 * np.pi * np.prod(radii) / 1000
    assert surface.volume_ml == pytest.approx(truth_ml, rel=0.02)
    mesh = trimesh.Trimesh(surface.vertices_mm, surface.faces, process=False)
    assert mesh.is_watertight and mesh.volume == pytest.approx(surface.volume_ml * 1000)
    assert np.abs(mesh.center_mass - centre).max() < 0.2
    off = np.linalg.norm((surface.vertices_mm - centre) / radii, axis=1) - 1
    assert np.abs(off).max() * max(radii) < max(spacing)
    raw = surface_of(ellipsoid(grid, centre, radii), grid, smooth=False)
    assert raw is not None
    rough = np.linalg.norm((raw.vertices_mm - centre) / radii, axis=1) - 1
    assert off.std() < 0.8 * rough.std(), "smoother than the voxels"


@pytest.mark.parametrize("seed", [0, 1])
def test_thick_slices_leave_no_terraces(seed: int) -> None:
    grid = oblique((14, 64, 64), (5.0, 1.0, 1.0), seed)
    radius, centre = 25.0, grid.centre_mm.numpy() + np.array([0.3, 0.2, -0.4])
    surface = surface_of(ellipsoid(grid, centre, (radius,) * 3), grid)
    assert surface is not None and is_closed(surface) and abs(surface.change) < 0.01
    off = np.linalg.norm(surface.vertices_mm - centre, axis=1) - radius
    assert off.std() < 0.5 and np.abs(off).max() < 2.5


def test_voxels_of_any_shape_are_divided_into_few_parts() -> None:
    """Else a spacing that is wrong would take all memory."""
    surface = surface_of(np.ones((2, 3, 3), bool), oblique((2, 3, 3), (1e6, 1.0, 1.0), 0))
    assert surface is not None and len(surface.vertices_mm) < 10_000


def test_a_piece_in_one_slice_keeps_its_height() -> None:
    grid = Grid.from_spacing((5, 20, 20), (5.0, 1.0, 1.0))
    inside = np.zeros(grid.shape, bool)
    inside[2, 5:15, 5:15] = True
    surface = surface_of(inside, grid)
    assert surface is not None and is_closed(surface)
    assert np.ptp(surface.vertices_mm[:, 2]) == pytest.approx(5.0, abs=2.0)


def test_a_cavity_stays_hollow() -> None:
    inside = np.ones((9, 9, 9), bool)
    inside[3:6, 3:6, 3:6] = False
    surface = surface_of(inside, Grid.from_spacing((9, 9, 9), (2.0, 1.0, 1.0)))
    assert surface is not None and is_closed(surface)
    assert surface.volume_ml == pytest.approx((9**3 - 27) * 2 / 1000, rel=0.01)
    assert len(trimesh.Trimesh(surface.vertices_mm, surface.faces).split(only_watertight=True)) == 2


@pytest.fixture
def surfaces() -> list[Surface]:
    grid = Grid.from_spacing((8, 12, 12), (3.0, 1.0, 1.0), (40.0, -30.0, 20.0))
    found = []
    for low, high in ((1, 6), (7, 11)):
        inside = np.zeros(grid.shape, bool)
        inside[2:6, low:high, 2:10] = True
        surface = surface_of(inside, grid)
        assert surface is not None
        found.append(surface)
    return found


def bounds_lps(surface: Surface) -> np.ndarray:
    places = surface.vertices_mm @ ras_from_lps[:3, :3]
    return np.array([places.min(axis=0), places.max(axis=0)])


def check(mesh: trimesh.Trimesh, surface: Surface) -> None:
    """Closed, outward, in LPS millimetres."""
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(1000 * surface.volume_ml, rel=1e-4)
    assert np.allclose(mesh.bounds, bounds_lps(surface), atol=1e-3)


def test_stl(surfaces: list[Surface]) -> None:
    file = io.BytesIO()
    write_stl(surfaces[0], file)
    header = file.getvalue()[:80].decode()
    assert "SPACE=LPS" in header and "unit=mm" in header and "Research use only" in header
    file.seek(0)
    check(trimesh.load_mesh(file, file_type="stl"), surfaces[0])


def test_obj_has_names_and_colours(surfaces: list[Surface]) -> None:
    file = io.BytesIO()
    write_obj(list(zip(SCHEMA.labels, surfaces, strict=True)), file, "some\nnotes")
    lines = file.getvalue().decode().splitlines()
    assert lines[1] == "# SPACE=LPS" and "notes" in lines[0]
    assert [line for line in lines if line.startswith("o ")] == ["o left_kidney", "o Tumör"]
    assert {" ".join(line.split()[4:]) for line in lines if line.startswith("v ")} == {
        " ".join(f"{c / 255:.4f}" for c in label.rgb) for label in SCHEMA.labels
    }
    file.seek(0)
    parts = trimesh.load_mesh(file, file_type="obj").split()
    parts = sorted(parts, key=lambda part: -part.volume)
    for part, surface in zip(parts, surfaces, strict=True):
        check(part, surface)


def test_glb_has_names_and_colours(surfaces: list[Surface]) -> None:
    file = io.BytesIO()
    write_glb(list(zip(SCHEMA.labels, surfaces, strict=True)), file, "Research use only.")
    file.seek(0)
    scene = trimesh.load_scene(file, file_type="glb")
    assert scene.metadata["unit"] == "mm" and scene.metadata["notes"] == "Research use only."
    for label, surface in zip(SCHEMA.labels, surfaces, strict=True):
        mesh = scene.geometry[label.name]
        check(mesh, surface)
        assert mesh.visual.material.name == label.name
        assert mesh.visual.material.baseColorFactor.tolist() == [*label.rgb, 255]
        assert np.array_equal(scene.graph[label.name][0], np.eye(4)), "numbers are millimetres"


@pytest.mark.requirement("surfaces")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prusa-slicer") is None, reason="prusa-slicer is not installed")
def test_a_slicing_program_finds_closed_parts_of_their_size(
    surfaces: list[Surface], tmp_path: Path
) -> None:
    with (tmp_path / "a.stl").open("wb") as file:
        write_stl(surfaces[0], file)
    with (tmp_path / "a.obj").open("wb") as file:
        write_obj([(SCHEMA.labels[0], surfaces[0])], file, "notes")
    for name in ("a.stl", "a.obj"):
        command: list[str | Path] = ["prusa-slicer", "--info", tmp_path / name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = dict(line.split(" = ") for line in said.splitlines() if " = " in line)
        low, high = bounds_lps(surfaces[0])
        for axis, size in zip("xyz", high - low, strict=True):
            assert float(found[f"size_{axis}"]) == pytest.approx(size, abs=1e-3), "millimetres"
        assert found["manifold"] == "yes"
        assert float(found["volume"]) == pytest.approx(1000 * surfaces[0].volume_ml, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("admesh") is None, reason="admesh is not installed")
def test_admesh_has_nothing_to_repair(surfaces: list[Surface], tmp_path: Path) -> None:
    for surface in surfaces:
        with (tmp_path / "a.stl").open("wb") as file:
            write_stl(surface, file)
        # Errors: it prints a few bytes more than the header of a binary file has.
        run = subprocess.run(
            ["admesh", tmp_path / "a.stl"], capture_output=True, text=True, errors="replace"
        )
        found = dict(re.findall(r"(\w[\w ]*?) *: +(-?[\d.]+)", run.stdout))
        assert float(found["Volume"]) == pytest.approx(1000 * surface.volume_ml, rel=1e-3)
        repairs = ("Degenerate facets", "Edges fixed", "Facets removed", "Facets added")
        repairs += ("Facets reversed", "Backwards edges", "Normals fixed")
        assert [found[name] for name in repairs] == ["0"] * len(repairs), run.stdout
        assert found["Total disconnected facets"] == "0" and found["Number of parts"] == "1"
