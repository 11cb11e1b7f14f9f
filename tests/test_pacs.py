"""Series come from an archive, results go back: a queue by hand, and a real Orthanc."""

from __future__ import annotations

import errno
import json
import re
import resource
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pydicom
import pytest
import torch
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from kidseg.checkpoint import save_model
from kidseg.cli import app
from kidseg.config import PhantomConfig
from kidseg.errors import InputError, KidsegError, ModelError, ResourceError, UsageError
from kidseg.io.dicom_pdf import write_encapsulated_pdf
from kidseg.pacs import worker as worker_module
from kidseg.pacs.dicomweb import Look, WebArchive, _found, find_series
from kidseg.pacs.node import CANNOT_UNDERSTAND, Arrivals, _name, receiving
from kidseg.pacs.peer import SUCCESS, Peer
from kidseg.pacs.result_objects import _lines, report_pdf
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
FORBIDDEN = InputError("the archive answers 401", code="archive-forbids")
FULL = OSError(errno.ENOSPC, "No space left on device")
CUT = InputError("an answer was cut off", code="incomplete-answer")
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
        ([FORBIDDEN] * 5, ["fetch"] * 6 + ["segment", "send 1"], "sent"),
        ([FULL] * 5, ["fetch"] * 6 + ["segment", "send 1"], "sent"),
        ([CUT], ["fetch"] * 2 + ["segment", "send 1"], "sent"),
        ([CUT, CUT], ["fetch"] * 2, "aside"),
        ([*[DOWN] * 5, CUT], ["fetch"] * 7 + ["segment", "send 1"], "sent"),
        ([ValueError("Doe^Jane")], ["fetch"], "aside: series-failed"),
        ([None, KeyError("Doe^Jane")], ["fetch", "segment"], "aside: series-failed"),
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
    end, _, code = end.partition(": ")
    assert series.state == end and (not code or series.code == code)
    assert worker.queue.place(number).exists() == (end == "aside" and "segment" in done)
    log = (tmp_path / "audit.jsonl").read_text()
    assert (
        "1.2.3" not in log
        and "Doe" not in log
        and f'"{"set-aside" if end == "aside" else "sent"}"' in log
    )


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


def test_a_model_that_cannot_be_used_sets_no_series_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = replace(Steps([BAD]).worker(tmp_path, monkeypatch), model=str(tmp_path / "gone"))
    worker.queue.add("1.2.3", "1.2.4", "x", "here")
    with pytest.raises(ModelError, match="gone"):
        worker.step()
    assert [series.state for series in worker.queue.all()] == ["here"]


def two_channels(path: Path) -> Path:
    """A model file whose header says that it reads two channels."""
    header = {"plan": {"channels": [{"channel": "CT"}, {"channel": "CT late"}]}}
    save_model(path, {"segment": {"weight": torch.zeros(1)}}, header)
    return path


@pytest.mark.parametrize("command_", [["node", "--to", "A@127.0.0.1:1"], ["dicomweb", "http://a"]])
@pytest.mark.parametrize(
    ("model", "code"), [("none", "no-such-model"), ("two", "several-channels")]
)
def test_the_model_is_checked_before_anything_arrives(
    tmp_path: Path, command_: list[str], model: str, code: str
) -> None:
    two_channels(tmp_path / "two")
    words = [*command_, "--folder", str(tmp_path / "work"), "-m", str(tmp_path / model)]
    with pytest.raises(KidsegError) as refused:
        app(words, standalone_mode=False)
    assert refused.value.next_step and not (tmp_path / "work").exists()
    assert model == "none" or refused.value.code == code


def test_a_step_is_due_although_the_clock_was_set_back(tmp_path: Path) -> None:
    queue = SeriesQueue.opened(tmp_path, wait_s=100.0)
    queue.add("a", "b", "c", "known")
    queue.put_off(queue.all()[0], "unreachable")
    assert queue.next_due() is None
    with sqlite3.connect(tmp_path / "series.sqlite") as base:
        base.execute("UPDATE series SET due = due + 86400")
    assert queue.next_due() is not None


def images_of(folder: Path) -> list[Path]:
    make_case(folder, "axial")
    return sorted(folder.iterdir())


def taken(arrivals: Arrivals, instance: str, content: bytes) -> int:
    """What is answered to an object that has been received."""
    received = arrivals.incoming / "received.dcm"
    received.write_bytes(content)
    try:
        return arrivals.take(instance, received)
    finally:
        received.unlink(missing_ok=True)


def test_images_are_kept_and_complete_after_silence(tmp_path: Path) -> None:
    queue = SeriesQueue.opened(tmp_path / "work")
    arrivals = Arrivals(queue=queue, quiet_s=0.2)
    files = images_of(tmp_path / "ct")
    contents = {str(pydicom.dcmread(path).SOPInstanceUID): path.read_bytes() for path in files}
    for uid, content in contents.items():
        assert taken(arrivals, uid, content) == SUCCESS
    assert arrivals.settle() == 0 and arrivals.are_pending
    time.sleep(0.3)
    assert arrivals.settle() == 1 and not arrivals.are_pending
    series = queue.next_due()
    assert series is not None and series.state == "here"
    kept = (queue.place(series.number) / "images").iterdir()
    assert {path.read_bytes() for path in kept} == set(contents.values())
    # The same again is known; one image more is another series to be done.
    for uid, content in contents.items():
        assert taken(arrivals, uid, content) == SUCCESS
    time.sleep(0.3)
    assert arrivals.settle() == 0 and len(queue.all()) == 1


def test_a_part_of_a_series_is_never_taken_for_the_whole(tmp_path: Path) -> None:
    """Late images join those that are still here; else the series waits for all of them."""
    queue = SeriesQueue.opened(tmp_path / "work")
    arrivals = Arrivals(queue=queue, quiet_s=0.0)
    files = images_of(tmp_path / "ct")

    def arrive(some: Sequence[Path]) -> tuple[int, list[tuple[str, int]]]:
        for path in some:
            uid = str(pydicom.dcmread(path).SOPInstanceUID)
            assert taken(arrivals, uid, path.read_bytes()) == SUCCESS
        added = arrivals.settle()
        assert not arrivals.are_pending
        places = [(each, queue.place(each.number) / "images") for each in queue.all()]
        return added, [(each.state, len(list(place.glob("*")))) for each, place in places]

    early, late = files[:-2], files[-2:]
    assert arrive(early) == (1, [("here", len(early))])
    assert arrive(early[:3]) == (0, [("here", len(early))]), "sent again, in part"
    assert arrive(late[:1]) == (1, [("here", len(early) + 1)]), "the part is not segmented"
    for series in queue.all():
        queue.advance(series.number, "sent")
        queue.forget_files(series.number)
    assert arrive(late[1:])[1][-1] == ("aside", 1) and queue.all()[-1].code == "images-missing"
    number = queue.all()[-1].number
    assert arrive(files)[1][-1] == ("here", len(files)), "all of them came"
    assert not queue.place(number).exists(), "what was set aside is part of it"


def states_after(arrivals: Arrivals, files: Sequence[Path]) -> list[str]:
    """The states of all series after the arrival of these images."""
    for path in files:
        taken(arrivals, str(pydicom.dcmread(path).SOPInstanceUID), path.read_bytes())
    arrivals.settle()
    return [each.state for each in arrivals.queue.all()]


def test_a_short_series_waits_for_more_and_not_for_ever(tmp_path: Path) -> None:
    """Localizers are neither segmented nor set aside; nobody waits for them."""
    queue, said = SeriesQueue.opened(tmp_path / "work"), list[str]()
    arrivals = Arrivals(queue=queue, quiet_s=0.0, min_images=4, say=said.append)
    files = images_of(tmp_path / "ct")

    arrive = partial(states_after, arrivals)
    assert arrive(files[:3]) == [] == arrive([]) and not arrivals.are_pending
    assert len(said) == 1 and "3 images" in said[0]
    assert arrive(files[3:]) == ["here"]
    assert len(list((queue.place(queue.all()[0].number) / "images").iterdir())) == len(files)
    header = pydicom.dcmread(files[0])
    header.SeriesInstanceUID = "1.2.8"
    header.save_as(files[0])
    assert arrive(files[:1]) == ["here"] and arrivals._places()
    for name in arrivals._last:
        arrivals._last[name] -= 86401
    assert arrive([]) == ["here"] and not arrivals._places() and "removed" in said[-1]
    header.SeriesInstanceUID, header.NumberOfFrames = "1.2.9", 4
    header.save_as(files[0])
    assert arrive(files[:1]) == ["here", "here"], "a file of several images"


def test_what_was_set_aside_is_tried_again(tmp_path: Path) -> None:
    """When it comes again, or when asked for; but not a part of a series."""
    queue, told = SeriesQueue.opened(tmp_path / "work"), list[str]()
    arrivals = Arrivals(queue=queue, quiet_s=0.0, note=lambda *what: told.append(what[1]))
    files = images_of(tmp_path / "ct")

    arrive = partial(states_after, arrivals)
    assert arrive(files) == ["here"]
    (series,) = queue.all()
    queue.set_aside(series.number, "archive-refuses")
    assert arrive(files[:2]) == ["here"], "together with those that are here"
    images = queue.place(series.number) / "images"
    assert len(list(images.iterdir())) == len(files)
    for state in ("here", "known"):
        queue.set_aside(series.number, "archive-refuses")
        assert queue.retry_aside(state) == [series.number] and queue.all()[0].state == state  # type: ignore[arg-type]
    queue.set_aside(series.number, "archive-refuses")
    shutil.rmtree(images)  # by the operator
    assert queue.retry_aside("here") == []
    assert arrive(files[:2])[-1] == "aside" and queue.all()[-1].code == "images-missing"
    assert queue.retry_aside("known") == [] and told[-1] == "set-aside"
    assert arrive(files) == ["here"] and "replaced" in told


def test_what_a_kill_left_of_what_is_over_is_removed(tmp_path: Path) -> None:
    queue = SeriesQueue.opened(tmp_path)
    for name, state in (("a", "sent"), ("b", "replaced"), ("c", "aside")):
        number = queue.add(name, name, name, "here")
        assert number is not None
        (queue.place(number) / "images").mkdir(parents=True)
        queue.advance(number, state)  # type: ignore[arg-type]
    again = SeriesQueue.opened(tmp_path)
    assert [each.state for each in again.all()] == ["sent", "aside"]
    assert [path.name for path in (tmp_path / "series").iterdir()] == ["000003"]


def test_a_series_that_grew_is_not_done_as_it_was(tmp_path: Path) -> None:
    queue = SeriesQueue.opened(tmp_path)
    numbers = [queue.add("study", "a", str(k), "known") for k in range(5)]
    for number, state in zip(numbers, ("here", "segmented", "aside", "sent"), strict=False):
        assert number is not None
        queue.place(number).mkdir()
        queue.advance(number, state)  # type: ignore[arg-type]
    assert queue.replace_others("b", "4") == []
    assert queue.replace_others("a", "4") == numbers[:3]
    assert [each.number for each in queue.all()] == numbers[3:]
    assert [path.name for path in (tmp_path / "series").iterdir()] == ["000004"]


@pytest.mark.fault("disk full")
def test_a_table_on_a_full_disk_is_full_not_damaged(tmp_path: Path) -> None:
    """Without room for its shared memory it cannot even be read."""
    queue = SeriesQueue.opened(tmp_path)
    queue.add("a", "b", "c", "known")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for act in (queue.all, queue.next_due, lambda: queue.advance(1, "here")):
            with pytest.raises(ResourceError) as refused:
                act()
            assert refused.value.code == "disk-full"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [each.state for each in queue.all()] == ["known"]


def test_a_fetch_that_fails_leaves_its_room_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Steps([FULL, CUT, CUT]).worker(tmp_path, monkeypatch)
    number = worker.queue.add("1.2.3", "1.2.4", "x", "known")
    assert number is not None
    for _ in range(2):
        assert worker.step() and not worker.queue.place(number).exists()


def test_images_of_an_earlier_process_go_on(tmp_path: Path) -> None:
    """Whatever else a kill left in their folder; their silence begins with the new process."""
    queue = SeriesQueue.opened(tmp_path / "work")
    files = images_of(tmp_path / "ct")
    first = Arrivals(queue=queue, quiet_s=0.0)
    for path in files:
        taken(first, str(pydicom.dcmread(path).SOPInstanceUID), path.read_bytes())
    (place,) = first._places()
    (place / "study").write_text("")
    (first.incoming / "half.dcm").write_bytes(b"half")
    second = Arrivals(queue=queue, quiet_s=0.1)
    assert second.settle() == 0 and not any(second.incoming.iterdir())
    time.sleep(0.15)
    assert second.settle() == 1 and queue.all()[0].state == "here"


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM", b"no image" * 100])
def test_what_is_no_image_is_not_kept(tmp_path: Path, content: bytes) -> None:
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path), quiet_s=0.0)
    assert taken(arrivals, "1.2.3", content) == CANNOT_UNDERSTAND
    assert not arrivals.are_pending and not any((tmp_path / "arriving").glob("*"))


def test_a_number_of_frames_that_is_none_is_not_kept(tmp_path: Path) -> None:
    """It would end the node when the series is complete, and after each start again."""
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path / "work"), quiet_s=0.0, min_images=99)
    path = images_of(tmp_path / "ct")[0]
    header = pydicom.dcmread(path)
    header.NumberOfFrames = "12"
    header.save_as(path)
    assert taken(arrivals, str(header.SOPInstanceUID), path.read_bytes()) == SUCCESS
    for text in (b"x2", b"1\\"):
        content = path.read_bytes().replace(b"IS\x02\x0012", b"IS\x02\x00" + text)
        assert content != path.read_bytes()
        assert taken(arrivals, str(header.SOPInstanceUID), content) == CANNOT_UNDERSTAND
    assert arrivals.settle() == 0 and len(arrivals._places()) == 1


def test_an_image_under_another_name_is_not_kept(tmp_path: Path) -> None:
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path / "work"), quiet_s=0.0)
    path = images_of(tmp_path / "ct")[0]
    assert taken(arrivals, "1.2.3", path.read_bytes()) == CANNOT_UNDERSTAND


def test_a_peer_is_title_host_port() -> None:
    assert Peer.from_text("A@::1:104", "K") == Peer(title="A", host="::1", port=104, own_title="K")
    bad = ("A", "A@h", "A@h:x", "@h:1", "A@h:0", "A" * 17 + "@h:1", "A@:104", "Ä@h:1", "A@h:²")
    for text in bad:
        with pytest.raises(UsageError) as refused:
            Peer.from_text(text, "K")
        assert refused.value.code == "bad-peer"


@pytest.mark.parametrize("option", ["--title", "--caller"])
@pytest.mark.parametrize("title", ["", " ", "A" * 17, "ÄÖÜ", "A\\B", "A\n"])
def test_titles_that_no_association_can_have_are_refused_at_the_start(
    tmp_path: Path, option: str, title: str
) -> None:
    words = ["node", "--to", "A@127.0.0.1:1", "--folder", str(tmp_path / "work"), option, title]
    with pytest.raises(UsageError) as refused:
        app(words, standalone_mode=False)
    assert refused.value.code == "bad-title" and not (tmp_path / "work").exists()


def test_images_travel_from_one_node_to_another(tmp_path: Path) -> None:
    """By the network, on this machine; a caller that is not known is turned away.

    A study has other objects than images: they are discarded, and end nothing.
    """
    files = images_of(tmp_path / "ct")
    said: list[str] = []
    queue = SeriesQueue.opened(tmp_path / "work")
    arrivals = Arrivals(queue=queue, quiet_s=0.0, say=said.append)
    series = Series(number=1, study="", series="", digest="", state="here", attempts=0, code="")
    here = {"title": "KIDSEG", "host": "127.0.0.1", "port": 0}
    other = tmp_path / "report.dcm"
    ds = pydicom.dcmread(files[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.save_as(other)
    with receiving(arrivals, **here, callers=("FRIEND",)) as port:
        peer = Peer(title="KIDSEG", host="127.0.0.1", port=port, own_title="FRIEND")
        peer.send(series, [other, *files])
        with pytest.raises(UnreachableError, match="title OTHER"):
            Peer(title="KIDSEG", host="127.0.0.1", port=port, own_title="OTHER").send(series, files)
        taken = receiving(arrivals, **{**here, "port": port}, callers=())
        with pytest.raises(UsageError) as refused, taken:
            pass
        assert refused.value.code == "address-in-use" and str(port) in refused.value.cause
    with pytest.raises(UnreachableError):
        peer.send(series, files)
    assert arrivals.settle() == 1
    (found,) = arrivals.queue.all()
    assert found.study == pydicom.dcmread(files[0]).StudyInstanceUID
    assert said == ["1 objects that arrived are no CT images, and were discarded"]
    assert len(list((queue.place(found.number) / "images").iterdir())) == len(files)


@pytest.mark.requirement("archive")
def test_the_same_images_by_several_associations_at_once_are_one_series(tmp_path: Path) -> None:
    """Whenever what is there is taken for complete, too: none is lost, and none counts twice."""
    files = images_of(tmp_path / "ct")
    queue = SeriesQueue.opened(tmp_path / "work")
    arrivals = Arrivals(queue=queue, quiet_s=0.0)
    failed: list[Exception] = []
    with receiving(arrivals, title="KIDSEG", host="127.0.0.1", port=0, callers=()) as port:
        peer = Peer(title="KIDSEG", host="127.0.0.1", port=port, own_title="FRIEND")

        def send(k: int) -> None:
            shift = k * len(files) // 4
            try:
                peer.send(NOTHING, files[shift:] + files[:shift])
            except Exception as error:
                failed.append(error)

        senders = [threading.Thread(target=send, args=(k,)) for k in range(4)]
        for sender in senders:
            sender.start()
        while any(sender.is_alive() for sender in senders):
            arrivals.settle()
    arrivals.settle()
    assert not failed and not arrivals.are_pending
    (found,) = queue.all()
    assert found.state == "here"
    kept = [path.read_bytes() for path in (queue.place(found.number) / "images").iterdir()]
    assert len(kept) == len(files)
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    assert found.digest == digest_of(map(_name, uids))


@contextmanager
def peer_that(kinds: Sequence[str], store: Callable[[Any], int]) -> Iterator[Peer]:
    """A node that takes objects of these classes, as it likes."""
    entity = AE(ae_title="ARCHIVE")
    for kind in kinds:
        entity.add_supported_context(kind)
    handlers: Any = [(evt.EVT_C_STORE, store)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield Peer(title="ARCHIVE", host="127.0.0.1", port=server.server_address[1], timeout_s=5)
    finally:
        server.shutdown()


NOTHING = Series(number=1, study="", series="", digest="", state="here", attempts=0, code="")


def test_all_results_are_sent_or_none(tmp_path: Path) -> None:
    """A node that takes some of their kinds gets none of them, and is not waited for."""
    ct, other = images_of(tmp_path / "ct")[0], tmp_path / "other.dcm"
    ds = pydicom.dcmread(ct)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    ds.save_as(other)
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return SUCCESS

    with peer_that([CTImageStorage], store) as peer:
        with pytest.raises(InputError, match="SR Storage") as refused:
            peer.send(NOTHING, [ct, other])
        assert refused.value.code == "archive-refuses" and not got
        peer.send(NOTHING, [ct])
        assert len(got) == 1


@pytest.mark.parametrize(("status", "error"), [(0xA700, UnreachableError), (0xC000, InputError)])
def test_what_a_node_answers_decides_whether_it_is_waited_for(
    tmp_path: Path, status: int, error: type[Exception]
) -> None:
    with peer_that([CTImageStorage], lambda event: status) as peer, pytest.raises(error):
        peer.send(NOTHING, images_of(tmp_path / "ct")[:1])


def test_an_association_that_is_aborted_is_tried_again(tmp_path: Path) -> None:
    def abort(event: Any) -> int:
        event.assoc.abort()
        return SUCCESS

    with peer_that([CTImageStorage], abort) as peer, pytest.raises(UnreachableError):
        peer.send(NOTHING, images_of(tmp_path / "ct")[:3])


class BadArchive(BaseHTTPRequestHandler):
    """Answers everything with the same."""

    answer: ClassVar[tuple[int, str, bytes]] = (200, "", b"")
    delay_s: ClassVar[float] = 0.0

    def do_GET(self) -> None:
        status, kind, body = self.answer
        time.sleep(self.delay_s)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bad_archive() -> Iterator[WebArchive]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BadArchive)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield WebArchive(url=f"http://127.0.0.1:{server.server_port}", timeout_s=0.3)
    finally:
        server.shutdown()
        server.server_close()
        BadArchive.delay_s = 0.0


def test_a_certificate_must_be_known_and_no_password_stands_in_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words, *files], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BadArchive)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(BadArchive, "answer", (200, JSON, b"[]"))
    archive = WebArchive(url=f"https://localhost:{server.server_port}")
    try:
        with pytest.raises(InputError, match="REQUESTS_CA_BUNDLE") as refused:
            list(archive.ct_studies(None))
        assert refused.value.code == "archive-untrusted"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert list(archive.ct_studies(None)) == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none"))
        with pytest.raises(InputError, match="PEM file") as refused:
            list(archive.ct_studies(None))
        assert refused.value.path == str(tmp_path / "none")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UsageError, match="KIDSEG_ARCHIVE_LOGIN") as leaky:
        WebArchive(url="https://kidseg:secret@localhost/dicom-web")
    assert leaky.value.code == "password-in-address" and "secret" not in str(leaky.value)


def parts_of(files: Sequence[Path]) -> bytes:
    head = b"\r\n--x\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + path.read_bytes() for path in files) + b"\r\n--x--\r\n"


JSON, DICOM = "application/dicom+json", 'multipart/related; type="application/dicom"; boundary=x'


@pytest.mark.parametrize(
    ("status", "kind", "body", "code"),
    [
        (401, "text/plain", b"", "archive-forbids"),
        (403, "text/plain", b"", "archive-forbids"),
        (404, "text/plain", b"", "archive-refuses"),
        (500, "text/plain", b"", "unreachable"),
        (503, "text/plain", b"", "unreachable"),
        (200, "text/html", b"<html>", "archive-refuses"),
        (200, JSON, b'[{"0020000D": {"vr": "UI"}}]', "archive-refuses"),
        (200, JSON, b'{"a": 1}', "archive-refuses"),
        (200, JSON, b'["a"]', "archive-refuses"),
    ],
)
def test_an_archive_that_does_not_answer_what_was_asked(
    bad_archive: WebArchive, status: int, kind: str, body: bytes, code: str
) -> None:
    BadArchive.answer = (status, kind, body)
    assert code_of(lambda: list(bad_archive.ct_studies(None))) == code


def test_an_archive_without_dicomweb_is_told_from_one_without_a_series(
    bad_archive: WebArchive,
) -> None:
    """As Orthanc answers without its plug-in; a series may be removed meanwhile."""
    BadArchive.answer = (404, JSON, b'{"HttpStatus": 404}')
    with pytest.raises(InputError, match="no DICOMweb service") as refused:
        list(bad_archive.ct_studies(None))
    assert "plug-in" in refused.value.next_step and refused.value.path == bad_archive.url
    with pytest.raises(InputError, match="answers 404") as refused:
        bad_archive.ct_series("1.2")
    assert "plug-in" not in refused.value.next_step
    command = [sys.executable, "-m", "kidseg", "dicomweb", bad_archive.url, "--once"]
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run([*command, "--folder", work], capture_output=True, text=True)
    assert done.returncode == 3 and "orthanc-dicomweb" in done.stderr


def code_of(act: Callable[[], object]) -> str:
    try:
        act()
    except UnreachableError:
        return "unreachable"
    except InputError as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    "url", ["", "archive", "ftp://a/b", "http://", "http://a:99999/b", "http://[a/b", "http://a:x"]
)
def test_what_is_no_address_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        WebArchive(url=url)
    assert refused.value.code == "bad-address" and "dicom-web" in refused.value.next_step


def test_why_an_archive_cannot_be_reached_is_said() -> None:
    nobody = f"http://127.0.0.1:{free_port()}/dicom-web"
    with pytest.raises(UnreachableError, match=f"{nobody} .Connection refused"):
        list(WebArchive(url=nobody).ct_studies(None))
    with pytest.raises(UnreachableError, match=r"no-such-host.invalid/x \(.*(?i:name)"):
        list(WebArchive(url="http://no-such-host.invalid/x").ct_studies(None))


def run_once(*words: str | Path) -> subprocess.CompletedProcess[str]:
    every = [sys.executable, "-m", "kidseg", *map(str, words), "--once", "--device", "cpu"]
    return subprocess.run(every, capture_output=True, text=True, timeout=120)


@pytest.mark.ci
def test_with_once_an_archive_that_does_not_answer_is_given_up(
    bad_archive: WebArchive, tmp_path: Path
) -> None:
    """Whether nobody is there or it answers 503; the error names it and what to do."""
    BadArchive.answer = (503, "text/plain", b"")
    nobody = f"http://127.0.0.1:{free_port()}/dicom-web"
    for url, cause in ((nobody, "Connection refused"), (bad_archive.url, "answers 503")):
        words = ["--folder", tmp_path, "--every", "0.1", "--attempts", "2"]
        done = run_once("dicomweb", url, *words)
        assert done.returncode == 3 and done.stderr.count("looking again") == 1, done.stderr
        last = " ".join(done.stderr.split("looking again in 0.1 s")[1].split())
        assert f"{url}: 2 looks in a row failed, the last because" in last and cause in last
        assert "Check the address" in last and f"--folder {tmp_path} to go on" in last


@pytest.mark.ci
def test_with_once_results_that_cannot_be_sent_wait_for_the_next_start(tmp_path: Path) -> None:
    """The node ends, says so, and sends them when it is started again."""
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return SUCCESS

    queue = SeriesQueue.opened(tmp_path)
    number = queue.add("1.2", "1.2.3", "x", "segmented")
    assert number is not None
    results = queue.place(number) / "results"
    results.mkdir(parents=True)
    images_of(tmp_path / "ct")[0].rename(results / "a.dcm")
    words = ["--port", "0", "--folder", tmp_path, "--attempts", "1"]
    done = run_once("node", "--to", f"ARCHIVE@127.0.0.1:{free_port()}", *words)
    assert done.returncode == 4, done.stderr
    assert "series 1: unreachable (attempts: 1); start again with --folder" in done.stdout
    assert [series.state for series in queue.all()] == ["segmented"]
    with peer_that([CTImageStorage], store) as peer:
        done = run_once("node", "--to", f"{peer.title}@{peer.host}:{peer.port}", *words)
    assert done.returncode == 0 and "1 series segmented, results sent" in done.stdout, done.stderr
    assert len(got) == 1 and [series.state for series in queue.all()] == ["sent"]


def test_a_slow_archive_is_not_waited_for_long(bad_archive: WebArchive) -> None:
    BadArchive.answer, BadArchive.delay_s = (200, JSON, b"[]"), 1.0
    begin = time.monotonic()
    assert code_of(lambda: list(bad_archive.ct_studies(None))) == "unreachable"
    assert time.monotonic() - begin < 0.9


def test_only_a_whole_series_is_taken(bad_archive: WebArchive, tmp_path: Path) -> None:
    files = images_of(tmp_path / "ct")
    header = pydicom.dcmread(files[0])
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]
    wanted = replace(
        NOTHING,
        study=str(header.StudyInstanceUID),
        series=str(header.SeriesInstanceUID),
        digest=digest_of(uids),
    )
    whole = parts_of(files)

    def fetched(body: bytes, series: Series = wanted, kind: str = DICOM) -> str:
        BadArchive.answer = (200, kind, body)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        return code_of(lambda: bad_archive.fetch(series, folder))

    assert fetched(whole) == ""
    cut = "incomplete-answer"
    assert fetched(parts_of(files[1:])) == cut
    assert fetched(parts_of([])) == cut
    assert fetched(whole[: len(whole) // 2]) == cut
    assert fetched(whole.replace(b"DICM", b"MCID", 1)) == cut
    assert fetched(b"<html>", kind="text/html") == cut
    assert fetched(whole, replace(wanted, series="9.8.7")) == cut


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

    def instances(self, study: str, series: str) -> dict[str, int]:
        self.asked += 1
        return {image: 3 if "frames" in image else 1 for image in self.series[series]}


def test_a_poison_study_hides_no_other(tmp_path: Path) -> None:
    """Three in a row are the archive's fault; so is a study that is all there is."""

    @dataclass
    class Poison(Catalogue):
        studies: Sequence[str] = ()
        error: Exception = DOWN

        def ct_studies(self, since_days: int | None) -> list[str]:
            return list(self.studies)

        def ct_series(self, study: str) -> dict[str, int | None]:
            if study == "bad":
                raise self.error
            return {study: 2}

    def found(folder: str, studies: Sequence[str], error: Exception = DOWN) -> tuple[int, int]:
        series = {study: ["1", "2"] for study in studies}
        archive: Any = Poison(series, studies=studies, error=error)
        queue, seen, said = SeriesQueue.opened(tmp_path / folder), dict[str, Look](), list[str]()
        known = {"min_images": 1, "since_days": None, "say": said.append}
        return sum(find_series(archive, queue, seen, **known) for _ in range(2)), len(said)

    assert found("a", ["x", "bad", "y", "bad", "bad", "z"]) == (3, 2)
    assert found("b", ["bad", "x"], BAD) == (1, 2)
    for folder, studies in (("c", ["x", "bad", "bad", "bad", "y"]), ("d", ["bad"])):
        with pytest.raises(UnreachableError):
            found(folder, studies)
    with pytest.raises(InputError, match="401"):
        found("e", ["x", "bad", "y"], FORBIDDEN)


# A real archive.


@dataclass
class RealArchive:
    """An Orthanc that can be killed and started again."""

    folder: Path
    http: int
    dicom: int
    peers: dict[str, list[Any]] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
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
            **self.more,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "log").open("ab") as log:
            words = ["Orthanc", str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        until(self.answers)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/system", timeout=30).close()
        except urllib.error.HTTPError:  # it asks for a user
            return True
        except OSError:
            return False
        return True

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


def real_archive(folder: Path) -> Iterator[RealArchive]:
    """An Orthanc of its own in a new folder, as the body of a fixture."""
    folder.mkdir()
    real = RealArchive(folder, free_port(), free_port())
    real.start()
    yield real
    real.kill()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[RealArchive]:
    yield from real_archive(tmp_path / "orthanc")


@ORTHANC
def test_an_archive_with_users_is_opened_by_a_login_alone(tmp_path: Path) -> None:
    users = {"AuthenticationEnabled": True, "RegisteredUsers": {"kidseg": "secret ä"}}
    (tmp_path / "orthanc").mkdir()
    real = RealArchive(tmp_path / "orthanc", free_port(), free_port(), more=users)
    real.start()
    url = f"{real.address}/dicom-web"
    wrong = (
        WebArchive(url=url),
        WebArchive(url=url, login="kidseg:no"),
        WebArchive(url=url, token="x"),
    )
    try:
        for archive in wrong:
            with pytest.raises(InputError, match="KIDSEG_ARCHIVE_LOGIN") as refused:
                list(archive.ct_studies(None))
            assert refused.value.code == "archive-forbids"
        assert list(WebArchive(url=url, login="kidseg:secret ä").ct_studies(None)) == []
    finally:
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
    words += ["--attempts", "60"]  # it is away for longer than three seconds
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
    words += ["--min-images", "5"]
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


SEND = """
import sys
from pathlib import Path
from kidseg.pacs.peer import Peer
from kidseg.pacs.series_queue import Series
series = Series(number=1, study="", series="", digest="", state="here", attempts=0, code="")
files = sorted(Path(sys.argv[2]).rglob("*.dcm"), reverse=sys.argv[3] == "backwards")
Peer(title="KIDSEG", host="127.0.0.1", port=int(sys.argv[1]), own_title="CT").send(series, files)
"""


@pytest.mark.requirement("archive")
@pytest.mark.slow
def test_a_study_that_several_send_at_once_is_done_once(tmp_path: Path) -> None:
    """By processes of their own, one of them killed; and again while it is segmented."""
    study = tmp_path / "study"
    places = patients(study, 2)
    uid = pydicom.dcmread(next(places[0].iterdir())).StudyInstanceUID
    for image in places[1].iterdir():
        ds = pydicom.dcmread(image)
        ds.StudyInstanceUID = uid
        ds.save_as(image)
    results: list[pydicom.Dataset] = []
    kinds = [f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("66.4", "88.33", "104.1")]

    def store(event: Any) -> int:
        results.append(event.dataset)
        return SUCCESS

    def senders(port: int, *orders: str) -> list[subprocess.Popen[bytes]]:
        words = [sys.executable, "-c", SEND, str(port), str(study)]
        return [subprocess.Popen([*words, order]) for order in orders]

    port, log = free_port(), tmp_path / "said"
    with peer_that(kinds, store) as peer:
        words = ["node", "--to", f"ARCHIVE@127.0.0.1:{peer.port}", "--port", str(port)]
        words += ["--folder", str(tmp_path / "work"), "--device", "cpu", "--quiet-s", "5"]
        node = subprocess.Popen(
            [sys.executable, "-m", "kidseg", *words, "--min-images", "5"],
            stderr=log.open("ab", buffering=0),
        )
        try:
            until(lambda: "listens" in log.read_text(), 300)
            killed, *others = senders(port, "forwards", "forwards", "backwards", "backwards")
            until(lambda: any((tmp_path / "work").glob("arriving/*/*.dcm")), 120)
            killed.kill()
            assert [other.wait(300) for other in others] == [0, 0, 0]
            until(lambda: "images arrived" in log.read_text(), 300)
            assert [again.wait(300) for again in senders(port, "forwards", "backwards")] == [0, 0]
            until(lambda: log.read_text().count("results are in the archive") == 2, 600)
            until(lambda: not any((tmp_path / "work").glob("arriving/*/*.dcm")), 120)
            time.sleep(5)
        finally:
            node.terminate()
            node.wait(60)
    assert [each.state for each in SeriesQueue.opened(tmp_path / "work").all()] == ["sent"] * 2
    counts = sorted(len(list(place.iterdir())) for place in places)
    said = re.findall(r"(\d+) images arrived", log.read_text())
    assert sorted(map(int, said)) == counts, log.read_text()
    assert len({each.SOPInstanceUID for each in results}) == len(results) == 6
    assert {each.StudyInstanceUID for each in results} == {uid}
    assert sorted(each.Modality for each in results) == sorted(["SEG", "SR", "DOC"] * 2)


def other_objects(image: Path, folder: Path) -> list[bytes]:
    """A localizer, an MR image and a report of the study of an image, as files."""
    found = []
    kinds = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
    for modality, kind in {**kinds, "SR": "1.2.840.10008.5.1.4.1.1.88.33"}.items():
        ds = pydicom.dcmread(image)
        ds.Modality, ds.SeriesInstanceUID = modality, generate_uid()
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.save_as(path := folder / f"{modality}.dcm")
        found.append(path.read_bytes())
    return found


@pytest.mark.requirement("archive")
@ORTHANC
@pytest.mark.slow
def test_a_node_does_each_series_once_whatever_the_archive_sends(
    archive: RealArchive, tmp_path: Path
) -> None:
    """Whole studies with other objects, in two halves, twice, one series more; and kill -9."""
    port, log = free_port(), tmp_path / "said"
    archive.kill()
    archive.peers = {"kidseg": ["KIDSEG", "127.0.0.1", port]}
    archive.start()
    words = ["node", "--to", f"ARCHIVE@127.0.0.1:{archive.dicom}", "--port", str(port)]
    words += ["--folder", str(tmp_path / "work"), "--device", "cpu", "--quiet-s", "15"]
    words += ["--min-images", "5"]

    def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "kidseg", *words], stderr=log.open("ab", buffering=0)
        )
        until(lambda: log.read_text().count("listens") > begins, 300)
        return process

    def sent(*resources: str) -> None:
        data = json.dumps(list(resources)).encode()
        assert archive.ask("/modalities/kidseg/store", data) is not None

    first, second = patients(tmp_path / "patients", 2)
    images = [
        archive.ask("/instances", path.read_bytes())["ID"] for path in sorted(first.iterdir())
    ]
    for other in other_objects(next(first.iterdir()), tmp_path):
        archive.ask("/instances", other)
    (study,) = archive.ask("/studies")
    begins = 0
    process = started()
    sent(*images[::2])
    time.sleep(3)
    sent(study)  # the second half, with everything
    until(lambda: "images arrived" in log.read_text(), 120)
    process.kill()  # while it segments
    process.wait()
    begins = 1
    process = started()
    until(lambda: "results are in the archive" in log.read_text(), 600)
    sent(study)  # twice, with the results
    uid = pydicom.dcmread(next(first.iterdir())).StudyInstanceUID
    for path in second.iterdir():
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID, ds.PatientID = uid, pydicom.dcmread(next(first.iterdir())).PatientID
        ds.save_as(path)
        archive.ask("/instances", path.read_bytes())
    sent(study)  # with one series more
    until(lambda: log.read_text().count("results are in the archive") == 2, 600)
    process.terminate()
    assert process.wait(60) == 143
    found = sorted(
        archive.ask(f"/series/{each}")["MainDicomTags"]["Modality"]
        for each in archive.ask("/series")
    )
    assert found == sorted(["CT"] * 3 + ["MR", "SR"] + ["SEG", "SR", "DOC"] * 2), log.read_text()
    states = [each.state for each in SeriesQueue.opened(tmp_path / "work").all()]
    assert states == ["sent"] * 2, "no localizer is done, and none is set aside"
    assert "discarded" in log.read_text() and "waits for more" in log.read_text()


def test_the_document_belongs_to_the_study_and_holds_every_warning(tmp_path: Path) -> None:
    """Any number of warnings, on as many pages as they need; the PDF as it was, in the object."""
    source, _ = make_case(tmp_path / "ct", "axial")
    warning = {"cause": "slices are 6 mm apart", "next_step": "Use thinner ones."}
    entry: dict[str, Any] = {
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
    starter = {**entry["model"], "name": "starter", "use": "made for tests"}
    without_sides = {**entry, "warnings": [], "sides": None, "model": starter}
    lines = list(_lines(without_sides))
    assert lines[0] == "Warnings: none" and "Model starter: made for tests" in lines
    with (tmp_path / "a.dcm").open("wb") as file:
        write_encapsulated_pdf(pdf, source.headers[0], ORIGIN, file)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert found.StudyInstanceUID == source.headers[0].StudyInstanceUID
    assert found.SeriesInstanceUID != source.headers[0].SeriesInstanceUID
    assert found.EncapsulatedDocument[: found.EncapsulatedDocumentLength] == pdf
    if shutil.which("dciodvfy"):
        said = subprocess.run(["dciodvfy", tmp_path / "a.dcm"], capture_output=True, text=True)
        assert "Error" not in said.stderr


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
    assert archive.asked == (5 if counts else 12)


def test_a_file_of_many_images_is_not_short(tmp_path: Path) -> None:
    archive: Any = Catalogue({"enhanced": ["frames"], "localizer": ["1", "2"]})
    queue, seen = SeriesQueue.opened(tmp_path), dict[str, Look]()
    known = {"min_images": 3, "since_days": None}
    assert sum(find_series(archive, queue, seen, **known) for _ in range(3)) == 1
    assert [each.series for each in queue.all()] == ["enhanced"] and archive.asked == 3


@pytest.mark.parametrize(("size", "page"), [(0, 9), (7, 9), (300, 100), (300, 200), (120, None)])
def test_all_of_a_search_is_found_whatever_the_pages(size: int, page: int | None) -> None:
    """Pages of the archive's own size; None: it knows no pages, and always answers with all."""
    items = [{"00080018": {"vr": "UI", "Value": [f"1.2.{k}"]}} for k in range(size)]

    def search(limit: int, offset: int) -> list[dict[str, Any]]:
        return items if page is None else items[offset : offset + min(limit, page)]

    assert [uid for uid, _ in _found(search, "00080018")] == [f"1.2.{k}" for k in range(size)]


def test_what_is_no_ct_is_not_asked_for(bad_archive: WebArchive) -> None:
    """Some archives do not look at the modality that was asked for."""

    def series(uid: str, modality: str, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {"0020000E": uid, "00080060": modality, "00201209": count}
        return {tag: {"vr": "UI", "Value": [value]} for tag, value in values.items() if value}

    found = [series("1", "CT", 9), series("2", "MR", 9), series("3", "", 0)]
    BadArchive.answer = (200, JSON, json.dumps(found).encode())
    assert bad_archive.ct_series("1.2") == {"1": 9, "3": None}


@pytest.mark.parametrize(
    ("reasons", "code"),
    [
        ([], ""),
        ([0x0111], ""),
        ([0x0122], "archive-refuses"),
        ([0x0111, 0x0122], "archive-refuses"),
        ([0xA700], "unreachable"),
        ([0x0122, 0xA701], "unreachable"),
    ],
)
def test_why_results_were_not_stored_decides_whether_they_are_sent_again(
    bad_archive: WebArchive, tmp_path: Path, reasons: list[int], code: str
) -> None:
    """What is there already is stored; room may come."""
    failed = [{"00081197": {"vr": "US", "Value": [reason]}} for reason in reasons]
    answer = {"00081198": {"vr": "SQ", "Value": failed}} if failed else {}
    BadArchive.answer = (200, JSON, json.dumps(answer).encode())
    files = images_of(tmp_path / "ct")[:1]
    assert code_of(lambda: bad_archive.send(NOTHING, files)) == code
