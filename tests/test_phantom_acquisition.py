"""The scanner: projections, noise, streaks, blur, table, tubes, padding.

Bodies here are cylinders and rods in air, so that every expected value can be computed by hand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.config import PhantomConfig
from kidseg.geometry import Grid
from kidseg.phantom.acquisition import acquire
from kidseg.phantom.hardware import Shell, Table, Tube, add_hardware, draw_table, draw_tubes
from kidseg.phantom.projection import SECTORS, flaws, projector, sector_windows
from kidseg.phantom.scanner import Scanner, draw_scanner, noise_hu

QUIET = 1e-3
"""Noise, in HU, that rounds away."""


def scanner(**changes: object) -> Scanner:
    plain = Scanner(
        shape=(4, 160, 160),
        pixel_mm=1.0,
        slice_mm=3.0,
        thickness_mm=3.0,
        centre_mm=(0.0, 0.0, 0.0),
        kernel="standard",
        texture=1.0,
        noise_hu=QUIET,
        kv=120,
        hardening=0.0,
        cupping=0.0,
        table=None,
        tubes=(),
        circle=False,
    )
    return replace(plain, **changes)


def ellipse(
    grid: Grid, half_x_mm: float, half_y_mm: float, hu: float, at: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """(slices, rows, columns) float32: an elliptic cylinder in air with partial volume."""
    _, dy, dx = grid.spacing_mm.tolist()
    nz, ny, nx = grid.shape
    y = (np.arange(ny) - (ny - 1) / 2)[:, None] * dy - at[0]
    x = (np.arange(nx) - (nx - 1) / 2)[None] * dx - at[1]
    away = (np.hypot(x / half_x_mm, y / half_y_mm) - 1) * min(half_x_mm, half_y_mm)
    plane = -1000.0 + np.clip(0.5 - away / dx, 0, 1) * (hu + 1000.0)
    return np.repeat(plane[None], nz, axis=0).astype(np.float32)


def scan(hu: np.ndarray, machine: Scanner, seed: int = 0) -> np.ndarray:
    return acquire(hu.copy(), machine.grid(), machine, np.random.default_rng(seed))


def middle(image: np.ndarray, half: int = 20) -> np.ndarray:
    y, x = image.shape[-2] // 2, image.shape[-1] // 2
    return image[..., y - half : y + half, x - half : x + half]


# ---- projections -------------------------------------------------------------------------------


def disc(side: int, radius: float) -> np.ndarray:
    at = np.arange(side) - (side - 1) / 2
    return np.clip(0.5 - (np.hypot(at[:, None], at[None]) - radius), 0, 1)[None].astype(np.float32)


def test_the_rays_through_a_disc_are_its_chords() -> None:
    rays = projector(64, 48)
    sums = rays.project(disc(64, 25.0))[:, :, 0]
    s = np.arange(rays.bins) - (rays.bins - 1) / 2
    chords = 2 * np.sqrt(np.maximum(25.0**2 - s**2, 0.0))
    away_from_the_rim = np.abs(np.abs(s) - 25.0) > 2.0
    assert np.abs(sums - chords)[:, away_from_the_rim].max() < 0.6


def test_every_view_sees_the_whole_image() -> None:
    image = np.random.default_rng(1).uniform(size=(2, 33, 33)).astype(np.float32)
    sums = projector(33, 20).project(image).sum(1)
    np.testing.assert_allclose(sums, np.broadcast_to(image.sum((1, 2)), sums.shape), rtol=1e-4)


def test_back_projection_is_the_adjoint() -> None:
    rng = np.random.default_rng(2)
    rays = projector(40, 30)
    image = rng.normal(size=(3, 40, 40)).astype(np.float32)
    sinogram = rng.normal(size=(rays.views, rays.bins, 3)).astype(np.float32)
    there = float((rays.project(image) * sinogram).sum())
    back = float((image * rays.back_project(sinogram)).sum())
    assert there == pytest.approx(back, rel=1e-3, abs=1e-2)


def test_reconstruction_undoes_projection() -> None:
    rays = projector(64, 96)
    image = disc(64, 22.0)
    again = rays.reconstruct(rays.project(image))
    inside, outside = disc(64, 18.0)[0] == 1, disc(64, 26.0)[0] == 0
    assert np.abs(again[0][inside] - 1).max() < 0.02
    assert np.abs(again[0][outside]).max() < 0.06


@given(st.floats(-10, 10))
def test_sector_windows_share_every_direction(angle: float) -> None:
    windows = sector_windows(np.array([angle]))
    assert windows.shape == (SECTORS, 1)
    assert windows.sum() == pytest.approx(1.0)
    assert windows.min() >= 0


def test_a_perfect_scanner_makes_no_error() -> None:
    grid = scanner().grid()
    found = flaws(
        ellipse(grid, 60, 50, 40),
        grid,
        kv=120,
        hardening=0.0,
        cupping=0.0,
        coarse_noise_hu=0.0,
        rng=np.random.default_rng(0),
    )
    assert found.error_hu.data.abs().max() < 1e-3
    assert found.error_hu.grid.same_as(found.noise.grid)


def test_between_two_dense_rods_it_is_dark() -> None:
    machine = scanner(hardening=0.08)
    hu = ellipse(machine.grid(), 70, 55, 40)
    for side in (-35.0, 35.0):
        hu = np.maximum(hu, ellipse(machine.grid(), 9, 9, 1200, (0.0, side)))
    out = scan(hu, machine)[1].astype(float)
    between = out[76:84, 70:90].mean()
    above = out[45:53, 70:90].mean()
    assert between < above - 8


def test_cupping_darkens_the_middle_of_water() -> None:
    machine = scanner(cupping=0.003)
    hu = ellipse(machine.grid(), 60, 60, 0)
    out = scan(hu, machine)[1].astype(float)
    assert out[75:85, 75:85].mean() < out[75:85, 25:30].mean() - 2
    flat = scan(hu, scanner())[1].astype(float)
    assert abs(flat[75:85, 75:85].mean() - flat[75:85, 25:30].mean()) < 0.5


# ---- noise -------------------------------------------------------------------------------------


def test_noise_has_the_chosen_strength_in_the_middle() -> None:
    machine = scanner(noise_hu=15.0, pixel_mm=0.6)
    out = scan(ellipse(machine.grid(), 40, 40, 40), machine)
    assert middle(out).std() == pytest.approx(15.0, rel=0.15)
    assert middle(out).mean() == pytest.approx(40.0, abs=1.0)


def test_noise_is_weaker_at_the_skin_and_weakest_in_air() -> None:
    machine = scanner(noise_hu=20.0, pixel_mm=2.0, shape=(12, 160, 160))
    out = scan(ellipse(machine.grid(), 140, 140, 0), machine).astype(float)
    centre = out[:, 70:90, 70:90].std()
    rim = out[:, 70:90, 13:19].std()
    assert rim < 0.8 * centre


def test_noise_runs_along_the_long_axis_of_the_body() -> None:
    """Rays along a wide body are starved: what they add varies across them, from row to row."""
    machine = scanner(noise_hu=20.0, pixel_mm=2.0, shape=(12, 160, 160))
    out = middle(scan(ellipse(machine.grid(), 150, 60, 0), machine), 16).astype(float)
    across_rows = np.diff(out, axis=1).std()
    across_columns = np.diff(out, axis=2).std()
    assert across_rows > 1.3 * across_columns


def test_noise_power_peaks_at_middle_frequencies() -> None:
    machine = scanner(noise_hu=20.0, pixel_mm=0.7, shape=(16, 160, 160))
    out = middle(scan(ellipse(machine.grid(), 50, 50, 0), machine), 32).astype(float)
    power = (np.abs(np.fft.fft2(out - out.mean((1, 2), keepdims=True))) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(64, 0.7)[:, None], np.fft.fftfreq(64, 0.7)[None])
    low, mid, high = (
        power[(f >= a) & (f < b)].mean() for a, b in [(0.02, 0.06), (0.18, 0.30), (0.55, 0.70)]
    )
    assert mid > 2 * low
    assert mid > 10 * high


def correlation(out: np.ndarray) -> float:
    a, b = middle(out)[:-1].ravel(), middle(out)[1:].ravel()
    return float(np.corrcoef(a, b)[0, 1])


def test_overlapping_slices_share_noise() -> None:
    apart = scanner(noise_hu=20.0, shape=(12, 160, 160), slice_mm=1.5, thickness_mm=1.5)
    overlapping = replace(apart, thickness_mm=3.0)
    hu = ellipse(apart.grid(), 60, 60, 0)
    assert abs(correlation(scan(hu, apart))) < 0.05
    assert correlation(scan(hu, overlapping)) > 0.2


def test_overlapping_slices_blur_along_the_patient() -> None:
    thick = scanner(shape=(5, 64, 64), thickness_mm=6.0)
    hu = ellipse(thick.grid(), 20, 20, 0)
    hu[3:] = -1000.0
    out = scan(hu, thick)[:, 32, 32].astype(float)
    # (2^2 - 1) / 24 = 1/8 of the neighbour on either side of the step
    assert out[2] == pytest.approx(-125.0, abs=2)
    assert out[3] == pytest.approx(-875.0, abs=2)
    assert out[1] == pytest.approx(0.0, abs=2)


def test_expected_noise_follows_dose_thickness_and_size() -> None:
    reference = noise_hu(160, 3.0, "standard")
    assert noise_hu(160, 3.0, "standard", dose=4.0) == pytest.approx(reference / 2)
    assert noise_hu(160, 0.75, "standard") == pytest.approx(reference * 2)
    ratios = [noise_hu(d + 30, 3, "soft") / noise_hu(d, 3, "soft") for d in (100, 170, 240)]
    assert ratios == pytest.approx([ratios[0]] * 3)
    assert ratios[0] > 1


# ---- blur --------------------------------------------------------------------------------------


def edge_width(kernel: str) -> int:
    """Pixels between 10 and 90 % of a step."""
    machine = scanner(kernel=kernel, pixel_mm=0.35, shape=(1, 160, 160))
    row = scan(ellipse(machine.grid(), 20, 20, 0), machine)[0, 80, :80].astype(float)
    return int(((row > -900) & (row < -100)).sum())


def test_kernels_order_by_sharpness() -> None:
    assert edge_width("soft") > edge_width("medium") > edge_width("sharp")


def test_a_flat_region_keeps_its_value_through_every_kernel() -> None:
    for kernel in ("soft", "standard", "medium", "sharp"):
        machine = scanner(kernel=kernel)
        assert abs(middle(scan(ellipse(machine.grid(), 50, 50, 60), machine)) - 60).max() <= 1


# ---- table, tubes ------------------------------------------------------------------------------


def table(**changes: object) -> Table:
    plain = Table(
        shells=(
            Shell(depth_mm=0, half_width_mm=200, rise_mm=20, thickness_mm=3, hu=300),
            Shell(depth_mm=12, half_width_mm=180, rise_mm=30, thickness_mm=3, hu=300),
        ),
        centre_x_mm=0.0,
        gap_mm=4.0,
        core_hu=-930.0,
        mattress_hu=-950.0,
        rail_radius_mm=0.0,
        rail_hu=200.0,
    )
    return replace(plain, **changes)


def test_the_table_lies_below_and_leaves_the_body_alone() -> None:
    grid = scanner().grid()
    body = ellipse(grid, 50, 40, 40)
    hu = body.copy()
    add_hardware(hu, grid, table(), ())
    inside = body > -300
    assert (hu[inside] == body[inside]).all()
    column = hu[1, :, 80]
    bright = np.flatnonzero((column > 150) & ~inside[1, :, 80])
    # body bottom at 40 mm below the middle (row 79.5), 4 mm of mattress, half a shell of 3 mm
    assert bright.min() == pytest.approx(79.5 + 40 + 4, abs=1.5)
    assert (hu[1, : int(bright.min()), 80][column[: bright.min()] < -800] <= -900).all()


def test_the_table_is_level_along_the_scan_and_under_the_lowest_slice() -> None:
    grid = scanner().grid()
    body = ellipse(grid, 40, 30, 40)
    body[2] = np.roll(body[2], 15, axis=0)
    hu = body.copy()
    add_hardware(hu, grid, table(), ())
    added = np.where(body > -300, -1000, hu)
    assert (np.where(body[0] > -300, 0, added[0]) == np.where(body[0] > -300, 0, added[1])).all()
    assert (hu[2][body[2] > -300] == 40).mean() > 0.9


def test_a_lead_lies_on_the_skin_not_in_it() -> None:
    grid = scanner().grid()
    body = ellipse(grid, 50, 40, 40)
    hu = body.copy()
    lead = Tube(
        kind="lead",
        angle_deg=90.0,
        wander_deg=0.0,
        start=0.0,
        stop=1.0,
        radius_mm=2.0,
        lumen_mm=0.0,
        hu=1500.0,
    )
    add_hardware(hu, grid, None, (lead,))
    changed = hu != body
    assert changed.any(axis=(1, 2)).all()
    assert (body[changed] < -300).all()
    columns = np.nonzero(hu[0] > 1000)[1]
    # the patient's left is where columns grow; the skin lies at 50 mm from the middle (79.5)
    assert columns.min() >= 128 and columns.max() <= 135


def test_an_infusion_line_is_hollow() -> None:
    machine = scanner(pixel_mm=0.5, shape=(2, 256, 256))
    hu = ellipse(machine.grid(), 30, 30, 40)
    line = Tube(
        kind="line",
        angle_deg=-90.0,
        wander_deg=0.0,
        start=0.0,
        stop=1.0,
        radius_mm=3.0,
        lumen_mm=2.0,
        hu=200.0,
    )
    add_hardware(hu, machine.grid(), None, (line,))
    row = hu[0, 127:129, :66].max(0)
    assert (row > 150).sum() >= 2
    inner = row[np.flatnonzero(row > 150).min() : np.flatnonzero(row > 150).max()]
    assert np.abs(inner).min() < 30


def test_no_tube_without_a_body_and_the_table_stays_in_view() -> None:
    grid = scanner().grid()
    air = np.full(grid.shape, -1000.0, dtype=np.float32)
    add_hardware(air, grid, table(), draw_tubes(np.random.default_rng(3)))
    assert (air > 100).any()
    assert not (air[:, :80] > -1000).any()


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_any_drawn_table_spares_any_body(seed: int) -> None:
    rng = np.random.default_rng(seed)
    machine = scanner(shape=(2, 128, 128), pixel_mm=2.5)
    body = ellipse(
        machine.grid(),
        rng.uniform(30, 140),
        rng.uniform(30, 80),
        40,
        (rng.uniform(-20, 20), rng.uniform(-20, 20)),
    )
    hu = body.copy()
    add_hardware(hu, machine.grid(), draw_table(rng), draw_tubes(rng))
    inside = body > -300
    assert (hu[inside] == body[inside]).all()


# ---- whole scans -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 100, 100), (9, 200, 200)])
def test_any_size_is_scanned(shape: tuple[int, int, int]) -> None:
    machine = scanner(
        shape=shape, pixel_mm=200 / shape[1], noise_hu=10.0, hardening=0.03, table=table()
    )
    out = scan(ellipse(machine.grid(), 60, 50, 40), machine)
    assert out.shape == shape
    assert out.dtype == np.int16
    assert out.min() >= -1024
    assert out.max() <= 3071
    assert middle(out, shape[1] // 12).mean() == pytest.approx(40, abs=6)


def test_the_same_seed_gives_the_same_scan() -> None:
    machine = scanner(noise_hu=10.0, hardening=0.03, table=table())
    hu = ellipse(machine.grid(), 60, 50, 40)
    assert (scan(hu, machine, 7) == scan(hu, machine, 7)).all()
    assert (scan(hu, machine, 7) != scan(hu, machine, 8)).mean() > 0.5


def test_metal_and_nothing_stay_within_twelve_bits() -> None:
    machine = scanner(hardening=0.05, noise_hu=30.0)
    out = scan(
        np.maximum(ellipse(machine.grid(), 60, 50, 40), ellipse(machine.grid(), 6, 6, 9000)),
        machine,
    )
    assert out.max() == 3071
    empty = scan(np.full(machine.shape, -1000.0, dtype=np.float32), machine)
    assert empty.min() >= -1024
    assert empty.mean() == pytest.approx(-1000, abs=10)


def test_padding_outside_of_the_circle_only() -> None:
    machine = scanner(circle=True)
    hu = ellipse(machine.grid(), 60, 50, 40)
    padded, plain = scan(hu, machine), scan(hu, replace(machine, circle=False))
    y, x = np.indices(padded.shape[1:]) - 79.5
    outside = np.hypot(y, x) > 80
    assert (padded[:, outside] == -1024).all()
    assert (padded[:, ~outside] == plain[:, ~outside]).all()


# ---- drawing a scanner -------------------------------------------------------------------------


def draw(seed: int, config: PhantomConfig, **changes: object) -> Scanner:
    body = {
        "width_mm": 210.0,
        "diameter_mm": 170.0,
        "centre_mm": (0.0, 0.0),
        "range_mm": (-140.0, 120.0),
        "needed_mm": (-60.0, 50.0),
    }
    return draw_scanner(np.random.default_rng(seed), config, **(body | changes))


@given(st.integers(0, 10_000), st.sampled_from([None, 1, 7, 24, 60, 100]))
@settings(max_examples=80)
def test_a_drawn_scan_holds_what_is_needed(seed: int, most: int | None) -> None:
    config = PhantomConfig(size=128, max_slices=most)
    machine = draw(seed, config)
    low = machine.centre_mm[2] - machine.shape[0] * machine.slice_mm / 2
    high = machine.centre_mm[2] + machine.shape[0] * machine.slice_mm / 2
    assert most is None or machine.shape[0] <= most
    assert low <= -60 + machine.slice_mm / 2 + 1e-6
    assert high >= 50 - machine.slice_mm / 2 - 1e-6
    assert low >= -140 - machine.slice_mm
    assert high <= 120 + machine.slice_mm
    assert 0.5 <= machine.slice_mm <= 5.0 or most in (1, 7)
    assert 0.35 <= machine.pixel_mm * 128 / 512 <= 0.95
    assert machine.thickness_mm >= machine.slice_mm


def test_fewer_pixels_keep_the_field_of_view() -> None:
    large, small = (draw(5, PhantomConfig(size=size)) for size in (512, 128))
    assert small.pixel_mm == pytest.approx(4 * large.pixel_mm)
    assert small.shape[0] == large.shape[0]
    assert small.noise_hu == large.noise_hu


def test_slices_outside_of_the_usual_ones_are_drawn_within_the_settings() -> None:
    machine = draw(3, PhantomConfig(slice_mm=(3.2, 3.6)))
    assert 3.2 <= machine.slice_mm <= 3.6


# ---- the broad cohort --------------------------------------------------------------------------

ADULT = {
    "width_mm": 340.0,
    "diameter_mm": 280.0,
    "range_mm": (-200.0, 150.0),
    "needed_mm": (-90.0, 80.0),
}


def test_the_broad_cohort_is_scanned_with_wider_ranges() -> None:
    broad = PhantomConfig(ages_years=(0.0, 90.0))
    machines = [draw(seed, broad, **ADULT) for seed in range(300)]
    fields = np.array([m.pixel_mm * 512 / 340.0 for m in machines])
    assert 0.05 < np.mean(fields < 0.99) < 0.2, "some cut the body"
    assert np.mean(fields > 1.3) > 0.1, "some show it small"
    noise = np.array([m.noise_hu for m in machines])
    assert np.percentile(noise, 95) > 3 * np.percentile(noise, 5)
    assert 20 < np.median(noise) < 38
    assert min(m.slice_mm for m in machines) < 1 and max(m.slice_mm for m in machines) == 5
    assert {m.kernel for m in machines} == {"soft", "standard", "medium", "sharp"}
    assert {m.window_hu for m in machines} == {None}


def test_windows_are_drawn_by_their_share() -> None:
    config = PhantomConfig(window_share=0.5)
    windows = [draw(seed, config).window_hu for seed in range(200)]
    assert windows.count(None) / 200 == pytest.approx(0.5, abs=0.12)
    assert (0.0, 255.0) in windows and len(set(windows)) > 3


def test_a_window_clips_the_finished_scan() -> None:
    machine = scanner(noise_hu=20.0, window_hu=(0.0, 255.0))
    hu = np.maximum(ellipse(machine.grid(), 60, 50, 40), ellipse(machine.grid(), 6, 6, 900))
    clipped, whole = scan(hu, machine), scan(hu, replace(machine, window_hu=None))
    assert clipped.min() == 0 and clipped.max() == 255
    assert (clipped == np.clip(whole, 0, 255)).all()
