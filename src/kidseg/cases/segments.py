"""Segmentations of 3D Slicer (`.seg.nrrd`): a label volume whose header names its segments.

A segment has a name and a value. The values are arbitrary, so a segment counts as the label that
its name states, whatever its value.

Source: 3D Slicer, "Segmentations: Segmentation file format",
https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kidseg.cases.label_values import LabelValues, known_labels
from kidseg.cases.relabel import relabelled
from kidseg.errors import Finding, InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, kind_of, read
from kidseg.labels import LabelSchema, Meaning
from kidseg.meaning import meaning_of, side_of

__all__ = [
    "LabelFile",
    "Segment",
    "labels_of_segments",
    "read_label_file",
    "segments_of",
    "uncropped",
]

_DEFAULT = ReadOptions()
_FIELD = re.compile(r"Segment(\d{1,6})_(Name|LabelValue|Layer):=(.*)")
_IGNORE = "ignore"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment, or another label that is named: its name, and its value in the voxels."""

    name: str
    value: int


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A label file that was read.

    Attributes:
        labels: its values as labels.
        native: its grid in the voxel order of the file.
        is_segmentation: written by 3D Slicer, perhaps cropped to its segments.
        findings: of the reader and about the values.
    """

    labels: LabelValues
    native: Grid
    is_segmentation: bool
    findings: tuple[Finding, ...]


def read_label_file(
    path: Path,
    names: Mapping[int, str],
    meanings: Mapping[int, Meaning | None],
    *,
    ignore_label: int | None = None,
    by_number: bool = False,
    stated: LabelSchema | None = None,
    options: ReadOptions = _DEFAULT,
) -> LabelFile:
    """Read a file of known labels, by their numbers, or by the names of 3D Slicer's segments.

    If the description of the file gives a known label another number, all go by their names, too.

    Args:
        path: of the file.
        names: {label: name}, without background.
        meanings: {label: what it means}.
        ignore_label: another value that is allowed.
        by_number: the file belongs to a data set, which defines its numbers.
        stated: the labels that the description of the file states; None: it has none.
        options: of reading.

    Raises:
        InputError: see `kidseg.io.read`, `known_labels`, `segments_of`, `labels_of_segments`.
    """
    of_slicer = () if by_number else segments_of(path)
    moved = () if by_number or of_slicer else _renumbered(stated, names, meanings)
    segments = of_slicer or moved
    scan = read(path, replace(options, values="labels", nonfinite="refuse"))
    if segments:
        judged = known_labels(scan, {segment.value: segment.name for segment in segments})
        present = [segment for segment in segments if segment.value in judged.voxels]
        label_of = labels_of_segments(present, names, meanings, path, ignore_label)
        voxels = Counter[int]()
        for value, count in judged.voxels.items():
            voxels[label_of[value]] += count
        judged = replace(judged, volume=relabelled(judged.volume, label_of), voxels=voxels)
    else:
        judged = known_labels(scan, names, ignore_label)
    return LabelFile(
        labels=judged,
        native=scan.native,
        is_segmentation=bool(of_slicer),
        findings=(*scan.findings, *judged.findings, *_said_of(moved, names, path)),
    )


def _renumbered(
    stated: LabelSchema | None, names: Mapping[int, str], meanings: Mapping[int, Meaning | None]
) -> tuple[Segment, ...]:
    """The stated labels, if one of them is known by another number; else ()."""
    labels = () if stated is None else stated.labels
    known = {label.id: _labels_named(label.name, names, meanings) for label in labels}
    if all(len(found) != 1 or found[0] == number for number, found in known.items()):
        return ()
    return tuple(Segment(name=label.name, value=label.id) for label in labels)


def _said_of(moved: Sequence[Segment], names: Mapping[int, str], path: Path) -> tuple[Finding, ...]:
    if not moved:
        return ()
    stated = ", ".join(f"{one.value} {one.name}" for one in moved)
    known = ", ".join(f"{number} {name}" for number, name in sorted(names.items()))
    cause = f"its labels have other numbers, as their folder says: {stated}, not {known}"
    said = f"{cause}; they were taken by their names"
    return (Finding(code="labels-by-name", path=str(path), cause=said),)


def segments_of(path: Path) -> tuple[Segment, ...]:
    """The segments that the header of a file names; () if it is not a segmentation of 3D Slicer.

    Raises:
        InputError: "overlapping-segments": they are stored in several layers; "bad-segment": a
            value is not an integer in 1..255, or two segments share one; "bad-header".
    """
    from kidseg.io.voxels import text_header

    if kind_of(path) != "nrrd":
        return ()
    lines, _ = text_header(path, b"")
    fields: dict[int, dict[str, str]] = {}
    for line in lines:
        if match := _FIELD.fullmatch(line):
            fields.setdefault(int(match[1]), {})[match[2]] = _unescaped(match[3].strip())
    named = [fields[number] for number in sorted(fields)]
    # Early versions of 3D Slicer store each segment in a layer of its own, without a value.
    layers = [entry.get("Layer", str(k)) for k, entry in enumerate(named)]
    if "".join(entry.get("LabelValue", "") for entry in named):
        layers = [entry.get("Layer", "0") for entry in named]
    if len(set(layers)) > 1:
        names = ", ".join(entry.get("Name", "") for entry in named)
        raise InputError(
            f"its segments are stored in {len(set(layers))} layers, because they overlap: {names}",
            path=path,
            code="overlapping-segments",
            next_step="In 3D Slicer, export the segmentation as a label volume, in which each "
            "voxel belongs to one segment.",
        )
    segments = tuple(_segment(entry, path) for entry in named)
    values = [segment.value for segment in segments]
    if len(set(values)) != len(values):
        raise _bad(f"two of its segments have the same value: {values}", path)
    return segments


def _unescaped(text: str) -> str:
    """The value of a key in an NRRD header, where a backslash is written as two."""
    return text.replace("\\\\", "\\")


def uncropped(labels: Volume, whole: Grid, tolerance_mm: float = 1e-3) -> Volume | None:
    """A cropped segmentation on the grid of its scan, whose other voxels are background.

    Args:
        labels: (1, slices, rows, columns), in the voxel order of `whole`.
        whole: volumetric.
        tolerance_mm: as in `Grid.same_as`.

    Returns:
        None if the voxels are not voxels of the grid.
    """
    start = [round(i) for i in whole.index(labels.grid.mm([0.0, 0.0, 0.0])).tolist()]
    shape = labels.grid.shape
    ends = zip(start, shape, whole.shape, strict=True)
    if not all(low >= 0 and low + n <= total for low, n, total in ends):
        return None
    if not whole.crop(start, shape).same_as(labels.grid, tolerance_mm):
        return None
    data = labels.data.new_zeros((1, *whole.shape))
    box = tuple(slice(low, low + n) for low, n in zip(start, shape, strict=True))
    data[0][box] = labels.data[0]
    return Volume(data, whole)


def labels_of_segments(
    segments: Iterable[Segment],
    names: Mapping[int, str],
    meanings: Mapping[int, Meaning | None],
    path: Path,
    ignore_label: int | None = None,
) -> dict[int, int]:
    """{value of a segment: label}, by name, or by what the name means (`kidseg.meaning`).

    Args:
        segments: to find labels for.
        names: {label: name}.
        meanings: {label: what it means}.
        path: the file.
        ignore_label: the label of a segment named "ignore".

    Raises:
        InputError: "unknown-segment": a name states none of the labels, or several.
    """
    found = {}
    for segment in segments:
        labels = _labels_named(segment.name, names, meanings)
        if ignore_label is not None and segment.name.casefold() == _IGNORE:
            labels = [ignore_label]
        if len(labels) != 1:
            known = ", ".join(f"{number} {name}" for number, name in sorted(names.items()))
            raise InputError(
                f"its label '{segment.name}' is "
                + ("several labels at once" if labels else "none of the labels")
                + f": {known}",
                path=path,
                code="unknown-segment",
                next_step="Rename it where it is named (the segment in 3D Slicer, dataset.json) to "
                "one of these, or remove it.",
            )
        found[segment.value] = labels[0]
    return found


def _labels_named(
    name: str, names: Mapping[int, str], meanings: Mapping[int, Meaning | None]
) -> Sequence[int]:
    same = [number for number, other in names.items() if other.casefold() == name.casefold()]
    if same or (meaning := meaning_of(name)) is None:
        return same
    alike = [number for number in names if meanings.get(number) == meaning]
    on_side = [number for number in alike if side_of(names[number]) == side_of(name)]
    return alike if len(alike) == 1 else on_side


def _segment(entry: Mapping[str, str], path: Path) -> Segment:
    text = entry.get("LabelValue", "1")
    value = int(text) if re.fullmatch(r"\d{1,3}", text) else 0
    if not 1 <= value <= 255:
        raise _bad(f"its segment '{entry.get('Name', '')}' has the value {text[:20]!r}", path)
    return Segment(name=entry.get("Name", ""), value=value)


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-segment",
        next_step="Save the segmentation again in 3D Slicer.",
    )
