"""Back end 2: a server of `kidseg serve`, by its REST interface. Standard library only."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from .job import LABELS, Found, Job
from .measures import answers_of, measures_of
from .problems import KidSegError, error_from, note_from
from .remarks import remarks_of
from .watch import Watch

__all__ = ["Server"]

_API = "/api/v1"
_TIMEOUT_S = 30.0
_TICK_S = 0.5
_OFFLINE_S = 60.0
_MAX_JSON = 16 * 2**20
_CHUNK = 2**20
_ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Server:
    """Let a server segment. Scans are removed from it at the end.

    Attributes:
        address: such as https://kidseg.hospital.example:8000.
        token: "": none.
        unencrypted: the user allows plain http to another machine.
    """

    address: str
    token: str = field(default="", repr=False)
    unencrypted: bool = False
    compress: bool = True

    def check(self, job: Job) -> None:
        """Raise KidSegError: "no-completion", "bad-address", "not-encrypted", "model-of-server"."""
        if job.drawn:
            raise KidSegError(
                "a server cannot complete drawn slices",
                "Choose 'This computer' or the container under 'Where kidseg runs'.",
                code="no-completion",
            )
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise KidSegError(
                f"'{self.address}' is not the address of a server",
                "Give it with its scheme and port, such as https://name:8000.",
                code="bad-address",
            )
        if parts.scheme == "http" and not self.unencrypted and not _is_here(parts.hostname):
            raise KidSegError(
                "the scan would be sent to another machine unencrypted",
                "Use an address with https, or allow it under 'Where kidseg runs'.",
                code="not-encrypted",
            )
        if job.model is not None:
            raise KidSegError(
                "a server segments with its own model",
                "Clear the model, or let kidseg run on this computer.",
                code="model-of-server",
            )

    def segment(self, job: Job, watch: Watch) -> Found:
        """Upload, wait, download, remove from the server.

        Raises:
            KidSegError: in the words of the server if it refused.
            CancelledError: the user cancelled; so is the job.
        """
        self.check(job)
        health = self._json("GET", "/health")
        if health.get("status") == "unusable":
            raise KidSegError(
                "the model of the server cannot be used",
                "Ask whoever runs the server.",
                code="server-unusable",
            )
        view = self._upload(job, watch)
        try:
            id_ = str(uuid.UUID(str(view["id"])))
        except (KeyError, ValueError):
            raise _unexpected("the answer names no job") from None
        removed = False
        try:
            view = self._finished(id_, job, watch)
            found = self._download(id_, view, job, watch)
            removed = self._remove(id_)
        finally:
            removed = removed or self._remove(id_)
        if not removed:
            found.notes.append("The scan could not be removed from the server.")
        return found

    def _upload(self, job: Job, watch: Watch) -> dict[str, Any]:
        size = job.scan.stat().st_size
        with job.scan.open("rb") as file:
            body = _Told(file, size, watch)
            query = urlencode({"formats": job.all_formats})
            return self._json("POST", f"/jobs?{query}", body=body, size=size)

    def _finished(self, id_: str, job: Job, watch: Watch) -> dict[str, Any]:
        """The job when it is done."""
        said, online = "", time.monotonic()
        while True:
            try:
                view = self._json("GET", f"/jobs/{id_}")
                online = time.monotonic()
            except KidSegError as error:
                gone = time.monotonic() - online > _OFFLINE_S
                if error.code not in ("no-connection", "too-many-requests") or gone:
                    raise
                watch.wait(5 * _TICK_S)
                continue
            watch.advance(_share(view))
            if (text := _progress(view)) != said:
                watch.say(text)
                said = text
            state = view.get("state")
            if state == "done":
                return view
            if state == "failed":
                names = {job.scan.name: job.name}
                raise error_from(view.get("error") or {}, names)
            if state in _ENDED:
                raise KidSegError("the server cancelled the job", "Try again.", code="gone")
            watch.wait(_TICK_S)

    def _download(self, id_: str, view: Mapping[str, Any], job: Job, watch: Watch) -> Found:
        result = view.get("result") or {}
        labels, others, measures = None, [], None
        for known in result.get("files", []):
            name, kind = str(known.get("name", "")), known.get("format")
            if kind == "measures":
                measures = self._json("GET", f"/jobs/{id_}/measures")
            if kind in ("record", "figure") or (kind != LABELS and kind not in job.formats):
                continue
            if not name or name.startswith(".") or any(sign in name for sign in '/\\:"'):
                raise _unexpected("a file has a name that is none")
            path = job.outside / name
            self._save(f"/jobs/{id_}/results/{quote(name, safe='')}", path, known, watch)
            if kind == LABELS:
                labels = path
            else:
                others.append(path)
        if labels is None:
            raise _unexpected("the result has no labels")
        notes = [note_from(finding, {}) for finding in result.get("warnings", [])]
        scans = self._json("GET", f"/jobs/{id_}/results/result.json").get("scans")
        if not isinstance(scans, list) or len(scans) != 1 or not isinstance(scans[0], dict):
            raise _unexpected("the record is not of one scan")
        try:
            measures_of(scans[0], measures)
            answers_of(measures)
            remarks_of(scans[0])
        except (AttributeError, LookupError, TypeError, ValueError):
            raise _unexpected("the measures are none") from None
        return Found(labels, scans[0], measures, tuple(others), notes)

    def _save(self, route: str, path: Path, known: Mapping[str, Any], watch: Watch) -> None:
        """Stream a file of the server to a new file."""
        size, done = int(known.get("size", 0)), 0
        with self._open("GET", route) as answer, path.open("xb") as file:
            while chunk := _read(answer, _CHUNK):
                watch.check()
                done += len(chunk)
                if done > size:
                    break
                file.write(chunk)
        if done != size:
            raise _unexpected("a file is incomplete")

    def _remove(self, id_: str) -> bool:
        """Cancel the job if it is active, and remove it with its files."""
        try:
            for _ in range(40):
                self._open("DELETE", f"/jobs/{id_}").close()
                time.sleep(_TICK_S / 2)
        except KidSegError as error:
            return error.code == "not-found"
        return False

    def _json(
        self, method: str, route: str, *, body: BinaryIO | _Told | None = None, size: int = 0
    ) -> dict[str, Any]:
        with self._open(method, route, body=body, size=size) as answer:
            text = _read(answer, _MAX_JSON)
        try:
            content = json.loads(text)
        except ValueError:
            raise _unexpected("the answer is not JSON") from None
        if not isinstance(content, dict):
            raise _unexpected("the answer is not a JSON object")
        return content

    def _open(
        self, method: str, route: str, *, body: BinaryIO | _Told | None = None, size: int = 0
    ) -> Any:
        """Ask the server.

        Raises:
            KidSegError: "no-connection"; the code of the server if it refused.
        """
        headers = {"Accept": "application/json, */*"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{self.address.rstrip('/')}{_API}{route}",
            data=body,
            headers=headers,
            method=method,
        )
        try:
            return self._opener().open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise _refused(error) from error
        except (OSError, HTTPException) as error:
            raise _offline(self.address, error) from error

    def _opener(self) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect(), _Http(), _Https()]
        if _is_here(urlsplit(self.address).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))
        return urllib.request.build_opener(*handlers)


class _HearsRefusal(HTTPConnection):
    """Looks at the answer although the server ended the connection before it had the whole scan."""

    def endheaders(self, *body: Any, **how: Any) -> None:
        """Send headers and body; as much of it as the server takes."""
        with suppress(BrokenPipeError, ConnectionResetError):
            super().endheaders(*body, **how)


class _HearsRefusalTls(_HearsRefusal, HTTPSConnection):
    """The same by TLS."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_HearsRefusal, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_HearsRefusalTls, request)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Neither scan nor token go to another server."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirection is an error."""


class _Told:
    """A file that tells how much of it was read, and is not read on after the user cancelled."""

    def __init__(self, file: BinaryIO, size: int, watch: Watch) -> None:
        self.file, self.size, self.watch = file, size, watch
        self.done, self.said = 0, -1

    def read(self, count: int = -1) -> bytes:
        """Like that of a file."""
        self.watch.check()
        chunk = self.file.read(_CHUNK if count < 0 else max(count, _CHUNK))
        self.done += len(chunk)
        share = 10 * (10 * self.done // max(self.size, 1))
        if share != self.said:
            self.said = share
            self.watch.say(f"Uploading: {share} %")
        return chunk


def _read(answer: Any, count: int) -> bytes:
    try:
        return bytes(answer.read(count))
    except (OSError, HTTPException) as error:
        raise KidSegError(
            f"the connection to the server was lost ({error})",
            "Try again.",
            code="no-connection",
        ) from error


def _is_here(host: str) -> bool:
    """Is it this machine?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _progress(view: Mapping[str, Any]) -> str:
    if view.get("state") == "queued":
        ahead = view.get("ahead", 0)
        return f"Waiting for the server: {ahead} job(s) before this one"
    return f"Server: {view.get('stage') or view.get('state')} ..."  # the bar shows how far


def _share(view: Mapping[str, Any]) -> float:
    """How much of a job is done, 0 to 1."""
    share = view.get("progress")
    return min(1.0, max(0.0, float(share))) if isinstance(share, (int, float)) else 0.0


def _refused(error: urllib.error.HTTPError) -> KidSegError:
    """What the server says about the request (RFC 9457), else the status."""
    try:
        content = json.loads(error.read(_MAX_JSON))
    except (OSError, ValueError, HTTPException):
        content = None
    if isinstance(content, dict) and content.get("detail"):
        if content.get("code") == "token-required":
            content["next_step"] = "Enter it under 'Where kidseg runs'."
        return error_from(content, {})
    return KidSegError(
        f"the server answered {error.code} ({error.reason})",
        "Check the address: is it a server of 'kidseg serve'?",
        code=f"http-{error.code}",
    )


def _offline(address: str, error: Exception) -> KidSegError:
    reason = getattr(error, "reason", error)
    step = "Check the address, and whether the server runs."
    if isinstance(reason, ssl.SSLError):
        step = "Its certificate must be known to this machine, and be made for this address."
    return KidSegError(
        f"the server {address} cannot be reached ({reason})", step, code="no-connection"
    )


def _unexpected(what: str) -> KidSegError:
    return KidSegError(
        f"the server is not one that this module understands: {what}",
        "Check the address, and that both have the same version of kidseg.",
        code="unexpected-answer",
    )
