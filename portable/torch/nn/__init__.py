"""Modules, whose layers are only names: networks run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.absent import needs_pytorch
from torch.nn import functional
from torch.tensor import Tensor

__all__ = ["Module", "functional", "init"]


class Module:
    """A module with buffers and without parameters."""

    def __init__(self) -> None:
        self._buffers: list[str] = []

    def register_buffer(self, name: str, values: Tensor) -> None:
        """A tensor that a model file contains."""
        self._buffers.append(name)
        setattr(self, name, values)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Buffers from a model file.

        Raises:
            UsageError: "needs-pytorch": there are weights of layers.
            RuntimeError: they are others, or of another shape.
        """
        if state and not self._buffers:
            raise needs_pytorch(
                "a network that is not exported",
                "Export the model where PyTorch is installed (kidseg export-onnx MODEL -o"
                " PORTABLE.safetensors), and use that.",
            )
        if set(state) != set(self._buffers):
            raise RuntimeError(f"expected {sorted(self._buffers)}, not {sorted(state)}")
        for name, values in state.items():
            own: Tensor = getattr(self, name)
            if own.shape != values.shape:
                raise RuntimeError(f"{name}: shape {values.shape}, not {own.shape}")
            own.copy_(values)

    def eval(self) -> Module:
        """Itself: nothing is trained."""
        return self

    def to(self, *_: Any, **__: Any) -> Module:
        """Itself: there is one device."""
        return self

    def requires_grad_(self, _: bool = True) -> Module:
        """Itself: there are no gradients."""
        return self

    def parameters(self) -> Iterator[Tensor]:
        """None."""
        return iter(())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """None."""
        return iter(())

    def __call__(self, *inputs: Any) -> Any:
        """What `forward` returns."""
        forward = getattr(self, "forward", None)
        if forward is None:
            raise needs_pytorch(f"the layer {type(self).__name__}")
        return forward(*inputs)


class _Layer(Module):
    weight = bias = None

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


class init:  # noqa: N801
    """Initial weights: none."""

    zeros_ = kaiming_normal_ = kaiming_uniform_ = trunc_normal_ = staticmethod(
        lambda *_, **__: None
    )


_LAYERS: dict[str, type[Module]] = {}


def __getattr__(name: str) -> type[Module]:
    if name.startswith("_"):
        raise AttributeError(name)
    return _LAYERS.setdefault(name, type(name, (_Layer,), {}))
