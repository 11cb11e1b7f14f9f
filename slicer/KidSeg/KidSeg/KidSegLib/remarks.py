"""What kidseg's record of a scan says to the user, besides warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["remarks_of"]

_FIRST = 5


def remarks_of(record: Mapping[str, Any]) -> list[str]:
    """What was drawn, what the model is for, and the slices in which it is least sure.

    Args:
        record: of the scan in kidseg's result.json.
    """
    model, review = record.get("model") or {}, record.get("review") or {}
    remarks = []
    if drawn := record.get("completed"):
        remarks.append(f"{drawn['slices']} of {drawn['of']} slices were drawn; they are unchanged.")
    if use := model.get("use"):
        remarks.append(f"The model '{model.get('name', '')}' is {use}.")
    slices = [
        f"{each['slice']} (S {float(each['position_mm']):.1f} mm)"
        for each in (review.get("slices") or [])[:_FIRST]
    ]
    if slices:
        axis = str(review.get("slice_axis", "k")).upper()
        remarks.append(
            f"The model is least sure in slices {', '.join(slices)}: {axis} and S in the Data"
            " Probe, which counts from 0. Look at these first."
        )
    return remarks
