"""A scan made ready for System A's methods: the same way in training and in inference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kidseg.body import Moments, body_mask, moments
from kidseg.config import ViewConfig
from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume, binned, boxed, resample
from kidseg.plan import Plan

__all__ = [
    "Subject",
    "masks_at",
    "pixel_mm",
    "prepare",
]

# Semi-axes of an adult's trunk, geometric mean: where the least volume of bone is stated.
_ADULT_RADIUS_MM = 150.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A scan, what is known of its body, and the grids on which networks look at it.

    Attributes:
        id: of the case, or path of the scan.
        image: (1, slices, rows, columns) int16 HU, as scanned but averaged over blocks of pixels
            where these are at least twice as fine as the network's.
        masks: (2, ...) uint8 on the image's grid, 0..255 for 0..1: body, and blurred bone.
        body: moments of the body mask over the volume, on the image's grid.
        body_per_slice: the same for each slice.
        base: (slices, size, size), centred on the body, slices as scanned.
        whole: `base` with rows and columns added evenly until it holds the body.
        labels: (1, ...) uint8 on `whole`: 0 background, then the classes; None if unknown.
        ignore: (1, ...) bool on `whole`: pixels that do not count; None if all do.
    """

    id: str
    image: Volume
    masks: Volume
    body: Moments
    body_per_slice: Moments
    base: Grid
    whole: Grid
    labels: Volume | None = None
    ignore: Volume | None = None

    @cached_property
    def labelled_or_all(self) -> tuple[int, int]:
        """First and last slice with a label; of all slices, if none has one."""
        if self.labels is not None:
            there = (self.labels.data[0] > 0).flatten(1).any(1).nonzero()[:, 0]
            if len(there):
                return int(there[0]), int(there[-1])
        return 0, self.image.grid.shape[0] - 1

    @cached_property
    def fullest(self) -> int:
        """The slice with most labelled pixels; the middle one, if there are none."""
        if self.labels is not None and bool((self.labels.data > 0).any()):
            return int((self.labels.data[0] > 0).flatten(1).sum(1).argmax())
        return self.image.grid.shape[0] // 2

    def shown(self, classes: int) -> np.ndarray:
        """(slices, classes - 1) bool: which labels each slice shows."""
        slices = self.image.grid.shape[0]
        if self.labels is None:
            return np.zeros((slices, classes - 1), dtype=bool)
        flat = self.labels.data[0].flatten(1)
        return torch.stack([(flat == c).any(1) for c in range(1, classes)], dim=1).numpy()


def pixel_mm(config: ViewConfig, plan: Plan) -> float:
    """Pixel of the base grid: as configured; or the plan's, coarser if the field asks for it."""
    if config.pixel_mm is not None:
        return config.pixel_mm
    planned = plan.configurations["2d"]
    pairs = zip(planned.median_shape, planned.spacing_mm, strict=True)
    field_mm = max(n * s for n, s in pairs)
    return max(*planned.spacing_mm, field_mm / config.size)


def prepare(
    scan: Volume,
    config: ViewConfig,
    plan: Plan,
    *,
    name: str,
    multiple: int,
    labels: Volume | None = None,
    ignore_label: int | None = None,
) -> Subject:
    """Make a scan ready.

    Args:
        scan: (1, slices, rows, columns) HU, volumetric, canonical.
        config: of the base grid and the masks.
        plan: of the training set.
        name: of the case.
        multiple: sides of `Subject.whole` exceed the base grid's by multiples of it.
        labels: (1, ...) uint8 on the scan's grid.
        ignore_label: of voxels that do not count.

    If nothing is denser than air, the base grid is centred on the scan and `whole` holds all of it.

    Raises:
        InputError: "not-ct": the plan is for several channels, or for something other than HU.
    """
    if len(plan.channels) != 1 or plan.channels[0].scheme != "ct":
        channels = ", ".join(channel.channel for channel in plan.channels)
        raise InputError(
            f"this method takes one channel of CT, not {channels}",
            path=name,
            code="not-ct",
            next_step="Name the channel 'CT' in dataset.json if it holds Hounsfield units.",
        )
    pixel = pixel_mm(config, plan)
    coarse = binned(scan, max(1, int(pixel / float(scan.grid.spacing_mm[1:].max()) + 1e-6)))
    image = Volume(coarse.data.round().clamp(-32768, 32767).to(torch.int16), coarse.grid)
    body = body_mask(image)
    own = moments(body, per="volume")
    masks = _masks(image, body, own, config)
    base = _centred(image.grid, own.centre_mm, (config.size, config.size), pixel)
    whole = _grown(base, body, multiple)
    on_whole, ignore = None, None
    if labels is not None:
        on_whole = resample(labels, whole, mode="nearest")
        if ignore_label is not None and bool((on_whole.data == ignore_label).any()):
            ignore = Volume(on_whole.data == ignore_label, whole)
            on_whole = Volume(on_whole.data.masked_fill(ignore.data, 0), whole)
    return Subject(
        id=name,
        image=image,
        masks=masks,
        body=own,
        body_per_slice=moments(body),
        base=base,
        whole=whole,
        labels=on_whole,
        ignore=ignore,
    )


def masks_at(subject: Subject, grid: Grid, k: int | None = None) -> Volume:
    """(2, *grid.shape) float 0..1 on the grid; of slice `k` alone, if that is where it lies."""
    masks = subject.masks if k is None else subject.masks.slices(k, k + 1)
    found = resample(masks, grid)
    return Volume(found.data / 255.0, found.grid)


def _centred(grid: Grid, centre: Tensor, sides: tuple[int, int], pixel: float) -> Grid:
    """The scan's slices, `sides` pixels (rows, columns) around a place (x, y) from its middle."""
    spacing = grid.spacing_mm
    rows, columns = sides
    middle = torch.tensor([(n - 1) / 2 for n in grid.shape], dtype=torch.float64)
    middle = middle + torch.stack([torch.zeros(()), *(centre.flip(0) / spacing[1:])])
    half = torch.tensor([grid.shape[0], rows * pixel, columns * pixel], dtype=torch.float64) / 2
    half = half / torch.cat([torch.ones(1), spacing[1:]])
    return boxed(grid, middle - half, middle + half, (grid.shape[0], rows, columns))


def _grown(base: Grid, body: Volume, multiple: int) -> Grid:
    """`base` with rows and columns added on both sides, by multiples, until the body is inside."""
    there = body.data[0].any(0)
    if not there.any():
        there = torch.ones_like(there)
    added = []
    for axis in (1, 2):
        line = there.any(2 - axis).nonzero()[:, 0]
        ends = torch.zeros((2, 3), dtype=torch.float64)
        ends[0, axis], ends[1, axis] = float(line[0]) - 0.5, float(line[-1]) + 0.5
        at = base.index(body.grid.mm(ends))[:, axis]
        beyond = max(-0.5 - float(at.min()), float(at.max()) - (base.shape[axis] - 0.5), 0.0)
        added.append(-(-2 * beyond // multiple) * multiple)
    rows, columns = (int(n) for n in added)
    start = (0, -(rows // 2), -(columns // 2))
    return base.crop(start, (base.shape[0], base.shape[1] + rows, base.shape[2] + columns))


def _masks(image: Volume, body: Volume, own: Moments, config: ViewConfig) -> Volume:
    from scipy import ndimage

    grid = image.grid
    dense = ((image.data > config.bone_hu) & body.data)[0].numpy()
    radius = own.radii_mm.prod().sqrt()
    part = float(radius / _ADULT_RADIUS_MM) ** 3 if bool(radius.isfinite()) else 1.0
    least = config.bone_least_ml * part / float(grid.voxel_ml)
    pieces, count = ndimage.label(dense)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    kept = sizes >= least
    kept[0] = False
    spread = [0.0, *(config.bone_blur_mm / grid.spacing_mm[1:]).tolist()]
    bone = ndimage.gaussian_filter(kept[pieces].astype(np.float32), spread, mode="constant")
    both = torch.stack([body.data[0].float(), torch.from_numpy(bone)])
    return Volume((both * 255.0).round().to(torch.uint8), grid)
