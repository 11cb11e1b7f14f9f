from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.body import Moments, body_mask, moments, normalized
from kidseg.geometry import Grid, Volume, posed, resample

LYING = Grid.from_spacing((4, 160, 200), (5, 1.5, 1.5))


def plane_mm(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) y and x in millimetres from the middle of a plane."""
    _, dy, dx = grid.spacing_mm.tolist()
    y = (np.arange(grid.shape[1]) - (grid.shape[1] - 1) / 2) * dy
    x = (np.arange(grid.shape[2]) - (grid.shape[2] - 1) / 2) * dx
    return y[:, None], x[None, :]


def ellipse(
    grid: Grid, angle: float, radii: tuple[float, float], centre: tuple[float, float]
) -> np.ndarray:
    """(rows, columns) bool, filled ellipse; angle from columns towards rows."""
    y, x = plane_mm(grid)
    u = (x - centre[0]) * math.cos(angle) + (y - centre[1]) * math.sin(angle)
    v = -(x - centre[0]) * math.sin(angle) + (y - centre[1]) * math.cos(angle)
    return (u / radii[0]) ** 2 + (v / radii[1]) ** 2 <= 1


def lying(body: np.ndarray, grid: Grid = LYING) -> np.ndarray:
    """(slices, rows, columns) HU: the body as soft tissue in air, in every slice."""
    return np.where(np.broadcast_to(body, grid.shape), 40.0, -1000.0).astype(np.float32)


def mask_of(hu: np.ndarray, grid: Grid = LYING) -> np.ndarray:
    return body_mask(Volume(torch.from_numpy(hu)[None], grid)).data[0].numpy()


def test_in_a_scan_clipped_to_a_window_the_body_ends_where_fat_begins() -> None:
    """Fat and air are both 0 there: taken as they stand, the whole field would be body."""
    skin, muscle = (ellipse(LYING, 0.2, radii, (5, -8)) for radii in ((100, 70), (88, 58)))
    hu = np.where(muscle, 40.0, np.where(skin, -100.0, -1000.0))
    hu = np.broadcast_to(hu, LYING.shape).astype(np.float32)
    assert (mask_of(hu) == skin).all()
    clipped = mask_of(hu.clip(0, 255))
    assert 2 * (clipped & muscle).sum() / (clipped.sum() + 4 * muscle.sum()) > 0.995


def trunk(grid: Grid, *, skin_gap_mm: float | None, wall_gap_deg: float) -> np.ndarray:
    """(slices, rows, columns) HU: skin, fat, a wall of muscle and a few organs, on a table.

    The skin is 2 mm thick and has a gap of this width every 20 mm; None: it is as dark as fat. The
    wall is open in front over this angle. The table is a thin sheet 12 mm below the back.
    """
    y, x = plane_mm(grid)
    outside, under, muscle, cavity = (
        ellipse(grid, 0.2, (100 - d, 72 - d), (5, -8)) for d in (0, 2, 14, 25)
    )
    around = np.degrees(np.arctan2(y + 8, x - 5))
    hu = np.where(outside, -100.0, -1000.0)
    if skin_gap_mm is not None:
        along = (around % 360) / 360 * 2 * math.pi * 85  # mm
        hu[outside & ~under & (along % 20 >= skin_gap_mm)] = 50
    hu[muscle & ~cavity & (abs(around + 90) >= wall_gap_deg / 2)] = 50
    for centre in ((-40, -10), (45, 0), (5, 20)):
        hu[ellipse(grid, 0.0, (18, 22), centre)] = 100
    hu[(abs(y - 84) < 1.5) & (abs(x) < 130)] = 60
    return np.broadcast_to(hu, grid.shape).astype(np.float32)


FINE = Grid.from_spacing((1, 250, 300), (5, 0.8, 0.9))


@pytest.mark.parametrize("grid", [FINE, LYING])
@pytest.mark.parametrize("skin_gap_mm", [0.0, 5.0])
def test_where_skin_encloses_the_fat_a_clipped_scan_has_the_body_of_the_whole(
    grid: Grid, skin_gap_mm: float
) -> None:
    hu = trunk(grid, skin_gap_mm=skin_gap_mm, wall_gap_deg=40)
    whole, clipped = mask_of(hu, grid), mask_of(hu.clip(0, 255), grid)
    assert 2 * (clipped & whole).sum() / (clipped.sum() + whole.sum()) > 0.98
    y, _ = plane_mm(grid)
    assert not clipped[:, y[:, 0] > 80].any(), "no table"


@pytest.mark.parametrize("grid", [FINE, LYING])
@pytest.mark.parametrize("wall_gap_deg", [0, 25, 45])
def test_without_skin_a_clipped_scan_has_the_bodys_angle_centre_and_proportions(
    grid: Grid, wall_gap_deg: float
) -> None:
    """It ends at the muscles, which may be open in front."""
    hu = trunk(grid, skin_gap_mm=None, wall_gap_deg=wall_gap_deg)
    masks = [torch.from_numpy(mask_of(part, grid))[None] for part in (hu, hu.clip(0, 255))]
    whole, clipped = (moments(Volume(mask, grid), per="volume") for mask in masks)
    assert abs(math.degrees(clipped.angle_rad - whole.angle_rad)) < 3
    assert (clipped.centre_mm - whole.centre_mm).abs().max() < 5
    muscle = torch.tensor([86.0, 58.0])
    assert (clipped.radii_mm / muscle - 1).abs().max() < 0.08


@pytest.mark.parametrize("gap_deg", [90, 110])
def test_thin_muscles_in_front_of_an_open_wall_belong_to_the_body(gap_deg: float) -> None:
    """Too thin to be told from a sheet, but for the opening that they bridge; a table is behind."""
    hu = trunk(FINE, skin_gap_mm=None, wall_gap_deg=gap_deg).copy()
    front, back = (ellipse(FINE, 0.2, (100 - d, 72 - d), (5, -8)) for d in (14, 18))
    y, x = plane_mm(FINE)
    around = np.degrees(np.arctan2(y + 8, x - 5))
    without = moments_of(mask_of(hu.clip(0, 255), FINE))
    hu[0, front & ~back & (abs(around + 90) < gap_deg / 2 - 10)] = 50
    found = moments_of(mask_of(hu.clip(0, 255), FINE))
    muscle = torch.tensor([86.0, 58.0])
    errors = [float((own.radii_mm / muscle - 1).abs().max()) for own in (found, without)]
    assert errors[0] < min(0.04, errors[1])
    assert abs(math.degrees(found.angle_rad - 0.2)) < 2


def moments_of(mask: np.ndarray) -> Moments:
    return moments(Volume(torch.from_numpy(mask)[None], FINE), per="volume")


@pytest.mark.parametrize("shape", [(2, 40, 57), (1, 9, 300), (3, 251, 13)])
@pytest.mark.parametrize("mm", [0.45, 0.9, 1.7])
def test_a_clipped_scan_without_a_body_has_an_empty_mask(
    shape: tuple[int, int, int], mm: float
) -> None:
    """Air and a table that is thinner than any body; nothing at the image's border either."""
    grid = Grid.from_spacing(shape, (5, mm, mm))
    hu = np.zeros(shape, np.float32)
    hu[:, shape[1] // 2, 1:-1] = 90
    assert not mask_of(hu, grid).any()


@given(st.floats(-250, -125), st.floats(0, 100))
@settings(max_examples=10)
def test_a_window_that_begins_below_fat_changes_nothing(floor: float, wall_gap_deg: float) -> None:
    hu = trunk(LYING, skin_gap_mm=3.0, wall_gap_deg=wall_gap_deg)
    assert (mask_of(hu.clip(floor, 300)) == mask_of(hu)).mean() > 0.998


def test_slices_without_a_body_stay_empty_in_a_clipped_scan() -> None:
    hu = trunk(LYING, skin_gap_mm=None, wall_gap_deg=60).copy()
    hu[3] = -1000
    mask = mask_of(hu.clip(0, 255))
    assert mask[:3].any((1, 2)).all() and not mask[3].any()


@pytest.mark.parametrize(
    ("floor", "spacing_mm"), [(-160.0, (0.73, 0.79)), (-150.2, (0.8, 0.5)), (-250.7, (0.8, 0.5))]
)
def test_the_floor_of_a_window_is_air_however_it_is_rounded(
    floor: float, spacing_mm: tuple[float, float]
) -> None:
    """Interpolated, a floor other than 0 comes out beside itself: compared with it to the last bit,
    a quarter of the air at 0.8 x 0.5 mm would be dense, and an arm of one piece with the body."""
    dy, dx = spacing_mm
    turn = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]) @ np.diag([5, dy, dx])
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    oblique = Grid((1, int(220 / dy), int(260 / dx)), torch.from_numpy(matrix))
    body, arm = ellipse(oblique, 0, (70, 50), (-30, 0)), ellipse(oblique, 0, (13, 13), (85, 0))
    mask = mask_of(np.where((body | arm)[None], 40.0, floor).astype(np.float32), oblique)[0]
    assert not (mask & ~body).any()
    assert mask.sum() > 0.995 * body.sum()


def test_a_field_inside_the_body_is_all_body() -> None:
    """No air, but no window either: nothing is at the floor, or all is."""
    rng = np.random.default_rng(0)
    assert mask_of(rng.normal(40, 15, LYING.shape).astype(np.float32)).all()
    assert mask_of(np.full(LYING.shape, 40, np.float32)).all()


def test_a_body_with_gas_is_filled_and_its_table_and_arm_are_left_out() -> None:
    body = ellipse(LYING, 0.2, (100, 70), (5, -8))
    hu = lying(body)
    hu[:, ellipse(LYING, 0, (15, 12), (0, -20))] = -900  # bowel gas
    y, x = plane_mm(LYING)
    bottom = (y * 0 + 0 * x) + np.nonzero(body.any(1))[0].max()
    rows = np.arange(LYING.shape[1])[:, None] + 0 * x
    table = (rows >= bottom) & (rows < bottom + 3)  # touches the back
    hu[:, table] = 200
    hu[:, ellipse(LYING, 0, (14, 14), (-130, 0))] = 40  # an arm
    mask = mask_of(hu)
    for plane in mask:
        overlap = 2 * (plane & body).sum() / (plane.sum() + body.sum())
        assert overlap > 0.995
    assert (mask & table & ~body).sum() < 0.01 * mask.sum()  # only what the skin touches
    assert not mask[:, :, :20].any()


RADII_MM = {"newborn": (62, 50), "child": (90, 70), "adult": (170, 110)}


def blurred(hu: np.ndarray) -> np.ndarray:
    """Of one plane, for partial volume."""
    near = np.pad(hu.astype(np.float32), 1, mode="edge")
    return (near[:-2] + near[2:] + 2 * near[1:-1])[:, 1:-1] / 4


def closed_table(
    grid: Grid, top_mm: float, rise_mm: float, shell_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) bool, shell and foam of a table of 420 x 40 mm with a closed shell.

    Its middle is top_mm below that of the plane, its edges higher by rise_mm.
    """
    y, x = plane_mm(grid)
    depth = y - top_mm + rise_mm * (x / 210) ** 2
    solid, foam = ((depth > d) & (depth < 40 - d) & (abs(x) < 210 - d) for d in (0, shell_mm))
    return solid & ~foam, foam


@pytest.mark.parametrize(("mm", "shell_mm"), [(0.8, 4.0), (1.5, 2.5)])
@pytest.mark.parametrize("rise_mm", [0, 35])
@pytest.mark.parametrize("gap_mm", [-15, 0, 15])
@pytest.mark.parametrize("age", RADII_MM)
def test_a_table_with_a_closed_shell_is_not_body(
    age: str, gap_mm: float, rise_mm: float, shell_mm: float, mm: float
) -> None:
    """Filled, its foam would be a body larger than a child, or joined to the one that lies on it.

    A negative gap: the back is flattened by the table.
    """
    grid = Grid.from_spacing((1, int(360 / mm), int(460 / mm)), (5, mm, mm))
    wide, deep = RADII_MM[age]
    shell, foam = closed_table(grid, deep - 50 + gap_mm, rise_mm, shell_mm)
    body = ellipse(grid, 0, (wide, deep), (0, -50)) & ~foam & ~shell
    y, x = plane_mm(grid)
    body &= y < deep - 50 + gap_mm - rise_mm * (x / 210) ** 2 if gap_mm < 0 else True
    lungs = ellipse(grid, 0, (wide - 8, deep - 8), (0, -50)) & (abs(x) > wide / 4)
    lungs &= y < deep - 70 + min(gap_mm, 0) - rise_mm * (x / 210) ** 2
    hu = np.where(shell, 200, np.where(foam, -930, -1000))
    hu = blurred(np.where(lungs, -750, np.where(body, 40, hu)))
    mask = mask_of(hu[None], grid)[0]
    assert 2 * (mask & body).sum() / (mask.sum() + body.sum()) > 0.97


@pytest.mark.parametrize("wall_mm", [3.0, 4.0, 6.0])
@pytest.mark.parametrize("mm", [0.5, 1.3])
@pytest.mark.parametrize("inside", ["lungs", "gas", "loops"])
def test_thin_walls_of_a_newborn_are_body(inside: str, mm: float, wall_mm: float) -> None:
    """Even if air is all that is behind them; thinner than the shell of some tables."""
    grid = Grid.from_spacing((1, int(140 / mm), int(170 / mm)), (5, mm, mm))
    body = ellipse(grid, 0, (62, 50), (0, 0))
    y, x = plane_mm(grid)
    air = ellipse(grid, 0, (62 - wall_mm, 50 - wall_mm), (0, 0))
    air &= {
        "lungs": (abs(x) > 13) & ((y < 20) | (abs(x) > 28)),
        "gas": y < 15,
        "loops": (y < 15) & (x % 20 > 3) & (y % 20 > 3),
    }[inside]
    mask = mask_of(blurred(np.where(air, -1000, np.where(body, 40, -1000)))[None], grid)[0]
    assert 2 * (mask & body).sum() / (mask.sum() + body.sum()) > 0.98


WIDE = Grid.from_spacing((1, 160, 300), (5, 1.5, 1.5))


def test_ribs_make_no_body_of_a_closed_table() -> None:
    """The ends are open to the air outside once they are known as shells, then what is next."""
    body = ellipse(WIDE, 0, (62, 50), (0, -50))
    shell, foam = closed_table(WIDE, 15, 0, 3.0)
    _, x = plane_mm(WIDE)
    shell |= foam & (abs(x % 40 - 20) < 1.5)
    hu = np.where(body, 40.0, np.where(shell, 200, np.where(foam, -930, -1000)))
    assert (mask_of(hu[None].astype(np.float32), WIDE)[0] == body).mean() > 0.999


def test_a_closed_table_alone_gives_an_empty_mask() -> None:
    shell, foam = closed_table(WIDE, 0, 20, 3.0)
    hu = np.where(shell, 200.0, np.where(foam, -930, -1000)).astype(np.float32)
    assert not mask_of(hu[None], WIDE).any()


def test_nothing_but_air_gives_an_empty_mask() -> None:
    mask = mask_of(np.full(LYING.shape, -1000, np.float32))
    assert not mask.any()


def test_mask_edge_lies_at_the_scans_own_pixels() -> None:
    fine = Grid.from_spacing((2, 300, 300), (5, 0.5, 0.5))
    body = ellipse(fine, 0.0, (60, 45), (3.2, -1.7))
    assert (mask_of(lying(body, fine), fine) == body).all()


@pytest.mark.parametrize("dy", [0.7, 3.0])  # below the mask's own pixels, and above
def test_whole_numbers_have_the_same_body(dy: float) -> None:
    grid = Grid.from_spacing((3, int(220 / dy), 150), (5, dy, 1.6))
    hu = lying(ellipse(grid, 0.3, (80, 60), (4, 3)), grid)
    hu += np.random.default_rng(0).integers(-30, 30, hu.shape)
    for floor in (-1100, -150):  # clipped to a window, too
        floating = torch.from_numpy(hu.clip(floor))[None]
        masks = [body_mask(Volume(floating.to(k), grid)) for k in (torch.float32, torch.int16)]
        assert torch.equal(masks[0].data, masks[1].data)
        assert masks[0].data.any() and masks[0].data.dtype == torch.bool


def test_moments_by_their_definition() -> None:
    """Of weights, in float64, all at once."""
    rng = np.random.default_rng(4)
    grid = Grid.from_spacing((3, 9, 14), (5, 1.2, 0.7))
    weight = rng.uniform(0, 1, grid.shape)
    got = moments(Volume(torch.from_numpy(weight)[None], grid))
    y, x = plane_mm(grid)
    for k, plane in enumerate(weight):
        share = plane / plane.sum()
        mean_x, mean_y = (share * x).sum(), (share * y).sum()
        assert got.centre_mm[k].tolist() == pytest.approx([mean_x, mean_y])
        xx = (share * (x - mean_x) ** 2).sum() + 0.7**2 / 12
        yy = (share * (y - mean_y) ** 2).sum() + 1.2**2 / 12
        xy = (share * (x - mean_x) * (y - mean_y)).sum()
        axes = np.linalg.eigvalsh([[xx, xy], [xy, yy]])
        assert got.radii_mm[k].tolist() == pytest.approx((2 * np.sqrt(axes[::-1])).tolist())


@given(
    st.floats(-1.2, 1.2),
    st.floats(60, 90),
    st.floats(30, 50),
    st.tuples(st.floats(-15, 15), st.floats(-15, 15)),
)
@settings(max_examples=30)
def test_moments_of_an_ellipse_are_its_own(
    angle: float, long: float, short: float, centre: tuple[float, float]
) -> None:
    mask = torch.from_numpy(ellipse(LYING, angle, (long, short), centre))
    volume = Volume(mask.expand(1, *LYING.shape), LYING)
    for per in ("slice", "volume"):
        got = moments(volume, per=per)
        lead = (4,) if per == "slice" else ()
        assert got.angle_rad.shape == lead
        assert torch.allclose(got.angle_rad, torch.tensor(angle).double(), atol=0.02)
        assert torch.allclose(got.radii_mm, torch.tensor([long, short]).double(), atol=0.4)
        assert torch.allclose(got.centre_mm, torch.tensor(centre).double(), atol=0.3)


def test_one_pixel_has_the_moments_of_a_square() -> None:
    """A 1.5 mm pixel: variance 1.5^2 / 12 each way, radius 2 * sqrt of it."""
    data = torch.zeros(1, *LYING.shape)
    data[0, :, 10, 20] = 1
    got = moments(Volume(data, LYING), per="volume")
    assert got.radii_mm.tolist() == pytest.approx([1.5 / math.sqrt(3)] * 2)


def test_empty_slices_keep_their_place() -> None:
    data = torch.from_numpy(lying(ellipse(LYING, 0.3, (90, 60), (10, 5))) > 0)[None].clone()
    data[:, 2] = False
    got = moments(Volume(data, LYING))
    assert got.radii_mm[2].isnan().all()
    assert got.angle_rad[2] == 0
    assert got.centre_mm[2].tolist() == [0, 0]
    grid = normalized(LYING, got, radii_mm=(80, 55), field_mm=240, size=64)
    plain = normalized(
        LYING,
        moments(Volume(torch.zeros_like(data), LYING)),
        radii_mm=(80, 55),
        field_mm=240,
        size=64,
    )
    assert torch.allclose(grid.mm_from_index[2], plain.mm_from_index[2])


@pytest.mark.parametrize("per", ["slice", "volume"])
def test_normalizing_undoes_turn_shift_and_size(per: str) -> None:
    """Whatever the pose, the normalised ellipse is the reference's."""
    reference = Grid.from_spacing((4, 128, 128), (5, 240 / 128, 240 / 128))
    want = ellipse(reference, 0.0, (80, 55), (0, 0))
    for angle, radii, centre in [(0.4, (100, 60), (8, -6)), (-0.3, (60, 50), (-20, 10))]:
        body = ellipse(LYING, angle, radii, centre)
        volume = Volume(torch.from_numpy(lying(body) > 0)[None], LYING)
        grid = normalized(
            LYING, moments(volume, per=per), radii_mm=(80, 55), field_mm=240, size=128
        )
        assert grid.is_slicewise == (per == "slice")
        got = resample(volume.astype(torch.float32), grid).data[0].numpy() > 0.5
        overlap = 2 * (got & want).sum() / (got.sum() + 4 * want.sum())
        assert overlap > 0.985


def test_one_scale_is_a_similarity() -> None:
    body = ellipse(LYING, 0.4, (100, 50), (0, 0))
    volume = Volume(torch.from_numpy(lying(body) > 0)[None], LYING)
    own = moments(volume, per="volume")
    grid = normalized(LYING, own, radii_mm=(80, 55), field_mm=240, size=128, scales=1)
    _, dy, dx = grid.spacing_mm.tolist()
    assert dy == pytest.approx(dx)
    assert dy == pytest.approx(240 / 128 * math.sqrt(100 * 50 / (80 * 55)), rel=0.01)


def test_a_turned_scan_gives_the_same_normalized_image() -> None:
    """The pose of the scanner's grid must not matter."""
    body = Volume(torch.from_numpy(lying(ellipse(LYING, 0.1, (80, 55), (4, 3))))[None], LYING)
    images = []
    for turn in (0.0, 0.35):
        scan = resample(body, posed(LYING, angle_rad=turn), fill=-1000)
        own = moments(body_mask(scan), per="volume")
        grid = normalized(scan.grid, own, radii_mm=(80, 55), field_mm=220, size=96)
        images.append(resample(scan, grid, fill=-1000).data > -300)
    assert (images[0] ^ images[1]).float().mean() < 0.01
