"""Write measures of labels as a DICOM structured report, TID 1500, with highdicom.

Each label of a DICOM Segmentation is a measurement group that refers to its segment and has its
tracking identifiers, by which later reports can follow it. Kidneys and lesions that are a part of a
segment are groups of their own, which refer to the same segment.

Source: DICOM PS3.16, TID 1500 (Measurement Report), TID 1411 (Volumetric ROI Measurements), TID
1419 (ROI Measurements), TID 310 (Measurement Properties).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from kidseg.io.dicom_header import derived_uid
from kidseg.io.dicom_source import SourceSeries
from kidseg.io.dicomseg import DESCRIPTION, SERIES_NUMBERS, concept, deriving, equipment_of
from kidseg.io.origin import Origin
from kidseg.io.terms import Term, side_code, term_of
from kidseg.labels import LabelSchema
from kidseg.meaning import Side

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["CODED", "Reported", "Value", "write_measurement_report"]


class Value(Protocol):
    """A measured value with its interval, such as `kidseg.measure.quantity.Quantity`."""

    @property
    def name(self) -> str:
        """What was measured; see `CODED`."""

    @property
    def value(self) -> float:
        """In `unit`."""

    @property
    def unit(self) -> str:
        """In UCUM's notation."""

    @property
    def low(self) -> float | None:
        """Lower end of the interval; None if it is not known."""

    @property
    def high(self) -> float | None:
        """Upper end."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A measurement group of the report.

    Attributes:
        label: whose segment contains the structure.
        name: of the structure, such as "right kidney".
        side: on which it lies; None if it is not known, or both.
        is_whole: it is all of the segment, and has its tracking identifiers.
        is_partial: the scan cuts it off.
        values: what was measured; those without a code are left out.
    """

    label: int
    name: str
    side: Side | None
    is_whole: bool
    is_partial: bool
    values: Sequence[Value]


@dataclass(frozen=True, kw_only=True)
class _Coded:
    """A measure as DICOM names it, by keywords of `pydicom.sr.codedict`.

    Attributes:
        scheme, keyword: of the name.
        method: keyword of the measurement method in DCM; "" if the name says all.
    """

    scheme: str
    keyword: str
    method: str = ""


# Source: DICOM PS3.16, CID 7470 and 7472 (linear and volume measurements), CID 7474 (methods); the
# diameter between mid-points of edges of the voxels is that of the mesh of marching cubes.
CODED: Mapping[str, _Coded] = {
    "volume": _Coded(scheme="SCT", keyword="Volume", method="SumOfSegmentedVoxelMethodForVolume"),
    "ellipsoid volume": _Coded(
        scheme="DCM", keyword="VolumeOfEllipsoid", method="LWHMethodForVolumeOfEllipsoid"
    ),
    "longest diameter": _Coded(scheme="IBSI", keyword="Maximum3DDiameterOfAMesh"),
    "longest axial diameter": _Coded(scheme="SCT", keyword="LongAxis"),
    "width across it": _Coded(scheme="SCT", keyword="ShortAxis"),
    "height": _Coded(scheme="DCM", keyword="Height"),
}
"""The measures that a report can have, by the names of `kidseg.measure`."""

_UNITS = {"mL": "CubicCentimeter", "mm": "Millimeter"}  # CID 7462 has no millilitre


def write_measurement_report(
    reported: Sequence[Reported],
    segmentation: Dataset,
    schema: LabelSchema,
    source: SourceSeries,
    origin: Origin,
    file: BinaryIO,
) -> None:
    """Write a Comprehensive SR: preliminary, partial and unverified.

    Args:
        reported: at least one, of labels with voxels.
        segmentation: of all labels; see `write_dicom_segmentation` (binary).
        schema: of the labels.
        source: the series that was segmented.
        origin: of the labels.
        file: to write to.

    Raises:
        InputError: "dicom-refused": the headers of the series are not valid enough.
    """
    with deriving(source.path, source.headers):
        report = _report(reported, segmentation, schema, source, origin)
        report.save_as(file, enforce_file_format=True)


def _report(
    reported: Sequence[Reported],
    segmentation: Dataset,
    schema: LabelSchema,
    source: SourceSeries,
    origin: Origin,
) -> Any:
    from highdicom import UID
    from highdicom.sr import ComprehensiveSR, MeasurementReport
    from pydicom.sr.codedict import codes

    ordered = sorted(schema.labels, key=lambda label: label.id)
    segments = {label.id: (k, label) for k, label in enumerate(ordered, start=1)}
    groups = []
    for each in reported:
        number, label = segments[each.label]
        groups.append(_group(each, segmentation, number, term_of(label, schema), source, origin))
    content = MeasurementReport(
        observation_context=_observer(origin),
        procedure_reported=(
            codes.LN.MRIUnspecifiedBodyRegion
            if source.headers[0].get("Modality") == "MR"
            else codes.LN.CTUnspecifiedBodyRegion
        ),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return ComprehensiveSR(
        evidence=[segmentation, *source.headers],
        content=content[0],
        series_instance_uid=UID(),
        series_number=SERIES_NUMBERS["report"],
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="kidseg",
        manufacturer_model_name="kidseg",
        software_versions=origin.version,
        contributing_equipment=[equipment_of(origin)],
        series_description=DESCRIPTION,
        specific_character_set="ISO_IR 192",
    )


def _observer(origin: Origin) -> Any:
    """The device that measured."""
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes

    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=derived_uid("device", origin.version, origin.model_sha256),
                name="kidseg (research use only)",
                manufacturer_name="kidseg",
                model_name=f"kidseg {origin.version}",
                serial_number=origin.model_sha256 or "none",
            ),
        )
    )


def _group(
    reported: Reported,
    segmentation: Dataset,
    number: int,
    term: Term,
    source: SourceSeries,
    origin: Origin,
) -> Any:
    """The measures of a segment, or of a part of it."""
    from highdicom.sr import (
        AlgorithmIdentification,
        FindingSite,
        QualitativeEvaluation,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from pydicom.sr.codedict import codes

    side = term.side if reported.side is None else side_code(reported.side)
    algorithm = None
    if origin.method:
        algorithm = AlgorithmIdentification(
            name=f"kidseg {origin.method}",
            version=origin.version,
            parameters=[f"{name} {value}" for name, value in origin.hashes.items()],
        )
    incomplete = QualitativeEvaluation(
        name=codes.DCM.QualityFinding, value=codes.DCM.AnatomyCoverageIncomplete
    )
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(reported, segmentation.SegmentSequence[number - 1], source),
        referenced_segment=_referenced(segmentation, number, source),
        finding_category=concept(term.category),
        finding_type=concept(term.kind),
        algorithm_id=algorithm,
        finding_sites=[
            FindingSite(
                anatomic_location=concept(term.region or term.kind),
                laterality=None if side is None else concept(side),
            )
        ],
        measurements=[
            _measurement(value, origin) for value in reported.values if value.name in CODED
        ],
        qualitative_evaluations=[incomplete] if reported.is_partial else None,
    )


def _referenced(segmentation: Dataset, number: int, source: SourceSeries) -> Any:
    """The segment, and the images that its frames were made from; else all of the series.

    `ReferencedSegment.from_segmentation` fails where there is one segment only, which is stated
    once for all frames, and names one frame of a multi-frame image only.
    """
    from highdicom.sr import ReferencedSegment, SourceImageForSegmentation

    (shared,) = segmentation.SharedFunctionalGroupsSequence
    frames_of = defaultdict[tuple[str, str], list[int]](list)
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        own = frame if "SegmentIdentificationSequence" in frame else shared
        if own.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        for derivation in frame.get("DerivationImageSequence") or []:
            (image,) = derivation.SourceImageSequence
            at = image.get("ReferencedFrameNumber")
            key = image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID
            frames_of[key] += [] if at is None else [int(at)]
    if not frames_of:  # slices of a repaired series
        frames_of |= {(one.SOPClassUID, one.SOPInstanceUID): [] for one in source.headers}
    return ReferencedSegment(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        segment_number=number,
        source_images=[
            SourceImageForSegmentation(kind, uid, referenced_frame_numbers=sorted(frames) or None)
            for (kind, uid), frames in frames_of.items()
        ],
    )


def _tracking(reported: Reported, segment: Dataset, source: SourceSeries) -> Any:
    """The identifiers of the segment, or others of a part of it."""
    from highdicom.sr import TrackingIdentifier

    if reported.is_whole:
        return TrackingIdentifier(uid=segment.TrackingUID, identifier=segment.TrackingID)
    series = str(source.headers[0].SeriesInstanceUID)
    return TrackingIdentifier(
        uid=derived_uid("tracking", series, segment.TrackingID, reported.name),
        identifier=f"{reported.name} (part of {segment.TrackingID})",
    )


def _measurement(value: Value, origin: Origin) -> Any:
    """A number with its unit, method, and what it may be larger and smaller by."""
    from highdicom.sr import (
        AlgorithmIdentification,
        Measurement,
        MeasurementProperties,
        NumContentItem,
        RelationshipTypeValues,
    )
    from pydicom.sr.codedict import codes

    coded, unit = CODED[value.name], getattr(codes.UCUM, _UNITS[value.unit])
    properties = MeasurementProperties()
    ends = (
        (codes.SCT.RangeOfUpperMeasurementUncertainty, value.high),
        (codes.SCT.RangeOfLowerMeasurementUncertainty, value.low),
    )
    for name, end in ends:
        if end is not None:  # highdicom has it without a unit
            properties.append(
                NumContentItem(
                    name=name,
                    value=_decimal(abs(end - value.value)),
                    unit=unit,
                    relationship_type=RelationshipTypeValues.HAS_PROPERTIES,
                )
            )
    return Measurement(
        name=getattr(getattr(codes, coded.scheme), coded.keyword),
        value=_decimal(value.value),
        unit=unit,
        method=getattr(codes.DCM, coded.method) if coded.method else None,
        properties=properties,
        algorithm_id=AlgorithmIdentification(name="kidseg measure", version=origin.version),
    )


def _decimal(value: float) -> float:
    """Rounded to what a decimal string (DS) of 16 characters holds, and no more than is known."""
    return round(value, 4)
