"""MetaImage, in one file (.mha) or with a separate voxel file (.mhd); raw or zlib.

Read without ITK, so that truncation, wrong checksums and invalid geometry are detected. The tests
compare with ITK. Source: "MetaIO documentation", ITK's
https://docs.itk.org/en/latest/learn/metaio.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from kidseg.errors import InputError, quoted
from kidseg.geometry import Volume
from kidseg.io import checks
from kidseg.io.checks import bad_header
from kidseg.io.numbers import stored_array
from kidseg.io.orientation import affine_of_grid, ras_from_lps
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

__all__ = ["describe_metaimage", "write_metaimage"]

# In MetaIO, long always has four bytes.
_NUMPY_FROM_MET = {
    "MET_CHAR": "int8",
    "MET_UCHAR": "uint8",
    "MET_SHORT": "int16",
    "MET_USHORT": "uint16",
    "MET_INT": "int32",
    "MET_UINT": "uint32",
    "MET_LONG": "int32",
    "MET_ULONG": "uint32",
    "MET_LONG_LONG": "int64",
    "MET_ULONG_LONG": "uint64",
    "MET_FLOAT": "float32",
    "MET_DOUBLE": "float64",
}
_MET_FROM_NUMPY = {
    numpy: met for met, numpy in _NUMPY_FROM_MET.items() if met not in ("MET_LONG", "MET_ULONG")
}
_MILLIMETRE = {"", "?", "mm"}  # MetaIO writes "?" for an unknown unit
_LAST = "ElementDataFile"
_CHUNK = 2**24


def write_metaimage(volume: Volume, file: BinaryIO) -> None:
    """Write one channel in its native voxel order, zlib-compressed, as ITK does."""
    from isal import isal_zlib

    array = stored_array(volume.data[0])
    compressor = isal_zlib.compressobj(1)
    voxels = memoryview(array.data).cast("B")
    chunks = [compressor.compress(voxels[i : i + _CHUNK]) for i in range(0, len(voxels), _CHUNK)]
    chunks.append(compressor.flush())
    affine = ras_from_lps @ affine_of_grid(volume.grid)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {sum(map(len, chunks))}",
        f"TransformMatrix = {format_numbers((affine[:3, :3] / spacing).T, ' ')}",
        f"Offset = {format_numbers(affine[:3, 3], ' ')}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {format_numbers(spacing, ' ')}",
        f"DimSize = {' '.join(str(n) for n in volume.grid.shape[::-1])}",
        f"ElementType = {_MET_FROM_NUMPY[array.dtype.newbyteorder('=').name]}",
        f"{_LAST} = LOCAL",
    ]
    file.write(("\n".join(lines) + "\n").encode("ascii"))
    file.writelines(chunks)


# ---- header ------------------------------------------------------------------------------------


def describe_metaimage(path: Path, options: ReadOptions) -> VoxelBlock:
    """Parse the header of a MetaImage file.

    Raises:
        InputError: the header does not describe one valid volume; see the codes of
            `kidseg.io.checks` and `kidseg.io.voxels`, and "unsupported-encoding",
            "several-volumes", "bad-unit".
    """
    lines, end = text_header(path, _LAST.encode())
    fields: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if line and not equals:
            raise bad_header(f"a line of its header is not a field: {quoted(line)}", path)
        add_field(fields, name.strip(), value.strip(), path)
    require_fields(fields, ("NDims", "DimSize", "ElementType", _LAST), path)
    if parse_numbers(fields.get("ElementNumberOfChannels", "1"), path) != [1.0]:
        raise InputError(
            f"it has {quoted(fields['ElementNumberOfChannels'])} components per voxel; only one "
            "is supported",
            path=path,
            code="several-volumes",
            next_step="Save the required component as a separate file.",
        )
    if (unit := fields.get("DistanceUnits", "mm")).lower() not in _MILLIMETRE:
        raise InputError(
            f"its unit of length is not millimetres, but {quoted(unit)}",
            path=path,
            code="bad-unit",
            next_step="Export the scan again in millimetres.",
        )
    sizes = parse_numbers(fields["DimSize"], path)
    ranks = parse_numbers(fields["NDims"], path)
    if [len(sizes)] != ranks or not all(n.is_integer() for n in sizes):
        raise bad_header(
            f"{quoted(fields['NDims'])} dimensions and sizes {quoted(fields['DimSize'])} disagree",
            path,
        )
    nx, ny, nz = checks.volume_shape([int(n) for n in sizes], path)
    axes_mm, origin_mm = _axes(fields, len(sizes), path, options)
    matrix, findings = header_matrix(axes_mm, origin_mm, "LPS", path, options)
    file = _data_file(fields, path)
    skip = parse_numbers(fields.get("HeaderSize", "0"), path)
    compressed = _flag(fields, "CompressedData")
    if len(skip) != 1 or not skip[0].is_integer() or skip[0] < (0 if compressed else -1):
        raise _unsupported(f"its HeaderSize {quoted(fields['HeaderSize'])} is not supported", path)
    big_endian = _flag(fields, "BinaryDataByteOrderMSB") or _flag(fields, "ElementByteOrderMSB")
    if not _flag(fields, "BinaryData", default="True"):
        raise _unsupported("its voxels are stored as text, which is not supported", path)
    return VoxelBlock(
        native=checks.grid_of((nz, ny, nx), matrix, path),
        stored=stored_type(_NUMPY_FROM_MET.get(fields["ElementType"]), big_endian, path),
        file=file,
        offset=end if file == path else 0,
        skip=int(skip[0]),
        encoding="zlib" if compressed else "raw",
        findings=findings,
    )


def _axes(
    fields: dict[str, str], ranks: int, path: Path, options: ReadOptions
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(3, 3) steps in LPS mm, a column per axis, and (3,) position of the first voxel, if stated.

    Further axes, all of length 1, are dropped.
    """
    rotation = _first(fields, "TransformMatrix", "Orientation", "Rotation")
    origin = _first(fields, "Offset", "Position", "Origin")
    steps = _first(fields, "ElementSpacing", "ElementSize")
    if rotation is None or origin is None:
        return None, None
    directions, offset = parse_numbers(rotation, path), parse_numbers(origin, path)
    spacing = [1.0] * ranks if steps is None else parse_numbers(steps, path)
    if (len(directions), len(offset), len(spacing)) != (ranks * ranks, ranks, ranks):
        raise bad_header("its position and orientation do not match its dimensions", path)
    axes = np.array(directions).reshape(ranks, ranks)[:3, :3].T
    if options.spacing_mm is None:
        if steps is None:
            raise bad_header("its header lacks 'ElementSpacing'", path)
        checks.check_spacing(spacing[2::-1], path)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            axes = axes * np.array(spacing[:3])
    return axes, np.array(offset[:3])


def _data_file(fields: dict[str, str], path: Path) -> Path:
    name = fields[_LAST]
    return path if name.upper() == "LOCAL" else separate_file(path, name, ".mha")


def _first(fields: dict[str, str], *names: str) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _flag(fields: dict[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default).lower() in ("true", "1", "yes")


def _unsupported(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="unsupported-encoding",
        next_step="Convert it to a single .mha file.",
    )
