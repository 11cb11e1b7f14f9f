"""A scan made ready for any method: the same way in training and in inference."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kidseg.body import Moments, body_mask, moments
from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume, binned, binned_grid, resample
from kidseg.intensity import Normalisation, Scaling, scalings
from kidseg.plan.nonzero import nonzero_box, nonzero_region

__all__ = ["Body", "BodyMasks", "Material", "Subject", "adapted", "masks_on", "prepare"]

# Semi-axes of an adult's trunk, geometric mean: where the least volume of bone is stated.
_ADULT_RADIUS_MM = 150.0
# Masks need no finer pixels: the body's shape is found at this size, and bone is blurred.
_MASK_MM = 2.0


@dataclass(frozen=True, kw_only=True)
class BodyMasks:
    """How the masks of body and bone are made.

    Attributes:
        bone_hu: what is denser than this inside the body is bone (or contrast medium).
        bone_least_ml: smaller pieces of it are dropped; at the size of an adult's body.
        bone_blur_mm: SD of the blur of the bone mask in its planes.
    """

    bone_hu: float
    bone_least_ml: float
    bone_blur_mm: float


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a method asks of a subject.

    Attributes:
        pixel_mm: of the finest grid that it looks at; finer pixels of a scan are averaged as far as
            they stay no coarser than this. None keeps the scan's own.
        masks: of body and bone, where the method uses them; they need a CT.
    """

    pixel_mm: float | None = None
    masks: BodyMasks | None = None

    def factor(self, grid: Grid) -> int:
        """So many pixels along each side become one."""
        if self.pixel_mm is None:
            return 1
        return max(1, int(self.pixel_mm / float(grid.spacing_mm[1:].max()) + 1e-6))


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """The patient's body in a CT, on the image's grid.

    Attributes:
        whole: moments over the volume.
        per_slice: moments of each slice.
        box: first and last row, first and last column with body in any slice; None: no body.
    """

    whole: Moments
    per_slice: Moments
    box: tuple[int, int, int, int] | None

    @property
    def radius_mm(self) -> float:
        """Geometric mean of the semi-axes; NaN without a body."""
        return float(self.whole.radii_mm.prod().sqrt())


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A scan on its own slices, and what is known of it; no method's grids.

    Attributes:
        id: of the case, or path of the scan.
        image: (channels, slices, rows, columns), as scanned, or averaged over blocks of pixels (see
            `Material`); HU as int16 for CT.
        scalings: how each channel is normalised.
        body: None where the image is no CT.
        masks: (2, ...) uint8 on the image's slices, 0..255 for 0..1: body, and blurred bone, in
            pixels of up to 2 mm where the image's are finer; None where they were not asked for.
        labels: (1, ...) uint8 on the image's slices: 0 background, then the classes; None if
            unknown.
        ignore: (1, ...) bool, where labels do not count; None if all do.
        counts: (slices, 256) voxels of each label in each slice; made from `labels` if not given.
    """

    id: str
    image: Volume
    scalings: tuple[Scaling, ...]
    body: Body | None = None
    masks: Volume | None = None
    labels: Volume | None = None
    ignore: Volume | None = None
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 256), dtype=np.int64))

    def __post_init__(self) -> None:
        if self.labels is not None and not len(self.counts):
            object.__setattr__(self, "counts", _counts(self.labels))

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.image.grid.shape[0]

    @cached_property
    def labelled_or_all(self) -> tuple[int, int]:
        """First and last slice with a label; of all slices, if none has one."""
        there = np.flatnonzero(self.counts[:, 1:].any(1))
        return (int(there[0]), int(there[-1])) if len(there) else (0, self.slices - 1)

    @cached_property
    def fullest(self) -> int:
        """The slice with most labelled voxels; the middle one, if there are none."""
        totals = self.counts[:, 1:].sum(1)
        return int(totals.argmax()) if totals.any() else self.slices // 2

    def shown(self, classes: int) -> np.ndarray:
        """(slices, classes - 1) bool: which labels each slice shows."""
        if not len(self.counts):
            return np.zeros((self.slices, classes - 1), dtype=bool)
        return self.counts[:, 1:classes] > 0

    def with_labels(self, labels: Volume) -> Subject:
        """The same scan with these labels, on its slices."""
        return replace(self, labels=labels, ignore=None, counts=_counts(labels))


def prepare(
    scan: Volume,
    material: Material,
    channels: tuple[Normalisation, ...],
    *,
    name: str,
    labels: Volume | None = None,
    ignore_label: int | None = None,
) -> Subject:
    """Make a scan ready.

    Args:
        scan: (channels, slices, rows, columns), HU for CT, volumetric, canonical.
        material: what is asked for.
        channels: of the plan.
        name: of the case.
        labels: (1, ...) uint8 on the scan's grid. Where pixels are averaged, a block takes the
            label that most of its pixels have, the lower one on a tie.
        ignore_label: of voxels that do not count.

    Raises:
        InputError: "wrong-channels": another number than the plan has; "bad-values": of a
            channel of colours; "not-ct": masks of a body
            are asked for, and the first channel is no CT.
    """
    _check_channels(scan, material, channels, name)
    factor = material.factor(scan.grid)
    image = _compact(scan, channels)
    if factor > 1:  # of what a store keeps, so that its blocks are these to the bit
        image = _compact(binned(image, factor), channels)
    body = masks = None
    if channels[0].scheme == "ct":
        hu = Volume(image.data[:1], image.grid)
        mask = body_mask(hu)
        body = _body(mask)
        masks = None if material.masks is None else _masks(hu, mask, body, material.masks)
    here, ignore = None, None
    if labels is not None:
        here = _binned_labels(labels, factor)
        if ignore_label is not None and bool((here.data == ignore_label).any()):
            ignore = Volume(here.data == ignore_label, here.grid)
            here = Volume(here.data.masked_fill(ignore.data, 0), here.grid)
    return Subject(
        id=name,
        image=image,
        scalings=_scalings(scan, channels, name),
        body=body,
        masks=masks,
        labels=here,
        ignore=ignore,
    )


def adapted(
    subject: Subject, material: Material, channels: tuple[Normalisation, ...], original: Grid
) -> Subject:
    """A subject that was prepared for other methods, as a method asks for it.

    Args:
        subject: kept at the scan's own pixels, or at those that are asked for.
        material: what is asked for.
        channels: of the plan.
        original: grid of the scan.

    Raises:
        InputError: "too-coarse": it was averaged over more, or other, blocks; "not-ct".
    """
    had = round(float(subject.image.grid.spacing_mm[2] / original.spacing_mm[2]))
    wanted = material.factor(original)
    if had == wanted and (material.masks is None or subject.masks is not None):
        return subject
    if had not in (1, wanted):
        raise InputError(
            f"it holds blocks of {had} x {had} pixels, and blocks of {wanted} x {wanted} are asked"
            " for",
            path=subject.id,
            code="too-coarse",
            next_step="Make a store with these settings, or one of the scans' own pixels.",
        )
    labels, ignored = subject.labels, None
    if labels is not None and subject.ignore is not None:
        ignored = int(labels.data.max()) + 1
        labels = Volume(labels.data.masked_fill(subject.ignore.data, ignored), labels.grid)
    step = material if had == 1 else replace(material, pixel_mm=None)
    made = prepare(
        subject.image, step, channels, name=subject.id, labels=labels, ignore_label=ignored
    )
    return replace(made, scalings=subject.scalings)


def masks_on(subject: Subject, grid: Grid) -> Tensor:
    """(slices, 2, rows, columns) float 0..1: body and bone on a grid."""
    assert subject.masks is not None
    return resample(subject.masks, grid).data.transpose(0, 1) / 255.0


def _check_channels(
    scan: Volume, material: Material, channels: tuple[Normalisation, ...], name: str
) -> None:
    if scan.channels != len(channels):
        raise InputError(
            f"it has {scan.channels} channel(s), and {len(channels)} are asked for:"
            f" {', '.join(channel.channel for channel in channels)}",
            path=name,
            code="wrong-channels",
            next_step="Give one image per channel.",
        )
    if material.masks is not None and (len(channels) > 1 or channels[0].scheme != "ct"):
        named = ", ".join(channel.channel for channel in channels)
        raise InputError(
            f"this method takes one channel of CT, not {named}",
            path=name,
            code="not-ct",
            next_step="Name the channel 'CT' in dataset.json if it holds Hounsfield units; methods"
            " 'plain' and 'plain3d' take any channels.",
        )


def _scalings(scan: Volume, channels: tuple[Normalisation, ...], name: str) -> tuple[Scaling, ...]:
    """Of the smallest box around what is not 0, as nnU-Net after its crop."""
    if all(channel.scheme == "ct" for channel in channels):
        return scalings(scan.data[:, :1, :1, :1], channels)
    start, shape = nonzero_box(scan)
    box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    data = scan.data[(slice(None), *box)]
    inside = None
    if any(channel.inside_only for channel in channels):
        inside = nonzero_region(data)
    try:
        return scalings(data, channels, inside)
    except ValueError as error:
        raise InputError(
            str(error),
            path=name,
            code="bad-values",
            next_step="Name the channel after what it holds in dataset.json.",
        ) from error


def _compact(image: Volume, channels: tuple[Normalisation, ...]) -> Volume:
    """HU as whole numbers in int16; other values too where that changes none, else float32."""
    data = image.data
    if all(channel.scheme == "ct" for channel in channels):
        return Volume(data.round().clamp(-32768, 32767).to(torch.int16), image.grid)
    short = data.clamp(-32768, 32767).to(torch.int16)
    if torch.equal(short.to(data.dtype), data):
        return Volume(short, image.grid)
    return image.astype(torch.float32)


def _binned_labels(labels: Volume, factor: int) -> Volume:
    """The label of most pixels of each block; of several the lowest."""
    if factor == 1:
        return labels
    out: list[Tensor] = []
    for k in range(labels.grid.shape[0]):
        plane = labels.slices(k, k + 1)
        numbers = torch.bincount(plane.data.flatten()).nonzero()[:, 0].tolist()
        chosen, most = None, None
        for number in numbers:
            here = Volume((plane.data == number).to(torch.float32), plane.grid)
            share = binned(here, factor).data
            if chosen is None or most is None:
                chosen, most = torch.full_like(share, number, dtype=torch.uint8), share
            else:
                chosen[share > most] = number
                most = torch.maximum(most, share)
        assert chosen is not None
        out.append(chosen)
    data = torch.cat(out, dim=1)
    return Volume(data, binned_grid(labels.grid, factor))


def _body(mask: Volume) -> Body:
    there = mask.data[0].any(0)
    rows, columns = (there.any(axis).nonzero()[:, 0] for axis in (1, 0))
    box = None
    if len(rows):
        box = (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))
    return Body(whole=moments(mask, per="volume"), per_slice=moments(mask), box=box)


def _masks(image: Volume, mask: Volume, body: Body, how: BodyMasks) -> Volume:
    from scipy import ndimage

    factor = max(1, int(_MASK_MM / float(image.grid.spacing_mm[1:].max()) + 1e-6))
    inside = binned(mask.astype(torch.float32), factor)
    dense = (image.data > how.bone_hu) & mask.data
    bony = (binned(Volume(dense.float(), image.grid), factor).data > 0.5)[0].numpy()
    part = (body.radius_mm / _ADULT_RADIUS_MM) ** 3 if np.isfinite(body.radius_mm) else 1.0
    least = how.bone_least_ml * part / float(inside.grid.voxel_ml)
    pieces, count = ndimage.label(bony)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    kept = sizes >= least
    kept[0] = False
    spread = [0.0, *(how.bone_blur_mm / inside.grid.spacing_mm[1:]).tolist()]
    bone = ndimage.gaussian_filter(kept[pieces].astype(np.float32), spread, mode="constant")
    both = torch.stack([inside.data[0], torch.from_numpy(bone)])
    return Volume((both * 255.0).round().to(torch.uint8), inside.grid)


def _counts(labels: Volume) -> np.ndarray:
    planes = labels.data[0].flatten(1)
    return np.stack([np.bincount(plane.numpy(), minlength=256) for plane in planes])
