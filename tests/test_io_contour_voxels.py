"""Contours to voxels: what is inside, and each kind of contour that is not simply inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from annotated_folders import FIRST, circle, square
from dicom_files import SPACING
from kidseg.errors import Finding
from kidseg.geometry import Grid
from kidseg.io.contour_planes import Noticed
from kidseg.io.contour_voxels import voxels_inside
from kidseg.io.orientation import ras_from_lps
from kidseg.io.structure_set import Contour

SHAPE = (6, 32, 40)


def axial() -> Grid:
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = np.diag(SPACING)[[0, 1, 2]][:, ::-1]
    matrix[:3, 3] = FIRST
    return Grid(SHAPE, torch.from_numpy(ras_from_lps @ matrix))


def drawn(
    contours: Sequence[np.ndarray],
    kinds: Sequence[str] | str = "CLOSED_PLANAR",
    images: Sequence[tuple[str, ...]] = (),
    slice_of: dict[str, int] | None = None,
) -> tuple[np.ndarray, list[Finding]]:
    each = [kinds] * len(contours) if isinstance(kinds, str) else kinds
    made = [
        Contour(kind=kind, points_mm=points, images=images[k] if images else ())
        for k, (kind, points) in enumerate(zip(each, contours, strict=True))
    ]
    noticed = Noticed(path=Path("rs.dcm"), name="kidney")
    return voxels_inside(made, axial(), noticed, slice_of), noticed.findings


def block(k: int, low: tuple[int, int], high: tuple[int, int]) -> np.ndarray:
    expected = np.zeros(SHAPE, bool)
    expected[k, low[0] : high[0], low[1] : high[1]] = True
    return expected


def codes(findings: Sequence[Finding]) -> set[str]:
    assert all("'kidney'" in f.cause and f.path == "rs.dcm" for f in findings)
    return {finding.code for finding in findings}


def test_one_contour() -> None:
    inside, findings = drawn([square(2, (5, 6), (10, 20))])
    assert np.array_equal(inside, block(2, (5, 6), (10, 20))) and not findings


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_holes_islands_and_several_on_a_slice(kind: str) -> None:
    contours = [
        square(1, (4, 4), (20, 20)),
        square(1, (8, 8), (16, 16)),
        square(1, (10, 10), (13, 13)),
        square(1, (22, 24), (28, 30)),
    ]
    expected = block(1, (4, 4), (20, 20)) & ~block(1, (8, 8), (16, 16))
    expected |= block(1, (10, 10), (13, 13)) | block(1, (22, 24), (28, 30))
    for order in (contours, contours[::-1]):
        inside, findings = drawn(order, kind)
        assert np.array_equal(inside, expected)
        said = {"nested-contours"} if kind == "CLOSED_PLANAR" else set()
        assert codes(findings) == said, "CLOSED_PLANAR does not say what an inner contour is"


def test_a_keyhole_through_the_centres_of_pixels_is_a_hole() -> None:
    outer, hole = square(1, (4, 4), (20, 20)), square(1, (8, 8), (16, 16))[::-1]
    keyhole = np.vstack([outer, outer[:1], hole, hole[:1]])
    inside, findings = drawn([keyhole])
    expected = block(1, (4, 4), (20, 20)) & ~block(1, (8, 8), (16, 16))
    assert np.array_equal(inside, expected) and not findings


def test_a_contour_between_slices_belongs_to_the_nearest() -> None:
    for off, k in ((0.3, 2), (-0.3, 2), (0.51, 3)):
        inside, findings = drawn([square(2 + off, (5, 6), (10, 20))])
        assert np.array_equal(inside, block(k, (5, 6), (10, 20)))
        assert codes(findings) == {"between-slices"}
        assert f"{min(abs(off), 1 - abs(off)) * 2.5:.2f} mm" in findings[0].cause
    inside, findings = drawn([square(2 + 0.004, (5, 6), (10, 20))])
    assert inside.any() and not findings, "rounding"


def test_of_two_planes_near_a_slice_the_nearer_counts() -> None:
    near, far = square(2.1, (5, 6), (10, 20)), square(1.7, (15, 6), (20, 20))
    for contours in ([near, far], [far, near]):
        inside, findings = drawn(contours)
        assert np.array_equal(inside, block(2, (5, 6), (10, 20)))
        assert codes(findings) == {"between-slices", "dropped-planes"}
    both = [square(2 - 0.015, (5, 6), (10, 20)), square(2 + 0.015, (15, 6), (20, 20))]
    inside, findings = drawn(both)
    assert inside.sum() == 10 * 14 and not findings, "one plane, but for rounding"


def test_contours_side_by_side_that_lie_a_little_off_their_slice_are_all_used() -> None:
    one, other = square(2 - 0.05, (5, 6), (10, 20)), square(2 + 0.08, (15, 6), (20, 20))
    for contours in ([one, other], [other, one]):
        inside, findings = drawn(contours)
        assert np.array_equal(inside, block(2, (5, 6), (10, 20)) | block(2, (15, 6), (20, 20)))
        assert codes(findings) == {"between-slices"}
    again = square(2 + 0.08, (5, 6), (10, 20))
    inside, findings = drawn([one, again])
    assert np.array_equal(inside, block(2, (5, 6), (10, 20))), "a copy that is off does not cancel"
    assert codes(findings) == {"between-slices", "dropped-planes"}


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_contours_half_way_between_slices_all_go_the_same_way(noise: float) -> None:
    depths = [k + 0.5 + noise * (-1) ** k for k in range(5)]
    images = [(str(k),) for k in range(5)]
    inside, findings = drawn(
        [square(k, (5, 6), (10, 20)) for k in depths],
        images=images,
        slice_of={str(k): k for k in range(5)},
    )
    assert list(inside.any(axis=(1, 2))) == [False, True, True, True, True, True]
    assert codes(findings) == {"between-slices"}


def test_contours_that_cross_themselves_are_said() -> None:
    ring, hole = square(2, (4, 4), (20, 20)), square(2, (8, 8), (16, 16))
    eight = square(2, (4, 4), (20, 20))[[0, 2, 1, 3]]
    for points in (eight, np.vstack([ring, ring]), np.vstack([ring, ring[:1], hole, hole[:1]])):
        _, findings = drawn([points])
        assert "self-crossing-contours" in codes(findings)
    for points in (ring, ring[::-1], np.repeat(ring, 3, axis=0), np.vstack([ring, ring[:1]])):
        inside, findings = drawn([points])
        assert np.array_equal(inside, block(2, (4, 4), (20, 20))) and not findings


def test_missing_slices_are_said_and_not_filled() -> None:
    inside, findings = drawn([square(k, (5, 6), (10, 20)) for k in (0, 1, 4)])
    assert list(inside.any(axis=(1, 2))) == [True, True, False, False, True, False]
    assert codes(findings) == {"contour-gap"} and "(2)" in findings[0].cause
    _, findings = drawn([square(k, (5, 6), (10, 20)) for k in (0, 2, 4)])
    assert "only one in 2" in findings[0].cause


def test_copies_count_once() -> None:
    one = square(2, (5, 6), (10, 20))
    for copy in (one, one[::-1], np.roll(one, 2, axis=0)):
        inside, findings = drawn([one, copy])
        assert np.array_equal(inside, block(2, (5, 6), (10, 20))), "not a hole in itself"
        assert codes(findings) == {"duplicate-contours"}


def test_too_few_points() -> None:
    whole = square(2, (5, 6), (10, 20))
    inside, findings = drawn([whole, whole[:1], whole[:2], np.vstack([whole[:2], whole[:1]])])
    assert np.array_equal(inside, block(2, (5, 6), (10, 20)))
    assert codes(findings) == {"degenerate-contours"} and "3 contours" in findings[0].cause
    _, findings = drawn([whole[:2]])
    assert codes(findings) == {"degenerate-contours", "nothing-inside"}


@pytest.mark.parametrize("kind", ["OPEN_PLANAR", "OPEN_NONPLANAR", "SPLINE"])
def test_open_contours_are_an_error(kind: str) -> None:
    _, findings = drawn([circle(2), circle(3)], ["CLOSED_PLANAR", kind])
    assert codes(findings) == {"open-contours"} and kind in findings[0].cause
    assert findings[0].severity == "error"


def test_points_are_left_out_and_said() -> None:
    inside, findings = drawn([circle(2), circle(3)[:1]], ["CLOSED_PLANAR", "POINT"])
    assert inside[2].any() and not inside[3].any() and codes(findings) == {"point-contours"}
    _, findings = drawn([circle(3)[:1]], "POINT")
    assert codes(findings) == {"point-contours", "nothing-inside"}


def test_other_orientations_and_bent_contours_are_errors() -> None:
    coronal = circle(2)[:, [0, 2, 1]] - [0, 40, -40]
    _, findings = drawn([circle(2), coronal])
    assert codes(findings) == {"contour-orientation"} and findings[0].severity == "error"
    bent = circle(2)
    bent[:, 2] += 2 * np.sin(np.linspace(0, 4 * np.pi, len(bent)))
    _, findings = drawn([bent])
    assert codes(findings) == {"contour-not-planar"}


def test_outside_the_image() -> None:
    inside, findings = drawn([square(2, (-5, 6), (10, 60))])
    assert np.array_equal(inside, block(2, (0, 6), (10, 40))) and codes(findings) == {
        "contour-outside"
    }
    inside, findings = drawn([square(2, (5, 6), (10, 20)), square(9, (5, 6), (10, 20))])
    assert inside.sum() == 70 and codes(findings) == {"contour-outside"}
    _, findings = drawn([square(9, (5, 6), (10, 20))])
    assert codes(findings) == {"contour-outside", "nothing-inside"}
    assert {f.code for f in findings if f.severity == "error"} == {"nothing-inside"}
    _, findings = drawn([square(2, (50, 60), (60, 70))])
    assert "nothing-inside" in codes(findings)


def test_contours_that_cross_are_said() -> None:
    inside, findings = drawn([square(2, (5, 5), (15, 15)), square(2, (10, 10), (20, 20))])
    assert codes(findings) == {"overlapping-contours"} and inside.sum() == 150
    _, findings = drawn([square(2, (5, 5), (15, 15)), square(2, (15, 5), (20, 15))])
    assert not findings, "neighbours do not overlap"


def test_the_position_counts_if_a_contour_refers_to_another_image() -> None:
    slice_of = {f"1.2.{k}": k for k in range(6)}
    square_2 = square(2, (5, 6), (10, 20))
    inside, findings = drawn([square_2], images=[("1.2.2",)], slice_of=slice_of)
    assert inside[2].any() and not findings
    inside, findings = drawn([square_2], images=[("1.2.4",)], slice_of=slice_of)
    assert inside[2].any() and codes(findings) == {"other-image"}


def test_a_broken_contour_is_an_error() -> None:
    broken = Contour(kind="CLOSED_PLANAR", points_mm=np.zeros((0, 3)), fault="it is broken")
    noticed = Noticed(path=Path("rs.dcm"), name="kidney")
    voxels_inside([broken], axial(), noticed)
    assert codes(noticed.findings) == {"bad-contour"} and "it is broken" in str(noticed.findings[0])


def test_a_structure_without_contours_is_empty() -> None:
    inside, findings = drawn([])
    assert not inside.any() and not findings
