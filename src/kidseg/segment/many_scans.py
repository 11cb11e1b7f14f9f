"""Segment many scans: one after the other, or by several workers; record each when it is done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kidseg.cluster import Workers, over_cluster
from kidseg.errors import BatchError, KidsegError, ResourceError, converted
from kidseg.report.cohort_page import Picture
from kidseg.segment.batch_page import write_batch_page
from kidseg.segment.claim import Claim
from kidseg.segment.cohort_table import write_summary
from kidseg.segment.index import record_failure, record_scan
from kidseg.segment.predictor import Predictor
from kidseg.segment.scan_task import Attempt, ScanTask, WorkerModel, attempt_scan, failed_attempt

__all__ = ["Batch", "segment_all"]

_NAMED = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What the scans of a call have in common.

    Attributes:
        predictor: of the model.
        out: folder of the results.
        claim: of these scans.
        overwrite: replace earlier results of these scans.
        workers: that segment; None: this process.
    """

    predictor: Predictor
    out: Path
    claim: Claim
    overwrite: bool
    workers: Workers | None


def segment_all(
    tasks: Sequence[ScanTask],
    done: Sequence[dict[str, Any]],
    batch: Batch,
    report: Callable[[Mapping[str, Any]], None] | None,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Segment scans, and record each in the index; raises as `kidseg.segment.segment`.

    Args:
        tasks: the scans.
        done: entries of those that were segmented before.
        batch: what they have in common.
        report: called with each entry.
        progress: called with (done, total).

    Returns:
        The entries of `done` and of those that were segmented, in the order of `tasks`.
    """
    found: dict[int, dict[str, Any]] = {}
    failed: dict[int, KidsegError] = {}
    pictures: dict[str, Picture] = {}
    total = len(done) + len(tasks)
    try:
        with closing(_attempts(tasks, batch)) as attempts:
            for k, attempt in attempts:
                entry, failure = _recorded(tasks[k], attempt, batch)
                if failure is None:
                    found[k] = entry
                    if attempt.picture is not None:
                        pictures[entry["name"]] = attempt.picture
                else:
                    failed[k] = failure
                if report is not None:
                    report(entry)
                if progress is not None:
                    progress(len(done) + len(found) + len(failed), total)
                if failure is not None and _is_out_full(failure, batch.out):
                    raise failure
                write_summary(batch.out)
        write_batch_page(batch.out, pictures)
    except (KidsegError, OSError) as error:
        known = error if isinstance(error, KidsegError) else converted(error, batch.out)
        if known is None or not _is_out_full(known, batch.out):
            raise
        raise _stopped(known, len(done) + len(found), total, batch.out) from error
    _raise_failed([failed[k] for k in sorted(failed)], total, batch.out)
    return [*done, *(found[k] for k in sorted(found))]


def _attempts(
    tasks: Sequence[ScanTask], batch: Batch
) -> Generator[tuple[int, Attempt], None, None]:
    """Attempt all scans; yields (index, attempt)."""
    folder = batch.claim.folder
    if batch.workers is None:
        for k, task in enumerate(tasks):
            place = folder / str(k)
            place.mkdir()
            batch.claim.trying(task.source.name, task.source.path)
            yield k, attempt_scan(task, batch.predictor, place)
            batch.claim.tried()
            shutil.rmtree(place, ignore_errors=True)
        return
    known = [k for k, task in enumerate(tasks) if task.source.error is not None]
    for k in known:
        yield k, attempt_scan(tasks[k], batch.predictor, folder)
    left = [k for k in range(len(tasks)) if k not in set(known)]
    model = WorkerModel.of(batch.predictor)
    with closing(over_cluster(model, [tasks[k] for k in left], batch.workers, folder)) as results:
        for j, result in results:
            task = tasks[left[j]]
            if isinstance(result, KidsegError):
                result = failed_attempt(task, _of_scan(result, task), batch.predictor)
            yield left[j], result
            shutil.rmtree(folder / str(j), ignore_errors=True)


def _of_scan(error: KidsegError, task: ScanTask) -> KidsegError:
    """The error of a worker as that of its scan."""
    if error.path is not None:
        return error
    path, step = task.source.path, error.next_step
    return type(error)(error.cause, path=path, next_step=step, code=error.code)


def _recorded(
    task: ScanTask, attempt: Attempt, batch: Batch
) -> tuple[dict[str, Any], KidsegError | None]:
    """Record an attempt: (its entry, its error)."""
    out, files = batch.out, attempt.written
    if attempt.failure is None:
        try:
            with batch.claim.placing(task.source.name, files):
                record_scan(out, attempt.entry, files, overwrite=batch.overwrite)
        except KidsegError as error:
            attempt = failed_attempt(task, error, batch.predictor)
        else:
            return attempt.entry, None
    assert attempt.failure is not None
    try:
        record_failure(out, attempt.entry)
    except ResourceError:
        if not _is_out_full(attempt.failure, out):
            raise
    return attempt.entry, attempt.failure


def _is_out_full(failure: KidsegError, out: Path) -> bool:
    """Is it the disk of the results that is full, so that every other scan would fail too?"""
    return failure.code == "disk-full" and Path(failure.path or out).is_relative_to(out)


def _stopped(failure: KidsegError, done: int, total: int, out: Path) -> KidsegError:
    """The error of a full disk, with what was done before."""
    if total == 1:
        return failure
    return ResourceError(
        f"{failure.cause}; {done} of {total} scans are segmented and recorded",
        path=out,
        code=failure.code,
        next_step="Free some space, then segment again with --resume.",
    )


def _raise_failed(failed: Sequence[KidsegError], total: int, out: Path) -> None:
    """Raise the error of a single scan, or a BatchError that names the failed scans."""
    if failed and total == 1:
        raise failed[0]
    if failed:
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        some = len(failed) < total
        raise BatchError(
            f"{len(failed)} of {total} scans failed: {'; '.join(map(str, failed[:_NAMED]))}{more}",
            path=out,
            code="scans-failed",
            next_step="The other scans are segmented; result.json lists both."
            if some
            else "No scan is segmented; result.json lists their errors.",
        )
