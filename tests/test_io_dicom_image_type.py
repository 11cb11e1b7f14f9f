"""Image Type: slices as they were reconstructed, and everything else that CT consoles store."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import MRImageStorage

from dicom_files import assign, refused, series
from kidseg.errors import Finding
from kidseg.io.dicom import read_series
from kidseg.io.dicom_frames import Image
from kidseg.io.dicom_image_type import (
    EXCLUDED,
    SAID,
    excluded_by,
    image_type_findings,
    image_type_table,
)
from kidseg.io.scan import ReadOptions

EXCLUDING = [(kind, word) for kind, words in EXCLUDED.items() for word in words]
SAYING = [(what, word) for what, (_, _, words) in SAID.items() for word in words]


def spellings(word: str) -> list[str]:
    """A word of the table as consoles write it."""
    return [word.replace("_", between).replace("#", "70") for between in ("_", " ", "-", "")]


def findings(image_type: str, modality: str = "CT") -> list[Finding]:
    fields = {"ImageType": image_type, "Modality": modality}
    image = Image(path=Path("1.dcm"), syntax="", fields=fields, planes=(), odd={})
    return list(image_type_findings([image], Path("series")))


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


@pytest.mark.parametrize(("kind", "word"), EXCLUDING)
def test_every_word_of_what_is_no_scan_excludes_it_however_it_is_spelled(
    kind: str, word: str
) -> None:
    for spelled in spellings(word):
        for value in (spelled, f"X {spelled}", f"{spelled}_1", spelled.lower()):
            assert excluded_by(f"DERIVED\\PRIMARY\\AXIAL\\{value}") == kind, value
        assert not excluded_by(f"DERIVED\\PRIMARY\\AXIAL\\X{spelled}")


@pytest.mark.parametrize(("what", "word"), SAYING)
def test_every_word_of_what_was_computed_is_said_however_it_is_spelled(
    what: str, word: str
) -> None:
    for spelled in spellings(word):
        image_type = f"DERIVED\\PRIMARY\\AXIAL\\{spelled}"
        assert not excluded_by(image_type)
        (finding,) = findings(image_type)
        assert what in finding.cause and spelled in finding.cause


@pytest.mark.parametrize(
    "value",
    [
        *("IODINE_REMOVED", "IODINE REMOVED", "VNC_IODINE", r"MAT_REMOVED\IODINE", r"IODINE\VNC"),
        *("VIRTUAL_NONCONTRAST", "VIRTUAL NON-CONTRAST IODINE", "VIRTUALUNENHANCED"),
    ],
)
def test_an_image_with_iodine_taken_out_is_no_map_of_iodine(value: str) -> None:
    image_type = rf"DERIVED\PRIMARY\AXIAL\{value}"
    assert not excluded_by(image_type)
    (finding,) = findings(image_type)
    assert "a material was removed" in finding.cause
    assert excluded_by(image_type + r"\MAT_SPECIFIC") == "material map"


@pytest.mark.parametrize("value", ["IODINE", "IODINE_MAP", "IODINE_NO_WATER", r"MAT_SPECIFIC\VNC"])
def test_a_map_of_a_material_is_no_scan(value: str) -> None:
    assert excluded_by(rf"DERIVED\PRIMARY\AXIAL\{value}") == "material map"


@pytest.mark.parametrize(
    "value",
    [
        *("GSI MONO", "VIRTUAL_MONO", "MONO_70KEV", "MONO 70", "MONO70", "MONO+", "70KEV", "MONOE"),
        *("MONOENERGETIC", "MONOENERGETIC_PLUS", "GSI MONOCHROMATIC", "VMI_40KEV"),
    ],
)
def test_names_of_vendors_for_monoenergetic_images_are_said(value: str) -> None:
    (finding,) = findings(rf"DERIVED\PRIMARY\AXIAL\{value}")
    assert "virtual monoenergetic" in finding.cause


@pytest.mark.parametrize("word", ["SUBTRACTION", "QUANTITY", "PERFUSION", "MPR"])
def test_words_about_ct_say_nothing_of_other_modalities(tmp_path: Path, word: str) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        ds.SOPClassUID, ds.Modality = MRImageStorage, "MR"
        ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        ds.ImageType = ["DERIVED", "PRIMARY", "M", word]

    scan = read_series(series(tmp_path / "mr", edit=edit), ReadOptions(values="any"))
    assert scan.modality == "MR"
    assert {finding.code for finding in scan.findings}.isdisjoint({"derived-values", "reformatted"})
    for other, kind in (("LOCALIZER", "localiser"), ("MIP", "projection"), ("VRT", "rendering")):
        assert excluded_by(rf"ORIGINAL\PRIMARY\{word}\{other}", "MR") == kind


def test_an_iodine_map_without_the_table_is_one() -> None:
    assert excluded_by(r"DERIVED\PRIMARY\IODINE\TABLE_REMOVED") == "material map"


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
