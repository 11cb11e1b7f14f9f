"""An archive that speaks DICOMweb: studies are found, fetched and answered over HTTP.

Source: DICOM PS3.18 (QIDO-RS, WADO-RS, STOW-RS).
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kidseg.errors import InputError, KidsegError, UsageError, quoted
from kidseg.pacs.series_queue import Series, SeriesQueue, digest_of
from kidseg.pacs.worker import CLOSED, Archive, UnreachableError

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient

__all__ = ["Look", "WebArchive", "find_series"]

_SERIES, _STUDY, _INSTANCE, _IMAGES = "0020000E", "0020000D", "00080018", "00201209"
_MODALITY, _FRAMES = "00080060", "00280008"
_PAGE, _LEAST_PAGE = 200, 50
# The server is there, but cannot answer now. Source: RFC 9110, 15.6; RFC 6585, 4; RFC 4918, 11.5.
_NOT_NOW = {408, 425, 429, 500, 502, 503, 504, 507}
# It is the token, not what was asked for. Source: RFC 9110, 15.5.
_NOT_ALLOWED = {401, 403, 407}
_FAILED_STUDIES = 3
_DEEPEST = 30
# Reasons why an object was not stored: it is there; no room. Source: DICOM PS3.4, C-STORE; PS3.18.
_DUPLICATE, _NO_ROOM = 0x0111, 0xA700


@dataclass(frozen=True, kw_only=True)
class WebArchive:
    """An archive at an address.

    Attributes:
        url: of the DICOMweb service, such as http://archive:8042/dicom-web.
        token: of the Authorization header; "": none.
        login: "USER:PASSWORD" of HTTP Basic, if there is no token; "": none.
        timeout_s: for each answer.

    Raises:
        UsageError: "bad-address": of no web server; "password-in-address".
    """

    url: str
    token: str = field(default="", repr=False)
    login: str = field(default="", repr=False)
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not _is_web_address(self.url):
            raise UsageError(
                f"{quoted(self.url)} is not the address of a web server",
                code="bad-address",
                next_step="Give that of the archive's DICOMweb service, such as"
                " http://name:8042/dicom-web.",
            )
        if "@" in urlsplit(self.url).netloc:
            raise UsageError(
                "the address of the archive has a name or a password in it, which everybody on this"
                " machine would see, and which logs would keep",
                code="password-in-address",
                next_step="Leave it out, and set KIDSEG_ARCHIVE_LOGIN=USER:PASSWORD.",
            )

    @property
    def archive(self) -> Archive:
        """To fetch from and to send to."""
        return Archive(fetch=self.fetch, send=self.send)

    def fetch(self, series: Series, folder: Path) -> None:
        """Write the images of a series into a folder, one file for each; see `Archive`.

        Raises:
            InputError: "incomplete-answer": these are not the images of the series; see `Archive`.
        """
        from kidseg.io.dicom_header import quiet

        images = set[str]()
        with self._client() as client, quiet():
            found = client.iter_series(series.study, series.series)
            for k, image in enumerate(found):
                if image.SeriesInstanceUID != series.series:
                    raise _incomplete("it sent an image of another series")
                images.add(str(image.SOPInstanceUID))
                image.preamble = b"\0" * 128
                image.save_as(folder / f"{k:05d}.dcm", enforce_file_format=True)
        if digest_of(images) != series.digest:
            raise _incomplete(f"it sent {len(images)} images, which are not those that it lists")

    def send(self, series: Series, files: Sequence[Path]) -> None:
        """Store files in the study of a series; see `Archive`."""
        import pydicom

        objects = [pydicom.dcmread(path) for path in files]
        with self._client() as client:
            answer = client.store_instances(objects, study_instance_uid=series.study)
        failed = [int(each.get("FailureReason", 0)) for each in answer.get("FailedSOPSequence", ())]
        if any(reason & 0xFF00 == _NO_ROOM for reason in failed):
            raise UnreachableError("the archive has no room")
        if refused := [reason for reason in failed if reason != _DUPLICATE]:
            reasons = ", ".join(sorted({f"{reason:#06x}" for reason in refused}))
            raise InputError(
                f"the archive refused {len(refused)} of {len(objects)} objects ({reasons})",
                path=self.url,
                code="archive-refuses",
                next_step="Look into the log of the archive.",
            )

    def ct_studies(self, since_days: int | None) -> Iterator[str]:
        """UIDs of the studies with CT, of the last days only if a number is given."""
        wanted = {"ModalitiesInStudy": "CT"}
        if since_days is not None:
            first = date.today() - timedelta(days=since_days)
            wanted["StudyDate"] = f"{first:%Y%m%d}-"
        with self._client() as client:
            search = partial(client.search_for_studies, search_filters=wanted)
            for study, _ in _found(search, _STUDY):
                yield study

    def ct_series(self, study: str) -> dict[str, int | None]:
        """{UID of a CT series of a study: number of its images}; None: the archive does not say."""
        with self._client() as client:
            search = partial(client.search_for_series, study, search_filters={"Modality": "CT"})
            found = dict(_found(search, _SERIES))
        return {
            uid: _number(series, _IMAGES)
            for uid, series in found.items()
            if _MODALITY not in series or _text(series, _MODALITY) == "CT"
        }

    def instances(self, study: str, series: str) -> dict[str, int]:
        """{UID of a file of a series: number of its images}."""
        with self._client() as client:
            found = dict(_found(partial(client.search_for_instances, study, series), _INSTANCE))
        return {uid: _number(each, _FRAMES) or 1 for uid, each in found.items()}

    @contextmanager
    def _client(self) -> Iterator[DICOMwebClient]:
        """A client of this block; errors become those of `Archive`."""
        import requests
        from dicomweb_client.api import DICOMwebClient

        headers = {}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        elif self.login:
            headers["Authorization"] = f"Basic {b64encode(self.login.encode()).decode()}"
        try:
            client = DICOMwebClient(self.url, headers=headers, timeout=self.timeout_s)
            client.set_http_retry_params(retry=False)
            yield client
        except (KidsegError, UnreachableError):
            raise
        except requests.HTTPError as error:
            answer = error.response
            status, address = (0, "") if answer is None else (answer.status_code, answer.url)
            if status in _NOT_NOW:
                raise UnreachableError(f"the archive answers {status}") from error
            if status == 404 and urlsplit(address).path.endswith("/studies"):
                raise _no_dicomweb(self.url, "answers 404: there is no DICOMweb service") from error
            raise InputError(
                f"the archive answers {status}",
                path=self.url,
                code="archive-forbids" if status in _NOT_ALLOWED else "archive-refuses",
                next_step="Check the address, and KIDSEG_ARCHIVE_TOKEN or KIDSEG_ARCHIVE_LOGIN;"
                " look into the log of the archive.",
            ) from error
        except requests.exceptions.InvalidJSONError as error:
            raise _no_dicomweb(self.url, "does not answer with JSON") from error
        except requests.exceptions.SSLError as error:
            raise InputError(
                "the certificate of the archive is not trusted, or not its own",
                path=self.url,
                code="archive-untrusted",
                next_step="Name the certificate of its authority: REQUESTS_CA_BUNDLE=ca.pem.",
            ) from error
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            if isinstance(error, ValueError):  # of the address
                raise _no_dicomweb(self.url, "is invalid") from error
            raise UnreachableError(
                f"the archive does not answer at {self.url} ({_reason(error)})"
            ) from error
        except OSError as error:
            if error.errno is not None:  # of this machine, such as a full disk
                raise
            raise InputError(
                "the certificates that are trusted cannot be read",
                path=os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE"),
                code="archive-untrusted",
                next_step="Set REQUESTS_CA_BUNDLE to a PEM file, or unset it.",
            ) from error
        except Exception as error:  # of any kind: of what the archive sent
            raise _incomplete(f"its answer cannot be read ({type(error).__name__})") from error


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a series had when it was last looked at.

    Attributes:
        count: number of its images, as the archive counts; None: it does not say.
        digest: of its images.
        is_known: whether the queue knows the series with these images, or they are too few.
    """

    count: int | None
    digest: str
    is_known: bool


def find_series(
    archive: WebArchive,
    queue: SeriesQueue,
    seen: dict[str, Look],
    *,
    min_images: int,
    since_days: int | None,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Add the CT series that are complete and not known yet; their number.

    A series is taken for complete if it had the same images when it was last looked at. Series
    that are known are not asked for their images again while the archive counts as many. A study
    of which the archive does not tell the series is left out; after three in a row it is the
    archive.

    Args:
        archive: to look into.
        queue: to add to.
        seen: {series: what it had} at the last look; is brought up to date.
        min_images: shorter series are left out: localizers, single slices. A file may have several.
        since_days: look at studies of so many days only; None: all.
        say: called with a line for people about each study that was left out.

    Raises:
        UnreachableError: the archive does not answer.
        InputError: "archive-refuses", "incomplete-answer", those of `CLOSED`.
    """
    added = failed = in_a_row = studies = 0
    last: Exception | None = None
    for study in archive.ct_studies(since_days):
        studies += 1
        try:
            added += _find_in(study, archive, queue, seen, min_images)
            in_a_row = 0
        except (InputError, UnreachableError) as error:
            failed, in_a_row = failed + 1, in_a_row + 1
            is_closed = isinstance(error, InputError) and error.code in CLOSED
            if is_closed or in_a_row >= _FAILED_STUDIES:
                raise
            last = error
    if last is not None and failed == studies:
        raise last
    if last is not None:
        say(f"{failed} of {studies} studies were left out: {last}")
    return added


def _find_in(
    study: str,
    archive: WebArchive,
    queue: SeriesQueue,
    seen: dict[str, Look],
    min_images: int,
) -> int:
    """Add the series of a study; see `find_series`."""
    added = 0
    for series, count in archive.ct_series(study).items():
        before = seen.get(series)
        if before is not None and before.count == count is not None and before.is_known:
            continue
        digest = digest_of(images := archive.instances(study, series))
        is_complete = before is not None and before.digest == digest
        is_long = sum(images.values()) >= min_images
        if is_long and is_complete:
            queue.replace_others(series, digest)
            added += queue.add(study, series, digest, "known") is not None
        is_known = not is_long or queue.known(series, digest) is not None
        seen[series] = Look(count=count, digest=digest, is_known=is_known)
    return added


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of an IPv6 address
        return False


def _reason(error: BaseException) -> str:
    """Why a connection failed, in the words of the system: without what was asked for."""
    known = [error]
    for each in known:
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
        causes = (each.__cause__, each.__context__, getattr(each, "reason", None))
        known += [cause for cause in causes if isinstance(cause, BaseException)]
        del known[_DEEPEST:]
    return type(error).__name__


def _incomplete(what: str) -> InputError:
    """What may be right the next time."""
    return InputError(
        f"the archive did not give what was asked for: {what}",
        code="incomplete-answer",
        next_step="Look into the log of the archive.",
    )


def _no_dicomweb(url: str, what: str) -> InputError:
    return InputError(
        f"the address of the archive {what}",
        path=url,
        code="archive-refuses",
        next_step="Give the address of its DICOMweb service, such as http://name:8042/dicom-web,"
        " and check that it is switched on: Orthanc has one only with its DICOMweb plug-in (Debian:"
        " orthanc-dicomweb).",
    )


def _text(item: Mapping[str, Any], tag: str) -> str:
    """An element of DICOM JSON that is one text."""
    try:
        return str(item[tag]["Value"][0])
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"an answer of the archive lacks ({tag[:4]},{tag[4:]})",
            code="archive-refuses",
            next_step="Check that the address is that of a DICOMweb service.",
        ) from error


def _found(
    search: Callable[..., Sequence[Mapping[str, Any]]], key: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(UID, item) of all that a search finds, each once.

    Archives answer with pages of a size of their own, and some with everything each time.
    """
    known = set[str]()
    offset = 0
    while True:
        page = search(limit=_PAGE, offset=offset)
        fresh = {uid: item for item in page if (uid := _text(item, key)) not in known}
        yield from fresh.items()
        known |= fresh.keys()
        offset += len(page)
        if not fresh or len(page) < _LEAST_PAGE:
            return


def _number(item: Mapping[str, Any], tag: str) -> int | None:
    """An element of DICOM JSON that is one number, which an archive may leave out."""
    try:
        return int(item[tag]["Value"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
