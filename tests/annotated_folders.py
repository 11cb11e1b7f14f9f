"""RT Structure Sets made by pydicom alone, for CT series made by `dicom_files`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import RTStructureSetStorage, generate_uid

from dicom_files import SPACING, blank, body, save, series

FIRST = np.array([-10.0, -20.0, 30.0])
"""Position of the first voxel of `dicom_files.series`."""


@dataclass(kw_only=True)
class Roi:
    """A structure: contours as (points, 3) LPS mm, or as text of Contour Data."""

    name: str
    contours: Sequence[np.ndarray | str] = ()
    kind: str = "CLOSED_PLANAR"
    volume_ml: float | None = None
    code: tuple[str, str] | None = None
    region: tuple[str, str] | None = None
    tracking_id: str = ""
    images: Sequence[str] = ()
    kinds: Sequence[str] = field(default_factory=list)


def circle(
    k: float,
    radius_mm: float = 5.0,
    centre_mm: tuple[float, float] = (0.0, -8.0),
    points: int = 80,
) -> np.ndarray:
    """A circle in the plane of a slice of an axial series, (points, 3) LPS mm."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x = centre_mm[0] + radius_mm * np.cos(angle)
    y = centre_mm[1] + radius_mm * np.sin(angle)
    return np.column_stack([x, y, np.full(points, FIRST[2] + SPACING[0] * k)])


def square(k: float, low: tuple[int, int], high: tuple[int, int]) -> np.ndarray:
    """Around the pixels low .. high - 1 (row, column) of a slice, half-way to the next."""
    rows = np.array([low[0], low[0], high[0], high[0]]) - 0.5
    columns = np.array([low[1], high[1], high[1], low[1]]) - 0.5
    return np.column_stack(
        [
            FIRST[0] + columns * SPACING[2],
            FIRST[1] + rows * SPACING[1],
            np.full(4, FIRST[2] + SPACING[0] * k),
        ]
    )


def headers_of(folder: Path) -> list[Dataset]:
    return [dcmread(file, stop_before_pixels=True) for file in sorted(folder.rglob("*.dcm"))]


def coded(code: tuple[str, str]) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code
    item.CodeMeaning = "-"
    return item


def structure_set(
    rois: Sequence[Roi], images: Sequence[Dataset] = (), *, frame: str = "1.2.9"
) -> Dataset:
    """A structure set on these images; without images it refers to nothing but the frame."""
    ds = blank(RTStructureSetStorage, "1.2.77", "RTSTRUCT")
    ds.SeriesInstanceUID = generate_uid()
    if images:
        for name in ("PatientID", "StudyInstanceUID"):
            ds[name] = images[0][name]
        frame = str(images[0].FrameOfReferenceUID)
    ds.FrameOfReferenceUID = frame
    ds.StructureSetLabel, ds.StructureSetDate = "SET", "20240102"
    of_frame, study, of_series = Dataset(), Dataset(), Dataset()
    of_frame.FrameOfReferenceUID = frame
    if images:
        of_series.SeriesInstanceUID = images[0].SeriesInstanceUID
        of_series.ContourImageSequence = [_reference(str(one.SOPInstanceUID)) for one in images]
        study.RTReferencedSeriesSequence = [of_series]
        of_frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [of_frame]
    ds.StructureSetROISequence = [_roi(k, roi, frame) for k, roi in enumerate(rois, start=1)]
    ds.ROIContourSequence = [_contours(k, roi, images) for k, roi in enumerate(rois, start=1)]
    ds.RTROIObservationsSequence = [_observed(k, roi) for k, roi in enumerate(rois, start=1)]
    return ds


def _roi(number: int, roi: Roi, frame: str) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName, item.ROIGenerationAlgorithm = number, roi.name, "MANUAL"
    item.ReferencedFrameOfReferenceUID = frame
    if roi.volume_ml is not None:
        item.ROIVolume = f"{roi.volume_ml:.6g}"
    return item


def _observed(number: int, roi: Roi) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType = ""
    if roi.code is not None:
        item.RTROIIdentificationCodeSequence = [coded(roi.code)]
    if roi.region is not None:
        item.AnatomicRegionSequence = [coded(roi.region)]
    if roi.tracking_id:
        item.TrackingID, item.TrackingUID = roi.tracking_id, generate_uid()
    return item


def _contours(number: int, roi: Roi, images: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = number
    item.ContourSequence = []
    for k, points in enumerate(roi.contours):
        contour = Dataset()
        contour.ContourGeometricType = roi.kinds[k] if roi.kinds else roi.kind
        if isinstance(points, str):
            contour.NumberOfContourPoints = (points.count("\\") + 1) // 3
            contour.add_new("ContourData", "DS", None)
            contour["ContourData"]._value = points  # as it is, whatever it says
        else:
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.4f}" for value in points.ravel()]
            near = [
                str(one.SOPInstanceUID)
                for one in images
                if "ImagePositionPatient" in one
                and abs(float(one.ImagePositionPatient[2]) - points[0, 2]) < 0.01
            ]
            uids = roi.images or near
            if uids:
                contour.ContourImageSequence = [_reference(uid) for uid in uids]
        item.ContourSequence.append(contour)
    return item


def _reference(uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    item.ReferencedSOPInstanceUID = uid
    return item


def annotated(
    folder: Path,
    rois: Sequence[Roi],
    *,
    uid: str = "1.2.3",
    patient: str = "P1",
    study: str = "1.2",
    date: str = "",
    name: str = "annotation.dcm",
) -> Path:
    """A CT series and a structure set on it, in two folders; returns the structure set's path."""

    def edit(ds: Dataset, _: int) -> None:
        ds.PatientID, ds.StudyInstanceUID = patient, study
        ds.PatientAge, ds.StudyDate = "004Y", date
        ds.FrameOfReferenceUID = f"{study}.9.{len(uid)}"

    series(folder / "images", body(crc32(f"{patient} {uid}".encode())), uid=uid, edit=edit)
    return save(structure_set(rois, headers_of(folder / "images")), folder / "objects" / name)
