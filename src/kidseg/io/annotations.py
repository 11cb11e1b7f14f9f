"""Find DICOM annotations, and read their structures as labels on the voxels of their series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kidseg.errors import Finding, InputError, first_error, quoted
from kidseg.geometry import Grid
from kidseg.io.contour_planes import Noticed
from kidseg.io.contour_voxels import voxels_inside
from kidseg.io.dicom import Acquired, acquired, with_options
from kidseg.io.dicom_grids import even_grid
from kidseg.io.dicom_header import files_in, read_object, reading
from kidseg.io.orientation import ras_from_lps
from kidseg.io.scan import ReadOptions, Scan, scan_of
from kidseg.io.seg_object import SEGMENTATIONS, read_segmentation, segment_voxels
from kidseg.io.structure_set import STRUCTURE_SET, StructureSet, read_structure_set
from kidseg.io.structures import Annotation, AnnotationObject, Part, Structure, StructureVolume

__all__ = [
    "VOLUME_DIFFERS",
    "annotation_files",
    "differs",
    "is_copy",
    "read_annotation",
    "read_object_head",
    "sop_class",
]

VOLUME_DIFFERS = 0.10
"""Voxels and ROI Volume that differ by more are a finding.

Source: in the annotations of the trials AREN0532, AREN0533 and AREN0534 on The Cancer Imaging
Archive the median difference is 4 %. Three voxels are allowed besides, for small lesions.
"""

_HEAD_BYTES = 4096
_VOXELS = 3


def annotation_files(root: Path) -> list[Path]:
    """The RT Structure Sets and Segmentations in a folder and its subfolders, by their first bytes.

    Raises:
        InputError: "not-found", "unreadable".
    """
    wanted = {STRUCTURE_SET, *SEGMENTATIONS}
    found = []
    for file in files_in(root):
        if sop_class(file) in wanted:
            found.append(file)
    return found


def sop_class(file: Path) -> str:
    """The SOP class in the first bytes of a file; "" if it has none, or is not DICOM.

    That of the meta information comes first.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(_HEAD_BYTES)
    except OSError:
        return ""  # whoever reads it says so
    if start[128:132] != b"DICM" and start[:2] not in (b"\x02\0", b"\x08\0"):
        return ""
    for tag in (b"\x02\0\x02\0", b"\x08\0\x16\0"):
        if (at := start.find(tag)) >= 0:
            is_explicit = start[at + 4 : at + 6] == b"UI"
            length = start[at + 6 : at + 8] if is_explicit else start[at + 4 : at + 8]
            value = start[at + 8 : at + 8 + int.from_bytes(length, "little")]
            return value.rstrip(b"\0 ").decode("latin-1")
    return ""


def read_object_head(path: Path) -> AnnotationObject:
    """What an annotation says, without voxels; errors as of `read_structure_set`,
    `read_segmentation`.
    """
    try:
        return read_structure_set(path).head
    except InputError as error:
        if error.code != "not-a-structure-set":
            raise
    return read_segmentation(path)


def is_copy(one: Path, other: Path) -> bool:
    """Whether two files are the same object, perhaps in another transfer syntax.

    Raises:
        InputError, ResourceError: see `read_object`.
    """
    with reading(one):
        if one.read_bytes() == other.read_bytes():
            return True
        return bool(read_object(one, with_pixels=True) == read_object(other, with_pixels=True))


def read_annotation(path: Path, annotation: Annotation, options: ReadOptions) -> Scan:
    """Read structures as labels on the voxels of their series, in canonical order.

    Where structures of different labels overlap, the higher label counts.

    Findings, besides those of `voxels_inside`: warnings "overlapping-structures",
    "empty-structure", "sparse-segment", "volume-differs".

    Args:
        path: of the first object, for messages.
        annotation: the structures, and the images on which they lie.
        options: of reading; those that the images are read with.

    Raises:
        InputError: the first error about a structure, see `voxels_inside`; those of
            `read_structure_set`, `segment_voxels` and, about the images, of
            `kidseg.io.dicom.acquired`.
    """
    of_images = replace(options, values="any", files=annotation.images)
    found = acquired(annotation.folder, of_images)
    native = even_grid(found.stack, annotation.folder) if found.is_repaired else found.native
    native = with_options(native, annotation.folder, options)
    place = _Place(grid=native, slice_of=_slices_of(found, native), frames=_frames_of(found))
    labels = _Labels(np.zeros(native.shape, np.uint8), float(native.voxel_ml))
    readers = {file: _reader(file, place) for file in annotation.objects}
    for part in sorted(annotation.parts, key=lambda part: part.label):
        structure, inside, noticed = readers[part.path](part.number)
        labels.add(part, structure, inside, noticed)
    findings = labels.findings
    if (error := first_error(findings)) is not None:
        raise error
    if labels.hidden_ml:
        cause = f"structures of different labels overlap in {labels.hidden_ml:.2f} ml; the later"
        cause += " label of the data set counts there"
        findings.append(Finding(code="overlapping-structures", path=str(path), cause=cause))
    scan = scan_of(
        torch.from_numpy(labels.data)[None],
        native,
        path=path,
        format="dicom",
        options=replace(options, values="labels"),
        modality="SEG",
        findings=findings,
    )
    return replace(scan, structures=tuple(labels.volumes))


@dataclass
class _Labels:
    """Labels to which structures are added, ordered by label, and what is said about these.

    Attributes:
        data: (slices, rows, columns).
        voxel_ml: volume of a voxel.
        hidden_ml: of structures, where later labels count.
        findings: about the structures.
        volumes: of the structures.
    """

    data: np.ndarray
    voxel_ml: float
    hidden_ml: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    volumes: list[StructureVolume] = field(default_factory=list)

    def add(self, part: Part, structure: Structure, inside: np.ndarray, noticed: Noticed) -> None:
        """Add a structure: its voxels, what was noticed when they were read, and its volume."""
        if not inside.any():
            noticed.warn(
                "empty-structure",
                "it has no contours or voxels; it was taken to be absent",
                "If it is there, complete its annotation.",
            )
        before = self.data[inside]
        if twice := int((before == part.label).sum()):
            noticed.warn(
                "overlapping-structures",
                f"it shares {twice * self.voxel_ml:.2f} ml ({twice / before.size:.0%} of it) with"
                " others of the same label",
                "If they are drawings of one body, leave the others out by a rule.",
            )
        self.hidden_ml += float(((before > 0) & (before != part.label)).sum()) * self.voxel_ml
        self.data[inside] = part.label
        self.findings += noticed.findings
        volume = StructureVolume(
            path=str(part.path),
            name=structure.name,
            label=part.label,
            voxels_ml=float(inside.sum()) * self.voxel_ml,
            stored_ml=structure.stored_ml,
        )
        self.volumes.append(volume)
        self.findings += _compared(volume, self.voxel_ml)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """The grid of a series, {SOP Instance UID: slice}, and its frames of reference."""

    grid: Grid
    slice_of: Mapping[str, int]
    frames: frozenset[str]


def _reader(file: Path, place: _Place) -> partial[tuple[Structure, np.ndarray, Noticed]]:
    """Reads one structure of a file; of a large file only the voxels of one are in memory."""
    try:
        return partial(_contoured, read_structure_set(file), place)
    except InputError as error:
        if error.code != "not-a-structure-set":
            raise
    return partial(_segmented, read_segmentation(file), place)


def _contoured(
    source: StructureSet, place: _Place, number: int
) -> tuple[Structure, np.ndarray, Noticed]:
    structure = _numbered(source.head, number)
    noticed = Noticed(path=source.head.path, name=structure.name)
    frame = structure.frame_of_reference
    if frame and place.frames and frame not in place.frames:
        noticed.error(
            "other-frame-of-reference",
            "its coordinates are those of another frame of reference than the images",
            "Export it on these images, or leave it out by a rule.",
        )
    contours = source.contours.get(number, ())
    inside = voxels_inside(contours, place.grid, noticed, place.slice_of)
    return structure, inside, noticed


def _segmented(
    head: AnnotationObject, place: _Place, number: int
) -> tuple[Structure, np.ndarray, Noticed]:
    structure = _numbered(head, number)
    noticed = Noticed(path=head.path, name=structure.name)
    inside = segment_voxels(head.path, [number], place.grid)[number]
    apart = np.diff(np.flatnonzero(inside.any(axis=(1, 2))))
    if len(apart) > 1 and (every := int(np.median(apart))) > 1:
        noticed.warn(
            "sparse-segment",
            f"only one slice in {every} has voxels of it; those between were not filled",
            "If it was made on thicker slices, use the series of these.",
        )
    return structure, inside, noticed


def _frames_of(found: Acquired) -> frozenset[str]:
    name = "FrameOfReferenceUID"
    own = {image.text(name) for image in found.series.images}
    own |= {plane.fields.get(name, "") for plane in found.stack.planes}
    return frozenset(own - {""})


def _numbered(head: AnnotationObject, number: int) -> Structure:
    for structure in head.structures:
        if structure.number == number:
            return structure
    raise InputError(
        f"structure {number} is not there any more",
        path=head.path,
        code="bad-structure-set",
        next_step="The file has changed: run again.",
    )


def _slices_of(found: Acquired, native: Grid) -> dict[str, int]:
    """{SOP Instance UID: slice} of single-frame images."""
    uid_of = {image.path: image.text("SOPInstanceUID") for image in found.series.images}
    counts: dict[Path, int] = {}
    for plane in found.stack.planes:
        counts[plane.path] = counts.get(plane.path, 0) + 1
    places = torch.from_numpy(found.stack.positions_mm @ ras_from_lps[:3, :3].T)
    depths = native.index(places)[:, 0].tolist()
    return {
        uid_of[plane.path]: round(depth)
        for plane, depth in zip(found.stack.planes, depths, strict=True)
        if counts[plane.path] == 1 and uid_of.get(plane.path)
    }


def differs(ours_ml: float, stored_ml: float, allowed_ml: float = 0.0) -> bool:
    """Do volumes differ by more than `VOLUME_DIFFERS`?"""
    return abs(ours_ml - stored_ml) > VOLUME_DIFFERS * stored_ml + allowed_ml


def _compared(volume: StructureVolume, voxel_ml: float) -> list[Finding]:
    stored = volume.stored_ml
    if stored is None or not differs(volume.voxels_ml, stored, _VOXELS * voxel_ml):
        return []
    cause = (
        f"structure {quoted(volume.name)}: its voxels have {volume.voxels_ml:.2f} ml, but its file"
        f" states {stored:.4g} ml (ROI Volume), {volume.voxels_ml / stored - 1:+.0%}"
    )
    step = "Compare the labels with the contours in a viewer."
    return [Finding(code="volume-differs", path=volume.path, cause=cause, next_step=step)]
