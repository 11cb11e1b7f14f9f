"""Image Type: slices as they were reconstructed, and everything else that CT consoles store."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_files import assign, refused, series
from kidseg.io.dicom import read_series
from kidseg.io.dicom_image_type import EXCLUDED, SAID, excluded_by, image_type_table


@pytest.mark.row(19)
@pytest.mark.parametrize("kind", EXCLUDED)
def test_what_is_no_scan_is_refused_alone_and_ignored_beside_one(tmp_path: Path, kind: str) -> None:
    word = EXCLUDED[kind][0]
    alone = series(tmp_path / "alone", edit=assign("ImageType", ["DERIVED", "SECONDARY", word]))
    assert kind in refused(alone, code="not-a-scan")
    both = series(tmp_path / "both" / "ct", uid="1.2.4").parent
    series(both / "other", edit=assign("ImageType", ["DERIVED", "SECONDARY", "AXIAL", f"X {word}"]))
    (finding,) = read_series(both).findings
    assert finding.code == "ignored-series" and kind in finding.cause


@pytest.mark.row(19)
@pytest.mark.parametrize("what", SAID)
def test_what_was_computed_from_a_scan_is_read_and_said(tmp_path: Path, what: str) -> None:
    code, consequence, words = SAID[what]
    value = ["DERIVED", "PRIMARY", "AXIAL", words[0]]
    (finding,) = read_series(series(tmp_path, edit=assign("ImageType", value))).findings
    assert finding.code == code
    assert what in finding.cause and consequence in finding.cause and words[0] in finding.cause


@pytest.mark.parametrize(
    "value",
    [
        ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 MON"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"],
        ["DERIVED", "SECONDARY", "AXIAL"],
        ["DERIVED", "PRIMARY"],
        ["ORIGINAL", "PRIMARY", "AXIAL", "MIPS"],
    ],
)
def test_slices_as_reconstructed_anonymised_or_compressed_are_read_in_silence(
    tmp_path: Path, value: list[str]
) -> None:
    assert not excluded_by("\\".join(value))
    assert not read_series(series(tmp_path, edit=assign("ImageType", value))).findings


def test_the_page_has_the_table() -> None:
    page = Path(__file__).parents[1] / "docs" / "dicom_odd.md"
    assert "\n".join(image_type_table()) in page.read_text(encoding="utf-8")
