"""NIfTI files made by hand: sound ones, and ones with header fields that no library would write."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kidseg import io
from kidseg.errors import InputError
from kidseg.io import ReadOptions

SHAPE = (12, 10, 6)  # of the file: columns, rows, slices
AFFINE = np.array([[-0.8, 0, 0, 90.5], [0, -0.8, 0, 80], [0, 0, 3, -500], [0, 0, 0, 1]])
ANY = ReadOptions(values="any")
DEFAULT = ReadOptions()


def hounsfield(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Air with a noisy block of soft tissue, int16."""
    rng = np.random.default_rng(1)
    values = rng.normal(-1000, 5, shape)
    values[2:-2, 2:-2] = rng.normal(40, 20, values[2:-2, 2:-2].shape)
    return values.astype(np.int16)


def write(
    path: Path,
    data: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    edit: Callable[[nib.Nifti1Image], None] | None = None,
    kind: type[nib.Nifti1Image] = nib.Nifti1Image,
) -> Path:
    image = kind(
        hounsfield() if data is None else data,
        AFFINE if affine is None else affine,
        dtype=None if data is None else data.dtype,
    )
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    if edit is not None:
        edit(image)
    nib.save(image, path)
    return path


def patched(path: Path, **fields: object) -> Path:
    """The file with raw header fields overwritten, as no library would write them."""
    content = path.read_bytes()
    packed = content[:2] == b"\x1f\x8b"
    raw = bytearray(gzip.decompress(content) if packed else content)
    is_second = int.from_bytes(raw[:4], "little") == 540
    kind = nib.nifti2.header_dtype if is_second else nib.nifti1.header_dtype
    header = np.frombuffer(raw, kind, 1)
    for name, value in fields.items():
        header[name][0] = value
    path.write_bytes(gzip.compress(bytes(raw)) if packed else bytes(raw))
    return path


def refused(path: Path, code: str, options: ReadOptions = DEFAULT) -> InputError:
    with pytest.raises(InputError) as caught:
        io.read(path, options)
    error = caught.value
    assert error.code == code, error
    assert error.path == str(path) and error.cause and error.next_step
    assert str(path) in str(error)
    return error
