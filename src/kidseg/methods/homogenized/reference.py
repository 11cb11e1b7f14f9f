"""The reference patient, to whose pose and size all patients are aligned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kidseg.body import Moments, normalized
from kidseg.cohort.subject import Body, Subject
from kidseg.config import PoseConfig
from kidseg.errors import UsageError
from kidseg.geometry import Grid, resample
from kidseg.losses import soft_dice
from kidseg.methods.homogenized.registration import best_levels, upright
from kidseg.methods.homogenized.scene import MASKS, masks_on

__all__ = ["Reference", "choose_reference", "matched_levels", "medoid", "start_grid"]

# Margin of the reference volume below and above the labelled region, as a fraction of its height.
_MARGIN = 0.5
# Pixels along each side on which bodies are compared.
_COMPARED = 64


class Reference(nn.Module):
    """Masks and size of the reference patient, on its own start grid. Nothing here is trained.

    Attributes:
        masks: (levels, masks, size, size) uint8, 0..255: the masks at relative heights; in mode
            "slice" one level, the slice with the most kidney, tumour and cyst.
        radii_mm: (2,) semi-axes of the body.
        field_mm: () side of the field of view.
        case: id of the patient; empty if the reference was loaded from a model.
    """

    masks: Tensor
    radii_mm: Tensor
    field_mm: Tensor

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        levels = config.reference_slices if config.reference_mode == "volume" else 1
        side = config.localizer.size
        shape = (levels, MASKS[config.target], side, side)
        self.register_buffer("masks", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("radii_mm", torch.ones(2, dtype=torch.float64))
        self.register_buffer("field_mm", torch.ones((), dtype=torch.float64))
        self.case = ""

    def adopt(self, subject: Subject, base: Grid, config: PoseConfig) -> None:
        """Set the reference to this patient.

        Without a body, the radii are those of the field of view. Without labels, relative heights
        refer to the full volume. With `config.symmetry`, a start grid from moments is first rotated
        and shifted to maximise the symmetry of the masks, so that the patient is upright.
        """
        assert subject.body is not None
        base_mm = float(base.spacing_mm[1]) * base.shape[2]
        radii = subject.body.whole.radii_mm
        if not bool(radii.isfinite().all()):
            radii = torch.full((2,), base_mm / 2, dtype=torch.float64)
        self.radii_mm.copy_(radii)
        self.field_mm.fill_(
            base_mm if config.body_width is None else 2 * float(radii[0]) / config.body_width
        )
        side = config.localizer.size
        start = start_grid(subject, base, config, self)
        if config.symmetry and config.start == "moments":
            start = upright(subject, start, config, self.masks.shape[1])
        for level, k in enumerate(self._levels_of(subject, config)):
            grid = start.slices(k, k + 1).resized((1, side, side))
            assert subject.masks is not None
            mask = resample(subject.masks.slices(k, k + 1), grid).data / 255.0
            self.masks[level].copy_((mask[: self.masks.shape[1], 0] * 255).round())
        self.case = subject.id

    @property
    def is_known(self) -> bool:
        """Whether the reference has been set or loaded."""
        return bool(self.masks.any())

    def targets(self, levels: Sequence[int]) -> Tensor:
        """(n, masks, size, size) float 0..1: the masks at these levels."""
        return self.masks[list(levels)] / 255.0

    def level(self, subject: Subject, k: int) -> int:
        """The level at the relative height of slice `k`."""
        first, last = subject.labelled_or_all
        height = (k - first + 0.5) / (last - first + 1)
        fraction = (height + _MARGIN) / (1 + 2 * _MARGIN)
        count = len(self.masks)
        return min(max(int(fraction * count), 0), count - 1)

    def _levels_of(self, subject: Subject, config: PoseConfig) -> list[int]:
        """The slice of the reference at each level."""
        if config.reference_mode == "slice":
            return [subject.fullest]
        first, last = subject.labelled_or_all
        count, slices = len(self.masks), subject.image.grid.shape[0]
        heights = [(level + 0.5) / count * (1 + 2 * _MARGIN) - _MARGIN for level in range(count)]
        nearest = [round(first + h * (last - first + 1) - 0.5) for h in heights]
        return [min(max(k, 0), slices - 1) for k in nearest]


def start_grid(subject: Subject, base: Grid, config: PoseConfig, reference: Reference) -> Grid:
    """The grid before the pose: (slices, size, size), slice-wise.

    The base grid ("identity"); or rotated, centred and scaled to the reference's size according to
    the moments of the body. Moments of the volume centre each slice on the body's axis, which may
    be oblique.

    Args:
        subject: a patient.
        base: its base grid, centred on the body.
        config: of the pose.
        reference: for the size.
    """
    size = base.shape[2]
    if config.start == "identity":
        return base.slicewise()
    assert subject.body is not None
    moments = subject.body.per_slice if config.moments == "slice" else _along_axis(subject.body)
    long, short = (float(radius) for radius in reference.radii_mm)
    grid = normalized(
        subject.image.grid,
        moments,
        radii_mm=(long, short),
        field_mm=float(reference.field_mm),
        size=size,
        scales=config.localizer.scales,
    )
    return grid.slicewise()


@torch.no_grad()
def matched_levels(
    subject: Subject, start: Grid, config: PoseConfig, reference: Reference
) -> list[int]:
    """The level of the reference with which each slice of a patient is compared in training.

    That at the same relative height in the labelled region; without labels, that with which the
    slice agrees best on the start grid.

    Args:
        subject: a patient.
        start: its grid before the pose, slice-wise.
        config: of the pose.
        reference: set to a patient.
    """
    if subject.labels is not None:
        return [reference.level(subject, k) for k in range(subject.slices)]
    side, known = config.localizer.size, reference.targets(range(len(reference.masks)))
    assert subject.masks is not None
    own = masks_on(subject.masks, start.resized((start.shape[0], side, side)), known.shape[1])
    return best_levels(own.to(known.device), known, config)


def _along_axis(body: Body) -> Moments:
    """Moments per slice: angle and radii of the volume, centred on the body's axis.

    The axis is the straight line fitted to the slices' centroids by least squares, weighted by
    area; with fewer than two slices of body, it passes through the volume's centre.
    """
    volume, per_slice = body.whole, body.per_slice
    area = per_slice.radii_mm.prod(-1).nan_to_num(0.0)
    height = torch.arange(len(area), dtype=area.dtype)
    height = height - (area * height).sum() / area.sum().clamp(min=1e-12)
    moment = (area * height.square()).sum().clamp(min=1e-12)
    slope = ((area * height)[:, None] * per_slice.centre_mm).sum(0) / moment
    count = len(area)
    return Moments(
        volume.centre_mm + height[:, None] * slope,
        volume.angle_rad.expand(count),
        volume.radii_mm.expand(count, 2),
    )


def medoid(
    subjects: Sequence[Subject],
    bases: Sequence[Grid],
    among: Sequence[int] | None = None,
) -> int:
    """Index of the patient with the largest mean overlap of the centred bodies at kidney level.

    Args:
        subjects: patients.
        bases: their base grids.
        among: indices of the patients to choose from; None: all.
    """
    masks = []
    for subject, base in zip(subjects, bases, strict=True):
        k = subject.fullest
        grid = base.slices(k, k + 1).resized((1, _COMPARED, _COMPARED))
        assert subject.masks is not None
        masks.append(resample(subject.masks.slices(k, k + 1), grid).data[:1, 0] / 255.0)
    stacked = torch.stack(masks).cpu()
    scores = [float(soft_dice(stacked, mask[None]).mean()) for mask in stacked]
    return max(range(len(scores)) if among is None else among, key=scores.__getitem__)


def _middle_aged(subjects: Sequence[Subject]) -> list[int] | None:
    """Indices of the patients between the quartiles of the known ages; None if they say little.

    That is if fewer than half of the ages are known: the few patients who have one are not the
    average of the others.

    Source: La Barbera et al., ISBI 2021, section 4, chooses "among patients aged 2 years, who
    represent the average"; the middle half is ours.
    """
    ages = sorted(s.age_years for s in subjects if s.age_years is not None)
    if 2 * len(ages) < len(subjects):
        return None
    low, high = ages[len(ages) // 4], ages[-1 - len(ages) // 4]
    return [
        n for n, s in enumerate(subjects) if s.age_years is not None and low <= s.age_years <= high
    ]


def choose_reference(subjects: Sequence[Subject], bases: Sequence[Grid], name: str | None) -> int:
    """Index of the case with this name, or of the medoid if it is None.

    Where the ages of at least half of the patients are known, the medoid is one of those in the
    middle of the ages.

    Raises:
        UsageError: "unknown-case": it is not a training case.
    """
    if name is None:
        return medoid(subjects, bases, among=_middle_aged(subjects))
    for number, subject in enumerate(subjects):
        if subject.id == name:
            return number
    raise UsageError(
        f"the reference '{name}' is not among the training cases",
        code="unknown-case",
        next_step="Set pose.reference to a training case, or leave it out.",
    )
