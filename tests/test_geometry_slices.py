"""Slices of volumes of any size: drawn, shown through a field, sampled by one interpolation."""

from __future__ import annotations

import pytest
import torch

from kidseg.geometry import Grid, Slices, Volume, posed, resample, sampled

SMALL = Grid.from_spacing((3, 4, 4), (5.0, 1.0, 1.0))
LARGE = Grid.from_spacing((2, 4, 6), (3.0, 1.0, 1.0))
DRAWN = [(0, 2), (1, 0), (0, 0), (1, 1)]


def two_volumes() -> list[Volume]:
    return [
        Volume(torch.arange(48.0).reshape(1, *grid.shape) + 100 * n, grid)
        for n, grid in enumerate((SMALL, LARGE))
    ]


def places(grids: list[Grid], drawn: list[tuple[int, int]]) -> Grid:
    """4 x 4 pixels in the plane of each drawn slice."""
    single = [grids[n].slices(k, k + 1).crop((0, 0, 0), (1, 4, 4)) for n, k in drawn]
    matrices = torch.cat([grid.slicewise().mm_from_index for grid in single])
    return Grid((len(drawn), 4, 4), matrices)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_sampled_slices_are_those_of_one_resampling(mode: str) -> None:
    """Of a volume, in any order, each on a turned grid of its own."""
    grid = Grid.from_spacing((8, 40, 36), (10.0, 4.0, 4.0))
    generator = torch.Generator().manual_seed(0)
    image = Volume(torch.rand(2, *grid.shape, generator=generator), grid)
    angle = torch.linspace(-0.4, 0.5, 8)
    turned = posed(grid, angle_rad=angle, scale=torch.full((8, 2), 0.9)).resized((8, 30, 30))
    rows = [3, 0, 5, 3]
    part = Grid((4, 30, 30), turned.mm_from_index[rows])
    slices = Slices.of([image], [(0, k) for k in rows])
    found = sampled(slices, part, mode=mode, fill=-1024.0)
    whole = sampled(image, turned, mode=mode, fill=-1024.0)
    assert torch.equal(whole.data, resample(image, turned, mode=mode, fill=-1024.0).data)
    assert found.grid is part and whole.grid is turned
    assert torch.equal(found.data, whole.data[:, rows])
    assert bool((found.data == -1024.0).any()) and bool((found.data >= 0).any())


def test_slices_drawn_from_volumes_of_any_size_are_those_slices() -> None:
    """Two sizes mixed, in the drawn order; one shown through a field, air around it."""
    volumes = two_volumes()
    grid = places([SMALL, LARGE], DRAWN)
    drawn = Slices.of(volumes, DRAWN)
    assert [rows for rows, _ in drawn.parts] == [(0, 2), (1, 3)]
    found = sampled(drawn, grid).data[0]
    for row, (n, k) in enumerate(DRAWN):
        assert torch.equal(found[row], volumes[n].data[0, k, :, :4])
    fields = [None, (1, 3, 0, 2), None, None]
    cut = Slices.of(volumes, DRAWN, fill=-7.0, fields=fields)
    through = sampled(cut, grid, fill=-7.0).data[0]
    assert torch.equal(through[[0, 2, 3]], found[[0, 2, 3]])
    assert torch.equal(through[1, 1:3, :2], found[1, 1:3, :2])
    assert float(through[1].sum()) == float(found[1, 1:3, :2].sum()) - 7.0 * 12


def test_what_is_drawn_is_a_copy() -> None:
    """Volumes may be mapped into memory, and a field must not cut them."""
    volumes = two_volumes()
    before = [volume.data.clone() for volume in volumes]
    cut = Slices.of(volumes, DRAWN, fill=-7.0, fields=[(0, 1, 0, 1)] * 4)
    for _, part in cut.parts:
        part.data.zero_()
    assert all(torch.equal(v.data, b) for v, b in zip(volumes, before, strict=True))
    assert all(
        v.grid.mm_from_index.equal(g.mm_from_index)
        for v, g in zip(volumes, (SMALL, LARGE), strict=True)
    )


def test_on_a_device_voxels_move_and_grids_stay() -> None:
    moved = Slices.of(two_volumes(), DRAWN).to(torch.device("meta"))
    assert {part.data.device.type for _, part in moved.parts} == {"meta"}
    assert {part.grid.mm_from_index.device.type for _, part in moved.parts} == {"cpu"}
    assert [rows for rows, _ in moved.parts] == [(0, 2), (1, 3)]


def test_sampling_is_differentiable_in_the_grid() -> None:
    """A ramp of 1 per mm along columns, which run against x: moved by 1 mm each pixel loses 1."""
    grid = Grid.from_spacing((3, 16, 16), (5.0, 2.0, 2.0))
    ramp = torch.arange(16.0)[None, None, None].expand(1, 3, 16, 16) * 2
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    drawn = [(0, 2), (1, 0), (0, 1)]
    inner = grid.slicewise().crop((0, 4, 4), (3, 8, 8)).mm_from_index[[k for _, k in drawn]]
    step = torch.zeros(4, 4, dtype=torch.float64)
    step[0, 3] = 1.0
    image = Slices.of([Volume(ramp, grid)] * 2, drawn)
    found = sampled(image, Grid((3, 8, 8), inner + shift * step))
    found.data.mean().backward()
    assert shift.grad is not None and float(shift.grad) == pytest.approx(-1.0, abs=1e-5)
