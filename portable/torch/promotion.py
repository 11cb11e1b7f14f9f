"""The types of results, by PyTorch's rules."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["DEFAULT", "promoted"]

DEFAULT = np.dtype(np.float32)
"""Of floating point numbers that name no other type."""


def promoted(*values: Any) -> np.dtype:
    """The type of a result of PyTorch.

    Tensors with axes decide; those without, and plain numbers, only if their kind is higher: bool,
    whole numbers, floating point.

    Source: PyTorch's documentation, Tensor Attributes, torch.dtype.
    """
    found: np.dtype | None = None
    groups = ([], [], [])  # type: tuple[list[np.dtype], list[np.dtype], list[np.dtype]]
    for value in values:
        if isinstance(value, np.ndarray | np.generic):
            groups[0 if value.ndim else 1].append(value.dtype)
        else:
            groups[2].append(_of_number(value))
    for group in groups:
        if not group:
            continue
        kind = group[0]
        for other in group[1:]:
            kind = _joined(kind, other)
        if found is None or _rank(kind) > _rank(found):
            found = kind
    assert found is not None
    return found


def _joined(one: np.dtype, other: np.dtype) -> np.dtype:
    if _rank(one) != _rank(other):
        return max(one, other, key=_rank)
    return np.promote_types(one, other)


def _rank(dtype: np.dtype) -> int:
    return {"b": 0, "u": 1, "i": 1, "f": 2}[dtype.kind]


def _of_number(value: object) -> np.dtype:
    if isinstance(value, bool):
        return np.dtype(np.bool_)
    return np.dtype(np.int64) if isinstance(value, int) else DEFAULT
