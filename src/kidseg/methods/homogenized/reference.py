"""The reference patient, whose pose and size the others are brought to."""

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
from kidseg.methods.homogenized.registration import upright
from kidseg.methods.homogenized.scene import MASKS

__all__ = ["Reference", "chosen", "medoid", "start_grid"]

# A reference volume is kept from half its labelled height below to half above the labelled region.
_BEYOND = 0.5


class Reference(nn.Module):
    """Masks of the reference patient on its own start grid, and its size. Nothing here is trained.

    Attributes:
        masks: (levels, masks, size, size) uint8, 0..255: the reference at relative heights; one
            level, that with most kidney and tumour, in mode "slice".
        radii_mm: (2,) semi-axes of its body.
        field_mm: () side of the field in which it is seen.
        case: its id; empty if it was loaded from a model.
    """

    masks: Tensor
    radii_mm: Tensor
    field_mm: Tensor

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        levels = config.levels if config.reference_mode == "volume" else 1
        side = config.localizer.size
        shape = (levels, MASKS[config.target], side, side)
        self.register_buffer("masks", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("radii_mm", torch.ones(2, dtype=torch.float64))
        self.register_buffer("field_mm", torch.ones((), dtype=torch.float64))
        self.case = ""

    def adopt(self, subject: Subject, base: Grid, config: PoseConfig) -> None:
        """Become this patient.

        Without a body its radii are taken as those of the field. Without labels, its slices count
        from the first to the last. With `config.symmetry` a start by moments is first turned and
        moved to where its masks are most symmetric: it stands upright.
        """
        assert subject.body is not None
        base_mm = float(base.spacing_mm[1]) * base.shape[2]
        radii = subject.body.whole.radii_mm
        if not bool(radii.isfinite().all()):
            radii = torch.full((2,), base_mm / 2, dtype=torch.float64)
        self.radii_mm.copy_(radii)
        self.field_mm.fill_(base_mm if config.fill is None else 2 * float(radii[0]) / config.fill)
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
        """Has it become a patient?"""
        return bool(self.masks.any())

    def targets(self, levels: Sequence[int]) -> Tensor:
        """(n, masks, size, size) float 0..1 at these levels."""
        return self.masks[list(levels)] / 255.0

    def level(self, subject: Subject, k: int) -> int:
        """The level at the relative height of slice `k`."""
        first, last = subject.labelled_or_all
        height = (k - first + 0.5) / (last - first + 1)
        part = (height + _BEYOND) / (1 + 2 * _BEYOND)
        count = len(self.masks)
        return min(max(int(part * count), 0), count - 1)

    def _levels_of(self, subject: Subject, config: PoseConfig) -> list[int]:
        """The slice of the reference at each level."""
        if config.reference_mode == "slice":
            return [subject.fullest]
        first, last = subject.labelled_or_all
        count, slices = len(self.masks), subject.image.grid.shape[0]
        heights = [(level + 0.5) / count * (1 + 2 * _BEYOND) - _BEYOND for level in range(count)]
        nearest = [round(first + h * (last - first + 1) - 0.5) for h in heights]
        return [min(max(k, 0), slices - 1) for k in nearest]


def start_grid(subject: Subject, base: Grid, config: PoseConfig, reference: Reference) -> Grid:
    """Where the pose is sought from: (slices, size, size), slice-wise.

    The scan as it lies ("identity"), or upright, centred and in the reference's size by the moments
    of its body. A volume's slices are centred on the body's axis, which a patient who lies aslant
    has aslant.

    Args:
        subject: a patient.
        base: its grid before any pose, centred on the body.
        config: of the pose.
        reference: for the size.
    """
    size = base.shape[2]
    if config.start == "identity":
        return base.slicewise()
    assert subject.body is not None
    own = subject.body.per_slice if config.moments == "slice" else _along_axis(subject.body)
    long, short = (float(radius) for radius in reference.radii_mm)
    grid = normalized(
        subject.image.grid,
        own,
        radii_mm=(long, short),
        field_mm=float(reference.field_mm),
        size=size,
        scales=config.localizer.scales,
    )
    return grid.slicewise()


def _along_axis(body: Body) -> Moments:
    """Of each slice: the volume's angle and radii, and the centre where the body's axis meets it.

    The axis is the straight line with the least squared distance, weighted by area, from the
    slices' centroids; with fewer than two slices of body, the volume's centre.
    """
    own, each = body.whole, body.per_slice
    area = each.radii_mm.prod(-1).nan_to_num(0.0)
    height = torch.arange(len(area), dtype=area.dtype)
    height = height - (area * height).sum() / area.sum().clamp(min=1e-12)
    moment = (area * height.square()).sum().clamp(min=1e-12)
    slope = ((area * height)[:, None] * each.centre_mm).sum(0) / moment
    count = len(area)
    return Moments(
        own.centre_mm + height[:, None] * slope,
        own.angle_rad.expand(count),
        own.radii_mm.expand(count, 2),
    )


def medoid(subjects: Sequence[Subject], bases: Sequence[Grid], size: int = 64) -> int:
    """The patient whose body, centred, overlaps best with the others' at kidney level."""
    masks = []
    for subject, base in zip(subjects, bases, strict=True):
        k = subject.fullest
        grid = base.slices(k, k + 1).resized((1, size, size))
        assert subject.masks is not None
        masks.append(resample(subject.masks.slices(k, k + 1), grid).data[:1, 0] / 255.0)
    stacked = torch.stack(masks).cpu()
    scores = [float(soft_dice(stacked, mask[None]).mean()) for mask in stacked]
    return max(range(len(scores)), key=scores.__getitem__)


def chosen(subjects: Sequence[Subject], bases: Sequence[Grid], name: str | None) -> int:
    """Number of the case of this name, or of the medoid.

    Raises:
        UsageError: "unknown-case": it is not among the training cases.
    """
    if name is None:
        return medoid(subjects, bases)
    for number, subject in enumerate(subjects):
        if subject.id == name:
            return number
    raise UsageError(
        f"the reference '{name}' is not among the training cases",
        code="unknown-case",
        next_step="Name one of them in pose.reference, or none.",
    )
