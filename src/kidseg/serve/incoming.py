"""Receive uploads: streamed to files with names of the server, within limits of size and time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from kidseg.errors import InputError, ResourceError, is_disk_full
from kidseg.io import kind_of
from kidseg.records import parsed
from kidseg.serve.arrival import arriving, stalled
from kidseg.serve.policy import Limits
from kidseg.serve.refusals import RefusedError

__all__ = ["ENDINGS", "Doorkeeper", "Received", "json_field", "kept_scan"]

_FIELD_BYTES = 64 * 1024
_PARTS = 16
_BUFFER = 2**20
_RETRY_S = 5.0

ENDINGS = {"nifti": ".nii", "nrrd": ".nrrd", "metaimage": ".mha", "dicom": ".dcm", "zip": ".zip"}
"""Of the file of a scan, by what `kidseg.io.kind_of` finds in it."""

_RAW = (
    "application/octet-stream",
    "application/zip",
    "application/x-zip-compressed",
    "application/gzip",
    "application/x-gzip",
    "application/dicom",
)


@dataclass(frozen=True)
class Received:
    """What was uploaded.

    Attributes:
        fields: {name: text} of a form.
        files: (field, file with a name of the server), in order.
    """

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, Path]] = field(default_factory=list)

    def file(self, *names: str) -> Path | None:
        """The first file of a field with one of these names."""
        return next((path for name, path in self.files if name in names), None)


@dataclass(eq=False)
class Doorkeeper:
    """Receives uploads.

    Attributes:
        folder: for what is incoming, on the disk of the jobs.
        limits: of size, time and number; an upload counts until what is done with it has begun or
            been refused.
    """

    folder: Path
    limits: Limits
    _busy: int = 0

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier server
        self.folder.mkdir(parents=True, mode=0o700)

    @asynccontextmanager
    async def received(
        self, request: Request, place: Path, *, optional: bool = False
    ) -> AsyncIterator[Received]:
        """Receive the body of a request: a form, or a file as such.

        Args:
            request: of the client.
            place: a new folder for the files; removed if anything goes wrong, here or in the block.
            optional: there may be no body.

        Raises:
            RefusedError: 408 "upload-stalled", "upload-slow"; 411, 413 "too-large"; 415
                "unsupported-type"; 422 "bad-form"; 429 "too-many-uploads".
            ResourceError: "disk-full".
            starlette.requests.ClientDisconnect: the client is gone.
        """
        self._check(request)
        self._busy += 1
        request.state.is_upload = True
        try:
            try:
                place.mkdir(parents=True, mode=0o700)
                found = await self._receive(request, place, optional)
            except OSError as error:
                if is_disk_full(error):
                    raise _disk_full() from error
                raise
            yield found
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        finally:
            self._busy -= 1

    def clear(self, place: Path) -> None:
        """Remove what was received and is not needed."""
        shutil.rmtree(place, ignore_errors=True)

    def _check(self, request: Request) -> None:
        """Refuse what can be refused before anything is received."""
        length = request.headers.get("content-length", "0")
        announced = int(length) if length.isdecimal() else 0
        if announced > self.limits.upload_bytes:
            raise self._too_large()
        if self._busy >= self.limits.uploads:
            raise RefusedError(
                429,
                f"{self._busy} uploads are under way, as many as the server accepts",
                code="too-many-uploads",
                next_step="Try again later.",
                retry_after_s=_RETRY_S,
            )
        self._check_room(announced)

    def _check_room(self, more: int) -> None:
        if shutil.disk_usage(self.folder).free < more + self.limits.spare_bytes:
            raise _disk_full()

    def _too_large(self) -> RefusedError:
        limit = self.limits.upload_bytes
        return RefusedError(
            413,
            f"the upload is larger than {limit} bytes, the limit of this server",
            code="too-large",
            next_step="Upload one scan, compressed.",
        )

    async def _receive(self, request: Request, place: Path, optional: bool) -> Received:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        found = Received()
        if kind == b"multipart/form-data" and options.get(b"boundary"):
            form = _Form(options[b"boundary"], place, found)
            await self._stream(request, form.write)
            form.end()
        elif kind.decode("latin-1") in _RAW:
            path = place / "upload-0"
            with path.open("xb") as file:
                await self._stream(request, file.write)
                await run_in_threadpool(_sync, file)
            found.files.append(("file", path))
        elif optional and request.headers.get("content-length", "0") == "0" and not kind:
            return found
        else:
            raise RefusedError(
                415,
                "the body is neither a form with a file nor a file of a known type",
                code="unsupported-type",
                next_step=f"Send multipart/form-data, or one of {', '.join(_RAW)}.",
            )
        return found

    async def _stream(self, request: Request, write: object) -> None:
        """Hand the body on in blocks; the disk is written to in other threads."""
        assert callable(write)
        begun, size, block = time.monotonic(), 0, bytearray()
        stream = request.stream().__aiter__()
        while True:
            enough_s = self.limits.upload_s + size / self.limits.upload_rate
            left = begun + enough_s - time.monotonic()
            if left <= 0:
                raise self._too_slow(left)
            try:
                chunk = await arriving(anext(stream, None), min(self.limits.stall_s, left))
            except TimeoutError:
                raise self._too_slow(left) from None
            if chunk is None:
                break
            size += len(chunk)
            if size > self.limits.upload_bytes:
                raise self._too_large()
            block += chunk
            if len(block) >= _BUFFER:
                self._check_room(len(block))  # others may have filled the disk since
                await run_in_threadpool(write, bytes(block))
                block.clear()
        await run_in_threadpool(write, bytes(block))

    def _too_slow(self, left: float) -> RefusedError:
        if left > self.limits.stall_s:
            return stalled(self.limits.stall_s)
        return RefusedError(
            408,
            f"the upload took longer than {self.limits.upload_s:.0f} s, with less than"
            f" {self.limits.upload_rate} bytes a second",
            code="upload-slow",
            next_step="Upload again, on a faster connection.",
        )


class _Form:
    """Parses multipart/form-data as it comes: fields into memory, files into files.

    File names of the client are not looked at.
    """

    def __init__(self, boundary: bytes, place: Path, found: Received) -> None:
        self.place, self.found = place, found
        self.header, self.value = bytearray(), bytearray()
        self.disposition = b""
        self.name = ""
        self.text = bytearray()
        self.file: BinaryIO | None = None
        self.parts = 0
        self.complete = False
        try:
            self.parser = self._parser(boundary)
        except FormParserError as error:
            raise _bad_form(str(error)) from None

    def _parser(self, boundary: bytes) -> MultipartParser:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, a, b: self.header.extend(data[a:b]),
                "on_header_value": lambda data, a, b: self.value.extend(data[a:b]),
                "on_header_end": self._header,
                "on_headers_finished": self._open,
                "on_part_data": self._data,
                "on_part_end": self._close,
                "on_end": self._finish,
            },
        )

    def write(self, block: bytes) -> None:
        """Parse a block."""
        try:
            self.parser.write(block)
        except FormParserError as error:
            self._abandon()
            raise _bad_form(str(error)) from None
        except BaseException:
            self._abandon()
            raise

    def end(self) -> None:
        """Check that the form is complete."""
        self._abandon()
        if not self.complete:
            raise _bad_form("it ends before its last part does")

    def _begin(self) -> None:
        self.parts += 1
        if self.parts > _PARTS:
            raise _bad_form(f"it has more than {_PARTS} parts")
        self.disposition = b""
        self.text.clear()

    def _header(self) -> None:
        if bytes(self.header).lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.header.clear()
        self.value.clear()

    def _open(self) -> None:
        kind, options = parse_options_header(self.disposition)
        if kind != b"form-data" or b"name" not in options:
            raise _bad_form("a part has no name")
        self.name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            path = self.place / f"upload-{len(self.found.files)}"
            self.file = path.open("xb")
            self.found.files.append((self.name, path))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self.file is not None:
            self.file.write(data[start:end])
            return
        self.text += data[start:end]
        if len(self.text) > _FIELD_BYTES:
            raise _bad_form(f"a field is longer than {_FIELD_BYTES} bytes")

    def _close(self) -> None:
        if self.file is None:
            try:
                self.found.fields[self.name] = self.text.decode()
            except UnicodeDecodeError:
                raise _bad_form("a field is not UTF-8") from None
        else:
            _sync(self.file)
        self._abandon()

    def _finish(self) -> None:
        self.complete = True

    def _abandon(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def _sync(file: BinaryIO) -> None:
    """Wait until a file is on the disk: after a power cut, a job in the table has its scan."""
    file.flush()
    os.fsync(file.fileno())


def json_field(text: str | None) -> dict[str, Any]:
    """The JSON object in a field of a form; {} without. It can be sent to others as it is.

    Raises:
        RefusedError: 422 "bad-form"; also of NaN, and of halves of characters.
    """
    try:
        content = parsed((text or "{}").encode())
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        return content
    except ValueError as error:
        raise _bad_form(f"a field has no JSON object ({error})") from None


def kept_scan(received: Received, *names: str) -> Path:
    """The uploaded scan, with the ending that its content requires.

    Args:
        received: a form or a file.
        names: of the field.

    Raises:
        RefusedError: 422 "no-scan": there is no such file; "several-files"; 415: it is not a scan,
            with the code of `kidseg.io.kind_of`.
    """
    path = received.file(*names)
    if path is None:
        raise RefusedError(
            422,
            f"the form has no file in a field named {' or '.join(names)}",
            code="no-scan",
            next_step="Send the scan as a file in this field.",
        )
    if len(received.files) > 1:
        raise RefusedError(
            422,
            f"the form has {len(received.files)} files, and one is taken",
            code="several-files",
            next_step="Send one scan at a time, and the files of a DICOM series as one zip.",
        )
    try:
        kind = kind_of(path)
    except InputError as error:
        raise RefusedError(
            415, error.cause, code=error.code or "not-a-scan", next_step=error.next_step
        ) from error
    ending = ENDINGS[kind]
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return path.rename(path.with_name(f"scan{ending}{'.gz' if compressed else ''}"))


def _bad_form(cause: str) -> RefusedError:
    return RefusedError(
        422,
        f"the form cannot be read: {cause}",
        code="bad-form",
        next_step="Send multipart/form-data as RFC 7578 defines it.",
    )


def _disk_full() -> ResourceError:
    return ResourceError(
        "the disk of the server has too little free space",
        code="disk-full",
        next_step="Try again later, or ask for more space.",
    )
