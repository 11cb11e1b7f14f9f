"""MetaImage, in one file (.mha) or with its voxels in a file of their own (.mhd); raw or zlib.

Read without ITK, so that truncation, checksums and odd geometry are seen; ITK is the peer in the
tests. Source: "MetaIO documentation", ITK's https://docs.itk.org/en/latest/learn/metaio.html.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import checks
from kidseg.io.numbers import stored_array
from kidseg.io.orientation import affine_of_grid, ras_from_lps
from kidseg.io.scan import ReadOptions, Scan
from kidseg.io.voxels import VoxelBlock, beside, place, read_block, stored_type, text_header

__all__ = ["read_metaimage", "read_metaimage_grid", "write_metaimage"]

# MetaIO's long has four bytes on every machine.
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
_LAST = "ElementDataFile"
_CHUNK = 2**24


def read_metaimage(path: Path, options: ReadOptions) -> Scan:
    """A MetaImage file as a scan.

    Raises:
        InputError: anything that is not one sound volume; see the codes of `kidseg.io.checks` and
            `kidseg.io.voxels`, and "bad-header", "unsupported-encoding", "several-volumes".
        ResourceError: "not-enough-memory".
    """
    return read_block(_describe(path, options), path, "metaimage", options)


def read_metaimage_grid(path: Path, options: ReadOptions) -> Grid:
    """The voxel grid of a MetaImage file, from its header alone.

    Raises:
        InputError: as `read_metaimage`, for what the header shows.
    """
    return _describe(path, options).native


def write_metaimage(volume: Volume, file: BinaryIO) -> None:
    """Write one channel in its own voxel order, zlib, as ITK does."""
    from isal import isal_zlib

    array = stored_array(volume.data[0])
    packer = isal_zlib.compressobj(1)
    voxels = memoryview(array.data).cast("B")
    packed = [packer.compress(voxels[i : i + _CHUNK]) for i in range(0, len(voxels), _CHUNK)]
    packed.append(packer.flush())
    affine = ras_from_lps @ affine_of_grid(volume.grid)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {sum(map(len, packed))}",
        f"TransformMatrix = {_text((affine[:3, :3] / spacing).T)}",
        f"Offset = {_text(affine[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_text(spacing)}",
        f"DimSize = {' '.join(str(n) for n in volume.grid.shape[::-1])}",
        f"ElementType = {_MET_FROM_NUMPY[array.dtype.newbyteorder('=').name]}",
        f"{_LAST} = LOCAL",
    ]
    file.write(("\n".join(lines) + "\n").encode("ascii"))
    file.writelines(packed)


def _text(values: np.ndarray) -> str:
    return " ".join(repr(float(v) + 0.0) for v in values.ravel())


# ---- header ------------------------------------------------------------------------------------


def _describe(path: Path, options: ReadOptions) -> VoxelBlock:
    lines, end = text_header(path, _LAST.encode())
    fields = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if line and not equals:
            raise _bad(f"a line of its header is no field: '{line[:40]}'", path)
        fields[name.strip()] = value.strip()
    for name in ("NDims", "DimSize", "ElementType", _LAST):
        if name not in fields:
            raise _bad(f"its header lacks '{name}'", path)
    if _numbers(fields.get("ElementNumberOfChannels", "1"), path) != [1.0]:
        raise InputError(
            f"it holds {fields['ElementNumberOfChannels']} components per voxel; one is wanted",
            path=path,
            code="several-volumes",
            next_step="Save the component to use as a file of its own.",
        )
    sizes = _numbers(fields["DimSize"], path)
    if [len(sizes)] != _numbers(fields["NDims"], path) or not all(n.is_integer() for n in sizes):
        raise _bad(f"{fields['NDims']} dimensions and sizes {fields['DimSize']} disagree", path)
    nx, ny, nz = checks.three_dimensional([int(n) for n in sizes], path)
    axes_mm, origin_mm = _axes(fields, len(sizes), path, options)
    matrix, findings = place(axes_mm, origin_mm, "LPS", path, options)
    file = _data_file(fields, path)
    skip = _numbers(fields.get("HeaderSize", "0"), path)
    packed = _flag(fields, "CompressedData")
    if len(skip) != 1 or not skip[0].is_integer() or skip[0] < (0 if packed else -1):
        raise _unsupported(f"its HeaderSize is {fields['HeaderSize']}", path)
    big = _flag(fields, "BinaryDataByteOrderMSB") or _flag(fields, "ElementByteOrderMSB")
    if not _flag(fields, "BinaryData", default="True"):
        raise _unsupported("its voxels are written as text", path)
    return VoxelBlock(
        native=checks.grid_of((nz, ny, nx), matrix, path),
        stored=stored_type(_NUMPY_FROM_MET.get(fields["ElementType"]), big, path),
        file=file,
        offset=end if file == path else 0,
        skip=int(skip[0]),
        encoding="zlib" if packed else "raw",
        findings=findings,
    )


def _axes(
    fields: dict[str, str], ranks: int, path: Path, options: ReadOptions
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(3, 3) steps in LPS mm, a column per axis, and (3,) position of the first voxel, if stated.

    Further axes, all of length 1, are left out.
    """
    turn = _first(fields, "TransformMatrix", "Orientation", "Rotation")
    origin = _first(fields, "Offset", "Position", "Origin")
    steps = _first(fields, "ElementSpacing", "ElementSize")
    if turn is None or origin is None:
        return None, None
    directions, offset = _numbers(turn, path), _numbers(origin, path)
    spacing = [1.0] * ranks if steps is None else _numbers(steps, path)
    if (len(directions), len(offset), len(spacing)) != (ranks * ranks, ranks, ranks):
        raise _bad("the numbers of its position do not fit its dimensions", path)
    axes = np.array(directions).reshape(ranks, ranks)[:3, :3].T
    if options.spacing_mm is None:
        if steps is None:
            raise _bad("its header lacks 'ElementSpacing'", path)
        checks.check_spacing(spacing[2::-1], path)
        axes = axes * np.array(spacing[:3])
    return axes, np.array(offset[:3])


def _data_file(fields: dict[str, str], path: Path) -> Path:
    name = fields[_LAST]
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise _unsupported("its voxels are spread over several files", path)
    return beside(path, name)


def _first(fields: dict[str, str], *names: str) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _flag(fields: dict[str, str], name: str, default: str = "False") -> bool:
    return fields.get(name, default).lower() in ("true", "1", "yes")


def _numbers(text: str, path: Path) -> list[float]:
    try:
        return [float(part) for part in text.split()]
    except ValueError as error:
        raise _bad(f"'{text}' are no numbers", path) from error


def _unsupported(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="unsupported-encoding",
        next_step="Convert it to a single .mha file.",
    )


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-header",
        next_step="The header is damaged: copy or export the file again.",
    )
