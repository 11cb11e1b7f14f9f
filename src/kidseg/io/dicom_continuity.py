"""Whether the pixels of a stack look like one patient's adjacent slices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["alternates", "jumps", "sampled", "unlikeness"]

# Neighbouring slices differ less than every second one; noise alone makes both differ the same.
_ALTERNATING = 1.15
_JUMP = 2.0
_SAMPLED_SIDE = 128
_POOLED_SIDE = 64
_PAIRED = 2.5


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


def unlikeness(values: Tensor, part_of: Sequence[int]) -> float:
    """Difference of neighbouring slices of different parts over that of successive ones of a part.

    Below 1 in one anatomy, where neighbours are alike; near 1 in noise; above 1 if the parts differ
    in contrast or position.

    Args:
        values: (1, slices, rows, columns).
        part_of: the part of each slice.

    Returns:
        The ratio of the mean absolute differences. At least 1 if the slices go in pairs, such as
        two copies of each; 1 if there is nothing to compare.
    """
    side = max(1, min(values.shape[2:]) // _POOLED_SIDE)
    sample = F.avg_pool2d(values.to(torch.float32), side)[0]

    def mean(pairs: list[tuple[int, int]]) -> float:
        apart = [(sample[b] - sample[a]).abs().mean() for a, b in pairs]
        return float(torch.stack(apart).mean()) if apart else 0.0

    steps = list(enumerate(pairwise(part_of)))
    up = mean([(k, k + 1) for k, (a, b) in steps if a < b])
    down = mean([(k, k + 1) for k, (a, b) in steps if a > b])
    near = mean([(k, k + 1) for k, (a, b) in steps if a != b])
    places = [[k for k, p in enumerate(part_of) if p == part] for part in sorted(set(part_of))]
    far = mean([(a, b) for one in places for a, b in pairwise(one) if b - a > 1])
    if not near or not far:
        return 1.0
    is_paired = max(up, down) > _PAIRED * min(up, down)
    return max(near / far, 1.0 if is_paired else 0.0)


def sampled(values: Tensor) -> Tensor:
    """Every n-th pixel of each slice, about 128 on a side: (slices, rows, columns), float32.

    Args:
        values: (1, slices, rows, columns).
    """
    rows, columns = (max(1, n // _SAMPLED_SIDE) for n in values.shape[2:])
    return values[0, :, ::rows, ::columns].to(torch.float32)


def _distances(values: Tensor, apart: int) -> Tensor:
    """Mean absolute difference of each slice from the one `apart` slices on."""
    sample = sampled(values)
    return (sample[apart:] - sample[:-apart]).abs().mean(dim=(1, 2))
