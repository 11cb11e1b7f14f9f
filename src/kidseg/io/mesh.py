"""Surfaces of labels in patient millimetres: closed, outward, smoothed without changing the volume.

Contours between thick slices, marching cubes on the binary voxels, Taubin's smoothing, then an
offset along the normals that gives the surface the volume of the voxels.

Sources: Lewiner et al., Efficient implementation of marching cubes' cases with topological
guarantees, J. Graph. Tools 2003, 10.1080/10867651.2003.10487582; Taubin, A signal processing
approach to fair surface design, SIGGRAPH 1995, 10.1145/218380.218473.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kidseg.geometry import Grid, distances_mm

__all__ = ["Surface", "surface_of"]

# At 0.5, cells with ambiguous faces would not fit their neighbours, and the surface be open.
_LEVEL = 0.49
_ROUNDS = 10  # of smoothing, a step inwards and one outwards each; times the anisotropy
_MAX_ROUNDS = 100
_INWARDS, _OUTWARDS = 0.5, 0.53  # Taubin's lambda and mu: a pass band of 0.1
_DIVIDED = 3.0  # twice as many parts of a slice as this is in its thickness, and one, in pixels
_MAX_DIVIDED = 12  # for the memory that voxels of any shape take
_CLOSE = 1e-4  # relative difference of the volume at which the offset is right
_OFFSETS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """The closed surface of a structure.

    Attributes:
        vertices_mm: (vertices, 3) float64, RAS+ millimetres.
        faces: (faces, 3) int64 indices of vertices, counter-clockwise seen from outside.
        voxels_ml: volume of the voxels.
    """

    vertices_mm: np.ndarray
    faces: np.ndarray
    voxels_ml: float

    @property
    def volume_ml(self) -> float:
        """Volume inside the surface."""
        return _volume_mm3(self.vertices_mm, self.faces) / 1000.0

    @property
    def change(self) -> float:
        """Relative change of the volume from the voxels to the surface."""
        return self.volume_ml / self.voxels_ml - 1.0


def surface_of(inside: np.ndarray, grid: Grid, *, smooth: bool = True) -> Surface | None:
    """The surface of voxels; None if there are none.

    Args:
        inside: (slices, rows, columns) bool.
        grid: volumetric, of the same shape.
        smooth: without it, the surface of marching cubes, which is smaller than the voxels.
    """
    from skimage.measure import marching_cubes

    occupied = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not len(occupied[0]):
        return None
    box = tuple(slice(int(at[0]), int(at[-1]) + 1) for at in occupied)
    around = grid.crop([at.start - 1 for at in box], [at.stop - at.start + 2 for at in box])
    padded = np.pad(inside[box], 1)
    values = _between_slices(padded, grid.spacing_mm.tolist()) if smooth else padded
    index, faces, _, _ = marching_cubes(values.astype(np.float32), _LEVEL)
    vertices = around.resized(values.shape).mm(index.astype(np.float64)).numpy()
    faces = faces.astype(np.int64)
    if _volume_mm3(vertices, faces) < 0:
        faces = faces[:, ::-1].copy()
    voxels_ml = int(inside.sum()) * float(grid.voxel_ml)
    if smooth:
        spacing = grid.spacing_mm
        rounds = min(_MAX_ROUNDS, round(_ROUNDS * float(spacing.max() / spacing.min())))
        vertices = _smoothed(vertices, faces, rounds)
        vertices = _with_volume(vertices, faces, 1000.0 * voxels_ml)
    return Surface(vertices_mm=vertices, faces=faces, voxels_ml=voxels_ml)


def _between_slices(inside: np.ndarray, spacing_mm: list[float]) -> np.ndarray:
    """A mask whose thick slices are divided, with contours between them: 0.5 is the contour.

    So the surface has no terraces. Pieces that would lose half of their volume, such as those in
    one slice, stay as they are.
    """
    from scipy import ndimage

    axis = int(np.argmax(spacing_mm))
    pixel_mm = sorted(spacing_mm)[1]
    # Odd, so that the slices themselves stay; about as thick then as pixels are wide.
    parts = 2 * min(_MAX_DIVIDED, round(spacing_mm[axis] / (_DIVIDED * pixel_mm))) + 1
    if parts == 1:
        return inside
    fine = 0.5 + distances_mm(inside, spacing_mm, axis, parts) / pixel_mm
    numbered, count = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    piece = np.repeat(numbered, parts, axis=axis)
    within = piece[fine > _LEVEL]
    before, after = (np.bincount(each, minlength=count + 1) for each in (piece.ravel(), within))
    is_lost = after < before / 2
    is_lost[0] = False
    return np.where(is_lost[piece], 1.0, fine.clip(0.0, 1.0))


def _smoothed(vertices: np.ndarray, faces: np.ndarray, rounds: int) -> np.ndarray:
    """Vertices moved towards and away from the mean of their neighbours.

    Pieces so small that they would shrink to less than half of their volume stay as they are.
    """
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.csgraph import connected_components

    count = len(vertices)
    starts, ends = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    # A closed surface has each edge in both directions.
    links = coo_matrix((np.ones(len(starts)), (starts, ends)), shape=(count, count)).tocsr()
    mean = diags(1.0 / np.asarray(links.sum(axis=1)).ravel()) @ links
    moved = vertices
    for _ in range(rounds):
        for factor in (_INWARDS, -_OUTWARDS):
            moved = moved + factor * (mean @ moved - moved)
    _, piece = connected_components(links, directed=False)
    before, after = (
        np.abs(np.bincount(piece[faces[:, 0]], weights=_tetrahedra_mm3(each, faces)))
        for each in (vertices, moved)
    )
    return np.where((after < before / 2)[piece][:, None], vertices, moved)


def _with_volume(vertices: np.ndarray, faces: np.ndarray, volume_mm3: float) -> np.ndarray:
    """Vertices moved along their normals until the surface has this volume."""
    for _ in range(_OFFSETS):
        missing = volume_mm3 - _volume_mm3(vertices, faces)
        if abs(missing) <= _CLOSE * volume_mm3:
            break
        a, b, c = (vertices[faces[:, k]] for k in range(3))
        areas = np.cross(b - a, c - a) / 2
        normals = np.zeros_like(vertices)
        for k in range(3):
            np.add.at(normals, faces[:, k], areas)
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
        # How fast the volume grows when all vertices move along their normals.
        growth = sum(float((normals[faces[:, k]] * areas).sum()) for k in range(3)) / 3
        if growth <= 0:
            break
        vertices = vertices + normals * (missing / growth)
    return vertices


def _volume_mm3(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume inside a closed surface, positive if its faces point outwards."""
    return float(_tetrahedra_mm3(vertices, faces).sum())


def _tetrahedra_mm3(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(faces,) signed volumes between each face and a common point.

    Source: the divergence theorem.
    """
    a, b, c = (vertices[faces[:, k]] - vertices.mean(axis=0) for k in range(3))
    return np.asarray(np.einsum("ij,ij->i", a, np.cross(b, c))) / 6.0
