"""Preprocess a scan for any method, in the same way for training and inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kidseg.body import Moments, body_mask, moments
from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume, binned, binned_grid
from kidseg.intensity import Normalisation, Scaling, scalings
from kidseg.plan.nonzero import nonzero_box, nonzero_region

__all__ = ["Body", "BodyMasks", "Material", "Subject", "adapt", "not_ct", "prepare"]

# Geometric mean of the semi-axes of an adult's trunk, for which `bone_least_ml` is stated.
_ADULT_RADIUS_MM = 150.0
# Pixel size of the masks: fine enough for the shape of the body, and bone is blurred anyway.
_MASK_MM = 2.0
# Poles of kidneys and the ends of tumours: below this fraction of the patient's largest section.
_SMALL = 0.25


@dataclass(frozen=True, kw_only=True)
class BodyMasks:
    """How the masks of body and bone are computed.

    Attributes:
        bone_hu: threshold for bone (or contrast medium) inside the body.
        bone_least_ml: smaller connected components are removed; for an adult-sized body.
        bone_blur_mm: SD of the in-plane Gaussian blur of the bone mask.
    """

    bone_hu: float
    bone_least_ml: float
    bone_blur_mm: float


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a method requires of preprocessed subjects.

    Attributes:
        pixel_mm: pixel size of the method's finest grid; a finer scan is averaged over blocks of
            pixels, up to this size. None keeps the scan's pixels.
        masks: body and bone masks, if the method uses them; they require CT.
        exact: HU between whole numbers are kept, where pixels are not averaged.
    """

    pixel_mm: float | None = None
    masks: BodyMasks | None = None
    exact: bool = False

    def factor(self, grid: Grid) -> int:
        """Number of pixels along each side of a block that is averaged."""
        if self.pixel_mm is None:
            return 1
        return max(1, int(self.pixel_mm / float(grid.spacing_mm[1:].max()) + 1e-6))


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """The patient's body in a CT, on the image's grid.

    Attributes:
        whole: moments over the volume.
        per_slice: moments of each slice.
        box: first and last row, first and last column of the body over all slices; None: no body.
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
    """A preprocessed scan on its own slices; independent of any method's grids.

    Attributes:
        id: of the case, or path of the scan.
        image: (channels, slices, rows, columns), as scanned, or averaged over blocks of pixels (see
            `Material`); HU as int16 for CT.
        scalings: normalisation of each channel.
        body: None if the image is not CT.
        masks: (2, ...) uint8 on the image's slices, 0..255 for 0..1: body, and blurred bone, with
            pixels of up to 2 mm if the image's are finer; None if not required.
        labels: (1, ...) uint8 on the image's slices: 0 background, then the classes; None if
            unknown.
        ignore: (1, ...) bool, True for voxels to ignore; None if there are none.
        counts: (slices, 256) voxels of each label in each slice; computed from `labels` if not
            given.
        age_years: of the patient, if known.
        renal: labels of kidneys, tumours and cysts, which tell the level of the kidneys; empty: all
            labels.
    """

    id: str
    image: Volume
    scalings: tuple[Scaling, ...]
    body: Body | None = None
    masks: Volume | None = None
    labels: Volume | None = None
    ignore: Volume | None = None
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 256), dtype=np.int64))
    age_years: float | None = None
    renal: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.labels is not None and not len(self.counts):
            object.__setattr__(self, "counts", _counts(self.labels))

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.image.grid.shape[0]

    @cached_property
    def counted(self) -> np.ndarray:
        """(slices,) bool: which slices have any voxel that is not to be ignored."""
        if self.ignore is None:
            return np.ones(self.slices, dtype=bool)
        counted: np.ndarray = ~self.ignore.data[0].flatten(1).all(1).numpy()
        return counted

    @property
    def renal_voxels(self) -> np.ndarray:
        """(slices,) voxels in each slice that have one of the `renal` labels; (0,) if the labels
        are not known.
        """
        voxels: np.ndarray = self.counts[:, list(self.renal) or slice(1, None)].sum(1)
        return voxels

    def is_renal(self, labels: Volume) -> Tensor:
        """Where labels, of any shape, have one of the `renal` ones: bool, of the same shape."""
        if not self.renal:
            return labels.data > 0
        return torch.isin(labels.data, torch.tensor(self.renal, dtype=labels.data.dtype))

    @cached_property
    def labelled_or_all(self) -> tuple[int, int]:
        """First and last slice with `renal` labels; first and last of all without any."""
        labelled = np.flatnonzero(self.renal_voxels)
        return (int(labelled[0]), int(labelled[-1])) if len(labelled) else (0, self.slices - 1)

    @cached_property
    def fullest(self) -> int:
        """The slice with the most voxels of `renal` labels; the middle slice without any."""
        return int(self.renal_voxels.argmax()) if self.renal_voxels.any() else self.slices // 2

    def shown(self, groups: Sequence[Sequence[int]]) -> np.ndarray:
        """(slices, groups) bool: which slices contain a label of each group of labels."""
        if not len(self.counts):
            return np.zeros((self.slices, len(groups)), dtype=bool)
        return np.stack([self.counts[:, list(group)].any(1) for group in groups], axis=1)

    def small_sections(self, tumours: Sequence[int]) -> np.ndarray:
        """(slices,) bool: which have less than a quarter of the `renal_voxels` of the `fullest`
        slice, but some; or the labels of these tumours and no other `renal` ones.
        """
        if not len(self.counts):
            return np.zeros(self.slices, dtype=bool)
        labelled = self.renal_voxels
        of_tumours = self.counts[:, list(tumours)].sum(1)
        small = labelled < _SMALL * labelled.max()
        found: np.ndarray = (labelled > 0) & (small | (of_tumours == labelled))
        return found

    def with_labels(self, labels: Volume) -> Subject:
        """A copy with other labels, which lie on the image's voxels."""
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
    """Preprocess a scan.

    Args:
        scan: (channels, slices, rows, columns), HU for CT, volumetric, canonical.
        material: requirements of the method.
        channels: of the plan.
        name: of the case.
        labels: (1, ...) uint8 on the scan's grid. Where pixels are averaged, a block gets its most
            frequent label, the lowest in a tie.
        ignore_label: label of voxels to ignore.

    Raises:
        InputError: "wrong-channels": the number of channels differs from the plan's; "bad-values":
            the values of a colour channel are invalid; "not-ct": masks are required, but the image
            is not a single channel of CT.
    """
    _check_channels(scan, material, channels, name)
    factor = material.factor(scan.grid)
    image = _compact(scan, channels, exact=material.exact and factor == 1)
    if factor > 1:  # binned after the conversion, so that a store gives bit-identical blocks
        image = _compact(binned(image, factor), channels)
    body = masks = None
    if channels[0].scheme == "ct":
        hu = Volume(image.data[:1], image.grid)
        mask = body_mask(hu)
        body = _body(mask)
        masks = None if material.masks is None else _masks(hu, mask, body, material.masks)
    binned_labels, ignore = None, None
    if labels is not None:
        binned_labels = _binned_labels(labels, factor)
        if ignore_label is not None and bool((binned_labels.data == ignore_label).any()):
            ignore = Volume(binned_labels.data == ignore_label, binned_labels.grid)
            kept = binned_labels.data.masked_fill(ignore.data, 0)
            binned_labels = Volume(kept, binned_labels.grid)
    return Subject(
        id=name,
        image=image,
        scalings=_scalings(scan, channels, name),
        body=body,
        masks=masks,
        labels=binned_labels,
        ignore=ignore,
    )


def adapt(
    subject: Subject, material: Material, channels: tuple[Normalisation, ...], original: Grid
) -> Subject:
    """Adapt a subject that was preprocessed for other methods to the requirements of a method.

    Args:
        subject: with the scan's original pixels, or those that are required.
        material: requirements of the method.
        channels: of the plan.
        original: grid of the scan.

    Raises:
        InputError: "too-coarse": the subject was averaged over other blocks; "not-ct".
    """
    stored = round(float(subject.image.grid.spacing_mm[2] / original.spacing_mm[2]))
    required = material.factor(original)
    if stored == required and (material.masks is None or subject.masks is not None):
        return subject
    if stored not in (1, required):
        raise InputError(
            f"its pixels are averaged over blocks of {stored} x {stored}; blocks of"
            f" {required} x {required} are required",
            path=subject.id,
            code="too-coarse",
            next_step="Create a store with these settings, or one of the original pixels (--full).",
        )
    labels, ignore_label = subject.labels, None
    if labels is not None and subject.ignore is not None:
        ignore_label = int(labels.data.max()) + 1
        labels = Volume(labels.data.masked_fill(subject.ignore.data, ignore_label), labels.grid)
    remaining = material if stored == 1 else replace(material, pixel_mm=None)
    prepared = prepare(
        subject.image,
        remaining,
        channels,
        name=subject.id,
        labels=labels,
        ignore_label=ignore_label,
    )
    return replace(
        prepared, scalings=subject.scalings, age_years=subject.age_years, renal=subject.renal
    )


def _check_channels(
    scan: Volume, material: Material, channels: tuple[Normalisation, ...], name: str
) -> None:
    if scan.channels != len(channels):
        raise InputError(
            f"the scan has {scan.channels} channel(s); {len(channels)} are required:"
            f" {', '.join(channel.channel for channel in channels)}",
            path=name,
            code="wrong-channels",
            next_step="Provide one image per channel.",
        )
    if material.masks is not None and (len(channels) > 1 or channels[0].scheme != "ct"):
        raise not_ct([channel.channel for channel in channels], name)


def not_ct(channels: Sequence[str], path: str | Path) -> InputError:
    """The error for images in which no body can be found, "not-ct"."""
    return InputError(
        f"this method requires one channel of CT, not {', '.join(channels)}",
        path=path,
        code="not-ct",
        next_step="Name the channel 'CT' in dataset.json if it contains Hounsfield units;"
        " methods 'plain' and 'plain3d' accept any channels.",
    )


def _scalings(scan: Volume, channels: tuple[Normalisation, ...], name: str) -> tuple[Scaling, ...]:
    """Scalings computed in the bounding box of the non-zero voxels, as in nnU-Net."""
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
            next_step="Name the channel in dataset.json after its content.",
        ) from error


def _compact(image: Volume, channels: tuple[Normalisation, ...], *, exact: bool = False) -> Volume:
    """HU rounded to int16 unless exact; other values as int16 if lossless, else as float32."""
    data = image.data
    if not exact and all(channel.scheme == "ct" for channel in channels):
        return Volume(data.round().clamp(-32768, 32767).to(torch.int16), image.grid)
    short = data.clamp(-32768, 32767).to(torch.int16)
    if torch.equal(short.to(data.dtype), data):
        return Volume(short, image.grid)
    return image.astype(torch.float32)


def _binned_labels(labels: Volume, factor: int) -> Volume:
    """The most frequent label of each block of pixels; the lowest in a tie."""
    if factor == 1:
        return labels
    out: list[Tensor] = []
    for k in range(labels.grid.shape[0]):
        plane = labels.slices(k, k + 1)
        numbers = torch.bincount(plane.data.flatten()).nonzero()[:, 0].tolist()
        majority, most = None, None
        for number in numbers:
            mask = Volume((plane.data == number).to(torch.float32), plane.grid)
            share = binned(mask, factor).data
            if majority is None or most is None:
                majority, most = torch.full_like(share, number, dtype=torch.uint8), share
            else:
                majority[share > most] = number
                most = torch.maximum(most, share)
        assert majority is not None
        out.append(majority)
    data = torch.cat(out, dim=1)
    return Volume(data, binned_grid(labels.grid, factor))


def _body(mask: Volume) -> Body:
    projection = mask.data[0].any(0)
    rows, columns = (projection.any(axis).nonzero()[:, 0] for axis in (1, 0))
    box = None
    if len(rows):
        box = (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1]))
    return Body(whole=moments(mask, per="volume"), per_slice=moments(mask), box=box)


def _masks(image: Volume, mask: Volume, body: Body, settings: BodyMasks) -> Volume:
    from scipy import ndimage

    factor = max(1, int(_MASK_MM / float(image.grid.spacing_mm[1:].max()) + 1e-6))
    inside = binned(mask.astype(torch.float32), factor)
    dense = (image.data > settings.bone_hu) & mask.data
    candidates = (binned(Volume(dense.float(), image.grid), factor).data > 0.5)[0].numpy()
    scale = (body.radius_mm / _ADULT_RADIUS_MM) ** 3 if np.isfinite(body.radius_mm) else 1.0
    min_voxels = settings.bone_least_ml * scale / float(inside.grid.voxel_ml)
    components, count = ndimage.label(candidates)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    kept = sizes >= min_voxels
    kept[0] = False
    sigma = [0.0, *(settings.bone_blur_mm / inside.grid.spacing_mm[1:]).tolist()]
    bone = ndimage.gaussian_filter(kept[components].astype(np.float32), sigma, mode="constant")
    both = torch.stack([inside.data[0], torch.from_numpy(bone)])
    return Volume((both * 255.0).round().to(torch.uint8), inside.grid)


def _counts(labels: Volume) -> np.ndarray:
    planes = labels.data[0].flatten(1)
    return np.stack([np.bincount(plane.numpy(), minlength=256) for plane in planes])
