"""The cases a method learns from, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from kidseg.cases import Case, Dataset, consecutive, relabelled
from kidseg.config import CohortConfig, ViewConfig
from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema
from kidseg.methods.subject import Subject, prepare
from kidseg.plan import CaseReader, Plan
from kidseg.sampling import SliceIndex

__all__ = ["Cohort", "gather_cohort", "patient_dice"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Training and validation cases, and what their labels mean.

    Attributes:
        training: at least one.
        validation: at least one.
        schema: labels 1, 2, 3, ... : the classes of the networks.
        plan: made from the training cases.
        config: as given.
        findings: what the readers noticed.
    """

    training: tuple[Subject, ...]
    validation: tuple[Subject, ...]
    schema: LabelSchema
    plan: Plan
    config: CohortConfig
    findings: tuple[Finding, ...] = ()

    @property
    def classes(self) -> int:
        """Background and the labels."""
        return len(self.schema.labels) + 1

    @cached_property
    def index(self) -> SliceIndex:
        """The training slices."""
        shown = [subject.shown(self.classes) for subject in self.training]
        return SliceIndex.of_cases(shown, self.config.label_share)

    @property
    def selection(self) -> tuple[str, ...]:
        """Regions whose mean Dice selects the weights."""
        if self.config.selection:
            return self.config.selection
        usual = tuple(name for name in KIDNEY_TUMOUR.regions if name != "kidney")
        return usual if set(usual) <= set(self.schema.regions) else tuple(self.schema.regions)

    def to(self, device: torch.device) -> Cohort:
        """The same cohort with its voxels on a device."""
        return replace(
            self,
            training=tuple(_moved(subject, device) for subject in self.training),
            validation=tuple(_moved(subject, device) for subject in self.validation),
        )

    def score(self, found: Sequence[Volume]) -> dict[str, float]:
        """Figures of the validation cases from their labels, (1, ...) on `Subject.whole` each.

        Per region the mean Dice over patients; a patient without the region, in whom none was
        found, is left out. "score" is the mean over `selection`; a region that no patient has
        counts in no mean. No region at all: score 0.
        """
        cases: list[Mapping[str, float | None]] = []
        for subject, labels in zip(self.validation, found, strict=True):
            assert subject.labels is not None
            cases.append(patient_dice(labels, subject.labels, self.schema, subject.voids))
        figures = {}
        for name in self.schema.regions:
            known = [value for case in cases if (value := case[name]) is not None]
            if known:
                figures[name] = sum(known) / len(known)
        chosen = [figures[name] for name in self.selection if name in figures]
        return {"score": sum(chosen) / len(chosen) if chosen else 0.0, **figures}


def gather_cohort(
    dataset: Dataset,
    training: Sequence[str],
    validation: Sequence[str],
    plan: Plan,
    view: ViewConfig,
    config: CohortConfig,
    *,
    multiple: int,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Read the cases and make them ready; see `kidseg.methods.subject.prepare`.

    Raises:
        InputError: what `CaseReader.read` refuses; "regions-not-labels"; "unknown-region": a region
            of `selection` that the data set does not have.
    """
    if dataset.region_order:
        raise InputError(
            "it trains overlapping regions; these methods train labels",
            path=dataset.root,
            code="regions-not-labels",
            next_step="Give each voxel one label in dataset.json.",
        )
    reader = CaseReader.of_dataset(dataset, cyst=config.cyst)
    schema, new_from_old = consecutive(reader.schema, reader.ignore_label)
    if unknown := set(config.selection) - set(schema.regions):
        raise InputError(
            f"it has no region {sorted(unknown)}; there are {sorted(schema.regions)}",
            path=dataset.root,
            code="unknown-region",
            next_step="Name some of these in cohort.selection.",
        )
    ignore = None if reader.ignore_label is None else new_from_old[reader.ignore_label]
    by_id = dataset.by_id
    wanted = [*training, *validation]
    findings: list[Finding] = []

    def ready(case: Case) -> Subject:
        voxels = reader.read(case)
        findings.extend(voxels.findings)
        assert voxels.labels is not None
        labels = relabelled(voxels.labels, new_from_old)
        return prepare(
            voxels.image, view, plan, name=case.id, multiple=multiple, labels=labels, ignore=ignore
        )

    subjects = []
    for k, name in enumerate(wanted):
        subjects.append(ready(by_id[name]))
        if progress is not None:
            progress(k + 1, len(wanted))
    return Cohort(
        training=tuple(subjects[: len(training)]),
        validation=tuple(subjects[len(training) :]),
        schema=schema,
        plan=plan,
        config=config,
        findings=tuple(findings),
    )


def patient_dice(
    found: Volume, reference: Volume, schema: LabelSchema, voids: Volume | None = None
) -> dict[str, float | None]:
    """Dice of each region in one patient; None where neither has it.

    Args:
        found: (1, slices, rows, columns) labels.
        reference: the same.
        schema: for its regions.
        voids: (1, ...) bool: voxels that do not count.
    """
    out: dict[str, float | None] = {}
    for name, members in schema.regions.items():
        numbers = torch.tensor(members, dtype=torch.uint8)
        a = torch.isin(found.data.cpu(), numbers)
        b = torch.isin(reference.data.cpu(), numbers)
        if voids is not None:
            a, b = a & ~voids.data.cpu(), b & ~voids.data.cpu()
        total = int(a.sum()) + int(b.sum())
        out[name] = 2 * int((a & b).sum()) / total if total else None
    return out


def _moved(subject: Subject, device: torch.device) -> Subject:
    def there(volume: Volume | None) -> Volume | None:
        return None if volume is None else Volume(volume.data.to(device), volume.grid)

    image, masks = there(subject.image), there(subject.masks)
    assert image is not None and masks is not None
    labels, voids = there(subject.labels), there(subject.voids)
    return replace(subject, image=image, masks=masks, labels=labels, voids=voids)
