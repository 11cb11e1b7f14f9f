"""Digital children of every form of the kidneys, in coarse voxels."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from kidseg.config import KidneyForm
from kidseg.geometry import Grid
from kidseg.phantom import draw_anatomy, draw_pose, render
from kidseg.phantom.anatomy import TumourForm

GRID = Grid.from_spacing((16, 40, 40), (12, 8, 8))
"""Up to a shift along the patient."""

_FORMS: dict[str, tuple[KidneyForm, TumourForm, int]] = {
    "two": ("separate", "none", 0),
    "one": ("single", "one-sided", 1),
    "horseshoe": ("horseshoe", "none", 2),
    "fused": ("fused", "one-sided", 1),
    "fused by a tumour": ("separate", "bilateral", 3),
    "bilateral": ("separate", "bilateral", 3),
    "absent": ("absent", "none", 4),
}
ANATOMIES = tuple(_FORMS)
NEWBORN = Grid.from_spacing((16, 50, 50), (5, 4, 4))
"""Up to a shift along the patient."""


@cache
def rendered(kind: str) -> tuple[Tensor, Tensor]:
    """(slices, rows, columns) HU as int16 and labels of a child of four years."""
    form, tumour, seed = _FORMS[kind]
    anatomy = draw_anatomy(np.random.default_rng(seed), 4.0, tumour=tumour, kidneys=form)
    pose = draw_pose(np.random.default_rng(seed), max_angle_deg=10)
    heights = [kidney.centre_mm[2] for kidney in anatomy.kidneys]
    grid = Grid.from_spacing(
        GRID.shape, (12, 8, 8), centre_mm=(0, 0, float(np.mean(heights)) if heights else 0.0)
    )
    made = render(anatomy, pose, grid, "portal-venous", np.random.default_rng(0))
    labels = torch.from_numpy(made.labels).clone()
    if kind == "fused by a tumour":
        kidneys = labels.nonzero()
        low, high = kidneys.amin(0), kidneys.amax(0)
        k, row = ((low + high) // 2)[:2].tolist()
        bridge = labels[k : k + 2, row : row + 2, int(low[2]) : int(high[2]) + 1]
        bridge[bridge == 0] = 2
    return torch.from_numpy(made.hu).round().to(torch.int16), labels


@cache
def newborn() -> tuple[Tensor, Tensor]:
    """(slices, rows, columns) HU as int16 and labels of a newborn with two healthy kidneys."""
    anatomy = draw_anatomy(np.random.default_rng(1), 0.0, tumour="none", kidneys="separate")
    pose = draw_pose(np.random.default_rng(1), max_angle_deg=10)
    height = float(np.mean([kidney.centre_mm[2] for kidney in anatomy.kidneys]))
    grid = Grid.from_spacing(NEWBORN.shape, (5, 4, 4), centre_mm=(0, 0, height))
    made = render(anatomy, pose, grid, "portal-venous", np.random.default_rng(0))
    return torch.from_numpy(made.hu).round().to(torch.int16), torch.from_numpy(made.labels)
