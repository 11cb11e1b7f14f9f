"""Calls of PyTorch's interface, by whichever torch is found: results go to a file.

    python two_torches.py OUT.npz

With `portable` on the path it is the one on NumPy; the results must be the same.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

RNG = np.random.default_rng(0)


def values(*shape: int, kind: str = "float32", high: float = 4.0) -> torch.Tensor:
    return torch.from_numpy((RNG.uniform(-high, high, shape)).astype(kind))


def promotions() -> Iterator[tuple[str, Any]]:
    """Types of results: tensors with axes, without, and plain numbers."""
    kinds = ("bool", "uint8", "int16", "int64", "float32", "float64")
    operands: dict[str, Any] = {"True": True, "2": 2, "2.5": 2.5}
    for kind in kinds:
        operands[f"{kind}[3]"] = torch.from_numpy(np.array([0, 1, 3]).astype(kind))
        operands[f"{kind}[]"] = torch.from_numpy(np.array(3).astype(kind))
    for (a, one), (b, other) in itertools.product(operands.items(), repeat=2):
        if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
            yield f"{a} * {b}", one * other
            yield f"{a} / {b}", one / (other + 1)
            yield f"{a} >= {b}", one >= other
    for name, one in operands.items():
        if isinstance(one, torch.Tensor):
            yield f"sum {name}", one.sum()
            yield f"where {name}", torch.where(one > 0, one, torch.zeros_like(one))
            yield f"clamp {name}", one.long().clamp(min=1, max=2)
            yield f"sqrt {name}", torch.sqrt(one)


def making() -> Iterator[tuple[str, Any]]:
    for data in (1, 1.5, True, [1, 2], [1, 2.5], [[True], [False]], np.float64(3)):
        yield f"tensor {data!r}", torch.tensor(data)
    yield "arange", torch.arange(3)
    yield "arange float", torch.arange(0.0, 1.0, 0.25)
    yield "arange double", torch.arange(3, dtype=torch.float64)
    yield "linspace", torch.linspace(0, 1, 5)
    yield "full", torch.full((2,), 3)
    yield "full float", torch.full((2,), torch.nan)
    yield "eye", torch.eye(3)


def shapes() -> Iterator[tuple[str, Any]]:
    data = values(2, 3, 4)
    yield "transpose", data.transpose(0, 2)
    yield "permute", data.permute(2, 0, 1)
    yield "expand", data[:, :1].expand(-1, 5, 4)
    yield "flatten", data.flatten(1)
    yield "unbind", data.unbind(1)[2]
    yield "flip", data.flip(-1)
    yield "nonzero", (data > 0).nonzero()
    yield "item", data[0, 1, 2]
    yield "mask", data[data > 0]
    yield "list", data[:, [2, 0]]
    yield "narrow", data.narrow(1, 1, 2)
    for axis, grid in enumerate(torch.meshgrid(data[0, 0], data[0, :, 0], indexing="ij")):
        yield f"grid {axis}", grid
    yield "cat", torch.cat([data, data.double()], dim=1)
    yield "stack", torch.stack([data, data], dim=-1)
    yield "diag", torch.diag_embed(data)
    yield "diagonal", torch.diag(values(3, 4))
    yield "diagonal of a tensor", values(3).diag()
    yield "iterate", next(iter(values(3)))


def numbers() -> Iterator[tuple[str, Any]]:
    data, wide = values(4, 5), values(4, 5, kind="float64")
    for axis in (0, 1):
        yield f"median {axis}", data.median(axis).values
        yield f"max {axis}", data.max(axis).values
        yield f"argmax {axis}", data.max(axis).indices
        yield f"quantile {axis}", wide.quantile(0.3, dim=axis)
        yield f"softmax {axis}", torch.softmax(data, axis)
        yield f"any {axis}", (data > 3).any(axis)
        yield f"mean {axis}", data.mean(axis, keepdim=True)
        yield f"norm {axis}", torch.linalg.vector_norm(data, dim=axis)
    yield "median", data.median()
    yield "aminmax", torch.stack(data.aminmax())
    yield "round", torch.tensor([0.5, 1.5, -0.5, 2.5]).round()
    yield "std", data.std()
    yield "sd", data.std(correction=0)
    yield "masked", data.masked_fill(data > 0, -1)
    yield "in place", data.clone().mul_(2).sub_(1).div_(3).add_(data > 0).clamp_(-1, 1)
    yield "copy", torch.zeros(4, 5, dtype=torch.uint8).copy_(data.abs())
    yield "nan", torch.tensor([torch.nan, 1.0]).nan_to_num(5.0)
    yield "bins", torch.bincount(torch.tensor([0, 2, 2]), minlength=5)
    yield "isin", torch.isin(torch.tensor([1, 2, 3]), torch.tensor([3, 1]))
    yield "order", torch.argsort(data, dim=1, descending=True)
    yield "count", torch.count_nonzero(data > 0, dim=1)
    yield "einsum", torch.einsum("rc,r,c->", wide, wide[:, 0], wide[0])
    yield "tensordot", torch.tensordot(wide, wide[:2], dims=([1], [1]))
    share = data.abs() / 4
    yield "part of the way", data.lerp(torch.full_like(data, 2.0), share)
    yield "part of the way in place", data.clone().lerp_(torch.ones(4, 5), share)
    yield "product added", data.clone().addcmul_(share, share).sub_(share, alpha=0.5).abs_().sqrt_()
    yield "hypot", torch.hypot(data, share)
    yield "remainder", torch.remainder(data, 1.0)
    yield "atan", torch.atan(data)
    yield "minimum", torch.minimum(data, share, out=data.clone())
    yield "whole number", torch.tensor(int(torch.tensor([[2.7]])))
    square = values(3, 4, 4, kind="float64")
    yield "matmul", square @ square
    yield "inverse", torch.linalg.inv(square)
    yield "determinant", torch.linalg.det(square)
    yield "cross", torch.linalg.cross(square[..., :3, 0], square[..., :3, 1])
    yield "logit", torch.logit(torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64), eps=1e-6)
    yield "atan2", torch.atan2(wide, wide.flip(0))


def images() -> Iterator[tuple[str, Any]]:
    for size in ((7, 9), (5, 7, 9)):
        image = values(2, 3, *size)
        at = values(2, *(n + 1 for n in size), len(size), high=1.2)
        for mode in ("bilinear", "nearest"):
            found = F.grid_sample(image, at, mode=mode, padding_mode="border", align_corners=False)
            yield f"sample {len(size)} {mode}", found
    image = values(2, 3, 7, 9)
    yield "average", F.avg_pool2d(image, 2)
    yield "average of pairs", F.avg_pool2d(image, (3, 2))
    yield "maximum", F.max_pool2d(image, [3, 5], stride=1, padding=[1, 2])
    yield "replicate", F.pad(image, (0, 2, 1, 3), mode="replicate")
    yield "pad", F.pad(image, (1, 0), value=2.0)
    yield "unit", F.normalize(values(4, 3), dim=1)


def main(out: str) -> None:
    found = itertools.chain(promotions(), making(), shapes(), numbers(), images())
    np.savez(out, **{name: result.numpy() for name, result in found}, torch=torch.__version__)


if __name__ == "__main__":
    main(sys.argv[1])
