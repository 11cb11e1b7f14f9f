"""Other numbers for the same labels: a cyst counted as something else, consecutive numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch

from kidseg.cases.nnunet import schema_of
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Volume
from kidseg.labels import KIDNEY_TUMOUR_CYST, CystAs, LabelSchema

__all__ = ["consecutive", "relabelled", "without_cyst"]


def without_cyst(schema: LabelSchema, cyst: CystAs) -> tuple[LabelSchema, dict[int, int]]:
    """The schema with its cyst counted as something else, and {old number: new}.

    A schema without a cyst stays as it is, with {}.

    Raises:
        UsageError: "unknown-cyst": `cyst` is no such choice; "no-such-label": the schema does not
            have what a cyst is to count as.
    """
    if cyst not in get_args(CystAs):
        raise UsageError(
            f"a cyst cannot count as '{cyst}'",
            code="unknown-cyst",
            next_step=f"Choose one of {', '.join(get_args(CystAs))}.",
        )
    meanings = {label.code: label.name for label in KIDNEY_TUMOUR_CYST.labels}
    numbers = {meanings[label.code]: label.id for label in schema.labels if label.code in meanings}
    old = numbers.get("cyst")
    if old is None:
        return schema, {}
    new = 0 if cyst == "background" else numbers.get(cyst)
    if new is None:
        raise UsageError(
            f"a cyst cannot count as {cyst}: there is no such label", code="no-such-label"
        )
    return schema_of({i: name for i, name in schema.names.items() if i != old}), {old: new}


def consecutive(
    schema: LabelSchema, ignore_label: int | None = None
) -> tuple[LabelSchema, dict[int, int]]:
    """The schema with the numbers 1, 2, 3, ... in the same order, and {old number: new}.

    The ignore label, if there is one, becomes the number after the last.
    """
    old = sorted(schema.ids) + ([] if ignore_label is None else [ignore_label])
    new_from_old = {number: k for k, number in enumerate(old, start=1)}
    names = {new_from_old[number]: name for number, name in schema.names.items()}
    regions = {
        name: tuple(new_from_old[number] for number in members)
        for name, members in schema.regions.items()
    }
    return LabelSchema.from_names(names, regions), new_from_old


def relabelled(labels: Volume, new_from_old: Mapping[int, int]) -> Volume:
    """The volume as uint8 with other numbers; those not in the mapping stay.

    Raises:
        InputError: "bad-labels": a value is no whole number in 0..255.
    """
    data = labels.data
    low, high = (float(value) for value in data.aminmax())
    fractional = data.is_floating_point() and not bool((data == data.round()).all())
    if fractional or not (low >= 0 and high <= 255):
        raise InputError(f"label values in {low:g}..{high:g} are no labels", code="bad-labels")
    old_data = data.to(torch.uint8)
    new_data = old_data.clone()
    for old, new in new_from_old.items():
        if old != new:
            new_data[old_data == old] = new
    return Volume(new_data, labels.grid)
