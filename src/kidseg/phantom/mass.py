"""Renal masses of adults: where they are, how large, and what they look like.

Most are small solid tumours that enhance, beside cystic and fatty ones. They grow like other
tumours (`tumour`), but part of their volume replaces the kidney instead of displacing it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kidseg.phantom.anatomy import Body, Kidney, Tumour
from kidseg.phantom.canvas import Canvas, Patch
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.tumour import TUMOUR, fitted, settled

__all__ = ["VOLUME_MEDIAN_ML", "draw_mass", "draw_mass_volume_ml", "paint_masses"]

VOLUME_MEDIAN_ML = 30.0
"""Source: 99 label volumes of KiTS19, median 29 ml, 5-95 percentile 3-570 ml."""
_LOG_SDS = (1.40, 1.80)
_RANGE_ML = (0.7, 1500.0)
# Shares of hypervascular (clear cell), homogeneous (papillary, chromophobe, oncocytoma), cystic and
# fatty (angiomyolipoma) masses. Source: 66 % clear cell of 300 in KiTS19; 10-15 % cystic; 1-3 %
# angiomyolipoma.
_KINDS = {"vascular": 0.54, "plain": 0.32, "cystic": 0.12, "fatty": 0.02}
# Sizes of the details of the textures (names of `Patch.noise`), mm in a body of scale 1.9.
_GRAINS_MM = {"fine": 1.8, "middle": 3.6, "large": 9.6, "blotch": 15.0}


def draw_mass_volume_ml(rng: np.random.Generator) -> float:
    """Draw a volume: log-normal, wider above the median than below."""
    z = rng.normal()
    volume = VOLUME_MEDIAN_ML * np.exp(z * _LOG_SDS[int(z > 0)])
    return float(np.clip(volume, *_RANGE_ML))


def draw_mass(rng: np.random.Generator, body: Body, kidney: Kidney, volume_ml: float) -> Tumour:
    """Draw a mass of this volume in a kidney, from endophytic to exophytic, also at the poles."""
    frame = Frame.of(kidney)
    height = rng.uniform(-1.0, 1.0)
    azimuth = np.deg2rad(np.clip(rng.normal(0.0, 75.0), -150.0, 150.0))
    around = np.sqrt(1.0 - height**2)
    outward = np.array([around * np.cos(azimuth), around * np.sin(azimuth), height])
    surface = frame.anatomy_mm(*outward)
    depth = float(np.linalg.norm(surface - frame.centre))
    out = (surface - frame.centre) / depth
    radius = float(np.cbrt(volume_ml * 1000.0 * 3 / (4 * np.pi)))
    # -1: inside the kidney; 0: half of it outside; 0.5: on a narrow base. Source: the share of the
    # surface in contact with the kidney, 0.16 to 0.83, in the label volumes of KiTS19.
    exophytic = rng.uniform(-1.1, 0.5)
    centre = surface + out * max(exophytic * radius, -0.8 * depth)
    origin = centre - out * radius * (0.25 + 0.45 * max(exophytic, 0.0))
    centre = settled(body, origin, centre, radius)
    ox, oy, oz = (float(v) for v in origin)
    cx, cy, cz = (float(v) for v in centre)
    rough = Tumour(
        side=kidney.side,
        volume_ml=volume_ml,
        origin_mm=(ox, oy, oz),
        centre_mm=(cx, cy, cz),
        radius_mm=radius,
        lobes=_draw_lobes(rng, radius),
        septa=float(rng.beta(1.5, 2.0)),
        rim_mm=float(rng.uniform(0.4, 1.6)),
        replaced=float(rng.uniform(0.1, 0.7) * np.clip(1.3 - radius / 40.0, 0.2, 1.0)),
        **_draw_tissue(rng, radius),
    )
    return fitted(rough, body)


def _draw_lobes(
    rng: np.random.Generator, radius_mm: float
) -> tuple[tuple[float, float, float, float], ...]:
    """An elongated body with bumps, more on large masses.

    Source: 99 label volumes of KiTS19: volume relative to the sphere of the longest diameter 0.33
    to 0.69, median 0.51; relative to the convex hull 0.93.
    """
    axis = rng.normal(size=3)
    axis *= rng.uniform(0.1, 0.75) / np.linalg.norm(axis)
    body = float(rng.uniform(0.62, 0.85))
    ends = [(*(float(s * v) for v in axis), body * float(rng.uniform(0.6, 1.0))) for s in (1, -1)]
    lobes = [(0.0, 0.0, 0.0, body), *ends]
    for _ in range(int(rng.poisson(np.clip(radius_mm / 10.0, 0.5, 5.0)))):
        away = rng.normal(size=3)
        away *= rng.uniform(0.5, 0.9) / np.linalg.norm(away)
        x, y, z = (float(v) for v in away)
        lobes.append((x, y, z, float(rng.uniform(0.2, 0.45))))
    return tuple((x, y, z, r) for x, y, z, r in lobes)


def _draw_tissue(rng: np.random.Generator, radius_mm: float) -> dict[str, Any]:
    """Enhancement and texture.

    Source: KiTS19 slices of 13 patients: kidney minus tumour 20-88 HU, tumour 20-106 HU, structure
    SD 9-31 HU; small masses are the more homogeneous ones.
    """
    kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
    large = float(np.clip((radius_mm - 8.0) / 30.0, 0.0, 1.0))
    calcified = bool(rng.random() < 0.05 + 0.12 * large)
    grain = float(np.exp(rng.uniform(np.log(2.0), np.log(14.0))))
    common: dict[str, Any] = {"grain_mm": grain, "calcified": calcified}
    if kind == "vascular":
        return common | {
            "tissue": "solid",
            "uptake": float(0.05 + 0.95 * rng.beta(1.7, 2.0)),
            "structure_hu": float(rng.uniform(8.0, 20.0) + 14.0 * large * rng.random()),
            "necrosis": float(rng.beta(1.2, 2.2) * (0.35 + 0.6 * large)),
            "haemorrhage": float(0.4 * rng.beta(1.0, 4.0)),
            "vascular": float(rng.beta(1.5, 1.5) * (0.3 + 0.7 * large)),
        }
    if kind == "plain":
        return common | {
            "tissue": "solid",
            "uptake": float(rng.uniform(0.0, 0.65)),
            "structure_hu": float(rng.uniform(3.0, 14.0)),
            "necrosis": float(0.3 * rng.beta(1.0, 3.0) * (0.3 + large)),
            "haemorrhage": 0.0,
            "vascular": float(0.25 * rng.random()),
        }
    return common | {
        "tissue": kind,
        "uptake": float(rng.uniform(0.2, 0.9)),
        "structure_hu": float(rng.uniform(3.0, 12.0)),
        "necrosis": float(rng.uniform(0.3, 0.8)),
        "haemorrhage": float(rng.uniform(0.0, 0.5)),
        "vascular": float(0.4 * rng.random()),
    }


def paint_masses(canvas: Canvas, tumours: tuple[Tumour, ...], hu: dict[str, float]) -> None:
    """Paint all masses of adults; `tumour.paint_tumours` paints the others."""
    for k, tumour in enumerate(tumours):
        if tumour.tissue == "wilms" or float(canvas.field[3 + k].min()) >= 1.0:
            continue
        patch = canvas.where(canvas.field[3 + k] < 2.0)
        if patch is None:
            continue
        bumps = min(0.3, 0.02 * tumour.radius_mm)
        f = patch.extra[k] + bumps * patch.noise("middle", halo=True)
        inside_mm = -f[:-1]
        tissue = _solid(patch, tumour, hu, inside_mm)
        if tumour.tissue == "cystic":
            tissue = _cystic(patch, tumour, hu, inside_mm, tissue)
        elif tumour.tissue == "fatty":
            lobules = patch.noise("large") + 0.6 * patch.noise("middle") + 2.0 * tumour.necrosis
            share = ((lobules - 0.6) * 2.0).clamp(0.0, 1.0)
            tissue = tissue.lerp(torch.full_like(tissue, hu["visceral fat"] + 15.0), share)
        patch.paint(patch.cover(f), tissue, TUMOUR)


def _solid(patch: Patch, tumour: Tumour, hu: dict[str, float], inside_mm: Tensor) -> Tensor:
    """Enhancing tissue with texture, necrosis, vessels, a faint rim and calcifications."""
    kidney = 0.6 * hu["renal cortex"] + 0.4 * hu["renal medulla"]
    base = 0.75 * hu["tumour"]
    living = base + tumour.uptake * (kidney - base)
    blotch, large = patch.noise("blotch"), patch.noise("large")
    middle, vessels = patch.noise("middle"), patch.noise("vessels")
    depth = (inside_mm / tumour.radius_mm).clamp(0.0, 1.0)
    value = living + tumour.structure_hu * _texture(patch, tumour.grain_mm)
    lines = (1.0 - (vessels + 0.4 * middle).abs() * 4.0).clamp(min=0.0)
    lines = lines * ((large + 0.3 * middle + 0.2) * 1.5).clamp(0.0, 1.0)
    value = value + tumour.vascular * lines * float(
        np.clip(0.5 * (hu["aorta"] - base), 10.0, 110.0)
    )
    ridge = (1.0 - (large + 0.5 * middle).abs() * 4.0).clamp(min=0.0)
    value = value + 0.5 * tumour.septa * tumour.structure_hu * ridge
    dead = (blotch + 0.7 * large + 0.3 * middle + 1.4 * depth - 2.6 + 3.6 * tumour.necrosis) * 1.4
    dead = dead.clamp(0.0, 1.0)
    value = value.lerp(hu["necrosis"] + 5.0 * large + 3.0 * middle, 0.9 * dead)
    bled = ((large - 0.6 * blotch - 2.3 + 2.2 * tumour.haemorrhage) * 2.0).clamp(0.0, 1.0)
    value = value.lerp(torch.full_like(value, hu["haemorrhage"]), bled)
    rim = ((tumour.rim_mm - inside_mm) / 0.8 + 0.5).clamp(0.0, 1.0)
    value = value.lerp(torch.full_like(value, 0.5 * (living + base)), 0.4 * rim)
    if tumour.calcified:
        specks = ((vessels + 0.6 * blotch + 0.4 * depth - 2.6) * 1.5).clamp(0.0, 1.0)
        value = value + specks * 500.0
    return value


def _cystic(
    patch: Patch, tumour: Tumour, hu: dict[str, float], inside_mm: Tensor, solid: Tensor
) -> Tensor:
    """Fluid behind a wall, with septa and nodules of the solid tissue."""
    middle, large = patch.noise("middle"), patch.noise("large")
    fluid = hu["cyst"] + 14.0 * tumour.haemorrhage + 2.0 * large
    wall_mm = tumour.rim_mm * (1.2 + 0.8 * middle.clamp(-1.0, 2.0))
    wall = ((wall_mm - inside_mm) / 0.8 + 0.5).clamp(0.0, 1.0)
    depth = (inside_mm / tumour.radius_mm).clamp(0.0, 1.0)
    sheets = (1.0 - (large + 0.25 * middle).abs() * 6.0).clamp(min=0.0) * tumour.septa
    nodules = ((large + 0.5 * middle - 1.6 * depth - 0.9 + tumour.uptake) * 2.0).clamp(0.0, 1.0)
    return fluid.lerp(solid, torch.maximum(torch.maximum(wall, 1.3 * sheets), nodules).clamp(max=1))


def _texture(patch: Patch, grain_mm: float) -> Tensor:
    """A texture with details of about this size: mean 0, standard deviation 1."""
    weights = {
        name: float(np.exp(-((np.log(mm / grain_mm) / 0.7) ** 2)))
        for name, mm in _GRAINS_MM.items()
    }
    norm = sum(w * w for w in weights.values()) ** 0.5
    total = torch.zeros_like(patch.hu)
    for name, weight in weights.items():
        total = total + patch.noise(name) * (weight / norm)
    return total
