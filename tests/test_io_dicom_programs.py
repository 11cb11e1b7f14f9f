"""DICOM objects in other programs: dcmtk reads them whole, dicom3tools finds them consistent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset

from kidseg.io.label_formats import label_files
from kidseg.io.label_writing import Exported, write_label_files
from labelled_series import KINDS, ORIGIN, SCHEMA, make_case, reported

pytestmark = pytest.mark.slow
FORMATS = ("dicomseg", "labelmap", "rtstruct", "sr")


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{package} is not installed (no {program})"
    )


def objects(folder: Path, kind: str) -> tuple[list[Path], Exported]:
    """All DICOM objects of labels on a series of this kind, and what was measured."""
    source, labels = make_case(folder / "ct", kind)
    exported = Exported(
        labels=labels, schema=SCHEMA, origin=ORIGIN, like=source.native, source=source
    )
    exported, _ = reported(exported, folder)
    made = folder / "made"
    made.mkdir()
    files = label_files("a", folder, FORMATS, SCHEMA)
    found = list(write_label_files(exported, files, made).files)
    assert len(found) == len(FORMATS)
    return found, exported


def said(*command: str | Path) -> str:
    """What a program prints; nothing about an error."""
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not re.search(r"^[EF]: |Error", run.stderr, re.MULTILINE), run.stderr
    return run.stdout


def plain(dataset: Dataset) -> dict[str, object]:
    """{tag: values as text, numbers, items or bytes}."""
    found: dict[str, object] = {}
    for element in dataset:
        if element.VR == "SQ":
            found[str(element.tag)] = [plain(item) for item in element.value]
        elif isinstance(element.value, bytes):
            found[str(element.tag)] = element.value
        elif element.VR in ("DS", "IS", "FD", "FL", "US", "UL", "SS"):
            values = element.value if element.VM > 1 else [element.value]
            found[str(element.tag)] = [round(float(v), 9) for v in values if v not in (None, "")]
        else:
            found[str(element.tag)] = str(element.value or "")
    return found


@needs("dcm2json", "dcmtk")
@pytest.mark.parametrize("kind", KINDS)
def test_dcmtk_reads_every_element(tmp_path: Path, kind: str) -> None:
    for file in objects(tmp_path, kind)[0]:
        assert "Data-Set" in said("dcmdump", file)
        read = Dataset.from_json(json.loads(said("dcm2json", file)))
        assert plain(read) == plain(pydicom.dcmread(file)), file.name


@needs("dsrdump", "dcmtk")
@pytest.mark.parametrize("kind", KINDS)
def test_dcmtk_reads_the_measures_of_a_report(tmp_path: Path, kind: str) -> None:
    files, exported = objects(tmp_path, kind)
    text = said("dsrdump", next(file for file in files if "report" in file.name))
    read = re.findall(r'contains NUM:\(,,"Volume"\)="([\d.]+)" \(cm3', text)
    wanted = [one.values[0].value for one in exported.reported]
    assert [float(value) for value in read] == pytest.approx(wanted, abs=1e-4)
    for one in exported.reported:
        assert f'"Tracking Identifier")="{one.name}' in text or one.is_whole


@needs("dcentvfy", "dicom3tools")
@pytest.mark.parametrize("kind", KINDS)
def test_patient_and_study_are_those_of_the_images(tmp_path: Path, kind: str) -> None:
    files, _ = objects(tmp_path, kind)
    images = sorted((tmp_path / "ct").rglob("*.dcm"))
    run = subprocess.run(["dcentvfy", *images, *files], capture_output=True, text=True)
    assert "Error" not in run.stderr and "Abort" not in run.stderr, run.stderr
