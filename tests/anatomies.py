"""Digital children of every form of the kidneys, in coarse voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kidseg.config import KidneyForm, PhantomConfig, Phase
from kidseg.geometry import Grid
from kidseg.phantom import draw_anatomy, draw_pose, render
from kidseg.phantom.anatomy import Anatomy, TumourForm
from kidseg.phantom.patient import draw_patient
from kidseg.phantom.posture import Pose
from kidseg.phantom.render import Rendering

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


def shown(anatomy: Anatomy, step_mm: float, phase: Phase = "portal-venous") -> Rendering:
    """The abdomen of an upright person of the broad cohort, in cubes of this size."""
    side = int(1.2 * anatomy.lateral_mm / step_mm)
    low, high = anatomy.crest_mm, anatomy.dome_mm
    shape = (int((high - low) / step_mm), side, side)
    grid = Grid.from_spacing(shape, (step_mm,) * 3, (0.0, 0.0, (low + high) / 2))
    return render(anatomy, Pose(), grid, phase, np.random.default_rng(1), broad=True)


def without_and_with(share: str) -> Iterator[tuple[Anatomy, Anatomy]]:
    """Four people, by a share of 0 and of 1, who lie alike and are scanned in the same phase."""
    config = PhantomConfig(ages_years=(0.0, 90.0))
    for index in range(4):
        before, after = (
            draw_patient(replace(config, **{share: value}), seed=3, index=index)
            for value in (0.0, 1.0)
        )
        assert before.pose == after.pose and before.phase == after.phase
        yield before.anatomy, after.anatomy
