"""The Grid and the one interpolation.

First of all a linear ramp: it is the one image whose resampled values are known everywhere, on any
grid, so it shows a half-voxel error that overlap tests miss.
"""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kidseg.geometry import (
    Grid,
    Volume,
    binned,
    boxed,
    grid_from_theta,
    has_parallel_slices,
    in_plane_pose,
    join_channels,
    posed,
    resample,
    stack,
)

GRADIENT_PER_MM = torch.tensor([0.31, -0.47, 0.23], dtype=torch.float64)
seeds = st.integers(0, 2**31 - 1)


def ramp(grid: Grid) -> Tensor:
    """(1, *shape): a linear function of the patient position, from `Grid.mm` itself."""
    if grid.is_slicewise:
        parts = [ramp(Grid((1, *grid.shape[1:]), m)) for m in grid.mm_from_index]
        return torch.cat(parts, dim=1)
    axes = [torch.arange(n, dtype=torch.float64) for n in grid.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return (grid.mm(index.reshape(-1, 3)) @ GRADIENT_PER_MM).reshape(1, *grid.shape)


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random proper rotation (3, 3)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def random_grid(rng: np.random.Generator, largest: int = 24) -> Grid:
    """Rotated, anisotropic, non-cubic, anywhere; half of them left-handed."""
    shape = rng.integers(2, largest, size=3)
    spacing = rng.uniform(0.4, 5.0, size=3)
    turn = rotation(rng)
    if rng.random() < 0.5:
        turn[:, 0] *= -1
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = rng.uniform(-200, 200, size=3)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), torch.from_numpy(matrix))


def inside(source: Grid, target: Grid) -> Tensor:
    """Target voxels between the outermost centres of the source, where linear is exact."""
    axes = [torch.arange(n, dtype=torch.float64) for n in target.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    at = source.index(target.mm(index))
    last = torch.tensor(source.shape, dtype=torch.float64) - 1
    return ((at >= 0) & (at <= last)).all(-1).reshape(target.shape)


# ---- the ramp ----------------------------------------------------------------------------------


@pytest.mark.requirement("one interpolation")
@given(seeds)
@settings(max_examples=60)
def test_ramp_is_exact_on_any_two_grids_in_space(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, turn = random_grid(rng), np.eye(4)
    # A target about the same place, so that the two overlap.
    turn[:3, :3] = rotation(rng)
    centre = source.centre_mm.numpy()
    turn[:3, 3] = centre - turn[:3, :3] @ centre + rng.uniform(-1, 1, 3)
    shape = tuple(int(n) for n in rng.integers(2, 24, size=3))
    target = source.resized(shape).moved(torch.from_numpy(turn))
    seen = inside(source, target)
    for dtype, tolerance in [(torch.float64, 1e-9), (torch.float32, 1e-5)]:
        values = ramp(source)
        low, high = values.min(), values.max()
        values = ((values - low) / (high - low)).to(dtype)
        got = resample(Volume(values, source), target).data
        want = (ramp(target) - low) / (high - low)
        assert ((got - want).abs()[0][seen] <= tolerance).all()


@given(seeds, st.booleans())
@settings(max_examples=60)
def test_ramp_is_exact_in_the_plane(seed: int, slicewise: bool) -> None:
    rng = np.random.default_rng(seed)
    source = random_grid(rng)
    lead = (source.shape[0],) if slicewise else ()
    target = posed(
        source,
        angle_rad=torch.from_numpy(rng.uniform(-math.pi, math.pi, lead)),
        scale=torch.from_numpy(rng.uniform(0.5, 2.0, (*lead, 2))),
        shift_mm=torch.from_numpy(rng.uniform(-5, 5, (*lead, 2))),
    ).resized((source.shape[0], 17, 31))
    assert target.is_slicewise == slicewise
    for start in (source, source.slicewise()):
        values = ramp(start)
        got = resample(Volume(values, start), target, fill=math.nan).data
        # Outside the outermost centres the edge value holds, or there is nothing: see below.
        at = torch.linalg.inv(source.slicewise().mm_from_index) @ target.slicewise().mm_from_index
        rows, columns = torch.meshgrid(
            torch.arange(17, dtype=torch.float64),
            torch.arange(31, dtype=torch.float64),
            indexing="ij",
        )
        flat = torch.stack([torch.zeros_like(rows), rows, columns, torch.ones_like(rows)])
        index = torch.einsum("kij,jrc->ikrc", at, flat)
        last = torch.tensor(source.shape, dtype=torch.float64)[1:, None, None, None] - 1
        seen = ((index[1:3] >= 0) & (index[1:3] <= last)).all(0)
        assert torch.allclose(got[0][seen], ramp(target)[0][seen], atol=1e-9, rtol=0)


@pytest.mark.requirement("one interpolation")
def test_ramp_catches_a_half_voxel_error() -> None:
    """The test above can fail: half a voxel is far above its tolerance."""
    grid = Grid.from_spacing((4, 8, 8), (3, 1, 1))
    off = Grid(
        grid.shape, grid.crop((0, 0, 1), grid.shape).mm_from_index * 0.5 + grid.mm_from_index * 0.5
    )
    assert (ramp(off) - ramp(grid)).abs().min() > 0.1


# ---- a peer ------------------------------------------------------------------------------------


def to_sitk(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.data[0].numpy())
    matrix = volume.grid.mm_from_index.numpy()
    spacing = volume.grid.spacing_mm.numpy()
    image.SetSpacing([float(s) for s in spacing[::-1]])
    image.SetDirection((matrix[:3, :3] / spacing)[:, ::-1].ravel().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    return image


def right_handed(grid: Grid) -> Grid:
    """SimpleITK refuses nothing, but its directions are proper; mirror the slices if need be."""
    matrix = grid.mm_from_index.clone()
    # (slice, row, column) is (z, y, x): reversed order flips the sign of a right-handed frame.
    if torch.linalg.det(matrix[:3, :3]) > 0:
        matrix[:3, 0] *= -1
    return Grid(grid.shape, matrix)


@example(26067, "linear")  # a point 8e-7 voxels beyond the outer edge, which ITK takes as within
@given(seeds, st.sampled_from(["linear", "nearest"]))
@settings(max_examples=60)
def test_agrees_with_simpleitk_on_random_grids(seed: int, mode: str) -> None:
    rng = np.random.default_rng(seed)
    source = right_handed(random_grid(rng))
    spin = posed(
        source,
        angle_rad=torch.from_numpy(rng.uniform(-3, 3, 3)),
        scale=torch.from_numpy(rng.uniform(0.5, 1.5, 3)),
        shift_mm=torch.from_numpy(rng.uniform(-3, 3, 3)),
    )
    target = right_handed(spin.resized([int(n) for n in rng.integers(2, 20, size=3)]))
    volume = Volume(torch.from_numpy(rng.uniform(-1000, 1000, (1, *source.shape))), source)
    got = resample(volume, target, mode=mode, fill=-5000.0).data[0].numpy()
    kind = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}[mode]
    like = to_sitk(Volume(torch.zeros((1, *target.shape), dtype=torch.float64), target))
    theirs = sitk.Resample(to_sitk(volume), like, sitk.Transform(), kind, -5000.0)
    want = sitk.GetArrayFromImage(theirs)
    # Half way between voxels rounding decides, and random points miss it; on the outer edge ITK is
    # lenient by 1e-6 voxels.
    axes = [torch.arange(n, dtype=torch.float64) for n in target.shape]
    at = source.index(target.mm(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)))
    ends = torch.tensor(source.shape) - 0.5
    on_edge = (torch.minimum((at + 0.5).abs(), (at - ends).abs()) < 1e-5).any(-1).numpy()
    assert on_edge.sum() <= 1
    assert np.abs(got - want)[~on_edge].max() < 1e-5


# ---- there and back ----------------------------------------------------------------------------


def ball(grid: Grid, diameter_mm: float, at_mm: Tensor) -> Tensor:
    """(2, *shape) probabilities of background and ball: hard labels, as a reference would be."""
    axes = [torch.arange(n, dtype=torch.float64) for n in grid.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    far = torch.linalg.vector_norm(grid.mm(index) - at_mm, dim=-1).reshape(grid.shape)
    hit = (far <= diameter_mm / 2).float()
    return torch.stack([1 - hit, hit])


def dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.requirement("one interpolation")
@given(seeds, st.booleans())
@settings(max_examples=40)
def test_a_small_ball_survives_any_chain_of_pose_and_crop(seed: int, slicewise: bool) -> None:
    rng = np.random.default_rng(seed)
    scan = Grid.from_spacing((9, 96, 96), (1.5, 0.8, 0.8), centre_mm=rng.uniform(-50, 50, 3))
    at = scan.centre_mm + torch.from_numpy(rng.uniform(-4, 4, 3))
    reference = ball(scan, 6.0, at)
    lead = (scan.shape[0],) if slicewise else ()

    grid = scan
    for _ in range(int(rng.integers(1, 4))):  # a chain of poses, then a crop about the ball
        grid = posed(
            grid,
            angle_rad=torch.from_numpy(rng.uniform(-0.5, 0.5, lead)),
            scale=torch.from_numpy(rng.uniform(0.8, 1.07, (*lead, 2))),  # pixels up to 1 mm
            shift_mm=torch.from_numpy(rng.uniform(-3, 3, (*lead, 2))),
        )
    low = torch.tensor([-0.5, 15.5, 15.5]).expand(*lead, 3)
    high = torch.tensor([0.5 if slicewise else 8.5, 79.5, 79.5]).expand(*lead, 3)
    network = boxed(grid, low, high, (9, 64, 64))

    seen = resample(Volume(reference, scan), network, fill=(1.0, 0.0))
    back = resample(seen, scan, fill=(1.0, 0.0)).data
    assert dice(back.argmax(0) == 1, reference[1] == 1) >= 0.98


def test_outside_a_crop_is_background_with_certainty() -> None:
    scan = Grid.from_spacing((2, 20, 20), (3, 1, 1))
    crop = scan.crop((0, 5, 5), (2, 8, 8))
    probabilities = Volume(torch.full((2, 2, 8, 8), 0.5), crop)
    back = resample(probabilities, scan, fill=(1.0, 0.0)).data
    assert (back[:, :, :5] == torch.tensor([1.0, 0.0])[:, None, None, None]).all()
    assert (back[:, :, 5:13, 5:13] == 0.5).all()
    assert torch.allclose(back.sum(0), torch.ones(2, 20, 20))


@pytest.mark.requirement("one interpolation")
@given(seeds)
@settings(max_examples=30)
def test_the_inverse_of_a_chain_restores_positions(seed: int) -> None:
    """Pose and crop change where samples lie, never where the patient lies."""
    rng = np.random.default_rng(seed)
    scan = random_grid(rng)
    pose = posed(scan, angle_rad=0.3, scale=(1.3, 0.8), shift_mm=(4.0, -2.0))
    crop = pose.crop((0, 1, 1), scan.shape)
    index = torch.from_numpy(rng.uniform(0, 5, (50, 3)))
    assert torch.allclose(scan.mm(scan.index(crop.mm(index))), crop.mm(index), atol=1e-9)


# ---- fill, edges, types ------------------------------------------------------------------------


def test_a_voxel_reaches_half_a_step_beyond_its_centre() -> None:
    """One row 10, 20 at 1 mm: edges at index -0.5 and 1.5; the half voxel holds the edge value."""
    source = Grid.from_spacing((1, 1, 2), (1, 1, 1))
    values = Volume(torch.tensor([[[[10.0, 20.0]]]]), source)
    # Quarter steps from index -0.875 on: -0.875, -0.625 | -0.375, ... , 1.375 | 1.625
    low, high = torch.tensor([-0.5, -0.5, -1.0]), torch.tensor([0.5, 0.5, 1.75])
    fine = boxed(source, low, high, (1, 1, 11))
    got = resample(values, fine, fill=-1.0).data.flatten()
    want = [-1, -1, 10, 10, 11.25, 13.75, 16.25, 18.75, 20, 20, -1]
    assert torch.allclose(got, torch.tensor(want))


def test_single_slices_have_a_thickness() -> None:
    source = Grid.from_spacing((1, 4, 4), (5, 1, 1))
    thick = Grid.from_spacing((5, 4, 4), (2.4, 1, 1))  # centres at -4.8, -2.4, 0, 2.4, 4.8 mm
    got = resample(Volume(torch.ones(1, 1, 4, 4), source), thick).data
    assert got[0, :, 0, 0].tolist() == [0, 1, 1, 1, 0]


def test_nearest_keeps_labels_and_their_type() -> None:
    source = Grid.from_spacing((2, 4, 4), (2, 1, 1))
    labels = Volume(torch.arange(32, dtype=torch.uint8).reshape(1, 2, 4, 4), source)
    finer = resample(labels, source.resized((4, 8, 8)), mode="nearest")
    assert finer.data.dtype == torch.uint8
    assert torch.equal(finer.data[:, ::2, ::2, ::2], labels.data)
    big = Volume(torch.full((1, 2, 4, 4), 2**30 + 1), source)
    assert (resample(big, source.resized((4, 8, 8)), mode="nearest").data == 2**30 + 1).all()


def test_a_sub_grid_is_copied_exactly_and_padded() -> None:
    source = random_grid(np.random.default_rng(3))
    values = torch.from_numpy(np.random.default_rng(4).normal(size=(2, *source.shape)))
    volume = Volume(values, source)
    assert torch.equal(resample(volume, source).data, values)
    assert torch.equal(resample(volume, source.slicewise()).data, values)
    nz, ny, nx = source.shape
    wide = resample(volume, source.crop((-1, -2, -3), (nz + 2, ny + 4, nx + 6)), fill=(7.0, 8.0))
    assert torch.equal(wide.data[:, 1:-1, 2:-2, 3:-3], values)
    assert (wide.data[0, 0] == 7).all() and (wide.data[1, :, :, -3:] == 8).all()
    far = resample(volume, source.crop((0, ny + 50, 0), source.shape), fill=7.0)
    assert (far.data == 7).all()


def test_a_slicewise_source_is_sampled_in_its_own_planes_only() -> None:
    source = Grid.from_spacing((3, 8, 8), (2, 1, 1))
    volume = Volume(torch.zeros(1, 3, 8, 8), source.slicewise())
    with pytest.raises(ValueError, match="own planes"):
        resample(volume, source.crop((1, 0, 0), source.shape))
    with pytest.raises(ValueError, match="cannot be paired"):
        resample(volume, source.slices(0, 2))
    tilted = posed(source, angle_rad=(0.1, 0.0, 0.0), scale=(1, 1, 1), shift_mm=(0, 0, 0))
    with pytest.raises(ValueError, match="own planes"):
        resample(volume, tilted)


# ---- grids -------------------------------------------------------------------------------------


def test_canonical_grid_by_hand() -> None:
    """2 slices of 3 x 4 pixels, 5 x 2 x 1 mm, about (10, 20, 30)."""
    grid = Grid.from_spacing((2, 3, 4), (5, 2, 1), centre_mm=(10, 20, 30))
    # First voxel: 1.5 columns to the right of the middle, one row in front, half a slice below.
    assert grid.mm((0, 0, 0)).tolist() == [11.5, 22.0, 27.5]
    assert grid.mm((1, 2, 3)).tolist() == [8.5, 18.0, 32.5]
    assert grid.index((10, 20, 30)).tolist() == [0.5, 1.0, 1.5]
    assert grid.spacing_mm.tolist() == [5, 2, 1]
    assert float(grid.voxel_ml) == pytest.approx(0.01)
    assert grid.centre_mm.tolist() == [10, 20, 30]
    assert grid.slicewise().centre_mm.tolist() == [[10, 20, 27.5], [10, 20, 32.5]]


def test_spacing_changes_keep_the_extent() -> None:
    grid = Grid.from_spacing((10, 100, 60), (3, 0.7, 0.9), centre_mm=(1, 2, 3))
    coarse = grid.with_spacing((3, 1.0, 1.0))
    assert coarse.shape == (10, 70, 54)
    assert torch.allclose(coarse.centre_mm, grid.centre_mm)
    extent = coarse.spacing_mm * torch.tensor(coarse.shape)
    assert torch.allclose(extent, grid.spacing_mm * torch.tensor(grid.shape))
    assert coarse.resized(grid.shape).same_as(grid)


def test_grids_that_are_none_are_refused() -> None:
    for matrix in (torch.zeros(4, 4), torch.full((4, 4), math.nan), torch.eye(3)):
        with pytest.raises(ValueError):
            Grid((1, 2, 3), matrix)
    for shape in ((0, 2, 3), (2, 3)):
        with pytest.raises(ValueError):
            Grid(shape, torch.eye(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 matrices for 3 slices"):
        Grid((3, 4, 4), torch.eye(4).expand(2, 4, 4))
    with pytest.raises(ValueError, match="does not match a grid"):
        Volume(torch.zeros(1, 2, 3, 4), Grid((4, 3, 2), torch.eye(4)))


def test_same_as_looks_at_the_corners() -> None:
    grid = Grid.from_spacing((10, 512, 512), (1, 0.5, 0.5))
    turned = posed(grid, angle_rad=1e-5)  # 1e-5 rad at 180 mm: 1.8 micrometres
    assert not turned.same_as(grid) and turned.same_as(grid, tolerance_mm=0.01)
    assert grid.slicewise().same_as(grid) and not grid.same_as(grid.resized((10, 512, 511)))


def test_a_difference_is_told_with_the_digits_that_show_it() -> None:
    grid = Grid.from_spacing((3, 5, 5), (4, 0.5, 0.5))
    assert grid.resized((3, 5, 6)).difference(grid) == "3 x 5 x 6 voxels, not 3 x 5 x 5"
    moved = Grid.from_spacing((3, 5, 5), (4, 0.5, 0.5), (0.0, 0.03, 0.04))
    assert moved.difference(grid) == "as many voxels, up to 0.05 mm apart"
    # Around the same centre, (0, 2, 2) pixels from the corners: 2 * 0.0001 * sqrt(2) mm.
    wider = Grid.from_spacing((3, 5, 5), (4, 0.5001, 0.5001))
    said = "up to 0.0002828 mm apart, of 4 x 0.5001 x 0.5001 mm, not 4 x 0.5 x 0.5 mm"
    assert wider.difference(grid) == f"as many voxels, {said}"


def test_a_batch_is_a_slicewise_volume() -> None:
    rng = np.random.default_rng(0)
    scans = [
        Volume(torch.rand(2, 5, 8, 8), Grid.from_spacing((5, 8, 8), (2, s, s), rng.normal(size=3)))
        for s in (0.5, 0.9)
    ]
    batch = stack([scans[0].slices(3, 4), scans[1].slices(0, 1), scans[0].slices(1, 3)])
    assert batch.grid.shape == (4, 8, 8) and batch.grid.is_slicewise
    assert torch.equal(batch.data[:, 1], scans[1].data[:, 0])
    assert torch.allclose(batch.grid.centre_mm[0], scans[0].grid.slicewise().centre_mm[3])
    with pytest.raises(ValueError, match="nothing"):
        stack([])
    with pytest.raises(ValueError, match="differ"):
        stack([scans[0], Volume(torch.rand(1, 5, 8, 8), scans[0].grid)])


# ---- theta and pose ----------------------------------------------------------------------------


@given(seeds, st.sampled_from(["slices", "plane", "space"]))
@settings(max_examples=40)
def test_grid_from_theta_maps_normalised_coordinates_by_theta(seed: int, kind: str) -> None:
    """A point c of the output, in normalised coordinates, is at theta @ (c, 1) of the source."""
    rng = np.random.default_rng(seed)
    source = random_grid(rng)
    shape = {"slices": (source.shape[0], 2, 3), "plane": (2, 3), "space": (3, 4)}[kind]
    theta = torch.from_numpy(rng.normal(size=shape))
    out_shape = (7 if kind == "space" else source.shape[0], 9, 11)
    grid = grid_from_theta(theta, source, out_shape)
    assert grid.shape == out_shape
    axes = 3 if kind == "space" else 2
    for k in range(source.shape[0] if kind == "slices" else 1):
        one = Grid((1, *out_shape[1:]), grid.mm_from_index[k]) if kind == "slices" else grid
        home = source.slices(k, k + 1) if kind == "slices" else source
        point = torch.from_numpy(rng.uniform(-1, 1, size=3))  # (x, y, z)
        index = ((point.flip(0) + 1) * torch.tensor(one.shape) - 1) / 2
        found = ((2 * home.index(one.mm(index)) + 1) / torch.tensor(home.shape) - 1).flip(0)
        matrix = theta[k] if kind == "slices" else theta
        expected = matrix[:, :axes] @ point[:axes] + matrix[:, axes]
        assert torch.allclose(found, torch.cat([expected, point[axes:]]), atol=1e-8)


@given(seeds)
@settings(max_examples=30)
def test_theta_means_what_torch_means(seed: int) -> None:
    """torch samples with theta itself; kidseg with the grid that theta is."""
    rng = np.random.default_rng(seed)
    source = random_grid(rng)
    n = source.shape[0]
    data = torch.from_numpy(rng.normal(size=(2, *source.shape)))
    theta = torch.from_numpy(rng.normal(size=(n, 2, 3)) * 0.1) + torch.eye(2, 3)
    theirs = torch.nn.functional.grid_sample(
        data.transpose(0, 1),
        torch.nn.functional.affine_grid(theta, [n, 2, 13, 15], align_corners=False),
        align_corners=False,
        padding_mode="border",
    ).transpose(0, 1)
    grid = grid_from_theta(theta, source, (n, 13, 15))
    ours = resample(Volume(data, source), grid, fill=math.nan).data
    seen = torch.isfinite(ours)
    assert seen.any() and torch.allclose(ours[seen], theirs[seen], atol=1e-9)


def test_identity_theta_is_the_grid_itself() -> None:
    grid = random_grid(np.random.default_rng(7))
    assert grid_from_theta(torch.eye(2, 3), grid).same_as(grid, 1e-9)
    assert grid_from_theta(torch.eye(3, 4), grid).same_as(grid, 1e-9)


def test_two_thetas_in_a_row_are_a_matrix_product() -> None:
    rng = np.random.default_rng(8)
    source = random_grid(rng)
    a, b = (torch.from_numpy(rng.normal(size=(3, 4))) for _ in range(2))
    both = grid_from_theta(b, grid_from_theta(a, source))
    bottom = torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)
    product = torch.cat([a, bottom]) @ torch.cat([b, bottom])
    assert both.same_as(grid_from_theta(product[:3], source), 1e-6)


def test_a_rotation_is_a_rotation_for_non_square_pixels_and_images() -> None:
    grid = Grid.from_spacing((1, 30, 200), (5, 2.0, 0.5))
    turned = posed(grid, angle_rad=0.7)
    centre = grid.centre_mm
    index = torch.tensor([[0, 0, 0], [0, 29, 0], [0, 7, 150]], dtype=torch.float64)
    before = torch.linalg.vector_norm(grid.mm(index) - centre, dim=-1)
    after = torch.linalg.vector_norm(turned.mm(index) - centre, dim=-1)
    assert torch.allclose(before, after)
    assert torch.allclose(turned.spacing_mm, grid.spacing_mm)
    across = turned.mm_from_index[:3, 1] @ turned.mm_from_index[:3, 2]
    assert float(across) == pytest.approx(0, abs=1e-12)


def test_pose_by_hand() -> None:
    """A quarter turn, twice the width, 3 mm along columns (towards the patient's left)."""
    grid = Grid.from_spacing((1, 11, 11), (5, 1, 1))
    turned = posed(grid, angle_rad=math.pi / 2, scale=(2.0, 1.0), shift_mm=(3.0, 0.0))
    # The middle moves 3 mm left (x = -3). One column on is 2 mm along what were the rows (back).
    assert torch.allclose(turned.mm((0, 5, 5)), torch.tensor([-3.0, 0, 0]).double(), atol=1e-12)
    assert torch.allclose(turned.mm((0, 5, 6)), torch.tensor([-3.0, -2, 0]).double(), atol=1e-12)
    # One row on is 1 mm against what were the columns (to the right).
    assert torch.allclose(turned.mm((0, 6, 5)), torch.tensor([-2.0, 0, 0]).double(), atol=1e-12)


@given(seeds, st.booleans())
@settings(max_examples=40)
def test_in_plane_pose_reads_back_what_posed_wrote(seed: int, slicewise: bool) -> None:
    rng = np.random.default_rng(seed)
    grid = random_grid(rng)
    lead = (grid.shape[0],) if slicewise else ()
    angle = torch.from_numpy(rng.uniform(-3, 3, lead))
    scale = torch.from_numpy(rng.uniform(0.5, 2, (*lead, 2)))
    shift = torch.from_numpy(rng.uniform(-9, 9, (*lead, 2)))
    pose = posed(grid, angle_rad=angle, scale=scale, shift_mm=shift)
    for target in (pose, pose.resized((grid.shape[0], 40, 50))):
        read = in_plane_pose(target, grid)
        assert torch.allclose(read.angle_rad, angle, atol=1e-9)
        assert torch.allclose(read.scale, scale, atol=1e-9)
        assert torch.allclose(read.shift_mm, shift, atol=1e-7)


def test_gradients_reach_theta_and_pose() -> None:
    """By finite differences, through the sampler: what an STN learns from."""
    rng = np.random.default_rng(11)
    scan = Grid.from_spacing((2, 12, 12), (3, 1, 1))
    smooth = torch.from_numpy(rng.normal(size=(1, 2, 3, 3)))
    data = resample(Volume(smooth, scan.resized((2, 3, 3))), scan).data

    def by_pose(angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        grid = posed(scan, angle_rad=angle, scale=scale, shift_mm=shift)
        return resample(Volume(data, scan), grid).data.pow(2).sum()

    def by_theta(theta: Tensor) -> Tensor:
        return resample(Volume(data, scan), grid_from_theta(theta, scan)).data.pow(2).sum()

    def by_box(low: Tensor, high: Tensor) -> Tensor:
        grid = boxed(scan, low, high, (2, 6, 6))
        back = resample(resample(Volume(data, scan), grid), scan)
        return back.data.pow(2).sum()

    leaf = torch.float64
    angle = torch.tensor([0.1, -0.2], dtype=leaf, requires_grad=True)
    scale = torch.tensor([[0.9, 0.83], [0.77, 0.91]], dtype=leaf, requires_grad=True)
    shift = torch.tensor([[0.3, 0.1], [-0.2, 0.4]], dtype=leaf, requires_grad=True)
    assert torch.autograd.gradcheck(by_pose, (angle, scale, shift), eps=1e-7, atol=1e-3)
    theta = (0.83 * torch.eye(2, 3, dtype=leaf) + 0.01).expand(2, 2, 3).clone().requires_grad_()
    assert torch.autograd.gradcheck(by_theta, (theta,), eps=1e-7, atol=1e-3)
    low = torch.tensor([[-0.5, 1.23, 2.31]] * 2, dtype=leaf, requires_grad=True)
    high = torch.tensor([[0.5, 9.77, 8.41]] * 2, dtype=leaf, requires_grad=True)
    assert torch.autograd.gradcheck(by_box, (low, high), eps=1e-7, atol=1e-3)


def test_identity_start_still_has_gradients() -> None:
    """The exact copy of a sub-grid must not cut an STN off at its identity start."""
    scan = Grid.from_spacing((2, 12, 12), (3, 1, 1))
    theta = torch.eye(2, 3).expand(2, 2, 3).clone().requires_grad_()
    data = torch.rand(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    resample(Volume(data, scan), grid_from_theta(theta, scan)).data.pow(2).sum().backward()
    assert theta.grad is not None and theta.grad.abs().sum() > 0


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunked or not, the result is the same."""
    module = importlib.import_module("kidseg.geometry.resample")
    source = random_grid(np.random.default_rng(5))
    volume = Volume(torch.rand(2, *source.shape), source)
    target = posed(source, angle_rad=(0.2, 0.1, 0.3), scale=(1, 1, 1), shift_mm=(0, 0, 0))
    labels = Volume((volume.data * 9).to(torch.uint8), source)
    # In space, and in the planes.
    for grid in (
        target,
        posed(source, angle_rad=0.3),
        source.slicewise().crop((0, 1.5, 1), (source.shape[0], 9, 9)),
    ):
        monkeypatch.undo()
        whole = resample(volume, grid).data
        nearest = resample(labels, grid, mode="nearest").data
        monkeypatch.setattr(module, "_CPU_CHUNK_POINTS", 1)
        assert torch.equal(resample(volume, grid).data, whole)
        again = resample(labels, grid, mode="nearest").data
        assert torch.equal(again, nearest) and again.dtype == torch.uint8


def test_gradients_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("kidseg.geometry.resample")
    source = random_grid(np.random.default_rng(5))
    target, gradients = posed(source, angle_rad=0.3), []
    for points in (2**20, 1):
        monkeypatch.setattr(module, "_CPU_CHUNK_POINTS", points)
        data = torch.ones(2, *source.shape, dtype=torch.float64, requires_grad=True)
        resample(Volume(data, source), target).data.pow(2).sum().backward()
        assert data.grad is not None
        gradients.append(data.grad)
    assert torch.equal(*gradients)


@given(seeds, st.sampled_from(["linear", "nearest"]))
@settings(max_examples=60)
def test_whole_numbers_are_sampled_like_floating_point(seed: int, mode: str) -> None:
    """To the last bit, though only what is seen of them is converted."""
    rng = np.random.default_rng(seed)
    source = random_grid(rng)
    values = torch.from_numpy(rng.integers(-1000, 1000, (2, *source.shape)))
    turn = np.eye(4)
    turn[:3, :3] = rotation(rng)
    turn[:3, 3] = rng.uniform(-60, 60, 3)
    centre = source.mm([0, 0, 0]).numpy()
    turn[:3, 3] += centre - turn[:3, :3] @ centre
    anywhere = source.resized((3, 9, 7)).moved(torch.from_numpy(turn))  # in part, or not at all
    in_planes = posed(source, angle_rad=float(rng.uniform(-3, 3))).crop((-1, 0, 0), (4, 9, 7))
    copied = source.crop((1, -2, 3), (source.shape[0], 9, 7))
    for target in (anywhere, in_planes, copied):
        want = resample(Volume(values.float(), source), target, mode=mode, fill=-2000.0).data
        for kind in (torch.int16, torch.int32):
            got = resample(Volume(values.to(kind), source), target, mode=mode, fill=-2000.0).data
            assert got.dtype == (kind if mode == "nearest" else torch.float32)
            assert torch.equal(got.float(), want)


def test_only_what_is_seen_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the memory may hold anything: here, what is no number."""
    source = Grid.from_spacing((40, 50, 60), (1, 1, 1))
    values = torch.from_numpy(np.random.default_rng(1).integers(0, 99, (1, *source.shape)))
    patch = posed(
        source.crop((20, 10, 30), (5, 6, 7)),
        angle_rad=(0.1, 0.2, 0.3),
        scale=(1, 1, 1),
        shift_mm=(0.2, 0.3, 0.4),
    )
    want = resample(Volume(values.float(), source), patch).data
    made, empty = [], torch.empty

    def poisoned(*size, **how):  # type: ignore[no-untyped-def]
        made.append(empty(*size, **how).fill_(math.nan))
        return made[-1]

    monkeypatch.setattr(torch, "empty", poisoned)
    got = resample(Volume(values.to(torch.int16), source), patch).data
    assert torch.equal(got, want)
    (wide,) = made
    assert 0 < wide.isfinite().sum() < 20**3


@pytest.mark.parametrize("fill", [0.5, -1.0, 300.0])
def test_the_value_outside_whole_numbers_is_the_same_with_and_without_interpolation(
    fill: float,
) -> None:
    source = Grid.from_spacing((2, 3, 3), (1.0, 1.0, 1.0))
    volume = Volume(torch.ones(1, *source.shape, dtype=torch.uint8), source)
    for start in ((0, -2, 0), (0, -2, 0.25)):  # copied, and interpolated
        assert (
            float(resample(volume, source.crop(start, (2, 3, 3)), fill=fill).data[0, 0, 0, 0])
            == fill
        )


@pytest.mark.parametrize("planes", [(2, 2, 9, 0), (1, 2, 3, 4), (-1, 0, 1, 2), (2, 1, 0, -1)])
def test_slices_of_a_sub_grid_are_copied_in_any_order(planes: tuple[int, ...]) -> None:
    source = Grid.from_spacing((4, 3, 3), (1, 1, 1))
    values = torch.arange(36, dtype=torch.int16).reshape(1, 4, 3, 3)
    matrices = source.mm_from_index.repeat(4, 1, 1)
    matrices[:, :3, 3] += torch.tensor(planes)[:, None] * source.mm_from_index[:3, 0]
    got = resample(Volume(values, source), Grid((4, 3, 3), matrices), fill=-1.0).data
    assert got.dtype == torch.float32
    for k, plane in enumerate(planes):
        inside = 0 <= plane < 4
        want = values[0, plane].float() if inside else torch.full((3, 3), -1.0)
        assert torch.equal(got[0, k], want)


@settings(max_examples=25)
@given(seeds)
def test_cubic_agrees_with_scipy_on_a_resized_grid(seed: int) -> None:
    """Half-voxel centres, edge values beyond the edge; clipped to the range of the channel."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    source = random_grid(rng)
    shape = rng.integers(1, 30, size=3)
    data = torch.from_numpy(rng.normal(size=(2, *source.shape)))
    ours = resample(Volume(data, source), source.resized(shape), mode="cubic").data.numpy()
    for channel, result in zip(data.numpy(), ours, strict=True):
        zoom = shape / np.asarray(channel.shape)
        peer = ndimage.zoom(channel, zoom, order=3, mode="nearest", grid_mode=True)
        peer = peer.clip(channel.min(), channel.max())
        assert np.abs(result - peer).max() < 1e-5


def test_cubic_agrees_with_skimage_as_nnunet_calls_it() -> None:
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(3)
    source = Grid.from_spacing((3, 31, 18), (5, 0.7, 0.9))
    data = torch.from_numpy(rng.normal(size=(1, *source.shape)))
    target = source.resized((3, 22, 40))
    slicewise = resample(Volume(data, source.slicewise()), target.slicewise(), mode="cubic").data
    whole = resample(Volume(data, source), target, mode="cubic").data
    how = {"order": 3, "mode": "edge", "anti_aliasing": False}
    for image, result in zip(data[0].numpy(), slicewise[0].numpy(), strict=True):
        assert np.abs(transform.resize(image, (22, 40), **how) - result).max() < 1e-5
    peer = transform.resize(data[0].numpy(), target.shape, **how)
    assert np.abs(peer - whole[0].numpy()).max() < 1e-5


def test_cubic_is_exact_on_a_ramp_in_the_interior() -> None:
    source = Grid.from_spacing((40, 44, 48), (2.5, 0.8, 0.7), (3, -20, 110))
    values = Volume(ramp(source), source)
    inner = source.crop((15, 15, 15), (10, 14, 18))
    finer = inner.with_spacing((1.9, 0.55, 0.61))
    oblique = posed(
        inner.resized((5, 6, 7)), angle_rad=(0.05, -0.04, 0.1), scale=[1.0] * 3, shift_mm=[0.3] * 3
    )
    in_plane = posed(inner, angle_rad=0.1, scale=(0.9, 0.8), shift_mm=(0.3, -0.2))
    for target in (finer, oblique, in_plane):
        found = resample(values, target, mode="cubic").data
        assert (found - ramp(target)).abs().max() < 1e-5


def test_cubic_along_and_across_axes_are_the_same_spline() -> None:
    """A turn of 1e-8 takes the other way through the code and moves nothing."""
    rng = np.random.default_rng(8)
    source = Grid.from_spacing((6, 20, 17), (3, 1.1, 0.9))
    data = torch.from_numpy(rng.normal(size=(2, *source.shape)))
    for resized in (source.resized((6, 25, 30)), source.resized((9, 25, 30))):
        along = resample(Volume(data, source), resized, mode="cubic").data
        tilt = (0.0, 0.0, 3e-8) if resized.shape[0] == 6 else (3e-8, 3e-8, 3e-8)
        turned = posed(resized, angle_rad=tilt, scale=[1.0] * 3, shift_mm=[0.0] * 3)
        across = resample(Volume(data, source), turned, mode="cubic").data
        assert (along - across).abs().max() < 1e-5


def test_cubic_fills_outside_and_takes_one_slice() -> None:
    source = Grid.from_spacing((1, 5, 5), (3, 1, 1))
    flat = Volume(torch.full((1, *source.shape), 7.0), source)
    wide = source.crop((-1, -3, -3), (3, 11, 11)).resized((3, 22, 22))
    found = resample(flat, wide, mode="cubic", fill=-1.0).data[0]
    inside = resample(flat, wide, mode="nearest", fill=-1.0).data[0] == 7
    assert torch.allclose(found[inside], torch.tensor(7.0), atol=1e-5)
    assert (found[~inside] == -1).all() and inside.any() and (~inside).any()


def test_cubic_keeps_to_the_range_of_the_source() -> None:
    source = Grid.from_spacing((2, 9, 9), (3, 1, 1))
    step = torch.zeros(1, 2, 9, 9)
    step[0, 0, :, 5:], step[0, 1] = 1.0, 4.0
    target = source.resized((2, 30, 30))
    whole = resample(Volume(step, source), target, mode="cubic").data
    each = resample(Volume(step, source.slicewise()), target.slicewise(), mode="cubic").data
    assert whole[0, 0].max() > 1.01 and whole.min() == 0.0  # overshoots within the volume's 0..4
    assert each[0, 0].max() == 1.0


def test_binned_means_blocks_on_their_grid() -> None:
    """A ramp in millimetres, averaged over blocks, is the ramp at the blocks' middles."""
    grid = Grid.from_spacing((3, 12, 8), (5.0, 0.7, 0.9), (10.0, -20.0, 30.0))
    slope = torch.tensor([1.5, -2.0, 0.25], dtype=torch.float64)

    def ramp(on: Grid) -> torch.Tensor:
        axes = [torch.arange(n, dtype=torch.float64) for n in on.shape]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return (on.mm(index) @ slope)[None]

    out = binned(Volume(ramp(grid), grid), 4)
    assert out.grid.shape == (3, 3, 2)
    torch.testing.assert_close(out.data, ramp(out.grid))
    torch.testing.assert_close(out.grid.centre_mm, grid.centre_mm)


def test_binned_keeps_all_pixels_where_blocks_do_not_fit() -> None:
    """Five columns in blocks of two: the last block is the fifth column, twice."""
    grid = Grid.from_spacing((1, 2, 5), (1.0, 1.0, 1.0))
    data = torch.arange(10, dtype=torch.int16).reshape(1, 1, 2, 5)
    out = binned(Volume(data, grid), 2)
    assert out.data.tolist() == [[[[3.0, 5.0, 6.5]]]]
    torch.testing.assert_close(out.grid.mm([0, 0, 0]), grid.mm([0, 0.5, 0.5]))
    assert binned(Volume(data, grid), 1).data is data
    with pytest.raises(ValueError, match="at least 1, not 0"):
        binned(Volume(data, grid), 0)


def test_binned_of_a_slicewise_volume() -> None:
    grid = Grid.from_spacing((2, 4, 4), (3.0, 1.0, 1.0)).slicewise()
    out = binned(Volume(torch.ones(1, 2, 4, 4), grid), 2)
    assert out.grid.is_slicewise and out.grid.shape == (2, 2, 2)
    torch.testing.assert_close(out.grid.spacing_mm[:, 1:], torch.full((2, 2), 2.0).double())


def test_joined_channels_keep_their_values_and_the_first_grid() -> None:
    grid = Grid((1, 1, 2), torch.eye(4, dtype=torch.float64))
    first = Volume(torch.tensor([[[[-5, 7]]]], dtype=torch.int16), grid)
    second = Volume(torch.tensor([[[[0.5, 70_000.0]]]]), grid)
    joined = join_channels([first, second])
    assert joined.data[:, 0, 0].tolist() == [[-5.0, 7.0], [0.5, 70_000.0]]
    assert joined.grid is grid
    assert join_channels([first]) is first


def test_channels_of_other_sizes_and_no_channels_are_not_joined() -> None:
    matrix = torch.eye(4, dtype=torch.float64)
    volumes = [Volume(torch.zeros(1, 1, 1, n), Grid((1, 1, n), matrix)) for n in (2, 3)]
    with pytest.raises(ValueError, match="differ in size"):
        join_channels(volumes)
    with pytest.raises(ValueError, match="nothing to join"):
        join_channels([])


def test_slices_are_parallel_up_to_a_tilt() -> None:
    """Not those of a permuted grid, whatever its spacing."""
    scan = Grid.from_spacing((5, 20, 30), (3, 0.8, 0.8))
    assert has_parallel_slices(scan, scan) and has_parallel_slices(scan.slicewise(), scan)
    turned = posed(scan, angle_rad=0.4, scale=(2.0, 0.5))
    assert has_parallel_slices(turned, scan) and has_parallel_slices(
        turned.crop((3, 1, 2), (1, 2, 3)), scan
    )
    for axes in ((2, 0, 1), (1, 0, 2), (1, 2, 0)):
        assert not has_parallel_slices(scan.permuted(axes), scan)
        assert has_parallel_slices(scan.permuted(axes), scan.permuted(axes))
