"""Remove components from decided labels, and say what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from kidseg.config import PostprocessConfig
from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.labels import LabelSchema, Target
from kidseg.postprocess import (
    LoneTumours,
    Piece,
    Reason,
    lone_tumours,
    min_volume_ml,
    notable_tumour_ml,
    remove_lone_tumours,
    remove_small,
)
from kidseg.table import place_text

__all__ = ["Decided", "postprocessed"]

# Of each reason. Noise may have 100,000 connected components; listing all would take seconds.
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
        tumour: labels of tumours.
        notable_ml: of these, no more than this is removed as small without a warning.
    """

    labels: Volume
    removed: tuple[Piece, ...]
    small_ml: float
    lone: LoneTumours
    tumour: tuple[int, ...]
    notable_ml: float

    def removed_facts(self) -> dict[str, Any]:
        """As plain data: totals, also of each reason, and the largest of each individually."""
        of_reason = {reason: self._removed_as(reason) for reason in get_args(Reason)}
        listed = [piece for pieces in of_reason.values() for piece in pieces[:_MAX_PIECES]]
        return {
            "below_ml": round(self.small_ml, 4),
            "without_kidney_below_ml": round(self.lone.below_ml, 4),
            **_totals(self.removed),
            "by_reason": {reason: _totals(pieces) for reason, pieces in of_reason.items()},
            "pieces": [piece.as_dict() for piece in listed],
        }

    def findings(self, path: str) -> tuple[Finding, ...]:
        """ "lone-tumour": tumours without a kidney were removed; "small-tumour": small pieces were
        removed that contain `notable_ml` of tumour.
        """
        lone = self._removed_as("no-kidney")
        small = [p for p in self._removed_as("small") if p.ml_of(self.tumour) >= self.notable_ml]
        found = []
        if lone:
            cause = f"{_counted(lone, 'of tumour')}, have no kidney and were removed"
            step = f"Look there if a tumour is expected:{_places(lone)}"
            found.append(Finding(code="lone-tumour", path=path, cause=cause, next_step=step))
        if small:
            cause = f"{_counted(small, 'with tumour')}, were removed, as each is below"
            cause += f" {self.small_ml:.2g} ml"
            step = f"Look there if a small tumour is expected:{_places(small)}"
            found.append(Finding(code="small-tumour", path=path, cause=cause, next_step=step))
        return tuple(found)

    def _removed_as(self, reason: Reason) -> list[Piece]:
        return [piece for piece in self.removed if piece.reason == reason]


def _totals(pieces: Sequence[Piece]) -> dict[str, Any]:
    volume_ml = sum(piece.volume_ml for piece in pieces)
    return {"count": len(pieces), "volume_ml": round(volume_ml, 4)}


def _counted(pieces: Sequence[Piece], what: str) -> str:
    volume_ml = sum(piece.volume_ml for piece in pieces)
    return f"{len(pieces)} component(s) {what}, {volume_ml:.1f} ml in all"


def _places(pieces: Sequence[Piece]) -> str:
    """Where the largest lie: the end of a sentence."""
    named = [f"{place_text(p.centre_mm)} ({p.volume_ml:.1f} ml)" for p in pieces[:_NAMED]]
    return (" The largest of them: " if len(pieces) > _NAMED else " ") + "; ".join(named) + "."


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
    return Decided(
        labels=kept,
        removed=(*tumours, *small),
        small_ml=small_ml,
        lone=lone,
        tumour=schema.ids_of("tumour"),
        notable_ml=notable_tumour_ml(config, body_radius_mm),
    )
