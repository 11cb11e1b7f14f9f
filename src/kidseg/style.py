"""Domain randomization: random pose and random appearance of CT slices.

A network that is trained on simulated scans sees so many appearances that a real scan is one more.
The pose is a grid, so that the scan is interpolated once; the appearance is changed in HU, before
the values are clipped and normalised for the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.config import StyleConfig
from kidseg.geometry import Grid, posed
from kidseg.stage import TrainStep

__all__ = ["Style", "draw_styles", "restyled", "styled_grid"]

# The curve of soft tissue: its knots, and the value it does not move much. Fat is about -100 HU,
# unenhanced tissue 20 to 60, enhanced parenchyma 80 to 220 (Hounsfield scale, `phantom.tissues`).
_KNOTS_HU = (-150.0, -60.0, 0.0, 30.0, 60.0, 100.0, 160.0, 250.0)
_PIVOT_HU = 40.0
_KNOT_SHIFT_HU = 20.0
_MAX_LOG_SLOPE = 1.0
# Lower and upper ends of display windows; KiTS19's slices as images have 0 to 255.
_WINDOW_LOW_HU = (-200.0, 0.0)
_WINDOW_HIGH_HU = (180.0, 400.0)
_KITS_WINDOW_HU = (0.0, 255.0)
_KITS_SHARE = 0.6
# Waves of the smooth field and their periods in sides of the image; blur of textures in pixels.
_BIAS_WAVES = 5
_BIAS_PERIODS = (0.4, 2.0)
_TEXTURE_PX = (1.0, 5.0)
_BLUR_SHARE = _SHARPEN_SHARE = 0.25
_MAX_SHARPENING = 1.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Style:
    """How the samples of a batch are changed; every array has one entry per sample.

    Attributes:
        angle_rad: rotation.
        zoom: (n, 2) size of the body along columns and rows; a negative one is mirrored.
        shift_mm: (n, 2) along columns and rows.
        gain: factor of the contrast.
        offset_hu: added to all values.
        slopes: (n, knots + 1) of the curve of soft tissue.
        knot_shift_hu: of its knots.
        bias_hu: SD of the smooth field.
        label_hu: (n, labels) added to each label.
        texture_hu: (n, labels) SD of the texture of each label.
        texture_px: SD of its blur.
        noise_hu: SD of the noise.
        noise_px: SD of its blur.
        blur_px: SD of the blur; 0: none.
        sharpening: weight of the difference from the blurred image; 0: none.
        low_hu: lower end of the window.
        high_hu: upper end of the window.
        single: show the middle slice in place of its neighbours.
        seeds: of the random fields.
    """

    angle_rad: np.ndarray
    zoom: np.ndarray
    shift_mm: np.ndarray
    gain: np.ndarray
    offset_hu: np.ndarray
    slopes: np.ndarray
    knot_shift_hu: np.ndarray
    bias_hu: np.ndarray
    label_hu: np.ndarray
    texture_hu: np.ndarray
    texture_px: np.ndarray
    noise_hu: np.ndarray
    noise_px: np.ndarray
    blur_px: np.ndarray
    sharpening: np.ndarray
    low_hu: np.ndarray
    high_hu: np.ndarray
    single: np.ndarray
    seeds: np.ndarray


def draw_styles(config: StyleConfig, step: TrainStep, count: int, labels: int) -> Style:
    """Draw the styles of this process's share of a batch; a pure function of the step.

    Args:
        config: ranges.
        step: determines the values.
        count: samples of this process.
        labels: number of labels besides background.
    """
    total = count * step.world
    entropy = [step.seed, step.epoch, step.step, 0]
    rng = np.random.default_rng(entropy)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, (total, *shape))

    half = config.stretch / 2
    stretch = np.exp(uniform(-half, half))
    least, most = config.zoom
    zoom = np.exp(uniform(math.log(least), math.log(most)))
    flip = np.where(config.flip & (uniform(0, 1) < 0.5), -1.0, 1.0)
    kits = uniform(0, 1) < _KITS_SHARE
    clipped = uniform(0, 1) < config.window_share
    low = np.where(kits, _KITS_WINDOW_HU[0], uniform(*_WINDOW_LOW_HU))
    high = np.where(kits, _KITS_WINDOW_HU[1], uniform(*_WINDOW_HIGH_HU))
    sharpness = uniform(0, 1)
    slopes = rng.normal(0, config.tone, (total, len(_KNOTS_HU) + 1))
    drawn = {
        "angle_rad": np.deg2rad(uniform(-config.rotation_deg, config.rotation_deg)),
        "zoom": np.stack([flip * zoom * stretch, zoom / stretch], axis=1),
        "shift_mm": uniform(-config.shift_mm, config.shift_mm, 2),
        "gain": np.exp(uniform(-config.gain, config.gain)),
        "offset_hu": uniform(-config.offset_hu, config.offset_hu),
        "slopes": np.exp(slopes.clip(-_MAX_LOG_SLOPE, _MAX_LOG_SLOPE)),
        "knot_shift_hu": uniform(-_KNOT_SHIFT_HU, _KNOT_SHIFT_HU),
        "bias_hu": uniform(0, config.bias_hu),
        "label_hu": rng.normal(0, config.label_hu, (total, labels)),
        "texture_hu": uniform(0, config.texture_hu, labels),
        "texture_px": uniform(*_TEXTURE_PX),
        "noise_hu": uniform(0, config.noise_hu) * uniform(0, 1),
        "noise_px": uniform(0, 1.2),
        "blur_px": np.where(sharpness < _BLUR_SHARE, uniform(0, config.blur_px), 0.0),
        "sharpening": np.where(sharpness > 1 - _SHARPEN_SHARE, uniform(0, _MAX_SHARPENING), 0.0),
        "low_hu": np.where(clipped, low, -np.inf),
        "high_hu": np.where(clipped, high, np.inf),
        "single": uniform(0, 1) < config.single_share,
        "seeds": rng.integers(0, 2**62, total),
    }
    return Style(**{name: values[step.rank :: step.world] for name, values in drawn.items()})


def styled_grid(grid: Grid, style: Style) -> Grid:
    """The grids of a batch (slice-wise), posed at random about their centres."""
    return posed(
        grid,
        angle_rad=torch.from_numpy(style.angle_rad),
        scale=torch.from_numpy(1.0 / style.zoom),
        shift_mm=torch.from_numpy(style.shift_mm),
    )


def restyled(hu: Tensor, labels: Tensor, style: Style) -> Tensor:
    """Change the appearance of slices.

    Args:
        hu: (slices * channels, n, rows, columns) HU, of a slice between its neighbours.
        labels: (slices, n, rows, columns) uint8 of these, 0 background.
        style: of each sample.

    Returns:
        As `hu`, float32; a new tensor.
    """
    out = hu.to(torch.float32, copy=True).transpose(0, 1).contiguous()
    slices = out.view(len(out), len(labels), -1, *out.shape[2:])
    middle = len(labels) // 2
    for k, single in enumerate(style.single):
        if single:
            slices[k] = slices[k, middle].clone()
        shown = labels[middle : middle + 1, k] if single else labels[:, k]
        slices[k] += _own_change(shown, style, k)[:, None]
    out = _toned(out, style)
    for k in range(len(out)):
        out[k] = _filtered(out[k], style, k)
    bounds = (
        torch.from_numpy(v).float()[:, None, None, None] for v in (style.low_hu, style.high_hu)
    )
    return torch.clamp(out, *bounds).transpose(0, 1)


def _own_change(labels: Tensor, style: Style, k: int) -> Tensor:
    """(slices, rows, columns): what is added to each label and, smoothly, to everything."""
    shape = labels.shape[1:]
    rng = _generator(style, k)
    bias = _waves(shape, rng)
    change = bias * float(style.bias_hu[k])
    if not bool(labels.any()):
        return change[None]
    texture = _noise(shape, float(style.texture_px[k]), rng)
    for number in range(style.label_hu.shape[1]):
        inside = _blurred((labels == number + 1).float(), 0.7)
        amount = float(style.label_hu[k, number]) + texture * float(style.texture_hu[k, number])
        change = change + inside * amount
    return change


def _waves(shape: torch.Size, rng: torch.Generator) -> Tensor:
    """A smooth random field of SD about 1: the sum of a few plane waves."""
    low, high = _BIAS_PERIODS
    period = low * (high / low) ** torch.rand(_BIAS_WAVES, generator=rng)
    angle, phase = 2 * math.pi * torch.rand((2, _BIAS_WAVES), generator=rng)
    y, x = (torch.linspace(0, 1, side)[:, None] for side in shape)
    cycles = 2 * math.pi / period
    rows, columns = y * cycles * angle.sin() + phase, x * cycles * angle.cos()
    amplitude = math.sqrt(2 / _BIAS_WAVES)
    # cos(a + b) for all rows and columns, as two matrix products.
    field: Tensor = rows.cos() @ columns.cos().T - rows.sin() @ columns.sin().T
    return amplitude * field


def _toned(hu: Tensor, style: Style) -> Tensor:
    """Gain, offset and the monotone curve of soft tissue; air and bone follow with slope 1."""
    slopes = torch.from_numpy(style.slopes).float()
    slopes[:, 0] = slopes[:, -1] = 1.0
    knots = torch.tensor(_KNOTS_HU)
    rises = slopes[:, 1:-1] * knots.diff()
    values = torch.cat([torch.zeros(len(slopes), 1), rises.cumsum(1)], dim=1)
    starts = torch.cat([knots[:1], knots])
    bases = torch.cat([values[:, :1], values], dim=1)
    # The curve passes through the pivot, so that it changes contrast, not brightness.
    at = int((knots <= _PIVOT_HU).sum())
    bases = bases + (_PIVOT_HU - bases[:, at] - slopes[:, at] * (_PIVOT_HU - starts[at]))[:, None]

    def each(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float()[:, None, None, None]

    x = hu - each(style.knot_shift_hu)
    segment = torch.bucketize(x, knots, right=True)
    flat = segment + torch.arange(len(hu))[:, None, None, None] * len(starts)
    y = bases.flatten()[flat] + slopes.flatten()[flat] * (x - starts[segment])
    y += each(style.knot_shift_hu) - _PIVOT_HU
    return y * each(style.gain) + _PIVOT_HU + each(style.offset_hu)


def _filtered(hu: Tensor, style: Style, k: int) -> Tensor:
    """(channels, rows, columns), blurred or sharpened, with noise."""
    if style.blur_px[k] > 0:
        hu = _blurred(hu, float(style.blur_px[k]))
    elif style.sharpening[k] > 0:
        hu = hu + (hu - _blurred(hu, 1.0)) * float(style.sharpening[k])
    rng = _generator(style, k, 1)
    noise = _noise(hu.shape, float(style.noise_px[k]), rng)
    if style.single[k]:
        noise = noise[:1]
    return hu + noise * float(style.noise_hu[k])


def _noise(shape: tuple[int, ...] | torch.Size, blur_px: float, rng: torch.Generator) -> Tensor:
    """Gaussian noise of SD 1, blurred."""
    noise = _blurred(torch.randn(shape, generator=rng), blur_px)
    return noise / noise.std().clamp(min=1e-6)


def _blurred(image: Tensor, sd_px: float) -> Tensor:
    """(..., rows, columns), blurred by a Gaussian; edges are repeated."""
    reach = math.ceil(2.5 * sd_px)
    if sd_px < 0.2:
        return image
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sd_px) ** 2)
    weights = weights / weights.sum()
    flat = image.reshape(-1, 1, *image.shape[-2:])
    flat = F.pad(flat, (reach,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return flat.reshape(image.shape)


def _generator(style: Style, k: int, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(int(style.seeds[k]) + stream)
