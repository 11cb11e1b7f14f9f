"""The cases a method learns from, mapped into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from kidseg.cohort.items import Drawn, SliceIndex
from kidseg.cohort.stored import schema_of_store, subject_of, target_of_store
from kidseg.cohort.subject import Material, Subject, adapted
from kidseg.config import CohortConfig
from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume
from kidseg.intensity import Scaling, rescaled
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema, Target
from kidseg.plan import Plan
from kidseg.store import Store, StoredCase

__all__ = ["Cohort", "check_selection", "gather_cohort", "patient_dice"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Training and validation cases, and what their labels mean.

    Attributes:
        training: at least one.
        validation: at least one.
        schema: labels 1, 2, 3, ...
        target: what networks learn of them: labels, or overlapping regions.
        plan: made from the training cases.
        config: as given.
        findings: what the readers noticed.
    """

    training: tuple[Subject, ...]
    validation: tuple[Subject, ...]
    schema: LabelSchema
    target: Target
    plan: Plan
    config: CohortConfig
    findings: tuple[Finding, ...] = ()

    @property
    def masks(self) -> list[Volume]:
        """Of body and bone, of the training cases."""
        return [subject.masks for subject in self.training if subject.masks is not None]

    @cached_property
    def index(self) -> SliceIndex:
        """The training slices."""
        shown = [subject.shown(len(self.schema.labels) + 1) for subject in self.training]
        return SliceIndex.of_cases(shown, self.config.label_share)

    @property
    def selection(self) -> tuple[str, ...]:
        """Regions whose mean Dice selects the weights."""
        if self.config.selection:
            return self.config.selection
        usual = tuple(name for name in KIDNEY_TUMOUR.regions if name != "kidney")
        return usual if set(usual) <= set(self.schema.regions) else tuple(self.schema.regions)

    def names(self, drawn: Drawn) -> tuple[str, ...]:
        """Of drawn training slices, for messages; slices count from 0."""
        return tuple(f"{self.training[case].id} slice {k}" for case, k in drawn)

    def scalings(self, drawn: Drawn) -> list[tuple[Scaling, ...]]:
        """Of the cases of drawn training slices."""
        return [self.training[case].scalings for case, _ in drawn]

    def dice(self, case: int, found: Volume) -> dict[str, float | None]:
        """Dice of each region in a validation case; see `patient_dice`.

        Args:
            case: number of the validation case.
            found: (1, ...) labels on the grid of its image.
        """
        subject = self.validation[case]
        assert subject.labels is not None
        return patient_dice(found, subject.labels, self.schema, subject.ignore)

    def score(self, cases: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
        """Figures of the validation cases from the Dice of each.

        Per region the mean Dice over patients; a patient without the region, in whom none was
        found, is left out. "score" is the mean over `selection`; a region that no patient has
        counts in no mean. No region at all: score 0.
        """
        figures = {}
        for name in self.schema.regions:
            known = [value for case in cases if (value := case[name]) is not None]
            if known:
                figures[name] = sum(known) / len(known)
        chosen = [figures[name] for name in self.selection if name in figures]
        return {"score": sum(chosen) / len(chosen) if chosen else 0.0, **figures}


def gather_cohort(
    store: Store,
    config: CohortConfig,
    material: Callable[[Plan], Material],
    start: Plan | None = None,
) -> Cohort:
    """The cases of a store of subjects: those its plan was made from train, the others validate.

    Their voxels stay on the disk until they are looked at, and are shared between processes; but
    what the store lacks (coarser pixels, masks) is made now and held in memory.

    Args:
        store: of subjects.
        config: of the cohort.
        material: (plan) -> what the method asks of subjects.
        start: the plan of a model to go on from, in place of the store's; None: the store's.

    Raises:
        InputError: as `check_selection` and `adapted`.
    """
    schema = schema_of_store(store)
    check_selection(schema, config, store.path)
    training, plan = set(store.plan.training), store.plan
    if start is not None:
        kept = (store.plan.training, store.plan.labels, store.plan.cyst)
        plan = replace(start, training=kept[0], labels=kept[1], cyst=kept[2])
    wanted = material(plan)

    def subject(case: StoredCase) -> Subject:
        own = subject_of(case)
        own = replace(own, scalings=rescaled(own.scalings, plan.channels))
        return adapted(own, wanted, plan.channels, case.original)

    return Cohort(
        training=tuple(subject(case) for case in store.cases if case.id in training),
        validation=tuple(subject(case) for case in store.cases if case.id not in training),
        schema=schema,
        target=target_of_store(store),
        plan=plan,
        config=config,
        findings=tuple(Finding(**entry) for case in store.cases for entry in case.findings),
    )


def check_selection(schema: LabelSchema, config: CohortConfig, path: Path) -> None:
    """Are the regions that select the weights among those that the labels make?

    Raises:
        InputError: "unknown-region".
    """
    if unknown := set(config.selection) - set(schema.regions):
        raise InputError(
            f"it has no region {sorted(unknown)}; there are {sorted(schema.regions)}",
            path=path,
            code="unknown-region",
            next_step="Name some of these in cohort.selection.",
        )


def patient_dice(
    found: Volume, reference: Volume, schema: LabelSchema, ignore: Volume | None = None
) -> dict[str, float | None]:
    """Dice of each region in one patient; None where neither has it.

    Args:
        found: (1, slices, rows, columns) labels.
        reference: the same.
        schema: for its regions.
        ignore: (1, ...) bool: voxels that do not count.
    """
    out: dict[str, float | None] = {}
    for name, members in schema.regions.items():
        numbers = torch.tensor(members, dtype=torch.uint8)
        a = torch.isin(found.data.cpu(), numbers)
        b = torch.isin(reference.data.cpu(), numbers)
        if ignore is not None:
            a, b = a & ~ignore.data.cpu(), b & ~ignore.data.cpu()
        total = int(a.sum()) + int(b.sum())
        out[name] = 2 * int((a & b).sum()) / total if total else None
    return out
