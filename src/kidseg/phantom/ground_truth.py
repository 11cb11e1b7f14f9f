"""What is known of a digital patient, as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np

from kidseg.geometry import Grid
from kidseg.phantom.anatomy import ORGANS, Anatomy
from kidseg.phantom.posture import Pose

__all__ = ["body_truth", "counted_truth", "response_truth"]


def body_truth(anatomy: Anatomy, pose: Pose) -> dict[str, Any]:
    """The person's body, pose, kidneys and tumours, as drawn."""
    sides = {tumour.side for tumour in anatomy.tumours}
    return {
        "body_scale": anatomy.body_scale,
        "effective_diameter_mm": anatomy.effective_diameter_mm,
        "pose": pose.as_dict(),
        "scanner_from_anatomy": pose.scanner_from_anatomy().tolist(),
        "kidney_form": anatomy.form,
        "kidneys": [{"side": k.side, "length_mm": k.length_mm} for k in anatomy.kidneys],
        "tumours": [{"side": t.side, "volume_ml": t.volume_ml} for t in anatomy.tumours],
        "tumour_side": "bilateral" if len(sides) > 1 else next(iter(sides), None),
    }


def response_truth(before: Anatomy, now: Anatomy) -> dict[str, Any]:
    """The volumes of the tumours before chemotherapy and now, as drawn."""
    response = [
        {
            "side": old.side,
            "before_ml": old.volume_ml,
            "now_ml": new.volume_ml,
            "change_percent": 100 * (new.volume_ml / old.volume_ml - 1),
        }
        for old, new in zip(before.tumours, now.tumours, strict=True)
    ]
    return {"timepoint": "before" if now is before else "after", "response": response}


def counted_truth(labels: np.ndarray, organs: np.ndarray, grid: Grid) -> dict[str, Any]:
    """Volumes inside the field of view, counted in voxels."""
    ml = float(grid.voxel_ml)
    counts = np.bincount(labels.ravel(), minlength=3)
    per_organ = np.bincount(organs.ravel(), minlength=256)
    return {
        "kidney_ml": float(counts[1]) * ml,
        "tumour_ml": float(counts[2]) * ml,
        "organs_ml": {name: float(per_organ[number]) * ml for number, name in ORGANS.items()},
    }
