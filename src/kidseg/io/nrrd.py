"""NRRD, in one file (.nrrd) or with a separate voxel file (.nhdr); raw or gzip.

Read without ITK, so that truncation, wrong checksums and invalid geometry are detected. The tests
compare with ITK. Source: "Definition of NRRD File Format",
https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from kidseg.errors import Finding, InputError, quoted
from kidseg.geometry import Volume
from kidseg.io import checks
from kidseg.io.checks import bad_header
from kidseg.io.numbers import stored_array
from kidseg.io.orientation import affine_of_grid, ras_from_lps
from kidseg.io.payload import Encoding, write_gzip
from kidseg.io.scan import ReadOptions
from kidseg.io.voxels import (
    VoxelBlock,
    add_field,
    format_numbers,
    header_matrix,
    parse_numbers,
    require_fields,
    separate_file,
    stored_type,
    text_header,
)

__all__ = ["describe_nrrd", "write_nrrd"]

_NO_FIELDS: Mapping[str, str] = MappingProxyType({})
_TYPES = {
    "int8": ("signed char", "int8", "int8_t"),
    "uint8": ("unsigned char", "uchar", "uint8", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "uint16": ("unsigned short", "ushort", "unsigned short int", "uint16", "uint16_t"),
    "int32": ("int", "signed int", "int32", "int32_t"),
    "uint32": ("unsigned int", "uint", "uint32", "uint32_t"),
    "int64": (
        "long long int",
        "longlong",
        "long long",
        "signed long long",
        "signed long long int",
        "int64",
        "int64_t",
    ),
    "uint64": (
        "unsigned long long int",
        "ulonglong",
        "unsigned long long",
        "uint64",
        "uint64_t",
    ),
    "float32": ("float",),
    "float64": ("double",),
}
_NUMPY_FROM_NRRD = {name: numpy for numpy, names in _TYPES.items() for name in names}
_ENCODINGS: dict[str, Encoding] = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}
_SPACES = {
    "right-anterior-superior": "RAS",
    "ras": "RAS",
    "left-posterior-superior": "LPS",
    "lps": "LPS",
    "left-anterior-superior": "LAS",
    "las": "LAS",
}
_MILLIMETRE = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???"}


def write_nrrd(
    volume: Volume,
    file: BinaryIO,
    *,
    comment: str = "",
    fields: Mapping[str, str] = _NO_FIELDS,
) -> None:
    """Write one channel in its native voxel order, gzip, in LPS as ITK and 3D Slicer do.

    Args:
        volume: one channel.
        file: to write to.
        comment: a line; no comment if empty.
        fields: key/value pairs; each a line.
    """
    array = stored_array(volume.data[0])
    affine = ras_from_lps @ affine_of_grid(volume.grid)
    lines = [
        "NRRD0004",
        *([f"# {comment}"] if comment else []),
        f"type: {_TYPES[array.dtype.newbyteorder('=').name][0]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in volume.grid.shape[::-1])}",
        f"space directions: {' '.join(_vector(affine[:3, i]) for i in range(3))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(affine[:3, 3])}",
        *(f"{key}:={value}" for key, value in fields.items()),
    ]
    file.write(("\n".join(lines) + "\n\n").encode("utf-8"))
    write_gzip(file, memoryview(array.data).cast("B"))


def _vector(values: np.ndarray) -> str:
    return f"({format_numbers(values, ',')})"


# ---- header ------------------------------------------------------------------------------------


def describe_nrrd(path: Path, options: ReadOptions) -> VoxelBlock:
    """Parse the header of an NRRD file.

    Raises:
        InputError: the header does not describe one valid volume; see the codes of
            `kidseg.io.checks` and `kidseg.io.voxels`, and "unsupported-encoding", "unknown-space",
            "bad-unit", "colour-image".
    """
    lines, end = text_header(path, b"")
    fields = _fields(lines, path)
    require_fields(fields, ("type", "dimension", "sizes", "encoding"), path)
    sizes = _integers(fields["sizes"], path)
    if [len(sizes)] != _integers(fields["dimension"], path):
        raise bad_header(
            f"dimension {quoted(fields['dimension'])} and sizes {quoted(fields['sizes'])} disagree",
            path,
        )
    axes_mm, kept = _axes(fields, sizes, path)
    nx, ny, nz = checks.volume_shape([sizes[i] for i in kept], path)
    origin_mm, space = _origin(fields, path), _space(fields, path)
    matrix, findings = header_matrix(axes_mm, origin_mm, space, path, options)
    if not findings and "space" not in fields:
        cause = "its header does not name its patient space; left-posterior-superior was assumed"
        step = "Check that left and right, front and back are as they should be."
        said = Finding(code="orientation-assumed", path=str(path), cause=cause, next_step=step)
        findings = (said,)
    numpy_name = _NUMPY_FROM_NRRD.get(fields["type"].lower())
    stored = stored_type(numpy_name, fields.get("endian", "little").lower() == "big", path)
    skip = _count(fields, "byte skip", path)
    encoding = _encoding(fields, skip, path)
    if stored.itemsize > 1 and "endian" not in fields:
        raise bad_header("its header does not state the byte order", path)
    file = _data_file(fields, path)
    return VoxelBlock(
        native=checks.grid_of((nz, ny, nx), matrix, path),
        stored=stored,
        file=file,
        offset=end if file == path else 0,
        skip=skip,
        encoding=encoding,
        findings=findings,
    )


def _fields(lines: list[str], path: Path) -> dict[str, str]:
    """The fields of the header, without key/value pairs (`:=`) and comments."""
    if not re.fullmatch(r"NRRD000\d", lines[0]):
        raise bad_header(f"it starts with {quoted(lines[0])}, not with an NRRD version", path)
    fields: dict[str, str] = {}
    for line in lines[1:]:
        if line and not line.startswith("#") and ":=" not in line:
            name, colon, value = line.partition(":")
            if not colon:
                raise bad_header(f"a line of its header is not a field: {quoted(line)}", path)
            add_field(fields, name.strip().lower(), value.strip(), path)
    return fields


def _axes(
    fields: dict[str, str], sizes: list[int], path: Path
) -> tuple[np.ndarray | None, list[int]]:
    """(3, 3) steps of the spatial axes, a column each, if stated, and which axes are kept.

    An axis without direction (components or volumes) is dropped if its length is 1, and refused
    otherwise.
    """
    if "space directions" not in fields:
        if "space" in fields:
            raise bad_header("it states a space, but no space directions", path)
        return None, list(range(len(sizes)))
    vectors = re.findall(r"none|\([^)]*\)", fields["space directions"])
    if len(vectors) != len(sizes):
        raise bad_header(f"it has {len(vectors)} space directions for {len(sizes)} axes", path)
    spatial = [i for i, vector in enumerate(vectors) if vector != "none"]
    for i in set(range(len(sizes))) - set(spatial):
        if sizes[i] != 1:
            code = "colour-image" if "color" in fields.get("kinds", "") else "several-volumes"
            raise InputError(
                f"it contains {sizes[i]} components or volumes; only one is supported",
                path=path,
                code=code,
                next_step="Save the required volume as a separate file.",
            )
    steps = [_numbers(vectors[i], path) for i in spatial]
    if wrong := [step for step in steps if len(step) != 3]:
        raise bad_header(f"a space direction has {len(wrong[0])} numbers, not three", path)
    if len(spatial) != 3:
        raise InputError(
            f"it has {len(spatial)} spatial axes, not three",
            path=path,
            code="two-dimensional" if len(spatial) < 3 else "several-volumes",
            next_step="Store it as a volume with its position in the patient.",
        )
    return np.array(steps).T, spatial


def _origin(fields: dict[str, str], path: Path) -> np.ndarray | None:
    if "space origin" not in fields:
        return None
    origin = _numbers(fields["space origin"], path)
    if len(origin) != 3:
        raise bad_header(f"its origin {quoted(fields['space origin'])} is invalid", path)
    return np.array(origin)


def _space(fields: dict[str, str], path: Path) -> str:
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.lower() not in _MILLIMETRE for unit in units):
        raise InputError(
            f"its unit of length is not millimetres, but {quoted(fields['space units'])}",
            path=path,
            code="bad-unit",
            next_step="Export the scan again in millimetres.",
        )
    name = fields.get("space", "lps").lower()
    if name not in _SPACES:
        raise InputError(
            f"its space {quoted(name)} is not a supported patient space",
            path=path,
            code="unknown-space",
            next_step="Export it in left-posterior-superior or right-anterior-superior.",
        )
    return _SPACES[name]


def _data_file(fields: dict[str, str], path: Path) -> Path:
    name = fields.get("data file", fields.get("datafile"))
    return path if name is None else separate_file(path, name, ".nrrd")


def _encoding(fields: dict[str, str], skip: int, path: Path) -> Encoding:
    name = fields["encoding"].lower()
    lines = _count(fields, "line skip", path)
    if name not in _ENCODINGS or lines or skip < -1 or (skip < 0 and name != "raw"):
        raise InputError(
            f"its encoding {quoted(name)} (byte skip {skip:g}, line skip {lines:g}) is not "
            "supported",
            path=path,
            code="unsupported-encoding",
            next_step="Convert it to raw or gzip encoding.",
        )
    return _ENCODINGS[name]


def _numbers(text: str, path: Path) -> list[float]:
    return parse_numbers(text.strip("()").replace(",", " "), path)


def _count(fields: dict[str, str], name: str, path: Path) -> int:
    numbers = _integers(fields.get(name, "0"), path)
    if len(numbers) != 1:
        raise bad_header(f"its {name} {quoted(fields[name])} is not one number", path)
    return numbers[0]


def _integers(text: str, path: Path) -> list[int]:
    numbers = _numbers(text, path)
    if not numbers or not all(n.is_integer() for n in numbers):
        raise bad_header(f"{quoted(text)} is not a list of integers", path)
    return [int(n) for n in numbers]
