"""Tensors: NumPy arrays with PyTorch's methods and its rules for the types of results."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from torch.promotion import DEFAULT, promoted

__all__ = ["CPU", "Device", "Tensor", "tensor"]

_Found = namedtuple("_Found", ["values", "indices"])
# Ufuncs whose results are floating point whatever their inputs.
_REAL = {
    np.true_divide, np.sqrt, np.exp, np.log, np.sin, np.cos, np.tanh, np.arctan, np.arctan2,
    np.hypot, np.rad2deg,
}  # fmt: skip


class Device:
    """The only device, the CPU."""

    type, index = "cpu", None

    def __init__(self, name: object = "cpu") -> None:
        if str(name) != "cpu":
            raise RuntimeError(f"without PyTorch there is no device '{name}', only the CPU")

    def __str__(self) -> str:
        return "cpu"

    def __eq__(self, other: object) -> bool:
        return str(other) == "cpu"

    def __hash__(self) -> int:
        return hash("cpu")


CPU = Device()


class Tensor(np.ndarray):
    """An array; shares memory with what it was made from, as NumPy's views do."""

    device = CPU
    requires_grad = False
    grad_fn = None

    # Types of results.

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        plain = [x.numpy() if isinstance(x, Tensor) else x for x in inputs]
        if out is not None:
            options["out"] = tuple(x.numpy() if isinstance(x, Tensor) else x for x in out)
            options.setdefault("casting", "unsafe")
        if method == "__call__":
            kind = promoted(*plain)
            if ufunc in _REAL and kind.kind != "f":
                kind = DEFAULT
            plain = [np.asarray(x).astype(kind, copy=False) for x in plain]
        return _wrapped(getattr(ufunc, method)(*plain, **options))

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self.numpy()[_plain_key(key)]).view(Tensor)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.numpy()[_plain_key(key)] = value

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self)))

    def __format__(self, how: str) -> str:
        return format(self.item(), how) if self.ndim == 0 else str(self)

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.item(), digits)

    # Conversions.

    def numpy(self) -> np.ndarray:
        """The same memory as a plain array."""
        return np.ndarray.view(self, np.ndarray)

    def to(self, *targets: Any, dtype: Any = None, copy: bool = False, **_: Any) -> Tensor:
        """The values in another type; devices and layouts of memory do not matter."""
        for target in targets:
            if isinstance(target, np.ndarray):
                dtype = target.dtype
            elif target is not None and not isinstance(target, str | Device | bool):
                dtype = target
        return self.numpy().astype(dtype or self.dtype, copy=copy).view(Tensor)

    def cpu(self) -> Tensor:
        """Itself."""
        return self

    detach = cpu

    def contiguous(self, **_: Any) -> Tensor:
        """The values in the order of their axes."""
        return np.ascontiguousarray(self.numpy()).reshape(self.shape).view(Tensor)

    def diag(self) -> Tensor:
        """The diagonal of a matrix, or a matrix with this diagonal."""
        return np.diag(self.numpy()).copy().view(Tensor)

    def clone(self, **_: Any) -> Tensor:
        """A copy."""
        return self.numpy().copy().view(Tensor)

    def new_zeros(self, shape: Sequence[int]) -> Tensor:
        """Zeros of this type."""
        return np.zeros(tuple(shape), self.dtype).view(Tensor)

    def new_tensor(self, data: Any, dtype: Any = None, **_: Any) -> Tensor:
        """New values, by default of this type."""
        return tensor(data, dtype=dtype or self.dtype)

    def new_empty(self, *shape: Any, dtype: Any = None) -> Tensor:
        """New memory, by default of this type."""
        return np.empty(_axes(shape), dtype or self.dtype).view(Tensor)

    def is_floating_point(self) -> bool:
        """Whether the values are floating point."""
        return self.dtype.kind == "f"

    def is_contiguous(self, **_: Any) -> bool:
        """Whether the values lie in the order of their axes."""
        return bool(self.flags.c_contiguous)

    def dim(self) -> int:
        """Number of axes."""
        return self.ndim

    def numel(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    # Shapes.

    def transpose(self, first: int, second: int) -> Tensor:  # type: ignore[override]
        """Two axes exchanged."""
        return self.numpy().swapaxes(first, second).view(Tensor)

    def permute(self, *axes: Any) -> Tensor:
        """The axes in another order."""
        return self.numpy().transpose(_axes(axes)).view(Tensor)

    def expand(self, *shape: Any) -> Tensor:
        """A view with repeated values; -1 keeps an axis."""
        wanted = list(_axes(shape))
        for k in range(1, self.ndim + 1):
            if wanted[-k] == -1:
                wanted[-k] = self.shape[-k]
        return np.broadcast_to(self.numpy(), wanted).view(Tensor)

    def expand_as(self, other: Tensor) -> Tensor:
        """A view of another's shape."""
        return self.expand(*other.shape)

    def flatten(self, first: int = 0, last: int = -1) -> Tensor:  # type: ignore[override]
        """The axes from `first` to `last` as one."""
        if self.ndim == 0:
            return self.reshape(1)
        last %= self.ndim
        return self.reshape(*self.shape[:first], -1, *self.shape[last + 1 :])

    def unbind(self, axis: int = 0) -> tuple[Tensor, ...]:
        """The parts along an axis."""
        moved = np.moveaxis(self.numpy(), axis, 0).view(Tensor)
        return tuple(moved)

    def flip(self, *axes: Any) -> Tensor:
        """In reverse order along axes."""
        return np.flip(self.numpy(), _axes(axes)).view(Tensor)

    def narrow(self, axis: int, start: int, length: int) -> Tensor:
        """A view of a range of an axis."""
        key = (slice(None),) * (axis % self.ndim) + (slice(start, start + length),)
        return self.numpy()[key].view(Tensor)

    def nonzero(self) -> Tensor:  # type: ignore[override]
        """(n, axes) indices."""
        return np.argwhere(self.numpy()).view(Tensor)

    # Values.

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002
        """Limited to a range."""
        out = self
        if min is not None:
            out = np.maximum(out, min)
        return out if max is None else np.minimum(out, max)

    def clamp_(self, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002
        """As `clamp`, in place."""
        return self.copy_(self.clamp(min, max))

    def masked_fill_(self, mask: Tensor, value: Any) -> Tensor:
        """A value where the mask is true, in place."""
        np.copyto(self.numpy(), value, where=mask.numpy(), casting="unsafe")
        return self

    def masked_fill(self, mask: Tensor, value: Any) -> Tensor:
        """As `masked_fill_`, in a copy."""
        return self.clone().masked_fill_(mask, value)

    def copy_(self, other: Any) -> Tensor:
        """Another's values, in place."""
        np.copyto(self.numpy(), np.asarray(other), casting="unsafe")
        return self

    fill_ = copy_

    def addcmul_(self, one: Tensor, other: Tensor) -> Tensor:
        """A product added, in place."""
        return self.copy_(self + one * other)

    def lerp(self, end: Any, weight: Any) -> Tensor:
        """The value at a share of the way to an end."""
        return self + weight * (end - self)

    def lerp_(self, end: Any, weight: Any) -> Tensor:
        """As `lerp`, in place."""
        return self.copy_(self.lerp(end, weight))

    def square(self) -> Tensor:
        """Squares."""
        return self * self

    def nan_to_num(self, nan: float = 0.0) -> Tensor:
        """With a number in place of NaN."""
        return np.nan_to_num(self.numpy(), nan=nan).view(Tensor)

    def quantile(self, q: Any, dim: int | None = None) -> Tensor:
        """Linearly interpolated quantiles."""
        found = np.quantile(self.numpy(), np.asarray(q), axis=dim)
        return np.asarray(found, self.dtype).view(Tensor)

    def median(self, dim: int | None = None) -> Any:
        """The lower median; along an axis with its (unknown) indices."""
        ordered = np.sort(self.numpy(), axis=dim)
        if dim is None:
            return np.asarray(ordered[(len(ordered) - 1) // 2]).view(Tensor)
        middle = (ordered.shape[dim] - 1) // 2
        return _Found(np.take(ordered, middle, axis=dim).view(Tensor), None)

    def aminmax(self) -> tuple[Tensor, Tensor]:
        """Least and greatest value."""
        return self.amin(), self.amax()

    def diff(self) -> Tensor:
        """Differences along the last axis."""
        return np.diff(self.numpy()).view(Tensor)

    def std(self, dim: Any = None, correction: int = 1) -> Tensor:  # type: ignore[override]
        """Standard deviation."""
        return np.asarray(self.numpy().std(axis=dim, ddof=correction)).view(Tensor)

    def max(self, dim: int | None = None) -> Any:  # type: ignore[override]
        """The greatest value; along an axis with its first index."""
        return self._extreme(np.amax, np.argmax, dim)

    def min(self, dim: int | None = None) -> Any:  # type: ignore[override]
        """The least value; along an axis with its first index."""
        return self._extreme(np.amin, np.argmin, dim)

    def _extreme(self, value: Any, index: Any, dim: int | None) -> Any:
        values = np.asarray(value(self.numpy(), axis=dim)).view(Tensor)
        if dim is None:
            return values
        return _Found(values, np.asarray(index(self.numpy(), axis=dim)).view(Tensor))


def tensor(data: Any, dtype: Any = None, **_: Any) -> Tensor:
    """A new tensor; plain numbers give int64 or float32."""
    array = np.array(data, dtype=dtype)
    if dtype is None and array.dtype == np.float64 and not _has_arrays(data):
        array = array.astype(DEFAULT)
    return array.view(Tensor)


def _has_arrays(data: Any) -> bool:
    if isinstance(data, np.ndarray | np.generic):
        return True
    return isinstance(data, Sequence) and any(map(_has_arrays, data))


def _wrapped(found: Any) -> Any:
    if isinstance(found, tuple):
        return tuple(map(_wrapped, found))
    return None if found is None else np.asarray(found).view(Tensor)


def _plain_key(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_plain_key, key))
    return key.numpy() if isinstance(key, Tensor) else key


def _axes(given: Sequence[Any]) -> tuple[int, ...]:
    """Axes or a shape, given one by one or as a sequence."""
    if len(given) == 1 and isinstance(given[0], Sequence):
        return tuple(given[0])
    return tuple(given)


def _reduction(name: str) -> Any:
    function = getattr(np, name)
    whole = name in ("sum", "prod")  # of whole numbers, int64

    def reduce(
        self: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, **_: Any
    ) -> Tensor:
        options = {}
        if whole and (dtype or self.dtype.kind in "bui"):
            options["dtype"] = dtype or np.int64
        axis = tuple(dim) if isinstance(dim, list) else dim
        return np.asarray(function(self.numpy(), axis=axis, keepdims=keepdim, **options)).view(
            Tensor
        )

    reduce.__doc__ = f"NumPy's `{name}` over axes."
    return reduce


def _elementwise(ufunc: Any) -> Any:
    def apply(self: Tensor, *others: Any) -> Tensor:
        found: Tensor = ufunc(self, *others)
        return found

    apply.__doc__ = f"NumPy's `{ufunc.__name__}`."
    return apply


def _in_place(ufunc: Any) -> Any:
    def apply(self: Tensor, *others: Any, alpha: Any = 1) -> Tensor:
        return self.copy_(ufunc(self, *(alpha * other for other in others)))

    apply.__doc__ = f"NumPy's `{ufunc.__name__}`, in place."
    return apply


def _cast(dtype: Any) -> Any:
    return lambda self: self.to(dtype)


for _name in ("sum", "prod", "mean", "any", "all", "amax", "amin"):
    setattr(Tensor, _name, _reduction(_name))
for _name, _ufunc in {
    **{name: getattr(np, name) for name in ("sqrt", "exp", "log", "sin", "cos", "tanh", "floor")},
    **{name: getattr(np, name) for name in ("ceil", "abs", "isfinite", "isnan")},
    "round": np.rint,
}.items():
    setattr(Tensor, _name, _elementwise(_ufunc))
for _name, _ufunc in {
    "add_": np.add,
    "sub_": np.subtract,
    "mul_": np.multiply,
    "div_": np.divide,
    "neg_": np.negative,
    "log_": np.log,
    "sqrt_": np.sqrt,
    "abs_": np.abs,
}.items():
    setattr(Tensor, _name, _in_place(_ufunc))
for _name, _dtype in {
    "double": np.float64,
    "float": np.float32,
    "half": np.float16,
    "long": np.int64,
    "int": np.int32,
    "short": np.int16,
    "bool": np.bool_,
}.items():
    setattr(Tensor, _name, _cast(np.dtype(_dtype)))
