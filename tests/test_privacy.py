"""DICOM objects name the patient, as they must; nothing else that kidseg writes or says does."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from commands import call_cli
from dicom_files import assign, body, placed, save, series
from ellipses import make_ellipse_patient
from kidseg.cli import hospital
from kidseg.errors import KidsegError
from kidseg.io import ReadOptions, read
from kidseg.io import save as save_volume
from kidseg.io.dicom import read_series
from kidseg.io.dicom_write import write_series
from kidseg.pacs.worker import Archive

PATIENT: Mapping[str, str] = {
    "PatientName": "Secretname^Jane",
    "PatientID": "SECRETID-4711",
    "PatientBirthDate": "19870203",
    "AccessionNumber": "SECRETACCESSION",
    "ReferringPhysicianName": "Secretdoctor^J",
    "PatientComments": "secretcomment",
    "AdditionalPatientHistory": "secrethistory",
}
"""Of the patient and the study, which their objects may repeat."""
PRIVATE: Mapping[str, str] = {
    "PatientAddress": "Secretstreet 5",
    "PatientTelephoneNumbers": "555-SECRET",
    "OtherPatientIDs": "SECRETOTHER",
    "OperatorsName": "Secretnurse^J",
}
"""Which no object needs."""


def identify(ds: Dataset, k: int) -> None:
    for name, value in (PATIENT | PRIVATE).items():
        setattr(ds, name, value)


def secrets_in(content: bytes) -> set[str]:
    """The values that stand in a file or a text."""
    lower = content.lower()
    return {value for value in (PATIENT | PRIVATE).values() if value.lower().encode() in lower}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    folder = tmp_path / "child"
    for path in write_series(make_ellipse_patient(1).image, folder, facts={"seed": "1"}):
        ds = pydicom.dcmread(path)
        identify(ds, 0)
        save(ds, path)
    return folder


@pytest.mark.requirement("privacy")
def test_only_dicom_objects_name_the_patient(
    scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And they have of the source what is of its patient and study, not the address."""
    save_volume(make_ellipse_patient(1).labels, tmp_path / "child_seg.nii.gz")
    formats = ("nii", "seg.nrrd", "obj", "dicomseg", "rtstruct", "sr")
    labels, out = tmp_path / "child_seg.nii.gz", tmp_path / "out"
    words = ["--ct", scan, "-o", out, "--formats", ",".join(formats)]
    assert call_cli("convert", labels, *words) == 0
    assert call_cli("measure", labels, "--ct", scan, "-o", out) == 0
    assert call_cli("check", scan, "--json") == 0
    said = "".join(capfd.readouterr())
    assert said and not secrets_in(said.encode())
    endings = set()
    for path in out.iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        endings.add(path.suffix)
        if path.suffix != ".dcm":
            assert not secrets_in(content), path.name
            continue
        found = pydicom.dcmread(path)
        assert (found.PatientName, found.PatientID) == tuple(PATIENT.values())[:2], path.name
        assert secrets_in(content) <= set(PATIENT.values()), path.name
        assert content[:128] == bytes(128), "the preamble, which can hold anything"
    assert {".dcm", ".gz", ".nrrd", ".obj", ".json"} <= endings


def answer_of(folder: Path) -> tuple[str, list[str]]:
    """The code of the refusal of a series, "" if it is read, and all that is said."""
    try:
        return "", [str(finding) for finding in read_series(folder, ReadOptions()).findings]
    except KidsegError as error:
        return error.code, [str(error), str(error.as_finding().as_dict())]


def both(*edits: Callable[[Dataset, int], None]) -> Callable[[Dataset, int], None]:
    def edit(ds: Dataset, k: int) -> None:
        for each in edits:
            each(ds, k)

    return edit


@pytest.mark.requirement("privacy")
@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (assign("PatientID", "SECRETOTHER", 3), "mixed-patients"),
        (assign("Modality", "MR"), "not-ct"),
        (assign("PixelSpacing", [1, 2], 2), "mixed-spacing"),
        (assign("PatientBirthDate", "secretcomment"), ""),
        (assign("ImagePositionPatient", None, 2), "no-position"),
        (assign("SOPInstanceUID", "SECRETID-4711"), ""),
    ],
)
def test_what_is_refused_is_named_without_the_patient(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    edit: Callable[[Dataset, int], None],
    code: str,
) -> None:
    """Neither the error, its record, nor the warnings have a value of the header."""
    folder = series(tmp_path / "s", edit=both(identify, edit))
    recwarn.clear()
    capfd.readouterr()
    found, said = answer_of(folder)
    assert found == code
    said += [*(str(warning.message) for warning in recwarn), *capfd.readouterr()]
    assert not secrets_in("\n".join(said).encode()), said


@pytest.mark.requirement("privacy")
def test_gaps_are_named_without_the_patient(tmp_path: Path) -> None:
    places = placed([0, 2.5, 5, 20, 22.5, 25])
    folder = series(tmp_path / "s", body(), edit=identify, positions=places)
    with pytest.raises(KidsegError) as caught:
        read_series(folder, ReadOptions())
    assert caught.value.next_step and not secrets_in(str(caught.value).encode())


@pytest.mark.requirement("privacy")
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha", "nii"])
def test_texts_of_a_nifti_header_are_not_passed_on(tmp_path: Path, ending: str) -> None:
    """Exporters write names into them: description, intention, auxiliary file, extensions."""
    patient = make_ellipse_patient(0)
    save_volume(patient.labels, tmp_path / "labels.nii")
    image = nibabel.load(tmp_path / "labels.nii")
    for field in ("descrip", "intent_name", "aux_file", "db_name"):
        image.header[field] = "Secretname^Jane"[: image.header[field].dtype.itemsize]
    comment = nibabel.nifti1.Nifti1Extension("comment", b"SECRETID-4711")
    image.header.extensions.append(comment)
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), tmp_path / "named.nii")
    assert len(secrets_in((tmp_path / "named.nii").read_bytes())) == 2
    volume = read(tmp_path / "named.nii", ReadOptions(values="labels")).volume
    assert np.array_equal(volume.data, patient.labels.data)
    save_volume(volume, tmp_path / f"out.{ending}")
    content = (tmp_path / f"out.{ending}").read_bytes()
    assert not secrets_in(gzip.decompress(content) if ending.endswith("gz") else content)


@pytest.mark.requirement("privacy")
def test_what_an_archive_sent_is_for_the_user_of_the_command_alone(tmp_path: Path) -> None:
    """Images, the table of series, and the log, whatever the umask of the shell is."""
    nothing = Archive(fetch=lambda series, place: None, send=lambda series, files: None)
    with hospital._worker(tmp_path / "work", nothing, "starter", "cpu", 1, True) as (worker, _):
        number = worker.queue.add("1.2", "1.3", "x", "known")
        assert number is not None and worker.step()
        (worker.queue.place(number) / "images" / "a.dcm").write_bytes(b"")
        (worker.queue.folder / "arriving").mkdir()
    work = tmp_path / "work"
    there = [work, *work.rglob("*")]
    assert {"series.sqlite", "audit.jsonl", "a.dcm", ".lock"} <= {path.name for path in there}
    for path in there:
        assert path.stat().st_mode & 0o077 == 0, path
    (tmp_path / "after").write_text("")
    assert (tmp_path / "after").stat().st_mode & 0o777 != 0o600, "its umask is for itself"
