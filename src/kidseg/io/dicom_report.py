"""Write measures of labels as a DICOM structured report, TID 1500, with highdicom.

Each label of a DICOM Segmentation is a measurement group that refers to its segment and has its
tracking identifiers, by which later reports can follow it.

Source: DICOM PS3.16, TID 1500 (Measurement Report), TID 1411 (Volumetric ROI Measurements).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from kidseg.geometry import Volume
from kidseg.io.dicom_header import derived_uid, quiet
from kidseg.io.dicom_source import SourceSeries
from kidseg.io.dicomseg import DESCRIPTION, SERIES_NUMBERS, concept, equipment_of, refused
from kidseg.io.origin import Origin
from kidseg.io.terms import Term, term_of
from kidseg.labels import Code, LabelSchema

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Measure", "volumes_of", "write_measurement_report"]

_VOLUME = Code(value="118565006", scheme="SCT", meaning="Volume")
_CUBIC_CENTIMETRE = Code(value="cm3", scheme="UCUM", meaning="cubic centimeter")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that was measured, with its coded name and unit."""

    name: Code
    value: float
    unit: Code


def volumes_of(labels: Volume, schema: LabelSchema) -> dict[int, list[Measure]]:
    """{label: its volume, counted in voxels}, of the labels that occur."""
    voxel_ml = float(labels.grid.voxel_ml)
    counts = {number: int((labels.data == number).sum()) for number in schema.ids}
    return {
        number: [Measure(name=_VOLUME, value=round(n * voxel_ml, 4), unit=_CUBIC_CENTIMETRE)]
        for number, n in counts.items()
        if n
    }


def write_measurement_report(
    measures: Mapping[int, Sequence[Measure]],
    segmentation: Dataset,
    schema: LabelSchema,
    source: SourceSeries,
    origin: Origin,
    file: BinaryIO,
) -> None:
    """Write a Comprehensive SR: preliminary, partial and unverified.

    Args:
        measures: {label: what was measured}, of labels with voxels; at least one label.
        segmentation: of all labels; see `write_dicom_segmentation` (binary).
        schema: of the labels.
        source: the series that was segmented.
        origin: of the labels.
        file: to write to.

    Raises:
        InputError: "dicom-refused": the headers of the series are not valid enough.
    """
    try:
        with quiet():
            report = _report(measures, segmentation, schema, source, origin)
            report.save_as(file, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise refused(error, source.path) from error


def _report(
    measures: Mapping[int, Sequence[Measure]],
    segmentation: Dataset,
    schema: LabelSchema,
    source: SourceSeries,
    origin: Origin,
) -> Any:
    from highdicom import UID
    from highdicom.sr import ComprehensiveSR, MeasurementReport
    from pydicom.sr.codedict import codes

    ordered = sorted(schema.labels, key=lambda label: label.id)
    groups = [
        _group(
            measures[label.id],
            segmentation,
            number,
            term_of(label, schema),
            origin,
        )
        for number, label in enumerate(ordered, start=1)
        if label.id in measures
    ]
    content = MeasurementReport(
        observation_context=_observer(origin),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
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
    measures: Sequence[Measure], segmentation: Dataset, number: int, term: Term, origin: Origin
) -> Any:
    """The measures of a segment."""
    from highdicom.sr import (
        AlgorithmIdentification,
        FindingSite,
        Measurement,
        ReferencedSegment,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    segment = segmentation.SegmentSequence[number - 1]
    site = term.region or term.kind
    algorithm = None
    if origin.method:
        algorithm = AlgorithmIdentification(
            name=f"kidseg {origin.method}",
            version=origin.version,
            parameters=[f"{name} {value}" for name, value in origin.hashes.items()],
        )
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=segment.TrackingUID, identifier=segment.TrackingID
        ),
        referenced_segment=ReferencedSegment.from_segmentation(segmentation, number),
        finding_category=concept(term.category),
        finding_type=concept(term.kind),
        algorithm_id=algorithm,
        finding_sites=[
            FindingSite(
                anatomic_location=concept(site),
                laterality=None if term.side is None else concept(term.side),
            )
        ],
        measurements=[
            Measurement(name=concept(measure.name), value=measure.value, unit=concept(measure.unit))
            for measure in measures
        ],
    )
