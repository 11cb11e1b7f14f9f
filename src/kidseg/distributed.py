"""Distributed training: processes started by torchrun, batch norms over the global batch."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "SharedBatchNorm",
    "all_gather",
    "broadcast",
    "first_alone",
    "joined",
    "local_device",
    "rank",
    "share_norms",
    "shared_map",
]

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Initialize the process group if torchrun started several processes; destroy it on exit.

    The group is then gone with its threads. A thread of gloo that is still releasing a tensor when
    Python ends would abort the process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    # Imported later (by DistributedDataParallel, too), its functions would keep the group for good,
    # as the default of their arguments.
    import torch.distributed.nn.functional  # noqa: F401

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()  # a process that leaves early makes the others fail
    except BaseException as error:
        _release_frames(error)
        raise
    finally:
        dist.destroy_process_group()
        gc.collect()  # networks are wrapped in cycles, which keep the group


def _release_frames(error: BaseException | None) -> None:
    """Clear the local variables of the functions that an error has left: they keep the group."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def local_device(name: str) -> str:
    """The device of this process: under torchrun the GPU of its local rank."""
    number = os.environ.get("LOCAL_RANK")
    if number is not None and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return f"cuda:{number}"
    return name


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def broadcast(value: T) -> T:
    """The value of rank 0, plain data, in all processes, so that all decide alike."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


@contextmanager
def first_alone() -> Iterator[bool]:
    """True on rank 0, False on the others, which wait at the end for rank 0.

    The timeout is a day, longer than for other collectives: rank 0 may read a data set.
    """
    if not dist.is_initialized():
        yield True
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    yield rank() == 0
    dist.barrier(group=group)


def all_gather(values: Tensor) -> Tensor:
    """The values (n, ...) of all processes, concatenated by rank: (processes * n, ...).

    Differentiable: the gradients of all processes' losses return to the process that owns a value.
    With one process, returns the values unchanged.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    if not values.requires_grad:
        out = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(out, values.contiguous())
        return torch.cat(out)
    from torch.distributed.nn import functional

    return torch.cat(functional.all_gather(values.contiguous()))


def shared_map(task: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Apply `task` to all items, distributed over the processes; plain data, in order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [task(item) for item in items]
    world = dist.get_world_size()
    own = {k: task(items[k]) for k in range(rank(), len(items), world)}
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, own)
    done: dict[int, R] = {k: value for part in parts for k, value in part.items()}
    return [done[k] for k in range(len(items))]


def share_norms(net: nn.Module) -> None:
    """Replace the batch norms of a network by `SharedBatchNorm`, in place."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm):
                setattr(parent, name, SharedBatchNorm.like(child))


class SharedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes; on any device, unlike torch's SyncBatchNorm.

    It shares the state of the norm it replaces.

    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", Am Stat 1983:
    from the variances of the parts. The mean of squares would lose digits if the mean is large.
    """

    @classmethod
    def like(cls, norm: _BatchNorm) -> SharedBatchNorm:
        """A norm with the same settings that shares the parameters and statistics of `norm`."""
        if norm.momentum is None or not norm.affine or not norm.track_running_stats:
            raise ValueError(f"{norm} cannot be shared between processes")
        shared = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        shared.weight, shared.bias = norm.weight, norm.bias
        shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
        shared.num_batches_tracked = norm.num_batches_tracked
        shared.train(norm.training)
        return shared

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise (n, channels, ...) by the mean and variance over all processes' samples."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        values = input.float()
        variance, mean = torch.var_mean(values, [0, *range(2, values.ndim)], correction=0)
        count = values.new_full((1,), values.numel() / values.shape[1])
        processes = all_gather(torch.cat([variance, mean, count])[None])
        counts = processes[:, -1:]
        variances, means = processes[:, :-1].chunk(2, dim=1)
        n = counts.sum()
        mean = (counts * means).sum(0) / n
        variance = (counts * (variances + (means - mean).square())).sum(0) / n
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        shape = [1, -1, *[1] * (values.ndim - 2)]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out: Tensor = (values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.ndim < 2:
            raise ValueError(f"expected (n, channels, ...), got {tuple(input.shape)}")
