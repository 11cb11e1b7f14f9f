"""What a picture of a slice says: sides, scale, window, found and true."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import reorient
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.report.annotation import (
    CT_WINDOW,
    draw_found,
    draw_true,
    edge_of_right,
    fit_image,
    label_handles,
    mark_scale,
    mark_sides,
    window_text,
)
from kidseg.segment.figure import Panel, draw_panels
from kidseg.segment.figure_title import pose_text

GRID = Grid.from_spacing((1, 20, 30), (5.0, 2.0, 2.0))


def axes_of(shape: tuple[int, int], aspect: float = 1.0) -> Any:
    """Axes with a black image of this shape."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(np.zeros(shape), cmap="gray", vmin=0, vmax=1, aspect=aspect)
    axes.set_axis_off()
    fit_image(axes, shape)
    return axes


def pixels(axes: Any) -> np.ndarray:
    axes.figure.canvas.draw()
    return np.asarray(axes.figure.canvas.buffer_rgba())[..., :3].astype(int)


def test_a_canonical_slice_has_the_patients_right_on_its_left() -> None:
    assert edge_of_right(GRID) == "left"


ORDERS = [
    (order, flips) for order in permutations(range(3)) for flips in product((1.0, -1.0), repeat=3)
]


@pytest.mark.parametrize(("order", "flips"), ORDERS)
def test_the_right_is_where_x_is_largest(order: tuple[int, ...], flips: tuple[float, ...]) -> None:
    """In each voxel order; the first axis of the order is that of the slices."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    for column, (axis, sign) in enumerate(zip(order, flips, strict=True)):
        matrix[axis, column] = sign
    like = Grid((2, 2, 2), torch.from_numpy(matrix))
    data = torch.zeros((1, 20, 20, 20), dtype=torch.uint8)
    grid = Grid.from_spacing((20, 20, 20), (1.0, 1.0, 1.0))
    place = reorient(Volume(data, grid), like).grid.slices(3, 4)
    middle = place.mm([0.0, 9.5, 9.5])[0]
    ends = {
        "left": [0.0, 9.5, -0.5],
        "right": [0.0, 9.5, 19.5],
        "top": [0.0, -0.5, 9.5],
        "bottom": [0.0, 19.5, 9.5],
    }
    further = {edge: float(place.mm(index)[0] - middle) for edge, index in ends.items()}
    edge = edge_of_right(place)
    if edge is None:
        assert max(map(abs, further.values())) < 1e-6, "the slice is sagittal"
    else:
        assert further[edge] == pytest.approx(10.0)


def test_a_turned_slice_keeps_its_sides() -> None:
    for deg in (-40.0, 40.0):
        c, s = np.cos(np.radians(deg)), np.sin(np.radians(deg))
        turn = torch.tensor([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        assert edge_of_right(GRID.moved(turn.double())) == "left"


def test_r_and_l_are_written_on_their_sides() -> None:
    axes = axes_of((20, 30))
    mark_sides(axes, "left")
    right, left = axes.texts
    assert (right.get_text(), left.get_text()) == ("R", "L")
    assert right.get_position()[0] < 0.1 and left.get_position()[0] > 0.9
    drawn = pixels(axes)
    assert drawn[:, :40].max() > 200 and drawn[:, -40:].max() > 200
    bare = axes_of((20, 30))
    mark_sides(bare, None)
    assert not bare.texts


@pytest.mark.parametrize(
    ("shape", "mm", "text"),
    [
        ((512, 512), (0.7, 0.7), "10 cm"),  # a third of 358 mm is 125
        ((128, 128), (1.5, 1.5), "5 cm"),  # of 192 mm is 67
        ((8, 8), (1.0, 1.0), "2 mm"),  # of 8 mm is 2.8
        ((1, 1), (0.2, 0.2), "0.5 mm"),
        ((100, 40), (1.0, 1.0), "1 cm"),
    ],
)
def test_a_scale_bar_is_as_long_as_it_says(
    shape: tuple[int, int], mm: tuple[float, float], text: str
) -> None:
    axes = axes_of(shape)
    mark_scale(axes, shape, mm)
    (line,) = axes.lines
    (said,) = axes.texts
    number, unit = said.get_text().split()
    across = np.ptp(line.get_xdata()) * mm[1]
    assert said.get_text() == text
    assert across == pytest.approx(float(number) * {"cm": 10.0, "mm": 1.0}[unit])


def test_pixels_that_are_stretched_have_a_bar_each_way() -> None:
    axes = axes_of((100, 100))
    mark_scale(axes, (100, 100), (2.0, 1.0))
    across, down = axes.lines
    assert np.ptp(across.get_xdata()) * 1.0 == np.ptp(down.get_ydata()) * 2.0 == 20.0
    true_to_scale = axes_of((100, 100), aspect=2.0)
    mark_scale(true_to_scale, (100, 100), (2.0, 1.0))
    assert len(true_to_scale.lines) == 1


def test_found_is_filled_and_true_is_dashed() -> None:
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[10:30, 10:30] = 2
    found, true = axes_of(labels.shape), axes_of(labels.shape)
    draw_found(found, labels, KIDNEY_TUMOUR)
    draw_true(true, labels, KIDNEY_TUMOUR)
    fill, dashes = pixels(found), pixels(true)
    middle = tuple(n // 2 for n in fill.shape[:2])
    assert fill[middle][0] > 60 and not dashes[middle].any(), "only what was found is filled"
    edge = dashes[:, :, 0].max(1)
    rows = np.flatnonzero(edge > 60)
    along = dashes[rows[0] : rows[0] + 3, :, 0].max(0)
    inner = along[along.shape[0] // 3 : -along.shape[0] // 3] > 60
    assert 0.2 < inner.mean() < 0.9, "with gaps"
    solid = fill[np.flatnonzero(fill[:, :, 0].max(1) > 60)[0] + 1, :, 0]
    assert (solid[len(solid) // 3 : -len(solid) // 3] > 60).all()


def test_a_legend_tells_found_from_true() -> None:
    both = [h.get_label() for h in label_handles(KIDNEY_TUMOUR, found=True, true=True)]
    assert both == ["kidney, found", "kidney, true", "tumour, found", "tumour, true"]
    alone = [h.get_label() for h in label_handles(KIDNEY_TUMOUR, found=True, true=False)]
    assert alone == ["kidney", "tumour"]


def test_windows_are_named() -> None:
    assert window_text([CT_WINDOW, CT_WINDOW]) == "Window: level 40, width 400 HU."
    assert window_text([(0.0, 10.0)], "") == "Window: level 5, width 10."


@pytest.mark.parametrize(
    ("angle", "scale", "shift", "parts"),
    [
        (12.34, (1.83, 1.83), (0.2, -0.4), ["turned clockwise by 12.3 deg", "shrunk by 1.83"]),
        (
            -5.0,
            (0.5, 0.5),
            (12.0, 0.0),
            ["anticlockwise", "12 mm to the patient's left;", "d by 2.00"],
        ),
        (1.0, (1.25, 1.5), (-3.0, 4.0), ["3 mm to the patient's right and 4 mm to the back;"]),
        (1.0, (1.25, 1.5), (0.0, 0.0), ["shrunk by 1.25 in width and 1.50 in height"]),
        (
            1.0,
            (1.25, 0.8),
            (0.0, -4.0),
            ["4 mm to the front", "shrunk by 1.25 in width, enlarged by"],
        ),
        (1.0, (1.001, 1.0), (0.0, 0.0), ["deg; kept in size"]),
        (1.0, (1.001, 1.5), (0.0, 0.0), ["kept in width, shrunk by 1.50 in height"]),
    ],
)
def test_a_pose_is_said_in_words(
    angle: float, scale: tuple[float, float], shift: tuple[float, float], parts: list[str]
) -> None:
    text = pose_text(angle, scale, shift)
    assert all(part in text for part in parts), text


def test_the_pose_is_that_of_the_patient() -> None:
    """A body turned clockwise in the image and moved to its left, and its upright grid."""
    from kidseg.body import body_mask, moments, normalized
    from kidseg.geometry import in_plane_pose

    grid = Grid.from_spacing((1, 128, 128), (5.0, 2.0, 2.0))
    down, across = torch.meshgrid(*(torch.arange(128.0) * 2 - 127,) * 2, indexing="ij")
    turn = torch.deg2rad(torch.tensor(15.0))
    across, down = across - 20, down + 8
    along = (across * turn.cos() + down * turn.sin()) / 80
    aside = (-across * turn.sin() + down * turn.cos()) / 50
    hu = torch.where(along**2 + aside**2 <= 1, 40, -1000).to(torch.int16)
    body = moments(body_mask(Volume(hu[None, None], grid)))
    upright = normalized(grid, body, radii_mm=(40.0, 25.0), field_mm=120.0, size=64)
    pose = in_plane_pose(upright, grid)
    angle = float(torch.rad2deg(pose.angle_rad).reshape(-1)[0])
    text = pose_text(angle, (2.0, 2.0), pose.shift_mm.reshape(-1, 2)[0].tolist())
    # The lower end of the body is on the image's right: it is turned clockwise.
    assert abs(angle - 15.0) < 0.3
    assert f"turned clockwise by {angle:.1f} deg" in text
    assert "20 mm to the patient's left and 8 mm to the front" in text


@pytest.mark.parametrize(
    "panel",
    [
        Panel(title="one pixel", values=np.zeros((1, 1)), pixel=(1.0, 1.0), mm=(1.0, 1.0)),
        Panel(title="a row", values=np.zeros((1, 50)), pixel=(5.0, 0.5), mm=(5.0, 0.5)),
        Panel(
            title="labels everywhere",
            values=np.zeros((3, 2)),
            pixel=(1.0, 1.0),
            mm=(2.0, 1.0),
            labels=np.full((3, 2), 2),
            true=np.full((3, 2), 1),
        ),
        Panel(
            title="nothing found",
            values=np.zeros((9, 9)),
            pixel=(1.0, 1.0),
            labels=np.zeros((9, 9)),
            true=np.zeros((9, 9)),
            right=None,
        ),
    ],
    ids=lambda panel: panel.title,
)
def test_odd_images_are_drawn(panel: Panel, tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw_panels(tmp_path / "a.png", [panel], KIDNEY_TUMOUR, title="a\nb")
    assert imread(tmp_path / "a.png")[..., :3].std() > 0.05
