"""Convert between the number types stored in files and those that torch supports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import InputError

__all__ = ["is_supported", "scaled", "stored_array"]

_SUPPORTED = {*(f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64))} | {
    "float16",
    "float32",
    "float64",
}
# torch defines these types, but supports few operations on them.
_WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "float16": "float32"}


def is_supported(stored: np.dtype) -> bool:
    """Whether voxels of this type can be read: integers and floats of up to 64 bits."""
    return stored.name in _SUPPORTED


def scaled(values: np.ndarray, slope: float, intercept: float, path: Path) -> Tensor:
    """slope * values + intercept, in a type that torch supports.

    Integers stay integers if slope and intercept are integers: without scaling in the stored type
    (or the next wider signed type), otherwise in the smallest of int16, int32 and int64 that holds
    the result. Other results are computed in float64 and returned as float32; those of 64-bit
    floats and of integers over 16 bits are returned as float64.

    Args:
        values: in native byte order; may be overwritten.
        slope: rescale slope; 1 with intercept 0 means no scaling.
        intercept: rescale intercept.
        path: the file, for messages.

    Raises:
        InputError: "unsupported-type": a uint64 value exceeds int64; "bad-scaling": a result is too
            large for its type.
    """
    if values.dtype == np.uint64 and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise InputError(
            "it contains integers that exceed 64 signed bits",
            path=path,
            code="unsupported-type",
            next_step="Convert it to int16 or float32.",
        )
    if slope == 1 and intercept == 0:
        wider = _WIDER.get(values.dtype.name)
        return torch.from_numpy(values if wider is None else values.astype(wider))
    if values.dtype.kind in "iu" and slope == int(slope) and intercept == int(intercept):
        integers = _scaled_integers(values, int(slope), int(intercept))
        if integers is not None:
            return torch.from_numpy(integers)
    precise = values.dtype.itemsize > (2 if values.dtype.kind in "iu" else 4)
    out = np.empty(values.shape, np.float64 if precise else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(values), 2**20):  # chunks limit the memory for float64
            part = slice(start, start + 2**20)
            out[part] = values[part].astype(np.float64) * slope + intercept
            if np.any(np.isfinite(values[part]) & ~np.isfinite(out[part])):
                raise _overflow(slope, intercept, path)
    return torch.from_numpy(out)


def _overflow(slope: float, intercept: float, path: Path) -> InputError:
    return InputError(
        f"its scaling is invalid: {slope:g} x value + {intercept:g} exceeds what numbers can hold",
        path=path,
        code="bad-scaling",
        next_step="The header is damaged: export the scan again.",
    )


def _scaled_integers(values: np.ndarray, slope: int, intercept: int) -> np.ndarray | None:
    """The result as integers, or None if no type can hold it."""
    ends = [slope * int(v) + intercept for v in (values.min(), values.max())]
    products = [slope * int(v) for v in (values.min(), values.max())]
    stages = (slope, intercept, int(values.min()), int(values.max()), *products, *ends)
    for wide in ("int16", "int32", "int64"):
        info = np.iinfo(wide)
        if all(info.min <= n <= info.max for n in stages):
            out: np.ndarray = values.astype(wide) * slope + intercept
            return out
    return None


def stored_array(data: Tensor) -> np.ndarray:
    """The values as a contiguous little-endian array of a type that every program can read.

    Data types are kept, with these exceptions: bool and int64 (from argmax) become uint8 if all
    values are in 0..255; other int64 values become int32 if they fit; float16 and bfloat16 become
    float32.
    """
    data = data.detach().cpu()
    if data.dtype in (torch.float16, torch.bfloat16):
        data = data.float()
    elif data.dtype == torch.bool:
        data = data.to(torch.uint8)
    elif data.dtype == torch.int64:
        low, high = (int(v) for v in data.aminmax())
        if low >= 0 and high <= 255:
            data = data.to(torch.uint8)
        elif max(-low - 1, high) < 2**31:
            data = data.to(torch.int32)
    array: np.ndarray = np.ascontiguousarray(data.numpy())
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
