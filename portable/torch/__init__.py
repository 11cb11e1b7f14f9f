"""PyTorch's interface on NumPy, as far as kidseg segments with it: no gradients, one device.

kidseg's geometry and inference are written for PyTorch. Where that is too large, this package
stands in its place, so that the same code runs. Networks run by ONNX Runtime; see
`kidseg.nets.exported`. What is missing raises an error of kidseg's, "needs-pytorch", when it is
called.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from torch import absent
from torch.promotion import promoted
from torch.tensor import Device, Tensor, tensor

absent.install()

from torch import autograd as autograd  # noqa: E402
from torch import linalg as linalg  # noqa: E402
from torch import nn as nn  # noqa: E402

__version__ = "2.13.0+numpy"

device = Device
dtype = np.dtype
uint8, int16, int32, int64 = (np.dtype(k) for k in ("uint8", "int16", "int32", "int64"))
float16, float32, float64 = (np.dtype(k) for k in ("float16", "float32", "float64"))
bool = np.dtype("bool")  # noqa: A001
half, double, long = float16, float64, int64
bfloat16 = "bfloat16"  # a name: nothing has this type
inf, nan, pi = np.inf, np.nan, np.pi
finfo = np.finfo
channels_last, channels_last_3d, contiguous_format = "channels_last", "channels_last_3d", ""


def _of(values: Any) -> Tensor:
    return np.asarray(values).view(Tensor)


# Making.


def as_tensor(data: Any, dtype: Any = None, **_: Any) -> Tensor:
    """A tensor that shares memory with an array, if it has the type."""
    if isinstance(data, np.ndarray):
        return data.astype(dtype or data.dtype, copy=False).view(Tensor)
    return tensor(data, dtype)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor that shares memory with an array."""
    return array.view(Tensor)


def frombuffer(buffer: Any, *, dtype: Any) -> Tensor:
    """A tensor that shares memory with a buffer."""
    return np.frombuffer(buffer, dtype).view(Tensor)


def _shape(given: Sequence[Any]) -> tuple[int, ...]:
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], Sequence) else tuple(given)


def zeros(*shape: Any, dtype: Any = None, **_: Any) -> Tensor:
    """Zeros, float32 by default."""
    return np.zeros(_shape(shape), dtype or float32).view(Tensor)


def ones(*shape: Any, dtype: Any = None, **_: Any) -> Tensor:
    """Ones, float32 by default."""
    return np.ones(_shape(shape), dtype or float32).view(Tensor)


def empty(*shape: Any, dtype: Any = None, **_: Any) -> Tensor:
    """New memory, float32 by default."""
    return np.empty(_shape(shape), dtype or float32).view(Tensor)


def full(shape: Sequence[int], value: Any, dtype: Any = None, **_: Any) -> Tensor:
    """One value."""
    return np.full(tuple(shape), value, dtype or promoted(value)).view(Tensor)


def zeros_like(values: Tensor, dtype: Any = None, **_: Any) -> Tensor:
    """Zeros in a tensor's shape and type."""
    return np.zeros(values.shape, dtype or values.dtype).view(Tensor)


def ones_like(values: Tensor, dtype: Any = None, **_: Any) -> Tensor:
    """Ones in a tensor's shape and type."""
    return np.ones(values.shape, dtype or values.dtype).view(Tensor)


def empty_like(values: Tensor, dtype: Any = None, **_: Any) -> Tensor:
    """New memory in a tensor's shape and type."""
    return np.empty(values.shape, dtype or values.dtype).view(Tensor)


def full_like(values: Tensor, value: Any, dtype: Any = None, **_: Any) -> Tensor:
    """One value in a tensor's shape and type."""
    return np.full(values.shape, value, dtype or values.dtype).view(Tensor)


def eye(count: int, dtype: Any = None, **_: Any) -> Tensor:
    """The identity."""
    return np.eye(count, dtype=dtype or float32).view(Tensor)


def arange(*ends: Any, dtype: Any = None, **_: Any) -> Tensor:
    """Equally spaced numbers."""
    return np.arange(*ends, dtype=dtype or promoted(*ends)).view(Tensor)


def linspace(start: float, end: float, steps: int, dtype: Any = None, **_: Any) -> Tensor:
    """Equally spaced numbers with both ends."""
    return np.linspace(start, end, steps, dtype=dtype or float32).view(Tensor)


# Joining and choosing.


def cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Joined along an axis."""
    return np.concatenate([part.numpy() for part in parts], axis=dim).view(Tensor)


def stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Joined along a new axis."""
    return np.stack([np.asarray(part) for part in parts], axis=dim).view(Tensor)


def where(condition: Tensor, one: Any, other: Any) -> Tensor:
    """One or the other."""
    found = np.where(condition.numpy(), one, other)
    return found.astype(promoted(one, other), copy=False).view(Tensor)


def result_type(*values: Any) -> np.dtype:
    """The type of a result; see `promoted`."""
    return promoted(*values)


def promote_types(one: Any, other: Any) -> np.dtype:
    """The type of results of tensors of these types."""
    return promoted(np.empty(1, one), np.empty(1, other))


def softmax(values: Tensor, dim: int) -> Tensor:
    """Exponentials as shares along an axis."""
    powers = np.exp(values.numpy() - values.numpy().max(axis=dim, keepdims=True))
    return _of(powers / powers.sum(axis=dim, keepdims=True))


def sigmoid(values: Tensor) -> Tensor:
    """The logistic function."""
    return 1 / (1 + np.exp(-values))


def logit(values: Tensor, eps: float) -> Tensor:
    """The inverse of `sigmoid`, of values that are limited to eps .. 1 - eps."""
    share = values.clamp(eps, 1 - eps)
    return (share / (1 - share)).log()


def bincount(values: Tensor, minlength: int = 0) -> Tensor:
    """How often each whole number occurs."""
    return _of(np.bincount(values.numpy(), minlength=minlength))


def count_nonzero(values: Tensor, dim: Any = None) -> Tensor:
    """Number of values that are not 0."""
    return _of(np.count_nonzero(values.numpy(), axis=dim))


def argsort(values: Tensor, dim: int = -1, descending: Any = False, stable: Any = True) -> Tensor:
    """The order of values along an axis."""
    return _of(np.argsort(-values.numpy() if descending else values.numpy(), dim, kind="stable"))


def isin(values: Tensor, known: Any) -> Tensor:
    """Which values are among the known ones."""
    return _of(np.isin(values.numpy(), np.asarray(known)))


def equal(one: Tensor, other: Tensor) -> Any:
    """Whether shapes and all values are equal."""
    return np.array_equal(one.numpy(), other.numpy())


def einsum(equation: str, *parts: Tensor) -> Tensor:
    """Sums of products."""
    return _of(np.einsum(equation, *(part.numpy() for part in parts), optimize=True))


def tensordot(one: Tensor, other: Tensor, dims: Any) -> Tensor:
    """Sums of products over pairs of axes."""
    return _of(np.tensordot(one.numpy(), other.numpy(), dims))


def meshgrid(*axes: Tensor, indexing: str) -> tuple[Tensor, ...]:
    """The coordinates of a grid, each in the grid's shape."""
    return tuple(map(_of, np.meshgrid(*(a.numpy() for a in axes), indexing=indexing)))


def diag(values: Tensor) -> Tensor:
    """The diagonal of a matrix, or a matrix with this diagonal."""
    return values.diag()


def diag_embed(values: Tensor) -> Tensor:
    """Diagonal matrices from the last axis."""
    return values[..., None] * eye(values.shape[-1]).to(values)


def _named(name: str) -> Callable[..., Tensor]:
    function = getattr(Tensor, name)

    def apply(values: Tensor, *others: Any, **options: Any) -> Tensor:
        found: Tensor = function(values, *others, **options)
        return found

    apply.__doc__ = function.__doc__
    return apply


quantile, isfinite, isnan, nonzero, clamp, nan_to_num, round, floor, ceil = map(  # noqa: A001
    _named,
    ("quantile", "isfinite", "isnan", "nonzero", "clamp", "nan_to_num", "round", "floor", "ceil"),
)
maximum, minimum, remainder, hypot = np.maximum, np.minimum, np.remainder, np.hypot
atan, atan2, rad2deg = np.arctan, np.arctan2, np.rad2deg
sqrt, exp, log, sin, cos, tanh = np.sqrt, np.exp, np.log, np.sin, np.cos, np.tanh


# What inference without gradients, on one device and in one precision, asks for and gets nothing.


class no_grad(contextlib.ContextDecorator):  # noqa: N801
    """There are no gradients anyway."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


autocast = enable_grad = no_grad


_threads = len(os.sched_getaffinity(0))


def get_num_threads() -> int:
    """Threads of networks; NumPy's libraries choose their own."""
    return _threads


def set_num_threads(count: int) -> None:
    """For networks that are loaded from now on."""
    global _threads
    _threads = count


class _Hardware:
    def is_available(self) -> Any:
        return False

    is_bf16_supported = _is_avx512_bf16_supported = is_available

    def device_count(self) -> int:
        return 0


cuda = cpu = _Hardware()


class backends:  # noqa: N801
    """Other hardware."""

    mps = _Hardware()


class random:  # noqa: N801
    """Random numbers: of weights, which are then loaded."""

    @staticmethod
    @contextlib.contextmanager
    def fork_rng(devices: Sequence[Any] = ()) -> Iterator[None]:
        """As it is."""
        yield


class default_generator:  # noqa: N801
    """As `random`."""

    @staticmethod
    def manual_seed(seed: int) -> None:
        """Nothing is random."""


def __getattr__(name: str) -> Any:
    return absent.named(f"torch.{name}")
