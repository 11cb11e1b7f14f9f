"""Remove components from decided labels, and say what was removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kidseg.config import PostprocessConfig
from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.labels import LabelSchema, Target
from kidseg.postprocess import (
    LoneTumours,
    Piece,
    lone_tumours,
    min_volume_ml,
    remove_lone_tumours,
    remove_small,
)

__all__ = ["Decided", "postprocessed"]

# Noise may have 100,000 connected components; listing them all would take seconds.
_MAX_PIECES = 100
_NAMED = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """The labels of a scan.

    Attributes:
        labels: (1, slices, rows, columns) uint8.
        removed: components, by reason, the largest first.
        small_ml: smaller components were removed.
        lone: which tumours without a kidney were removed.
    """

    labels: Volume
    removed: tuple[Piece, ...]
    small_ml: float
    lone: LoneTumours

    def removed_facts(self) -> dict[str, Any]:
        """As plain data: totals, and the largest ones individually."""
        return {
            "below_ml": round(self.small_ml, 4),
            "without_kidney_below_ml": round(self.lone.below_ml, 4),
            "count": len(self.removed),
            "volume_ml": round(sum(piece.volume_ml for piece in self.removed), 4),
            "pieces": [piece.as_dict() for piece in self.removed[:_MAX_PIECES]],
        }

    def findings(self, path: str) -> tuple[Finding, ...]:
        """ "lone-tumour": tumours without a kidney were removed."""
        lone = [piece for piece in self.removed if piece.reason == "no-kidney"]
        if not lone:
            return ()
        places = "; ".join(f"{_place(p.centre_mm)} ({p.volume_ml:.1f} ml)" for p in lone[:_NAMED])
        largest = f" The largest of them: {places}." if len(lone) > _NAMED else f" {places}."
        return (
            Finding(
                code="lone-tumour",
                path=path,
                cause=f"{len(lone)} component(s) of tumour, {sum(p.volume_ml for p in lone):.1f} ml"
                " in all, have no kidney and were removed",
                next_step=f"Look there if a tumour is expected:{largest}",
            ),
        )


def _place(centre_mm: tuple[float, float, float]) -> str:
    """A position as viewers show it, such as "R 44.5, P 17.7, S 46.2 mm"."""
    signs = zip(("LR", "PA", "IS"), centre_mm, strict=True)
    return ", ".join(f"{names[mm > 0]} {abs(mm):.1f}" for names, mm in signs) + " mm"


def postprocessed(
    labels: Volume,
    config: PostprocessConfig,
    schema: LabelSchema,
    target: Target,
    body_radius_mm: float | None,
    voxel_ml: float,
    known: np.ndarray | None = None,
) -> Decided:
    """The labels without components that are neither kidney nor tumour.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric.
        config: what is removed.
        schema: meaning of the labels.
        target: the labels that the network distinguishes.
        body_radius_mm: of the patient; see `min_volume_ml`.
        voxel_ml: volume of the voxels on which the network predicted.
        known: (slices, rows, columns) bool: components with one of these voxels stay.
    """
    small_ml = min_volume_ml(config, body_radius_mm, voxel_ml)
    lone = lone_tumours(config, body_radius_mm, labels.grid, schema, target)
    kept, tumours = remove_lone_tumours(labels, lone, known=known)
    kept, small = remove_small(kept, small_ml, keep_ends=config.min_voxels is None, known=known)
    return Decided(labels=kept, removed=(*tumours, *small), small_ml=small_ml, lone=lone)
