"""What a training run or a store would do, without reading voxels or writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kidseg.cases import learned_labels, open_dataset
from kidseg.cohort.cohort import check_labels
from kidseg.config import dump
from kidseg.errors import UsageError
from kidseg.io.output import check_output_folder
from kidseg.store import is_store, open_store
from kidseg.train.case_selection import new_patients, split_cases
from kidseg.train.material import cases_of_store
from kidseg.train.record import RECORD, read_record, resumed_setup
from kidseg.train.request import Request
from kidseg.train.resuming import LOG
from kidseg.train.setup import Setup, resolve
from kidseg.train.tuning import check_tune

__all__ = ["planned_setup", "preview"]

_MARKS = (RECORD, LOG, "config.toml", "model.safetensors")


def preview(dataset: str | Path, setup: Setup | None = None) -> dict[str, Any]:
    """Method, settings and cases of a run, after the checks that need no voxels; plain data.

    Returns:
        {"method", "preset", "start" (the model to fine-tune), "tune", "settings" (TOML), "source"
        ("data set" or "store"), "cases": {"training": [...], "validation": [...],
        "unlabelled": [...]}}; "start" and "tune" are None without fine-tuning. Of the scans without
        labels, those whose image a labelled case has will be left out, too: images are not read.

    Raises:
        UsageError, InputError, ModelError: as `train` and `make_store` for the same reasons.
    """
    setup, path = setup or Setup(), Path(dataset)
    resolved = resolve(setup)
    check_tune(resolved.method, resolved.config, resolved.plan, setup.tune or "all")
    request = Request.of(setup, resolved, None)
    if is_store(path):
        store = open_store(path, verify=False)
        used = cases_of_store(store)
        training, validation, unlabelled = used.training, used.validation, used.unlabelled
        request.check_reference(training, path)
    else:
        data, cohort = open_dataset(path, setup.rules), resolved.config.cohort
        request.check_channels(data)
        training, validation = split_cases(data, request)
        unlabelled = tuple(case.id for case in new_patients(data)) if request.unlabelled else ()
        check_labels(learned_labels(data, cohort.cyst).schema, cohort, data.root)
    return {
        "method": resolved.method.name,
        "preset": setup.preset,
        "start": None if setup.start is None else str(setup.start),
        "tune": None if setup.start is None else setup.tune or "all",
        "settings": dump(resolved.config),
        "source": "store" if is_store(path) else "data set",
        "cases": {
            "training": list(training),
            "validation": list(validation),
            "unlabelled": list(unlabelled),
        },
    }


def planned_setup(out: Path, setup: Setup, *, resume: bool, overwrite: bool) -> Setup:
    """The setup of a run in this folder, that of its record if it is resumed.

    Raises:
        UsageError: "output-exists", "other-folder"; see `read_record` and `resumed_setup`.
        ModelError: see `read_record`.
    """
    if resume:
        return resumed_setup(out, read_record(out), setup)
    check_output_folder(out, "a training run")
    existing = [name for name in _MARKS if (out / name).exists()]
    if existing and not overwrite:
        raise UsageError(
            f"{existing[0]} already exists",
            path=out,
            code="output-exists",
            next_step="Choose another folder, --resume or --overwrite.",
        )
    return setup
