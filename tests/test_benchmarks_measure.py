"""Which parenchyma a digital patient has in finer voxels, and surfaces cut where they end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from contact_spacing import part_inside
from measure_phantoms import of_nearest_piece


def test_finer_voxels_of_a_kidney_belong_to_what_the_nearest_piece_is() -> None:
    """A kidney of two voxels, and a piece of one that was given to the tumour, five further on."""
    kidney, written = np.zeros((1, 1, 9), bool), np.zeros((1, 1, 9), int)
    kidney[..., [0, 1, 7]] = True
    written[..., :2], written[..., 7] = 1, 2
    place = np.array([[0, 0, x] for x in (0.25, 3.5, 4.6, 6.75, 9.4)])
    assert of_nearest_piece(kidney, written, place, [1.0, 1.0, 1.0]).tolist() == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_the_part_of_a_triangle_where_a_function_is_positive(order: tuple[int, ...]) -> None:
    values = np.array([[1.0, -1, -1], [1, 1, -1], [1, 1, 1], [-1, -1, -1], [1, -3, -1]])
    assert part_inside(values[:, order]) == pytest.approx([0.25, 0.75, 1, 0, 0.125])
