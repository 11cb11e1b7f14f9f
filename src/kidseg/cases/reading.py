"""Read and validate the voxels of a case, for planning and the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume, join_channels
from kidseg.labels import CystAs, LabelSchema

if TYPE_CHECKING:
    from pathlib import Path

    from kidseg.cases import Case, Dataset
    from kidseg.cases.label_values import LabelValues

__all__ = ["CaseReader", "CaseVoxels"]


@dataclass(frozen=True, kw_only=True)
class CaseVoxels:
    """The voxels of a case, in canonical order.

    Attributes:
        image: (channels, slices, rows, columns); HU for CT.
        labels: (1, slices, rows, columns) uint8 on the image's grid, None for unlabelled cases.
        findings: of the readers.
    """

    image: Volume
    labels: Volume | None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaseReader:
    """Reads the cases of a data set for training, strictly.

    Attributes:
        are_ct: per channel, whether it is in HU.
        schema: labels after `relabel`.
        ignore_label: of the data set.
        relabel: {label in the files: label that it counts as}.
    """

    are_ct: tuple[bool, ...]
    schema: LabelSchema
    ignore_label: int | None = None
    relabel: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of_dataset(cls, dataset: Dataset, *, cyst: CystAs | None = None) -> CaseReader:
        """The reader for a data set; `cyst` states what cysts count as, None: as themselves.

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
        """Read and validate all files of a case.

        Raises:
            InputError: what `kidseg.io.read` refuses, including voxels that are not finite;
                "channels-differ", "label-grid-mismatch": an image, or the labels, differ from the
                first image in grid; "wrong-channels"; those of `known_labels`.
        """
        from kidseg import io

        if len(case.images) != len(self.are_ct):
            raise InputError(
                f"case '{case.id}' has {len(case.images)} images, not {len(self.are_ct)}",
                path=case.images[0] if case.images else None,
                code="wrong-channels",
                next_step="Provide one image per channel of the data set.",
            )
        volumes: list[Volume] = []
        findings: list[Finding] = []
        for k, (path, is_ct) in enumerate(zip(case.images, self.are_ct, strict=True)):
            values: Literal["ct", "any"] = "ct" if is_ct else "any"
            options = io.ReadOptions(nonfinite="refuse", values=values)
            scan = io.read(path, case.reading(options, k))
            findings += scan.findings
            volumes.append(scan.volume)
            _check_same_grid(scan.volume, volumes[0], path, "channels-differ")
        image = join_channels(volumes)
        labels = None
        if case.labels is not None:
            judged = self._read_labels(case, case.labels, image)
            labels, said = judged.volume, {(f.code, f.cause) for f in findings}
            findings += [f for f in judged.findings if (f.code, f.cause) not in said]
        return CaseVoxels(image=image, labels=labels, findings=tuple(findings))

    def _read_labels(self, case: Case, path: Path, image: Volume) -> LabelValues:
        from kidseg import io
        from kidseg.cases import relabelled
        from kidseg.cases.air import air_findings
        from kidseg.cases.label_values import known_labels

        options = io.ReadOptions(nonfinite="refuse", values="labels")
        scan = io.read(path, case.reading(options))
        _check_same_grid(scan.volume, image, path, "label-grid-mismatch")
        names = self.schema.names
        counted = {old: f"({names.get(new, 'background')})" for old, new in self.relabel.items()}
        judged = known_labels(scan, {**names, **counted}, self.ignore_label)
        labels = Volume(relabelled(judged.volume, self.relabel).data, image.grid)
        findings = (*scan.findings, *judged.findings)
        if self.are_ct[0]:
            findings += air_findings(labels, image, self.schema, path, case.images[0])
        return replace(judged, volume=labels, findings=findings)


def _check_same_grid(volume: Volume, first: Volume, path: Path, code: str) -> None:
    if not volume.grid.same_as(first.grid):
        raise InputError(
            "its grid is not that of the case's first image: " + volume.grid.difference(first.grid),
            path=path,
            code=code,
            next_step="All files of a case must have the same grid, within 0.001 mm.",
        )
