"""Create the batches of an epoch, in this process or in workers that prefetch them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from kidseg.errors import KidsegError, ResourceError
from kidseg.stage import Batch
from kidseg.workers import end_with_parent, signals_deferred

__all__ = ["convert_killed_worker", "prefetched"]


def prefetched(
    batch: Callable[[int], Batch], steps: int, workers: int
) -> Generator[Batch, None, None]:
    """The batches of an epoch in order; identical with and without workers.

    Close the generator when the loop over it fails, so that its workers end then and not when the
    exception is forgotten.

    Args:
        batch: creates the batch of a step.
        steps: of the epoch.
        workers: processes that prefetch; 0: this process creates the batches.
    """
    if workers == 0:
        yield from map(batch, range(steps))
        return
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _Batches(batch, steps),
        batch_size=None,
        num_workers=workers,
        # Stages cannot be pickled; with fork, workers share them and the memory-mapped voxels.
        multiprocessing_context="fork",
        prefetch_factor=2,
        worker_init_fn=lambda _: end_with_parent(),
    )
    with signals_deferred():  # torch cannot shut down workers of which some are not yet started
        items = iter(loader)
    try:
        for item in items:
            if isinstance(item, _WorkerError):
                raise item.kind(**item.attributes)
            yield item
    except Exception as error:
        # Frames of its traceback, and of what it was raised from, would keep the workers.
        error.__cause__ = error.__context__ = None
        raise error.with_traceback(None)  # noqa: B904
    finally:
        del items  # ends the workers


@dataclass(frozen=True, kw_only=True)
class _WorkerError:
    """A KidsegError from a worker; DataLoader would keep only the text of the exception."""

    kind: type[KidsegError]
    attributes: dict[str, Any]


class _Batches(Dataset[Batch | _WorkerError]):
    """The batches of an epoch, by index."""

    def __init__(self, batch: Callable[[int], Batch], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch | _WorkerError:
        try:
            return self.batch(index)
        except KidsegError as error:
            return _WorkerError(kind=type(error), attributes=vars(error))


class convert_killed_worker(AbstractContextManager[None]):  # noqa: N801
    """Convert the error for a killed worker to a ResourceError.

    torch raises it from a signal handler, so at any point of this process, even in a forward pass.
    """

    def __init__(self, stage: str, epoch: int) -> None:
        self.stage, self.epoch = stage, epoch

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Exceptions raised inside a worker also mention "DataLoader worker", but without "(pid".
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
            raise ResourceError(
                f"a worker that prefetches batches was killed in stage '{self.stage}', epoch"
                f" {self.epoch}",
                next_step="Usually memory ran out: set fewer workers, then continue with --resume.",
                code="worker-killed",
            ) from error
