"""Volumes of the structures of RT Structure Sets from their contours alone, without the images.

The volume of a structure is the area inside its contours, by the even-odd rule, times the distance
of their planes. That distance is told from the planes themselves, so of a structure in one plane,
or in unevenly spaced planes, the volume cannot be told.

Source: the sum of areas times spacing is Cavalieri's estimate (Gundersen and Jensen, J Microsc
1987).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kidseg.cases.annotated_series import short_digest
from kidseg.errors import Finding, InputError, KidsegError, UsageError
from kidseg.io.annotations import annotation_files, differs, sop_class
from kidseg.io.contour_planes import Noticed, PlaneContours, grouped, planes_of, usable
from kidseg.io.contour_voxels import note_overlaps
from kidseg.io.polygons import area_inside
from kidseg.io.structure_set import STRUCTURE_SET, StructureSet, read_structure_set
from kidseg.io.structures import Structure

__all__ = ["ContourVolume", "contour_volumes", "measure_contours", "structure_sets"]

Progress = Callable[[int, int], None]

_SAME_PLANE_MM = 0.2
_THINNEST_MM = 0.4  # closer planes with others missing between them are not those of slices
_PIXEL_MM = 0.5  # to tell whether contours overlap
_MULTIPLE_TOLERANCE = 0.05  # of the smallest distance: as for missing slices of a series
_NEAR_ML = 0.05  # volumes stated with one decimal differ by as much


@dataclass(frozen=True, kw_only=True)
class ContourVolume:
    """The volume of one structure.

    Attributes:
        path: of the structure set.
        patient: digest of the Patient ID; "" without one.
        time_point: of a clinical trial; "" if not stated.
        structure: number, name, side, tracking id, stored volume.
        n_contours: that enclose something.
        n_planes: in which they lie.
        spacing_mm: distance of the planes; None if it cannot be told.
        volume_ml: from the contours; None if it cannot be told.
        reason: why it cannot be told.
        findings: on the contours.
    """

    path: Path
    patient: str
    time_point: str
    structure: Structure
    n_contours: int
    n_planes: int
    spacing_mm: float | None
    volume_ml: float | None
    reason: str
    findings: tuple[Finding, ...]

    @property
    def difference(self) -> float | None:
        """Relative difference from the stored volume; None if one of them is missing."""
        stored = self.structure.stored_ml
        if stored is None or self.volume_ml is None:
            return None
        return self.volume_ml / stored - 1

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        one = self.structure
        return {
            "path": str(self.path),
            "patient": self.patient or None,
            "time_point": self.time_point or None,
            "number": one.number,
            "name": one.name,
            "label": one.label or None,
            "side": one.side,
            "counted": one.counted,
            "tracking_id": one.tracking_id or None,
            "tracking_uid": one.tracking_uid or None,
            "contours": self.n_contours,
            "planes": self.n_planes,
            "spacing_mm": _rounded(self.spacing_mm),
            "volume_ml": _rounded(self.volume_ml),
            "cannot_tell": self.reason or None,
            "stored_ml": one.stored_ml,
            "difference": _rounded(self.difference),
            "findings": [finding.as_dict() for finding in self.findings],
        }


def structure_sets(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files to measure: files as they are, of folders all RT Structure Sets in them.

    Raises:
        InputError: "not-found", "unreadable"; "no-structure-sets": a folder has none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        files = [file for file in annotation_files(path) if sop_class(file) == STRUCTURE_SET]
        if not files:
            raise InputError(
                "it contains no RT Structure Set",
                path=path,
                code="no-structure-sets",
                next_step="Name a file, or a folder of files, with Modality RTSTRUCT.",
            )
        found |= dict.fromkeys(files)
    return tuple(found)


def measure_contours(
    paths: Sequence[Path], progress: Progress | None = None
) -> tuple[tuple[ContourVolume, ...], list[tuple[Path, KidsegError]]]:
    """The volumes of all structures of several files, and the files that cannot be read.

    Args:
        paths: files and folders.
        progress: called with (done, total) after each file.

    Raises:
        UsageError: "no-input".
        InputError: see `structure_sets`.
    """
    if not paths:
        raise UsageError("no file was named", code="no-input", next_step="Name RTSTRUCT files.")
    files = structure_sets(paths)
    volumes: list[ContourVolume] = []
    failed: list[tuple[Path, KidsegError]] = []
    for done, file in enumerate(files, start=1):
        try:
            volumes += contour_volumes(file)
        except KidsegError as error:
            failed.append((file, error))
        if progress is not None:
            progress(done, len(files))
    return tuple(volumes), failed


def contour_volumes(path: Path) -> tuple[ContourVolume, ...]:
    """The volume of each structure of an RT Structure Set.

    Findings of a structure: those of `usable`, `planes_of`; warnings "contour-gap",
    "denser-planes", "volume-differs".

    Raises:
        InputError, ResourceError: see `read_structure_set`.
    """
    source = read_structure_set(path)
    measured = [_planes(one, source) for one in source.head.structures]
    every = [plane.depth for _, planes, _ in measured for plane in planes]
    finest = _spacing(every)[0] if len(every) > 1 else None
    head = source.head
    patient = short_digest(f"patient {head.patient_id}") if head.patient_id else ""
    return tuple(
        _volume(structure, planes, noticed, finest, patient, head.time_point)
        for structure, (noticed, planes, _) in zip(head.structures, measured, strict=True)
    )


def _planes(
    structure: Structure, source: StructureSet
) -> tuple[Noticed, list[PlaneContours], np.ndarray]:
    """The planes of a structure, their depth in mm along the normal of its largest contour."""
    noticed = Noticed(path=source.head.path, name=structure.name)
    contours = usable(source.contours.get(structure.number, ()), noticed)
    if not contours:
        return noticed, [], np.eye(3)
    largest = max(contours, key=lambda one: float(np.ptp(one.points_mm, axis=0).max()))
    axes = _axes(largest.points_mm)
    matrix = np.eye(4)
    matrix[:3, :3] = axes
    placed = planes_of(contours, matrix, 1.0, noticed)
    planes = grouped(placed, _SAME_PLANE_MM)
    rings = {k: [ring / _PIXEL_MM for ring in plane.rings] for k, plane in enumerate(planes)}
    is_plain = any(contour.kind == "CLOSED_PLANAR" for contour in contours)
    note_overlaps(rings, noticed, is_plain=is_plain)
    return noticed, planes, axes


def _axes(points: np.ndarray) -> np.ndarray:
    """(3, 3) orthonormal rows, of which the first is the normal of the plane of the points.

    A normal within rounding of an axis of the patient is that axis.
    """
    _, _, found = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    normal = found[-1] * np.sign(found[-1][np.abs(found[-1]).argmax()])
    along = np.eye(3)[int(np.abs(normal).argmax())]
    if np.abs(normal - along).max() < 1e-3:
        normal = along
    second = np.cross(normal, np.eye(3)[int(np.abs(normal).argmin())])
    second /= np.linalg.norm(second)
    return np.array([normal, second, np.cross(normal, second)])


def _spacing(depths: Sequence[float]) -> tuple[float | None, int]:
    """The distance of planes, if all distances are multiples of one; and how many are missing."""
    gaps = np.diff(np.sort(depths))
    gaps = gaps[gaps > _SAME_PLANE_MM]
    if not len(gaps):
        return None, 0
    times = gaps / gaps.min()
    if np.abs(times - times.round()).max() > _MULTIPLE_TOLERANCE * max(1.0, float(times.max())):
        return None, 0
    spacing_mm, missing = float(gaps.sum() / times.round().sum()), int((times.round() - 1).sum())
    return (None, 0) if missing and spacing_mm < _THINNEST_MM else (spacing_mm, missing)


def _volume(
    structure: Structure,
    planes: Sequence[PlaneContours],
    noticed: Noticed,
    finest_mm: float | None,
    patient: str,
    time_point: str,
) -> ContourVolume:
    spacing_mm, missing = _spacing([plane.depth for plane in planes])
    reason = _why_not(planes, spacing_mm, noticed)
    volume_ml = None
    if not reason and spacing_mm is not None:
        volume_ml = sum(area_inside(plane.rings) for plane in planes) * spacing_mm / 1000
        _note(structure, volume_ml, spacing_mm, missing, finest_mm, noticed)
    return ContourVolume(
        path=noticed.path,
        patient=patient,
        time_point=time_point,
        structure=structure,
        n_contours=sum(len(plane.rings) for plane in planes),
        n_planes=len(planes),
        spacing_mm=spacing_mm,
        volume_ml=volume_ml,
        reason=reason,
        findings=tuple(noticed.findings),
    )


def _why_not(planes: Sequence[PlaneContours], spacing_mm: float | None, noticed: Noticed) -> str:
    errors = [finding for finding in noticed.findings if finding.severity == "error"]
    if errors:
        return errors[0].code.replace("-", " ")
    if not planes:
        return "no closed contours"
    if len(planes) == 1:
        return "one plane only: its thickness is not known"
    return "" if spacing_mm is not None else "its planes are unevenly spaced"


def _note(
    structure: Structure,
    volume_ml: float,
    spacing_mm: float,
    missing: int,
    finest_mm: float | None,
    noticed: Noticed,
) -> None:
    if missing:
        noticed.warn(
            "contour-gap",
            f"planes between its contours have none ({missing}); they were not filled",
            "If it is one body, complete its contours in the program that drew them.",
        )
    if finest_mm is not None and spacing_mm > 1.5 * finest_mm:
        noticed.warn(
            "denser-planes",
            f"its planes are {spacing_mm:.3g} mm apart, but those of the file {finest_mm:.3g} mm",
            "If it is drawn on some slices only, its volume is an estimate.",
        )
    stored = structure.stored_ml
    if stored is not None and differs(volume_ml, stored, _NEAR_ML):
        noticed.warn(
            "volume-differs",
            f"its contours enclose {volume_ml:.2f} ml, but the file states {stored:.4g} ml (ROI"
            f" Volume), {volume_ml / stored - 1:+.0%}",
            "Compare them with the images in a viewer.",
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
