"""Model files, which describe themselves, and the state of a training that was interrupted.

A model is one .safetensors file: tensors by part ("pose.*", "crop.*", "segment.*") and a header
that says what it is, what it takes, how it came about and what it may be used for. No pickle is
ever loaded from it. A training state is a file of its own kind, kept twice, and read with torch's
`weights_only`.
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
    """What is in a model file.

    Attributes:
        header: plain data; see `save_model`.
        parts: {part: {name: tensor}}.
        sha256: of the whole file.
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
    """Write a model file, whole or not at all.

    Args:
        path: ends in .safetensors.
        parts: state dictionaries by part; names are joined with a dot.
        header: plain data: "method", "config" (resolved), "plan", "labels", "input",
            "training_set" (digest), "selection" (how it was chosen and measured), "licence".
            Format number, package version, intended use and the tensors' digest are added.
        overwrite: replace a file that exists.

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
    """A model file, every tensor verified against the digest in its header.

    Raises:
        ModelError: as `read_header`, or the tensors are not those that were saved.
    """
    from safetensors.torch import load

    header = read_header(path)
    payload = path.read_bytes()
    tensors = load(payload)
    if _digest(tensors) != header.get("tensors_sha256"):
        raise ModelError(
            "its weights are not those that were saved",
            path=path,
            next_step="Copy it again, or train it again.",
            code="damaged-model",
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return Model(header=header, parts=parts, sha256=hashlib.sha256(payload).hexdigest())


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Keep a training state; the one before stays beside it until the next."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    if path.exists():
        before = _before(path)
        before.unlink(missing_ok=True)
        os.link(path, before)
    with writing(path, overwrite=True) as file:
        file.write(_STATE_MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def load_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The training state kept at `path`, or None if none was ever kept.

    A damaged state is refused with a warning and the one before it is used.

    Raises:
        ModelError: there are states, and all are damaged; never a silent fresh start.
    """
    found = False
    for candidate in (path, _before(path)):
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
            f"{candidate}: this training state is damaged; the one before it is used",
            KidsegWarning,
            stacklevel=2,
        )
    if found:
        raise ModelError(
            "every training state kept here is damaged",
            path=path,
            next_step="Remove it to train from the start.",
            code="damaged-state",
        )
    return None


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
