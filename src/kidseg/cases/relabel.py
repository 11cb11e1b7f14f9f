"""Renumber labels: cysts counted as another label, consecutive numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch

from kidseg.cases.case import Dataset
from kidseg.errors import UsageError
from kidseg.geometry import Volume
from kidseg.labels import CystAs, LabelSchema, Meaning, Target
from kidseg.meaning import side_of

__all__ = [
    "LearnedLabels",
    "consecutive",
    "count_cyst",
    "learned_labels",
    "relabelled",
    "without_cyst",
]


@dataclass(frozen=True, kw_only=True)
class LearnedLabels:
    """The labels of a data set as networks learn them: 1, 2, 3, ...

    Attributes:
        schema: labels 1, 2, 3, ... in the order of the numbers in the files, and the regions.
        new_from_old: {label in the files: learned label}, including cysts that count as another
            label. Valid before and after `CaseReader` has relabelled cysts.
        ignore: label of ignored voxels, the number after the last; None if there is none.
        target: what networks predict: labels, or the data set's overlapping regions.
    """

    schema: LabelSchema
    new_from_old: Mapping[int, int]
    ignore: int | None
    target: Target


def learned_labels(dataset: Dataset, cyst: CystAs | None = None) -> LearnedLabels:
    """The labels of a data set as networks learn them.

    Args:
        dataset: of labels, or of overlapping regions (nnU-Net's `regions_class_order`).
        cyst: what a cyst counts as; None: its own label.

    Raises:
        UsageError: as `count_cyst`.
    """
    known, counted = count_cyst(dataset, cyst)
    schema, renumbered = consecutive(known, dataset.ignore_label)
    both = {old: renumbered.get(new, 0) for old, new in counted.items()}
    ignore = None if dataset.ignore_label is None else renumbered[dataset.ignore_label]
    if dataset.region_order:
        target = Target.of_regions(schema, [renumbered[n] for n in dataset.region_order])
    else:
        target = Target.of_labels(schema)
    return LearnedLabels(
        schema=schema, new_from_old={**renumbered, **both}, ignore=ignore, target=target
    )


def count_cyst(dataset: Dataset, cyst: CystAs | None) -> tuple[LabelSchema, dict[int, int]]:
    """The schema of a data set with cysts counted as another label, and {old number: new}.

    Raises:
        UsageError: "cyst-in-regions": overlapping regions already define it; as `without_cyst`.
    """
    if cyst is None:
        return dataset.schema, {}
    if dataset.region_order:
        raise UsageError(
            "the data set trains overlapping regions, which define what a cyst counts as",
            path=dataset.root,
            code="cyst-in-regions",
            next_step="Leave out the cyst setting.",
        )
    return without_cyst(dataset.schema, cyst)


def without_cyst(schema: LabelSchema, cyst: CystAs) -> tuple[LabelSchema, dict[int, int]]:
    """The schema with cysts counted as another label, and {old number: new}.

    Where left and right are separate labels, a cyst counts as the label of its side. A schema
    without cysts is returned unchanged, with {}.

    Raises:
        UsageError: "unknown-cyst": invalid `cyst`; "no-such-label": the schema has no label that a
            cyst can count as; "several-such-labels": it has several, none on the cyst's side.
    """
    if cyst not in get_args(CystAs):
        raise UsageError(
            f"a cyst cannot count as '{cyst}'",
            code="unknown-cyst",
            next_step=f"Choose one of {', '.join(get_args(CystAs))}.",
        )
    moved = {
        old: 0 if cyst == "background" else _counterpart(schema, old, cyst)
        for old in schema.ids_of("cyst")
    }
    if not moved:
        return schema, {}
    return LabelSchema.from_names({i: n for i, n in schema.names.items() if i not in moved}), moved


def _counterpart(schema: LabelSchema, old: int, meaning: Meaning) -> int:
    """The label with this meaning; if there are several, the one on the same side."""
    names = schema.names
    found = schema.ids_of(meaning)
    if len(found) > 1:
        found = tuple(i for i in found if side_of(names[i]) == side_of(names[old])) or found
    if len(found) == 1:
        return found[0]
    why = "several labels are" if found else "no label is"
    raise UsageError(
        f"label {old} ({names[old]}) cannot count as {meaning}: {why}",
        code="several-such-labels" if found else "no-such-label",
        next_step="Choose another cyst setting, or leave it out.",
    )


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
    """The volume with new numbers; labels that are not in the mapping are unchanged.

    Args:
        labels: uint8, of known labels only: a number that is not a label could become one. See
            `kidseg.cases.label_values`.
        new_from_old: {old number: new number}.

    Raises:
        ValueError: not uint8.
    """
    if labels.data.dtype != torch.uint8:
        raise ValueError(f"labels must be uint8, not {labels.data.dtype}")
    new_data = labels.data.clone()
    for old, new in new_from_old.items():
        if old != new:
            new_data[labels.data == old] = new
    return Volume(new_data, labels.grid)
