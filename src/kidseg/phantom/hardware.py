"""Objects in the scanner besides the patient: the table, a mattress, leads, lines and tubes.

They are added to the noise-free HU before blur and noise, in scanner coordinates: the table stays
level for every pose of the patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kidseg.geometry import Grid

__all__ = ["Shell", "Table", "Tube", "add_hardware", "draw_table", "draw_tubes"]

# Threshold of the body: skin is above, foam and cloth are below.
_BODY_HU = -300.0
_AIR_HU = -1000.0


@dataclass(frozen=True, kw_only=True)
class Shell:
    """A thin sheet, the same in all slices, with the cross-section of a parabola.

    depth_mm is the depth of the centre below the top of the table; rise_mm is the height of the
    edges above the centre, at the distance half_width_mm.
    """

    depth_mm: float
    half_width_mm: float
    rise_mm: float
    thickness_mm: float
    hu: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Shells around a foam core, with or without denser rails, and a mattress on top.

    The mattress of thickness `gap_mm` is between the table and the lowest point of the patient.
    """

    shells: tuple[Shell, ...]
    centre_x_mm: float
    gap_mm: float
    core_hu: float
    mattress_hu: float
    rail_radius_mm: float
    rail_hu: float


@dataclass(frozen=True, kw_only=True)
class Tube:
    """A thin object along the patient: a lead or electrode on the skin, or a line next to the body.

    Attributes:
        kind: "lead" on the skin, "electrode" (a flat pad on the skin), "line" next to the patient.
        angle_deg: position around the body, 0 at the front, 90 at the patient's left.
        wander_deg: variation of the angle along the scan.
        start, stop: its range as fractions of the scan's length, 0 at the lower end to 1.
        radius_mm, lumen_mm: outer and inner radius.
        hu: of the wall; the lumen is water.
    """

    kind: Literal["lead", "electrode", "line"]
    angle_deg: float
    wander_deg: float
    start: float
    stop: float
    radius_mm: float
    lumen_mm: float
    hu: float


def draw_table(rng: np.random.Generator) -> Table:
    """Draw a typical table: carbon-fibre shells around foam."""
    kind = rng.choice(["double", "single", "cradle"], p=[0.45, 0.25, 0.30])
    half = rng.uniform(195.0, 225.0)
    rise = rng.uniform(18.0, 45.0)
    sheet_hu = rng.uniform(120.0, 420.0)
    thick = rng.uniform(1.2, 2.6)
    top = Shell(depth_mm=0.0, half_width_mm=half, rise_mm=rise, thickness_mm=thick, hu=sheet_hu)
    shells = [top]
    if kind != "single":
        shells.append(
            Shell(
                depth_mm=rng.uniform(22.0, 55.0),
                half_width_mm=half * rng.uniform(0.75, 0.98),
                rise_mm=rise * rng.uniform(0.9, 1.7),
                thickness_mm=thick * rng.uniform(0.9, 1.4),
                hu=sheet_hu,
            )
        )
    return Table(
        shells=tuple(shells),
        centre_x_mm=rng.normal(0.0, 6.0),
        gap_mm=float(rng.choice([0.5, rng.uniform(4.0, 30.0)], p=[0.35, 0.65])),
        core_hu=rng.uniform(-960.0, -900.0),
        mattress_hu=rng.uniform(-975.0, -900.0),
        rail_radius_mm=rng.uniform(3.0, 7.0) if kind == "cradle" else 0.0,
        rail_hu=rng.uniform(100.0, 600.0),
    )


def draw_tubes(rng: np.random.Generator) -> tuple[Tube, ...]:
    """Draw leads with electrodes (in a third of the patients) and infusion lines."""
    tubes: list[Tube] = []
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.66, 0.14, 0.12, 0.08]))):
        angle, end = rng.uniform(-75.0, 75.0), rng.uniform(0.35, 1.0)
        lead = Tube(
            kind="lead",
            angle_deg=angle,
            wander_deg=rng.uniform(-25.0, 25.0),
            start=end,
            stop=1.0,
            radius_mm=rng.uniform(0.9, 1.4),
            lumen_mm=0.0,
            hu=rng.uniform(600.0, 2200.0),
        )
        pad = Tube(
            kind="electrode",
            angle_deg=angle,
            wander_deg=0.0,
            start=end - 0.03,
            stop=end + 0.03,
            radius_mm=rng.uniform(7.0, 11.0),
            lumen_mm=0.0,
            hu=rng.uniform(20.0, 250.0),
        )
        tubes += [lead, pad]
    if rng.random() < 0.3:
        radius = rng.uniform(1.3, 2.2)
        side = float(rng.choice([-1.0, 1.0]))
        tubes.append(
            Tube(
                kind="line",
                angle_deg=side * rng.uniform(60.0, 115.0),
                wander_deg=rng.uniform(-12.0, 12.0),
                start=0.0,
                stop=1.0,
                radius_mm=radius,
                lumen_mm=radius * 0.6,
                hu=rng.uniform(60.0, 250.0),
            )
        )
    return tuple(tubes)


def add_hardware(hu: np.ndarray, grid: Grid, table: Table | None, tubes: tuple[Tube, ...]) -> None:
    """Add the table below the patient, and tubes on and next to the patient, in place.

    Args:
        hu: (slices, rows, columns) float32, the patient in air of -1000 HU.
        grid: volumetric and axial: rows run downwards in the scanner.
        table: None for no table.
        tubes: in the order in which they are added.

    In an empty image (nothing above -300 HU) the table is in the lower third, without tubes.
    """
    body: np.ndarray = hu > _BODY_HU
    if table is not None:
        np.maximum(hu, _table_image(np.any(body, axis=0), grid, table), out=hu)
    for tube in tubes:
        _lay(hu, body, grid, tube)


def _table_image(body: np.ndarray, grid: Grid, table: Table) -> np.ndarray:
    """(rows, columns) HU of the table, in contact with the projection of the body along z."""
    _, dy, dx = grid.spacing_mm.tolist()
    ny, nx = body.shape
    x_mm = grid.mm([[0.0, 0.0, c] for c in range(nx)])[:, 0].numpy() - table.centre_x_mm
    depth = np.arange(ny) * dy
    top = table.shells[0]
    bend = top.rise_mm * np.minimum((x_mm / top.half_width_mm) ** 2, 1.0)
    lowest = np.where(body.any(0), (ny - np.argmax(body[::-1], axis=0)) * dy, -np.inf)
    touch = np.max(lowest + bend) if body.any() else ny * dy * 0.7
    zero = touch + table.gap_mm + top.thickness_mm / 2
    image = np.full((ny, nx), _AIR_HU, dtype=np.float32)
    surface = zero - bend
    inside = np.abs(x_mm) < top.half_width_mm
    mattress = (depth[:, None] < surface) & (depth[:, None] > surface - table.gap_mm + 1.0)
    image[mattress & inside & (depth[:, None] > touch - top.rise_mm)] = table.mattress_hu
    if len(table.shells) > 1:
        floor = _surface(x_mm, table.shells[-1], zero)
        core = (depth[:, None] > surface) & (depth[:, None] < floor) & inside
        image[core] = table.core_hu
    for shell in table.shells:
        _add_shell(image, depth, x_mm, shell, zero, dy, dx)
    if table.rail_radius_mm > 0:
        _add_rails(image, depth, x_mm, table, zero, min(dx, dy))
    return image


def _surface(x_mm: np.ndarray, shell: Shell, zero: float) -> np.ndarray:
    return zero + shell.depth_mm - shell.rise_mm * (x_mm / shell.half_width_mm) ** 2


def _add_shell(
    image: np.ndarray,
    depth: np.ndarray,
    x_mm: np.ndarray,
    shell: Shell,
    zero: float,
    dy: float,
    dx: float,
) -> None:
    """Blend one sheet by its fraction of each pixel; its ends are square."""
    slope = 2 * shell.rise_mm * x_mm / shell.half_width_mm**2
    away = np.abs(depth[:, None] - _surface(x_mm, shell, zero)) / np.sqrt(1 + slope**2)
    share = np.clip(
        (shell.thickness_mm / 2 - away) / dy + 0.5, 0.0, min(1.0, shell.thickness_mm / dy)
    )
    share *= np.clip((shell.half_width_mm - np.abs(x_mm)) / dx + 0.5, 0.0, 1.0)
    image += share.astype(np.float32) * (np.float32(shell.hu) - image)


def _add_rails(
    image: np.ndarray,
    depth: np.ndarray,
    x_mm: np.ndarray,
    table: Table,
    zero: float,
    pixel: float,
) -> None:
    """Hollow rails at the upper shell's ends."""
    shell = table.shells[0]
    for side in (-1.0, 1.0):
        centre = side * shell.half_width_mm
        away = np.hypot(
            x_mm[None] - centre, depth[:, None] - (zero - shell.rise_mm + table.rail_radius_mm)
        )
        ring = np.abs(away - table.rail_radius_mm * 0.75)
        share = np.clip((table.rail_radius_mm * 0.25 - ring) / pixel + 0.5, 0.0, 1.0)
        image += share.astype(np.float32) * (np.float32(table.rail_hu) - image)


def _lay(hu: np.ndarray, body: np.ndarray, grid: Grid, tube: Tube) -> None:
    """Add one tube, slice by slice, at the skin in its direction."""
    _, dy, dx = grid.spacing_mm.tolist()
    nz = len(hu)
    first, last = int(tube.start * nz), int(np.ceil(tube.stop * nz))
    for k in range(max(0, first), min(nz, last)):
        along = (k + 0.5) / nz
        angle = np.deg2rad(tube.angle_deg + tube.wander_deg * np.sin(2.5 * along))
        found = _skin(body[k], angle, dy, dx)
        if found is None:
            continue
        row, column, out_y, out_x = found
        off = {"lead": 1.0, "electrode": 0.1, "line": 2.5}[tube.kind]
        reach = off * (tube.radius_mm if tube.kind != "electrode" else 10.0)
        row, column = row + out_y * reach / dy, column + out_x * reach / dx
        _stamp(hu[k], tube, row, column, (out_y, out_x), (dy, dx))


def _skin(
    body: np.ndarray, angle: float, dy: float, dx: float
) -> tuple[float, float, float, float] | None:
    """(row, column) where a ray from the body's centre leaves it, and its (y, x) direction."""
    rows, columns = np.nonzero(body[::4, ::4])
    if len(rows) == 0:
        return None
    middle = 4 * np.array([np.median(rows), np.median(columns)])
    out_y, out_x = -np.cos(angle), np.sin(angle)
    r_mm = np.arange(0.0, np.hypot(*body.shape) * max(dy, dx), min(dy, dx) / 2)
    at_y, at_x = middle[0] + out_y * r_mm / dy, middle[1] + out_x * r_mm / dx
    y, x = np.rint(at_y).astype(int), np.rint(at_x).astype(int)
    kept = (y >= 0) & (y < body.shape[0]) & (x >= 0) & (x < body.shape[1])
    hits = np.flatnonzero(body[y[kept], x[kept]])
    if len(hits) == 0 or hits[-1] == kept.sum() - 1:
        return None
    return float(at_y[hits[-1]]), float(at_x[hits[-1]]), float(out_y), float(out_x)


def _stamp(
    plane: np.ndarray,
    tube: Tube,
    row: float,
    column: float,
    out: tuple[float, float],
    spacing: tuple[float, float],
) -> None:
    """Blend the tube's cross-section into one slice by its fraction of each pixel, only in air."""
    dy, dx = spacing
    margin = tube.radius_mm + 2 * max(dy, dx)
    y0, y1 = int(row - margin / dy), int(row + margin / dy) + 2
    x0, x1 = int(column - margin / dx), int(column + margin / dx) + 2
    y0, x0 = max(0, y0), max(0, x0)
    patch = plane[y0:y1, x0:x1]
    if patch.size == 0:
        return
    y = (np.arange(y0, y0 + patch.shape[0]) - row)[:, None] * dy
    x = (np.arange(x0, x0 + patch.shape[1]) - column)[None] * dx
    pixel = min(dy, dx)
    if tube.kind == "electrode":
        radial, along = y * out[0] + x * out[1], -y * out[1] + x * out[0]
        away = np.maximum(np.abs(along) - tube.radius_mm, np.abs(radial) - 1.2)
    else:
        away = np.hypot(y, x) - tube.radius_mm
    share = np.clip(0.5 - away / pixel, 0.0, 1.0)
    wall = np.full(patch.shape, tube.hu)
    if tube.lumen_mm > 0:
        hollow = np.clip(0.5 - (np.hypot(y, x) - tube.lumen_mm) / pixel, 0.0, 1.0)
        wall = wall * (1 - hollow)
    laid = patch + share * (wall - patch)
    free = patch < _BODY_HU
    patch[free] = laid[free]
