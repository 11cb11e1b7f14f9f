"""What is cut by the border of its region, and what is not."""

from __future__ import annotations

import torch

from kidseg.geometry import Grid, Volume
from kidseg.labels import Target
from kidseg.pipeline import Region, reaches_border

SCAN = Grid.from_spacing((4, 20, 20), (3, 1, 1))
RENAL = Target(channels=((1, 2),))


def region(start: int, columns: slice, name: str = "") -> Region:
    """8 x 8 pixels from row 6 and a column of the scan; found in columns of its row 3."""
    grid = SCAN.crop((0, 6, start), (4, 8, 8))
    found = torch.zeros(4, 8, 8)
    found[2, 3, columns] = 1.0
    data = torch.stack([1 - found, found])
    return Region(grid=grid, name=name, found=Volume(data, grid), target=RENAL)


def test_what_reaches_a_side_inside_the_scan_is_cut() -> None:
    assert reaches_border(region(4, slice(3, 8)), SCAN)
    assert reaches_border(region(4, slice(0, 2)), SCAN)
    assert not reaches_border(region(4, slice(1, 7)), SCAN)
    assert not reaches_border(region(4, slice(0, 0)), SCAN), "nothing was found"


def test_at_the_border_of_the_scan_the_region_cuts_nothing() -> None:
    assert not reaches_border(region(12, slice(3, 8)), SCAN)
    assert not reaches_border(region(0, slice(0, 3)), SCAN)
    assert not reaches_border(region(-4, slice(4, 7)), SCAN)


def test_what_another_region_contains_is_not_cut() -> None:
    """Column 11 of the scan is the border of the first and the inside of the second region."""
    first, second = region(4, slice(3, 8)), region(9, slice(1, 4))
    assert not reaches_border(first, SCAN, [first, second])
    assert reaches_border(first, SCAN, [first]), "not by itself"
    apart = region(11, slice(0, 0))
    assert reaches_border(first, SCAN, [first, apart]), "the border of both"
