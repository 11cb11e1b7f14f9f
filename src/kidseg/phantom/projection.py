"""Project X-rays through the patient at a coarse scale, to simulate noise and streaks.

The physics of a scanner (projection, beam hardening, photon starvation, reconstruction) is
simulated on pixels of a few millimetres. The results are smooth at the scan's own pixels: an error
in HU from beam hardening and starved rays, and the noise level by position *and direction*.

Sources: filtered back-projection, Kak and Slaney, Principles of Computerized Tomographic Imaging,
1988, chapter 3 (also the variance of the image as the back-projected variance of the rays); beam
hardening by bone and contrast as a polynomial of the water and the bone line integral, Joseph and
Spital, J Comput Assist Tomogr 1978.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from kidseg.geometry import Grid, Volume

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix

__all__ = ["SECTORS", "Flaws", "Projector", "flaws", "projector", "sector_windows"]

SECTORS = 6
"""Number of noise directions; each spans 2/6 of a half turn and overlaps its neighbours."""

_SIDE = 128
_VIEWS = 144
_SLAB_MM = 5.0
# Linear attenuation of water at the mean energy of a 120 kV beam (about 70 keV), and its rise at
# lower tube voltage. Source: NIST XCOM, 0.193 /cm at 70 keV, 0.206 /cm at 60 keV.
_WATER_PER_MM_120KV = 0.0193
_WATER_PER_MM_PER_KV = -0.000025
# Denser material hardens the beam like bone: cortical bone, iodine, metal.
_DENSE_HU = 120.0
# The bow-tie filter compensates this fraction of a water cylinder of the body's size.
_BOW_TIE = 0.7
# Rays with this ratio of noise to the median ray through the body cause separate streaks.
_STARVED = 4.0
# Upper limit of the attenuation, beyond which electronic noise and clipping of the detector
# dominate.
_OPAQUE = 9.0


@dataclass(frozen=True, eq=False)
class Projector:
    """Parallel-beam projection of square images, with its exact adjoint as back-projection.

    Attributes:
        side: pixels along each side of the image.
        views: directions over half a turn; the normal of view v has the angle pi v / views, from
            columns towards rows.
        bins: detector bins per view, one pixel wide, the central one at the image centre.
        matrix: (views x bins, side x side) sparse, in pixels.
    """

    side: int
    views: int
    bins: int
    matrix: csc_matrix

    @property
    def angles_rad(self) -> np.ndarray:
        """(views,) angles of the views' normals."""
        return np.arange(self.views) * (np.pi / self.views)

    def project(self, images: np.ndarray) -> np.ndarray:
        """(slices, side, side) to line integrals (views, bins, slices), in values x pixels."""
        flat = np.ascontiguousarray(images.reshape(len(images), -1).T)
        sums: np.ndarray = self.matrix @ flat
        return sums.reshape(self.views, self.bins, -1)

    def back_project(self, sinogram: np.ndarray) -> np.ndarray:
        """(views, bins, slices) back-projected and summed over views: (slices, side, side)."""
        flat = self.matrix.T @ sinogram.reshape(self.views * self.bins, -1)
        return np.ascontiguousarray(flat.T).reshape(-1, self.side, self.side)

    def reconstruct(self, sinogram: np.ndarray) -> np.ndarray:
        """Filtered back-projection with the ramp of Ramachandran and Lakshminarayanan."""
        from scipy import fft

        length = fft.next_fast_len(2 * self.bins, real=True)
        offset = np.arange(-(length // 2), length - length // 2)
        ramp = np.zeros(length)
        ramp[offset == 0] = 0.25
        odd = offset % 2 == 1
        ramp[odd] = -1.0 / (np.pi * offset[odd]) ** 2
        response = fft.rfft(np.fft.ifftshift(ramp)).real.astype(np.float32)
        spectrum = fft.rfft(sinogram, n=length, axis=1) * response[None, :, None]
        filtered = fft.irfft(spectrum, n=length, axis=1)[:, : self.bins]
        return self.back_project(filtered.astype(np.float32)) * np.float32(np.pi / self.views)


@lru_cache(maxsize=2)
def projector(side: int, views: int = _VIEWS) -> Projector:
    """The projector of `side` x `side` images; the last two are cached."""
    from scipy.sparse import csc_matrix

    bins = 2 * int(np.ceil(side / np.sqrt(2.0))) + 3
    at = np.arange(side) - (side - 1) / 2
    angles = np.arange(views) * (np.pi / views)
    s = at[None, :, None] * np.cos(angles) + at[:, None, None] * np.sin(angles) + (bins - 1) / 2
    first = np.rint(s).astype(np.int32) - 1
    edges = first[..., None] - s[..., None] + (np.arange(4) - 0.5)
    before = _shadow_before(edges, angles[:, None])
    weights = np.diff(before, axis=-1).astype(np.float32).ravel()
    rows = first + np.arange(views, dtype=np.int32) * bins
    indices = (rows[..., None] + np.arange(3, dtype=np.int32)).ravel()
    starts = np.arange(0, indices.size + 1, 3 * views)
    matrix = csc_matrix((weights, indices, starts), shape=(views * bins, side * side))
    return Projector(side, views, bins, matrix)


def _shadow_before(at: np.ndarray, angle_rad: np.ndarray) -> np.ndarray:
    """Integral up to `at` of a unit square's projection (a trapezoid of area 1, centre 0)."""
    a = np.maximum(np.abs(np.cos(angle_rad)), 1e-4)
    b = np.maximum(np.abs(np.sin(angle_rad)), 1e-4)

    def ramp(shift: np.ndarray) -> np.ndarray:
        area: np.ndarray = np.maximum(at + shift, 0.0) ** 2 / 2.0
        return area

    wide, narrow = (a + b) / 2, (a - b) / 2
    total: np.ndarray = (ramp(wide) - ramp(narrow) - ramp(-narrow) + ramp(-wide)) / (a * b)
    return total


def sector_windows(angle_rad: np.ndarray) -> np.ndarray:
    """(SECTORS, ...) weights of a direction in each sector: cosine-squared, adding up to 1."""
    centres = np.arange(SECTORS) * (np.pi / SECTORS)
    away = angle_rad[None] - centres.reshape(-1, *[1] * np.ndim(angle_rad))
    away = np.abs((away + np.pi / 2) % np.pi - np.pi / 2)
    weights: np.ndarray = np.where(away < np.pi / SECTORS, np.cos(SECTORS / 2 * away) ** 2, 0.0)
    return weights


@dataclass(frozen=True, eq=False)
class Flaws:
    """Artefacts on a coarse grid over the same field.

    Attributes:
        error_hu: (1, ...) streaks, bands and cupping to add.
        noise: (SECTORS, ...) noise level in each direction, relative to that in the centre of the
            body averaged over directions.
    """

    error_hu: Volume
    noise: Volume


def flaws(
    hu: np.ndarray,
    grid: Grid,
    *,
    kv: int,
    hardening: float,
    cupping: float,
    coarse_noise_hu: float,
    rng: np.random.Generator,
) -> Flaws:
    """Simulate projection, beam hardening and photon starvation, and reconstruct the artefacts.

    Args:
        hu: (slices, rows, columns) the patient with table and tubes, without noise.
        grid: volumetric, square pixels.
        kv: tube voltage.
        hardening: missing attenuation per (bone integral x (water + half the bone integral));
            0 is a perfect correction. A few hundredths remain in practice.
        cupping: the same per squared water integral; positive or negative.
        coarse_noise_hu: noise in the centre of the body at the coarse resolution; scales the noise
            of starved rays.
        rng: random generator for the starved rays.
    """
    coarse, water, dense = _coarse(hu, grid)
    rays = projector(water.shape[1])
    mu_per_mm = _WATER_PER_MM_120KV + _WATER_PER_MM_PER_KV * (kv - 120)
    per_pixel = np.float32(mu_per_mm * float(coarse.spacing_mm[2]))
    p_water = rays.project(water) * per_pixel
    p_dense = rays.project(dense) * per_pixel
    error = -(
        np.float32(hardening) * p_dense * (p_water + 0.5 * p_dense)
        + np.float32(cupping) * p_water**2
    )
    variance = np.exp(np.minimum(p_water + p_dense + _bow_tie(p_water), _OPAQUE))
    inside = p_water > 0.2
    variance = _modulated(variance, inside)
    middle_image, noise = _noise_maps(rays, variance, water)
    # Variance of filtered back-projection: sum of ray variances x pi^2 / (12 views^2), per pixel^2.
    per_hu2 = (1000.0 / per_pixel) ** 2 * np.pi**2 / (12.0 * rays.views**2)
    ray_scale = coarse_noise_hu**2 / (per_hu2 * max(middle_image, 1e-9))
    typical = float(np.median(variance[inside])) if inside.any() else 1.0
    starved = np.maximum(variance - _STARVED * typical, 0.0) * np.float32(ray_scale)
    error += np.sqrt(starved) * rng.standard_normal(starved.shape, dtype=np.float32)
    error_hu = rays.reconstruct(error) * np.float32(1000.0) / per_pixel
    return Flaws(
        Volume(torch.from_numpy(error_hu)[None], coarse), Volume(torch.from_numpy(noise), coarse)
    )


def _coarse(hu: np.ndarray, grid: Grid) -> tuple[Grid, np.ndarray, np.ndarray]:
    """Block means: (grid, water-like and dense part as multiples of water's attenuation)."""
    nz, ny, nx = grid.shape
    step = max(1, -(-max(ny, nx) // _SIDE))
    step_z = max(1, round(_SLAB_MM / float(grid.spacing_mm[0])))
    side = -(-max(ny, nx) // step)
    count = -(-nz // step_z)
    padded = grid.crop((0, 0, 0), (count * step_z, side * step, side * step))
    water = np.zeros((count, side * step, side * step), dtype=np.float32)
    dense = np.zeros_like(water)
    for k in range(count):
        block = hu[k * step_z : (k + 1) * step_z]
        water[k, :ny, :nx] = (1.0 + np.clip(block, -1000.0, _DENSE_HU) / 1000.0).mean(0)
        dense[k, :ny, :nx] = (np.maximum(block - _DENSE_HU, 0.0) / 1000.0).mean(0)
    blocks = (count, side, step, side, step)
    coarse = padded.resized((count, side, side))
    return coarse, water.reshape(blocks).mean((2, 4)), dense.reshape(blocks).mean((2, 4))


def _bow_tie(p_water: np.ndarray) -> np.ndarray:
    """(1, bins, 1) attenuation that the filter adds outside the centre, for the median body."""
    bins = p_water.shape[1]
    across = (p_water > 0.2).sum(1)
    diameter = float(np.median(across[across > 0])) if (across > 0).any() else 1.0
    at = np.arange(bins) - (bins - 1) / 2
    chord = np.sqrt(np.maximum(diameter**2 / 4 - at**2, 0.0)) / (diameter / 2)
    peak = float(np.percentile(p_water.max(1), 50))
    added: np.ndarray = (_BOW_TIE * peak * (1.0 - chord)).astype(np.float32)[None, :, None]
    return added


def _modulated(variance: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Ray variances with the tube current modulated by the attenuation of each view and slice.

    Image noise is minimal if the current is proportional to the root of the mean attenuation.
    Source: Gies et al., Med Phys 1999 (attenuation-controlled tube-current modulation).
    """
    count = np.maximum(inside.sum(1, keepdims=True), 1)
    mean = np.maximum((variance * inside).sum(1, keepdims=True) / count, 1.0)
    result: np.ndarray = (variance / np.sqrt(mean)).astype(np.float32)
    return result


def _noise_maps(
    rays: Projector, variance: np.ndarray, water: np.ndarray
) -> tuple[float, np.ndarray]:
    """Sum of ray variances in the body's centre, and (SECTORS, slices, side, side) noise levels."""
    weights = sector_windows(rays.angles_rad).astype(np.float32)
    sectors = np.stack([rays.back_project(w[:, None, None] * variance) for w in weights])
    np.maximum(sectors, 0.0, out=sectors)
    total = sectors.sum(0)
    body = water > 0.5
    middle = float(np.percentile(total[body], 90)) if body.any() else float(total.mean())
    strength = np.sqrt(sectors * np.float32(SECTORS / max(middle, 1e-9)))
    return middle, strength
