"""Cases that contain the same image: a model that trained on one would be tested on it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import numpy as np

from kidseg.cases.case import Case
from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume

__all__ = [
    "check_apart",
    "check_patients",
    "same_image_findings",
    "same_label_findings",
    "voxels_sha256",
]


def voxels_sha256(volume: Volume) -> str:
    """SHA-256 of shape and values, whatever the format, compression and type of the file."""
    digest = hashlib.sha256(repr(volume.grid.shape).encode())
    for plane in volume.data.flatten(0, 1):
        digest.update(np.ascontiguousarray(plane.numpy(), dtype=np.float32).data)
    return digest.hexdigest()


def same_image_findings(digests: Mapping[Case, str]) -> tuple[Finding, ...]:
    """Findings "same-image" about cases with equal digests of their images.

    Errors between training and test cases and between patients; a warning for two cases of one
    patient, which stay together in every split.
    """
    by_digest: dict[str, list[Case]] = {}
    for case, digest in digests.items():
        by_digest.setdefault(digest, []).append(case)
    return tuple(
        _finding(first, other) for first, *others in by_digest.values() for other in others
    )


def same_label_findings(
    digests: Mapping[Case, str | None], labels: Mapping[Case, str | None]
) -> tuple[Finding, ...]:
    """Warnings "same-labels" about cases with equal labels, but other images.

    Args:
        digests: of the images.
        labels: of the labels; None: there are none.
    """
    first: dict[str, Case] = {}
    found = []
    for case, digest in labels.items():
        other = case if digest is None else first.setdefault(digest, case)
        if other is not case and digests.get(other) != digests.get(case):
            cause = f"cases '{other.id}' and '{case.id}' have the same labels, but other images"
            step = (
                "Name the labels of each case, unless these are scans of one patient at one time."
            )
            path = str(case.labels)
            found.append(Finding(code="same-labels", path=path, cause=cause, next_step=step))
    return tuple(found)


def check_apart(
    digests: Mapping[str, str],
    training: Collection[str],
    validation: Collection[str],
    path: object,
    *,
    other: str = "validation",
) -> None:
    """Check that no image is in training and validation, or test, under two names.

    Args:
        digests: {case id: digest of its images}.
        training: case ids.
        validation: case ids.
        path: of the data set or store.
        other: what `validation` is.

    Raises:
        InputError: "same-image", with both names.
    """
    trained = {digests[case]: case for case in sorted(training, reverse=True)}
    for case in sorted(validation):
        if (first := trained.get(digests[case])) is not None:
            raise InputError(
                f"cases '{first}' (training) and '{case}' ({other}) contain the same image",
                path=str(path),
                code="same-image",
                next_step="Remove one of the two, or assign both to one patient in patients.csv.",
            )


def check_patients(digests: Mapping[str, str], patients: Mapping[str, str], path: object) -> None:
    """Check that no image belongs to two patients: it would weigh twice, or one label be wrong.

    Args:
        digests: {case id: digest of its images}.
        patients: {case id: patient}.
        path: of the data set or store.

    Raises:
        InputError: "same-image", with the names of both cases.
    """
    seen: dict[str, str] = {}
    for case in sorted(digests):
        other = seen.setdefault(digests[case], case)
        if patients[other] != patients[case]:
            raise InputError(
                f"cases '{other}' and '{case}' of two patients contain the same image",
                path=str(path),
                code="same-image",
                next_step="Remove one of the two, or assign both to one patient in patients.csv.",
            )


def _finding(first: Case, other: Case) -> Finding:
    crossed = (first.labels is None) != (other.labels is None)
    harmless = not crossed and first.patient == other.patient
    return Finding(
        code="same-image",
        path=str(other.images[0]),
        cause=f"cases '{first.id}' and '{other.id}' contain the same image: same voxels as "
        f"{first.images[0]}"
        + (", and one is a training case, the other a test case" if crossed else ""),
        next_step="Remove one of the two."
        if crossed or harmless
        else "Remove one of the two, or assign both to one patient in patients.csv.",
        severity="warning" if harmless else "error",
    )
