"""The checks that every format shares: each is tripped, and lets through what is sound."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kidseg.errors import InputError, ResourceError
from kidseg.geometry import Grid
from kidseg.io import checks

HERE = Path("scan.nii.gz")


def values() -> torch.Tensor:
    """(1, 6, 64, 64) int16."""
    drawn = np.random.default_rng(0).normal(0, 300, (1, 6, 64, 64))
    return torch.from_numpy(drawn.clip(-1024, 3000).astype(np.int16))


# ---- row 9: NaN and Inf ------------------------------------------------------------------------


@pytest.mark.row(9)
def test_nonfinite_is_refused_or_replaced_and_said() -> None:
    data = values().float()
    data[0, 0, 0, :4] = torch.tensor([math.nan, -math.inf, math.inf, 5.0])
    with pytest.raises(InputError, match="3 of 24576"):
        checks.replace_nonfinite(data, HERE, nonfinite="refuse", values="ct")
    with pytest.raises(InputError, match="NaN"):  # a label is never made up
        checks.replace_nonfinite(data, HERE, nonfinite="replace", values="labels")
    highest = float(data[torch.isfinite(data)].max())
    replaced, (finding,) = checks.replace_nonfinite(data, HERE, nonfinite="replace", values="ct")
    assert replaced[0, 0, 0, :4].tolist() == [-1024, -1024, highest, 5]
    assert finding.code == "nonfinite-voxels" and "3 of 24576" in finding.cause
    other, _ = checks.replace_nonfinite(data + 5000, HERE, nonfinite="replace", values="any")
    assert float(other.min()) > 3000
    with pytest.raises(InputError):
        checks.replace_nonfinite(data * math.nan, HERE, nonfinite="replace", values="ct")


@pytest.mark.row(9)
def test_sound_data_are_the_same_object() -> None:
    for data in (values(), values().float()):
        same, findings = checks.replace_nonfinite(data, HERE, nonfinite="refuse", values="ct")
        assert same is data and findings == ()


# ---- row 16: resolution ------------------------------------------------------------------------


@pytest.mark.row(16)
@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [
        ((5.0, 0.9, 0.9), []),
        ((5.0000002, 0.9, 0.9), []),
        ((5.1, 0.9, 0.9), ["thick-slices"]),
        ((4.2, 0.7, 0.7), []),
        ((4.3, 0.7, 0.7), ["anisotropic-voxels"]),
        ((7.5, 0.7, 0.7), ["anisotropic-voxels", "thick-slices"]),
        ((0.7, 0.7, 6.0), ["anisotropic-voxels", "thick-slices"]),
    ],
)
def test_coarse_voxels_are_said(
    spacing_mm: tuple[float, float, float], expected: list[str]
) -> None:
    grid = Grid.from_spacing((10, 20, 20), spacing_mm)
    assert [f.code for f in checks.check_resolution(grid, HERE)] == expected
    assert [f.code for f in checks.check_resolution(grid.slicewise(), HERE)] == expected


@pytest.mark.row(5)
@pytest.mark.parametrize(
    ("shape", "spacing_mm", "is_said"),
    [
        ((100, 512, 512), (1.0, 0.7, 0.7), False),
        ((400, 512, 512), (5.0, 0.98, 0.98), False),  # a whole adult
        ((80, 100, 100), (0.7, 0.7, 0.7), False),  # a crop around a kidney
        ((100, 512, 512), (0.1, 0.07, 0.07), True),  # cm
        ((100, 512, 512), (1e-3, 7e-4, 7e-4), True),  # m
        ((100, 512, 512), (1000.0, 700.0, 700.0), True),  # micrometres
    ],
)
def test_spacing_in_another_unit_is_said(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], is_said: bool
) -> None:
    found = checks.check_resolution(Grid.from_spacing(shape, spacing_mm), HERE)
    assert ([f.code for f in found] == ["implausible-size"]) == is_said
    assert not is_said or "--spacing" in found[0].next_step


# ---- rows 4 and 5: positions -------------------------------------------------------------------


def sheared(grid: Grid, slope: float) -> Grid:
    """Each slice shifted along the rows by `slope` times its height."""
    shear = torch.eye(4, dtype=torch.float64)
    shear[1, 2] = slope
    return grid.moved(shear)


@pytest.mark.row(4)
def test_shear_is_ignored_replaced_or_refused_by_size() -> None:
    grid = Grid.from_spacing((40, 50, 60), (2.0, 0.8, 0.8), centre_mm=(5, 6, 7))
    assert checks.orthogonal_grid(grid, HERE) == (grid, ())
    rounding = sheared(grid, 1e-6)
    assert checks.orthogonal_grid(rounding, HERE) == (rounding, ())

    little = sheared(grid, 0.005)
    straight, (finding,) = checks.orthogonal_grid(little, HERE)
    axes = straight.mm_from_index[:3, :3] / straight.spacing_mm
    assert torch.allclose(axes.T @ axes, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(straight.centre_mm, little.centre_mm)
    assert torch.allclose(straight.spacing_mm, little.spacing_mm)
    assert finding.code == "slightly-sheared"
    # The promise: every voxel of the new grid is nearest to its own in the file.
    index = torch.tensor([[0, 0, 0], [39, 49, 59], [0, 49, 0], [39, 0, 59]], dtype=torch.float64)
    assert torch.equal(little.index(straight.mm(index)).round(), index)

    with pytest.raises(InputError, match=r"2\.00 degrees") as caught:
        checks.orthogonal_grid(sheared(grid, math.tan(math.radians(2))), HERE)
    assert caught.value.code == "sheared"


@pytest.mark.row(5)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_spacing_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="spacing") as caught:
        checks.check_spacing((1.0, bad, 1.0), HERE)
    assert caught.value.code == "bad-spacing" and "--spacing" in caught.value.next_step


@pytest.mark.row(5)
def test_a_matrix_without_positions_is_refused() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    flat = eye.clone()
    flat[:3, 1] = flat[:3, 0]
    broken = eye.clone()
    broken[0, 3] = math.nan
    for matrix, code in [(flat, "bad-affine"), (broken, "bad-affine")]:
        with pytest.raises(InputError) as caught:
            checks.grid_of((1, 2, 3), matrix, HERE)
        assert caught.value.code == code
    none = eye.clone()
    none[:3, 0] = 0
    with pytest.raises(InputError, match="spacing"):
        checks.check_matrix(none, HERE)
    with pytest.raises(InputError):  # no direction to stretch
        checks.with_spacing(none, (1, 1, 1), HERE)
    wide = checks.with_spacing(eye, (4, 3, 2), HERE)
    assert torch.equal(wide, torch.diag(torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)))
    with pytest.raises(InputError):
        checks.with_spacing(eye, (4, 3, 0), HERE)


# ---- rows 6, 7, 8: size and shape --------------------------------------------------------------


@pytest.mark.row(6)
def test_what_cannot_be_true_or_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="cannot hold") as caught:
        checks.check_memory(2**50, HERE, held_bytes=2**20)
    assert caught.value.code == "absurd-size"
    with pytest.raises(ResourceError, match=r"1\.0 GiB") as short:
        checks.check_memory(2**30, HERE, held_bytes=2**31, limit_bytes=2**20)
    assert short.value.code == "not-enough-memory" and short.value.exit_code == 5
    with pytest.raises(ResourceError):  # beyond any machine
        checks.check_memory(2**60, HERE)
    checks.check_memory(2**20, HERE, held_bytes=2**20, limit_bytes=2**20)


def test_memory_is_known_on_this_machine() -> None:
    free = checks.available_memory_bytes()
    assert free is not None and 2**20 < free < 2**50


@pytest.mark.row(7, 8)
def test_shapes() -> None:
    assert checks.volume_shape((512, 512, 1), HERE) == (512, 512, 1)
    assert checks.volume_shape((4, 5, 6, 1, 1), HERE) == (4, 5, 6)
    for shape, code in [
        ((512, 512), "two-dimensional"),
        ((4, 5, 6, 2), "several-volumes"),
        ((4, 5, 6, 1, 3), "several-volumes"),
        ((4, 0, 6), "empty-axis"),
        ((4, -3, 6), "empty-axis"),
        ((), "empty-axis"),
    ]:
        with pytest.raises(InputError) as caught:
            checks.volume_shape(shape, HERE)
        assert caught.value.code == code
