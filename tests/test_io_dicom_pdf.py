"""A PDF as a DICOM object: what it is for, where it comes from, whose it is."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest

from kidseg.io.dicom_pdf import write_encapsulated_pdf
from labelled_series import ORIGIN, make_case

PDF = b"%PDF-1.4\n%%EOF\n"  # of an odd number of bytes


@pytest.mark.requirement("research use")
def test_it_says_what_it_is_and_where_it_comes_from(tmp_path: Path) -> None:
    source, _ = make_case(tmp_path, "axial")
    first, file = source.headers[0], io.BytesIO()
    write_encapsulated_pdf(PDF, first, ORIGIN, file)
    file.seek(0)
    found = pydicom.dcmread(file)
    assert "RESEARCH USE ONLY" in found.SeriesDescription
    assert "research use only" in found.DocumentTitle
    (equipment,) = found.ContributingEquipmentSequence
    assert equipment.Manufacturer == "kidseg" and equipment.SoftwareVersions == ORIGIN.version
    text = equipment.ContributionDescription
    assert "Research use only. Not a medical device." in text
    for digest in (ORIGIN.scan_sha256, ORIGIN.model_sha256):
        assert digest and digest in text
    for name in ("PatientID", "PatientName", "StudyInstanceUID"):
        assert found[name].value == first[name].value
    assert found.SeriesInstanceUID != first.SeriesInstanceUID
    assert len(PDF) % 2 == 1 and len(found.EncapsulatedDocument) == len(PDF) + 1
    assert found.EncapsulatedDocument[: found.EncapsulatedDocumentLength] == PDF
