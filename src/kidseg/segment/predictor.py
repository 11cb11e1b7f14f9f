"""A trained method, ready for scans, and what it says of each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kidseg.checkpoint import load_model
from kidseg.cohort.subject import Subject, prepare
from kidseg.cohort.training_range import FAR_SD, distances
from kidseg.config import load
from kidseg.device import Device, choose_device
from kidseg.errors import Finding, ModelError, UsageError
from kidseg.geometry import Grid, Volume, in_plane_pose, resample
from kidseg.labels import LabelSchema
from kidseg.methods import Method, method_named
from kidseg.methods.homogenized.placement import Placement
from kidseg.pipeline import run
from kidseg.plan import Plan
from kidseg.postprocess import least_volume_ml, remove_small

__all__ = ["Predictor", "Segmentation", "load_predictor"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A trained method, ready on a device.

    Attributes:
        method: what it is.
        config: its settings.
        plan: of its training set.
        schema: numbers and names of its labels.
        nets: its networks, in evaluation mode.
        device: where they run.
        sha256: of the model file.
        path: of the model file.
        training_range: what the model file says of its training patients; see
            `kidseg.methods.homogenized.placement.training_range`. None if it says nothing.
    """

    method: Method
    config: Any
    plan: Plan
    schema: LabelSchema
    nets: Mapping[str, nn.Module]
    device: Device
    sha256: str
    path: Path
    training_range: Mapping[str, Any] | None = None

    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        """Segment a scan, (1, slices, rows, columns) HU in canonical order.

        Raises:
            InputError: as `kidseg.cohort.subject.prepare`.
        """
        start = time.perf_counter()
        subject = prepare(
            scan,
            self.config.view,
            self.plan,
            name=name,
            multiple=self.method.multiple(self.config),
        )
        prepared_s = time.perf_counter() - start
        steps = self.method.steps(self.config, self.nets, self.plan, subject, self.device)
        outcome = run(subject.image, steps, onto=scan.grid)
        start = time.perf_counter()
        radius = float(subject.body.radii_mm.prod().sqrt())
        least_ml = least_volume_ml(self.config.postprocess, radius)
        labels, removed = remove_small(outcome.labels, least_ml)
        seconds = {
            "prepare": prepared_s,
            **outcome.seconds,
            "postprocess": time.perf_counter() - start,
        }
        found = resample(labels, subject.whole, mode="nearest")
        placement = self.method.place(
            self.config, self.nets, replace(subject, labels=found), outcome.grids
        )
        known = self.training_range is not None
        away = distances(placement.figures, self.training_range or {})
        facts = {
            "grids": {name: _grid_facts(grid, subject) for name, grid in outcome.grids.items()},
            "overlap": _overlap_facts(placement, found),
            "training_range": {"known": known, "far_sd": FAR_SD, "figures": _rounded(away)},
            "removed": {
                "below_ml": round(least_ml, 4),
                "pieces": [piece.as_dict() for piece in removed],
            },
            "volumes_ml": _volumes(labels, self.schema),
        }
        decided = Volume(
            outcome.found.data.argmax(0, keepdim=True).to("cpu", torch.uint8), outcome.found.grid
        )
        findings = _findings(labels, subject, decided, outcome.grids, name)
        findings += _far(away, name)
        return Segmentation(
            labels=labels,
            facts=facts,
            findings=findings,
            seconds=seconds,
            grids=outcome.grids,
            decided=decided,
            placement=placement,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """What a predictor found.

    Attributes:
        labels: (1, slices, rows, columns) uint8 on the scan's own voxels.
        facts: plain data: grids with pose, overlap with the reference, distance from the training
            range, pieces removed, volumes.
        findings: what a reader of the result should know.
        seconds: wall time of each step.
        grids: the grid of each step, by name.
        decided: (1, slices, rows, columns) labels on the last grid, before postprocessing.
        placement: how the patient lies.
    """

    labels: Volume
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    grids: Mapping[str, Grid]
    decided: Volume
    placement: Placement


def load_predictor(model: str | Path, device: str = "auto") -> Predictor:
    """The method in a model file.

    Raises:
        ModelError: as `load_model`; "damaged-model": it does not hold what its header says.
        UsageError, ResourceError: as `choose_device`.
    """
    path = Path(model)
    file = load_model(path)
    try:
        method = method_named(file.header["method"])
        config: Any = load(method.config, base=file.header["config"])
        plan = Plan.from_dict(file.header["plan"])
        labels = file.header["labels"]
        schema = LabelSchema.from_names(
            {int(number): name for number, name in labels["names"].items()},
            {name: tuple(ids) for name, ids in labels["regions"].items()},
        )
        nets = method.networks(config, len(schema.labels) + 1, 0)
        for name, net in nets.items():
            net.load_state_dict(dict(file.parts[name]))
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        raise ModelError(
            f"does not hold what its header says: {error}",
            path=path,
            code="damaged-model",
            next_step="Was it written by a newer kidseg?",
        ) from error
    hardware = choose_device(device, config.precision)
    for net in nets.values():
        net.to(hardware.torch).eval().requires_grad_(False)
    return Predictor(
        method=method,
        config=config,
        plan=plan,
        schema=schema,
        nets=nets,
        device=hardware,
        sha256=file.sha256,
        path=path,
        training_range=file.header.get("training_range"),
    )


def _grid_facts(grid: Grid, subject: Subject) -> dict[str, Any]:
    """Shape and pixel of a grid, and how its planes lie in the scan's."""
    pose = in_plane_pose(grid, subject.image.grid)
    spacing = grid.spacing_mm.reshape(-1, 3)
    figures = {
        "angle_deg": torch.rad2deg(pose.angle_rad).reshape(-1, 1),
        "scale": (spacing[:, 1:].flip(-1) / subject.base.spacing_mm[1:].flip(0)),
        "shift_mm": pose.shift_mm.reshape(-1, 2),
    }
    facts: dict[str, Any] = {
        "shape": list(grid.shape),
        "pixel_mm": [round(float(v), 4) for v in spacing[:, 1:].median(0).values],
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


def _overlap_facts(placement: Placement, found: Volume) -> dict[str, Any] | None:
    """Overlap with the reference, and which slices were compared; None without a reference.

    Args:
        placement: of the patient.
        found: the labels that it was placed by; few voxels of the scan may be none of these.
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
    """A finding that names all in which the patient is far from those of the training."""
    named = [
        f"{name} {known['value']:.4g} is {known['distance_sd']:.1f} SD beyond"
        f" {known['min']:.4g} to {known['max']:.4g}"
        for name, known in away.items()
        if known["distance_sd"] is not None and known["distance_sd"] > FAR_SD
    ]
    if not named:
        return ()
    cause = f"it lies outside what the model was trained on: {'; '.join(named)}"
    step = "Look at the labels with care, or train on patients like this one."
    return (Finding(code="outside-training-range", path=path, cause=cause, next_step=step),)


def _volumes(labels: Volume, schema: LabelSchema) -> dict[str, float]:
    """Millilitres of each region."""
    counts = np.bincount(labels.data.numpy().ravel(), minlength=256)
    voxel_ml = float(labels.grid.voxel_ml)
    return {
        name: round(float(counts[list(members)].sum()) * voxel_ml, 4)
        for name, members in schema.regions.items()
    }


def _findings(
    labels: Volume, subject: Subject, decided: Volume, grids: Mapping[str, Grid], path: str
) -> tuple[Finding, ...]:
    """What the result itself says about how far it can be trusted."""
    from scipy import ndimage

    found = labels.data[0].numpy() > 0
    notes = []
    if not bool(subject.body.radii_mm.isfinite().all()):
        notes.append(("no-body", "no body was found in it", "Is it a CT in Hounsfield units?"))
    if found[0].any() or found[-1].any():
        cause = "what was found reaches the first or last slice; its volume is partial"
        notes.append(("cut-by-field", cause, "Use a scan that holds both kidneys whole."))
    if not found.any():
        notes.append(("nothing-found", "neither kidney nor tumour was found", "Look at the scan."))
    else:
        pieces = int(ndimage.label(found)[1])
        if pieces != 2:
            cause = f"kidneys and tumour form {pieces} connected piece(s), not two"
            notes.append(("not-two-kidneys", cause, "Single, fused or missed kidney: look at it."))
    if _touches_border(decided, grids):
        cause = "what was found reaches the border of the crop in the plane"
        notes.append(("crop-border", cause, "Widen crop.localizer.margin, or do without a crop."))
    return tuple(
        Finding(code=code, path=path, cause=cause, next_step=step) for code, cause, step in notes
    )


def _touches_border(decided: Volume, grids: Mapping[str, Grid]) -> bool:
    if "crop" not in grids:
        return False
    there = decided.data[0] > 0
    edges = (there[:, 0], there[:, -1], there[:, :, 0], there[:, :, -1])
    return any(bool(edge.any()) for edge in edges)
