"""A method trained, from a data set or a store to a model file."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kidseg.checkpoint import save_model
from kidseg.cohort.cohort import Cohort, gather_cohort
from kidseg.cohort.subject import Subject
from kidseg.cohort.training_range import training_range
from kidseg.config import MethodConfig, dump
from kidseg.device import Device, choose_device, tune_allocator
from kidseg.distributed import broadcast, joined, local_device, rank
from kidseg.errors import Finding, InputError, UsageError
from kidseg.io.atomic import write_json
from kidseg.io.content import sha256_of
from kidseg.labels import unclear_labels
from kidseg.methods import Method
from kidseg.pipeline import advance
from kidseg.stage import Stage
from kidseg.train.curves import draw_curves
from kidseg.train.loop import Fitted, Run, fit
from kidseg.train.material import STORE, Cases, Progress, Request, training_store
from kidseg.train.setup import Configured, Setup, configured
from kidseg.train.tuning import take_over, tuned

__all__ = ["train"]

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""What a training's seconds are measured by."""

_START, _START_NOTE = "start.safetensors", "start.json"

_OUTPUTS = (
    _START,
    _START_NOTE,
    "model.safetensors",
    "log.jsonl",
    "config.toml",
    "plan.json",
    "cases.json",
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
    """Train a method on a data set, or on a store that `make_store` has made of one.

    Writes into `out`: config.toml (resolved), cases.json (which, and their digests), plan.json,
    log.jsonl (a line per epoch), state-*.pt (to resume from), model.safetensors, curves.png and
    summary.json; start.safetensors and start.json where it goes on from a model. Under torchrun the
    processes share each batch. From files, the cases are first made ready in a store in `out`,
    which is removed in the end.

    From a store it needs torch, numpy, safetensors, pydantic and tomli_w, and no reader of scans;
    where matplotlib is missing there are no curves, and a finding says so.

    Args:
        dataset: folder in any layout of `kidseg.cases`; or a store.
        out: folder to make.
        setup: method, settings, cases, seed; a model to go on from.
        resume: go on where the run in `out` stopped, with the same setup.
        overwrite: remove the run that is in `out`.
        device: "auto", "cpu", "cuda", "cuda:N", "mps".
        progress: told what is done.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: "output-exists", "in-use" (another training runs there), "nothing-to-resume",
            "other-settings" and "other-cases" (resumed, but not the same), unknown names;
            "store-of-other-settings", "other-split": the store is not of what is asked for;
            what `configured`, `take_over` and `tuned` refuse.
        InputError: what `open_dataset`, `fingerprint`, `holdout` and `build_store` refuse.
        ModelError, ResourceError: as `fit`.
    """
    out = Path(out)
    setup = _resumed(out, setup or Setup()) if resume else setup or Setup()
    chosen = configured(setup)
    config = chosen.config
    if not resume:
        _check_start(out, setup)
    tune_allocator()
    hardware = choose_device(local_device(device), config.precision)
    clock = CLOCKS[config.budget_clock]
    start = clock()
    with joined(hardware.torch), _alone(out, resume=resume, overwrite=overwrite):
        if rank() == 0 and not resume:
            _note_start(out, setup, chosen)  # before the settings, without which none resumes
        request = Request.of(setup, chosen, progress)
        store, used = training_store(Path(dataset), out, request, dump(config), resume=resume)
        cohort = gather_cohort(store, request.cohort, request.material, chosen.plan)
        method = chosen.method.build(
            config, cohort.target, cohort.plan, seed=setup.seed, device=hardware
        )
        taken = None if chosen.start is None else take_over(method, chosen.start.parts)
        run = Run(
            folder=out,
            device=hardware.torch,
            seed=setup.seed,
            precision=hardware.precision,
            resume=resume,
            on_epoch=request.tell,
            clock=clock,
            workers=_workers(config, hardware),
        )
        fitted, seconds = _fitted(method, cohort, run, setup.tune, start)
        noticed = (*unclear_labels(cohort.schema, dataset), *cohort.findings)
        findings = [finding.as_dict() for finding in noticed]
        summary: dict[str, Any] = {
            "method": method.name,
            "preset": setup.preset,
            "seed": setup.seed,
            "device": str(hardware.torch),
            "precision": hardware.precision,
            "processes": run.world,
            "cases": {
                "training": list(used.training),
                "validation": list(used.validation),
                "training_slices": len(cohort.index),
            },
            "start": None
            if chosen.start is None or taken is None
            else {
                "sha256": chosen.start.sha256,
                "tune": setup.tune,
                **taken.as_dict(),
                "text": str(taken),
            },
            "findings": findings,
            "stages": {name: asdict(how) for name, how in fitted.items()},
            # The others may be here before the first has written its log.
            "validation": broadcast(_best_figures(out, fitted) if run.rank == 0 else {}),
            "seconds": seconds,
            "peak_memory_mb": _peak_memory_mb(hardware),
        }
        if run.rank == 0:
            _write_model(out, method, cohort, used, summary)
            findings += [finding.as_dict() for finding in _draw(out)]
            write_json(out / "summary.json", summary, overwrite=True)
            shutil.rmtree(out / STORE, ignore_errors=True)
    return summary


def _fitted(
    method: Method, cohort: Cohort, run: Run, tune: str, start: float
) -> tuple[dict[str, Fitted], dict[str, float]]:
    """All stages trained, and the seconds of each; "prepare" is what it took to get here."""
    budget_s = method.config.budget_s
    fitted: dict[str, Fitted] = {}
    ready_s = run.clock() - start
    outside_s, mark = 0.0, start
    for stage in method.stages(cohort):
        # What a stage needs before it starts is made when it is asked for.
        outside_s += run.clock() - mark
        spent = outside_s + sum(how.seconds for how in fitted.values())
        chosen = tuned(stage, method, tune)
        if chosen is not None:
            fitted[stage.name] = fit(_within(chosen, budget_s, spent), run)
        mark = run.clock()
    return fitted, {"prepare": ready_s, **{name: how.seconds for name, how in fitted.items()}}


def _check_start(out: Path, setup: Setup) -> None:
    """Refuse to replace the run that holds the model to go on from."""
    if setup.start is None or setup.start.resolve().parent != out.resolve():
        return
    if setup.start.name in _OUTPUTS:
        raise UsageError(
            "the model to go on from is the one that would be replaced",
            path=setup.start,
            code="output-exists",
            next_step="Choose another folder.",
        )


def _note_start(out: Path, setup: Setup, chosen: Configured) -> None:
    """Keep the model that is gone on from: resuming needs it, wherever it came from."""
    if chosen.start is None or setup.start is None:
        return
    shutil.copyfile(setup.start, out / _START)
    note = {"path": str(setup.start), "sha256": chosen.start.sha256, "tune": setup.tune}
    write_json(out / _START_NOTE, note, overwrite=True)


def _resumed(out: Path, setup: Setup) -> Setup:
    """The setup with the model that the run in a folder was started from.

    Raises:
        UsageError: "other-settings": another model, or another part of it, is asked for.
    """
    if not (out / _START_NOTE).exists():
        if setup.start is not None and (out / "config.toml").exists():
            raise UsageError(
                "the run went on from no model",
                path=out,
                code="other-settings",
                next_step="Resume without --from.",
            )
        return setup
    note = json.loads((out / _START_NOTE).read_text())
    asked = None if setup.start is None else sha256_of(setup.start)
    if asked not in (None, note["sha256"]) or setup.tune not in ("all", note["tune"]):
        raise UsageError(
            f"the run went on from {note['path']}, tuning '{note['tune']}'",
            path=out / _START_NOTE,
            code="other-settings",
            next_step="Resume with the same --from and --tune, or with none.",
        )
    return replace(setup, start=out / _START, tune=note["tune"])


def _workers(config: MethodConfig, hardware: Device) -> int:
    """Processes that make batches: none on the CPU, where they would take the network's cores, and
    none by the processor's clock, which does not count them.
    """
    if config.workers is not None:
        return config.workers
    if hardware.torch.type == "cpu" or config.budget_clock == "processor":
        return 0
    return min(8, max(0, (os.cpu_count() or 1) - 1))


def _within(stage: Stage, budget_s: float | None, spent: float) -> Stage:
    """The stage with no more time than is left of the whole training's; one epoch in any case."""
    if budget_s is None:
        return stage
    left = max(budget_s - broadcast(spent), 1e-3)
    own = stage.config.budget_s
    config = replace(stage.config, budget_s=left if own is None else min(own, left))
    return replace(stage, config=config)


def _write_model(
    out: Path, method: Method, cohort: Cohort, used: Cases, summary: dict[str, Any]
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
        "training_set": {"digest": used.digest, "cases": len(used.training)},
        "selection": {
            "by": f"mean Dice of {', '.join(cohort.selection)} over validation patients",
            "validation": summary["validation"],
            "validation_cases": len(used.validation),
            "stages": summary["stages"],
            "seed": summary["seed"],
        },
        "licence": "as the training data allow",
        "training_range": training_range([_figures(method, case) for case in cohort.training]),
        **method.facts,
    }
    parts = {name: net.state_dict() for name, net in method.parts.items()}
    path = out / "model.safetensors"
    summary["model"] = {
        "path": path.name,
        "sha256": save_model(path, parts, header, overwrite=True),
    }


@torch.no_grad()
def _figures(method: Method, subject: Subject) -> Mapping[str, float]:
    """How a training patient lies before the method; nothing is segmented for it."""
    steps = takewhile(lambda step: step.segment is None, method.steps(subject))
    return method.report(subject, advance(subject.image, list(steps))).figures


def _best_figures(out: Path, fitted: Mapping[str, Fitted]) -> dict[str, dict[str, float]]:
    """Validation figures of each stage's kept epoch, from the log."""
    figures: dict[str, dict[str, float]] = {}
    for text in (out / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        how = fitted.get(line["stage"])
        if how is not None and line["epoch"] == how.epoch:
            figures[line["stage"]] = {
                name.removeprefix("val_"): value
                for name, value in line.items()
                if name.startswith("val_")
            }
    return figures


@contextmanager
def _alone(out: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """The folder, made or checked, and locked against a second training."""
    if rank() != 0:
        dist.barrier()
        yield
        return
    import fcntl

    if resume and not (out / "config.toml").exists():
        raise UsageError(
            "there is no run to resume",
            path=out,
            code="nothing-to-resume",
            next_step="Train without --resume.",
        )
    there = [out / name for name in _OUTPUTS if (out / name).exists()]
    there += sorted(out.glob("state-*.pt")) if out.is_dir() else []
    if there and not (resume or overwrite):
        raise UsageError(
            f"{there[0].name} is there already",
            path=out,
            code="output-exists",
            next_step="Choose another folder, --resume or --overwrite.",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"cannot be written to: {error.strerror}", path=out, code="not-writable"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                "another training runs in this folder",
                path=out,
                code="in-use",
                next_step="Wait for it, or choose another folder.",
            ) from None
        if not resume:
            for path in there:
                path.unlink()
            shutil.rmtree(out / STORE, ignore_errors=True)
        if dist.is_initialized():
            dist.barrier()
        yield


def _draw(out: Path) -> list[Finding]:
    """The curves; what kept them from being drawn, where there is nothing to draw with."""
    try:
        draw_curves(out / "log.jsonl", out / "curves.png")
    except ModuleNotFoundError as error:
        return [
            Finding(
                code="no-curves",
                path=str(out / "curves.png"),
                cause=f"the curves were not drawn: there is no {error.name}",
                next_step="Install matplotlib; the figures are in log.jsonl.",
            )
        ]
    return []


def _peak_memory_mb(hardware: Device) -> dict[str, float]:
    import resource

    # Linux counts in KiB.
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if hardware.torch.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(hardware.torch) / 2**20
    return {name: round(value, 1) for name, value in peak.items()}
