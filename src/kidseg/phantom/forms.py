"""Kidneys of unusual form: both fused on one side, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kidseg.phantom.anatomy import Kidney, KidneyForm, TumourForm
from kidseg.phantom.kidneys import Frame

__all__ = ["formed", "with_tumour"]

# The crossed kidney lies below the other one and joins its lower pole. Source: crossed fused
# ectopia, mostly of the left kidney, McDonald and McClellan, Am J Surg 93 (1957) 995-1002. The
# numbers are ours: both are shorter than usual, so that they end above the pelvis.
_FUSED_LENGTH = 0.85
_FUSED_APART = 0.40  # distance of the centres, in lengths of both together
_FUSED_RAISED = 0.15  # of the upper one, in lengths


def formed(kidneys: tuple[Kidney, ...], form: KidneyForm) -> tuple[Kidney, ...]:
    """The kidneys in this form.

    Args:
        kidneys: right and left, as drawn; fewer for form "single".
        form: "fused": the left kidney has crossed to the right; "absent": there are none; as they
            are for other forms.
    """
    if form == "absent":
        return ()
    if form != "fused":
        return kidneys
    right, left = kidneys
    x, y, z = right.centre_mm
    upper = replace(
        right,
        length_mm=_FUSED_LENGTH * right.length_mm,
        centre_mm=(x, y, z + _FUSED_RAISED * right.length_mm),
    )
    lower_mm = _FUSED_LENGTH * left.length_mm
    centre = np.asarray(upper.centre_mm)
    centre -= Frame.of(upper).axes[2] * _FUSED_APART * (upper.length_mm + lower_mm)
    lower = replace(
        left,
        side=upper.side,
        length_mm=lower_mm,
        centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
        coronal_deg=upper.coronal_deg,
        sagittal_deg=upper.sagittal_deg,
        hilum_deg=upper.hilum_deg,
        bend=upper.bend,
    )
    return upper, lower


def with_tumour(
    rng: np.random.Generator, kidneys: Sequence[Kidney], form: TumourForm
) -> list[Kidney]:
    """The kidneys that have a tumour: none, one at random, or all.

    Args:
        rng: random generator.
        kidneys: may be empty.
        form: "none", "one-sided" or "bilateral".
    """
    first = [kidneys[int(rng.integers(len(kidneys)))]] if kidneys else []
    return {"none": [], "one-sided": first, "bilateral": list(kidneys)}[form]
