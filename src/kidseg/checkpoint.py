"""Model files, and the training state for resuming an interrupted training.

A model is one .safetensors file: tensors by part ("pose.*", "crop.*", "segment.*") and a header
with method, configuration, input, training history and intended use. No pickle is ever loaded from
it. A training state is a separate file. The previous state is kept as well, and states are loaded
with torch's `weights_only`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kidseg.errors import KidsegWarning, ModelError
from kidseg.header import FORMAT, KEY, read_header
from kidseg.io.atomic import writing

__all__ = ["Model", "load_model", "load_state", "save_model", "save_state"]

INTENDED_USE = "Research use only. Not a medical device."

_STATE_MARK = b"kidseg-state-1 "


@dataclass(frozen=True, kw_only=True)
class Model:
    """The contents of a model file.

    Attributes:
        header: plain data; see `save_model`.
        parts: {part: {name: tensor}}.
        sha256: of the file.
    """

    header: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Tensor]]
    sha256: str


def save_model(
    path: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    header: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> str:
    """Write a model file atomically.

    Args:
        path: ends in .safetensors.
        parts: state dictionaries by part; names are joined with a dot.
        header: plain data: "method", "config" (resolved), "plan", "labels", "input",
            "training_set" (digest), "selection" (how it was selected and evaluated), "licence".
            Format version, package version, intended use and the tensors' digest are added.
        overwrite: replace an existing file.

    Returns:
        SHA-256 of the file.
    """
    from importlib.metadata import version

    from safetensors.torch import save

    tensors = {
        f"{part}.{name}": tensor.detach().to("cpu").contiguous().clone()
        for part, state in parts.items()
        for name, tensor in state.items()
    }
    full = {
        "format": FORMAT,
        "kidseg": version("kidseg"),
        "intended_use": INTENDED_USE,
        **header,
        "tensors_sha256": _digest(tensors),
    }
    payload = save(tensors, metadata={KEY: json.dumps(full)})
    with writing(path, overwrite=overwrite) as file:
        file.write(payload)
    return hashlib.sha256(payload).hexdigest()


def load_model(path: Path) -> Model:
    """Load a model file and verify its tensors against the digest in the header.

    Raises:
        ModelError: as `read_header`; the tensors do not match their digest.
    """
    from safetensors.torch import load

    header = read_header(path)
    payload = path.read_bytes()
    tensors = load(payload)
    if _digest(tensors) != header.get("tensors_sha256"):
        raise ModelError(
            "the weights do not match their checksum",
            path=path,
            next_step="Copy the file again, or train the model again.",
            code="damaged-model",
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return Model(header=header, parts=parts, sha256=hashlib.sha256(payload).hexdigest())


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Save a training state and keep the previous one."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    if path.exists():
        previous = _previous(path)
        previous.unlink(missing_ok=True)
        os.link(path, previous)
    with writing(path, overwrite=True) as file:
        file.write(_STATE_MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Load the training state at `path`; None if there is none.

    If the state is damaged, a warning is issued and the previous state is loaded.

    Raises:
        ModelError: all existing states are damaged; training never restarts silently.
    """
    found = False
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        found = True
        mark, _, payload = candidate.read_bytes().partition(b"\n")
        if mark == _STATE_MARK + hashlib.sha256(payload).hexdigest().encode():
            state: dict[str, Any] = torch.load(
                io.BytesIO(payload), map_location=device, weights_only=True
            )
            return state
        warnings.warn(
            f"{candidate}: the training state is damaged; trying the previous one",
            KidsegWarning,
            stacklevel=2,
        )
    if found:
        raise ModelError(
            "every saved training state is damaged",
            path=path,
            next_step="Remove the saved states to train from the start.",
            code="damaged-state",
        )
    return None


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, ordered by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
