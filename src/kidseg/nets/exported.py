"""Networks as ONNX graphs, which ONNX Runtime runs: also where PyTorch is not installed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kidseg.extras import check_installed

__all__ = ["GRAPH", "ExportedNet", "exported"]

GRAPH = "onnx"
"""Name of the only tensor of an exported network in a model file: the bytes of its graph."""

_OPSET = 18
_SIDES = ("rows", "columns", "slices")


class ExportedNet(nn.Module):
    """An exported network, with the outputs of the original: in float32, on the CPU.

    Attributes:
        multiple: the sides of an image must be multiples of these, per axis; (1, 1) for a network
            of one size.
    """

    def __init__(self, graph: Tensor, original: nn.Module) -> None:
        """Load a graph.

        Args:
            graph: bytes of `exported`.
            original: a network of the same architecture, whatever its weights.

        Raises:
            UsageError: "missing-extra".
            ValueError: it is not a graph that can be run.
        """
        super().__init__()
        _check_installed("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors are raised
        try:
            self._session = onnxruntime.InferenceSession(
                graph.numpy().tobytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of no common class
            raise ValueError(f"a network's graph cannot be loaded: {error}") from error
        self._has_levels = hasattr(original, "multiple")
        self.multiple: Sequence[int] = getattr(original, "multiple", (1, 1))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """What the original returns in evaluation mode, for float32 (n, channels, *size)."""
        given = np.ascontiguousarray(image.detach().float().cpu().numpy())
        (values,) = self._session.run(None, {"image": given})
        found = torch.from_numpy(values).to(image.device)
        return [found] if self._has_levels else found


def exported(net: nn.Module, size: Sequence[int]) -> Tensor:
    """The graph of a network as (bytes,) uint8; any number of images at a time.

    Args:
        net: in evaluation mode, on the CPU. If it has `multiple`, it takes images of any size that
            these allow, and its first level is exported; otherwise of this size.
        size: (channels, *size) of an image.

    Raises:
        UsageError: "missing-extra".
    """
    _check_installed("onnx", "onnxscript")
    import onnx
    import onnxscript  # noqa: F401  torch.onnx needs it

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    axes: dict[int, object] = {0: torch.export.Dim("images")}
    for axis, (name, multiple) in enumerate(
        zip(_SIDES, getattr(net, "multiple", ()), strict=False), start=2
    ):
        axes[axis] = multiple * torch.export.Dim(name) if multiple > 1 else torch.export.Dim(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch about itself
        program = torch.onnx.export(
            _Single(net).eval(),
            (torch.zeros(2, *size),),
            dynamo=True,
            dynamic_shapes=(axes,),
            input_names=["image"],
            output_names=["values"],
            opset_version=_OPSET,
            optimize=False,  # the runtime does, and weights stay as they are
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _halve(onnx, model.graph)
    return torch.frombuffer(bytearray(model.SerializeToString()), dtype=torch.uint8)


def _halve(onnx: Any, graph: Any) -> None:
    """Store weights as float16 if they are exact in it, as those of a file in half precision."""
    for weights in graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        half, name = values.astype(np.float16), weights.name
        if (half == values).all():
            weights.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
            cast = onnx.helper.make_node(
                "Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT
            )
            graph.node.insert(0, cast)


class _Single(nn.Module):
    """A network with one output: its first level, if it has several."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor | Sequence[Tensor] = self.net(image)
        return found if isinstance(found, Tensor) else found[0]


def _check_installed(*packages: str) -> None:
    check_installed("a network in ONNX", packages, "kidseg[onnx]")
