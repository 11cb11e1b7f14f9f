"""Which inputs formats need besides the labels: a DICOM series, the scan, facts of the patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kidseg.errors import UsageError
from kidseg.io.label_formats import FORMATS, check_formats
from kidseg.measure.criteria import entered_facts, read_criteria
from kidseg.measure.measuring import Request
from kidseg.measure.person import Patient
from kidseg.report.templates import check_viewer

__all__ = ["check_formats_and_series", "shown_scan"]


def check_formats_and_series(formats: Sequence[str], series: str | Path | None) -> None:
    """Check that the formats can be written of labels, with this series or without one.

    Raises:
        UsageError: "no-formats", "unknown-format", "missing-extra", "no-probabilities",
            "series-required", "series-unused".
    """
    if not formats:
        raise UsageError(
            "no formats are given", code="no-formats", next_step="Name at least one: --formats."
        )
    check_formats(formats)
    if unknown := [name for name in formats if FORMATS[name].needs_entropy]:
        raise UsageError(
            f"{', '.join(unknown)} shows probabilities, which labels do not have",
            code="no-probabilities",
            next_step="Request it when the scan is segmented: kidseg segment --formats.",
        )
    wanting = [name for name in formats if FORMATS[name].needs_series]
    if wanting and series is None:
        raise UsageError(
            f"{', '.join(wanting)} refers to the images of a DICOM series, and none is given",
            code="series-required",
            next_step="Give its folder: --series DICOM",
        )
    if series is not None and not any(
        FORMATS[n].needs_series or FORMATS[n].is_page for n in formats
    ):
        raise UsageError(
            "none of the formats refers to a DICOM series",
            path=series,
            code="series-unused",
            next_step="Leave --series out, or request dicomseg, labelmap or rtstruct.",
        )


def shown_scan(
    formats: Sequence[str], series: str | Path | None, ct: str | Path | None, known: Request
) -> Path | None:
    """The scan that a report shows; None without a report.

    Raises:
        UsageError: "scan-required", "scan-unused", "facts-unused", "bad-entered"; see
            `kidseg.report.templates.check_viewer`.
    """
    found = ct or series
    if not any(FORMATS[name].is_page for name in formats):
        if known.person != Patient() or known.entered:
            raise UsageError(
                "none of the formats says what is known of the patient",
                code="facts-unused",
                next_step="Leave these facts out, or request html.",
            )
        if ct is None:
            return None
        raise UsageError(
            "none of the formats shows the scan",
            path=ct,
            code="scan-unused",
            next_step="Leave --ct out, or request html.",
        )
    if found is None:
        raise UsageError(
            "html shows the scan with its labels, and no scan is given",
            code="scan-required",
            next_step="Give it: --ct SCAN",
        )
    entered_facts(known.entered, read_criteria(known.criteria))
    check_viewer()
    return Path(found)
