"""Parenchyma that would remain, of slabs of which it is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.measure.criteria import read_criteria
from kidseg.measure.mask import Mask
from kidseg.measure.measurement import Measurement, measure_parts
from kidseg.measure.midline import Midline
from kidseg.measure.parts import Labelled, find_parts
from kidseg.measure.person import Patient
from kidseg.measure.resection import REMAINING, remaining_parenchyma

GRID = Grid.from_spacing((24, 24, 140), (1.0, 1.0, 1.0))


def slab(first: int, last: int) -> np.ndarray:
    """Columns of 20 x 20 voxels of 1 mm."""
    data = np.zeros(GRID.shape, bool)
    data[2:22, 2:22, first:last] = True
    return data


def measured(kidney: np.ndarray, tumour: np.ndarray, margin_mm: float) -> Measurement:
    data = torch.from_numpy(np.where(tumour, 2, kidney).astype(np.uint8))[None]
    labelled = Labelled(
        labels=Volume(data, GRID), schema=KIDNEY_TUMOUR, midline=Midline.at(0.0, "body")
    )
    return measure_parts(
        labelled,
        find_parts(labelled, 0.1),
        read_criteria(),
        person=Patient(),
        margin_mm=margin_mm,
        entered={},
    )


@pytest.mark.parametrize(
    ("margin_mm", "percent", "verdict"),
    [
        (0, 100, "met"),
        (10, 75, "met"),  # 30 of 40 mm
        (13, 67.5, "cannot tell"),  # 26 mm more or less: 65 % to 70 %
        (20, 50, "not met"),
        (39, 2.5, "not met"),
        (40, 0, "not met"),
    ],
)
def test_a_margin_off_a_slab_is_a_share_of_its_thickness(
    margin_mm: float, percent: float, verdict: str
) -> None:
    found = measured(slab(10, 50), slab(2, 10), margin_mm)
    remaining = found.sides["right"][REMAINING]
    assert remaining.value == pytest.approx(percent)
    # A voxel is 2.5 % of the thickness.
    assert remaining.low == pytest.approx(max(percent - 2.5, 0))
    assert remaining.high == pytest.approx(min(percent + 2.5, 100))
    record = found.as_dict()["surgical_record"]["right"]
    assert record["RRP"]["value"] == pytest.approx(percent)
    assert {record[name] for name in ("NSS", "SRM", "PRM")} == {"cannot tell"}
    (answer,) = [a for a in found.answers if a.criterion.id == "parenchyma-two-thirds"]
    assert answer.verdict == verdict


def test_a_tumour_between_two_slabs_leaves_two_pieces() -> None:
    kidney = Mask(slab(10, 30) | slab(40, 70), GRID)
    whole, piece = remaining_parenchyma(kidney, [Mask(slab(30, 40), GRID)], 5.0)
    assert whole.value == pytest.approx(100 * (15 + 25) / 50)
    assert (whole.low, whole.high) == pytest.approx((76, 84))
    assert piece.value == pytest.approx(100 * 25 / 50)
    assert (piece.low, piece.high) == pytest.approx((48, 52))


def test_several_tumours_are_removed_together() -> None:
    kidney, ends = Mask(slab(10, 50), GRID), (slab(5, 10), slab(50, 55))
    (whole, _) = remaining_parenchyma(kidney, [Mask(end, GRID) for end in ends], 5.0)
    assert whole.value == pytest.approx(100 * 30 / 40)
    assert remaining_parenchyma(kidney, [], 5.0)[0].value == 100
    assert remaining_parenchyma(Mask(np.zeros_like(kidney.data), GRID), [], 5.0) == ()
