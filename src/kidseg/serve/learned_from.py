"""The labels of clients, read and written as a data set for `kidseg train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kidseg.cases.nnunet import write_dataset_json
from kidseg.cases.relabel import relabelled
from kidseg.cases.segments import Segment as NamedValue
from kidseg.cases.segments import labels_of_segments, read_label_file, segments_of, uncropped
from kidseg.errors import InputError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read, save
from kidseg.labels import LabelSchema

__all__ = ["names_said", "read_submitted", "write_training_data"]


def names_said(params: Mapping[str, Any]) -> dict[int, str]:
    """{value: name} of the labels in a file, as 3D Slicer says: the values count the names.

    Args:
        params: with "label_info", a list of {"name", ...}; without, the values are the model's.

    Raises:
        InputError: "bad-label-info".
    """
    said = params.get("label_info") or []
    entries = said if isinstance(said, list) else [None]
    names = [each.get("name") if isinstance(each, Mapping) else None for each in entries]
    if not all(isinstance(n, str) and n for n in names):
        raise InputError(
            "label_info is not a list of labels with names",
            code="bad-label-info",
            next_step='Send label_info as [{"name": "kidney"}, {"name": "tumour"}].',
        )
    known = [str(name) for name in names]
    if len(set(known)) != len(known):
        raise InputError(
            f"label_info names a label twice: {', '.join(known)}",
            code="bad-label-info",
            next_step="Give each segment a name of its own.",
        )
    return dict(enumerate(known, start=1))


def read_submitted(
    image: Path,
    labels: Path,
    names: Mapping[int, str],
    schema: LabelSchema,
    limit_bytes: int | None = None,
) -> Volume:
    """Labels with the numbers of a schema, on the voxels of their image.

    Args:
        image: file of the image.
        labels: their file; a segmentation of 3D Slicer names its segments itself.
        names: {value: name}; empty: the values are the numbers of the schema.
        schema: of the model.
        limit_bytes: of the voxels of each file, as stored; None: what the memory has room for.

    Returns:
        (1, slices, rows, columns) uint8, in canonical voxel order.

    Raises:
        InputError: see `kidseg.io.read`, `read_label_file`, `labels_of_segments`; "grid-mismatch".
        ResourceError: "not-enough-memory".
    """
    options = ReadOptions(values="any", memory_limit_bytes=limit_bytes)
    by_values = bool(names) and not segments_of(labels)
    known = LabelSchema.from_names(names) if by_values else schema
    found = read_label_file(labels, known.names, known.meaning, options=options)
    volume = found.labels.volume
    if by_values:
        segments = [NamedValue(name=names[value], value=value) for value in found.labels.voxels]
        numbers = labels_of_segments(segments, schema.names, schema.meaning, labels)
        volume = relabelled(volume, numbers)
    scan = read(image, options).volume
    if found.is_segmentation and (whole := uncropped(volume, scan.grid)) is not None:
        volume = whole
    if not volume.grid.same_as(scan.grid):
        raise InputError(
            f"its grid is not that of the image: {volume.grid.difference(scan.grid)}",
            path=labels,
            code="grid-mismatch",
            next_step="Save the labels on the voxels of the image.",
        )
    return Volume(volume.data, scan.grid)


def write_training_data(
    root: Path,
    cases: Sequence[tuple[str, Path, Path, Mapping[int, str]]],
    schema: LabelSchema,
    channel: str,
) -> None:
    """Write images and labels in nnU-Net's layout.

    Args:
        root: a new folder.
        cases: (id, image, labels, names; see `read_submitted`).
        schema: of the model.
        channel: its name, such as "CT".

    Raises:
        InputError, ResourceError: see `read_submitted`, `kidseg.io.save`.
    """
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    for case, image, labels, names in cases:
        volume = read_submitted(image, labels, names, schema)
        scan = read(image, ReadOptions(values="any", nonfinite="replace"))
        save(scan.volume, root / "imagesTr" / f"{case}_0000.nii.gz")
        save(volume, root / "labelsTr" / f"{case}.nii.gz")
    write_dataset_json(root, channels=[channel], schema=schema, n_training=len(cases))
