"""What lies beside kidneys in some people and looks like them, and how it is painted.

It is painted over the fat around the kidneys, and muscles, kidneys and vessels over it, which
therefore indent it: it fills only the space that they leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kidseg.phantom.canvas import Canvas, Patch
from kidseg.phantom.shapes import ellipsoid, point, smooth_max, tube

__all__ = [
    "Contents",
    "Extension",
    "Neighbours",
    "Nodule",
    "paint_extensions",
    "paint_nodules",
    "tapered",
]

Point = tuple[float, float, float]
Organ = Literal["liver", "spleen", "pancreas"]
Contents = Literal["collapsed", "fluid", "gas", "oral contrast"]

_ORGANS = {"liver": 10, "spleen": 12, "pancreas": 13, "lymph node": 20, "adrenal": 21}
# Stomach and colon, against which extensions flatten.
_FIRM_ORGANS = (14, 16)
# Of the cortex without contrast, to which uptake is relative. Source: `tissues.TISSUES_HU`.
_PLAIN_CORTEX_HU = 34.0


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A part of an organ that reaches to a kidney: a tapered, flat tube of the same tissue.

    Attributes:
        organ: whose part it is.
        points_mm, radii_mm: (x, y, z) along its axis, and its radius from left to right.
        depth: its size from front to back relative to that from left to right.
    """

    organ: Organ
    points_mm: tuple[Point, ...]
    radii_mm: tuple[float, ...]
    depth: float = 1.0

    @classmethod
    def along(
        cls, organ: Organ, points_mm: np.ndarray, radii_mm: np.ndarray, depth: float = 1.0
    ) -> Extension:
        """From (n, 3) points and n radii."""
        return cls(
            organ=organ,
            points_mm=tuple(point(p) for p in points_mm),
            radii_mm=tuple(float(r) for r in radii_mm),
            depth=depth,
        )


def tapered(widest_mm: float, last: float) -> tuple[np.ndarray, np.ndarray]:
    """Six places along an extension, 0 to 1, and its radii there.

    Args:
        widest_mm: radius at its beginning.
        last: radius at its rounded end, relative to that.
    """
    t = np.linspace(0.0, 1.0, 6)
    return t, widest_mm * (last + (1.0 - last) * np.sqrt(1.0 - t**2))


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """An oval of one tissue: an accessory spleen, a mass of an adrenal gland, a lymph node.

    Attributes:
        organ: what it is, or whose.
        centre_mm, half_mm: (x, y, z) and half-axes.
        plain_hu: HU without contrast; of an accessory spleen that of the spleen is used.
        uptake: enhancement relative to that of the renal cortex.
        structure_hu: standard deviation of its texture.
        necrosis: fraction of it that does not enhance, 0-1.
    """

    organ: Literal["spleen", "adrenal", "lymph node"]
    centre_mm: Point
    half_mm: Point
    plain_hu: float = 0.0
    uptake: float = 0.0
    structure_hu: float = 0.0
    necrosis: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What lies beside the kidneys of one person.

    Attributes:
        extensions, nodules: see there.
        bed: size of the hollow in the liver for the right kidney, relative to a child's.
        film_mm: thickness of the fat between the kidneys and what touches them.
        adrenals: thickness of the limbs of the right and the left gland, relative to a healthy one.
        duodenum: contents of its descending and of its crossing part; None without either.
        jejunum: loops of small bowel directly in front of the left kidney.
        gonadal_mm: width of the veins from the gonads, 0 without.
    """

    extensions: tuple[Extension, ...] = ()
    nodules: tuple[Nodule, ...] = ()
    bed: float = 1.0
    film_mm: float = 0.0
    adrenals: tuple[float, float] = (1.0, 1.0)
    duodenum: tuple[Contents, Contents] | None = None
    jejunum: int = 0
    gonadal_mm: float = 0.0


def paint_extensions(
    canvas: Canvas, extensions: tuple[Extension, ...], hu: Mapping[str, float]
) -> None:
    """Paint parts of liver, spleen and pancreas that reach to the kidneys."""
    for extension in extensions:
        points, radii = np.asarray(extension.points_mm), np.asarray(extension.radii_mm)
        reach = float(radii.max()) * max(1.0, extension.depth) + 2.0
        patch = canvas.patch((points.min(0) - reach, points.max(0) + reach))
        if patch is None:
            continue
        flat = (1.0, 1.0 / extension.depth, 1.0)
        place = (patch.x, patch.y * flat[1], patch.z)
        f = tube(place, points * flat, radii)
        lobules = patch.noise("middle" if extension.organ == "pancreas" else "blotch", halo=True)
        f = f + 0.10 * float(radii.mean()) * lobules.clamp(-2.0, 2.0)
        f = smooth_max(f, patch.abdomen + 0.4, 0.25 * float(radii.mean()))
        value = hu[extension.organ] + 3.5 * patch.noise("fine") + 2.0 * patch.noise("middle")
        firm = torch.tensor(_FIRM_ORGANS, dtype=patch.organs.dtype)
        cover = patch.cover(f) * ~torch.isin(patch.organs, firm)
        patch.paint(cover, value, _ORGANS[extension.organ])


def paint_nodules(canvas: Canvas, nodules: tuple[Nodule, ...], hu: Mapping[str, float]) -> None:
    """Paint accessory spleens, masses of the adrenal glands, and lymph nodes."""
    for nodule in nodules:
        centre, half = np.asarray(nodule.centre_mm), np.asarray(nodule.half_mm)
        patch = canvas.patch((centre - 1.2 * half - 1.0, centre + 1.2 * half + 1.0))
        if patch is None:
            continue
        f = ellipsoid(patch.place, centre, half)
        f = f + 0.07 * float(half.min()) * patch.noise("large", halo=True).clamp(-2.0, 2.0)
        f = torch.maximum(f, patch.abdomen + 0.5)
        patch.paint(patch.cover(f), _tissue(patch, nodule, hu, -f[:-1]), _ORGANS[nodule.organ])


def _tissue(
    patch: Patch, nodule: Nodule, hu: Mapping[str, float], inside_mm: torch.Tensor
) -> torch.Tensor:
    """Enhancing tissue with texture, and a core that does not enhance."""
    fine, middle = patch.noise("fine"), patch.noise("middle")
    if nodule.organ == "spleen":
        return hu["spleen"] + 3.5 * fine + 2.0 * middle
    living = nodule.plain_hu + nodule.uptake * (hu["renal cortex"] - _PLAIN_CORTEX_HU)
    large = patch.noise("large")
    value = living + nodule.structure_hu * (0.5 * middle + 0.85 * large) + 3.0 * fine
    depth = (inside_mm / min(nodule.half_mm)).clamp(0.0, 1.0)
    dead = ((0.8 * large + 1.2 * depth - 1.9 + 2.6 * nodule.necrosis) * 1.5).clamp(0.0, 1.0)
    dead = dead * (nodule.necrosis > 0)
    return value.lerp(hu["necrosis"] + 4.0 * middle, dead)
