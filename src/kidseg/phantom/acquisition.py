"""Simulate a CT scanner and its reconstruction: from the patient's true HU to a scan.

Adds table and tubes; beam hardening, cupping and photon starvation (from a coarse projection, see
`projection`); the blur of the reconstruction kernel and the slice profile; noise with the texture
of filtered back-projection, stronger in the centre of large bodies and streaky along dense ones;
padding outside the reconstructed circle. HU are rounded to integers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kidseg.config import PhantomConfig
from kidseg.geometry import Grid, Volume, resample
from kidseg.phantom.hardware import Table, Tube, add_hardware, draw_table, draw_tubes
from kidseg.phantom.projection import SECTORS, Flaws, flaws, sector_windows

__all__ = ["KERNELS", "Kernel", "Scanner", "acquire", "draw_scanner", "noise_hu"]


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
# Common slice distances, and their frequencies.
_SLICES_MM = (0.6, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
_SLICE_SHARES = (0.03, 0.05, 0.16, 0.10, 0.10, 0.14, 0.10, 0.17, 0.05, 0.10)
_PIXEL_MM = (0.35, 0.95)
_FULL_SIZE = 512
_EDGE = 12
_SLAB = 8
_HU_RANGE = (-1024.0, 3071.0)


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
        config: size and slices.
        width_mm: largest lateral extent of the posed body.
        diameter_mm: effective diameter, for the dose.
        centre_mm: (x, y) of the body's centre in the scanner.
        range_mm: (low, high) z of the preferred scan range.
        needed_mm: (low, high) z of kidneys and tumours. If `config.max_slices` is too small, the
            range is reduced to these first; then slices become thicker, if necessary beyond
            `config.slice_mm`.
    """
    spread = rng.choice([rng.uniform(0.96, 1.03), rng.uniform(1.04, 1.35)], p=[0.05, 0.95])
    full_mm = np.clip(width_mm * spread / _FULL_SIZE, *_PIXEL_MM)
    slice_mm, (low, high) = _slices(rng, config, range_mm, needed_mm)
    count = max(1, round((high - low) / slice_mm))
    thickness = slice_mm * float(rng.choice([1.0, rng.uniform(1.25, 2.0)], p=[0.7, 0.3]))
    thickness = slice_mm if slice_mm > 2.5 else thickness
    collimated = min(thickness, _SLICES_MM[-1])
    kernel = str(rng.choice(list(_KERNEL_SHARES), p=list(_KERNEL_SHARES.values())))
    texture = float(rng.choice([1.0, rng.uniform(0.4, 0.9)], p=[0.6, 0.4]))
    level = noise_hu(diameter_mm, collimated, kernel) * np.exp(rng.normal(0.0, _NOISE_SPREAD))
    level *= 0.75 + 0.25 * texture
    shift = rng.normal(0.0, 0.02 * width_mm, size=2)
    # The smallest voltage that the body lets through. Source: usual paediatric protocols.
    kv = int(
        rng.choice([80, 100, 120], p=[0.4, 0.5, 0.1] if diameter_mm < 170 else [0.1, 0.5, 0.4])
    )
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
        noise_hu=float(np.clip(level, *_NOISE_RANGE_HU)),
        kv=kv,
        hardening=float(rng.uniform(0.02, 0.08) * (1.3 if kv == 80 else 1.0)),
        cupping=float(rng.normal(0.0, 0.0006)),
        table=draw_table(rng) if rng.random() < 0.93 else None,
        tubes=draw_tubes(rng),
        circle=bool(rng.random() < 0.35),
    )


def _slices(
    rng: np.random.Generator,
    config: PhantomConfig,
    range_mm: tuple[float, float],
    needed_mm: tuple[float, float],
) -> tuple[float, tuple[float, float]]:
    """Slice distance and range: a common distance within the settings, at most `max_slices`."""
    thin, thick = config.slice_mm
    usual = [(s, p) for s, p in zip(_SLICES_MM, _SLICE_SHARES, strict=True) if thin <= s <= thick]
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


def acquire(hu: np.ndarray, grid: Grid, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Simulate the scan of a patient.

    Args:
        hu: (slices, rows, columns) float32, true HU with partial volume, air -1000. Overwritten.
        grid: of `hu`; axial, square pixels.
        scanner: the acquisition.
        rng: random generator for the noise.

    Returns:
        (slices, rows, columns) int16 HU in -1024..3071.
    """
    add_hardware(hu, grid, scanner.table, scanner.tubes)
    spectrum = _Spectrum.of(scanner, grid)
    flawed = flaws(
        hu,
        grid,
        kv=scanner.kv,
        hardening=scanner.hardening,
        cupping=scanner.cupping,
        coarse_noise_hu=scanner.noise_hu * spectrum.coarse_share,
        rng=rng,
    )
    profile = _slice_profile(scanner.thickness_mm / scanner.slice_mm)
    planes = _along_slices(flawed, grid)
    out = np.empty(hu.shape, dtype=np.int16)
    outside = _outside_circle(hu.shape[1:]) if scanner.circle else None
    white = _White(rng, spectrum.size, profile)
    for start in range(0, len(hu), _SLAB):
        stop = min(start + _SLAB, len(hu))
        slab = spectrum.blurred(_profiled(hu, start, stop, profile))
        error, strength = _on_slab(planes, grid.slices(start, stop))
        slab += error
        noise = spectrum.noise(white.draw(stop - start), strength)
        noise *= np.float32(scanner.noise_hu)
        slab += noise
        np.clip(np.rint(slab, out=slab), *_HU_RANGE, out=slab)
        if outside is not None:
            slab[:, outside] = _HU_RANGE[0]
        out[start:stop] = slab
    return out


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """The kernel's filters on the padded plane, in the frequency order of the real FFT.

    `size` is the size of the padded plane, `transfer` the filter of the signal, `colours`
    (SECTORS, ...) the filters of the noise: white noise of standard deviation 1 filtered by their
    sum is the scan's noise for noise_hu = 1. `coarse_share` is the fraction of the noise amplitude
    at the coarse resolution of the projection.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    transfer: np.ndarray
    colours: np.ndarray
    coarse_share: float

    @classmethod
    def of(cls, scanner: Scanner, grid: Grid) -> _Spectrum:
        from scipy import fft

        _, ny, nx = grid.shape
        size = (
            int(fft.next_fast_len(ny + 2 * _EDGE, real=True)),
            int(fft.next_fast_len(nx + 2 * _EDGE, real=True)),
        )
        pixel = scanner.pixel_mm
        fy = np.fft.fftfreq(size[0], pixel)[:, None]
        fx = np.fft.rfftfreq(size[1], pixel)[None]
        f = np.hypot(fy, fx)
        kernel = KERNELS[scanner.kernel]
        power = _noise_power(kernel, scanner.texture)
        colour = np.sqrt(power(f)) * np.sinc(fy * pixel) * np.sinc(fx * pixel) / pixel
        windows = sector_windows(np.arctan2(fy, fx))
        coarse_mm = pixel * max(1, -(-max(ny, nx) // 128))
        share = np.sqrt(_plane_integral(power, 0.5 / coarse_mm))
        return cls(
            (ny, nx),
            size,
            _mtf(f, kernel).astype(np.float32),
            (windows * colour).astype(np.float32),
            float(share),
        )

    def blurred(self, slab: np.ndarray) -> np.ndarray:
        """(slices, rows, columns) filtered by the kernel, with edge padding."""
        from scipy import fft

        ny, nx = self.shape
        after = (self.size[0] - ny - _EDGE, self.size[1] - nx - _EDGE)
        padded = np.pad(slab, ((0, 0), (_EDGE, after[0]), (_EDGE, after[1])), mode="edge")
        spectrum = fft.rfft2(padded, workers=torch.get_num_threads())
        spectrum *= self.transfer
        full = fft.irfft2(spectrum, s=self.size, workers=torch.get_num_threads())
        return np.ascontiguousarray(full[:, _EDGE : _EDGE + ny, _EDGE : _EDGE + nx])

    def noise(self, white: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """White noise (slices, *size), filtered per direction, times (SECTORS, slices, ...)."""
        from scipy import fft

        ny, nx = self.shape
        spectrum = fft.rfft2(white, workers=torch.get_num_threads())
        total = np.zeros((len(white), ny, nx), dtype=np.float32)
        for colour, local in zip(self.colours, strength, strict=True):
            part = fft.irfft2(spectrum * colour, s=self.size, workers=torch.get_num_threads())
            total += part[:, :ny, :nx] * local
        return total


class _White:
    """White noise of unit variance, correlated between slices by their overlapping profiles."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], profile: float) -> None:
        self._rng, self._size, self._side = rng, size, profile
        self._norm = np.float32(1.0 / np.sqrt((1 - 2 * profile) ** 2 + 2 * profile**2))
        self._carried = self._fresh(2) if profile else None

    def _fresh(self, count: int) -> np.ndarray:
        return self._rng.standard_normal((count, *self._size), dtype=np.float32)

    def draw(self, count: int) -> np.ndarray:
        if self._carried is None:
            return self._fresh(count)
        run = np.concatenate([self._carried, self._fresh(count)])
        self._carried = run[-2:]
        side, middle = np.float32(self._side), np.float32(1 - 2 * self._side)
        mixed: np.ndarray = (middle * run[1:-1] + side * (run[:-2] + run[2:])) * self._norm
        return mixed


def _mtf(f: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Contrast at f line pairs per mm: halved at the kernel's MTF50, with a gain below it."""
    ratio = f / kernel.mtf50_per_mm
    lift = 1.0 + kernel.overshoot * np.sin(np.pi * np.minimum(ratio, 1.0)) ** 2
    passed: np.ndarray = lift * np.exp2(-(ratio**2.2))
    return passed


def _noise_power(kernel: Kernel, texture: float) -> _Power:
    """Noise power density f^texture MTF^2, normalised to a unit integral over the plane."""
    power = _Power(kernel, texture, 1.0)
    return _Power(kernel, texture, 1.0 / _plane_integral(power, 4 * kernel.mtf50_per_mm))


@dataclass(frozen=True)
class _Power:
    kernel: Kernel
    texture: float
    scale: float

    def __call__(self, f: np.ndarray) -> np.ndarray:
        power: np.ndarray = self.scale * f**self.texture * _mtf(f, self.kernel) ** 2
        return power


def _plane_integral(power: _Power, up_to: float) -> float:
    f = np.linspace(0.0, up_to, 2001)
    return float(np.trapezoid(2 * np.pi * f * power(f), f))


def _slice_profile(overlap: float) -> float:
    """Weight of each neighbouring slice if slices are `overlap` times thicker than their distance.

    The variance of the three weights (and the voxel's own box) equals that of a box of this width.
    """
    return float(np.clip((overlap**2 - 1) / 24, 0.0, 1 / 3))


def _profiled(hu: np.ndarray, start: int, stop: int, side: float) -> np.ndarray:
    """Slices start .. stop - 1, blended with their neighbours."""
    if side == 0.0:
        return hu[start:stop]
    last = len(hu) - 1
    below = hu[[max(k - 1, 0) for k in range(start, stop)]]
    above = hu[[min(k + 1, last) for k in range(start, stop)]]
    mixed: np.ndarray = hu[start:stop] * np.float32(1 - 2 * side)
    mixed += np.float32(side) * (below + above)
    return mixed


def _along_slices(flawed: Flaws, grid: Grid) -> Volume:
    """(1 + SECTORS, slices, coarse rows, coarse columns): error and noise at the scan's slices."""
    both = Volume(torch.cat([flawed.error_hu.data, flawed.noise.data]), flawed.noise.grid)
    side = both.grid.shape[1:]
    step = -(-max(grid.shape[1:]) // side[0])
    padded = grid.crop((0, 0, 0), (grid.shape[0], side[0] * step, side[1] * step))
    return resample(both, padded.resized((grid.shape[0], *side)))


def _on_slab(planes: Volume, slab: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Error (slices, rows, columns) and noise strength (SECTORS, ...) at the scan's pixels."""
    values = resample(planes, slab).data.numpy()
    assert len(values) == 1 + SECTORS
    return values[0], values[1:]


def _outside_circle(shape: tuple[int, ...]) -> np.ndarray:
    y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    outside: np.ndarray = np.hypot(y[:, None] / shape[0], x[None] / shape[1]) > 0.5
    return outside
