"""The labels of a conversion, measured for DICOM SR and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.cases.air import air_findings
from kidseg.cases.label_names import NamedLabels
from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read
from kidseg.io.atomic import writing
from kidseg.io.content import sha256_of, sha256_of_all
from kidseg.io.label_writing import Exported
from kidseg.measure.label_reading import body_midline, labelled_on
from kidseg.measure.measuring import Request, measure_labelled, parts_of
from kidseg.measure.midline import estimated_midline
from kidseg.measure.parts import Labelled, Parts, tracked_lesions
from kidseg.report.scan_page import Content, write_report

__all__ = ["MeasuredLabels", "on_scan", "on_series"]


@dataclass(frozen=True, eq=False)
class MeasuredLabels:
    """Labels with what is measured of them.

    Attributes:
        labelled: the labels.
        parts: their structures.
        path: of the scan or series.
        scan: its voxels, (1, slices, rows, columns) HU; None: of a series that no page shows.
    """

    labelled: Labelled
    parts: Parts
    path: Path
    scan: Volume | None = None

    def write_page(
        self, path: Path, name: str, record: Mapping[str, Any], known: Request
    ) -> dict[str, Any]:
        """Write the page; how its view differs from the data.

        Args:
            path: of the file.
            name: of the case.
            record: of the conversion.
            known: of the patient.
        """
        assert self.scan is not None
        _, measurement = measure_labelled(self.labelled, known, parts=self.parts)
        segmented = self.labelled.record
        both = {
            **segmented,
            **record,
            "path": str(self.path),
            "scan_sha256": _digest(self.path),
            "labels_sha256": record["sha256"],
            "warnings": [*segmented.get("warnings", ()), *record["warnings"]],
        }
        content = Content(
            name=name,
            scan=self.scan,
            labels=self.labelled.labels,
            schema=self.labelled.schema,
            record=both,
            measured=measurement.as_dict(),
        )
        with writing(path) as file:
            return write_report(content, file)


def on_scan(
    exported: Exported, labels: Path, named: NamedLabels, scan: Path, options: ReadOptions
) -> MeasuredLabels:
    """The labels on the scan that a page shows, which is read once.

    Args:
        exported: the labels.
        labels: their file.
        named: meaning of their values.
        scan: a CT.
        options: of reading it.

    Raises:
        InputError: see `read` and `labelled_on`.
    """
    found = read(scan, replace(options, values="ct"))
    labelled = labelled_on(found, labels, exported.labels, named)
    return MeasuredLabels(labelled, parts_of(labelled), scan, found.volume)


def on_series(
    exported: Exported, labels: Path, named: NamedLabels, options: ReadOptions
) -> MeasuredLabels:
    """The labels on their series, whose voxels are read if it is CT, for the midline.

    Args:
        exported: the labels, with their series.
        labels: their file.
        named: meaning of their values.
        options: of reading the series.
    """
    schema, source = exported.schema, exported.source
    assert source is not None
    midline = estimated_midline(exported.labels, schema, is_cropped=False)
    findings: tuple[Finding, ...] = ()
    if source.headers[0].get("Modality") == "CT":
        scan = read(source.path, options).volume
        midline = body_midline(scan, exported.labels, schema)
        findings = air_findings(exported.labels, scan, schema, labels, source.path)
    labelled = Labelled(
        labels=exported.labels,
        schema=schema,
        midline=midline,
        path=labels,
        tracking=tracked_lesions(schema, named.numbered),
        findings=findings,
    )
    return MeasuredLabels(labelled, parts_of(labelled), source.path)


def _digest(scan: Path) -> str:
    return sha256_of_all([scan]) if scan.is_dir() else sha256_of(scan)
