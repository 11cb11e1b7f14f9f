"""Train a method on a data set or a store, and write a model file."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

from kidseg.cases.roi_rules import ROI_RULES, rules_of
from kidseg.checkpoint import save_model
from kidseg.cohort.cohort import Cohort, gather_cohort
from kidseg.cohort.subject import Subject
from kidseg.cohort.training_range import renal_numbers, training_range, values_of
from kidseg.config import MethodConfig
from kidseg.device import Device, choose_device, tune_allocator
from kidseg.distributed import broadcast, joined, local_device, rank
from kidseg.errors import Finding, InputError, UsageError
from kidseg.io.atomic import remove_leftovers, write_json
from kidseg.io.output import check_output_folder
from kidseg.labels import unclear_labels
from kidseg.methods import Method
from kidseg.methods.segmentation import validated_steps
from kidseg.pipeline import advance
from kidseg.plan import Plan
from kidseg.provenance import provenance
from kidseg.stage import Stage
from kidseg.train.curves import draw_curves
from kidseg.train.epochs import group_metrics
from kidseg.train.loop import Fitted, Run, fit
from kidseg.train.material import STORE, Progress, Request, training_store
from kidseg.train.record import RECORD, START, Cases, read_record, resumed_setup, write_record
from kidseg.train.resuming import LOG
from kidseg.train.setup import ResolvedSetup, Setup, resolve
from kidseg.train.trained_images import TRAINING_SET, TrainedImages, images_of_cases
from kidseg.train.tuning import LoadedWeights, check_tune, load_weights, select_trainable
from kidseg.workers import signals_deferred

__all__ = ["train"]

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Clocks for the times and budgets of a run, by the setting `budget_clock`."""

_OUTPUTS = (
    RECORD,  # first: without it there is no run to resume
    LOG,
    "model.safetensors",
    "config.toml",
    "plan.json",
    "cases.json",
    START,
    ROI_RULES,
    "summary.json",
    "curves.png",
)


def train(
    dataset: str | Path,
    out: str | Path,
    setup: Setup | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a method on a data set, or on a store created by `make_store`.

    Writes into `out`: config.toml (resolved settings), cases.json (cases and their hashes),
    plan.json, run.json (seals these three), log.jsonl (a line per epoch), state-*.safetensors
    (checkpoints), model.safetensors, curves.png and summary.json; with fine-tuning also
    start.safetensors. Under torchrun each batch is split across the processes. From files, the
    cases are first preprocessed into a store in `out`, which is removed at the end.

    From a store it needs only torch, numpy, safetensors, pydantic and tomli_w, no scan readers.
    Without matplotlib, no curves are plotted, and a finding says so.

    Args:
        dataset: folder in any layout of `kidseg.cases`; or a store.
        out: folder to create.
        setup: method, settings, cases, seed; model to fine-tune.
        resume: continue the run in `out` from its checkpoints; the setup is that of the run, and
            what is given must not differ from it.
        overwrite: replace the run in `out`, once the new one is planned.
        device: "auto", "cpu", "cuda", "cuda:N", "mps".
        progress: called with the progress.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: "output-exists", "in-use" (another run uses the folder), "nothing-to-resume",
            "other-settings" and "other-cases" (the resumed run has others), unknown names;
            "other-folder": `out` contains other things than a run;
            "store-of-other-settings", "other-split": the store does not match the request; see
            `resolve`, `load_weights` and `select_trainable`.
        InputError: see `open_dataset`, `fingerprint`, `holdout` and `build_store`.
        ModelError, ResourceError: see `fit` and `read_record`.
    """
    out = Path(out)
    setup = setup or Setup()
    record = None
    if resume:
        record = read_record(out)
        setup = resumed_setup(out, record, setup)
    else:
        check_output_folder(out, "a training run")
        _check_start(out, setup)
        if setup.rules is not None:
            setup = replace(setup, rules=rules_of(Path(dataset), setup.rules))
    resolved = resolve(setup, resumed=resume)
    check_tune(resolved.method, resolved.config, resolved.plan, setup.tune or "all")
    config = resolved.config
    tune_allocator()
    hardware = choose_device(local_device(device), config.precision)
    clock = CLOCKS[config.budget_clock]
    start = clock()
    with joined(hardware.torch), _locked(out, resume=resume, overwrite=overwrite):
        request = Request.of(setup, resolved, progress)
        write = partial(_start_record, out, setup, resolved)
        store, used = training_store(Path(dataset), out, request, write, resume=resume)
        record = record or broadcast(read_record(out) if rank() == 0 else None)
        assert record is not None
        cohort = gather_cohort(store, request.cohort, request.material, resolved.plan)
        method = resolved.method.build(
            config, cohort.target, cohort.plan, seed=record.seed, device=hardware
        )
        loaded = None if resolved.start is None else load_weights(method, resolved.start.parts)
        run = Run(
            folder=out,
            device=hardware.torch,
            seed=record.seed,
            precision=hardware.precision,
            resume=resume,
            identity=record.digest,
            on_epoch=request.on_progress,
            clock=clock,
            workers=_workers(config, hardware),
        )
        fitted, seconds = _fit_stages(
            method,
            cohort,
            run,
            partial(select_trainable, method=method, tune=record.tune, loaded=loaded),
            start,
        )
        findings = (*unclear_labels(cohort.schema, dataset), *cohort.findings)
        summary: dict[str, Any] = {
            "method": method.name,
            "preset": setup.preset,
            "seed": record.seed,
            "device": str(hardware.torch),
            "precision": hardware.precision,
            "processes": run.world,
            "cases": {
                "training": list(used.training),
                "validation": list(used.validation),
                "unlabelled": list(used.unlabelled),
                "training_slices": len(cohort.index),
            },
            "start": _start_summary(resolved, setup, loaded),
            "findings": [finding.as_dict() for finding in findings],
            "stages": {name: result.as_dict() for name, result in fitted.items()},
            "validation": {name: group_metrics(r.metrics) for name, r in fitted.items()},
            "steps": validated_steps(method, cohort),
            "seconds": seconds,
            "peak_memory_mb": _peak_memory_mb(hardware),
            "parameters": {
                name: sum(parameter.numel() for parameter in net.parameters())
                for name, net in method.parts.items()
            },
            **provenance(),
        }
        if run.rank == 0:
            images = images_of_cases(store.cases, resolved.start)
            _write_model(out, method, cohort, used, images, summary)
            summary["findings"] += [finding.as_dict() for finding in _draw(out)]
            write_json(out / "summary.json", summary, overwrite=True)
            shutil.rmtree(out / STORE, ignore_errors=True)
    return summary


def _start_summary(
    resolved: ResolvedSetup, setup: Setup, loaded: LoadedWeights | None
) -> dict[str, Any] | None:
    """The start model in summary.json; None without fine-tuning."""
    if resolved.start is None or loaded is None:
        return None
    return {
        "sha256": resolved.start.sha256,
        "tune": setup.tune or "all",
        **loaded.as_dict(),
        "text": str(loaded),
    }


def _fit_stages(
    method: Method,
    cohort: Cohort,
    run: Run,
    select: Callable[[Stage], Stage | None],
    start: float,
) -> tuple[dict[str, Fitted], dict[str, float]]:
    """Train all stages; their results and seconds, with "prepare" for the time from `start`."""
    budget_s = method.config.budget_s
    fitted: dict[str, Fitted] = {}
    ready_s = run.clock() - start
    outside_s, mark = 0.0, start
    for stage in method.stages(cohort):
        # The generator prepares a stage when it is requested, so this includes the preparation.
        outside_s += run.clock() - mark
        spent = outside_s + sum(result.seconds for result in fitted.values())
        selected = select(stage)
        if selected is not None:
            fitted[stage.name] = fit(_limited(selected, budget_s, spent), run, tuple(fitted))
        mark = run.clock()
    return fitted, {"prepare": ready_s, **{name: fitted[name].seconds for name in fitted}}


def _check_start(out: Path, setup: Setup) -> None:
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


def _workers(config: MethodConfig, hardware: Device) -> int:
    """Number of processes that prefetch batches.

    By default none on the CPU, where they would compete with the network, and none with the
    processor clock, which does not include them.
    """
    if config.workers is not None:
        return config.workers
    if hardware.torch.type == "cpu" or config.budget_clock == "processor":
        return 0
    return min(8, max(0, (os.cpu_count() or 1) - 1))


def _limited(stage: Stage, budget_s: float | None, spent: float) -> Stage:
    """Limit a stage's budget to its share of the time left; one epoch is trained in any case."""
    if budget_s is None:
        return stage
    left = max(stage.share * (budget_s - broadcast(spent)), 1e-3)
    own = stage.config.budget_s
    config = replace(stage.config, budget_s=left if own is None else min(own, left))
    return replace(stage, config=config)


def _write_model(
    out: Path,
    method: Method,
    cohort: Cohort,
    used: Cases,
    images: TrainedImages,
    summary: dict[str, Any],
) -> None:
    all_ct = all(channel.scheme == "ct" for channel in cohort.plan.channels)
    header = {
        "method": method.name,
        "config": asdict(method.config),
        "plan": cohort.plan.as_dict(),
        "labels": {
            "names": {str(number): name for number, name in cohort.schema.names.items()},
            "regions": {name: list(ids) for name, ids in cohort.schema.regions.items()},
            "target": cohort.target.as_dict(),
        },
        "input": {
            "channels": [channel.channel for channel in cohort.plan.channels],
            "unit": "HU" if all_ct else "as in the data set",
            "orientation": "any; brought to canonical order",
        },
        TRAINING_SET: {
            "digest": used.digest,
            "cases": len(used.training),
            "images": asdict(images),
        },
        "selection": {
            "by": f"mean Dice of {', '.join(cohort.selection)} over validation patients",
            "validation": summary["validation"],
            "steps": summary["steps"],
            "validation_cases": len(used.validation),
            "stages": summary["stages"],
            "seed": summary["seed"],
        },
        "licence": "as the training data allow",
        "training_range": measured_range(method, cohort),
        **method.facts,
    }
    parts = {name: net.state_dict() for name, net in method.parts.items()}
    path = out / "model.safetensors"
    summary["model"] = {
        "path": path.name,
        "sha256": save_model(path, parts, header, overwrite=True),
    }


@torch.no_grad()
def measured_range(method: Method, cohort: Cohort) -> dict[str, Any]:
    """The ranges of size, position and HU of the training patients; see `training_range`.

    The position is from the locating steps alone.
    """
    renal = renal_numbers(cohort.schema, cohort.target)

    def figures(subject: Subject) -> Mapping[str, float]:
        steps = takewhile(lambda step: step.segment is None, method.steps(subject))
        placed = method.report(subject, advance(subject.image, list(steps)))
        return {**placed.figures, **values_of(subject, subject.labels, renal)}

    return training_range([figures(subject) for subject in cohort.training])


@contextmanager
def _locked(out: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
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
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"cannot be written to: {error.strerror}", path=out, code="not-writable"
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


def _start_record(
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


def _draw(out: Path) -> list[Finding]:
    """Plot the training curves; a finding if matplotlib is missing."""
    try:
        draw_curves(out / "log.jsonl", out / "curves.png")
    except ModuleNotFoundError as error:
        return [
            Finding(
                code="no-curves",
                path=str(out / "curves.png"),
                cause=f"the curves were not plotted: {error.name} is not installed",
                next_step="Install matplotlib; the metrics are in log.jsonl.",
            )
        ]
    return []


def _peak_memory_mb(hardware: Device) -> dict[str, float]:
    import resource

    # Linux reports KiB.
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if hardware.torch.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(hardware.torch) / 2**20
    return {name: round(value, 1) for name, value in peak.items()}
