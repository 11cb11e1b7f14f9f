from __future__ import annotations

import pytest
import torch

from kidseg.geometry import Grid, Volume, boxed, posed
from kidseg.pipeline import Step, run

SCAN = Grid.from_spacing((6, 64, 80), (3, 1, 1), centre_mm=(5, -7, 30))


def bright_box() -> Volume:
    """100 HU in a box of air; its own reference."""
    data = torch.full((1, *SCAN.shape), -1000.0)
    data[0, 1:5, 20:40, 30:60] = 100.0
    return Volume(data, SCAN)


def threshold(image: Volume) -> Volume:
    """Probabilities of background and bright, as a ramp between -1000 and 100 HU."""
    bright = ((image.data[0] + 1000) / 1100).clamp(0, 1)
    return Volume(torch.stack([1 - bright, bright]), image.grid)


def test_one_step_on_the_scans_own_grid_is_exact() -> None:
    scan = bright_box()
    outcome = run(scan, [Step(name="all", locate=lambda s, g, f: g, segment=threshold)])
    assert torch.equal(outcome.labels.data[0] == 1, scan.data[0] > 0)
    assert outcome.labels.grid.same_as(SCAN)
    assert set(outcome.seconds) == {"all", "restore"}


@pytest.mark.parametrize("slicewise", [False, True])
def test_pose_then_crop_comes_back_onto_the_scan(slicewise: bool) -> None:
    scan = bright_box()
    angle = torch.full((SCAN.shape[0],), 0.3) if slicewise else torch.tensor(0.3)
    scale = torch.full((*angle.shape, 2), 0.7)
    seen = []

    def pose(image: Volume, grid: Grid, found: Volume | None) -> Grid:
        assert found is None
        return posed(grid, angle_rad=angle, scale=scale, shift_mm=torch.zeros_like(scale))

    def crop(image: Volume, grid: Grid, found: Volume | None) -> Grid:
        seen.append(grid)
        nz = 1 if grid.is_slicewise else grid.shape[0]
        low, high = torch.tensor([[-0.5, 3.5, 3.5], [nz - 0.5, 61.5, 73.5]])
        return boxed(grid, low, high, (grid.shape[0], 58, 70))

    steps = [
        Step(name="pose", locate=pose),
        Step(name="crop", locate=crop, segment=threshold),
    ]
    outcome = run(scan, steps)
    assert outcome.grids["pose"] is seen[0]
    assert outcome.found.grid.shape == (6, 58, 70)
    got, want = outcome.labels.data[0] == 1, scan.data[0] > 0
    assert 2 * (got & want).sum() / (got.sum() + want.sum()) > 0.97


def test_a_later_step_sees_what_was_found() -> None:
    def near(image: Volume, grid: Grid, found: Volume | None) -> Grid:
        assert found is not None
        hit = (found.data[1] > 0.5).nonzero()
        start, stop = hit.amin(0) - 2, hit.amax(0) + 3
        return grid.crop(start.tolist(), (stop - start).tolist())

    scan = bright_box()
    steps = [
        Step(name="coarse", locate=lambda s, g, f: g.resized((6, 32, 40)), segment=threshold),
        Step(name="fine", locate=near, segment=threshold),
    ]
    outcome = run(scan, steps)
    assert outcome.grids["fine"].shape[1] < 32
    got, want = outcome.labels.data[0] == 1, scan.data[0] > 0
    assert 2 * (got & want).sum() / (got.sum() + want.sum()) > 0.9


def test_steps_that_never_segment_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="no step segments"):
        run(bright_box(), [Step(name="look", locate=lambda s, g, f: g)])
