"""NRRD, attached (.nrrd) or with its voxels in a file of their own (.nhdr); raw or gzip.

Read without ITK, so that truncation, checksums and odd geometry are seen; ITK is the peer in the
tests. Source: "Definition of NRRD File Format", https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import checks
from kidseg.io.numbers import stored_array
from kidseg.io.orientation import affine_of_grid, ras_from_lps
from kidseg.io.payload import Encoding, pack_gzip
from kidseg.io.scan import ReadOptions, Scan
from kidseg.io.voxels import VoxelBlock, beside, place, read_block, stored_type, text_header

__all__ = ["read_nrrd", "read_nrrd_grid", "write_nrrd"]

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


def read_nrrd(path: Path, options: ReadOptions) -> Scan:
    """An NRRD file as a scan.

    Raises:
        InputError: anything that is not one sound volume; see the codes of `kidseg.io.checks` and
            `kidseg.io.voxels`, and "bad-header", "unsupported-encoding", "unknown-space",
            "bad-unit", "colour-image".
        ResourceError: "not-enough-memory".
    """
    return read_block(_describe(path, options), path, "nrrd", options)


def read_nrrd_grid(path: Path, options: ReadOptions) -> Grid:
    """The voxel grid of an NRRD file, from its header alone.

    Raises:
        InputError: as `read_nrrd`, for what the header shows.
    """
    return _describe(path, options).native


def write_nrrd(volume: Volume, file: BinaryIO) -> None:
    """Write one channel in its own voxel order, gzip, in LPS as ITK and 3D Slicer do."""
    array = stored_array(volume.data[0])
    affine = ras_from_lps @ affine_of_grid(volume.grid)
    lines = [
        "NRRD0004",
        f"type: {_TYPES[array.dtype.newbyteorder('=').name][0]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in volume.grid.shape[::-1])}",
        f"space directions: {' '.join(_vector(affine[:3, i]) for i in range(3))}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(affine[:3, 3])}",
    ]
    file.write(("\n".join(lines) + "\n\n").encode("ascii"))
    pack_gzip(file, memoryview(array.data).cast("B"))


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(v) + 0.0) for v in values)})"


# ---- header ------------------------------------------------------------------------------------


def _describe(path: Path, options: ReadOptions) -> VoxelBlock:
    lines, end = text_header(path, b"")
    fields = _fields(lines, path)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise _bad(f"its header lacks '{name}'", path)
    sizes = _whole_numbers(fields["sizes"], path)
    if [len(sizes)] != _whole_numbers(fields["dimension"], path):
        raise _bad(f"{fields['dimension']} dimensions and sizes {fields['sizes']} disagree", path)
    axes_mm, kept = _axes(fields, sizes, path)
    nx, ny, nz = checks.three_dimensional([sizes[i] for i in kept], path)
    matrix, findings = place(axes_mm, _origin(fields, path), _space(fields, path), path, options)
    numpy_name = _NUMPY_FROM_NRRD.get(fields["type"].lower())
    stored = stored_type(numpy_name, fields.get("endian", "little").lower() == "big", path)
    if stored.itemsize > 1 and "endian" not in fields:
        raise _bad("its header does not state the byte order", path)
    file = _data_file(fields, path)
    skip = _whole_numbers(fields.get("byte skip", "0"), path)[0]
    encoding = _encoding(fields, skip, path)
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
    """The fields; keys (`:=`) and comments are left out."""
    if not re.fullmatch(r"NRRD000\d", lines[0]):
        raise _bad(f"it starts with '{lines[0][:20]}', not with NRRD's mark", path)
    fields = {}
    for line in lines[1:]:
        if line and not line.startswith("#") and ":=" not in line:
            name, colon, value = line.partition(":")
            if not colon:
                raise _bad(f"a line of its header is no field: '{line[:40]}'", path)
            fields[name.strip().lower()] = value.strip()
    return fields


def _axes(
    fields: dict[str, str], sizes: list[int], path: Path
) -> tuple[np.ndarray | None, list[int]]:
    """(3, 3) steps of the spatial axes, a column each, if known, and which axes are kept.

    An axis without direction (a list of components, or of volumes) may have length 1 and is
    dropped, else it stays so that the count of volumes is seen.
    """
    if "space directions" not in fields:
        if "space" in fields:
            raise _bad("it names a space but no directions in it", path)
        return None, list(range(len(sizes)))
    vectors = re.findall(r"none|\([^)]*\)", fields["space directions"])
    if len(vectors) != len(sizes):
        raise _bad(f"{len(vectors)} space directions for {len(sizes)} axes", path)
    spatial = [i for i, vector in enumerate(vectors) if vector != "none"]
    for i in set(range(len(sizes))) - set(spatial):
        if sizes[i] != 1:
            code = "colour-image" if "color" in fields.get("kinds", "") else "several-volumes"
            raise InputError(
                f"it holds {sizes[i]} components or volumes; one is wanted",
                path=path,
                code=code,
                next_step="Save the volume to use as a file of its own.",
            )
    steps = [_numbers(vectors[i], path) for i in spatial]
    if len(spatial) != 3 or any(len(step) != 3 for step in steps):
        raise InputError(
            f"it has {len(spatial)} axes in space, and three are wanted",
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
        raise _bad(f"its origin is {fields['space origin']}", path)
    return np.array(origin)


def _space(fields: dict[str, str], path: Path) -> str:
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.lower() not in _MILLIMETRE for unit in units):
        raise InputError(
            f"its positions are in {fields['space units']}",
            path=path,
            code="bad-unit",
            next_step="Export the scan again in millimetres.",
        )
    name = fields.get("space", "lps").lower()
    if name not in _SPACES:
        raise InputError(
            f"its space, '{name}', is none of a patient",
            path=path,
            code="unknown-space",
            next_step="Export it in left-posterior-superior or right-anterior-superior.",
        )
    return _SPACES[name]


def _data_file(fields: dict[str, str], path: Path) -> Path:
    name = fields.get("data file", fields.get("datafile"))
    if name is None:
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(
            "its voxels are spread over several files",
            path=path,
            code="unsupported-encoding",
            next_step="Convert it to a single .nrrd file.",
        )
    return beside(path, name)


def _encoding(fields: dict[str, str], skip: int, path: Path) -> Encoding:
    name = fields["encoding"].lower()
    lines = _whole_numbers(fields.get("line skip", "0"), path)[0]
    if name not in _ENCODINGS or lines or skip < -1 or (skip < 0 and name != "raw"):
        raise InputError(
            f"encoding '{name}' (byte skip {skip}, line skip {lines}) cannot be read",
            path=path,
            code="unsupported-encoding",
            next_step="Convert it to raw or gzip encoding.",
        )
    return _ENCODINGS[name]


def _numbers(text: str, path: Path) -> list[float]:
    try:
        return [float(part) for part in text.strip("()").replace(",", " ").split()]
    except ValueError as error:
        raise _bad(f"'{text}' are no numbers", path) from error


def _whole_numbers(text: str, path: Path) -> list[int]:
    numbers = _numbers(text, path)
    if not numbers or not all(n.is_integer() for n in numbers):
        raise _bad(f"'{text}' are no whole numbers", path)
    return [int(n) for n in numbers]


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-header",
        next_step="The header is damaged: copy or export the file again.",
    )
