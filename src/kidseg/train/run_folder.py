"""The folder of a training run: what is in it, who uses it, and what it replaces."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch.distributed as dist

from kidseg import new_folders
from kidseg.cases.roi_rules import ROI_RULES
from kidseg.distributed import rank
from kidseg.errors import InputError, UsageError
from kidseg.io.atomic import remove_leftovers
from kidseg.plan import Plan
from kidseg.train.material import STORE
from kidseg.train.record import RECORD, START, Cases, write_record
from kidseg.train.resuming import LOG
from kidseg.train.setup import ResolvedSetup, Setup
from kidseg.train.software import RESUMED
from kidseg.workers import signals_deferred

__all__ = ["check_not_start", "locked_run", "start_record"]

_OUTPUTS = (
    RECORD,  # first: without it there is no run to resume
    LOG,
    "model.safetensors",
    "config.toml",
    "plan.json",
    "cases.json",
    START,
    ROI_RULES,
    RESUMED,
    "summary.json",
    "curves.png",
)


def check_not_start(out: Path, setup: Setup) -> None:
    """Refuse to replace the run that contains the model to fine-tune."""
    if setup.start is None or setup.start.resolve().parent != out.resolve():
        return
    if setup.start.name in _OUTPUTS:
        raise UsageError(
            "the run would replace the model to fine-tune",
            path=setup.start,
            code="output-exists",
            next_step="Choose another folder.",
        )


@contextmanager
def locked_run(out: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Create or check the run folder, and lock it against a second run."""
    if rank() != 0:
        dist.barrier()
        yield
        return
    is_new = not out.exists()
    existing = _existing(out)
    if existing and not (resume or overwrite):
        raise UsageError(
            f"{existing[0].name} already exists",
            path=out,
            code="output-exists",
            next_step="Choose another folder, --resume or --overwrite.",
        )
    lock = None
    try:
        with signals_deferred():  # either nothing is written, or it is known to be ours
            lock = _lock(out)
        remove_leftovers(out)
        if dist.is_initialized():
            dist.barrier()
        yield
    except BaseException:
        if lock is not None and not existing and not (out / RECORD).exists():
            _remove_unrecorded(out, is_new)
        raise
    finally:
        if lock is not None:
            lock.close()


def _lock(out: Path) -> TextIO:
    """Create the folder of a run and lock it; closing the file unlocks it.

    Raises:
        InputError: "not-writable".
        UsageError: "in-use".
    """
    import fcntl

    try:
        new_folders.create(out)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"cannot be written to: {error.strerror}",
            path=out,
            code="not-writable",
            next_step="Check its permissions, or choose another folder.",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UsageError(
            "another training run uses this folder",
            path=out,
            code="in-use",
            next_step="Wait until it ends, or choose another folder.",
        ) from None
    return lock


def start_record(
    out: Path, setup: Setup, resolved: ResolvedSetup, used: Cases, planned: Plan
) -> None:
    """Remove an earlier run, now that the new one is known to be possible, and record the new."""
    for path in _existing(out):
        path.unlink()
    shutil.rmtree(out / STORE, ignore_errors=True)
    write_record(out, setup, resolved, used, planned)


def _existing(out: Path) -> list[Path]:
    """The files of a run in its folder, its record first."""
    states = sorted(out.glob("state-*.safetensors")) if out.is_dir() else []
    return [*(out / name for name in _OUTPUTS if (out / name).exists()), *states]


def _remove_unrecorded(out: Path, is_new: bool) -> None:
    """Remove what a run has written that ended before it could be resumed."""
    for name in (*_OUTPUTS, ".lock"):
        (out / name).unlink(missing_ok=True)
    if is_new and not any(out.iterdir()):
        out.rmdir()
