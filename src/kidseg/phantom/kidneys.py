"""Paint kidneys: cortex, medullary pyramids, sinus with fat, pelvis and calyces, cysts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kidseg.phantom.anatomy import Anatomy, Cyst, Kidney
from kidseg.phantom.canvas import Box, Canvas, Patch
from kidseg.phantom.shapes import smooth_min, tube

__all__ = ["Frame", "kidney_radius", "paint_cysts", "paint_kidneys", "paint_perirenal_fat"]

FAT, CORTEX, MEDULLA, PELVIS, SINUS, CYST = 2, 22, 23, 24, 25, 27

# Directions of the pyramids from the sinus: (latitude towards the poles, azimuth from the outer
# border to the front), degrees. Source: 7 to 14 pyramids in a front and a back row.
_PYRAMIDS = (
    *((latitude, azimuth) for latitude in (-50, -24, 2, 28, 52) for azimuth in (-68, 60)),
    *((latitude, azimuth) for latitude in (-38, -11, 15, 40) for azimuth in (-4,)),
    (-80, 0),
    (82, 0),
)


@dataclass(frozen=True)
class Frame:
    """A kidney's axes as unit vectors: u away from the hilum, v forward, w up; half-axes, mm."""

    centre: np.ndarray
    axes: np.ndarray
    half: np.ndarray

    @classmethod
    def of(cls, kidney: Kidney) -> Frame:
        """Axes from the kidney's angles."""
        sign = kidney.sign
        coronal, sagittal, hilum = np.deg2rad(
            [kidney.coronal_deg, kidney.sagittal_deg, kidney.hilum_deg]
        )
        w = np.array([-sign * np.sin(coronal), -np.sin(sagittal), np.cos(coronal)])
        w /= np.linalg.norm(w)
        u = np.array([sign * np.cos(hilum), -np.sin(hilum), 0.0])
        u -= w * (u @ w)
        u /= np.linalg.norm(u)
        v = np.cross(w, u) * sign
        half = np.array([kidney.width_mm, kidney.thickness_mm, kidney.length_mm]) / 2
        return cls(np.asarray(kidney.centre_mm), np.stack([u, v, w]), half)

    def box(self, margin_mm: float) -> Box:
        """Bounding box of the kidney with a margin."""
        reach = np.abs(self.axes.T) @ (self.half * 1.1) + margin_mm
        return self.centre - reach, self.centre + reach

    def local(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position along the kidney's axes, mm."""
        dx, dy, dz = (p - float(c) for p, c in zip((x, y, z), self.centre, strict=True))
        u, v, w = (
            dx * float(axis[0]) + dy * float(axis[1]) + dz * float(axis[2]) for axis in self.axes
        )
        return u, v, w

    def anatomy_mm(self, u: float, v: float, w: float) -> np.ndarray:
        """(3,) x, y, z of a position in units of the half-axes."""
        place: np.ndarray = self.centre + (np.array([u, v, w]) * self.half) @ self.axes
        return place


def kidney_radius(kidney: Kidney, frame: Frame, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Radius relative to the capsule, ignoring the sinus: 1 on the capsule, less inside."""
    hu, hv, hw = (float(h) for h in frame.half)
    along = w / hw
    across = u / hu + kidney.bend * (along * along - 0.35)
    radius = torch.sqrt(across * across + (v / hv) ** 2 + along * along + 1e-9)
    if kidney.lobulation > 0.01:
        lobes = torch.cos(7.5 * along) * torch.cos(3.0 * torch.atan2(v, u + 0.3 * hu))
        radius = radius * (1.0 + kidney.lobulation * lobes)
    return radius


def paint_kidneys(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint all kidneys, and the isthmus of a horseshoe kidney."""
    for kidney in anatomy.kidneys:
        frame = Frame.of(kidney)
        fat_mm = 0.3
        if anatomy.look.perirenal_mm is None:
            fat_mm += 5.0 * anatomy.body.visceral_fat * anatomy.body_scale
        if anatomy.neighbours is not None:
            fat_mm += anatomy.neighbours.film_mm
        patch = canvas.patch(frame.box(fat_mm + 1.0))
        if patch is not None:
            _paint_kidney(patch, kidney, frame, fat_mm, hu)
    if anatomy.form == "horseshoe":
        _paint_isthmus(canvas, anatomy, hu)


def _paint_kidney(
    patch: Patch, kidney: Kidney, frame: Frame, fat_mm: float, hu: dict[str, float]
) -> None:
    hu_, hv, hw = (float(h) for h in frame.half)
    u, v, w = frame.local(patch.x, patch.y, patch.z)
    radius = kidney_radius(kidney, frame, u, v, w)
    # Approximately mm, also at the poles, where the radius changes more slowly.
    capsule = (radius - 1.0) * (hv + (hw - hv) * ((w / hw) ** 2).clamp(max=1.5))
    fine, middle = patch.noise("fine"), patch.noise("middle")
    strands = (1.0 - middle.abs() * 6.0).clamp_(min=0.0)
    padding = patch.cover(torch.maximum(capsule - fat_mm, patch.abdomen - 1.0))
    patch.paint(padding, hu["visceral fat"] + 4.0 * fine + 14.0 * strands, FAT)
    patch.paint(patch.cover(capsule), hu["renal cortex"] + 5.0 * fine + 4.0 * middle, CORTEX)
    inner = capsule + kidney.cortex_mm
    pyramids = _pyramids(kidney, frame, u, v, w) + 0.45 * patch.noise("middle", halo=True)
    medulla = patch.cover(torch.maximum(pyramids, inner))
    depth = ((-capsule[:-1] - kidney.cortex_mm) / (0.5 * hu_)).clamp(0.0, 1.0)
    value = hu["renal medulla"] - 0.10 * hu["renal medulla"] * depth + 4.0 * fine
    patch.paint(medulla, value, MEDULLA)
    _paint_sinus(patch, kidney, frame, (u, v, w), capsule, hu)


def paint_perirenal_fat(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint the fat around the kidneys of the broad cohort, before the muscles behind them."""
    fat_mm = anatomy.look.perirenal_mm
    if fat_mm is None:
        return
    for kidney in anatomy.kidneys:
        frame = Frame.of(kidney)
        patch = canvas.patch(frame.box(1.5 * fat_mm + 1.0))
        if patch is not None:
            _paint_perirenal_fat(patch, frame, fat_mm, hu)


def _paint_perirenal_fat(patch: Patch, frame: Frame, fat_mm: float, hu: dict[str, float]) -> None:
    """Paint the fat within the renal fascia: most behind, outside and below; strands; the fascia.

    Source: usual CT anatomy of the perirenal space.
    """
    hu_, hv, hw = (float(h) for h in frame.half)
    u, v, w = frame.local(patch.x, patch.y, patch.z)
    half = (hu_ + 0.9 * fat_mm, hv + 0.85 * fat_mm, hw + fat_mm)
    shifted = (u - 0.10 * fat_mm, v + 0.35 * fat_mm, w + 0.40 * fat_mm)
    radius = torch.sqrt(sum(((p / h) ** 2 for p, h in zip(shifted, half, strict=True)), u * 0.0))
    f = (radius - 1.0) * half[1] + 0.6 * patch.noise("large", halo=True)
    f = torch.maximum(f, patch.abdomen - 1.0)
    fine, middle = patch.noise("fine"), patch.noise("middle")
    strands = (1.0 - middle.abs() * 8.0).clamp_(min=0.0) * (patch.noise("large") > 0.4)
    patch.paint(0.5 * patch.cover(f, 1.2), 20.0)
    patch.paint(patch.cover(f + 1.2), hu["visceral fat"] + 4.0 * fine + 45.0 * strands, FAT)


def _pyramids(kidney: Kidney, frame: Frame, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Implicit function of all pyramids: rounded cones from the sinus to the cortex."""
    hu, hv, hw = (float(h) for h in frame.half)
    n_u, n_v, n_w = u / hu, v / hv, w / hw
    nearest = torch.full_like(u, 9.0)
    reach = 1.0 - kidney.cortex_mm / hv
    for latitude, azimuth in _PYRAMIDS:
        lat, az = np.deg2rad(latitude), np.deg2rad(azimuth)
        base = reach * np.array([np.cos(lat) * np.cos(az), np.cos(lat) * np.sin(az), np.sin(lat)])
        base[0] -= kidney.bend * (base[2] ** 2 - 0.35)
        apex = np.array([-0.30 + 0.3 * base[0], 0.25 * base[1], 0.62 * base[2]])
        axis = base - apex
        length2 = float(axis @ axis)
        p = (n_u - float(apex[0]), n_v - float(apex[1]), n_w - float(apex[2]))
        t = (p[0] * float(axis[0]) + p[1] * float(axis[1]) + p[2] * float(axis[2])) / length2
        t = t.clamp(0.0, 1.0)
        off = [component - t * float(a) for component, a in zip(p, axis, strict=True)]
        # Convert from the normalised frame to millimetres.
        away = torch.sqrt((off[0] * hu) ** 2 + (off[1] * hv) ** 2 + (off[2] * hw) ** 2 + 1e-6)
        nearest = torch.minimum(nearest, away - hv * (0.14 + 0.27 * t))
    return nearest


def _paint_sinus(
    patch: Patch,
    kidney: Kidney,
    frame: Frame,
    place: tuple[Tensor, Tensor, Tensor],
    capsule: Tensor,
    hu: dict[str, float],
) -> None:
    """Paint the sinus fat, the pelvis, which opens through the hilum, and the calyces."""
    hu_, hv, hw = (float(h) for h in frame.half)
    u, v, w = place
    size = kidney.sinus
    centre = -0.38 * hu_
    deep = (u - centre).clamp(min=0.0) / (1.35 * size * hu_)
    lips = 1.0 + 0.25 * ((u - centre) / hu_).clamp(max=0.0)
    sinus = torch.sqrt(
        deep**2 + (v / (0.85 * size * hv * lips)) ** 2 + (w / (1.25 * size * hw * lips)) ** 2 + 1e-6
    )
    f = (sinus - 1.0) * size * hv + 0.30 * patch.noise("middle", halo=True)
    f = torch.maximum(f, -u - 1.15 * hu_)
    fat = hu["visceral fat"] + 22.0 + 6.0 * patch.noise("fine")
    cover = patch.cover(f)
    within = patch.cover(capsule)
    patch.paint(cover * within, fat, SINUS)
    depth = kidney.pelvis_mm
    funnel = (u + 0.80 * hu_ + 0.1 * v).abs() / (0.72 * hu_)
    pelvis = torch.sqrt((v / (1.25 * depth)) ** 2 + (w / (0.24 * hw)) ** 2 + funnel**2 + 1e-6)
    f = (pelvis - 1.0) * depth
    for latitude, azimuth in _PYRAMIDS[::2]:
        lat, az = np.deg2rad(latitude), np.deg2rad(azimuth)
        end = np.array([-0.18 * hu_, 0.26 * hv * np.sin(az), 0.66 * hw * np.sin(lat)])
        start = np.array([-0.35 * hu_, 0.0, 0.2 * hw * np.sin(lat)])
        f = smooth_min(
            f, tube((u, v, w), np.stack([start, end]), np.full(2, kidney.calyces * depth)), 1.0
        )
    patch.paint(patch.cover(f), hu["urine"], PELVIS)


def _paint_isthmus(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint the bridge between the lower poles, in front of the great vessels."""
    body = anatomy.body
    poles = [Frame.of(k).anatomy_mm(-0.2, 0.2, -0.80) for k in anatomy.kidneys]
    radius = 0.20 * float(np.mean([k.thickness_mm for k in anatomy.kidneys]))
    front = body.spine_y_mm + 0.42 * body.vertebra_mm + anatomy.viscera.aorta_mm + radius
    middle = np.array([0.0, front, float(np.mean([p[2] for p in poles]))])
    points = np.stack([*poles, middle])
    patch = canvas.patch((points.min(0) - 2 * radius, points.max(0) + 2 * radius))
    if patch is None:
        return
    f = tube(patch.place, np.stack([poles[0], middle, poles[1]]), np.full(3, radius))
    fine = patch.noise("fine")
    patch.paint(patch.cover(f), hu["renal cortex"] + 5.0 * fine, CORTEX)
    patch.paint(patch.cover(f + 0.6 * radius), 0.6 * hu["renal cortex"] + 0.4 * hu["renal medulla"])


def paint_cysts(canvas: Canvas, cysts: tuple[Cyst, ...], hu: dict[str, float]) -> None:
    """Paint cysts: spheres of water."""
    for cyst in cysts:
        centre = np.asarray(cyst.centre_mm)
        patch = canvas.patch((centre - cyst.radius_mm - 1.0, centre + cyst.radius_mm + 1.0))
        if patch is None:
            continue
        x, y, z = (float(c) for c in centre)
        away = torch.sqrt((patch.x - x) ** 2 + (patch.y - y) ** 2 + (patch.z - z) ** 2 + 1e-6)
        patch.paint(patch.cover(away - cyst.radius_mm), hu["cyst"], CYST)
