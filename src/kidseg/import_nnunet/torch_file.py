"""Read a file of `torch.save` without executing what is in it.

Such a file is a pickle, which can name any function to be called. torch's restricted reader builds
tensors and plain containers only. nnU-Net's checkpoints also contain numbers of numpy, in their
training log: the two names for them stand here for code of this module, which makes plain numbers.
Any other name is refused.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kidseg.errors import ModelError, is_out_of_memory

__all__ = ["read_torch_file"]

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_NAMED = re.compile(r"(?:GLOBAL|function|class|type) ['\"`]?([\w.]+\.[\w.]+)")


class _NumberType:
    """Stands for `numpy.dtype`: the type of a number."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in _NUMBERS:
            raise ValueError(f"numpy values of type {name!r:.20}")
        self.name = name
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if len(state) > 1 and state[1] == ">" else "<"


def _number(kind: _NumberType, data: bytes) -> float | int | bool:
    """Stands for numpy's `scalar`: a plain number."""
    if type(kind) is not _NumberType:
        raise TypeError("a numpy value of no type")
    (value,) = np.frombuffer(data, dtype=np.dtype(kind.order + kind.name)).tolist()
    found: float | int | bool = value
    return found


_ALLOWED = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_torch_file(path: Path) -> Any:
    """The tensors, containers and numbers of a file that `torch.save` wrote, on the CPU.

    Raises:
        ModelError: "unreadable"; "unsafe-checkpoint": it names something else to be called or
            built; "damaged-checkpoint": it is truncated, or another kind of file.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ModelError(
            f"cannot be read: {error.strerror}",
            path=path,
            code="unreadable",
            next_step="Check its name and permissions.",
        ) from error
    try:
        with (
            file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_ALLOWED),  # type: ignore[arg-type]
        ):
            warnings.simplefilter("ignore")  # of the protocol, for files that are refused
            return torch.load(file, map_location="cpu", weights_only=True)
    # A hostile file can make the reader fail in any way.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _refusal(path, error) from error


def _text(error: Exception) -> str:
    """Its message; its type, if the message shows something nested too deeply to be shown."""
    try:
        return " ".join(str(error).split())
    except RecursionError:
        return type(error).__name__


def _refusal(path: Path, error: Exception) -> ModelError:
    text = _text(error)
    if "weights_only" in text.lower() or "Unsupported" in text or "GLOBAL" in text:
        named = _NAMED.search(text)
        what = f"'{named[1]}'" if named else "something that is not a tensor, list or number"
        return ModelError(
            f"the file asks for {what} to be loaded or called, which a checkpoint of nnU-Net does"
            " not; nothing of it was executed",
            path=path,
            code="unsafe-checkpoint",
            next_step="Get the checkpoint from a source that you trust. If its trainer stores"
            " objects of its own, save it with nnU-Net's trainer again.",
        )
    return ModelError(
        f"not a complete checkpoint of torch: {text or type(error).__name__:.200}",
        path=path,
        code="damaged-checkpoint",
        next_step="Copy the file again.",
    )
