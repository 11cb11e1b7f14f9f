"""What the steps of System B say: kidneys found, components dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kidseg.errors import Finding
from kidseg.methods.multistage.kidney_regions import Kidney
from kidseg.pipeline import Note
from kidseg.postprocess import Piece

__all__ = ["stage_1_note", "stage_2_note"]


def stage_1_note(
    path: str, kidneys: Sequence[Kidney], limit_ml: float, dropped: Sequence[Piece]
) -> Note:
    """What stage 1 found and dropped.

    Args:
        path: of the scan.
        kidneys: that were found.
        limit_ml: smaller components were dropped.
        dropped: these components, largest first.
    """
    listed = ", ".join(f"{each.name} {each.volume_ml:.1f} ml" for each in kidneys)
    text = listed or "no kidney; the networks of stage 2 did not run"
    text = "; ".join([text, *_dropped_text(dropped, limit_ml)])
    findings: tuple[Finding, ...] = ()
    if not kidneys:
        cause = "stage 1 found no kidney, so that the networks of stage 2 did not run"
        if dropped:
            cause += f"; its largest component has {dropped[0].volume_ml:.1f} ml of {limit_ml:.1f}"
        step = "Check the scan; for small kidneys train with a smaller kidneys.min_volume_ml."
        findings = (Finding(code="no-kidney-region", path=path, cause=cause, next_step=step),)
    facts = {
        "regions": [
            {
                "name": each.name,
                "volume_ml": round(each.volume_ml, 4),
                "components": each.components,
                "shape": list(each.grid.shape),
                "grown": each.is_grown,
            }
            for each in kidneys
        ],
        "dropped": _dropped_facts(dropped, limit_ml),
    }
    return Note(text=text, facts=facts, findings=findings)


def stage_2_note(regions: Sequence[str], dropped: Sequence[Piece], limit_ml: float) -> Note:
    """What a network of stage 2 did.

    Args:
        regions: names of those it has segmented.
        dropped: the components that were dropped.
        limit_ml: smaller components were dropped.
    """
    text = "; ".join([", ".join(regions) or "not run", *_dropped_text(dropped, limit_ml)])
    return Note(text=text, facts={"dropped": _dropped_facts(dropped, limit_ml)})


def _dropped_text(dropped: Sequence[Piece], limit_ml: float) -> list[str]:
    """A phrase; none if nothing was dropped."""
    volume = sum(piece.volume_ml for piece in dropped)
    text = f"{len(dropped)} component(s) below {limit_ml:.1f} ml dropped, {volume:.1f} ml in all"
    return [text] if dropped else []


def _dropped_facts(dropped: Sequence[Piece], limit_ml: float) -> dict[str, Any]:
    return {
        "below_ml": round(limit_ml, 4),
        "count": len(dropped),
        "volume_ml": round(sum(piece.volume_ml for piece in dropped), 4),
    }
