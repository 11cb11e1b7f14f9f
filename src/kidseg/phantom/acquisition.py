"""Simulate a CT scanner and its reconstruction: from the patient's true HU to a scan.

Adds table and tubes; beam hardening, cupping and photon starvation (from a coarse projection, see
`projection`); the blur of the reconstruction kernel and the slice profile; noise with the texture
of filtered back-projection, stronger in the centre of large bodies and streaky along dense ones;
padding outside the reconstructed circle. HU are rounded to integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kidseg.geometry import Grid, Volume, resample
from kidseg.phantom.hardware import add_hardware
from kidseg.phantom.projection import SECTORS, Flaws, flaws, sector_windows
from kidseg.phantom.scanner import KERNELS, Kernel, Scanner

__all__ = ["acquire"]

_EDGE = 12
_SLAB = 8
_HU_RANGE = (-1024.0, 3071.0)


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
        if scanner.window_hu is not None:
            np.clip(slab, *scanner.window_hu, out=slab)
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
