"""Load a trained method and segment scans with it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kidseg.checkpoint import load_model
from kidseg.cohort.subject import Subject, prepare
from kidseg.cohort.training_range import FAR_SD, Placement, distances
from kidseg.config import METHODS, load
from kidseg.device import choose_device
from kidseg.errors import Finding, ModelError, UsageError
from kidseg.geometry import Volume, has_parallel_slices, in_plane_pose
from kidseg.intensity import Normalisation
from kidseg.labels import LabelSchema, Target
from kidseg.measure import Midline, Side, Sides, measure_sides
from kidseg.methods import Method, method_named
from kidseg.nets import PlannedUNet, UNet
from kidseg.nets.folding import folded
from kidseg.pipeline import Progress, Region, advance, reaches_border, restore
from kidseg.plan import Plan
from kidseg.postprocess import Piece, min_volume_ml, remove_small

__all__ = ["Predictor", "Segmentation", "load_predictor"]

# Noise may have 100,000 connected components; listing them all would take seconds.
_MAX_PIECES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A trained method on a device.

    Attributes:
        method: with its networks in eval mode.
        schema: numbers and names of its labels.
        sha256: of the model file.
        path: of the model file.
        training_range: ranges of the training patients in the model file; see
            `kidseg.cohort.training_range.training_range`. None if the file has none.
    """

    method: Method
    schema: LabelSchema
    sha256: str
    path: Path
    training_range: Mapping[str, Any] | None = None

    @torch.no_grad()
    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        """Segment a scan, (channels, slices, rows, columns) in canonical order; HU for CT.

        Raises:
            InputError: see `kidseg.cohort.subject.prepare`.
        """
        clock = _Clock()
        config: Any = self.method.config
        plan = self.method.plan
        material = self.method.material(config, plan)
        subject = prepare(scan, material, plan.channels, name=name)
        clock.lap("prepare")
        progress = advance(subject.image, self.method.steps(subject))
        clock.add(progress.seconds)
        restored = restore(progress.found, scan.grid, _target_of(progress, self.method))
        clock.lap("restore")
        radius = None if subject.body is None else subject.body.radius_mm
        least_ml = min_volume_ml(config.postprocess, radius, _voxel_ml(progress))
        keep_ends = config.postprocess.least_voxels is None
        labels, removed = remove_small(restored, least_ml, keep_ends=keep_ends)
        clock.lap("postprocess")
        middle = Midline.of(
            subject.image.grid, None if subject.body is None else subject.body.per_slice
        )
        sides = measure_sides(labels, self.schema, middle, name)
        clock.lap("measure")
        placement = self.method.report(subject.with_labels(labels), progress)
        away = distances(placement.figures, self.training_range or {})
        unit_mm = material.pixel_mm or float(scan.grid.spacing_mm[2])
        facts = {
            "grids": {
                name: [_grid_facts(region, subject, unit_mm) for region in regions]
                for name, regions in progress.steps.items()
            },
            "overlap": _overlap_facts(placement, labels),
            "training_range": {
                "known": self.training_range is not None,
                "far_sd": FAR_SD,
                "figures": _rounded(away),
            },
            "notes": {
                name: {"text": note.text, **note.facts} for name, note in progress.notes.items()
            },
            "removed": _removed_facts(removed, least_ml),
            "volumes_ml": _volumes(labels, self.schema, self.method.target),
            "sides": _sides_facts(sides, middle, self.schema, self.method.target),
        }
        return Segmentation(
            labels=labels,
            facts=facts,
            findings=(
                *_findings(labels, subject, progress, sides, name),
                *(finding for note in progress.notes.values() for finding in note.findings),
                *_far(away, name),
            ),
            seconds=clock.seconds,
            progress=progress,
            channels=plan.channels,
            placement=placement,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """The result of a predictor.

    Attributes:
        labels: (1, slices, rows, columns) uint8 on the scan's own voxels.
        facts: plain data: grids with pose, notes of the steps, overlap with the reference, distance
            from the training range, components removed, volumes.
        findings: warnings for the reader of the result.
        seconds: wall time of each step.
        progress: the regions of each step and their probabilities, before postprocessing.
        channels: of the scan.
        placement: size and position of the patient.
    """

    labels: Volume
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    progress: Progress
    channels: tuple[Normalisation, ...]
    placement: Placement


def load_predictor(model: str | Path, device: str = "auto") -> Predictor:
    """Load the method of a model file.

    Raises:
        ModelError: see `load_model`; "damaged-model": the content does not match the header.
        UsageError, ResourceError: see `choose_device`.
    """
    path = Path(model)
    file = load_model(path)
    try:
        name = file.header["method"]
        kind = method_named(name)
        config: Any = load(METHODS[name], base=file.header["config"])
        plan = Plan.from_dict(file.header["plan"], path)
        labels = file.header["labels"]
        schema = LabelSchema.from_names(
            {int(number): name for number, name in labels["names"].items()},
            {name: tuple(ids) for name, ids in labels["regions"].items()},
        )
        hardware = choose_device(device, config.precision)
        target = _target(labels, schema)
        method = kind.build(config, target, plan, device=hardware)
        for part, net in method.parts.items():
            net.load_state_dict(dict(file.parts[part]))
            net.eval().requires_grad_(False)
        if hardware.precision == "bf16":
            parts = {part: _to_bfloat16(net) for part, net in method.parts.items()}
            method = kind(config, target, plan, parts, hardware)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _damaged(path, error) from error
    except UsageError as error:
        if error.code != "unknown-method" and error.code != "bad-setting":
            raise
        raise _damaged(path, error) from error
    return Predictor(
        method=method,
        schema=schema,
        sha256=file.sha256,
        path=path,
        training_range=file.header.get("training_range"),
    )


def _to_bfloat16(net: nn.Module) -> nn.Module:
    """Convert a segmentation network to bfloat16 with folded batch norms; others are unchanged."""
    return folded(net, torch.bfloat16) if isinstance(net, UNet | PlannedUNet) else net


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"the content does not match the header: {error}",
        path=path,
        code="damaged-model",
        next_step="Check whether it was written by a newer version of kidseg.",
    )


class _Clock:
    """Measures the wall time of consecutive tasks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.perf_counter()

    def lap(self, name: str) -> None:
        """Record the time since the last mark under this name."""
        now = time.perf_counter()
        self.seconds[name] = now - self._mark
        self._mark = now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Record times measured elsewhere, and reset the mark."""
        self.seconds |= seconds
        self._mark = time.perf_counter()


def _target_of(progress: Progress, method: Method) -> Target:
    """The target of the step whose regions give the labels."""
    target = progress.found[0].target if progress.found else None
    return target or method.target


def _voxel_ml(progress: Progress) -> float:
    """Volume of the voxels on which the labels were predicted; 0 if nothing was."""
    volumes = [region.grid.voxel_ml.median() for region in progress.found]
    return float(volumes[0]) if volumes else 0.0


def _target(labels: Mapping[str, Any], schema: LabelSchema) -> Target:
    """The target of a model file; files of format 1 have only labels."""
    known = labels.get("target")
    return Target.of_labels(schema) if known is None else Target.from_dict(known)


def _grid_facts(region: Region, subject: Subject, unit_mm: float) -> dict[str, Any]:
    """Shape and pixel size of a region's grid, and its in-plane pose relative to the scan.

    Without a pose if its slices are not those of the scan ("across": sagittal, for example).

    Args:
        region: of a step.
        subject: the patient.
        unit_mm: pixel size that corresponds to scale 1.
    """
    grid = region.grid
    spacing = grid.spacing_mm.reshape(-1, 3)
    facts: dict[str, Any] = {
        "name": region.name,
        "shape": list(grid.shape),
        "pixel_mm": [round(float(v), 4) for v in spacing[:, 1:].median(0).values],
    }
    if not has_parallel_slices(grid, subject.image.grid):
        return {**facts, "slices": "across"}
    pose = in_plane_pose(grid, subject.image.grid)
    figures = {
        "angle_deg": torch.rad2deg(pose.angle_rad).reshape(-1, 1),
        "scale": spacing[:, 1:].flip(-1) / unit_mm,
        "shift_mm": pose.shift_mm.reshape(-1, 2),
    }
    for name, values in figures.items():
        table = values.double()
        facts[name] = {
            "median": [round(float(v), 4) for v in table.median(0).values],
            "least": [round(float(v), 4) for v in table.amin(0)],
            "most": [round(float(v), 4) for v in table.amax(0)],
        }
        if bool((table != table[:1]).any()):
            facts[name]["per_slice"] = [[round(float(v), 4) for v in row] for row in table]
    return facts


def _removed_facts(removed: Sequence[Piece], least_ml: float) -> dict[str, Any]:
    """Components removed by postprocessing: totals, and the largest ones individually."""
    return {
        "below_ml": round(least_ml, 4),
        "count": len(removed),
        "volume_ml": round(sum(piece.volume_ml for piece in removed), 4),
        "pieces": [piece.as_dict() for piece in removed[:_MAX_PIECES]],
    }


def _overlap_facts(placement: Placement, found: Volume) -> dict[str, Any] | None:
    """Overlap with the reference and the slices compared; None without a reference.

    Args:
        placement: of the patient.
        found: predicted labels, which determine the slices.
    """
    if placement.compared is None:
        return None
    by = "slices where something was found" if bool((found.data > 0).any()) else "all slices"
    return {
        **{when: _rounded(masks) for when, masks in placement.overlap.items()},
        "compared": {"first": placement.compared[0], "last": placement.compared[1], "by": by},
    }


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value)
        if isinstance(value, Mapping)
        else round(value, 4)
        if isinstance(value, float)
        else value
        for name, value in figures.items()
    }


def _far(away: Mapping[str, Mapping[str, Any]], path: str) -> tuple[Finding, ...]:
    """A finding that lists all figures far outside the training range."""
    named = [
        f"{name} {known['value']:.4g} is {known['distance_sd']:.1f} SD beyond"
        f" {known['min']:.4g} to {known['max']:.4g}"
        for name, known in away.items()
        if known["distance_sd"] is not None and known["distance_sd"] > FAR_SD
    ]
    if not named:
        return ()
    cause = f"the patient is outside the training range of the model: {'; '.join(named)}"
    step = "Check the labels carefully, or train on similar patients."
    return (Finding(code="outside-training-range", path=path, cause=cause, next_step=step),)


def _volumes(labels: Volume, schema: LabelSchema, target: Target) -> dict[str, float]:
    """Volume of each region in ml."""
    counts = np.bincount(labels.data.numpy().ravel(), minlength=256)
    voxel_ml = float(labels.grid.voxel_ml)
    return {
        name: round(float(counts[list(members)].sum()) * voxel_ml, 4)
        for name, members in schema.regions.items()
        if target.expresses(members)
    }


def _sides_facts(
    sides: Sides | None, midline: Midline, schema: LabelSchema, target: Target
) -> dict[str, Any] | None:
    """Volumes of kidney, tumour and cyst in ml by side; None without a kidney in the schema."""
    if sides is None:
        return None

    def facts(side: Side) -> dict[str, Any]:
        volumes = {
            meaning: volume
            for meaning, volume in side.volumes_ml.items()
            if target.expresses([i for i in schema.ids if schema.meaning[i] == meaning])
        }
        return {"volumes_ml": volumes, "partial": bool(side.borders), "borders": list(side.borders)}

    return {
        "right": facts(sides.right),
        "left": facts(sides.left),
        "midline": "body" if midline.is_body else "image",
    }


def _findings(
    labels: Volume, subject: Subject, progress: Progress, sides: Sides | None, path: str
) -> tuple[Finding, ...]:
    """Plausibility checks of the result."""
    found = labels.data[0].numpy() > 0
    notes = []
    if subject.body is not None and subject.body.box is None:
        step = "Check that the scan is CT in Hounsfield units."
        notes.append(("no-body", "no body was found in the scan", step))
    if not found.any():
        cause = "neither kidney nor tumour was found"
        notes.append(("nothing-found", cause, "Check the scan."))
    elif sides is None and (found[0].any() or found[-1].any()):
        cause = "the segmentation reaches the first or last slice; its volume is partial"
        notes.append(("cut-by-field", cause, "Use a scan that contains all of it."))
    if any(reaches_border(each, labels.grid, progress.found) for each in progress.found):
        cause = "the segmentation reaches the border of the region of interest"
        step = "Check it; train with a larger region (crop.localizer.margin), or without a crop."
        notes.append(("region-border", cause, step))
    measured = sides.findings if sides is not None and found.any() else ()
    return (
        *(Finding(code=code, path=path, cause=cause, next_step=s) for code, cause, s in notes),
        *measured,
    )
