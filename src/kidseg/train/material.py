"""What a training learns from: cases chosen, planned, made ready in a store.

Every training reads a store of subjects. One that starts from files makes it first, in the run's
folder, and removes it in the end; `make_store` makes one to keep, for many runs, or for a machine
without readers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kidseg.cases import Case, Dataset, count_cyst, learned_labels, open_dataset
from kidseg.cohort.cohort import check_selection
from kidseg.cohort.stored import SubjectRecipe, check_store
from kidseg.cohort.subject import Material
from kidseg.config import CohortConfig
from kidseg.distributed import first_alone, rank
from kidseg.errors import InputError, UsageError
from kidseg.io.atomic import write_json, writing
from kidseg.io.content import joint_sha256, sha256_of_all
from kidseg.plan import Plan, fingerprint, plan
from kidseg.splits import holdout
from kidseg.store import Store, build_store, is_store, open_store
from kidseg.store.files import source_files
from kidseg.train.setup import Configured, Setup, check_start, configured, planned_as

__all__ = ["STORE", "Cases", "Progress", "Request", "make_store", "training_store"]

Progress = Callable[[str, int, int, Mapping[str, Any]], None]
"""(what is under way, done, in all, the epoch's log line if it is a stage)."""

STORE = "store"
"""Folder, in a run's, of the store that a training from files makes."""


@dataclass(frozen=True, kw_only=True)
class Cases:
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

    @classmethod
    def of_store(cls, store: Store) -> Cases:
        """Those of a store: the same, file by file, as of the data set it was made from."""
        training = set(store.plan.training)
        return cls(
            training=store.plan.training,
            validation=tuple(case.id for case in store.cases if case.id not in training),
            sha256={case.id: joint_sha256(s.sha256 for s in case.sources) for case in store.cases},
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which cases are asked for, and how they are to be made ready.

    Attributes:
        setup: cases, seed of their split, processes that read.
        material: (plan) -> what the method asks of subjects.
        cohort: of the method's configuration.
        plan: of a model to go on from; None: planned from the training cases.
        tell: told what is done.
    """

    setup: Setup
    material: Callable[[Plan], Material]
    cohort: CohortConfig
    plan: Plan | None
    tell: Progress

    @classmethod
    def of(cls, setup: Setup, chosen: Configured, progress: Progress | None) -> Request:
        """For a method as it is configured."""
        return cls(
            setup=setup,
            material=partial(chosen.method.material, chosen.config),
            cohort=chosen.config.cohort,
            plan=chosen.plan,
            tell=progress or (lambda *_: None),
        )


def make_store(
    dataset: str | Path,
    path: str | Path,
    setup: Setup | None = None,
    *,
    full: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make the cases of a data set ready for training, once, in a store.

    `train` takes the store in place of the data set, as often as you like, with any method and
    settings that ask for the same pixels or, of a store of the scans' own (`full`), for any; and
    gives the bits it gives with the files. There it needs torch, numpy, safetensors, pydantic and
    tomli_w, and nothing that reads scans (with `augment` "nnunet" batchgeneratorsv2, too; and scipy
    where masks or coarser pixels are made of a store that lacks them). What is split into training
    and validation, and planned, is split and planned here. A build that was interrupted goes on.

    Args:
        dataset: folder in any layout of `kidseg.cases`.
        path: folder of the store.
        setup: for which method, of which cases.
        full: keep the scans' own pixels and no masks: for all methods and resolutions.
        progress: told what is done.

    Returns:
        {"path", "digest", "cases": {"training": [...], "validation": [...]}, "megabytes"}.

    Raises:
        UsageError, InputError, ResourceError, ModelError: as `configured`, `open_dataset`,
            `fingerprint`, `holdout` and `build_store`; "bad-split", "unknown-case".
    """
    setup = setup or Setup()
    request = Request.of(setup, configured(setup), progress)
    if full:
        request = replace(request, material=lambda _: Material())
    data = open_dataset(dataset)
    used = _chosen(data, request)
    store = _built(data, used, _planned(data, used, request), Path(path), request)
    size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    return {
        "path": str(store.path),
        "digest": store.digest,
        "cases": {"training": list(used.training), "validation": list(used.validation)},
        "megabytes": round(size / 1e6, 1),
    }


def training_store(
    source: Path, out: Path, request: Request, settings: str, *, resume: bool
) -> tuple[Store, Cases]:
    """The store to train from, and its cases; notes them in a fresh run's folder.

    Args:
        source: a store; or a data set, of which one is made in `out`.
        out: folder of the run.
        request: what is asked for.
        settings: the resolved configuration, as in config.toml.
        resume: `out` holds a run; it must be of the same settings and cases.

    Raises:
        UsageError: "other-settings", "other-cases": resumed, but not the same; "other-split": the
            store is of other cases than asked for; as `check_store` and `check_start`.
        InputError, ModelError, ResourceError: as `open_dataset`, `fingerprint`, `build_store`,
            `open_store`.
    """
    if is_store(source):
        store = open_store(source, verify=rank() == 0)
        if request.plan is not None:
            _check_goes_on(request.plan, store)
        planned = request.plan or store.plan
        check_store(store, request.material(planned), request.cohort.cyst)
        used = Cases.of_store(store)
        _check_asked(request, used, source)
        if resume:
            _check_resumed(out, settings, used, request.setup.seed)
            if _noted_plan(out).digest != store.plan.digest:
                raise _other_cases(out / "plan.json")
        elif rank() == 0:
            _note(out, settings, used, store.plan, request.setup.seed)
        return store, used
    with first_alone() as first:
        if first:
            data = open_dataset(source)
            used = _chosen(data, request)
            if resume:
                _check_resumed(out, settings, used, request.setup.seed)
                planned = _noted_plan(out)
            else:
                planned = _planned(data, used, request)
                _note(out, settings, used, planned, request.setup.seed)
            _built(data, used, planned, out / STORE, request)
    store = open_store(out / STORE, verify=False)
    return store, Cases.of_store(store)


def _chosen(data: Dataset, request: Request) -> Cases:
    known = data.by_id
    cases, validation = request.setup.cases, request.setup.validation
    if unknown := {*(cases or ()), *(validation or ())} - set(known):
        raise UsageError(
            f"there is no labelled case {', '.join(sorted(unknown))}",
            path=data.root,
            code="unknown-case",
        )
    wanted = [case for case in data.cases if cases is None or case.id in cases]
    if validation is None:
        share = request.cohort.validation_share
        parts = holdout(wanted, test_fraction=share, seed=request.setup.seed)
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
    return Cases(training=training, validation=kept, sha256=digests)


def _planned(data: Dataset, used: Cases, request: Request) -> Plan:
    """The plan made from the training cases, or that of the model to go on from."""
    cyst = request.cohort.cyst
    check_selection(learned_labels(data, cyst).schema, request.cohort, data.root)
    if request.plan is not None:
        schema, _ = count_cyst(data, cyst)
        start = replace(request.plan, cyst=cyst)
        return planned_as(start, data.channels, used.training, schema.names)
    training = replace(data, cases=tuple(data.by_id[name] for name in used.training))
    facts = fingerprint(
        training,
        cyst=cyst,
        jobs=request.setup.jobs,
        progress=lambda done, total: request.tell("planning", done, total, {}),
    )
    planned = plan(facts, training.schema)
    _check_ct(data, request.material(planned))
    return planned


def _check_ct(data: Dataset, material: Material) -> None:
    """Can masks of the body be made, if the method asks for them? Before all cases are read.

    Raises:
        InputError: "not-ct".
    """
    if material.masks is not None and (len(data.channels) > 1 or not data.holds_ct(0)):
        raise InputError(
            f"this method takes one channel of CT, not {', '.join(data.channels)}",
            path=data.root,
            code="not-ct",
            next_step="Name the channel 'CT' in dataset.json if it holds Hounsfield units; methods"
            " 'plain' and 'plain3d' take any channels.",
        )


def _built(data: Dataset, used: Cases, planned: Plan, path: Path, request: Request) -> Store:
    names = (*used.training, *used.validation)
    chosen = replace(data, cases=tuple(data.by_id[name] for name in names))
    return build_store(
        chosen,
        planned,
        path,
        recipe=SubjectRecipe.of_dataset(chosen, planned, request.material(planned)),
        jobs=request.setup.jobs,
        progress=lambda done, total: request.tell("reading", done, total, {}),
    )


def _check_asked(request: Request, used: Cases, path: Path) -> None:
    """Cases that are named must be the store's."""
    names = {*used.training, *used.validation}
    asked = (
        names
        if request.setup.cases is None
        else {*request.setup.cases, *(request.setup.validation or ())}
    )
    kept = used.validation if request.setup.validation is None else request.setup.validation
    if asked != names or set(kept) != set(used.validation):
        raise UsageError(
            "the store is of another split into training and validation",
            path=path,
            code="other-split",
            next_step="Name no cases, to take the store's; or make a store of these.",
        )


def _check_goes_on(start: Plan, store: Store) -> None:
    """Can a model go on from a store's cases, as from their files?

    Raises:
        UsageError: as `check_start`; "store-of-other-settings": its channels are normalised by
            other rules than the model's.
    """
    check_start(start, [one.channel for one in store.plan.channels], store.plan.labels)
    for own, wanted in zip(store.plan.channels, start.channels, strict=True):
        if (own.scheme, own.inside_only) != (wanted.scheme, wanted.inside_only):
            raise UsageError(
                f"channel '{own.channel}' is normalised otherwise in the store than in the model",
                path=store.path,
                code="store-of-other-settings",
                next_step="Train from the data set's files.",
            )


def _check_resumed(out: Path, settings: str, used: Cases, seed: int) -> None:
    if (out / "config.toml").read_text() != settings:
        raise UsageError(
            "the run was started with other settings",
            path=out / "config.toml",
            code="other-settings",
            next_step="Resume with the same preset, file and overrides.",
        )
    noted = json.loads((out / "cases.json").read_text())
    known = noted.pop("seed", seed)  # runs of earlier versions note none
    if noted != json.loads(json.dumps(used.as_dict())):
        raise _other_cases(out / "cases.json")
    if known != seed:
        raise UsageError(
            f"the run was started with seed {known}, not {seed}",
            path=out / "cases.json",
            code="other-settings",
            next_step=f"Resume with --seed {known}.",
        )


def _other_cases(path: Path) -> UsageError:
    return UsageError(
        "the run was started with other cases, or their files have changed",
        path=path,
        code="other-cases",
        next_step="Resume with the same data set, split and seed.",
    )


def _noted_plan(out: Path) -> Plan:
    return Plan.from_dict(json.loads((out / "plan.json").read_text()))


def _note(out: Path, settings: str, used: Cases, planned: Plan, seed: int) -> None:
    cases = {**used.as_dict(), "seed": seed}
    for name, content in (("plan.json", planned.as_dict()), ("cases.json", cases)):
        write_json(out / name, content, overwrite=True)
    # Last: a run without it is none to resume.
    with writing(out / "config.toml", overwrite=True) as file:
        file.write(settings.encode())


def _content(case: Case) -> str:
    """SHA-256 of a case's files, by content alone; a file of several channels counts once."""
    return sha256_of_all(source_files(case))
