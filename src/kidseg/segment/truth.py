"""Reference labels for scans, to be shown and compared beside what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from kidseg.cases import learned_labels, open_dataset, relabelled
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read
from kidseg.labels import CystAs, LabelSchema

__all__ = ["ReferenceLabels", "find_references"]

# Farther apart, and a label lies on other voxels.
_SAME_GRID_MM = 1e-3


@dataclass(frozen=True, kw_only=True)
class ReferenceLabels:
    """Where the reference labels of a scan are, and what their numbers mean to the model.

    Attributes:
        path: a label volume.
        schema: of the model.
        new_from_old: {number in the file: number of the model}; others stay.
        ignored: number, after that, of voxels that do not count.
    """

    path: Path
    schema: LabelSchema
    new_from_old: Mapping[int, int] = field(default_factory=dict)
    ignored: int | None = None

    def on(self, grid: Grid, options: ReadOptions | None = None) -> tuple[Volume, Volume | None]:
        """(1, slices, rows, columns) labels on a scan's own voxels, and which do not count.

        Args:
            grid: of the scan.
            options: of reading the scan.

        Raises:
            InputError: "label-grid-mismatch": they lie on others; "unexpected-labels": they hold
                numbers that the model does not know; what `kidseg.io.read` refuses.
        """
        how = replace(options or ReadOptions(), values="labels", nonfinite="refuse")
        volume = read(self.path, how).volume
        if volume.grid.shape != grid.shape or not volume.grid.same_as(grid, _SAME_GRID_MM):
            raise InputError(
                f"these labels ({_place(volume.grid)}) do not lie on the voxels of the scan"
                f" ({_place(grid)})",
                path=self.path,
                code="label-grid-mismatch",
                next_step="Name the labels that belong to this scan.",
            )
        labels = relabelled(volume, self.new_from_old)
        ignore = None
        if self.ignored is not None:
            ignore = Volume(labels.data == self.ignored, grid)
            labels = Volume(labels.data.masked_fill(ignore.data, 0), grid)
        odd = set(torch.unique(labels.data).tolist()) - {0, *self.schema.ids}
        if odd:
            raise InputError(
                f"it holds the labels {sorted(odd)}, which the model does not know",
                path=self.path,
                code="unexpected-labels",
                next_step=f"The model knows {self.schema.names}.",
            )
        return Volume(labels.data, grid), ignore


def find_references(
    scans: Mapping[Path, str],
    reference: Path,
    schema: LabelSchema,
    cyst: CystAs | None,
) -> dict[Path, ReferenceLabels]:
    """The reference of each scan.

    Args:
        scans: {scan: its name}.
        reference: one label volume, for one scan; or a data set in any layout. A scan belongs to
            the case whose image it is, or whose id is its name.
        schema: of the model.
        cyst: what a cyst counted as when the model was trained.

    Raises:
        UsageError: "one-reference": a label volume for several scans; "no-reference": the data set
            has no labelled case for a scan.
        InputError: what `open_dataset` refuses; "other-labels": the data set's labels are not the
            model's.
    """
    if reference.is_file():
        if len(scans) > 1:
            raise UsageError(
                f"it is one label volume, for {len(scans)} scans",
                path=reference,
                code="one-reference",
                next_step="Name a data set, or segment one scan at a time.",
            )
        return {scan: ReferenceLabels(path=reference, schema=schema) for scan in scans}
    data = open_dataset(reference)
    learned = learned_labels(data, cyst)
    if learned.schema.names != schema.names:
        raise InputError(
            f"its labels {learned.schema.names} are not those of the model, {schema.names}",
            path=data.root,
            code="other-labels",
            next_step="Name a data set with the labels that the model was trained on.",
        )
    by_image = {case.images[0].resolve(): case for case in data.cases}
    found = {}
    for scan, name in scans.items():
        case = by_image.get(scan.resolve()) or data.by_id.get(name)
        if case is None or case.labels is None:
            raise UsageError(
                f"it has no labelled case for the scan {scan}",
                path=reference,
                code="no-reference",
                next_step=f"Cases are called like their scans, '{name}' here.",
            )
        found[scan] = ReferenceLabels(
            path=case.labels,
            schema=schema,
            new_from_old=learned.new_from_old,
            ignored=learned.ignore,
        )
    return found


def _place(grid: Grid) -> str:
    corner = ", ".join(f"{v:.4g}" for v in grid.mm([0.0, 0.0, 0.0]).tolist())
    spacing = " x ".join(f"{v:.4g}" for v in grid.spacing_mm.tolist())
    return f"{' x '.join(map(str, grid.shape))} voxels of {spacing} mm, first at ({corner})"
