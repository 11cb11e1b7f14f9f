"""Store preprocessed subjects, and load them for training without the scan readers.

A store has one split into training and validation, because its plan was made from the training
cases. A method can train from a store with the pixels it requires, or from any store that keeps the
scans' original pixels. Body masks are computed on loading if the store has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kidseg.body import Moments
from kidseg.cohort.subject import Body, Material, Subject, prepare
from kidseg.errors import UsageError, is_out_of_memory
from kidseg.geometry import Volume
from kidseg.intensity import Scaling
from kidseg.labels import CystAs, LabelSchema, Target
from kidseg.plan import Plan
from kidseg.store import Prepared, Store, StoredCase, grid_from_json, grid_to_json
from kidseg.store.files import damaged

if TYPE_CHECKING:
    from kidseg.cases import Case, Dataset, LearnedLabels
    from kidseg.cases.reading import CaseVoxels

__all__ = [
    "SubjectRecipe",
    "check_store",
    "is_labelled",
    "schema_of_store",
    "subject_of",
    "target_of_store",
    "voxels_of",
]

CONTENT = "subjects"

_LABELLED = "labelled"
_VOXELS = "voxels_sha256"
_MOMENTS = ("centre_mm", "angle_rad", "radii_mm")


@dataclass(frozen=True, kw_only=True)
class SubjectRecipe:
    """Preprocesses the cases of a data set for a store; see `kidseg.cohort.subject.prepare`.

    Attributes:
        material: requirements of the method.
        plan: made from the training cases.
        learned: mapping from the data set's labels to those of the networks.
    """

    material: Material
    plan: Plan
    learned: LearnedLabels

    @classmethod
    def of_dataset(cls, dataset: Dataset, plan: Plan, material: Material) -> SubjectRecipe:
        """The recipe of a data set, with cysts counted as in the plan.

        Raises:
            UsageError: see `learned_labels`.
        """
        from kidseg.cases import learned_labels

        return cls(material=material, plan=plan, learned=learned_labels(dataset, plan.cyst))

    @property
    def content(self) -> str:
        """Name of the content, "subjects"."""
        return CONTENT

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that determines the result besides the plan, and the meaning of the labels."""
        learned = self.learned
        schema = learned.schema.as_dict()
        return {
            **asdict(self.material),
            "labels": schema["names"],
            "regions": schema["regions"],
            "target": learned.target.as_dict(),
            "ignore": learned.ignore,
        }

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        """Preprocess a case to arrays and plain data; `subject_of` restores it bit-identically."""
        from kidseg.cases import relabelled
        from kidseg.cases.same_images import voxels_sha256

        known = voxels.labels
        subject = prepare(
            voxels.image,
            self.material,
            self.plan.channels,
            name=case.id,
            labels=None if known is None else relabelled(known, self.learned.new_from_old),
            ignore_label=self.learned.ignore,
        )
        arrays = {}
        if subject.masks is not None:
            arrays["masks"] = subject.masks.data.numpy()
        if subject.ignore is not None:
            arrays["ignore"] = subject.ignore.data.numpy()
        facts: dict[str, Any] = {
            "masks_grid": None if subject.masks is None else grid_to_json(subject.masks.grid),
            "scalings": [asdict(scaling) for scaling in subject.scalings],
            "body": None if subject.body is None else _body_to_json(subject.body),
            _VOXELS: voxels_sha256(Volume(voxels.image.data[:1], voxels.image.grid)),
        }
        labels = subject.labels
        if labels is None:
            # Every case of a store has labels; a fact says that these are none.
            shape = (1, *subject.image.grid.shape)
            labels = Volume(torch.zeros(shape, dtype=torch.uint8), subject.image.grid)
            facts[_LABELLED] = False
        return Prepared(image=subject.image, labels=labels, arrays=arrays, facts=facts)


def check_store(store: Store, material: Material, cyst: CystAs | None) -> None:
    """Check that a store provides the subjects that a method requires.

    Raises:
        UsageError: "not-subjects": the store contains something else; "store-of-other-settings".
    """
    if store.content != CONTENT:
        raise UsageError(
            f"the store contains '{store.content}', not '{CONTENT}' for training",
            path=store.path,
            code="not-subjects",
            next_step="Create one with 'kidseg store'.",
        )
    actual = {**store.settings, "cyst": store.plan.cyst}
    required: dict[str, Any] = {"cyst": cyst}
    if actual["masks"] is not None and material.masks is not None:
        required["masks"] = asdict(material.masks)
    differences = [
        f"{name} = {json.dumps(actual[name])}, not {json.dumps(value)}"
        for name, value in required.items()
        if actual[name] != value
    ]
    coarse = [
        f"case '{case.id}' averaged over {stored} x {stored} pixels, not {factor} x {factor}"
        for case in store.cases
        if (stored := _factor(case)) not in (1, factor := material.factor(case.original))
    ]
    differences += coarse[:1]
    if differences:
        raise UsageError(
            f"the store was created with {'; '.join(differences)}",
            path=store.path,
            code="store-of-other-settings",
            next_step="Train with the settings of the store, or create a store with these settings"
            " or, for any method and resolution, with --full.",
        )


def schema_of_store(store: Store) -> LabelSchema:
    """Label schema of the stored subjects.

    Raises:
        ModelError: "damaged-store".
    """
    with _sound(store.path):
        settings = store.settings
        return LabelSchema.from_dict({"names": settings["labels"], "regions": settings["regions"]})


def target_of_store(store: Store) -> Target:
    """Target of a network that predicts all labels of the store.

    Raises:
        ModelError: "damaged-store".
    """
    with _sound(store.path):
        return Target.from_dict(store.settings["target"])


def is_labelled(case: StoredCase) -> bool:
    """Whether the labels of a stored case are known."""
    return bool(case.facts.get(_LABELLED, True))


def voxels_of(case: StoredCase) -> str | None:
    """Digest of the voxels of a scan's first channel, as read; None in a store of earlier versions.

    See `kidseg.cases.same_images.voxels_sha256`.
    """
    found = case.facts.get(_VOXELS)
    return found if isinstance(found, str) else None


def subject_of(case: StoredCase) -> Subject:
    """The subject of a stored case; its voxels are memory-mapped, not read.

    Raises:
        ModelError: "damaged-store".
    """
    with _sound(case.folder):
        return _subject(case)


def _subject(case: StoredCase) -> Subject:
    labels, body = case.labels if is_labelled(case) else None, case.facts["body"]
    return Subject(
        id=case.id,
        image=case.image,
        scalings=tuple(Scaling(**entry) for entry in case.facts["scalings"]),
        body=None if body is None else _body_from_json(body),
        masks=None if not case.has("masks") else _masks_of(case),
        labels=labels,
        ignore=Volume(case.array("ignore"), case.labels_grid) if case.has("ignore") else None,
        counts=np.zeros((0, 256), dtype=np.int64) if labels is None else _counts(case),
        age_years=case.age_years,
    )


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Convert the errors of content that no recipe has written.

    Raises:
        ModelError: "damaged-store".
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise damaged(path, f"is not what was stored for training ({error!r:.200})") from error


def _masks_of(case: StoredCase) -> Volume:
    return Volume(case.array("masks"), grid_from_json(case.facts["masks_grid"]))


def _counts(case: StoredCase) -> np.ndarray:
    slices, rows, columns = case.grid.shape
    counts = np.zeros((slices, 256), dtype=np.int64)
    for label, by_slice in case.voxels_per_slice.items():
        for k, voxels in by_slice.items():
            counts[k, label] = voxels
    counts[:, 0] = rows * columns - counts[:, 1:].sum(1)  # a store does not count background
    return counts


def _factor(case: StoredCase) -> int:
    return round(float(case.grid.spacing_mm[2] / case.original.spacing_mm[2]))


def _body_to_json(body: Body) -> dict[str, Any]:
    return {
        "whole": _moments_to_json(body.whole),
        "per_slice": _moments_to_json(body.per_slice),
        "box": None if body.box is None else list(body.box),
    }


def _body_from_json(data: Mapping[str, Any]) -> Body:
    box = data["box"]
    return Body(
        whole=_moments_from_json(data["whole"]),
        per_slice=_moments_from_json(data["per_slice"]),
        box=None if box is None else (box[0], box[1], box[2], box[3]),
    )


def _moments_to_json(moments: Moments) -> dict[str, Any]:
    """Lossless, in double precision. NaN, for slices without a body, stays NaN."""
    values = {name: getattr(moments, name) for name in _MOMENTS}
    assert all(value.dtype == torch.float64 for value in values.values())
    return {name: value.tolist() for name, value in values.items()}


def _moments_from_json(data: Mapping[str, Any]) -> Moments:
    return Moments(*(torch.tensor(data[name], dtype=torch.float64) for name in _MOMENTS))
