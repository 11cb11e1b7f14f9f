"""A block of voxels as a text header (NRRD, MetaImage) describes it, and reading it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import Finding, InputError
from kidseg.geometry import Grid
from kidseg.io import checks
from kidseg.io.numbers import is_supported, scaled
from kidseg.io.orientation import mm_from_index_of_affine, ras_from
from kidseg.io.payload import Encoding, open_payload
from kidseg.io.scan import Format, ReadOptions, Scan, scan_of

__all__ = ["VoxelBlock", "beside", "place", "read_block", "stored_type", "text_header"]

_MAX_HEADER_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class VoxelBlock:
    """Where the voxels are and what they mean.

    Attributes:
        native: grid of the file's own voxels.
        stored: type, with byte order.
        file: the file that holds them.
        offset: byte at which they, or their packed stream, start.
        skip: unpacked bytes to leave out before them; -1: they are the last of the file.
        encoding: how they are packed.
        findings: noticed in the header.
    """

    native: Grid
    stored: np.dtype
    file: Path
    offset: int
    skip: int
    encoding: Encoding
    findings: tuple[Finding, ...]


def read_block(block: VoxelBlock, path: Path, format: Format, options: ReadOptions) -> Scan:  # noqa: A002
    """The scan that a header describes.

    Raises:
        InputError: truncated or damaged data, or values and positions that are no scan's.
        ResourceError: "not-enough-memory".
    """
    count = math.prod(block.native.shape)
    offset = block.offset
    if block.skip < 0:
        offset = max(offset, block.file.stat().st_size - count * block.stored.itemsize)
    with open_payload(block.file, offset=offset, encoding=block.encoding) as payload:
        payload.read(max(0, block.skip))
        values = payload.array(block.stored, count, options.memory_limit_bytes)
        extra = payload.finish()
    return scan_of(
        scaled(values, 1, 0, path).reshape(1, *block.native.shape),
        block.native,
        path=path,
        format=format,
        options=options,
        stored=block.stored,
        findings=(*block.findings, *extra),
    )


def text_header(path: Path, last: bytes) -> tuple[list[str], int]:
    """The lines up to the one that starts with `last` (b"": is blank), and the byte after them.

    Without such a line, all lines of the file.

    Raises:
        InputError: "bad-header": no text, or too long.
    """
    lines: list[str] = []
    with open_payload(path, encoding="raw") as payload:
        text = payload.read(_MAX_HEADER_BYTES)
    at = 0
    while at < len(text):
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        line, at = text[at:end].strip(), end + 1
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _bad("its header is not text", path) from error
        if line == last if not last else line.startswith(last):
            return lines, at
    if len(text) == _MAX_HEADER_BYTES:
        raise _bad("its header does not end", path)
    return lines, len(text)


def beside(path: Path, name: str) -> Path:
    """The data file that a header names: in its folder or below.

    Raises:
        InputError: "data-file-outside": an absolute name or one with `..`; "data-file-missing".
    """
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts:
        raise InputError(
            f"its voxels are said to be outside its folder, in '{name}'",
            path=path,
            code="data-file-outside",
            next_step="Put the data file beside the header and name it there without a folder.",
        )
    file = path.parent / name
    if not file.is_file():
        raise InputError(
            f"its voxels should be in '{name}', which is missing",
            path=path,
            code="data-file-missing",
            next_step="Keep the header and its data file together, or convert to one file.",
        )
    return file


def stored_type(name: str | None, big_endian: bool, path: Path) -> np.dtype:
    """The dtype named as numpy does.

    Raises:
        InputError: "unsupported-type".
    """
    if name is None or not is_supported(np.dtype(name)):
        raise InputError(
            "its voxels are of a type that cannot be read",
            path=path,
            code="unsupported-type",
            next_step="Convert it to int16 or float32.",
        )
    return np.dtype(name).newbyteorder(">" if big_endian else "<")


def place(
    axes_mm: np.ndarray | None,
    origin_mm: np.ndarray | None,
    space: str,
    path: Path,
    options: ReadOptions,
) -> tuple[Tensor, tuple[Finding, ...]]:
    """mm_from_index (4, 4) of a file's own voxel order.

    Args:
        axes_mm: (3, 3), a column per axis, fastest first: its step. None: the file does not say.
        origin_mm: (3,) centre of the first voxel. None: the file does not say.
        space: in which patient space they are, "RAS", "LPS" or "LAS".
        path: the file, for messages.
        options: an overriding spacing changes the steps, or makes up for missing ones.

    Raises:
        InputError: "no-orientation", "bad-spacing", "bad-affine".
    """
    findings: tuple[Finding, ...] = ()
    affine = np.eye(4)
    if axes_mm is None or origin_mm is None:
        if options.spacing_mm is None:
            raise InputError(
                "it does not say where its voxels lie",
                path=path,
                code="no-orientation",
                next_step="If you know its axes to run to the left, back and top, state the "
                "spacing with --spacing SLICE ROW COLUMN.",
            )
        cause = "it does not say where its voxels lie; axes were taken to run left, back and top"
        findings = (Finding(code="orientation-assumed", path=str(path), cause=cause),)
        affine = ras_from["LPS"]
    else:
        affine[:3, :3], affine[:3, 3] = axes_mm, origin_mm
        if np.isfinite(affine).all():  # else it is refused as it is
            affine = ras_from[space] @ affine
    matrix = mm_from_index_of_affine(affine)
    if options.spacing_mm is not None:
        matrix = checks.with_spacing(matrix, options.spacing_mm, path)
    return torch.as_tensor(matrix), findings


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-header",
        next_step="The header is damaged: copy or export the file again.",
    )
