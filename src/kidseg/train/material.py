"""Prepare training data: plan, and preprocess the selected cases into a store.

Every training run reads a store of subjects. A run that starts from files creates a store in its
folder and removes it at the end; `make_store` creates a permanent one, for many runs or for
machines without scan readers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kidseg.cases import Dataset, count_cyst, learned_labels, open_dataset
from kidseg.cases.roi_rules import unused_rules
from kidseg.cases.same_images import check_apart, check_patients
from kidseg.cohort.cohort import check_labels
from kidseg.cohort.stored import SubjectRecipe, check_store, is_labelled
from kidseg.cohort.subject import Material
from kidseg.distributed import first_alone, rank
from kidseg.errors import UsageError
from kidseg.io.atomic import make_folder
from kidseg.io.content import joint_sha256
from kidseg.io.output import check_output_folder
from kidseg.plan import Plan, fingerprint, plan
from kidseg.store import Store, build_store, is_store, open_store
from kidseg.train.case_selection import every_case, hashed, select_cases
from kidseg.train.record import Cases, other_cases, recorded_cases, recorded_plan
from kidseg.train.request import Progress, Request
from kidseg.train.setup import Setup, check_start, plan_from_model, resolve

__all__ = ["STORE", "cases_of_store", "make_store", "training_store"]

STORE = "store"
"""Subfolder of a run for the store that a run from files creates."""


def make_store(
    dataset: str | Path,
    path: str | Path,
    setup: Setup | None = None,
    *,
    full: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Preprocess the cases of a data set for training into a store.

    `train` accepts the store in place of the data set, with any method and settings that require
    the same pixels; with any at all if the store keeps the scans' original pixels (`full`). The
    result is bit-identical to training from the files. Training from a store needs only torch,
    numpy, safetensors, pydantic and tomli_w, no scan readers (also batchgeneratorsv2 with `augment`
    "nnunet", and scipy if masks or coarser pixels must be computed). The split into training and
    validation and the plan are those of the store. An interrupted build is continued.

    Args:
        dataset: folder in any layout of `kidseg.cases`.
        path: folder of the store.
        setup: method and cases.
        full: keep the scans' original pixels, without masks: for all methods and resolutions.
        progress: called with the progress.

    Returns:
        {"path", "digest", "cases": {"training": [...], "validation": [...], "unlabelled": [...]},
        "megabytes", "findings"}.

    Raises:
        UsageError, InputError, ResourceError, ModelError: see `resolve`, `open_dataset`,
            `fingerprint`, `holdout`, `build_store` and `cases_of_store`; "bad-split",
            "unknown-case"; "other-folder": the folder contains something else.
    """
    setup = setup or Setup()
    check_output_folder(Path(path), "a store")
    request = Request.of(setup, resolve(setup), progress)
    if full:
        request = replace(request, material=lambda _: Material(), needs_body=False)
    data = open_dataset(dataset, setup.rules)
    request.check_channels(data)
    used = select_cases(data, request)
    if not is_store(Path(path)):  # a finished one may be on read-only media
        make_folder(Path(path))
    store = _build(data, used, _make_plan(data, used, request), Path(path), request)
    used = cases_of_store(store)
    size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    return {
        "path": str(store.path),
        "digest": store.digest,
        "cases": used.ids,
        "megabytes": round(size / 1e6, 1),
        "findings": [dict(entry) for case in store.cases for entry in case.findings],
    }


def training_store(
    source: Path,
    out: Path,
    request: Request,
    record: Callable[[Cases, Plan], object],
    *,
    resume: bool,
) -> tuple[Store, Cases]:
    """Open or create the store to train from.

    Args:
        source: a store; or a data set, from which a store is created in `out`.
        out: folder of the run.
        request: cases and preprocessing.
        record: called on rank 0 with the cases and the plan of a run that starts.
        resume: `out` contains a run; its cases must be the same.

    Raises:
        UsageError: "other-cases": the resumed run has others; "other-split": the store has another
            split than requested; see `check_store` and `check_start`.
        InputError, ModelError, ResourceError: see `open_dataset`, `fingerprint`, `build_store`,
            `open_store`, `cases_of_store`.
    """
    if is_store(source):
        unused_rules(request.setup.rules, source)
        store = open_store(source, verify=rank() == 0)
        if request.plan is not None:
            _check_start_labels(request.plan, store)
        planned = request.plan or store.plan
        check_store(store, request.material(planned), request.cohort.cyst)
        used = cases_of_store(store)
        if resume:
            same_plan = recorded_plan(out).digest == store.plan.digest
            if used != recorded_cases(out) or not same_plan:
                raise other_cases(out)
        else:
            _check_split(request, used, source)
            request.check_reference(used.training, source)
            if rank() == 0:
                record(used, store.plan)
        return store, used
    with first_alone() as first:
        if first:
            data = open_dataset(source, request.setup.rules)
            request.check_channels(data)
            if resume:
                used = recorded_cases(out)
                if set(used.sha256) - set(every_case(data)) or hashed(data, used) != used:
                    raise other_cases(out)
                planned = recorded_plan(out)
                if count_cyst(data, planned.cyst)[0].names != dict(planned.labels):
                    raise other_cases(out)
            else:
                used = select_cases(data, request)
                planned = _make_plan(data, used, request)
                record(used, planned)
            # The folder may be found elsewhere when the run is resumed; the cases are compared.
            _build(replace(data, name=STORE), used, planned, out / STORE, request)
    store = open_store(out / STORE, verify=False)
    return store, cases_of_store(store)


def cases_of_store(store: Store) -> Cases:
    """The cases of a store; equal to those of the data set it was created from.

    Raises:
        InputError: "same-image": in training and validation, or of two patients, whatever the
            format of its files.
    """
    training = set(store.plan.training)
    others = [case for case in store.cases if case.id not in training]
    validation = tuple(case.id for case in others if is_labelled(case))
    images = {case.id: case.image_sha256 for case in store.cases}
    check_apart(images, store.plan.training, validation, store.path)
    check_patients(images, {case.id: case.patient for case in store.cases}, store.path)
    return Cases(
        training=store.plan.training,
        validation=validation,
        sha256={case.id: joint_sha256(s.sha256 for s in case.sources) for case in store.cases},
        unlabelled=tuple(case.id for case in others if not is_labelled(case)),
    )


def _make_plan(data: Dataset, used: Cases, request: Request) -> Plan:
    """The plan from the training cases, or that of the model to fine-tune."""
    cyst = request.cohort.cyst
    check_labels(learned_labels(data, cyst).schema, request.cohort, data.root)
    if request.plan is not None:
        schema, _ = count_cyst(data, cyst)
        start = replace(request.plan, cyst=cyst)
        return plan_from_model(start, data.channels, used.training, schema.names)
    training = replace(data, cases=tuple(data.by_id[name] for name in used.training))
    facts = fingerprint(
        training,
        cyst=cyst,
        jobs=request.setup.jobs,
        progress=lambda done, total: request.on_progress("planning", done, total, {}),
    )
    return plan(facts, training.schema)


def _build(data: Dataset, used: Cases, planned: Plan, path: Path, request: Request) -> Store:
    known = every_case(data)
    names = (*used.training, *used.validation, *used.unlabelled)
    selected = replace(data, cases=tuple(known[name] for name in names))
    return build_store(
        selected,
        planned,
        path,
        recipe=SubjectRecipe.of_dataset(selected, planned, request.material(planned)),
        jobs=request.setup.jobs,
        progress=lambda done, total: request.on_progress("reading", done, total, {}),
    )


def _check_split(request: Request, used: Cases, path: Path) -> None:
    """Check that the requested cases, if any are named, are those of the store."""
    names = {*used.training, *used.validation}
    requested = (
        names
        if request.setup.cases is None
        else {*request.setup.cases, *(request.setup.validation or ())}
    )
    validation = used.validation if request.setup.validation is None else request.setup.validation
    if requested != names or set(validation) != set(used.validation):
        raise UsageError(
            "the store has another split into training and validation",
            path=path,
            code="other-split",
            next_step="Name no cases, to use those of the store; or create a store of these.",
        )


def _check_start_labels(start: Plan, store: Store) -> None:
    """Check that a model can be fine-tuned on the cases of a store.

    Raises:
        UsageError: see `check_start`; "store-of-other-settings": the channels of the store and of
            the model are normalised differently.
    """
    check_start(start, [channel.channel for channel in store.plan.channels], store.plan.labels)
    for stored, required in zip(store.plan.channels, start.channels, strict=True):
        if (stored.scheme, stored.inside_only) != (required.scheme, required.inside_only):
            raise UsageError(
                f"the store and the model normalise channel '{stored.channel}' differently",
                path=store.path,
                code="store-of-other-settings",
                next_step="Train from the data set's files.",
            )
