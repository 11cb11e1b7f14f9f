"""The cases of a training: split, hashed, checked for images and patients in both parts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from kidseg.cases import Case, Dataset
from kidseg.cases.same_images import check_apart, check_patients
from kidseg.errors import KidsegWarning, UsageError
from kidseg.io.content import joint_sha256, sha256_of
from kidseg.splits import holdout
from kidseg.store.files import source_files
from kidseg.train.record import Cases
from kidseg.train.request import Request

__all__ = ["digests_of", "every_case", "hashed", "new_patients", "select_cases", "split_cases"]


def select_cases(data: Dataset, request: Request) -> Cases:
    """The cases of a request, with the hashes of their files.

    Raises:
        UsageError, InputError: see `split_cases` and `hashed`.
    """
    training, held_out = split_cases(data, request)
    used = hashed(data, Cases(training=training, validation=held_out, sha256={}))
    return _with_unlabelled(data, used) if request.unlabelled else used


def hashed(data: Dataset, used: Cases) -> Cases:
    """The cases with the hashes of their files in the data set.

    Raises:
        InputError: "same-image": in training and validation, or of two patients.
    """
    known = every_case(data)
    names = (*used.training, *used.validation, *used.unlabelled)
    digests = {name: digests_of(known[name]) for name in names}
    images = {name: image for name, (image, _) in digests.items()}
    check_apart(images, (*used.training, *used.unlabelled), used.validation, data.root)
    check_patients(images, {name: known[name].patient for name in names}, data.root)
    return replace(used, sha256={name: joint for name, (_, joint) in digests.items()})


def _with_unlabelled(data: Dataset, used: Cases) -> Cases:
    """Add the cases without labels; those that a labelled case may be are left out, with a warning.

    They are left out if a labelled case has the same id, image or patient.
    """
    if not data.unlabelled:
        return used
    images = {digests_of(case)[0] for case in data.cases}
    new = {}
    for case in new_patients(data):
        image, joint = digests_of(case)
        if image not in images:
            new[case.id] = joint
            images.add(image)
    if left := len(data.unlabelled) - len(new):
        warnings.warn(
            f"{left} of {len(data.unlabelled)} scans without labels are not used: each has the id,"
            " the image or the patient of another case",
            KidsegWarning,
            stacklevel=2,
        )
    return replace(used, sha256={**used.sha256, **new}, unlabelled=tuple(new))


def new_patients(data: Dataset) -> list[Case]:
    """The cases without labels that have neither the id nor the patient of a labelled one."""
    patients = {case.patient for case in data.cases}
    return [c for c in data.unlabelled if c.id not in data.by_id and c.patient not in patients]


def every_case(data: Dataset) -> Mapping[str, Case]:
    """All cases by id; of two with the same id, the labelled one."""
    return {**{case.id: case for case in data.unlabelled}, **data.by_id}


def split_cases(data: Dataset, request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids of the training and validation cases of a request; the reference trains.

    Raises:
        UsageError: "unknown-case"; "bad-split": a patient would be in both parts, or one is empty.
        InputError: see `holdout`.
    """
    known = data.by_id
    cases, validation = request.setup.cases, request.setup.validation
    if unknown := {*(cases or ()), *(validation or ())} - set(known):
        raise UsageError(
            f"there is no labelled case {', '.join(sorted(unknown))}",
            path=data.root,
            code="unknown-case",
            next_step="Check its spelling: the id of a case is the name of its files or folder.",
        )
    selected = [case for case in data.cases if cases is None or case.id in cases]
    if validation is None:
        share = request.cohort.validation_share
        reference = known.get(request.reference or "")
        kept = [case for case in selected if reference and case.patient == reference.patient]
        drawn = [case for case in selected if case not in kept]
        parts = holdout(drawn, test_fraction=share, seed=request.setup.seed or 0)
        training = tuple(sorted((*parts.train, *(case.id for case in kept))))
        held_out = parts.test
    else:
        held_out = tuple(sorted(validation))
        training = tuple(case.id for case in selected if case.id not in held_out)
    shared = {known[name].patient for name in held_out} & {known[name].patient for name in training}
    if shared or not training or not held_out:
        cause = (
            f"patient {sorted(shared)[0]} is in training and validation"
            if shared
            else "training and validation need at least one case each"
        )
        raise UsageError(
            cause,
            path=data.root,
            code="bad-split",
            next_step="Choose other cases for training or validation.",
        )
    request.check_reference(training, data.root)
    return training, held_out


def digests_of(case: Case) -> tuple[str, str]:
    """SHA-256 of the contents of a case's images, and of all its files.

    A file with several channels counts once.
    """
    each = [sha256_of(file) for file in source_files(case)]
    n_images = len(source_files(replace(case, labels=None)))
    return joint_sha256(each[:n_images]), joint_sha256(each)
