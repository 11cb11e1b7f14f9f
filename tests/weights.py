"""The weights of a model file, to compare trainings to the bit."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path


def weights_of(model: Path) -> str:
    """SHA-256 of the tensors alone; the header has, for example, the seconds of the training."""
    content = model.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return hashlib.sha256(content[8 + length :]).hexdigest()
