"""Find and read the reference labels of scans, for comparison in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kidseg.cases import (
    Case,
    Dataset,
    LearnedLabels,
    learned_labels,
    open_dataset,
    relabelled,
)
from kidseg.cases.label_names import stated_labels
from kidseg.cases.naming import matching_names
from kidseg.cases.segments import read_label_file, uncropped
from kidseg.errors import Finding, InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions
from kidseg.labels import CystAs, LabelSchema

__all__ = ["ReferenceLabels", "find_references", "reference_of"]

# Tolerance when comparing the grids of labels and scan.
_SAME_GRID_MM = 1e-3


@dataclass(frozen=True, kw_only=True)
class ReferenceLabels:
    """The reference labels of a scan, and the mapping to the labels of the model.

    Attributes:
        path: a label volume.
        schema: of the model.
        names: {number in the file: name}, as a data set defines them. Unless given, the numbers of
            the model, or the names of 3D Slicer's segments.
        new_from_old: {number in the file: number of the model}; other numbers are unchanged.
        ignore_label: number in the file of voxels to ignore.
        case: of the data set, if the labels are those of a case.
        stated: the labels that the description of the folder of the file states.
    """

    path: Path
    schema: LabelSchema
    names: Mapping[int, str] = field(default_factory=dict)
    new_from_old: Mapping[int, int] = field(default_factory=dict)
    ignore_label: int | None = None
    case: Case | None = None
    stated: LabelSchema | None = None

    def on(self, grid: Grid, options: ReadOptions | None = None) -> tuple[Volume, Volume | None]:
        """Read the (1, slices, rows, columns) labels on a scan's voxels, and the ignore mask.

        See `read_on`.
        """
        labels, ignore, _ = self.read_on(grid, options)
        return labels, ignore

    def read_on(
        self, grid: Grid, options: ReadOptions | None = None
    ) -> tuple[Volume, Volume | None, tuple[Finding, ...]]:
        """Read the labels and the ignore mask on a scan's voxels, and findings about the file.

        A segmentation of 3D Slicer may be cropped.

        Args:
            grid: of the scan.
            options: of reading the scan.

        Raises:
            InputError: "label-grid-mismatch": the labels have another grid; see
                `read_label_file`.
        """
        options = options or ReadOptions()
        file = read_label_file(
            self.path,
            self.names or self.schema.names,
            {} if self.names else self.schema.meaning,
            ignore_label=self.ignore_label,
            by_number=bool(self.names),
            stated=self.stated,
            options=options if self.case is None else self.case.reading(options),
        )
        volume = file.labels.volume
        if file.is_segmentation:  # 3D Slicer crops them
            volume = uncropped(volume, grid, _SAME_GRID_MM) or volume
        if not volume.grid.same_as(grid, _SAME_GRID_MM):
            raise InputError(
                f"its grid is not that of the scan: {volume.grid.difference(grid)}",
                path=self.path,
                code="label-grid-mismatch",
                next_step="Name the labels of this scan.",
            )
        labels = relabelled(volume, self.new_from_old)
        ignore = None
        if self.ignore_label is not None:
            ignored = volume.data == self.ignore_label
            ignore = Volume(ignored, grid)
            labels = Volume(labels.data.masked_fill(ignored, 0), grid)
        return Volume(labels.data, grid), ignore, file.findings


def find_references(
    scans: Mapping[Path, str],
    reference: Path,
    schema: LabelSchema,
    cyst: CystAs | None,
) -> dict[Path, ReferenceLabels]:
    """Find the reference labels of each scan.

    Args:
        scans: {scan: its name}.
        reference: a label volume for one scan; or a data set in any layout, in which a scan matches
            the case with the same image file, or with its name as id.
        schema: of the model.
        cyst: what cysts counted as in the training of the model.

    Raises:
        UsageError: "one-reference": a label volume for several scans; "unknown-case": the data set
            has no labelled case for a scan.
        InputError: see `open_dataset`; "other-labels": the labels of the data set differ from those
            of the model.
    """
    if reference.is_file():
        if len(scans) > 1:
            raise UsageError(
                f"a single label volume was given for {len(scans)} scans",
                path=reference,
                code="one-reference",
                next_step="Name a data set, or segment one scan at a time.",
            )
        named = stated_labels([reference]).get(reference)
        labels = ReferenceLabels(
            path=reference,
            schema=schema,
            ignore_label=None if named is None else named.ignore,
            stated=None if named is None else named.schema,
        )
        return dict.fromkeys(scans, labels)
    data = open_dataset(reference)
    learned = learned_labels(data, cyst)
    images = Counter(case.images[0].resolve() for case in data.cases)
    by_image = {path: case for case in data.cases if images[path := case.images[0].resolve()] == 1}
    same = matching_names(set(scans.values()), set(data.by_id))
    found = {}
    for scan, name in scans.items():
        case = by_image.get(scan.resolve()) or data.by_id.get(same.get(name, name))
        if case is None or case.labels is None:
            raise UsageError(
                f"there is no labelled case for the scan {scan}",
                path=reference,
                code="unknown-case",
                next_step=f"The id of the case must be the name of the scan, '{name}'.",
            )
        found[scan] = reference_of(case, data, learned, schema)
    return found


def reference_of(
    case: Case, data: Dataset, learned: LearnedLabels, schema: LabelSchema
) -> ReferenceLabels:
    """The reference labels of a case.

    Args:
        case: of the data set, with labels.
        data: the data set.
        learned: its labels as they are learned.
        schema: of the model.

    Raises:
        InputError: "other-labels": the labels of the data set differ from those of the model.
    """
    if learned.schema.names != schema.names:
        raise InputError(
            f"its labels {learned.schema.names} differ from those of the model, {schema.names}",
            path=data.root,
            code="other-labels",
            next_step="Name a data set with the labels that the model was trained on.",
        )
    assert case.labels is not None
    return ReferenceLabels(
        path=case.labels,
        schema=schema,
        names=data.schema.names,
        new_from_old=learned.new_from_old,
        ignore_label=data.ignore_label,
        case=case,
    )
