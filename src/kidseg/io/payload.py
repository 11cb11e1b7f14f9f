"""Decompress and verify the bytes of a file, so that truncation and damage are detected.

SimpleITK returns zeros for the missing part of a truncated file, and nibabel does not verify the
checksum of a gzip file. Here checksum and length are always verified, and no more memory is
allocated than the file can fill.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from kidseg.errors import Finding, InputError, not_found
from kidseg.io.checks import check_memory

if TYPE_CHECKING:
    from isal import igzip_lib

__all__ = ["Encoding", "Payload", "head", "open_payload", "write_gzip"]

Encoding = Literal["raw", "gzip", "zlib"]

_GZIP_MAGIC = b"\x1f\x8b"
# Source: no deflate stream expands more than 1032 times ("zlib technical details", zlib.net).
_MAX_DEFLATE_RATIO = 1032
_CHUNK = 2**20
# Measured on real CT: level 3 saves 1.5 % of the size and takes a third longer.
_LEVEL = 1

_EXPORT_AGAIN = "Copy, download or export the file again."


class Payload:
    """Reads and decompresses a file from its current position to its end.

    Attributes:
        path: the file.
        encoding: its compression.
        held_bytes: maximum size of the decompressed data.
    """

    def __init__(self, file: BinaryIO, path: Path, encoding: Encoding) -> None:
        self.path = path
        self.encoding = encoding
        self._file = file
        left = self.left_bytes
        self.held_bytes = left if encoding == "raw" else left * _MAX_DEFLATE_RATIO
        self._stream = self._new_stream()
        self._ended = False
        self._trailing = 0

    @property
    def left_bytes(self) -> int:
        """Bytes of the file itself, compressed or not, after the current position."""
        return max(0, os.fstat(self._file.fileno()).st_size - self._file.tell())

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer at the end.

        Raises:
            InputError: "truncated-file", "damaged-file".
        """
        if self._stream is None:
            return self._file.read(count)
        parts, got = [], 0
        while got < count and (part := self._decompress(count - got)):
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Skip the next `count` bytes; they take no memory.

        Raises:
            InputError: "truncated-file", "damaged-file".
        """
        possible = self.left_bytes if self._stream is None else self.held_bytes
        left = count
        while left > 0 and count <= possible and (part := self.read(min(left, _CHUNK))):
            left -= len(part)
        if left > 0:
            raise InputError(
                f"the header states that voxels follow after {count} bytes, but the file ends "
                "before",
                path=self.path,
                code="truncated-file",
                next_step=_EXPORT_AGAIN,
            )

    def array(self, dtype: np.dtype, count: int, limit_bytes: int | None = None) -> np.ndarray:
        """The next `count` values of `dtype`, in native byte order, writable.

        Raises:
            InputError: "absurd-size", "truncated-file", "damaged-file".
            ResourceError: "not-enough-memory".
        """
        asked = count * dtype.itemsize
        if self._stream is None and asked > self.left_bytes:
            raise self._truncated(asked, self.left_bytes)
        check_memory(asked, self.path, held_bytes=self.held_bytes, limit_bytes=limit_bytes)
        values = np.empty(count, dtype)
        view, got = memoryview(values.view(np.uint8).data), 0
        while got < asked:
            if self._stream is None:
                step = self._file.readinto(view[got:])  # type: ignore[attr-defined]
            else:
                part = self._decompress(asked - got)
                step = len(part)
                view[got : got + step] = part
            if not step:
                raise self._truncated(asked, got)
            got += step
        if not dtype.isnative:
            values = values.byteswap(inplace=True).view(dtype.newbyteorder("="))
        return values

    def finish(self) -> tuple[Finding, ...]:
        """Read to the end, which verifies the last checksum.

        Returns:
            The finding "trailing-bytes" if more data follow.

        Raises:
            InputError: "truncated-file", "damaged-file".
        """
        extra = 0
        while part := self.read(_CHUNK):
            extra += len(part)
        extra += self._trailing
        if not extra:
            return ()
        cause = f"{extra} bytes follow the voxels; they were ignored"
        return (Finding(code="trailing-bytes", path=str(self.path), cause=cause),)

    def _new_stream(self) -> igzip_lib.IgzipDecompressor | None:
        if self.encoding == "raw":
            return None
        from isal import igzip_lib

        flag = {"gzip": igzip_lib.DECOMP_GZIP, "zlib": igzip_lib.DECOMP_ZLIB}[self.encoding]
        return igzip_lib.IgzipDecompressor(flag=flag)

    def _decompress(self, limit: int) -> bytes:
        """Up to `limit` decompressed bytes; none at the end of the last member."""
        from isal import igzip_lib

        part = b""
        while not part:
            assert self._stream is not None
            if self._stream.eof:
                if not self._next_member():
                    return b""
                continue
            chunk = self._file.read(_CHUNK) if self._stream.needs_input else b""
            if not chunk and self._stream.needs_input:
                raise InputError(
                    f"the {self.encoding} stream ends too early: the file is truncated",
                    path=self.path,
                    code="truncated-file",
                    next_step=_EXPORT_AGAIN,
                )
            try:
                part = self._stream.decompress(chunk, min(limit, 4 * _CHUNK))
            except igzip_lib.IsalError as error:  # type: ignore[misc]  # isal's stubs are wrong
                raise InputError(
                    f"the {self.encoding} stream is damaged ({error})",
                    path=self.path,
                    code="damaged-file",
                    next_step=_EXPORT_AGAIN,
                ) from error
        return part

    def _next_member(self) -> bool:
        """Start the next gzip member. Any other data after a member end the stream."""
        assert self._stream is not None
        if self._ended:
            return False
        at = self._file.tell() - len(self._stream.unused_data)
        self._file.seek(at)
        magic = self._file.read(2)
        self._file.seek(at)
        if self.encoding == "gzip" and magic == _GZIP_MAGIC:
            self._stream = self._new_stream()
            return True
        self._ended = True
        while part := self._file.read(_CHUNK):
            self._trailing += len(part) if part.strip(b"\0") else 0
        return False

    def _truncated(self, asked: int, held: int) -> InputError:
        return InputError(
            f"the header states {asked} bytes of voxels, but the file contains {held}: "
            "it is truncated",
            path=self.path,
            code="truncated-file",
            next_step=_EXPORT_AGAIN,
        )


@contextmanager
def open_payload(
    path: Path, *, offset: int = 0, encoding: Encoding | None = None
) -> Iterator[Payload]:
    """Open a file at `offset`. Without `encoding`, gzip is detected from the content.

    Raises:
        InputError: "not-found", "not-a-file", "unreadable", "empty-file".
    """
    with _open(path) as file:
        if encoding is None:
            encoding = "gzip" if file.read(2) == _GZIP_MAGIC else "raw"
        file.seek(offset)
        yield Payload(file, path, encoding)


def head(path: Path, count: int = 1024) -> tuple[bytes, Encoding]:
    """The first bytes of a file, decompressed if it is gzip, and its encoding.

    Raises:
        InputError: "not-found", "not-a-file", "unreadable", "empty-file", "damaged-file";
            "truncated-file" if a gzip stream ends before `count` bytes.
    """
    with open_payload(path) as payload:
        return payload.read(count), payload.encoding


def write_gzip(file: BinaryIO, *parts: memoryview) -> None:
    """Write the parts (of bytes) as one gzip member; the same parts always give the same bytes."""
    from isal import igzip

    with igzip.IGzipFile("", "wb", _LEVEL, file, mtime=0) as stream:
        for part in parts:
            for start in range(0, len(part), 16 * _CHUNK):
                stream.write(part[start : start + 16 * _CHUNK])


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file and convert each OSError, also while reading, to an InputError."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise InputError(
                "it is a folder, pipe or device, not a file",
                path=path,
                code="not-a-file",
                next_step="Specify the file itself.",
            )
        file = path.open("rb")
    except (FileNotFoundError, ValueError) as error:  # ValueError: a zero byte in the name
        raise not_found(path, "file") from error
    except OSError as error:
        raise InputError(
            f"it cannot be opened ({error.strerror})",
            path=path,
            code="unreadable",
            next_step="Check its permissions.",
        ) from error
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            raise InputError(
                "the file is empty", path=path, code="empty-file", next_step=_EXPORT_AGAIN
            )
        try:
            yield file
        except OSError as error:
            raise InputError(
                f"reading it failed ({error.strerror or error})",
                path=path,
                code="unreadable",
                next_step="Check its disk or network drive.",
            ) from error
