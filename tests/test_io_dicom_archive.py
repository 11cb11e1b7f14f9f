"""DICOM objects are stored in an archive, and fetched from it unchanged: a real Orthanc."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from kidseg.io.label_formats import label_files
from kidseg.io.label_writing import Exported, write_label_files
from labelled_series import KINDS, ORIGIN, SCHEMA, make_case, reported

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("Orthanc") is None, reason="orthanc is not installed"),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty Orthanc."""
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as http, socket.socket() as dicom:
        http.bind(("127.0.0.1", 0))
        dicom.bind(("127.0.0.1", 0))
        port, other = http.getsockname()[1], dicom.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "stored"),
        "IndexDirectory": str(folder / "stored"),
        "HttpPort": port,
        "DicomPort": other,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": ["/usr/share/orthanc/plugins"],
        "DicomWeb": {"Enable": True},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", folder / "orthanc.json"], stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                try:
                    ask(f"{address}/system")
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def ask(url: str, data: bytes | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=30) as answer:
        content = answer.read()
    return content if url.endswith("/file") else json.loads(content)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_changes_nothing(tmp_path: Path, archive: str, kind: str) -> None:
    source, labels = make_case(tmp_path / "ct", kind)
    for image in (tmp_path / "ct").iterdir():
        ask(f"{archive}/instances", image.read_bytes())
    files = label_files("a", tmp_path, ["dicomseg", "labelmap", "rtstruct", "sr"], SCHEMA)
    exported = Exported(
        labels=labels, schema=SCHEMA, origin=ORIGIN, like=source.native, source=source
    )
    exported, _ = reported(exported, tmp_path)
    (tmp_path / "made").mkdir()
    made = write_label_files(exported, files, tmp_path / "made").files
    assert len(made) == len(files)
    for file in made:
        stored = ask(f"{archive}/instances", file.read_bytes())
        assert stored["Status"] == "Success", file.name
        fetched = tmp_path / "fetched.dcm"
        fetched.write_bytes(ask(f"{archive}/instances/{stored['ID']}/file"))
        assert pydicom.dcmread(fetched) == pydicom.dcmread(file)
        study = ask(f"{archive}/instances/{stored['ID']}/study")
        uid = source.headers[0].StudyInstanceUID
        assert study["MainDicomTags"]["StudyInstanceUID"] == uid, "beside its images"
        found = ask(f"{archive}/dicom-web/studies/{uid}/series")
        modalities = {series["00080060"]["Value"][0] for series in found}
        assert pydicom.dcmread(file).Modality in modalities and "CT" in modalities
