"""Write a model whose networks are ONNX graphs, for kidseg without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kidseg.checkpoint import WEIGHTS, Model, joined, load_model, save_model
from kidseg.errors import UsageError
from kidseg.header import MEMBERS
from kidseg.io.atomic import check_writable
from kidseg.members import members_of
from kidseg.methods import Method
from kidseg.methods.homogenized.system_a import Homogenized
from kidseg.methods.plain import Plain
from kidseg.model_file import find_model
from kidseg.nets import Localizer, UNet
from kidseg.nets.exported import GRAPH, exported
from kidseg.segment.trained_method import damaged_if_invalid, load_method

__all__ = ["EXPORTED_FROM", "export_onnx"]

EXPORTED_FROM = "exported_from"
"""Entry of the header: SHA-256 of the model whose networks were exported."""

_METHODS = (Plain.name, Homogenized.name)


def export_onnx(model: str | Path, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a copy of a model whose networks are ONNX graphs, in single precision.

    All else is that of the model: members, settings, decision, description. The steps between the
    networks are kidseg's own, whichever way the networks run.

    Args:
        model: a model file, a run folder, or "starter": methods plain and homogenized, and
            ensembles of them.
        out: file to write.
        overwrite: replace an existing file.

    Returns:
        {"path", "sha256", "exported_from", "members": methods, "megabytes"}.

    Raises:
        UsageError: "not-exportable": another method, or networks that are adapted to each scan;
            "missing-extra", "output-exists".
        ModelError: see `find_model` and `load_model`; "damaged-model".
    """
    path, out = find_model(model), Path(out)
    check_writable(out, overwrite=overwrite)
    file = load_model(path)
    with damaged_if_invalid(path):
        members = members_of(file)
        for member in members:
            _check_exportable(member, path)
        parts = [_exported(member, path) for member in members]
    header = {**_header(file.header), EXPORTED_FROM: file.sha256}
    header.pop(WEIGHTS, None)
    written = parts[0]
    if len(members) > 1:
        header[MEMBERS] = [_header(member.header) for member in members]
        written = {str(k): joined(each) for k, each in enumerate(parts)}
    sha256 = save_model(out, written, header, overwrite=overwrite)
    return {
        "path": str(out),
        "sha256": sha256,
        EXPORTED_FROM: file.sha256,
        "members": [member.header["method"] for member in members],
        "megabytes": round(out.stat().st_size / 1e6, 2),
    }


def _check_exportable(member: Model, path: Path) -> None:
    method = member.header.get("method")
    if method not in _METHODS:
        raise UsageError(
            f"networks of method '{method}' are not exported to ONNX",
            path=path,
            code="not-exportable",
            next_step=f"Export a model of method {' or '.join(_METHODS)}, or use PyTorch.",
        )
    if member.header.get("adapt", "none") != "none":
        raise UsageError(
            "its networks are adapted to each scan, which graphs are not",
            path=path,
            code="not-exportable",
            next_step="Switch it off: kidseg ensemble MODEL -o FIXED.safetensors --adapt none",
        )
    if any(GRAPH in tensors for tensors in member.parts.values()):
        raise UsageError(
            "its networks are ONNX graphs already",
            path=path,
            code="not-exportable",
            next_step="Use it as it is.",
        )


def _header(header: Mapping[str, Any]) -> dict[str, Any]:
    """With single precision, in which graphs compute."""
    return {**header, "config": {**header["config"], "precision": "fp32"}}


def _exported(member: Model, path: Path) -> dict[str, dict[str, Tensor]]:
    """The parts of a member, with a graph in place of a network's weights."""
    method: Method = load_method(_header(member.header), member.parts, path, "cpu", "none", {})
    parts = {}
    for part, net in method.parts.items():
        if isinstance(net, UNet | Localizer):
            parts[part] = {GRAPH: exported(net, _size(net))}
        else:
            parts[part] = dict(member.parts[part])
    return parts


def _size(net: UNet | Localizer) -> tuple[int, ...]:
    """(channels, rows, columns) of an image that the network takes."""
    channels = next(iter(net.parameters())).shape[1]
    if isinstance(net, Localizer):
        return channels, net.size, net.size
    return channels, *(2 * multiple for multiple in net.multiple)
