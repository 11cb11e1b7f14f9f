"""Whether the pixels of a stack look like one patient's adjacent slices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["alternates", "jumps"]

# Neighbouring slices differ less than every second one; noise alone makes both differ the same.
_ALTERNATING = 1.15
_JUMP = 2.0
_SAMPLED_SIDE = 128


def alternates(values: Tensor) -> bool:
    """Whether neighbouring slices differ more than every second one: two interleaved stacks.

    Args:
        values: (1, slices, rows, columns).
    """
    if values.shape[1] < 4:
        return False
    near, far = (float(_distances(values, n).mean()) for n in (1, 2))
    return near > _ALTERNATING * far


def jumps(values: Tensor, seams: Sequence[bool]) -> bool:
    """Whether slices on either side of a seam differ much more than other neighbours.

    Args:
        values: (1, slices, rows, columns).
        seams: for each slice but the first, whether a seam is before it.
    """
    at = torch.tensor(seams, dtype=torch.bool)
    if not at.any() or at.all():
        return False
    near = _distances(values, 1)
    return bool(near[at].max() > _JUMP * near[~at].median())


def _distances(values: Tensor, apart: int) -> Tensor:
    """Mean absolute difference of each slice from the one `apart` slices on."""
    rows, columns = (max(1, n // _SAMPLED_SIDE) for n in values.shape[2:])
    sample = values[0, :, ::rows, ::columns].to(torch.float32)
    return (sample[apart:] - sample[:-apart]).abs().mean(dim=(1, 2))
