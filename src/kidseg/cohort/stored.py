"""Subjects in a store: made ready once, from the files; trained on ever after, without readers.

A store of subjects is of one split: its plan was made from the training cases. Any method may train
from it that asks for its pixels or coarser ones of a store that keeps the scans' own; masks of the
body are made on the way where it has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kidseg.body import Moments
from kidseg.cohort.subject import Body, Material, Subject, prepare
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Volume
from kidseg.intensity import Scaling
from kidseg.labels import CystAs, LabelSchema
from kidseg.plan import Plan
from kidseg.store import Prepared, Store, StoredCase

if TYPE_CHECKING:
    from kidseg.cases import Case, Dataset
    from kidseg.cases.reading import CaseVoxels

__all__ = ["SubjectRecipe", "check_store", "schema_of_store", "subject_of"]

CONTENT = "subjects"

_MOMENTS = ("centre_mm", "angle_rad", "radii_mm")


@dataclass(frozen=True, kw_only=True)
class SubjectRecipe:
    """Makes the subjects of a data set ready for a store; see `kidseg.cohort.subject.prepare`.

    Attributes:
        material: as there.
        plan: of the training cases.
        schema: labels 1, 2, 3, ... : the classes of the networks.
        new_from_old: their numbers from those in the files.
        ignore: number, among the new ones, of voxels that do not count.
    """

    material: Material
    plan: Plan
    schema: LabelSchema
    new_from_old: Mapping[int, int]
    ignore: int | None

    @classmethod
    def of_dataset(cls, dataset: Dataset, plan: Plan, material: Material) -> SubjectRecipe:
        """For a data set, its cysts counted as the plan says.

        Raises:
            InputError: as `learned_schema`.
        """
        schema, new_from_old, ignore = learned_schema(dataset, plan.cyst)
        return cls(
            material=material, plan=plan, schema=schema, new_from_old=new_from_old, ignore=ignore
        )

    @property
    def content(self) -> str:
        """What comes out, by name."""
        return CONTENT

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the result, beside the plan, and what the labels mean."""
        return {
            **asdict(self.material),
            "labels": {str(number): name for number, name in self.schema.names.items()},
            "regions": {name: list(ids) for name, ids in self.schema.regions.items()},
            "ignore": self.ignore,
        }

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        """A subject as arrays and plain data; `subject_of` brings it back, bit by bit."""
        from kidseg.cases import relabelled

        assert voxels.labels is not None
        subject = prepare(
            voxels.image,
            self.material,
            self.plan.channels,
            name=case.id,
            labels=relabelled(voxels.labels, self.new_from_old),
            ignore_label=self.ignore,
        )
        assert subject.labels is not None
        arrays = {}
        if subject.masks is not None:
            arrays["masks"] = subject.masks.data.numpy()
        if subject.ignore is not None:
            arrays["ignore"] = subject.ignore.data.numpy()
        facts = {
            "scalings": [asdict(scaling) for scaling in subject.scalings],
            "body": None if subject.body is None else _body_to_json(subject.body),
        }
        return Prepared(image=subject.image, labels=subject.labels, arrays=arrays, facts=facts)


def learned_schema(
    dataset: Dataset, cyst: CystAs | None
) -> tuple[LabelSchema, dict[int, int], int | None]:
    """Labels 1, 2, 3, ... of a data set, {number in the files: new one}, new ignore label.

    Raises:
        InputError: "regions-not-labels".
        UsageError: as `without_cyst`.
    """
    from kidseg.cases import consecutive
    from kidseg.cases.reading import CaseReader

    if dataset.region_order:
        raise InputError(
            "it trains overlapping regions; these methods train labels",
            path=dataset.root,
            code="regions-not-labels",
            next_step="Give each voxel one label in dataset.json.",
        )
    reader = CaseReader.of_dataset(dataset, cyst=cyst)
    schema, new_from_old = consecutive(reader.schema, reader.ignore_label)
    ignore = None if reader.ignore_label is None else new_from_old[reader.ignore_label]
    return schema, new_from_old, ignore


def check_store(store: Store, material: Material, cyst: CystAs | None) -> None:
    """Can subjects as a method asks for them be had from a store?

    Raises:
        UsageError: "not-subjects": it holds something else; "store-of-other-settings".
    """
    if store.content != CONTENT:
        raise UsageError(
            f"the store holds '{store.content}', not what methods train on",
            path=store.path,
            code="not-subjects",
            next_step="Make one with 'kidseg store'.",
        )
    found = {**store.settings, "cyst": store.plan.cyst}
    wanted: dict[str, Any] = {"cyst": cyst}
    if found["masks"] is not None and material.masks is not None:
        wanted["masks"] = asdict(material.masks)
    odd = [
        f"{name} = {json.dumps(found[name])}, not {json.dumps(value)}"
        for name, value in wanted.items()
        if found[name] != value
    ]
    odd += [
        f"case '{case.id}' averaged over {had} x {had} pixels, not {factor} x {factor}"
        for case in store.cases[:1]
        if (had := _factor(case)) not in (1, factor := material.factor(case.original))
    ]
    if odd:
        raise UsageError(
            f"the store was made with {'; '.join(odd)}",
            path=store.path,
            code="store-of-other-settings",
            next_step="Train with its settings, or make another store: with these, or with --full"
            " for any method and resolution.",
        )


def schema_of_store(store: Store) -> LabelSchema:
    """What the labels of the subjects mean."""
    names = {int(number): name for number, name in store.settings["labels"].items()}
    regions = {name: tuple(ids) for name, ids in store.settings["regions"].items()}
    return LabelSchema.from_names(names, regions)


def subject_of(case: StoredCase) -> Subject:
    """The subject as it was stored; its voxels are mapped into memory, not read."""
    labels, body = case.labels, case.facts["body"]
    return Subject(
        id=case.id,
        image=case.image,
        scalings=tuple(Scaling(**entry) for entry in case.facts["scalings"]),
        body=None if body is None else _body_from_json(body),
        masks=Volume(case.array("masks"), case.grid) if case.has("masks") else None,
        labels=labels,
        ignore=Volume(case.array("ignore"), labels.grid) if case.has("ignore") else None,
        counts=_counts(case),
    )


def _counts(case: StoredCase) -> np.ndarray:
    counts = np.zeros((case.grid.shape[0], 256), dtype=np.int64)
    for label, slices in case.voxels_per_slice.items():
        for k, voxels in slices.items():
            counts[k, label] = voxels
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
    """Exactly: they are in double precision. NaN, of slices without a body, stays NaN."""
    values = {name: getattr(moments, name) for name in _MOMENTS}
    assert all(value.dtype == torch.float64 for value in values.values())
    return {name: value.tolist() for name, value in values.items()}


def _moments_from_json(data: Mapping[str, Any]) -> Moments:
    return Moments(*(torch.tensor(data[name], dtype=torch.float64) for name in _MOMENTS))
