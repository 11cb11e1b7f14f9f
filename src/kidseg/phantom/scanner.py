"""CT scanners: kernels, noise, field of view, slices, voltage; drawn for one patient."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kidseg.config import PhantomConfig
from kidseg.geometry import Grid
from kidseg.phantom.hardware import Table, Tube, draw_table, draw_tubes

__all__ = ["KERNELS", "Kernel", "Scanner", "draw_scanner", "noise_hu"]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Frequency response of a reconstruction kernel.

    mtf50_per_mm is the frequency (line pairs per mm) at which contrast is halved; overshoot is the
    relative gain of medium frequencies (edge enhancement); noise is a factor on the noise level.
    """

    mtf50_per_mm: float
    overshoot: float
    noise: float


# Source: published in-plane MTF50 of abdominal body kernels, 0.3 to 0.6 lp/mm, soft to sharp.
KERNELS: dict[str, Kernel] = {
    "soft": Kernel(mtf50_per_mm=0.31, overshoot=0.0, noise=0.8),
    "standard": Kernel(mtf50_per_mm=0.38, overshoot=0.05, noise=1.0),
    "medium": Kernel(mtf50_per_mm=0.45, overshoot=0.10, noise=1.3),
    "sharp": Kernel(mtf50_per_mm=0.58, overshoot=0.18, noise=1.9),
}
_KERNEL_SHARES = {"soft": 0.15, "standard": 0.47, "medium": 0.28, "sharp": 0.10}
_BROAD_KERNEL_SHARES = {"soft": 0.12, "standard": 0.33, "medium": 0.33, "sharp": 0.22}

# Noise of a standard kernel in 3 mm slices of a water cylinder of this diameter at the usual dose
# for that size. Source: the target of paediatric abdominal CT is 10-20 HU (e.g. Boone et al.,
# Radiology 2003; Singh et al., Radiology 2009).
_NOISE_HU = 16.0
_NOISE_DIAMETER_MM = 160.0
_NOISE_SLICE_MM = 3.0
# Increase of noise with size that remains after tube-current modulation. Without modulation, noise
# is proportional to exp(mu d / 2), mu = 0.0193 per mm. Source: Boone et al., Radiology 2003.
_NOISE_PER_MM = 0.35 * 0.0193 / 2
_NOISE_SPREAD = 0.25
_NOISE_RANGE_HU = (4.5, 45.0)
# The broad cohort: dose relative to a child's of the same size, as its logarithm's range. Source:
# noise of 5 to 30 HU in flat tissue of 13 patients of the KiTS19 slices, and screening protocols.
_BROAD_DOSES = (0.25, 4.0)
_BROAD_NOISE_RANGE_HU = (3.0, 60.0)
# Common slice distances, and their frequencies.
_SLICES_MM = (0.6, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
_SLICE_SHARES = (0.03, 0.05, 0.16, 0.10, 0.10, 0.14, 0.10, 0.17, 0.05, 0.10)
# KiTS19 has slices of 1 to 5 mm (Heller et al., arXiv:1904.00445); the shares are chosen.
_BROAD_SLICE_SHARES = (0.04, 0.05, 0.14, 0.08, 0.08, 0.09, 0.10, 0.14, 0.06, 0.22)
_PIXEL_MM = (0.35, 0.95)
_BROAD_PIXEL_MM = (0.35, 1.05)
# Fields of view relative to the width of the body: cut, usual, wide; and their frequencies. Chosen.
_BROAD_FIELDS = ((0.78, 0.98), (1.0, 1.3), (1.3, 1.8))
_BROAD_FIELD_SHARES = (0.12, 0.68, 0.20)
# Display windows to which HU are clipped in data sets of pictures: 8-bit soft tissue, abdomen,
# nnU-Net's range of KiTS19, liver, full.
_WINDOWS_HU = ((0.0, 255.0), (-160.0, 240.0), (-79.0, 304.0), (-45.0, 105.0), (-1000.0, 1000.0))
_WINDOW_SHARES = (0.45, 0.2, 0.15, 0.05, 0.15)
_FULL_SIZE = 512


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """Acquisition parameters of one scan.

    Attributes:
        shape: (slices, rows, columns).
        pixel_mm, slice_mm: distance between voxel centres.
        thickness_mm: slice thickness; more than slice_mm if slices overlap.
        centre_mm: (x, y, z) of the centre of the field.
        kernel: a name of `KERNELS`.
        texture: exponent of the increase of noise power with frequency: 1 for filtered
            back-projection, less for iterative reconstruction.
        noise_hu: standard deviation in the centre of the body, before averaging over pixels.
        kv: tube voltage.
        hardening, cupping: residual errors of the beam-hardening correction, see
            `projection.flaws`.
        table: patient table.
        tubes: leads and lines.
        circle: whether voxels outside the inscribed circle are padded with -1024 HU.
        window_hu: range to which the HU are clipped at the end, or None.
    """

    shape: tuple[int, int, int]
    pixel_mm: float
    slice_mm: float
    thickness_mm: float
    centre_mm: tuple[float, float, float]
    kernel: str
    texture: float
    noise_hu: float
    kv: int
    hardening: float
    cupping: float
    table: Table | None
    tubes: tuple[Tube, ...]
    circle: bool
    window_hu: tuple[float, float] | None = None

    def grid(self) -> Grid:
        """The scan's voxels."""
        return Grid.from_spacing(
            self.shape, (self.slice_mm, self.pixel_mm, self.pixel_mm), self.centre_mm
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def noise_hu(diameter_mm: float, thickness_mm: float, kernel: str, dose: float = 1.0) -> float:
    """Expected noise: proportional to 1 / sqrt(dose x slice thickness), exponential in diameter.

    Args:
        diameter_mm: water-equivalent diameter of the body.
        thickness_mm: of the slices.
        kernel: a name of `KERNELS`.
        dose: relative to the usual dose for the body's size.

    Source: see the constants above.
    """
    size = np.exp(_NOISE_PER_MM * (diameter_mm - _NOISE_DIAMETER_MM))
    slices = np.sqrt(_NOISE_SLICE_MM / thickness_mm)
    return float(_NOISE_HU * size * slices * KERNELS[kernel].noise / np.sqrt(dose))


def draw_scanner(
    rng: np.random.Generator,
    config: PhantomConfig,
    *,
    width_mm: float,
    diameter_mm: float,
    centre_mm: tuple[float, float],
    range_mm: tuple[float, float],
    needed_mm: tuple[float, float],
) -> Scanner:
    """Draw an acquisition that is realistic for this body.

    Args:
        rng: random generator.
        config: size, slices, windows, and whether the cohort is broad.
        width_mm: largest lateral extent of the posed body.
        diameter_mm: effective diameter, for the dose.
        centre_mm: (x, y) of the body's centre in the scanner.
        range_mm: (low, high) z of the preferred scan range.
        needed_mm: (low, high) z of kidneys and tumours. If `config.max_slices` is too small, the
            range is reduced to these first; then slices become thicker, if necessary beyond
            `config.slice_mm`.
    """
    broad = config.is_broad
    if broad:
        field = _BROAD_FIELDS[int(rng.choice(len(_BROAD_FIELDS), p=_BROAD_FIELD_SHARES))]
        spread = rng.uniform(*field)
    else:
        spread = rng.choice([rng.uniform(0.96, 1.03), rng.uniform(1.04, 1.35)], p=[0.05, 0.95])
    pixel_range = _BROAD_PIXEL_MM if broad else _PIXEL_MM
    full_mm = np.clip(width_mm * spread / _FULL_SIZE, *pixel_range)
    slice_mm, (low, high) = _slices(rng, config, range_mm, needed_mm)
    count = max(1, round((high - low) / slice_mm))
    thickness = slice_mm * float(rng.choice([1.0, rng.uniform(1.25, 2.0)], p=[0.7, 0.3]))
    thickness = slice_mm if slice_mm > 2.5 else thickness
    collimated = min(thickness, _SLICES_MM[-1])
    shares = _BROAD_KERNEL_SHARES if broad else _KERNEL_SHARES
    kernel = str(rng.choice(list(shares), p=list(shares.values())))
    texture = float(rng.choice([1.0, rng.uniform(0.4, 0.9)], p=[0.6, 0.4]))
    dose = float(np.exp(rng.uniform(*np.log(_BROAD_DOSES)))) if broad else 1.0
    level = noise_hu(diameter_mm, collimated, kernel, dose)
    level *= np.exp(rng.normal(0.0, _NOISE_SPREAD))
    level *= 0.75 + 0.25 * texture
    shift = rng.normal(0.0, 0.02 * width_mm, size=2)
    # The smallest voltage that the body lets through. Source: usual paediatric protocols.
    kv = int(
        rng.choice([80, 100, 120], p=[0.4, 0.5, 0.1] if diameter_mm < 170 else [0.1, 0.5, 0.4])
    )
    clipped = config.window_share > 0 and rng.random() < config.window_share
    window = _WINDOWS_HU[int(rng.choice(len(_WINDOWS_HU), p=_WINDOW_SHARES))] if clipped else None
    return Scanner(
        shape=(count, config.size, config.size),
        pixel_mm=float(full_mm * _FULL_SIZE / config.size),
        slice_mm=float(slice_mm),
        thickness_mm=float(thickness),
        centre_mm=(
            float(centre_mm[0] + shift[0]),
            float(centre_mm[1] - abs(shift[1])),
            float((low + high) / 2),
        ),
        kernel=kernel,
        texture=texture,
        noise_hu=float(np.clip(level, *(_BROAD_NOISE_RANGE_HU if broad else _NOISE_RANGE_HU))),
        kv=kv,
        hardening=float(rng.uniform(0.02, 0.08) * (1.3 if kv == 80 else 1.0)),
        cupping=float(rng.normal(0.0, 0.0006)),
        table=draw_table(rng) if rng.random() < 0.93 else None,
        tubes=draw_tubes(rng),
        circle=bool(rng.random() < 0.35),
        window_hu=window,
    )


def _slices(
    rng: np.random.Generator,
    config: PhantomConfig,
    range_mm: tuple[float, float],
    needed_mm: tuple[float, float],
) -> tuple[float, tuple[float, float]]:
    """Slice distance and range: a common distance within the settings, at most `max_slices`."""
    thin, thick = config.slice_mm
    shares_of = _BROAD_SLICE_SHARES if config.is_broad else _SLICE_SHARES
    usual = [(s, p) for s, p in zip(_SLICES_MM, shares_of, strict=True) if thin <= s <= thick]
    if usual:
        shares = np.array([p for _, p in usual])
        slice_mm = float(rng.choice([s for s, _ in usual], p=shares / shares.sum()))
    else:
        slice_mm = float(rng.uniform(thin, thick))
    low, high = range_mm
    if config.max_slices is None or (high - low) / slice_mm <= config.max_slices:
        return slice_mm, (low, high)
    slice_mm = max(slice_mm, min(thick, (high - low) / config.max_slices))
    spare = config.max_slices * slice_mm - (needed_mm[1] - needed_mm[0])
    if spare < 0:
        return (needed_mm[1] - needed_mm[0]) / config.max_slices, needed_mm
    below = min(max(spare / 2, spare - (high - needed_mm[1])), needed_mm[0] - low)
    start = needed_mm[0] - max(0.0, below)
    return slice_mm, (start, start + config.max_slices * slice_mm)
