"""The fingerprint of a data set, the only input of planning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kidseg.errors import InputError
from kidseg.intensity import Sample, Statistics, pool, sample
from kidseg.labels import CystAs
from kidseg.plan.nonzero import nonzero_box
from kidseg.workers import Progress, over_cases

if TYPE_CHECKING:
    from kidseg.cases import Case, Dataset
    from kidseg.cases.reading import CaseReader

__all__ = ["CaseFacts", "Fingerprint", "fingerprint"]

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """Properties of one case that planning uses; axes (slice, row, column), canonical.

    Attributes:
        id: of the case.
        spacing_mm: of its voxels.
        shape: of the image.
        shape_after_crop: of the bounding box of the non-zero voxels.
        labels_ml: volume of each label, by name.
    """

    id: str
    spacing_mm: Triple
    shape: Shape
    shape_after_crop: Shape
    labels_ml: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Properties of a data set that planning uses; plain data.

    Attributes:
        channels: their names.
        cases: in the order of the data set.
        intensities: foreground statistics, one per channel.
        cyst: what cysts count as; None: their own label.
    """

    channels: tuple[str, ...]
    cases: tuple[CaseFacts, ...]
    intensities: tuple[Statistics, ...]
    cyst: CystAs | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Inverse of `as_dict`, also after JSON."""
        triples = ("spacing_mm", "shape", "shape_after_crop")
        cases = tuple(
            CaseFacts(**{**case, **{name: tuple(case[name]) for name in triples}})
            for case in data["cases"]
        )
        return cls(
            channels=tuple(data["channels"]),
            cases=cases,
            intensities=tuple(Statistics(**entry) for entry in data["intensities"]),
            cyst=data["cyst"],
        )


def fingerprint(
    dataset: Dataset,
    *,
    cyst: CystAs | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Fingerprint:
    """Read all labelled cases of a data set and extract its fingerprint.

    To plan from the training cases of a split, pass a data set with only these cases.

    Foreground is every voxel with a label, including the ignore label, as in nnU-Net. Cases without
    foreground contribute only shapes and spacings.

    Args:
        dataset: at least one labelled case.
        cyst: what a cyst counts as, if the schema has one; None: its own label.
        jobs: processes; the result is the same for any number.
        progress: called after each case.

    Raises:
        InputError: as `CaseReader.read` and `over_cases`; "no-cases"; "empty-image": all voxels
            are zero; "no-foreground": no case has a label.

    Source: nnU-Net v2, fingerprint_extractor.
    """
    from kidseg.cases.reading import CaseReader

    if not dataset.cases:
        raise InputError(
            "the data set has no labelled case",
            path=dataset.root,
            code="no-cases",
            next_step="Planning and training require images with labels.",
        )
    task = _ExtractFacts(CaseReader.of_dataset(dataset, cyst=cyst))
    found = over_cases(task, dataset.cases, jobs=jobs, progress=progress)
    statistics = []
    for k in range(len(dataset.channels)):
        pooled = pool([samples[k] for _, samples in found])
        if pooled is None:
            raise InputError(
                "no voxel of any case has a label",
                path=dataset.root,
                code="no-foreground",
                next_step="Check that these are the correct label files.",
            )
        statistics.append(pooled)
    return Fingerprint(
        channels=dataset.channels,
        cases=tuple(facts for facts, _ in found),
        intensities=tuple(statistics),
        cyst=cyst,
    )


@dataclass(frozen=True)
class _ExtractFacts:
    """Extracts the facts and foreground values of one case."""

    reader: CaseReader

    def __call__(self, case: Case) -> tuple[CaseFacts, list[Sample | None]]:
        voxels = self.reader.read(case)
        assert voxels.labels is not None
        grid = voxels.image.grid
        if not bool(voxels.image.data.any()):
            raise InputError(
                "all voxels are zero",
                path=case.images[0],
                code="empty-image",
                next_step="Check the image, or leave the case out.",
            )
        start, shape = nonzero_box(voxels.image)
        numbers = voxels.labels.data[0].numpy()
        counts = np.bincount(numbers.ravel(), minlength=256)
        voxel_ml = float(grid.voxel_ml)
        dz, dy, dx = (float(s) for s in grid.spacing_mm)
        facts = CaseFacts(
            id=case.id,
            spacing_mm=(dz, dy, dx),
            shape=grid.shape,
            shape_after_crop=shape,
            labels_ml={
                name: int(counts[number]) * voxel_ml
                for number, name in self.reader.schema.names.items()
            },
        )
        box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
        foreground = numbers[box] > 0
        return facts, [sample(channel.numpy()[box][foreground]) for channel in voxels.image.data]
