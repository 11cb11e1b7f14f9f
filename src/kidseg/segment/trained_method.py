"""Build a trained method from the header and the tensors of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kidseg.checkpoint import Parts
from kidseg.config import METHODS, load
from kidseg.device import Device, as_fast, choose_device
from kidseg.errors import ModelError, UsageError, is_out_of_memory
from kidseg.labels import LabelSchema, Target
from kidseg.methods import Method, method_named
from kidseg.nets import PlannedUNet, UNet
from kidseg.nets.adaptive import AdaptiveNet, has_batch_norms
from kidseg.nets.exported import GRAPH, ExportedNet
from kidseg.nets.folding import FoldedNet
from kidseg.plan import Plan
from kidseg.segment.adaptation import Adapt
from kidseg.segment.decision import weighted

__all__ = ["damaged_if_invalid", "load_method"]


@contextmanager
def damaged_if_invalid(path: Path) -> Iterator[None]:
    """Turn any failure to interpret a model's content, but for a lack of memory, into a ModelError.

    Raises:
        ModelError: "damaged-model".
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise _damaged(path, error) from error
    except UsageError as error:
        if error.code != "unknown-method" and error.code != "bad-setting":
            raise
        raise _damaged(path, error) from error


def load_method(
    header: Mapping[str, Any],
    parts: Parts,
    path: Path,
    device: str,
    adapt: Adapt,
    decision: Mapping[str, float],
) -> Method:
    """The method of a model with its weights, in evaluation mode.

    Args:
        header: of the model.
        parts: its tensors.
        path: of its file.
        device: see `choose_device`.
        adapt: with "norm", segmentation networks with batch norms become `AdaptiveNet`.
        decision: weights of the outputs; see `weighted`.

    Raises:
        UsageError, ResourceError: see `choose_device`.
        LookupError and others: for `damaged_if_invalid`.
    """
    name = header["method"]
    kind = method_named(name)
    config: Any = load(METHODS[name], base=header["config"])
    plan = Plan.from_dict(header["plan"], path)
    hardware = choose_device(device, as_fast(config.precision))
    target = weighted(target_of(header), LabelSchema.from_dict(header["labels"]), decision)
    method = kind.build(config, target, plan, device=hardware)
    ready: dict[str, nn.Module] = {}
    for part, net in method.parts.items():
        if (graph := parts[part].get(GRAPH)) is not None:
            ready[part] = ExportedNet(graph, net)
            continue
        net.load_state_dict(dict(parts[part]))
        ready[part] = _ready(net.eval().requires_grad_(False), hardware, adapt)
    if any(ready[part] is not net for part, net in method.parts.items()):
        method = kind(config, target, plan, ready, hardware)
    return method


def target_of(header: Mapping[str, Any]) -> Target:
    """The meaning of a model's output channels; files of format 1 have only labels."""
    labels = header["labels"]
    if (known := labels.get("target")) is not None:
        return Target.from_dict(known)
    return Target.of_labels(LabelSchema.from_dict(labels))


def _ready(net: nn.Module, device: Device, adapt: Adapt) -> nn.Module:
    """A segmentation network ready for inference: adaptive, and quick; others are unchanged."""
    if not isinstance(net, UNet | PlannedUNet):
        return net
    prepare = partial(_quick, device=device)
    if adapt == "norm" and has_batch_norms(net):
        return AdaptiveNet(net, device, prepare)
    return prepare(net)


def _quick(net: nn.Module, device: Device) -> nn.Module:
    """In bfloat16, with folded batch norms and bfloat16 weights."""
    assert isinstance(net, UNet | PlannedUNet)
    return FoldedNet(net, torch.bfloat16) if device.precision == "bf16" else net


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"the content does not match the header: {error}",
        path=path,
        code="damaged-model",
        next_step="Check whether it was written by a newer version of kidseg.",
    )
