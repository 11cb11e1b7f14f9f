"""A DICOM node: images arrive by C-STORE, results go out by C-STORE.

An archive sends whole studies, and some end at the first object that is not taken. So everything is
taken, and what is no CT image is discarded.

Source: DICOM PS3.4, B (Storage Service Class); status codes: B.2.3.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kidseg.errors import InputError
from kidseg.io.dicom_header import quiet, read_dataset, reading
from kidseg.pacs.peer import OUT_OF_RESOURCES, SUCCESS
from kidseg.pacs.series_queue import IMAGES_MISSING, Series, SeriesQueue, digest_of
from kidseg.serve.policy import address_in_use

__all__ = ["Arrivals", "receiving"]

DISCARDED, CANNOT_UNDERSTAND = 0xB006, 0xC000
_SPARE_BYTES = 1 << 30
_LEAST_BYTES = _SPARE_BYTES // 2
_PDU_BYTES = 1 << 20
_MAX_IMAGES = 20_000
_ABANDONED_S = 600.0
_SHORT_KEPT_S = 24 * 3600.0
# CT Image Storage, Enhanced, Legacy Converted Enhanced. Source: DICOM PS3.6, A.
_CT = {f"1.2.840.10008.5.1.4.1.1.2{end}" for end in ("", ".1", ".2")}
# A series in these states is begun again when its images come again.
_OPEN_AGAIN = ("arriving", "aside")
_NOT_KEPT = {
    DISCARDED: "are no CT images, and were discarded",
    OUT_OF_RESOURCES: "were refused: the disk is full",
    CANNOT_UNDERSTAND: "were refused: they cannot be read",
}


@dataclass(kw_only=True, eq=False)
class Arrivals:
    """Images as they arrive, and series when they are complete.

    Attributes:
        queue: to add complete series to.
        quiet_s: a series is taken for complete when no image has come for so long.
        min_images: shorter series, such as localizers, wait for more images, and are removed after
            a day. A file may have several.
        note: called with the number of a series, an event, and what happened in words; a code.
        say: called with a line for people.
    """

    queue: SeriesQueue
    quiet_s: float
    min_images: int = 1
    note: Callable[[int, str, str, str], None] = lambda *_: None
    say: Callable[[str], None] = lambda line: None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _last: dict[str, float] = field(default_factory=dict, repr=False)
    _short: set[str] = field(default_factory=set, repr=False)
    _not_kept: Counter[int] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        shutil.rmtree(self.incoming, ignore_errors=True)  # of an earlier process
        self.incoming.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def incoming(self) -> Path:
        """Folder of the objects that are being received."""
        return self.queue.folder / "incoming"

    @property
    def folder(self) -> Path:
        """One folder for each series that is arriving, named by a digest of its UID."""
        return self.queue.folder / "arriving"

    @property
    def are_pending(self) -> bool:
        """Are there images of series that are not complete? Short ones are not waited for."""
        return any(place.name not in self._short for place in self._places())

    def take(self, instance: str, received: Path, kind: str = min(_CT)) -> int:
        """Keep an image; the status to answer, once it is on the disk.

        Args:
            instance: its SOP Instance UID, as the sender states it.
            received: a whole DICOM file on the disk of the queue; moved if it is kept.
            kind: its SOP Class UID; only CT images are kept.
        """
        status = self._take(instance, received) if kind in _CT else DISCARDED
        if status != SUCCESS:
            with self._lock:
                self._not_kept[status] += 1
        return status

    def _take(self, instance: str, received: Path) -> int:
        if shutil.disk_usage(self.incoming).free < _SPARE_BYTES:
            return OUT_OF_RESOURCES
        try:
            with received.open("rb") as file:
                os.fsync(file.fileno())
            with quiet(), reading(received):
                header = read_dataset(received, headers_only=True)
                study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
                known = instance == str(header.SOPInstanceUID)
                _frames(header)  # can be read, when the series is complete
            if not (known and study and series):
                return CANNOT_UNDERSTAND
            with self._lock:
                place = self.folder / _name(series)
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
                if sum(1 for _ in place.iterdir()) > _MAX_IMAGES:
                    return OUT_OF_RESOURCES
                received.replace(place / f"{_name(instance)}.dcm")
                self._last[place.name] = time.monotonic()
                self._short.discard(place.name)
        except InputError:
            return CANNOT_UNDERSTAND
        except OSError:
            return OUT_OF_RESOURCES
        return SUCCESS

    @property
    def is_full(self) -> bool:
        """Is there no room left even for what is being received?"""
        return shutil.disk_usage(self.incoming).free < _LEAST_BYTES

    def refuse(self) -> None:
        """An object was not received: there is no room."""
        with self._lock:
            self._not_kept[OUT_OF_RESOURCES] += 1

    def _sweep(self) -> None:
        """Remove what was received in part, and goes on no more."""
        for path in self.incoming.glob("*.dcm"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()

    def settle(self) -> int:
        """Move complete series into the queue, and say what was not kept; their number.

        Raises:
            OSError: such as of a full disk. Everything stays, to be moved the next time.
        """
        added, now = 0, time.monotonic()
        self._sweep()
        with self._lock:
            for status, count in self._not_kept.items():
                self.say(f"{count} objects that arrived {_NOT_KEPT[status]}")
            self._not_kept.clear()
            for place in self._places():
                # Of an earlier process: silence begins now.
                silence = now - self._last.setdefault(place.name, now)
                is_old = silence >= _SHORT_KEPT_S
                if silence >= self.quiet_s and (is_old or place.name not in self._short):
                    added += self._move(place, is_old)
        return added

    def _places(self) -> list[Path]:
        """Folders with images."""
        return sorted(path for path in self.folder.glob("[!.]*") if any(path.glob("*.dcm")))

    def _move(self, place: Path, is_old: bool) -> bool:
        """One series; False if all of its images are known, or too few.

        Images that come late are added to those that came before, if these are still here;
        otherwise the series is set aside, because a part of it would be taken for the whole. One
        that was set aside is tried again when it comes again.
        """
        images = sorted(place.glob("*.dcm"))
        with quiet(), reading(images[0]):
            header = read_dataset(images[0], headers_only=True)
        study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
        arrived, known = {path.stem: path for path in images}, self.queue.images(series)
        before = [each for each in self.queue.all() if each.series == series]
        if arrived.keys() <= known and not any(each.state in _OPEN_AGAIN for each in before):
            self._clear(place)
            return False
        whole = {**self._earlier(before), **arrived}
        missing = known - whole.keys()
        if not missing and self._is_short(whole.values()):
            self._wait_for_more(place, len(whole), is_old)
            return False
        digest = digest_of(whole)
        self.queue.add(study, series, digest, "arriving")
        found = self.queue.known(series, digest)
        assert found is not None
        if is_new := found.state in _OPEN_AGAIN:
            self._keep(found, whole, bool(missing))
        self._clear(place)
        return is_new

    def _earlier(self, before: Sequence[Series]) -> dict[str, Path]:
        """Images of a series that came before and are still here."""
        return {
            path.stem: path
            for each in before
            if each.state != "arriving"
            for path in (self.queue.place(each.number) / "images").glob("*.dcm")
        }

    def _is_short(self, images: Collection[Path]) -> bool:
        """Has it fewer images than the least, those in a file counted each?"""
        if len(images) >= self.min_images:
            return False
        count = 0
        for path in images:
            with quiet(), reading(path):
                count += _frames(read_dataset(path, headers_only=True))
        return count < self.min_images

    def _wait_for_more(self, place: Path, count: int, is_old: bool) -> None:
        least = f"a series of {count} images, fewer than {self.min_images},"
        if is_old:
            self._clear(place)
            self.say(f"{least} was removed: no more of it came")
        else:
            self._short.add(place.name)
            self.say(f"{least} waits for more")

    def _keep(self, found: Series, whole: Mapping[str, Path], is_part: bool) -> None:
        """Copy the images of a series to its place: it is to be segmented, or set aside."""
        target = self.queue.place(found.number) / "images"
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in whole.values():
            if path.parent != target:
                shutil.copyfile(path, target / path.name)
        if is_part:  # once all of them come, they are done
            self.queue.set_aside(found.number, IMAGES_MISSING)
        else:
            self.queue.remember(found.series, whole)
            self.queue.advance(found.number, "here")
        for other in self.queue.replace_others(found.series, found.digest):
            self.note(other, "replaced", f"series {found.number} has it with more images", "")
        if is_part:
            why = f"{IMAGES_MISSING}: set aside in {target.parent} until all of them come"
            self.note(found.number, "set-aside", why, IMAGES_MISSING)
        else:
            self.note(found.number, "arrived", f"{len(whole)} images arrived", "")

    def _clear(self, place: Path) -> None:
        shutil.rmtree(place)
        self._last.pop(place.name, None)
        self._short.discard(place.name)


def _frames(header: Any) -> int:
    """Number of images in a file."""
    return int(header.get("NumberOfFrames") or 1)


def _name(uid: str) -> str:
    """A file name for an identifier that a client gave."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


@contextmanager
def receiving(
    arrivals: Arrivals, *, title: str, host: str, port: int, callers: Sequence[str]
) -> Iterator[int]:
    """Take what is sent in this block; the port.

    Args:
        arrivals: to give them to.
        title: application entity title of this node.
        host: address to listen on.
        port: to listen on; 0: any free one.
        callers: titles of nodes that may send; (): any.

    Raises:
        UsageError: "address-in-use".
    """
    from pynetdicom import (
        AE,
        ALL_TRANSFER_SYNTAXES,
        AllStoragePresentationContexts,
        evt,
    )
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    entity = AE(ae_title=title)
    entity.require_called_aet = False
    entity.require_calling_aet = list(callers)
    entity.maximum_associations = 20
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(Verification)

    def store(event: Any) -> int:
        asked = event.request
        kind, instance = str(asked.AffectedSOPClassUID), str(asked.AffectedSOPInstanceUID)
        return arrivals.take(instance, event.dataset_path, kind)

    def bound(event: Any) -> None:
        """The library would take a part of any size into memory, whatever was agreed."""
        link = event.assoc.dul.socket
        receive = link.recv

        def received(count: int) -> Any:
            if count > _PDU_BYTES:
                raise OSError(f"a part of {count} bytes")
            return receive(count)

        link.recv = received

    def watch(event: Any) -> None:
        if event.assoc.is_established and arrivals.is_full:
            arrivals.refuse()
            event.assoc.abort(block=False)

    handlers: Any = [
        (evt.EVT_C_STORE, store),
        (evt.EVT_CONN_OPEN, bound),
        (evt.EVT_PDU_RECV, watch),
    ]
    with _streamed(arrivals.incoming):
        try:
            server = entity.start_server((host, port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise address_in_use(host, port, error) from error
        assert server is not None
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()


@contextmanager
def _streamed(folder: Path) -> Iterator[None]:
    """Let pynetdicom write objects into files of a folder as they come, instead of into memory.

    Its settings, and where temporary files are, are those of the whole process.
    """
    from pynetdicom import _config

    before = _config.STORE_RECV_CHUNKED_DATASET, tempfile.tempdir
    _config.STORE_RECV_CHUNKED_DATASET, tempfile.tempdir = True, str(folder)
    try:
        yield
    finally:
        _config.STORE_RECV_CHUNKED_DATASET, tempfile.tempdir = before
