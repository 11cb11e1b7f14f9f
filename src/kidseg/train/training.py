"""A method trained on a data set, from its files to a model file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kidseg.cases import Case, Dataset, open_dataset
from kidseg.checkpoint import save_model
from kidseg.config import dump, load, preset
from kidseg.device import Device, choose_device, tune_allocator
from kidseg.errors import InputError, UsageError
from kidseg.io.atomic import writing
from kidseg.methods import Method, method_named
from kidseg.methods.cohort import Cohort, gather_cohort
from kidseg.plan import Plan, fingerprint, plan
from kidseg.splits import holdout
from kidseg.stage import Stage
from kidseg.train.curves import draw_curves
from kidseg.train.distributed import from_first, joined, local_device, rank
from kidseg.train.loop import Fitted, Run, fit

__all__ = ["Progress", "train"]

Progress = Callable[[str, int, int, Mapping[str, Any]], None]
"""(what is under way, done, in all, the epoch's log line if it is a stage)."""

_OUTPUTS = ("model.safetensors", "log.jsonl", "config.toml", "plan.json", "cases.json")


@dataclass(frozen=True, kw_only=True)
class _Cases:
    """Which cases a training uses, and what their files hold."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    sha256: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Of the training cases' names and contents."""
        text = json.dumps([(name, self.sha256[name]) for name in self.training])
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {**asdict(self), "digest": self.digest}


def train(
    dataset: str | Path,
    out: str | Path,
    *,
    method: str = "homogenized",
    preset_name: str | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    validation: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a method on a data set.

    Writes into `out`: config.toml (resolved), cases.json (which, and their digests), plan.json,
    log.jsonl (a line per epoch), state-*.pt (to resume from), model.safetensors, curves.png and
    summary.json. Under torchrun the processes share each batch.

    Args:
        dataset: folder in any layout of `kidseg.cases`.
        out: folder to make.
        method: one of `kidseg.methods.METHODS`.
        preset_name: settings that come with the package.
        config_file: TOML, over the preset.
        overrides: "key=value", over both.
        validation: ids of the cases to validate on; by default a share of the patients, stratified.
        cases: train and validate on these alone; by default on all labelled cases.
        seed: of all randomness; the split's too.
        resume: go on where the run in `out` stopped, with the same settings and cases.
        overwrite: remove the run that is in `out`.
        device: "auto", "cpu", "cuda", "cuda:N", "mps".
        jobs: processes that read the data set for planning.
        progress: told what is done.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: "output-exists", "in-use" (another training runs there), "nothing-to-resume",
            "other-settings" and "other-cases" (resumed, but not the same), unknown names.
        InputError: what `open_dataset`, `fingerprint`, `holdout` and `gather_cohort` refuse.
        ModelError, ResourceError: as `fit`.
    """
    chosen = method_named(method)
    base = None if preset_name is None else preset(preset_name, method)
    config: Any = load(chosen.config, base=base, file=config_file, overrides=overrides)
    tune_allocator()
    hardware = choose_device(local_device(device), config.precision)
    out = Path(out)
    start = time.perf_counter()
    with joined(hardware.torch), _alone(out, resume=resume, overwrite=overwrite):
        tell = progress or (lambda *_: None)
        data = open_dataset(dataset)
        used = _chosen_cases(data, cases, validation, config.cohort.validation_share, seed)
        planned = _planned(data, used, config, out, resume, jobs, tell)
        cohort = gather_cohort(
            data,
            used.training,
            used.validation,
            planned,
            config.view,
            config.cohort,
            multiple=chosen.multiple(config),
            progress=lambda done, total: tell("reading", done, total, {}),
        ).to(hardware.torch)
        ready_s = time.perf_counter() - start
        run = Run(
            folder=out,
            device=hardware.torch,
            seed=seed,
            precision=hardware.precision,
            resume=resume,
            on_epoch=tell,
        )
        nets = chosen.networks(config, cohort.classes, seed)
        for net in nets.values():
            net.to(hardware.torch)
        fitted: dict[str, Fitted] = {}
        outside_s, mark = 0.0, start
        for stage in chosen.stages(config, nets, cohort, hardware):
            # What a stage needs before it starts is made when it is asked for.
            outside_s += time.perf_counter() - mark
            spent = outside_s + sum(how.seconds for how in fitted.values())
            fitted[stage.name] = fit(_within(stage, config.budget_s, spent), run)
            mark = time.perf_counter()
        summary = {
            "method": method,
            "preset": preset_name,
            "seed": seed,
            "device": str(hardware.torch),
            "precision": hardware.precision,
            "processes": run.world,
            "cases": {
                "training": list(used.training),
                "validation": list(used.validation),
                "training_slices": len(cohort.index),
            },
            "findings": [finding.as_dict() for finding in cohort.findings],
            "stages": {name: asdict(how) for name, how in fitted.items()},
            "validation": _best_figures(out, fitted),
            "seconds": {
                "prepare": ready_s,
                **{name: how.seconds for name, how in fitted.items()},
            },
            "peak_memory_mb": _peak_memory_mb(hardware),
        }
        if run.rank == 0:
            _write_model(out, chosen, config, nets, cohort, used, summary)
            draw_curves(out / "log.jsonl", out / "curves.png")
            _write_json(out / "summary.json", summary)
    return summary


def _within(stage: Stage, budget_s: float | None, spent: float) -> Stage:
    """The stage with no more time than is left of the whole training's; one epoch in any case."""
    if budget_s is None:
        return stage
    left = max(budget_s - from_first(spent), 1e-3)
    own = stage.config.budget_s
    config = replace(stage.config, budget_s=left if own is None else min(own, left))
    return replace(stage, config=config)


def _chosen_cases(
    data: Dataset,
    cases: Sequence[str] | None,
    validation: Sequence[str] | None,
    share: float,
    seed: int,
) -> _Cases:
    known = data.by_id
    if unknown := {*(cases or ()), *(validation or ())} - set(known):
        raise UsageError(
            f"there is no labelled case {', '.join(sorted(unknown))}",
            path=data.root,
            code="unknown-case",
        )
    wanted = [case for case in data.cases if cases is None or case.id in cases]
    if validation is None:
        parts = holdout(wanted, test_fraction=share, seed=seed)
        training, kept = parts.train, parts.test
    else:
        kept = tuple(sorted(validation))
        training = tuple(case.id for case in wanted if case.id not in kept)
    shared = {known[name].patient for name in kept} & {known[name].patient for name in training}
    if shared or not training or not kept:
        cause = (
            f"patient {sorted(shared)[0]} is in training and validation"
            if shared
            else "training and validation need at least one case each"
        )
        raise UsageError(cause, path=data.root, code="bad-split")
    digests = {name: _content(known[name]) for name in (*training, *kept)}
    return _Cases(training=training, validation=kept, sha256=digests)


def _planned(
    data: Dataset,
    used: _Cases,
    config: Any,
    out: Path,
    resume: bool,
    jobs: int,
    tell: Progress,
) -> Plan:
    """The plan made from the training cases; a resumed run's own, if it is of the same settings."""
    settings = dump(config)
    if resume:
        if (out / "config.toml").read_text() != settings:
            raise UsageError(
                "the run was started with other settings",
                path=out / "config.toml",
                code="other-settings",
                next_step="Resume with the same preset, file and overrides.",
            )
        if json.loads((out / "cases.json").read_text()) != json.loads(json.dumps(used.as_dict())):
            raise UsageError(
                "the run was started with other cases, or their files have changed",
                path=out / "cases.json",
                code="other-cases",
                next_step="Resume with the same data set, split and seed.",
            )
        return Plan.from_dict(json.loads((out / "plan.json").read_text()))
    training = replace(data, cases=tuple(data.by_id[name] for name in used.training))
    facts = fingerprint(
        training,
        cyst=config.cohort.cyst,
        jobs=jobs,
        progress=lambda done, total: tell("planning", done, total, {}),
    )
    planned = plan(facts, training.schema)
    if rank() == 0:
        _write_json(out / "plan.json", planned.as_dict())
        _write_json(out / "cases.json", used.as_dict())
        # Last: a run without it is none to resume.
        with writing(out / "config.toml", overwrite=True) as file:
            file.write(settings.encode())
    return planned


def _write_model(
    out: Path,
    method: Method,
    config: Any,
    nets: Mapping[str, torch.nn.Module],
    cohort: Cohort,
    used: _Cases,
    summary: dict[str, Any],
) -> None:
    header = {
        "method": method.name,
        "config": asdict(config),
        "plan": cohort.plan.as_dict(),
        "labels": {
            "names": {str(number): name for number, name in cohort.schema.names.items()},
            "regions": {name: list(ids) for name, ids in cohort.schema.regions.items()},
        },
        "input": {
            "channels": [channel.channel for channel in cohort.plan.channels],
            "unit": "HU",
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
        **method.facts(config, nets, cohort),
    }
    parts = {name: net.state_dict() for name, net in nets.items()}
    path = out / "model.safetensors"
    summary["model"] = {
        "path": path.name,
        "sha256": save_model(path, parts, header, overwrite=True),
    }


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
        if dist.is_initialized():
            dist.barrier()
        yield


def _content(case: Case) -> str:
    """SHA-256 of a case's files, by content alone."""
    digest = hashlib.sha256()
    for path in (*case.images, *([] if case.labels is None else [case.labels])):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _peak_memory_mb(hardware: Device) -> dict[str, float]:
    import resource

    # Linux counts in KiB.
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if hardware.torch.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(hardware.torch) / 2**20
    return {name: round(value, 1) for name, value in peak.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with writing(path, overwrite=True) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
