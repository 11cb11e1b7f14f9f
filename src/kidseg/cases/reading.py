"""A case of a data set as voxels, checked: what planning and the store begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume
from kidseg.labels import CystAs, LabelSchema

if TYPE_CHECKING:
    from pathlib import Path

    from kidseg.cases import Case, Dataset

__all__ = ["CaseReader", "CaseVoxels"]


@dataclass(frozen=True, kw_only=True)
class CaseVoxels:
    """What the files of a case hold, in canonical order.

    Attributes:
        image: (channels, slices, rows, columns); HU for CT.
        labels: (1, slices, rows, columns) uint8 on the image's grid, None for unlabelled cases.
        findings: noticed by the readers.
    """

    image: Volume
    labels: Volume | None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaseReader:
    """How the cases of a data set are read for training: strictly.

    Attributes:
        are_ct: per channel, whether it holds HU.
        schema: labels after `relabel`.
        ignore_label: of the data set.
        relabel: {number in the files: number that it counts as}.
    """

    are_ct: tuple[bool, ...]
    schema: LabelSchema
    ignore_label: int | None = None
    relabel: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of_dataset(cls, dataset: Dataset, *, cyst: CystAs | None = None) -> CaseReader:
        """The reader for a data set, with its cysts, if told so, counted as something else.

        Raises:
            UsageError: as `kidseg.cases.count_cyst`.
        """
        from kidseg.cases import count_cyst

        schema, relabel = count_cyst(dataset, cyst)
        return cls(
            are_ct=tuple(dataset.holds_ct(k) for k in range(len(dataset.channels))),
            schema=schema,
            ignore_label=dataset.ignore_label,
            relabel=relabel,
        )

    def read(self, case: Case) -> CaseVoxels:
        """Read and check all files of a case.

        Raises:
            InputError: what `kidseg.io.read` refuses, voxels that are not finite among it;
                "channels-differ", "label-grid-mismatch": images, or labels, that do not lie on the
                first image's voxels; "wrong-channels"; "bad-labels", "unexpected-labels": values
                that are no whole numbers, or not in the schema.
        """
        from kidseg import io

        if len(case.images) != len(self.are_ct):
            raise InputError(
                f"case '{case.id}' has {len(case.images)} images, not {len(self.are_ct)}",
                path=case.images[0] if case.images else None,
                code="wrong-channels",
                next_step="Each case needs one image per channel of the data set.",
            )
        volumes: list[Volume] = []
        findings: list[Finding] = []
        for path, is_ct in zip(case.images, self.are_ct, strict=True):
            options = io.ReadOptions(nonfinite="refuse", values="ct" if is_ct else "any")
            scan = io.read(path, options)
            findings += scan.findings
            volumes.append(scan.volume)
            _check_same_grid(scan.volume, volumes[0], path, "channels-differ")
        kind = volumes[0].data.dtype
        for volume in volumes[1:]:
            kind = torch.promote_types(kind, volume.data.dtype)
        image = Volume(torch.cat([v.data.to(kind) for v in volumes]), volumes[0].grid)
        labels = None if case.labels is None else self._read_labels(case.labels, image)
        return CaseVoxels(image=image, labels=labels, findings=tuple(findings))

    def _read_labels(self, path: Path, image: Volume) -> Volume:
        from kidseg import io
        from kidseg.cases import relabelled

        scan = io.read(path, io.ReadOptions(nonfinite="refuse", values="labels"))
        _check_same_grid(scan.volume, image, path, "label-grid-mismatch")
        try:
            labels = relabelled(scan.volume, self.relabel)
        except InputError as error:
            raise InputError(
                error.cause, path=path, code=error.code, next_step="Correct the label file."
            ) from error
        counts = torch.bincount(labels.data.flatten().to(torch.int64), minlength=256)
        known = {0, *self.schema.ids, self.ignore_label}
        odd = [v for v in counts.nonzero()[:, 0].tolist() if v not in known]
        if odd:
            named = ", ".join(f"{v} ({int(counts[v])} voxels)" for v in odd)
            raise InputError(
                f"the labels hold values that the data set does not name: {named}",
                path=path,
                code="unexpected-labels",
                next_step="Name them in the data set's description or correct the file.",
            )
        return Volume(labels.data, image.grid)


def _check_same_grid(volume: Volume, first: Volume, path: Path, code: str) -> None:
    if not volume.grid.same_as(first.grid):
        raise InputError(
            f"its voxels ({volume.grid}) are not those of the case's image ({first.grid}), "
            "in number or in place",
            path=path,
            code=code,
            next_step="All files of a case must lie on the same voxels, within 0.001 mm.",
        )
