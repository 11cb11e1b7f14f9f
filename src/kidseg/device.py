"""Device, precision and memory allocator of the networks."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kidseg.errors import ResourceError, UsageError

__all__ = [
    "Device",
    "Precision",
    "as_fast",
    "choose_device",
    "has_pytorch",
    "missing_gpu",
    "repeatable_convolutions",
    "tune_allocator",
]

Precision = Literal["fp32", "bf16"]

# Parameters of glibc's mallopt. Source: malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device and the precision of its convolutions.

    Attributes:
        torch: the device.
        precision: of the networks' forward passes; weights are float32. On CUDA, convolutions in
            fp32 round what they multiply to TF32, 10 bits, which is PyTorch's default.
    """

    torch: torch.device
    precision: Precision = "fp32"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes."""
        if self.precision == "bf16":
            return torch.autocast(self.torch.type, dtype=torch.bfloat16)
        return nullcontext()


def choose_device(
    name: str = "auto", precision: Literal["auto", "fp32", "bf16"] = "auto"
) -> Device:
    """The device of this name. "auto" uses a GPU if available; only "auto" may fall back.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto" is bf16 if the device supports it natively, otherwise fp32.

    Raises:
        UsageError: "unknown-device": invalid name.
        ResourceError: "no-such-device": not available on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdigit())):
        raise UsageError(
            f"unknown device '{name}'",
            code="unknown-device",
            next_step="Choose auto, cpu, cuda, cuda:N or mps.",
        )
    missing = (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ResourceError(
            f"device '{name}' is not available on this machine",
            code="no-such-device",
            next_step="Choose another --device, or auto.",
        )
    chosen: Precision = "fp32" if precision == "auto" else precision
    if precision == "auto" and _supports_bf16(kind):
        chosen = "bf16"
    return Device(torch=torch.device(name), precision=chosen)


def as_fast(precision: Literal["auto", "fp32", "bf16"]) -> Literal["auto", "fp32"]:
    """The precision in which a trained model is used: fp32 if it asks for it, else the fastest.

    Processors without instructions for bf16 emulate it, at ten times the time of fp32 and with less
    accuracy.
    """
    return "fp32" if precision == "fp32" else "auto"


def missing_gpu(name: str) -> str:
    """What a user is told if "auto" is the CPU although PyTorch is a build for GPUs; else ""."""
    if name != "auto" or not has_pytorch() or torch.version.cuda is None:
        return ""
    if torch.cuda.is_available():
        return ""
    return (
        f"PyTorch for CUDA {torch.version.cuda} finds no GPU, so the CPU computes; a container"
        " sees GPUs only by an option of its engine"
    )


def has_pytorch() -> bool:
    """Whether this is PyTorch, and not its interface on NumPy; see docs/container.md."""
    return not str(torch.__version__).endswith("+numpy")


@contextmanager
def repeatable_convolutions() -> Iterator[None]:
    """Let a GPU compute the gradients of convolutions by algorithms that give the same bits again.

    cuDNN's fastest ones add in any order. No effect on the CPU.
    """
    known = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = known


def tune_allocator() -> bool:
    """Let glibc keep the memory of freed tensors instead of returning it to the system.

    Call it before the first large tensor is allocated. Results are unaffected. No effect without
    glibc.

    Returns:
        True if the allocator was changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def _supports_bf16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False
