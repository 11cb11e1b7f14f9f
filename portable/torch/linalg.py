"""Linear algebra."""

from __future__ import annotations

from typing import Any

import numpy as np

from torch.tensor import Tensor

__all__ = ["cross", "det", "inv", "svd", "vector_norm"]


def _of(values: Any) -> Tensor:
    return np.asarray(values).view(Tensor)


def inv(matrix: Tensor) -> Tensor:
    """Inverses of matrices."""
    return _of(np.linalg.inv(matrix.numpy()))


def det(matrix: Tensor) -> Tensor:
    """Determinants."""
    return _of(np.linalg.det(matrix.numpy()))


def vector_norm(values: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Euclidean lengths."""
    return _of(np.linalg.vector_norm(values.numpy(), axis=dim, keepdims=keepdim))


def cross(one: Tensor, other: Tensor, dim: int = -1) -> Tensor:
    """Vector products."""
    return _of(np.linalg.cross(one.numpy(), other.numpy(), axis=dim))


def svd(matrix: Tensor) -> tuple[Tensor, ...]:
    """Singular value decompositions."""
    return tuple(_of(part) for part in np.linalg.svd(matrix.numpy()))
