"""What is said about a segmentation, as plain data for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kidseg.cohort.subject import Subject
from kidseg.cohort.training_range import Placement
from kidseg.geometry import Volume, has_parallel_slices, in_plane_pose
from kidseg.labels import LabelSchema, Target
from kidseg.measure import Midline, Side, Sides
from kidseg.pipeline import Progress, Region

__all__ = [
    "grids_facts",
    "notes_facts",
    "overlap_facts",
    "rounded",
    "sides_facts",
    "volumes_of",
]


def grids_facts(
    progress: Progress, subject: Subject, unit_mm: float
) -> dict[str, list[dict[str, Any]]]:
    """The grids of all regions, by step.

    Args:
        progress: the steps.
        subject: the patient.
        unit_mm: pixel size that corresponds to scale 1.
    """
    return {
        name: [_grid_facts(region, subject, unit_mm) for region in regions]
        for name, regions in progress.steps.items()
    }


def _grid_facts(region: Region, subject: Subject, unit_mm: float) -> dict[str, Any]:
    """Shape and pixel size of a region's grid, and its in-plane pose relative to the scan.

    Without a pose if its slices are not those of the scan ("across": sagittal, for example).
    """
    grid = region.grid
    spacing = grid.spacing_mm.reshape(-1, 3)
    facts: dict[str, Any] = {
        "name": region.name,
        "shape": list(grid.shape),
        "pixel_mm": [round(float(v), 4) for v in spacing[:, 1:].median(0).values],
    }
    if not has_parallel_slices(grid, subject.image.grid):
        return {**facts, "slices": "across"}
    pose = in_plane_pose(grid, subject.image.grid)
    figures = {
        "angle_deg": torch.rad2deg(pose.angle_rad).reshape(-1, 1),
        "scale": spacing[:, 1:].flip(-1) / unit_mm,
        "shift_mm": pose.shift_mm.reshape(-1, 2),
    }
    for name, values in figures.items():
        table = values.double()
        facts[name] = {
            "median": [round(float(v), 4) for v in table.median(0).values],
            "least": [round(float(v), 4) for v in table.amin(0)],
            "most": [round(float(v), 4) for v in table.amax(0)],
        }
        if bool((table != table[:1]).any()):
            facts[name]["per_slice"] = [[round(float(v), 4) for v in row] for row in table]
    return facts


def notes_facts(progress: Progress) -> dict[str, dict[str, Any]]:
    """What the steps decided in this case, by step."""
    return {name: {"text": note.text, **note.facts} for name, note in progress.notes.items()}


def overlap_facts(placement: Placement, found: Subject) -> dict[str, Any] | None:
    """Overlap and agreement with the reference, which pose was kept, and the slices compared.

    None without a reference.

    Args:
        placement: of the patient.
        found: the patient with the predicted labels, which determine the slices.
    """
    if placement.compared is None:
        return None
    by = "slices where something was found" if found.renal_voxels.any() else "all slices"
    return {
        **{when: rounded(masks) for when, masks in placement.overlap.items()},
        "agreement": rounded(placement.agreement),
        "kept": "correction" if placement.corrected else "start",
        "compared": {"first": placement.compared[0], "last": placement.compared[1], "by": by},
    }


def rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers with four decimals, also in nested tables."""
    return {
        name: rounded(value)
        if isinstance(value, Mapping)
        else round(value, 4)
        if isinstance(value, float)
        else value
        for name, value in figures.items()
    }


def volumes_of(labels: Volume, schema: LabelSchema, target: Target) -> dict[str, float]:
    """Volume of each region in ml."""
    expressed = {name: ids for name, ids in schema.regions.items() if target.expresses(ids)}
    numbers = {number for members in expressed.values() for number in members}
    voxels = labels.data.numpy()
    counts = {each: int(np.count_nonzero(voxels == each)) for each in numbers}
    voxel_ml = float(labels.grid.voxel_ml)
    return {
        name: round(sum(counts[each] for each in members) * voxel_ml, 4)
        for name, members in expressed.items()
    }


def sides_facts(
    sides: Sides | None, midline: Midline, schema: LabelSchema, target: Target
) -> dict[str, Any] | None:
    """Volumes of kidney, tumour and cyst in ml by side; None without a kidney in the schema."""
    if sides is None:
        return None

    def facts(side: Side) -> dict[str, Any]:
        volumes = {
            meaning: volume
            for meaning, volume in side.volumes_ml.items()
            if target.expresses([i for i in schema.ids if schema.meaning[i] == meaning])
        }
        return {"volumes_ml": volumes, "partial": bool(side.borders), "borders": list(side.borders)}

    return {
        "right": facts(sides.right),
        "left": facts(sides.left),
        "midline": midline.basis,
    }
