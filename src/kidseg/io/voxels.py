"""Text headers (NRRD, MetaImage), and the block of voxels that they describe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import Finding, InputError, quoted
from kidseg.geometry import Grid
from kidseg.io import checks
from kidseg.io.checks import bad_header
from kidseg.io.numbers import is_supported, scaled
from kidseg.io.orientation import mm_from_index_of_affine, ras_from
from kidseg.io.payload import Encoding, open_payload
from kidseg.io.scan import Format, ReadOptions, Scan, scan_of

__all__ = [
    "VoxelBlock",
    "add_field",
    "format_numbers",
    "header_matrix",
    "parse_numbers",
    "read_block",
    "require_fields",
    "separate_file",
    "stored_type",
    "text_header",
]

_MAX_HEADER_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class VoxelBlock:
    """Location, data type and grid of the voxels.

    Attributes:
        native: the file's native grid.
        stored: data type, with byte order.
        file: the file with the voxels.
        offset: first byte of the voxels, or of their compressed stream.
        skip: decompressed bytes to skip before them; -1: the voxels end at the end of the file.
        encoding: compression.
        findings: findings on the header.
    """

    native: Grid
    stored: np.dtype
    file: Path
    offset: int
    skip: int
    encoding: Encoding
    findings: tuple[Finding, ...]


def read_block(block: VoxelBlock, path: Path, format: Format, options: ReadOptions) -> Scan:  # noqa: A002
    """Read the scan that a header describes.

    Raises:
        InputError: truncated or damaged data, or invalid values or geometry.
        ResourceError: "not-enough-memory".
    """
    count = math.prod(block.native.shape)
    with open_payload(block.file, offset=block.offset, encoding=block.encoding) as payload:
        voxel_bytes = count * block.stored.itemsize
        payload.skip(block.skip if block.skip >= 0 else max(0, payload.left_bytes - voxel_bytes))
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
    """The lines up to one that starts with `last` (b"": that is blank), and the next byte's offset.

    Without such a line, all lines of the file.

    Raises:
        InputError: "bad-header": not text, or too long.
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
            raise bad_header("its header is not text", path) from error
        if line == last if not last else line.startswith(last):
            return lines, at
    if len(text) == _MAX_HEADER_BYTES:
        raise bad_header("the end of its header is missing", path)
    return lines, len(text)


def add_field(fields: dict[str, str], name: str, value: str, path: Path) -> None:
    """Add a field of a header, in which none may have two values: either would be a guess.

    Raises:
        InputError: "bad-header".
    """
    if fields.setdefault(name, value) != value:
        both = f"{quoted(fields[name])} and {quoted(value)}"
        raise bad_header(f"its header states '{name}' twice, as {both}", path)


def require_fields(fields: Mapping[str, str], names: Sequence[str], path: Path) -> None:
    """Check that a header has these fields.

    Raises:
        InputError: "bad-header".
    """
    for name in names:
        if name not in fields:
            raise bad_header(f"its header lacks '{name}'", path)


def parse_numbers(text: str, path: Path) -> list[float]:
    """Parse numbers separated by whitespace.

    Raises:
        InputError: "bad-header".
    """
    try:
        return [float(part) for part in text.split()]
    except ValueError as error:
        raise bad_header(f"{quoted(text)} is not a list of numbers", path) from error


def format_numbers(values: np.ndarray, separator: str) -> str:
    """The numbers as text that parses to the same values; negative zero becomes zero."""
    return separator.join(repr(float(v) + 0.0) for v in values.ravel())


def separate_file(path: Path, name: str, single: str) -> Path:
    """The voxel file that a header names, in the folder of the header or below.

    A backslash is part of the name if there is such a file, else a separator, as on Windows.

    Args:
        path: the header.
        name: as stated in the header.
        single: file extension of the format's single-file variant, for messages.

    Raises:
        InputError: "unsupported-encoding": several files; "data-file-outside": an absolute name or
            one with `..`; "data-file-missing".
    """
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(
            "its voxels are in several files, which is not supported",
            path=path,
            code="unsupported-encoding",
            next_step=f"Convert it to a single {single} file.",
        )
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts:
        raise InputError(
            f"its voxel file {quoted(name)} is outside its folder",
            path=path,
            code="data-file-outside",
            next_step="Put the voxel file next to the header and remove the folder from its name.",
        )
    for file in (path.parent / name, path.parent / PureWindowsPath(name)):
        with suppress(OSError):  # a name that is too long for any file
            if file.is_file():
                return file
    raise InputError(
        f"its voxel file {quoted(name)} is missing",
        path=path,
        code="data-file-missing",
        next_step="Keep the header and its voxel file together, or convert to a single file.",
    )


def stored_type(name: str | None, big_endian: bool, path: Path) -> np.dtype:
    """The dtype with this numpy name and byte order.

    Raises:
        InputError: "unsupported-type".
    """
    if name is None or not is_supported(np.dtype(name)):
        raise InputError(
            "its data type is not supported",
            path=path,
            code="unsupported-type",
            next_step="Convert it to int16 or float32.",
        )
    return np.dtype(name).newbyteorder(">" if big_endian else "<")


def header_matrix(
    axes_mm: np.ndarray | None,
    origin_mm: np.ndarray | None,
    space: str,
    path: Path,
    options: ReadOptions,
) -> tuple[Tensor, tuple[Finding, ...]]:
    """mm_from_index (4, 4) of the native voxel order.

    Args:
        axes_mm: (3, 3), step along each axis as a column, fastest axis first; None if missing.
        origin_mm: (3,) centre of the first voxel; None if missing.
        space: their patient space, "RAS", "LPS" or "LAS".
        path: the file, for messages.
        options: an overriding spacing replaces the step lengths, or missing axes.

    Raises:
        InputError: "no-orientation", "bad-spacing", "bad-affine".
    """
    findings: tuple[Finding, ...] = ()
    affine = np.eye(4)
    if axes_mm is None or origin_mm is None:
        if options.spacing_mm is None:
            raise InputError(
                "its position and orientation are missing",
                path=path,
                code="no-orientation",
                next_step="If you know that its axes run to left, posterior and superior, specify "
                "the spacing with --spacing SLICE ROW COLUMN.",
            )
        cause = (
            "its position and orientation are missing; axes were assumed to run to left, "
            "posterior and superior"
        )
        findings = (Finding(code="orientation-assumed", path=str(path), cause=cause),)
        affine = ras_from["LPS"]
    else:
        affine[:3, :3], affine[:3, 3] = axes_mm, origin_mm
        if np.isfinite(affine).all():  # otherwise it is refused later
            affine = ras_from[space] @ affine
    matrix = mm_from_index_of_affine(affine)
    if options.spacing_mm is not None:
        matrix = checks.with_spacing(matrix, options.spacing_mm, path)
    return torch.as_tensor(matrix), findings
