"""Series come from an archive, results go back: a queue by hand, and a real Orthanc."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
import pytest

from kidseg.cli import app
from kidseg.config import PhantomConfig
from kidseg.errors import InputError, ResourceError, UsageError
from kidseg.io.dicom_pdf import write_encapsulated_pdf
from kidseg.pacs import worker as worker_module
from kidseg.pacs.dicomweb import Look, find_series
from kidseg.pacs.node import CANNOT_UNDERSTAND, SUCCESS, Arrivals, Peer, receiving
from kidseg.pacs.result_objects import report_pdf
from kidseg.pacs.series_queue import Series, SeriesQueue, digest_of
from kidseg.pacs.worker import Archive, UnreachableError, Worker
from kidseg.phantom import write_patients
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.folder_lock import locked_folder
from labelled_series import ORIGIN, make_case

ORTHANC = pytest.mark.skipif(shutil.which("Orthanc") is None, reason="orthanc is not installed")


@pytest.mark.requirement("archive")
def test_a_series_is_added_once_and_again_when_it_grew(tmp_path: Path) -> None:
    queue = SeriesQueue.opened(tmp_path)
    assert digest_of(["1", "2"]) == digest_of(["2", "1", "1"]) != digest_of(["12"])
    first = queue.add("study", "series", digest_of(["1"]), "known")
    assert first is not None
    assert queue.add("study", "series", digest_of(["1"]), "known") is None
    assert queue.add("study", "series", digest_of(["1", "2"]), "known") is not None
    assert len(SeriesQueue.opened(tmp_path).all()) == 2


def test_waiting_doubles_and_ends_with_success(tmp_path: Path) -> None:
    queue = SeriesQueue.opened(tmp_path, wait_s=100.0)
    number = queue.add("a", "b", "c", "known")
    assert number is not None
    waits = []
    for _ in range(4):
        (series,) = queue.all()
        waits.append(queue.put_off(series, "unreachable"))
        assert queue.next_due() is None
    assert waits == [100.0, 200.0, 300.0, 300.0]
    queue.advance(number, "here")
    due = queue.next_due()
    assert due is not None and due.attempts == 0 and due.code == ""


def test_a_folder_has_one_worker(tmp_path: Path) -> None:
    work, peer = str(tmp_path), ["--to", "ARCHIVE@127.0.0.1:4242", "--port", "0"]
    with locked_folder(tmp_path, "process"), pytest.raises(UsageError) as refused:
        app(["node", *peer, "--folder", work], standalone_mode=False)
    assert refused.value.code == "folder-in-use"
    with locked_folder(tmp_path, "process"):
        pass


@dataclass
class Steps:
    """An archive and a segmentation of which each step does what is next in a list."""

    todo: list[Exception | None]
    done: list[str] = field(default_factory=list)

    def next(self, name: str) -> None:
        self.done.append(name)
        error = self.todo.pop(0) if self.todo else None
        if error is not None:
            raise error

    def worker(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
        def results(place: Path, *rest: Any) -> None:
            self.next("segment")
            (place / "results").mkdir()
            (place / "results" / "a.dcm").write_bytes(b"")

        monkeypatch.setattr(worker_module, "make_results", results)
        archive = Archive(
            fetch=lambda series, place: self.next("fetch"),
            send=lambda series, files: self.next(f"send {len(files)}"),
        )
        return Worker(
            queue=SeriesQueue.opened(folder, wait_s=0.0),
            archive=archive,
            model="starter",
            device="cpu",
            attempts=2,
            log=AuditLog.opened(folder / "audit.jsonl"),
            say=lambda line: None,
        )


DOWN = UnreachableError("it does not answer")
KILLED = ResourceError("killed", code="process-failed")
BAD = InputError("bad", code="too-few-slices")


@pytest.mark.requirement("privacy")
@pytest.mark.requirement("archive")
@pytest.mark.parametrize(
    ("todo", "done", "end"),
    [
        ([], ["fetch", "segment", "send 1"], "sent"),
        ([DOWN] * 5, ["fetch"] * 6 + ["segment", "send 1"], "sent"),
        ([None, None, DOWN], ["fetch", "segment", "send 1", "send 1"], "sent"),
        ([None, KILLED], ["fetch", "segment", "segment", "send 1"], "sent"),
        ([None, KILLED, KILLED], ["fetch", "segment", "segment"], "aside"),
        ([None, BAD], ["fetch", "segment"], "aside"),
        ([None, None, BAD], ["fetch", "segment", "send 1"], "aside"),
    ],
)
def test_what_becomes_of_a_series(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    todo: Sequence[Exception | None],
    done: Sequence[str],
    end: str,
) -> None:
    """An archive that is down is waited for; a crash is tried again; a bad series is set aside."""
    steps = Steps(list(todo))
    worker = steps.worker(tmp_path, monkeypatch)
    number = worker.queue.add("1.2.3", "1.2.4", "x", "known")
    assert number is not None
    while worker.step():
        pass
    assert steps.done == list(done)
    (series,) = worker.queue.all()
    assert series.state == end
    assert worker.queue.place(number).exists() == (end == "aside")
    log = (tmp_path / "audit.jsonl").read_text()
    assert "1.2.3" not in log and f'"{"set-aside" if end == "aside" else "sent"}"' in log


def test_a_study_of_another_study_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps([None, BAD])
    worker = steps.worker(tmp_path, monkeypatch)
    for name in "ab":
        worker.queue.add(name, name, name, "known")
    while worker.step():
        pass
    assert [series.state for series in worker.queue.all()] == ["aside", "sent"]


def images_of(folder: Path) -> list[Path]:
    make_case(folder, "axial")
    return sorted(folder.iterdir())


def test_images_are_kept_and_complete_after_silence(tmp_path: Path) -> None:
    queue = SeriesQueue.opened(tmp_path / "work")
    arrivals = Arrivals(queue=queue, quiet_s=0.2)
    files = images_of(tmp_path / "ct")
    contents = {str(pydicom.dcmread(path).SOPInstanceUID): path.read_bytes() for path in files}
    for uid, content in contents.items():
        assert arrivals.take(uid, content) == SUCCESS
    assert arrivals.settle() == 0 and arrivals.are_pending
    time.sleep(0.3)
    assert arrivals.settle() == 1 and not arrivals.are_pending
    series = queue.next_due()
    assert series is not None and series.state == "here"
    kept = (queue.place(series.number) / "images").iterdir()
    assert {path.read_bytes() for path in kept} == set(contents.values())
    # The same again is known; one image more is another series to be done.
    for uid, content in contents.items():
        assert arrivals.take(uid, content) == SUCCESS
    time.sleep(0.3)
    assert arrivals.settle() == 0 and len(queue.all()) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM", b"no image" * 100])
def test_what_is_no_image_is_not_kept(tmp_path: Path, content: bytes) -> None:
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path), quiet_s=0.0)
    assert arrivals.take("1.2.3", content) == CANNOT_UNDERSTAND
    assert not arrivals.are_pending and not list((tmp_path / "arriving").iterdir())


def test_an_image_under_another_name_is_not_kept(tmp_path: Path) -> None:
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path / "work"), quiet_s=0.0)
    path = images_of(tmp_path / "ct")[0]
    assert arrivals.take("1.2.3", path.read_bytes()) == CANNOT_UNDERSTAND


def test_a_peer_is_title_host_port() -> None:
    assert Peer.from_text("A@::1:104", "K") == Peer(title="A", host="::1", port=104, own_title="K")
    for text in ("A", "A@h", "A@h:x", "@h:1", "A@h:0", "A" * 17 + "@h:1", "A@:104"):
        with pytest.raises(InputError):
            Peer.from_text(text, "K")


def test_images_travel_from_one_node_to_another(tmp_path: Path) -> None:
    """By the network, on this machine; a caller that is not known is turned away."""
    files = images_of(tmp_path / "ct")
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path / "work"), quiet_s=0.0)
    series = Series(number=1, study="", series="", digest="", state="here", attempts=0, code="")
    here = {"title": "KIDSEG", "host": "127.0.0.1", "port": 0}
    with receiving(arrivals, **here, callers=("FRIEND",)) as port:
        peer = Peer(title="KIDSEG", host="127.0.0.1", port=port, own_title="FRIEND")
        peer.send(series, files)
        with pytest.raises(UnreachableError):
            Peer(title="KIDSEG", host="127.0.0.1", port=port, own_title="OTHER").send(series, files)
    with pytest.raises(UnreachableError):
        peer.send(series, files)
    assert arrivals.settle() == 1
    (found,) = arrivals.queue.all()
    assert found.study == pydicom.dcmread(files[0]).StudyInstanceUID


# A real archive.


@dataclass
class RealArchive:
    """An Orthanc that can be killed and started again."""

    folder: Path
    http: int
    dicom: int
    peers: dict[str, list[Any]] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def start(self) -> None:
        settings = {
            "StorageDirectory": str(self.folder / "stored"),
            "IndexDirectory": str(self.folder / "stored"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ARCHIVE",
            "DicomModalities": self.peers,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": ["/usr/share/orthanc/plugins"],
            "DicomWeb": {"Enable": True},
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "log").open("ab") as log:
            words = ["Orthanc", str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        until(lambda: self.ask("/system") is not None)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def ask(self, path: str, data: bytes | None = None) -> Any:
        try:
            request = urllib.request.Request(self.address + path, data=data)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())
        except OSError:
            return None

    def modalities(self) -> dict[str, list[str]]:
        """{study: modalities of its series}."""
        found = {}
        for study in self.ask("/studies?expand") or ():
            series = [self.ask(f"/series/{each}") for each in study["Series"]]
            found[study["MainDicomTags"]["StudyInstanceUID"]] = sorted(
                each["MainDicomTags"]["Modality"] for each in series
            )
        return found


def until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[RealArchive]:
    (tmp_path / "orthanc").mkdir()
    real = RealArchive(tmp_path / "orthanc", free_port(), free_port())
    real.start()
    yield real
    real.kill()


def patients(folder: Path, number: int) -> list[Path]:
    """The series of so many digital patients."""
    config = PhantomConfig(size=64, max_slices=20)
    write_patients(folder, config, patients=number, seed=4, layout="dicom")
    return sorted({path.parent for path in folder.rglob("*.dcm")})


def command(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kidseg", *map(str, words)], stderr=subprocess.PIPE, text=True
    )


@pytest.mark.requirement("archive")
@ORTHANC
@pytest.mark.slow
def test_twenty_studies_while_archive_and_worker_are_killed(
    archive: RealArchive, tmp_path: Path
) -> None:
    """Each study gets one SEG, one SR, one report; one poison study is set aside."""
    for place in patients(tmp_path / "patients", 20):
        for image in place.iterdir():
            archive.ask("/instances", image.read_bytes())
    poison = patients(tmp_path / "poison", 1)[0]
    for k, path in enumerate(sorted(poison.iterdir())):
        image = pydicom.dcmread(path)
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{k + 1}"
        image.ImagePositionPatient = [0, 0, 100.0 * (k % 2) + k]  # slices that make no volume
        image.save_as(path)
        archive.ask("/instances", path.read_bytes())
    words = ["dicomweb", f"{archive.address}/dicom-web", "--folder", tmp_path / "work"]
    words += ["--device", "cpu", "--every", "1", "--min-images", "5", "--once"]
    process = command(*words)
    until(lambda: sum("SEG" in m for m in archive.modalities().values()) >= 3, 300)
    archive.kill()
    time.sleep(10)
    archive.start()
    until(lambda: sum("SEG" in m for m in archive.modalities().values()) >= 8, 300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = command(*words)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 4, said
    found = archive.modalities()
    assert len(found) == 21
    assert found.pop("1.2.3") == ["CT"]
    assert all(modalities == ["CT", "DOC", "SEG", "SR"] for modalities in found.values())
    (aside,) = [s for s in SeriesQueue.opened(tmp_path / "work").all() if s.state == "aside"]
    assert aside.study == "1.2.3" and aside.code
    log = (tmp_path / "work" / "audit.jsonl").read_text()
    assert "phantom" not in log.lower()
    # Once more: nothing is processed again.
    process = command(*words)
    process.communicate(timeout=120)
    assert archive.modalities() == {**found, "1.2.3": ["CT"]}


@ORTHANC
@pytest.mark.slow
def test_a_node_takes_a_study_and_answers_the_archive(archive: RealArchive, tmp_path: Path) -> None:
    port = free_port()
    archive.kill()
    archive.peers = {"kidseg": ["KIDSEG", "127.0.0.1", port]}
    archive.start()
    words = ["node", "--to", f"ARCHIVE@127.0.0.1:{archive.dicom}", "--port", port, "--once"]
    words += ["--folder", tmp_path / "work", "--device", "cpu", "--quiet-s", "2"]
    process = command(*words)
    assert process.stderr is not None and "listens" in process.stderr.readline()
    for place in patients(tmp_path / "patients", 2):
        for image in place.iterdir():
            archive.ask("/instances", image.read_bytes())
    for study in archive.ask("/studies"):
        assert archive.ask("/modalities/kidseg/store", study.encode()) is not None
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert list(archive.modalities().values()) == [["CT", "DOC", "SEG", "SR"]] * 2
    assert not list((tmp_path / "work" / "series").iterdir())


def test_the_document_belongs_to_the_study_and_holds_every_warning(tmp_path: Path) -> None:
    """Any number of warnings, on as many pages as they need; the PDF as it was, in the object."""
    source, _ = make_case(tmp_path / "ct", "axial")
    warning = {"cause": "slices are 6 mm apart", "next_step": "Use thinner ones."}
    entry = {
        "warnings": [warning] * 60,
        "volumes_ml": {"kidney": 100.0},
        "sides": {"left": {"volumes_ml": {"kidney": 100.0}, "partial": True}, "midline": "body"},
        "model": {"method": "plain", "sha256": "a" * 64},
        "versions": {"kidseg": "1"},
        "sha256": "b" * 64,
        "date": "2026-01-01",
    }
    pdf = report_pdf(entry, Path(__file__).parents[1] / "docs" / "steps.png")
    assert pdf.count(b"/Type /Page ") + pdf.count(b"/Type /Page\n") == 3
    with (tmp_path / "a.dcm").open("wb") as file:
        write_encapsulated_pdf(pdf, source.headers[0], ORIGIN, file)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert found.StudyInstanceUID == source.headers[0].StudyInstanceUID
    assert found.SeriesInstanceUID != source.headers[0].SeriesInstanceUID
    assert found.EncapsulatedDocument[: found.EncapsulatedDocumentLength] == pdf
    if shutil.which("dciodvfy"):
        said = subprocess.run(["dciodvfy", tmp_path / "a.dcm"], capture_output=True, text=True)
        assert "Error" not in said.stderr


@dataclass
class Catalogue:
    """What an archive says of its series, {UID: images}, and how often it was asked for images."""

    series: dict[str, list[str]]
    counts: bool = True
    asked: int = 0

    def ct_studies(self, since_days: int | None) -> list[str]:
        return ["study"]

    def ct_series(self, study: str) -> dict[str, int | None]:
        return {uid: len(images) if self.counts else None for uid, images in self.series.items()}

    def instances(self, study: str, series: str) -> list[str]:
        self.asked += 1
        return self.series[series]


@pytest.mark.parametrize("counts", [True, False])
def test_a_series_is_found_once_it_is_complete_and_again_when_it_grew(
    tmp_path: Path, counts: bool
) -> None:
    """An archive that counts images is not asked again for those of series that are known."""
    archive = Catalogue({"a": ["1", "2", "3"], "short": ["9"]}, counts)
    queue, seen = SeriesQueue.opened(tmp_path), dict[str, Look]()
    found = []
    for images in ("123", "123", "123", "1234", "1234", "1234"):
        archive.series["a"] = list(images)
        found.append(find_series(archive, queue, seen, min_images=2, since_days=None))  # type: ignore[arg-type]
    assert found == [0, 1, 0, 0, 1, 0]
    assert archive.asked == (4 if counts else 12)
