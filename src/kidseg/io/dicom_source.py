"""The images of a DICOM series as a derived object refers to them: headers without pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kidseg.errors import Finding, InputError, KidsegError, renamed
from kidseg.geometry import Grid
from kidseg.io import ReadOptions, kind_of
from kidseg.io.dicom import Acquired, acquired, with_options
from kidseg.io.dicom_grids import even_grid
from kidseg.io.dicom_header import reading
from kidseg.io.dicom_patient import complete, without_invalid
from kidseg.io.orientation import ras_from_lps

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["EXPORT_AGAIN", "SourceSeries", "file_name", "read_source"]

EXPORT_AGAIN = "Export the series again, or request nii or seg.nrrd only."
"""What to do where no DICOM object can be derived from a series."""

_UIDS = {
    "StudyInstanceUID": "study_uid",
    "SeriesInstanceUID": "series_uid",
    "FrameOfReferenceUID": "frame_of_reference_uid",
}
_SAME_SLICE_MM = 0.05
_GROUPS = ("PlaneOrientationSequence", "PixelMeasuresSequence")


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceSeries:
    """The series that labels belong to.

    Attributes:
        path: file or folder.
        headers: pydicom data sets without pixels: one for each single-frame image, in the order of
            the slices, or one multi-frame image.
        native: the grid on which labels are written; the repaired one of a repaired series.
        is_acquired: the slices of the grid are exactly the images, or all frames of the file.
        positions_mm: (images or frames, 3) LPS positions of the acquired slices, in order.
        frames: of each of them, the index of its frame in its file.
        findings: of reading the headers.
    """

    path: Path
    headers: tuple[Dataset, ...]
    native: Grid
    is_acquired: bool
    positions_mm: np.ndarray
    frames: tuple[int, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def lps_from_index(self) -> np.ndarray:
        """(4, 4) LPS mm of an index (slice, row, column) of the grid."""
        return np.asarray(ras_from_lps @ self.native.mm_from_index.numpy())

    def image_at(self, place_mm: np.ndarray) -> int | None:
        """Index of the image or frame in the plane of a LPS position; None if there is none."""
        matrix = self.lps_from_index
        normal = np.cross(matrix[:3, 2], matrix[:3, 1])
        apart = np.abs((self.positions_mm - place_mm) @ (normal / np.linalg.norm(normal)))
        nearest = int(apart.argmin())
        return nearest if apart[nearest] <= _SAME_SLICE_MM else None

    @property
    def is_multiframe(self) -> bool:
        """Is it one file with many frames?"""
        return "NumberOfFrames" in self.headers[0]


def read_source(path: str | Path, options: ReadOptions) -> SourceSeries:
    """Read the headers of the series that `kidseg.io.read` reads with these options.

    Missing identifiers get the same placeholders as there.

    Args:
        path: a DICOM folder or file, or a zip of one.
        options: of reading.

    Raises:
        InputError: "no-dicom-series": the path is a scan of another format; "no-instance-uid",
            "mixed-series", "unsupported-source": no DICOM object can refer to its images; and
            those of `kidseg.io.dicom.read_series`.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind not in ("dicom", "zip"):
        raise InputError(
            f"it is a {kind} file; DICOM objects are written only for a DICOM series",
            path=path,
            code="no-dicom-series",
            next_step="Segment the DICOM series, or give it to kidseg convert with --ct.",
        )
    from kidseg.io.archive import extracted

    with extracted(path) if kind == "zip" else nullcontext(path) as place:
        try:
            source = _read(place, path, options)
        except KidsegError as error:
            raise renamed(error, str(place), str(path)) from error
    here = {"old": str(place), "new": str(path)}
    return replace(source, findings=tuple(_moved(f, **here) for f in source.findings))


def file_name(header: Dataset) -> str:
    """The name of the file that a header was read from."""
    return Path(str(getattr(header, "filename", "an image"))).name


def _moved(finding: Finding, old: str, new: str) -> Finding:
    """The same finding about another path."""
    return replace(
        finding, path=finding.path.replace(old, new), cause=finding.cause.replace(old, new)
    )


def _read(place: Path, path: Path, options: ReadOptions) -> SourceSeries:
    found = acquired(place, options)
    native = even_grid(found.stack, place) if found.is_repaired else found.native
    files = list(dict.fromkeys(plane.path for plane in found.stack.planes))
    headers = [_header(file) for file in files]
    _check(headers, path)
    findings = [*found.findings, *without_invalid(headers, path)]
    for header in headers:
        _complete(header, headers[0], found.identifiers)
        if "NumberOfFrames" not in header and not header.get("SliceThickness"):
            header.SliceThickness = f"{float(native.spacing_mm[0]):.6g}"
    return SourceSeries(
        path=path,
        headers=tuple(headers),
        native=with_options(native, path, options),
        is_acquired=_is_acquired(found, headers, options),
        positions_mm=found.stack.positions_mm,
        frames=tuple(plane.frame for plane in found.stack.planes),
        findings=tuple(findings),
    )


def _is_acquired(found: Acquired, headers: Sequence[Dataset], options: ReadOptions) -> bool:
    """Are the slices of the grid the images, neither repaired nor placed by the user?"""
    if found.is_repaired or options.spacing_mm is not None:
        return False
    count = sum(int(header.get("NumberOfFrames") or 1) for header in headers)
    return len(found.stack.planes) == count


def _header(file: Path) -> Dataset:
    from pydicom import dcmread

    with reading(file):
        header = dcmread(file, stop_before_pixels=True, force=True)
        header.decode()  # texts, by the character set of this file
    for name in ("SOPClassUID", "SOPInstanceUID"):  # removed by some anonymizers from one place
        if not header.get(name):
            setattr(header, name, header.file_meta.get(f"MediaStorage{name}", ""))
    return header


def _check(headers: Sequence[Dataset], path: Path) -> None:
    """Check that an object can refer to these images."""
    instances = {str(header.get("SOPInstanceUID", "")) for header in headers}
    if "" in instances or len(instances) < len(headers):
        raise InputError(
            "SOP Instance UIDs are missing or not unique: no object can refer to its images",
            path=path,
            code="no-instance-uid",
            next_step=EXPORT_AGAIN,
        )
    unknown = [file_name(header) for header in headers if not header.get("SOPClassUID")]
    if unknown:
        raise InputError(
            f"SOPClassUID (0008,0016) is missing in {unknown[0]}, so no object can refer to it",
            path=path,
            code="dicom-refused",
            next_step=EXPORT_AGAIN,
        )
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if len({str(header.get(name, "")) for header in headers}) > 1:
            raise InputError(
                f"its images differ in {name}; a DICOM object can refer to one series only",
                path=path,
                code="mixed-series",
                next_step=EXPORT_AGAIN,
            )
    frames = [header for header in headers if header.get("NumberOfFrames") is not None]
    grouped = all(h.get("SharedFunctionalGroupsSequence") for h in frames)
    if frames and (len(headers) > 1 or not grouped):
        what = f"{len(headers)} multi-frame files" if grouped else "a multi-frame file of old kind"
        raise InputError(
            f"it consists of {what}, to whose frames no DICOM object can refer",
            path=path,
            code="unsupported-source",
            next_step="Export the series as single images, or request nii or seg.nrrd only.",
        )


def _complete(header: Dataset, first: Dataset, identifiers: Mapping[str, str]) -> None:
    """Fill in what a derived object copies, and what all images must share exactly."""
    complete(header)
    for name, known in _UIDS.items():
        if not header.get(name):
            setattr(header, name, identifiers[known])
    if "NumberOfFrames" not in header:
        header.ImageOrientationPatient = first.ImageOrientationPatient
        return
    shared = header.SharedFunctionalGroupsSequence[0]
    one = header.PerFrameFunctionalGroupsSequence[0]
    for name in _GROUPS:
        if name not in shared and name in one:
            setattr(shared, name, getattr(one, name))
