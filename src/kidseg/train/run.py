"""Train a method on a data set or a store, and write a model file."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kidseg.cases.roi_rules import rules_of
from kidseg.cohort.cohort import Cohort, gather_cohort
from kidseg.config import MethodConfig
from kidseg.device import Device, choose_device, tune_allocator
from kidseg.distributed import broadcast, joined, local_device, rank
from kidseg.errors import Finding
from kidseg.io.atomic import write_json
from kidseg.io.output import check_output_folder
from kidseg.labels import unclear_labels
from kidseg.methods import Method
from kidseg.methods.segmentation import validated_steps
from kidseg.provenance import provenance
from kidseg.stage import Stage
from kidseg.train.curves import draw_curves
from kidseg.train.epochs import group_metrics
from kidseg.train.loop import Fitted, Run, fit
from kidseg.train.material import STORE, training_store
from kidseg.train.record import RunRecord, read_record, resumed_setup
from kidseg.train.request import Progress, Request
from kidseg.train.run_folder import check_not_start, locked_run, start_record
from kidseg.train.setup import ResolvedSetup, Setup, resolve
from kidseg.train.software import check_software, note_software
from kidseg.train.trained_images import images_of_cases
from kidseg.train.trained_model import write_model
from kidseg.train.tuning import (
    LoadedWeights,
    check_tune,
    has_learned,
    load_weights,
    select_trainable,
)

__all__ = ["train"]

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Clocks for the times and budgets of a run, by the setting `budget_clock`."""


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
    record = read_record(out) if resume else None
    setup = _checked_setup(Path(dataset), out, setup or Setup(), record)
    resolved = resolve(setup, resumed=resume)
    check_tune(resolved.method, resolved.config, resolved.plan, setup.tune or "all")
    config = resolved.config
    tune_allocator()
    hardware = choose_device(local_device(device), config.precision)
    clock = CLOCKS[config.budget_clock]
    start = clock()
    with joined(hardware.torch), locked_run(out, resume=resume, overwrite=overwrite):
        request = Request.of(setup, resolved, progress)
        write = partial(start_record, out, setup, resolved)
        store, used = training_store(Path(dataset), out, request, write, resume=resume)
        record = record or broadcast(read_record(out) if rank() == 0 else None)
        assert record is not None
        if rank() == 0:
            check_software(out, record)  # what is damaged is refused before anything is trained
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
            on_trained=partial(note_software, out, record),
            on_epoch=request.on_progress,
            clock=clock,
            workers=_workers(config, hardware),
        )
        fitted, seconds = _fit_stages(
            method,
            cohort,
            run,
            partial(select_trainable, method=method, tune=record.tune, loaded=loaded),
            partial(has_learned, method=method, loaded=loaded),
            start,
        )
        findings = (
            *unclear_labels(cohort.schema, dataset),
            *_not_learned(cohort, dataset),
            *(check_software(out, record) if run.rank == 0 else ()),
            *cohort.findings,
            *_calibration_left_out(resolved, setup, out),
            *_not_better(fitted, out),
        )
        summary: dict[str, Any] = {
            "method": method.name,
            "preset": setup.preset,
            "seed": record.seed,
            "device": str(hardware.torch),
            "precision": hardware.precision,
            "processes": run.world,
            "cases": {**used.ids, "training_slices": len(cohort.index)},
            "start": _start_summary(resolved, setup, loaded, fitted),
            "findings": [finding.as_dict() for finding in findings],
            **_fitted_summary(method, cohort, fitted),
            "seconds": seconds,
            "peak_memory_mb": _peak_memory_mb(hardware),
            **provenance(),
        }
        if run.rank == 0:
            images = images_of_cases(store.cases, resolved.start)
            summary["model"] = write_model(out, method, cohort, used, images, summary)
            summary["findings"] += [finding.as_dict() for finding in _draw(out)]
            write_json(out / "summary.json", summary, overwrite=True)
            shutil.rmtree(out / STORE, ignore_errors=True)
    return summary


def _checked_setup(dataset: Path, out: Path, setup: Setup, record: RunRecord | None) -> Setup:
    """The setup of a new run that may be written into `out`, or of the run to resume."""
    if record is not None:
        return resumed_setup(out, record, setup)
    check_output_folder(out, "a training run")
    check_not_start(out, setup)
    if setup.rules is not None:
        setup = replace(setup, rules=rules_of(dataset, setup.rules))
    return setup


def _fitted_summary(method: Method, cohort: Cohort, fitted: Mapping[str, Fitted]) -> dict[str, Any]:
    """The trained stages and networks in summary.json."""
    return {
        "stages": {name: result.as_dict() for name, result in fitted.items()},
        "validation": {name: group_metrics(r.metrics) for name, r in fitted.items()},
        "steps": validated_steps(method, cohort),
        "parameters": {
            name: sum(parameter.numel() for parameter in net.parameters())
            for name, net in method.parts.items()
        },
    }


def _not_learned(cohort: Cohort, dataset: str | Path) -> tuple[Finding, ...]:
    """A finding for the labels that no training case has: they are not learned."""
    used = sum(subject.counts.sum(0) for subject in cohort.training)
    names = [label.name for label in cohort.schema.labels if not used[label.id]]
    if not names:
        return ()
    return (
        Finding(
            code="label-not-learned",
            path=str(dataset),
            cause=f"none of the {len(cohort.training)} training cases has {' or '.join(names)}:"
            " the model learns to find none",
            next_step="If the scans show any, label it: 'kidseg check' counts the labels.",
        ),
    )


def _start_summary(
    resolved: ResolvedSetup,
    setup: Setup,
    loaded: LoadedWeights | None,
    fitted: Mapping[str, Fitted],
) -> dict[str, Any] | None:
    """The start model in summary.json, with its validation; None without fine-tuning."""
    if resolved.start is None or loaded is None:
        return None
    return {
        "sha256": resolved.start.sha256,
        "tune": setup.tune or "all",
        **loaded.as_dict(),
        "text": str(loaded),
        "validation": {
            name: group_metrics(result.start)
            for name, result in fitted.items()
            if result.start is not None
        },
    }


def _not_better(fitted: Mapping[str, Fitted], out: Path) -> tuple[Finding, ...]:
    """A finding if all networks of a model to fine-tune are kept: no epoch was better."""
    if not fitted or any(result.epoch >= 0 for result in fitted.values()):
        return ()
    return (
        Finding(
            code="not-better",
            path=str(out),
            cause=f"no epoch of {' or '.join(fitted)} was better in the validation cases than the"
            " model to fine-tune, whose weights are kept",
            next_step="Try a lower learning rate, or more training cases; few validation cases"
            " decide by chance.",
        ),
    )


def _calibration_left_out(resolved: ResolvedSetup, setup: Setup, out: Path) -> tuple[Finding, ...]:
    """A finding if the model to fine-tune is calibrated: the new one is not."""
    if not resolved.left_out:
        return ()
    names = {"decision": "weights of the decision", "intervals": "intervals of volumes"}
    left_out = " and ".join(names[entry] for entry in resolved.left_out)
    again = "" if "decision" not in resolved.left_out else f" --weights-of {setup.start}"
    return (
        Finding(
            code="calibration-left-out",
            path=str(setup.start),
            cause=f"the calibrated {left_out} of the model to fine-tune are not in the new one,"
            " whose probabilities are others",
            next_step="Calibrate on labelled scans that it has not learned from:"
            f" kidseg calibrate {out} DATASET -o MODEL{again}.",
        ),
    )


def _fit_stages(
    method: Method,
    cohort: Cohort,
    run: Run,
    select: Callable[[Stage], Stage | None],
    learned: Callable[[Stage], bool],
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
            fitted[stage.name] = fit(
                _limited(selected, budget_s, spent), run, tuple(fitted), learned=learned(stage)
            )
        mark = run.clock()
    return fitted, {"prepare": ready_s, **{name: fitted[name].seconds for name in fitted}}


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
