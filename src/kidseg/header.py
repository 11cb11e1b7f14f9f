"""The header of a model file, read without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from kidseg.errors import ModelError

__all__ = ["FORMAT", "KEY", "read_header"]

FORMAT = 1
"""Version of the header format; a later kidseg may write a higher one."""

KEY = "kidseg"
"""Key of the header in the metadata of a .safetensors file."""


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a model file, without its tensors.

    Raises:
        ModelError: the file is missing, truncated, not a kidseg model, or of a later format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= size - 8:
                raise ValueError("the header is truncated")
            layout = json.loads(file.read(length))
        header: dict[str, Any] = json.loads(layout["__metadata__"][KEY])
        ends = [entry["data_offsets"][1] for key, entry in layout.items() if key != "__metadata__"]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError(f"{size} bytes, but the header requires {8 + length + max(ends)}")
    except OSError as error:
        raise ModelError(
            f"cannot be read: {error.strerror}",
            path=path,
            next_step="Check its name and permissions.",
            code="unreadable",
        ) from error
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(
            f"not a complete kidseg model: {error}",
            path=path,
            next_step="Copy the file again, or train the model again.",
            code="damaged-model",
        ) from error
    if header.get("format", 0) > FORMAT:
        raise ModelError(
            f"format {header['format']} is not supported; this kidseg reads formats up to {FORMAT}",
            path=path,
            next_step="Install a newer kidseg.",
            code="later-format",
        )
    return header
