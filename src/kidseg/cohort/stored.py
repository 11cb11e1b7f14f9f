"""Subjects in a store: made ready once, from the files; trained on ever after, without readers.

A store of subjects is of one split: its plan, and with it the pixel of the base grid, was made from
the training cases. Methods that look through the same window (`ViewConfig`) share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kidseg.body import Moments
from kidseg.cases import Case, Dataset, consecutive, relabelled
from kidseg.cases.reading import CaseReader, CaseVoxels
from kidseg.cohort.subject import Subject, prepare
from kidseg.config import ViewConfig
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Volume
from kidseg.labels import CystAs, LabelSchema
from kidseg.plan import Plan
from kidseg.store import Prepared, Store, StoredCase, grid_from_json, grid_to_json

__all__ = ["SubjectRecipe", "check_view", "schema_of_store", "subject_of"]

CONTENT = "subjects"

_MOMENTS = ("centre_mm", "angle_rad", "radii_mm")


@dataclass(frozen=True, kw_only=True)
class SubjectRecipe:
    """Makes the subjects of a data set ready for a store; see `kidseg.cohort.subject.prepare`.

    Attributes:
        view: as there.
        plan: as there.
        multiple: as there.
        schema: labels 1, 2, 3, ... : the classes of the networks.
        new_from_old: their numbers from those in the files.
        ignore: number, among the new ones, of voxels that do not count.
    """

    view: ViewConfig
    plan: Plan
    multiple: int
    schema: LabelSchema
    new_from_old: Mapping[int, int]
    ignore: int | None

    @classmethod
    def of_dataset(
        cls, dataset: Dataset, plan: Plan, view: ViewConfig, *, multiple: int
    ) -> SubjectRecipe:
        """For a data set, its cysts counted as the plan says.

        Raises:
            InputError: as `learned_schema`.
        """
        schema, new_from_old, ignore = learned_schema(dataset, plan.cyst)
        return cls(
            view=view,
            plan=plan,
            multiple=multiple,
            schema=schema,
            new_from_old=new_from_old,
            ignore=ignore,
        )

    @property
    def content(self) -> str:
        """What comes out, by name."""
        return CONTENT

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the result, beside the plan, and what the labels mean."""
        return {
            **_window(self.view, self.multiple),
            "labels": {str(number): name for number, name in self.schema.names.items()},
            "regions": {name: list(ids) for name, ids in self.schema.regions.items()},
            "ignore": self.ignore,
        }

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        """A subject as arrays and plain data; `subject_of` brings it back, bit by bit."""
        assert voxels.labels is not None
        subject = prepare(
            voxels.image,
            self.view,
            self.plan,
            name=case.id,
            multiple=self.multiple,
            labels=relabelled(voxels.labels, self.new_from_old),
            ignore_label=self.ignore,
        )
        assert subject.labels is not None
        arrays = {"masks": subject.masks.data.numpy()}
        if subject.ignore is not None:
            arrays["ignore"] = subject.ignore.data.numpy()
        facts = {
            "base": grid_to_json(subject.base),
            "body": _moments_to_json(subject.body),
            "body_per_slice": _moments_to_json(subject.body_per_slice),
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


def check_view(store: Store, view: ViewConfig, cyst: CystAs | None, *, multiple: int) -> None:
    """Does a store hold subjects as these settings make them?

    Raises:
        UsageError: "not-subjects": it holds something else; "store-of-other-settings".
    """
    if store.content != CONTENT:
        raise UsageError(
            f"the store holds '{store.content}', not what these methods train on",
            path=store.path,
            code="not-subjects",
            next_step="Make one with 'kidseg store'.",
        )
    wanted = {**_window(view, multiple), "cyst": cyst}
    found = {**store.settings, "cyst": store.plan.cyst}
    odd = [
        f"{name} = {json.dumps(had)}, not {json.dumps(value)}"
        for name, value, had in _compared(wanted, found)
    ]
    if odd:
        raise UsageError(
            f"the store was made with {'; '.join(odd)}",
            path=store.path,
            code="store-of-other-settings",
            next_step="Train with its settings, or make another store with these.",
        )


def schema_of_store(store: Store) -> LabelSchema:
    """What the labels of the subjects mean."""
    names = {int(number): name for number, name in store.settings["labels"].items()}
    regions = {name: tuple(ids) for name, ids in store.settings["regions"].items()}
    return LabelSchema.from_names(names, regions)


def subject_of(case: StoredCase) -> Subject:
    """The subject as it was stored; its voxels are mapped into memory, not read."""
    labels = case.labels
    return Subject(
        id=case.id,
        image=case.image,
        masks=Volume(case.array("masks"), case.grid),
        body=_moments_from_json(case.facts["body"]),
        body_per_slice=_moments_from_json(case.facts["body_per_slice"]),
        base=grid_from_json(case.facts["base"]),
        whole=labels.grid,
        labels=labels,
        ignore=Volume(case.array("ignore"), labels.grid) if case.has("ignore") else None,
    )


def _window(view: ViewConfig, multiple: int) -> dict[str, Any]:
    return {"view": asdict(view), "multiple": multiple}


def _compared(
    wanted: Mapping[str, Any], found: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """(name, wanted, found) of what differs; "view.size" is a name."""
    odd: list[tuple[str, Any, Any]] = []
    for name, value in wanted.items():
        had = found.get(name)
        if isinstance(value, Mapping) and isinstance(had, Mapping):
            odd += _compared(value, had, f"{prefix}{name}.")
        elif value != had:
            odd.append((prefix + name, value, had))
    return odd


def _moments_to_json(moments: Moments) -> dict[str, Any]:
    """Exactly: they are in double precision. NaN, of slices without a body, stays NaN."""
    values = {name: getattr(moments, name) for name in _MOMENTS}
    assert all(value.dtype == torch.float64 for value in values.values())
    return {name: value.tolist() for name, value in values.items()}


def _moments_from_json(data: Mapping[str, Any]) -> Moments:
    return Moments(*(torch.tensor(data[name], dtype=torch.float64) for name in _MOMENTS))
