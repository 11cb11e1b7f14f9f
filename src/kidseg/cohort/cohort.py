"""The training and validation cases of a method, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from kidseg.cohort.items import Drawn, SliceIndex
from kidseg.cohort.stored import is_labelled, schema_of_store, subject_of, target_of_store
from kidseg.cohort.subject import Material, Subject, adapt
from kidseg.config import CohortConfig
from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume
from kidseg.intensity import Scaling, rescaled
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema, Target
from kidseg.meaning import RENAL
from kidseg.plan import Plan
from kidseg.store import Store, StoredCase

__all__ = ["Cohort", "check_labels", "gather_cohort", "patient_dice"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Training and validation cases, with the meaning of their labels.

    Attributes:
        training: at least one.
        validation: at least one.
        schema: labels 1, 2, 3, ...
        target: output channels of the networks: labels, or overlapping regions.
        plan: made from the training cases.
        config: settings of the cohort.
        findings: of the readers.
        unlabelled: further training cases, for stages that need no labels.
    """

    training: tuple[Subject, ...]
    validation: tuple[Subject, ...]
    schema: LabelSchema
    target: Target
    plan: Plan
    config: CohortConfig
    findings: tuple[Finding, ...] = ()
    unlabelled: tuple[Subject, ...] = ()

    @property
    def masks(self) -> list[Volume]:
        """Body and bone masks of the training cases."""
        return [subject.masks for subject in self.training if subject.masks is not None]

    @cached_property
    def index(self) -> SliceIndex:
        """The training slices: those that show kidney, those that show tumour, and, if they have a
        share, those with small sections. Without labels that mean kidney or tumour: by label.

        Slices that are ignored as a whole are left out.

        Raises:
            InputError: "all-ignored": that are all.
        """
        config, groups = self.config, self._groups
        member = [subject.shown(groups) for subject in self.training]
        shares = [config.label_share] * len(groups)
        if config.small_share:
            tumours = [n for n, meaning in self.schema.meaning.items() if meaning == "tumour"]
            small = [subject.small_sections(tumours) for subject in self.training]
            member = [np.column_stack(pair) for pair in zip(member, small, strict=True)]
            shares.append(config.small_share)
        counted = [subject.counted for subject in self.training]
        if not np.concatenate(counted).any():
            raise InputError(
                "all voxels of the training cases are ignored",
                path=self.training[0].id,
                code="all-ignored",
                next_step="Train on cases with slices that count.",
            )
        return SliceIndex.of_groups(member, shares, counted=counted, hard_share=config.hard_share)

    @property
    def _groups(self) -> list[tuple[int, ...]]:
        """Labels of kidney, and labels of tumour; each label by itself if none means these."""
        kidney, tumour = self.schema.ids_of("kidney"), self.schema.ids_of("tumour")
        return sorted(filter(None, (kidney, tumour))) or [(label,) for label in self.schema.ids]

    @property
    def selection(self) -> tuple[str, ...]:
        """Regions whose mean Dice selects the best epoch."""
        if self.config.selection:
            return self.config.selection
        default = tuple(name for name in KIDNEY_TUMOUR.regions if name != "kidney")
        return default if set(default) <= set(self.regions) else tuple(self.regions)

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """The regions of the schema that the target can tell from the rest."""
        known = self.schema.regions
        return {name: ids for name, ids in known.items() if self.target.expresses(ids)}

    def names(self, drawn: Drawn) -> tuple[str, ...]:
        """Names of the drawn training slices, for messages; slices count from 1."""
        return tuple(f"{self.training[case].id} slice {k + 1}" for case, k in drawn)

    def scalings(self, drawn: Drawn) -> list[tuple[Scaling, ...]]:
        """Channel scalings of the cases of the drawn training slices."""
        return [self.training[case].scalings for case, _ in drawn]

    def dice(self, case: int, found: Volume) -> dict[str, float | None]:
        """Dice of each region in a validation case; see `patient_dice`.

        Args:
            case: index of the validation case.
            found: (1, ...) predicted labels on the grid of its image.
        """
        subject = self.validation[case]
        assert subject.labels is not None
        return patient_dice(found, subject.labels, self.schema, subject.ignore)

    def score(self, cases: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
        """Aggregate the Dice of the validation cases.

        Returns the mean Dice over patients for each region, "dice_<region>", without patients in
        whom both reference and prediction are empty. "score" is the mean over `selection`, without
        regions that no patient has; 0 if there are none.
        """
        figures = {}
        for name in self.regions:
            known = [value for case in cases if (value := case[name]) is not None]
            if known:
                figures[name] = sum(known) / len(known)
        chosen = [figures[name] for name in self.selection if name in figures]
        dice = {f"dice_{name}": value for name, value in figures.items()}
        return {"score": sum(chosen) / len(chosen) if chosen else 0.0, **dice}


def gather_cohort(
    store: Store,
    config: CohortConfig,
    material: Callable[[Plan], Material],
    start: Plan | None = None,
) -> Cohort:
    """Load the cohort of a store: the cases its plan was made from train, the others validate, but
    for those without labels.

    Voxels are memory-mapped and shared between processes. Whatever the store lacks (coarser pixels,
    masks) is computed here and held in memory.

    Args:
        store: of subjects.
        config: of the cohort.
        material: (plan) -> what the method requires of subjects.
        start: the plan of the model to fine-tune; None: the store's plan.

    Raises:
        InputError: see `check_labels` and `adapt`.
    """
    schema = schema_of_store(store)
    check_labels(schema, config, store.path)
    training, plan = set(store.plan.training), store.plan
    if start is not None:
        kept = (store.plan.training, store.plan.labels, store.plan.cyst)
        plan = replace(start, training=kept[0], labels=kept[1], cyst=kept[2])
    plan = replace(plan, channels=tuple(replace(c, clip=config.clip_hu) for c in plan.channels))
    required = material(plan)

    def subject(case: StoredCase) -> Subject:
        stored = subject_of(case)
        scalings = rescaled(stored.scalings, plan.channels)
        stored = replace(stored, scalings=scalings, renal=schema.ids_of(*RENAL))
        return adapt(stored, required, plan.channels, case.original)

    others = [case for case in store.cases if case.id not in training]
    return Cohort(
        training=tuple(subject(case) for case in store.cases if case.id in training),
        validation=tuple(subject(case) for case in others if is_labelled(case)),
        unlabelled=tuple(subject(case) for case in others if not is_labelled(case)),
        schema=schema,
        target=_stated_target(schema, config, store.path) or target_of_store(store),
        plan=plan,
        config=config,
        findings=tuple(Finding(**entry) for case in store.cases for entry in case.findings),
    )


def _stated_target(schema: LabelSchema, config: CohortConfig, path: Path) -> Target | None:
    """What networks learn according to `cohort.target`; None: the labels as they are.

    Raises:
        InputError: "no-kidney-label", "no-tumour-label": no label has the name that is needed.
    """
    try:
        match config.target:
            case "merged":
                return Target.merged(schema)
            case "two":
                return Target.two(schema)
            case "tumour":
                return Target.alone(schema, "tumour")
    except InputError as error:
        raise InputError(
            error.cause, path=path, code=error.code, next_step=error.next_step
        ) from None
    return None


def check_labels(schema: LabelSchema, config: CohortConfig, path: Path) -> None:
    """Check that there are the regions of `cohort.selection` and the labels of `cohort.target`.

    Raises:
        InputError: "unknown-region", "no-kidney-label", "no-tumour-label".
    """
    _stated_target(schema, config, path)
    if unknown := set(config.selection) - set(schema.regions):
        raise InputError(
            f"the labels have no region {sorted(unknown)}; there are {sorted(schema.regions)}",
            path=path,
            code="unknown-region",
            next_step="Set cohort.selection to some of these.",
        )


def patient_dice(
    found: Volume,
    reference: Volume,
    schema: LabelSchema,
    ignore: Volume | None = None,
    *,
    smooth_ml: float = 0.0,
) -> dict[str, float | None]:
    """Dice of each region in one patient; None if the region is empty in both.

    With `smooth_ml` it is (2 both + s) / (found + reference + s), so that a few voxels found
    where nothing is do not count as much as a missed tumour: s found in vain give a half. If the
    region is empty in both, that is 1.

    Args:
        found: (1, slices, rows, columns) predicted labels.
        reference: reference labels of the same shape.
        schema: defines the regions.
        ignore: (1, ...) bool: voxels to ignore.
        smooth_ml: s, in millilitres.

    Source: the smoothing term of the Dice loss (Milletari et al., V-Net, 3DV 2016, as nnU-Net
        and MONAI have it).
    """
    smooth = smooth_ml / float(reference.grid.voxel_ml.mean())
    pair = [labels.data.cpu().numpy() for labels in (found, reference)]
    if ignore is not None:
        counted = ~ignore.data.cpu().numpy()
        pair = [values[counted] for values in pair]
    out: dict[str, float | None] = {}
    for name, members in schema.regions.items():
        region = np.zeros(256, dtype=bool)
        region[list(members)] = True
        a, b = (region[values] for values in pair)
        total = int(np.count_nonzero(a)) + int(np.count_nonzero(b)) + smooth
        out[name] = (2 * int(np.count_nonzero(a & b)) + smooth) / total if total else None
    return out
