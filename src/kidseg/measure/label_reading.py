"""Read a label file to measure: the names of its labels, the border of its scan, the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kidseg.body import body_mask, moments
from kidseg.cases import DATASET_JSON, survey_dataset
from kidseg.cases.label_values import known_labels
from kidseg.cases.naming import IMAGE_FOLDERS
from kidseg.cases.segments import segments_of
from kidseg.errors import Finding, InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read
from kidseg.labels import KIDNEY_TUMOUR_CYST, LabelSchema
from kidseg.measure.mask import bounds
from kidseg.measure.midline import Midline, estimated_midline
from kidseg.measure.parts import Labelled

__all__ = ["label_names", "read_labelled", "read_opinion"]

_DEFAULT = ReadOptions()
_SAME_GRID_MM = 1e-3
# Findings of readers that matter for images only.
_HARMLESS = {"float-labels", "anisotropic-voxels"}


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What the numbers of a file mean.

    Attributes:
        schema: names of the labels.
        ignore: number of voxels to ignore.
        is_segmentation: a file of 3D Slicer, perhaps cropped to its segments.
        is_assumed: no file and no option says it.
    """

    schema: LabelSchema
    ignore: int | None = None
    is_segmentation: bool = False
    is_assumed: bool = False


def read_labelled(
    path: Path,
    *,
    ct: Path | None = None,
    names: Mapping[int, str] | None = None,
    options: ReadOptions = _DEFAULT,
) -> Labelled:
    """Read labels, and the scan if it is known.

    Labels are named by `names`; else by the segments of 3D Slicer's file, or a dataset.json beside
    the file or its folder; else 1 is kidney, 2 tumour, 3 cyst.

    Args:
        path: of a label volume.
        ct: of its scan, for the midline and the border.
        names: {number: name}.
        options: of reading the scan.

    Raises:
        InputError: "label-grid-mismatch": labels and scan have different grids; "bad-labels": the
            segments have no unique names; see `kidseg.io.read`, `known_labels`, `segments_of`,
            `survey_dataset`.
    """
    known = _names_of(path, names)
    volume, findings = _read_labels(path, known)
    is_cropped = known.is_segmentation
    if ct is None:
        midline = estimated_midline(volume, known.schema, is_cropped=is_cropped)
    else:
        scan = read(ct, replace(options, values="ct"))
        volume, is_cropped = _on_scan(volume, scan.volume.grid, path, ct), False
        midline = Midline.of(scan.volume.grid, moments(body_mask(scan.volume)))
        findings += scan.findings
    if known.is_assumed:
        findings += (_assumed(known.schema, path),)
    return Labelled(
        labels=volume,
        schema=known.schema,
        midline=midline,
        path=path,
        tracking=_tracking(known.schema),
        is_cropped=is_cropped,
        findings=(*findings, *_unclear(known.schema, path)),
    )


def read_opinion(path: Path, labelled: Labelled) -> Volume:
    """Read another segmentation of the same scan, with the same labels.

    Raises:
        InputError: "label-grid-mismatch"; as `read_labelled`.
    """
    known = _Names(schema=labelled.schema, is_segmentation=bool(segments_of(path)))
    if known.is_segmentation:
        own = _names_of(path, None)
        if own.schema.names != labelled.schema.names:
            raise InputError(
                f"its labels {own.schema.names} are not those of {labelled.path},"
                f" {labelled.schema.names}",
                path=path,
                code="other-labels",
                next_step="Name a segmentation with the same labels.",
            )
    volume, _ = _read_labels(path, known)
    return _on_scan(volume, labelled.labels.grid, path, labelled.path)


def label_names(texts: Sequence[str]) -> dict[int, str]:
    """{number: name} as entered: NUMBER=NAME.

    Raises:
        UsageError: "bad-label": another form, or a number or name occurs twice.
    """
    names: dict[int, str] = {}
    for text in texts:
        number, _, name = (part.strip() for part in text.partition("="))
        is_number = number.isascii() and number.isdigit() and 1 <= int(number[:4]) <= 255
        if not (is_number and name) or int(number) in names or name in names.values():
            raise UsageError(
                f"'{text}' does not name a label",
                code="bad-label",
                next_step="Write NUMBER=NAME, such as 1=kidney, each number and name once.",
            )
        names[int(number)] = name
    return names


def _names_of(path: Path, names: Mapping[int, str] | None) -> _Names:
    segments = segments_of(path)
    if names:
        return _Names(schema=LabelSchema.from_names(names), is_segmentation=bool(segments))
    if segments:
        try:
            schema = LabelSchema.from_names({one.value: one.name for one in segments})
        except ValueError as error:
            raise InputError(
                f"its segments cannot be told apart by name: {error}",
                path=path,
                code="bad-labels",
                next_step="Rename the segments in 3D Slicer, or name the labels: --label.",
            ) from error
        return _Names(schema=schema, is_segmentation=True)
    if (root := _described_by(path)) is not None:
        data = survey_dataset(root).dataset
        return _Names(schema=data.schema, ignore=data.ignore_label)
    return _Names(schema=KIDNEY_TUMOUR_CYST, is_assumed=True)


def _described_by(path: Path) -> Path | None:
    """The folder of the dataset.json that describes a file: its own, or that above labelsTr."""
    folder = path.absolute().parent
    if (folder / DATASET_JSON).is_file():
        return folder
    labels = {name.replace("images", "labels") for name in IMAGE_FOLDERS}
    above = folder.parent
    return above if folder.name in labels and (above / DATASET_JSON).is_file() else None


def _read_labels(path: Path, known: _Names) -> tuple[Volume, tuple[Finding, ...]]:
    scan = read(path, ReadOptions(values="labels", nonfinite="refuse"))
    try:
        judged = known_labels(scan, known.schema.names, known.ignore)
    except InputError as error:
        if error.code != "unexpected-labels":
            raise
        step = "Give a label volume; if its labels are others, name each: --label NUMBER=NAME."
        raise InputError(error.cause, path=error.path, code=error.code, next_step=step) from error
    volume = judged.volume
    if known.ignore is not None:
        data = volume.data.masked_fill(volume.data == known.ignore, 0)
        volume = Volume(data, volume.grid)
    findings = (*scan.findings, *judged.findings)
    return volume, tuple(found for found in findings if found.code not in _HARMLESS)


def _on_scan(labels: Volume, grid: Grid, path: Path, scan: Path) -> Volume:
    """The labels on the voxels of the scan, of which they may be a part.

    Raises:
        InputError: "label-grid-mismatch".
    """
    if labels.grid.same_as(grid, _SAME_GRID_MM):
        return labels
    start = grid.index(labels.grid.mm([0.0, 0.0, 0.0])).round().long().tolist()
    shape = labels.grid.shape
    inside = all(
        low >= 0 and low + n <= total
        for low, n, total in zip(start, shape, grid.shape, strict=True)
    )
    if not inside or not grid.crop(start, shape).same_as(labels.grid, _SAME_GRID_MM):
        raise InputError(
            f"its grid ({labels.grid}) is not that of {scan} ({grid}), nor a part of it",
            path=path,
            code="label-grid-mismatch",
            next_step="Name the scan of these labels.",
        )
    back = [-low for low in start]
    data = bounds(labels.data[0].numpy(), back, list(grid.shape))
    return Volume(torch.from_numpy(data)[None], grid)


def _tracking(schema: LabelSchema) -> dict[int, str]:
    """Labels of single lesions: tumours whose name has a number, such as "tumour 2"."""
    return {
        number: schema.names[number]
        for number in schema.ids_of("tumour")
        if any(letter.isdigit() for letter in schema.names[number])
    }


def _assumed(schema: LabelSchema, path: Path) -> Finding:
    known = ", ".join(f"{number} {name}" for number, name in schema.names.items())
    return Finding(
        code="labels-assumed",
        path=str(path),
        cause=f"nothing says what the labels are; they were taken for {known}",
        next_step="If they are others, name them: --label NUMBER=NAME.",
    )


def _unclear(schema: LabelSchema, path: Path) -> tuple[Finding, ...]:
    """Labels that are not recognized, and structures without a label."""
    found = []
    unknown = [f"{n} ({name})" for n, name in schema.names.items() if schema.meaning[n] is None]
    if unknown:
        found.append(
            Finding(
                code="label-not-understood",
                path=str(path),
                cause=f"not recognized as kidney, tumour or cyst: {', '.join(unknown)}; only their"
                " volumes were measured",
                next_step="If one of them is, say so: --label NUMBER=kidney.",
            )
        )
    for meaning in ("kidney", "tumour"):
        if not schema.ids_of(meaning):
            found.append(
                Finding(
                    code=f"no-{meaning}-label",
                    path=str(path),
                    cause=f"no label is recognized as {meaning}, so nothing can be said about it",
                    next_step=f"If there is one, say so: --label NUMBER={meaning}.",
                )
            )
    return tuple(found)
