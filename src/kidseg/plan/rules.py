"""Plan voxel spacing, patch, batch and network from a fingerprint, by nnU-Net's rules.

Axes are always (slice, row, column), and slices are axial. nnU-Net transposes the axes so that the
coarsest comes first: if slices have the finest spacing, its 2D configuration is coronal or
sagittal; this one is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from kidseg.errors import ModelError
from kidseg.geometry import Grid
from kidseg.intensity import Normalisation
from kidseg.labels import CystAs, LabelSchema
from kidseg.plan.facts import Fingerprint
from kidseg.records import Record, checked
from kidseg.topology import ResidualTopology, Topology

__all__ = ["Configuration", "Name", "Plan", "Topology", "adapted", "plan"]

Name = Literal["2d", "3d_fullres"]

FORMAT = 1
"""Version of the plan's file format."""

# All constants of this file. Source: nnU-Net v2.8.1, default_experiment_planner.
# Voxels are anisotropic if the largest spacing exceeds the second largest by this factor.
_ANISOTROPY = 3.0
# Target along a much coarser axis: this percentile of the spacings instead of the median.
_COARSE_PERCENTILE = 10.0
_FEATURES = 32
_MOST_FEATURES = {2: 512, 3: 320}
_LEAST_EDGE = 4
_LEAST_BATCH = 2
# Voxels of the initial patch of the search.
_FIRST_PATCH = {2: 2048**2, 3: 256**3}
# Values in all feature maps that fit into 8 GB at the batch size below.
_REFERENCE_SIZE = {2: 85_000_000, 3: 560_000_000}
_REFERENCE_BATCH = {2: 12, 3: 2}
_REFERENCE_GB = 8.0
# A batch contains at most this fraction of the data set.
_MOST_OF_DATASET = 0.05
# Normalise inside the non-zero region if it is smaller than this fraction of the image.
_CROP_FRACTION = 0.75


@dataclass(frozen=True, kw_only=True)
class Configuration(Record):
    """Input and architecture of one network; axes (row, column) in 2D, three in 3D.

    Attributes:
        spacing_mm: of the voxels. A 2D configuration keeps the slices of each scan.
        median_shape: of the data set's images at this spacing, cropped to the non-zero region.
        patch_size: voxels of a training patch.
        batch_size: patches of a training step.
        topology: of the network.
    """

    spacing_mm: tuple[PositiveFloat, ...]
    median_shape: tuple[PositiveFloat, ...]
    patch_size: tuple[PositiveInt, ...]
    batch_size: PositiveInt
    topology: Topology | ResidualTopology

    def __post_init__(self) -> None:
        dims = self.topology.dimensions
        if {len(self.spacing_mm), len(self.median_shape), len(self.patch_size)} != {dims}:
            raise ValueError(f"spacing, shape and patch must have {dims} axes, as the network")

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.spacing_mm)

    def grid(self, scan: Grid) -> Grid:
        """The scan's extent at this configuration's spacing."""
        return scan.with_spacing(self.spacing_of(scan.spacing_mm.tolist()))

    def spacing_of(self, scan_mm: Sequence[float]) -> tuple[float, ...]:
        """Spacing along three axes for a scan with this spacing: in 2D its slices stay."""
        return (*scan_mm[: 3 - self.dimensions], *self.spacing_mm)


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """How a data set is preprocessed and which networks are trained on it; plain data.

    Attributes:
        channels: normalisation of each.
        labels: {number: name} of the labels.
        cyst: what cysts count as; None: their own label.
        median_spacing_mm: of the data set, (slice, row, column).
        configurations: by name; without nnU-Net's low-resolution cascade.
        training: ids of the cases that the plan was made from.
    """

    channels: tuple[Normalisation, ...]
    labels: Mapping[int, str]
    cyst: CystAs | None
    median_spacing_mm: tuple[PositiveFloat, ...]
    configurations: Mapping[str, Configuration]
    training: tuple[str, ...]

    @property
    def padding(self) -> tuple[float, ...]:
        """Padding value of each channel."""
        return tuple(channel.padding_value for channel in self.channels)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan as JSON; equal plans have equal digests."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        data = asdict(self)
        data["labels"] = {str(number): name for number, name in self.labels.items()}
        return {"format": FORMAT, **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: Path | None = None) -> Plan:
        """Inverse of `as_dict`, also after JSON; `path` is the file it was read from.

        Raises:
            ModelError: "bad-plan": not a plan, or of another format.
        """
        found = data.get("format") if isinstance(data, Mapping) else None
        if found != FORMAT:
            raise ModelError(
                f"not a plan of format {FORMAT}"
                + (f", but of format {found!r:.20}" if found is not None else ""),
                path=path,
                code="bad-plan",
                next_step="Plan again with this version of kidseg.",
            )
        try:
            return checked(cls, {key: value for key, value in data.items() if key != "format"})
        except ValueError as error:
            raise ModelError(
                f"not a valid plan: {error}",
                path=path,
                code="bad-plan",
                next_step="Restore the file; it was not written by this version of kidseg.",
            ) from error


def plan(fingerprint: Fingerprint, schema: LabelSchema, *, memory_gb: float = 8.0) -> Plan:
    """Plan a data set: a 2D configuration and, for volumes, "3d_fullres".

    Args:
        fingerprint: of the training cases.
        schema: of the data set; the fingerprint decides what cysts count as.
        memory_gb: of the GPU that nnU-Net would train on; determines patch and batch size.

    Source: nnU-Net v2 (Isensee et al., Nature Methods 2021, and default_experiment_planner). The
    batch size of "3d_fullres" is nnU-Net's without a preceding low-resolution stage.
    """
    if fingerprint.cyst is not None:
        from kidseg.cases import without_cyst

        schema, _ = without_cyst(schema, fingerprint.cyst)
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    cropped = np.array([case.shape_after_crop for case in fingerprint.cases])
    target = _target_spacing(spacings, cropped)
    resampled = [
        [
            round(s / t * n)
            for s, t, n in zip(case.spacing_mm, target, case.shape_after_crop, strict=True)
        ]
        for case in fingerprint.cases
    ]
    median = tuple(float(n) for n in np.median(resampled, axis=0))
    voxels = prod(median) * len(fingerprint.cases)
    classes = len(schema.labels) + 1
    configurations = {"2d": _configure(target[1:], median[1:], classes, voxels, memory_gb)}
    if median[0] > 1:
        configurations["3d_fullres"] = _configure(target, median, classes, voxels, memory_gb)
    kept = np.median([prod(c.shape_after_crop) / prod(c.shape) for c in fingerprint.cases])
    channels = tuple(
        Normalisation.of_channel(name, statistics, inside_only=bool(kept < _CROP_FRACTION))
        for name, statistics in zip(fingerprint.channels, fingerprint.intensities, strict=True)
    )
    return Plan(
        channels=channels,
        labels=schema.names,
        cyst=fingerprint.cyst,
        median_spacing_mm=tuple(float(s) for s in np.median(spacings, axis=0)),
        configurations=configurations,
        training=tuple(case.id for case in fingerprint.cases),
    )


def _target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> tuple[float, ...]:
    """The median spacing; finer along an axis that is much coarser than the others."""
    target, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarse = target[worst] > _ANISOTROPY * target[others].max()
    few = shape[worst] * _ANISOTROPY < shape[others].min()
    if coarse and few:
        finer = np.percentile(spacings[:, worst], _COARSE_PERCENTILE)
        # Never finer than the other axes, so that the coarse axis remains the coarsest.
        target[worst] = max(finer, target[others].max() + 1e-5)
    return tuple(float(s) for s in target)


def _configure(
    spacing: Sequence[float],
    median: Sequence[float],
    classes: int,
    dataset_voxels: float,
    memory_gb: float,
) -> Configuration:
    """The largest patch with the median image's proportions that fits; then the batch size."""
    dims = len(spacing)
    density = [1 / s for s in spacing]
    side = (_FIRST_PATCH[dims] / prod(density)) ** (1 / dims)
    patch = tuple(int(min(round(d * side), n)) for d, n in zip(density, median, strict=True))
    topology, patch = _topology(spacing, patch)
    reference = _REFERENCE_SIZE[dims] * memory_gb / _REFERENCE_GB
    batch_of_reference = _REFERENCE_BATCH[dims]

    size = topology.feature_map_values(patch, classes)
    while size / batch_of_reference * _LEAST_BATCH > reference:
        longest = max(range(dims), key=lambda axis: (patch[axis] / median[axis], axis))
        # The divisors depend on the patch size, so they are computed again.
        step = _topology(spacing, _shortened(patch, longest, topology.divisors))[0].divisors
        topology, patch = _topology(spacing, _shortened(patch, longest, step))
        size = topology.feature_map_values(patch, classes)

    batch = round(reference / size * batch_of_reference)
    most = round(dataset_voxels * _MOST_OF_DATASET / prod(patch))
    return Configuration(
        spacing_mm=tuple(spacing),
        median_shape=tuple(median),
        patch_size=patch,
        batch_size=max(min(batch, most), _LEAST_BATCH),
        topology=topology,
    )


def _topology(spacing: Sequence[float], patch: Sequence[int]) -> tuple[Topology, tuple[int, ...]]:
    """The network for a patch, and the patch rounded up to multiples of its strides.

    Axes are halved together while their spacings are within a factor of 2 of the finest and their
    sides are long enough. A kernel is 1 along an axis until its spacing is within that factor.

    Source: nnU-Net v2, network_topology.
    """
    dims = len(spacing)
    current, sides = list(spacing), list(patch)
    kernel, kernels, strides = [1] * dims, [], [(1,) * dims]
    while True:
        long = [axis for axis in range(dims) if sides[axis] >= 2 * _LEAST_EDGE]
        if not long:
            break
        finest = min(current[axis] for axis in long)
        halved = [axis for axis in long if current[axis] / finest < 2]
        if len(halved) == 1 and sides[halved[0]] < 3 * _LEAST_EDGE:
            break
        finest = min(current)
        kernel = [
            3 if k == 3 or s / finest < 2 else 1 for k, s in zip(kernel, current, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(dims)))
        for axis in halved:
            current[axis] *= 2
            sides[axis] = ceil(sides[axis] / 2)
    kernels.append((3,) * dims)
    features = [min(_FEATURES << k, _MOST_FEATURES[dims]) for k in range(len(strides))]
    topology = Topology(features=tuple(features), kernels=tuple(kernels), strides=tuple(strides))
    padded = tuple(-(-n // d) * d for n, d in zip(patch, topology.divisors, strict=True))
    return topology, padded


def adapted(
    planned: Configuration,
    *,
    spacing_mm: Sequence[float] | None = None,
    patch: Sequence[int] | None = None,
    features: int | None = None,
    max_features: int | None = None,
) -> Configuration:
    """A configuration with some values replaced; the others follow the rules.

    Args:
        planned: by `plan`.
        spacing_mm: of the voxels; median shape and patch (unless given) keep their extent in mm.
        patch: voxels of a patch; rounded up to multiples of the network's strides.
        features: feature maps of the first stage; doubled at each stage.
        max_features: upper limit of the feature maps.
    """
    if not (spacing_mm or patch or features or max_features):
        return planned
    spacing = tuple(spacing_mm or planned.spacing_mm)
    ratio = [old / new for old, new in zip(planned.spacing_mm, spacing, strict=True)]
    median = tuple(n * r for n, r in zip(planned.median_shape, ratio, strict=True))
    wanted = patch or [max(1, round(n * r)) for n, r in zip(planned.patch_size, ratio, strict=True)]
    topology, enlarged = _topology(spacing, wanted)
    first, most = features or _FEATURES, max_features or _MOST_FEATURES[len(spacing)]
    widths = tuple(min(first << k, most) for k in range(len(topology.features)))
    return replace(
        planned,
        spacing_mm=spacing,
        median_shape=median,
        patch_size=enlarged,
        topology=replace(topology, features=widths),
    )


def _shortened(patch: Sequence[int], axis: int, step: Sequence[int]) -> tuple[int, ...]:
    return tuple(n - step[axis] if k == axis else n for k, n in enumerate(patch))
