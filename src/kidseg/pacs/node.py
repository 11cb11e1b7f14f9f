"""A DICOM node: images arrive by C-STORE, results go out by C-STORE.

Source: DICOM PS3.4, B (Storage Service Class); status codes: B.2.3.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kidseg.errors import InputError, ResourceError
from kidseg.io.dicom_header import quiet, read_dataset, reading
from kidseg.pacs.series_queue import Series, SeriesQueue, digest_of
from kidseg.pacs.worker import Archive, UnreachableError

__all__ = ["Arrivals", "Peer", "receiving"]

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
_SPARE_BYTES = 1 << 30
_MAX_IMAGES = 20_000


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The node that results go to.

    Attributes:
        title: its application entity title.
        host: its address.
        port: its port.
        own_title: how this node calls itself.
        timeout_s: for each answer.
    """

    title: str
    host: str
    port: int
    own_title: str = "KIDSEG"
    timeout_s: float = 30.0

    @classmethod
    def from_text(cls, text: str, own_title: str) -> Peer:
        """From TITLE@HOST:PORT.

        Raises:
            InputError: "bad-peer".
        """
        title, _, address = text.partition("@")
        host, _, port = address.rpartition(":")
        if not (0 < len(title) <= 16 and host and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(
                f"'{text}' is not TITLE@HOST:PORT",
                code="bad-peer",
                next_step="Give it such as ARCHIVE@127.0.0.1:4242.",
            )
        return cls(title=title, host=host, port=int(port), own_title=own_title)

    @property
    def archive(self) -> Archive:
        """To send to; images come by themselves."""
        return Archive(fetch=_cannot_fetch, send=self.send)

    def send(self, series: Series, files: Sequence[Path]) -> None:
        """Store files in the node; see `Archive`."""
        import pydicom
        from pynetdicom import AE

        objects = [pydicom.dcmread(path) for path in files]
        entity = AE(ae_title=self.own_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.timeout_s
        entity.connection_timeout = self.timeout_s
        for uid in dict.fromkeys(each.SOPClassUID for each in objects):
            entity.add_requested_context(uid)
        link = entity.associate(self.host, self.port, ae_title=self.title)
        if not link.is_established:
            raise UnreachableError("the archive does not answer, or rejects this node")
        try:
            accepted = {context.abstract_syntax for context in link.accepted_contexts}
            for each in objects:  # all or none of them are sent
                if each.SOPClassUID not in accepted:
                    raise _refused(f"the archive does not take {each.SOPClassUID.name}")
            for each in objects:
                self._store(link, each)
        finally:
            link.release()

    def _store(self, link: Any, each: Any) -> None:
        try:
            status = link.send_c_store(each).get("Status")
        except RuntimeError as error:  # the association was aborted
            raise UnreachableError("the archive ended the association") from error
        except (ValueError, AttributeError) as error:
            raise _refused(f"the archive does not take {each.SOPClassUID.name}") from error
        if status is None or status & 0xFF00 == OUT_OF_RESOURCES:
            raise UnreachableError("the archive does not answer, or has no room")
        if status not in (SUCCESS, 0xB000, 0xB006, 0xB007):
            raise _refused(f"the archive answers {status:#06x}")


def _refused(cause: str) -> InputError:
    return InputError(cause, code="archive-refuses", next_step="Look into the log of the archive.")


def _cannot_fetch(series: Series, folder: Path) -> None:
    raise AssertionError("images come by themselves")


@dataclass(kw_only=True, eq=False)
class Arrivals:
    """Images as they arrive, and series when they are complete.

    Attributes:
        queue: to add complete series to.
        quiet_s: a series is taken for complete when no image has come for so long.
    """

    queue: SeriesQueue
    quiet_s: float
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _last: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """One folder for each series that is arriving, named by a digest of its UID."""
        return self.queue.folder / "arriving"

    @property
    def are_pending(self) -> bool:
        """Are there images of series that are not complete?"""
        return bool(self._places())

    def take(self, instance: str, content: bytes) -> int:
        """Keep an image; the status to answer, once it is on the disk.

        Args:
            instance: its SOP Instance UID, as the sender states it.
            content: a whole DICOM file.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if shutil.disk_usage(self.folder).free < _SPARE_BYTES + len(content):
            return OUT_OF_RESOURCES
        temporary = self.folder / f".{secrets.token_hex(8)}"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with quiet(), reading(temporary):
                header = read_dataset(temporary, headers_only=True)
                study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
                known = instance == str(header.SOPInstanceUID)
            if not (known and study and series):
                return CANNOT_UNDERSTAND
            with self._lock:
                place = self.folder / _name(series)
                place.mkdir(exist_ok=True, mode=0o700)
                if sum(1 for _ in place.iterdir()) > _MAX_IMAGES:
                    return OUT_OF_RESOURCES
                temporary.replace(place / f"{_name(instance)}.dcm")
                self._last[place.name] = time.monotonic()
        except InputError:
            return CANNOT_UNDERSTAND
        except OSError:
            return OUT_OF_RESOURCES
        finally:
            with suppress(OSError):
                temporary.unlink()
        return SUCCESS

    def settle(self) -> int:
        """Move complete series into the queue; their number.

        Raises:
            OSError: such as of a full disk. Everything stays, to be moved the next time.
        """
        added, now = 0, time.monotonic()
        with self._lock:
            for place in self._places():
                images = sorted(place.glob("*.dcm"))
                # Of an earlier process: silence begins now.
                last = self._last.setdefault(place.name, now)
                if images and now - last >= self.quiet_s:
                    added += self._move(place, images)
                    self._last.pop(place.name)
        return added

    def _places(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[!.]*") if path.is_dir())

    def _move(self, place: Path, images: Sequence[Path]) -> bool:
        """One series; False if all of its images are known.

        Images that come late are added to those that came before, if these are still here;
        otherwise the series is set aside, because a part of it would be taken for the whole.
        """
        with quiet(), reading(images[0]):
            header = read_dataset(images[0], headers_only=True)
        study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
        arrived, known = {path.stem: path for path in images}, self.queue.images(series)
        if arrived.keys() <= known and not self._is_interrupted(series):
            shutil.rmtree(place)
            return False
        whole = {**self._earlier(series), **arrived}
        missing = known - whole.keys()
        digest = digest_of(whole)
        self.queue.add(study, series, digest, "arriving")
        found = self.queue.known(series, digest)
        assert found is not None
        if is_new := found.state == "arriving":  # also if it was interrupted here
            target = self.queue.place(found.number) / "images"
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in whole.values():
                shutil.copyfile(path, target / path.name)
            if missing:  # once all of them come, they are done
                self.queue.set_aside(found.number, "images-missing")
            else:
                self.queue.remember(series, whole)
                self.queue.advance(found.number, "here")
        shutil.rmtree(place)
        return is_new

    def _is_interrupted(self, series: str) -> bool:
        """Was the move of this series interrupted?"""
        return any(each.series == series and each.state == "arriving" for each in self.queue.all())

    def _earlier(self, series: str) -> dict[str, Path]:
        """Images of the series that came before and are still here."""
        return {
            path.stem: path
            for each in self.queue.all()
            if each.series == series and each.state != "arriving"
            for path in (self.queue.place(each.number) / "images").glob("*.dcm")
        }


def _name(uid: str) -> str:
    """A file name for an identifier that a client gave."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


@contextmanager
def receiving(
    arrivals: Arrivals, *, title: str, host: str, port: int, callers: Sequence[str]
) -> Iterator[int]:
    """Take CT images in this block; the port.

    Args:
        arrivals: to give them to.
        title: application entity title of this node.
        host: address to listen on.
        port: to listen on; 0: any free one.
        callers: titles of nodes that may send; (): any.

    Raises:
        ResourceError: "port-in-use".
    """
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
    from pynetdicom.sop_class import (  # type: ignore[attr-defined]
        CTImageStorage,
        EnhancedCTImageStorage,
        LegacyConvertedEnhancedCTImageStorage,
        Verification,
    )

    entity = AE(ae_title=title)
    entity.require_called_aet = False
    entity.require_calling_aet = list(callers)
    entity.maximum_associations = 20
    for kind in (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        entity.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(Verification)

    def store(event: Any) -> int:
        return arrivals.take(str(event.request.AffectedSOPInstanceUID), event.encoded_dataset())

    try:
        server = entity.start_server(
            (host, port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
        )
    except OSError as error:
        raise ResourceError(
            f"port {port} of {host} cannot be listened on ({error.strerror})",
            code="port-in-use",
            next_step="Choose another --port.",
        ) from error
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
