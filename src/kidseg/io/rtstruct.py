"""Write labels as a DICOM RT Structure Set: closed planar contours on the slices of the series.

A contour runs half-way between the centres of the pixels inside and outside, so that exactly the
pixels inside have their centres in it. A hole is joined to its outer contour by a channel without
width (a keyhole), as DICOM demands of closed planar contours.

Source: DICOM PS3.3, A.19 (RT Structure Set IOD), C.8.8.5, C.8.8.6, C.8.8.8.
"""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from kidseg.geometry import Volume
from kidseg.io.dicom_source import SourceSeries
from kidseg.io.dicomseg import DESCRIPTION, SERIES_NUMBERS, deriving, long_string, segment_names
from kidseg.io.origin import Origin
from kidseg.io.terms import term_of
from kidseg.labels import Code, Label, LabelSchema

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["contours_of", "write_structure_set"]

_COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "IssuerOfPatientID"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName"),
    *("ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID"),
    *("ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID"),
    "ClinicalTrialTimePointDescription",
)
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as the IOD demands


def contours_of(inside: np.ndarray) -> list[np.ndarray]:
    """The closed contours of a slice, holes joined to their outer contours.

    Args:
        inside: (rows, columns) bool.

    Returns:
        Of each contour (points, 2) positions (row, column) in pixels; the last point is not the
        first.
    """
    from contourpy import contour_generator

    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return []
    box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = np.array([rows[0], columns[0]]) - 1.0
    padded = np.pad(box, 1).astype(np.float64)
    filled = contour_generator(z=padded, fill_type="OuterOffset").filled(0.5, 2.0)
    found = []
    for points, offsets in zip(*filled, strict=True):
        rings = [_without_collinear(points[a : b - 1, ::-1] + corner) for a, b in pairwise(offsets)]
        found.append(_joined(rings))
    return found


def _without_collinear(ring: np.ndarray) -> np.ndarray:
    """The corners of a closed ring (points, 2)."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return np.asarray(ring[np.abs(turn) > 1e-9])


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """An outer ring and its holes as one contour.

    From the first point of the top of each hole a channel leads along its row to the nearest point
    before it. These rows lie between those of the pixels, so that no centre of a pixel is on a
    channel, where programs differ in what is inside. Sorted by their tops, the holes only meet the
    outer ring or holes that are joined already.
    """
    outer = rings[0]
    holes = [np.roll(hole, -np.lexsort((hole[:, 1], hole[:, 0]))[0], axis=0) for hole in rings[1:]]
    for hole in sorted(holes, key=lambda ring: (ring[0, 0], ring[0, 1])):
        row, column = hole[0]
        after = np.roll(outer, -1, axis=0)
        rise = after[:, 0] - outer[:, 0]
        crosses = (outer[:, 0] - row) * (after[:, 0] - row) < 0
        share = np.divide(row - outer[:, 0], rise, out=np.zeros(len(outer)), where=crosses)
        meets = outer[:, 1] + share * (after[:, 1] - outer[:, 1])
        is_before = (crosses | (outer[:, 0] == row)) & (meets < column)
        at = int(np.where(is_before, meets, -np.inf).argmax())
        here = np.array([[row, meets[at]]])
        outer = np.concatenate([outer[: at + 1], here, hole, hole[:1], here, outer[at + 1 :]])
    return outer


def write_structure_set(
    labels: Volume, schema: LabelSchema, source: SourceSeries, origin: Origin, file: BinaryIO
) -> None:
    """Write an RT Structure Set with a region of interest for each label; an empty one is empty.

    Args:
        labels: (1, slices, rows, columns) uint8 on `source.native`.
        schema: of the labels.
        source: the series that was segmented.
        origin: of the labels.
        file: to write to.

    Raises:
        InputError: "dicom-refused": the headers of the series are not valid enough.
    """
    with deriving(source.path, source.headers):
        _structure_set(labels, schema, source, origin).save_as(file, enforce_file_format=True)


def _structure_set(
    labels: Volume, schema: LabelSchema, source: SourceSeries, origin: Origin
) -> Dataset:
    from pydicom import Dataset

    dataset = _head(source, origin)
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    dataset.RTROIObservationsSequence = []
    values, names = labels.data[0].numpy(), segment_names(schema)
    for number, label in enumerate(sorted(schema.labels, key=lambda one: one.id), start=1):
        inside = values == label.id
        roi = Dataset()
        roi.ROINumber = number
        roi.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
        roi.ROIName = names[label.id]
        volume_ml = float(labels.grid.voxel_ml) * int(inside.sum())
        roi.ROIVolume = f"{volume_ml:.8g}"
        roi.ROIGenerationAlgorithm = origin.algorithm_type
        roi.ROIGenerationDescription = long_string(origin.notes)
        dataset.StructureSetROISequence.append(roi)
        contour = Dataset()
        contour.ROIDisplayColor = list(label.rgb)
        contour.ReferencedROINumber = number
        if inside.any():
            contour.ContourSequence = _contours(inside, source)
        dataset.ROIContourSequence.append(contour)
        dataset.RTROIObservationsSequence.append(_observation(number, label, schema))
    return dataset


def _head(source: SourceSeries, origin: Origin) -> Dataset:
    """The data set without its structures.

    Implicit VR: in explicit VR, a contour is limited to 65,534 bytes.
    """
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    now, first = datetime.now(), source.headers[0]
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    for name in _COPIED:
        if name in first:
            setattr(dataset, name, _copied(first.get(name)))
    dataset.InstanceCreationDate = dataset.SeriesDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.SeriesTime = now.strftime("%H%M%S")
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    dataset.SeriesNumber, dataset.SeriesDescription = SERIES_NUMBERS["rtstruct"], DESCRIPTION
    dataset.OperatorsName, dataset.PositionReferenceIndicator = "", ""
    dataset.Manufacturer = dataset.ManufacturerModelName = "kidseg"
    dataset.SoftwareVersions = origin.version
    dataset.ContributingEquipmentSequence = [_equipment(origin)]
    dataset.StructureSetLabel, dataset.StructureSetName = "KIDSEG", DESCRIPTION
    dataset.StructureSetDescription = origin.notes
    dataset.StructureSetDate = dataset.InstanceCreationDate
    dataset.StructureSetTime = dataset.InstanceCreationTime
    dataset.InstanceNumber, dataset.ApprovalStatus = 1, "UNAPPROVED"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.preamble = b"\0" * 128
    return dataset


def _copied(value: object) -> object:
    """A value to be encoded in the character set of the new object: text, or items."""
    from pydicom import Sequence
    from pydicom.multival import MultiValue

    if isinstance(value, Sequence):
        return deepcopy(value)
    if isinstance(value, MultiValue):
        return list(map(str, value))
    return "" if value is None else str(value)


def _equipment(origin: Origin) -> Dataset:
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    equipment = Dataset()
    purpose = codes.DCM.ProcessingEquipment
    equipment.PurposeOfReferenceCodeSequence = [
        _coded(Code(value=purpose.value, scheme=purpose.scheme_designator, meaning=purpose.meaning))
    ]
    equipment.Manufacturer = equipment.ManufacturerModelName = "kidseg"
    equipment.SoftwareVersions = origin.version
    equipment.ContributionDescription = origin.notes
    return equipment


def _coded(code: Code) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = code.value, code.scheme
    item.CodeMeaning = code.meaning
    return item


def _frame_of_reference(source: SourceSeries) -> Dataset:
    from pydicom import Dataset

    frame, study, series = Dataset(), Dataset(), Dataset()
    first = source.headers[0]
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_reference(header) for header in source.headers]
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence = [study]
    return frame


def _reference(header: Dataset, frame: int | None = None) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame + 1
    return item


def _contours(inside: np.ndarray, source: SourceSeries) -> list[Dataset]:
    """The contours of a structure, (slices, rows, columns) bool, slice by slice."""
    from pydicom import Dataset

    found = []
    for k in np.flatnonzero(inside.any(axis=(1, 2))):
        images = _images_at(int(k), source)
        for points in contours_of(inside[k]):
            item = Dataset()
            if images:
                item.ContourImageSequence = images
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(points)
            index = np.column_stack([np.full(len(points), float(k)), points, np.ones(len(points))])
            places = (index @ source.lps_from_index.T)[:, :3]
            item.ContourData = [f"{value:.4f}" for value in places.ravel()]
            found.append(item)
    return found


def _images_at(k: int, source: SourceSeries) -> list[Dataset]:
    """A reference to the image in the plane of a slice; none if there is no such image."""
    image = source.image_at((source.lps_from_index @ [k, 0.0, 0.0, 1.0])[:3])
    if image is None:
        return []
    if source.is_multiframe:
        return [_reference(source.headers[0], source.frames[image])]
    return [_reference(source.headers[image])]


def _observation(number: int, label: Label, schema: LabelSchema) -> Dataset:
    from pydicom import Dataset

    term = term_of(label, schema)
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIIdentificationCodeSequence = [_coded(term.kind)]
    item.RTROIInterpretedType = "ORGAN" if schema.meaning[label.id] == "kidney" else ""
    item.ROIInterpreter = ""
    return item
