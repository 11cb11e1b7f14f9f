"""The DICOM node that results go to, by C-STORE.

Source: DICOM PS3.4, B (Storage Service Class); status codes: B.2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kidseg.errors import InputError, UsageError
from kidseg.pacs.series_queue import Series
from kidseg.pacs.worker import Archive, UnreachableError

__all__ = ["OUT_OF_RESOURCES", "SUCCESS", "Peer", "check_titles"]

SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
# What the archive did with an object that it has now: it was changed, or was there before.
_STORED = (SUCCESS, 0xB000, 0xB006, 0xB007, 0x0111)


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
            UsageError: "bad-peer".
        """
        title, _, address = text.partition("@")
        host, _, port = address.rpartition(":")
        known = host and port.isdecimal() and port.isascii() and 0 < int(port) < 65536
        if not (known and _is_title(title)):
            raise UsageError(
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
        if link.is_rejected:
            raise UnreachableError(
                f"the archive rejects this node: does it know the title {self.own_title}, and is"
                f" its own title {self.title}?"
            )
        if not link.is_established:
            raise UnreachableError(f"the archive does not answer at {self.host}:{self.port}")
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
        if status not in _STORED:
            raise _refused(f"the archive answers {status:#06x}")


def check_titles(titles: Sequence[str]) -> None:
    """Check titles of nodes.

    Raises:
        UsageError: "bad-title".
    """
    for title in titles:
        if not _is_title(title):
            raise UsageError(
                f"'{title}' cannot be the title of a DICOM node",
                code="bad-title",
                next_step="A title has 1 to 16 characters of ASCII, without backslash, such as"
                " KIDSEG.",
            )


def _is_title(text: str) -> bool:
    """Is it an application entity title? Source: DICOM PS3.5, 6.2, AE."""
    return (
        bool(text.strip())
        and len(text) <= 16
        and text.isascii()
        and text.isprintable()
        and ("\\" not in text)
    )


def _refused(cause: str) -> InputError:
    return InputError(cause, code="archive-refuses", next_step="Look into the log of the archive.")


def _cannot_fetch(series: Series, folder: Path) -> None:
    raise AssertionError("images come by themselves")
