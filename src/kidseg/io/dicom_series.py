"""Group DICOM images by series and volume, and check what the images of a volume share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from kidseg.errors import Finding, InputError
from kidseg.io.dicom_evidence import differences
from kidseg.io.dicom_frames import Image, Plane
from kidseg.io.dicom_header import derived_uid
from kidseg.io.dicom_phases import compare_parts
from kidseg.io.dicom_volumes import Piece, split_volumes

__all__ = ["Series", "check_consistent", "group_series", "identity", "series_facts", "spread"]

_MIN_STACK = 3  # slices
_MIN_UNNUMBERED = 4  # series without a common number, before they are taken for one series
_SAME_DIRECTION = 1e-4
_SAME_PLACE_MM = 0.011
_EVEN = 0.01  # fraction of the slice distance
_NAMED = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """Images of one kind that share a Series Instance UID and form one volume.

    Attributes:
        uid: Series Instance UID, "" if missing or different in the images.
        number: Series Number, as text.
        description: Series Description.
        modality: "CT", "MR", ...; "" if not stated.
        images: its files.
        kind: "volume", or another kind: "localiser", "segmentation", ...
        planes: its image planes; those of a multi-frame file may belong to several volumes.
        label: what distinguishes it from the other volumes of its series; "" if it is the only one.
        is_scattered: its images do not share a Series Instance UID.
        joined: what its interleaved parts differ in that were joined because they look alike.
        whole: the even stack that it is a part of, if the pixels do not tell the parts apart.
    """

    uid: str
    number: str
    description: str
    modality: str
    images: tuple[Image, ...]
    kind: str
    planes: tuple[Plane, ...] = field(repr=False)
    label: str = ""
    is_scattered: bool = False
    joined: str = ""
    whole: Series | None = field(default=None, repr=False)

    @property
    def n_images(self) -> int:
        """Number of image planes: files, or frames of multi-frame files."""
        return len(self.planes)


def group_series(images: Sequence[Image]) -> tuple[Series, ...]:
    """Group images by series, by kind within a series, and by volume; sorted by number."""
    groups: dict[tuple[str, str, str], list[Image]] = {}
    for image in images:
        key = (image.text("SeriesInstanceUID"), image.modality, image.excluded_kind)
        groups.setdefault(key, []).append(image)
    gathered, scattered = _set_apart(groups)
    found = []
    for (uid, _, kind), members in gathered.items():
        found += _volumes(uid, kind, members, is_scattered=False)
    for members in scattered:
        found += _volumes("", "", members, is_scattered=True)
    return tuple(sorted(found, key=lambda s: (s.number.zfill(8), s.uid, s.kind)))


def _volumes(uid: str, kind: str, members: Sequence[Image], *, is_scattered: bool) -> list[Series]:
    planes = [plane for image in members for plane in image.planes]
    planes.sort(key=lambda plane: (str(plane.path), plane.frame))
    if not kind and all(image.is_unplaced for image in members):
        kind = "images without position"
    pieces = [Piece(planes=tuple(planes))]
    if planes and not kind:
        pieces = split_volumes(planes, partial(compare_parts, members))
    wholes: dict[tuple[Plane, ...], Series] = {}

    def made(piece: Piece, whole: Series | None) -> Series:
        files = {plane.path for plane in piece.planes}
        inside = tuple(i for i in members if i.path in files or not i.planes)
        numbers = {image.text("SeriesNumber") for image in inside}
        one_number = len(numbers) == 1 or not is_scattered
        return Series(
            uid=uid,
            number=inside[0].text("SeriesNumber") if one_number else "",
            description=inside[0].text("SeriesDescription"),
            modality=inside[0].modality,
            images=inside,
            kind=kind or "volume",
            planes=piece.planes,
            label=piece.label,
            is_scattered=is_scattered,
            joined=piece.joined,
            whole=whole,
        )

    for piece in pieces:
        if piece.whole and piece.whole not in wholes:
            wholes[piece.whole] = made(Piece(planes=piece.whole), None)
    return [made(piece, wholes.get(piece.whole)) for piece in pieces]


def _set_apart(
    groups: dict[tuple[str, str, str], list[Image]],
) -> tuple[dict[tuple[str, str, str], list[Image]], list[list[Image]]]:
    """Set apart the images whose UIDs differ or are missing, but which form a stack together.

    None of their series is a stack by itself.
    """
    scattered: list[list[Image]] = []
    for number in (("SeriesNumber",), ()):
        common = (*number, "PatientID", "Modality", "Rows", "Columns", "PixelSpacing")
        alike: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
        for key, members in groups.items():
            planes = [plane for image in members for plane in image.planes]
            if not key[2] and planes and not _is_even(planes):
                alike.setdefault(tuple(map(members[0].text, common)), []).append(key)
        for keys in alike.values():
            images = [image for key in keys for image in groups[key]]
            planes = [plane for image in images for plane in image.planes]
            enough = len(keys) > 1 if number else len(keys) >= _MIN_UNNUMBERED
            if enough and all(
                _is_even(piece.planes)
                for piece in split_volumes(planes, partial(compare_parts, images))
            ):
                scattered.append(images)
                groups = {key: members for key, members in groups.items() if key not in keys}
    return groups, scattered


def _is_even(planes: Sequence[Plane]) -> bool:
    """Whether the planes are parallel and evenly spaced."""
    directions = [p.directions for p in planes if p.directions is not None]
    positions = [p.position_mm for p in planes if p.position_mm is not None]
    if not len(planes) == len(directions) == len(positions) >= _MIN_STACK:
        return False
    if np.abs(np.array(directions) - directions[0]).max() > _SAME_DIRECTION:
        return False
    gaps = np.diff(np.sort(np.array(positions) @ np.cross(directions[0][0], directions[0][1])))
    apart = float(gaps.mean())
    return apart > _SAME_PLACE_MM and bool(
        np.abs(gaps - apart).max() <= max(2 * _SAME_PLACE_MM, _EVEN * apart)
    )


# ---- what the images share ---------------------------------------------------------------------


def check_consistent(
    series: Series, path: Path, *, repair: bool
) -> tuple[tuple[int, int], tuple[Finding, ...]]:
    """Check that all images share a patient, a frame of reference and a size.

    Returns:
        (rows, columns), and findings on what differs.

    Raises:
        InputError: "mixed-patients"; "mixed-frames-of-reference", unless repair is on;
            "mixed-size", "empty-axis".
    """
    findings = []
    patients = {image.text("PatientID") for image in series.images}
    if len(patients - {""}) > 1 or (len(patients) > 1 and not repair):
        step = "Put each patient in a separate folder."
        if len(patients - {""}) == 1:
            step = "If they are one patient's, read them with --repair."
        raise InputError(
            f"its images differ in Patient ID: {spread(series.images, 'PatientID')}",
            path=path,
            code="mixed-patients",
            next_step=step,
        )
    frames = "FrameOfReferenceUID"
    if len({image.text(frames) for image in series.images}) > 1 and not repair:
        raise InputError(
            f"its images differ in Frame of Reference UID: {spread(series.images, frames)}; their"
            " positions cannot be compared",
            path=path,
            code="mixed-frames-of-reference",
            next_step="If they are one stack all the same, read them with --repair; otherwise "
            "put each acquisition in a separate folder.",
        )

    def compare(name: str, label: str, code: str) -> None:
        if len({image.text(name) for image in series.images}) > 1:
            stated = spread(series.images, name)
            cause = f"its images differ in {label}: {stated}; they were read as one stack"
            findings.append(Finding(code=code, path=str(path), cause=cause))

    compare("PatientID", "Patient ID", "repaired-patient")
    compare(frames, "Frame of Reference UID", "repaired-frame-of-reference")
    compare("StudyInstanceUID", "Study Instance UID", "mixed-studies")
    differing = differences(series.planes)
    if differing:
        cause = f"its slices differ in {'; '.join(differing)}"
        findings.append(Finding(code="mixed-settings", path=str(path), cause=cause))
    if series.joined:
        cause = (
            f"its slices belong to interleaved stacks ({series.joined}), but neighbours look like "
            "one anatomy; they were read as one volume"
        )
        findings.append(Finding(code="joined-stacks", path=str(path), cause=cause))
    return _size(series, path), tuple(findings)


def spread(images: Sequence[Image], name: str) -> str:
    """How many values an element has, in which files. The values may be personal."""
    groups: dict[str, list[str]] = {}
    for image in images:
        groups.setdefault(image.text(name), []).append(image.path.name)
    missing = groups.pop("", [])
    largest = sorted(groups.values(), key=len, reverse=True)
    if len(largest) > _NAMED:
        first = ", ".join(files[0] for files in largest[:_NAMED])
        said = [f"{len(largest)} different values in {len(images)} images ({first}, ...)"]
    else:
        said = [f"{'one' if not k else 'another'} in {_files(f)}" for k, f in enumerate(largest)]
    return ", ".join([*said, *([f"missing in {_files(missing)}"] if missing else [])])


def _files(names: Sequence[str]) -> str:
    return f"1 image ({names[0]})" if len(names) == 1 else f"{len(names)} images (first {names[0]})"


def _size(series: Series, path: Path) -> tuple[int, int]:
    groups: dict[tuple[str, str], list[str]] = {}
    for image in series.images:
        size = (image.text("Rows"), image.text("Columns"))
        groups.setdefault(size, []).append(image.path.name)
    for (rows, columns), names in groups.items():
        if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
            raise InputError(
                f"{len(names)} of {len(series.images)} images have {rows[:40] or 'no'} rows and"
                f" {columns[:40] or 'no'} columns, first {names[0]}",
                path=path,
                code="empty-axis",
                next_step="They are truncated or damaged: copy or export the series again.",
            )
    if len(groups) > 1:
        ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
        shown = ", ".join(f"{r} x {c} ({len(f)}x)" for (r, c), f in ordered[:5])
        raise InputError(
            f"images differ in size: {shown}, such as {ordered[-1][1][0]}",
            path=path,
            code="mixed-size",
            next_step="Put each reconstruction in a separate folder.",
        )
    ((rows, columns),) = groups
    return int(rows), int(columns)


_IDENTITY = {
    "PatientID": "patient_id",
    "StudyInstanceUID": "study_uid",
    "SeriesInstanceUID": "series_uid",
    "FrameOfReferenceUID": "frame_of_reference_uid",
}
_FACTS = {
    "PatientSex": "sex",
    "PatientAge": "age",
    "StudyDate": "study_date",
    "StudyDescription": "study_description",
    "SeriesNumber": "series_number",
    "SeriesDescription": "description",
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "model",
    "BodyPartExamined": "body_part",
    "PatientPosition": "patient_position",
    "ContrastBolusAgent": "contrast_agent",
    "ConvolutionKernel": "kernel",
    "KVP": "tube_voltage_kv",
    "SliceThickness": "slice_thickness_mm",
}


def identity(series: Series, path: Path) -> tuple[dict[str, str], tuple[Finding, ...]]:
    """The identifiers of a series. Missing ones get placeholders, which are reproducible.

    Returns:
        patient_id, study_uid, series_uid and frame_of_reference_uid; and a finding
        "missing-identity" that names the placeholders.
    """
    known = {name: _shared(series, name) for name in _IDENTITY}
    missing = [name for name, value in known.items() if not value]
    seeds = sorted(image.text("SOPInstanceUID") or image.path.name for image in series.images)
    for name in missing:
        known[name] = "unknown" if name == "PatientID" else derived_uid(name, *seeds)
    facts = {_IDENTITY[name]: value for name, value in known.items()}
    if not missing:
        return facts, ()
    cause = f"{', '.join(missing)} missing or different in the images; placeholders were used"
    return facts, (Finding(code="missing-identity", path=str(path), cause=cause),)


def _shared(series: Series, name: str) -> str:
    """The value that all images state; "" if they differ. A study or patient is named by any."""
    values = [image.text(name) for image in series.images]
    if name in ("PatientID", "StudyInstanceUID"):
        return next((value for value in values if value), "")
    return values[0] if len(set(values)) == 1 else ""


def series_facts(series: Series) -> dict[str, str]:
    """Other metadata in the header; missing elements are left out."""
    first = series.images[0]
    facts = {name: first.text(tag) for tag, name in _FACTS.items()}
    return {name: value for name, value in facts.items() if value}
