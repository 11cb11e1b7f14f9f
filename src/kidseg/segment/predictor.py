"""Load a trained method and segment scans with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kidseg.checkpoint import load_model
from kidseg.cohort.subject import Subject, prepare
from kidseg.cohort.training_range import Placement, renal_numbers, values_of
from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume, has_parallel_slices, in_plane_pose
from kidseg.intensity import Normalisation
from kidseg.labels import LabelSchema, Target
from kidseg.measure import Midline, Side, Sides, measure_sides
from kidseg.members import members_of
from kidseg.methods import Method
from kidseg.model_file import find_model
from kidseg.pipeline import Progress, Region, advance, reaches_border, restore
from kidseg.postprocess import Piece, min_volume_ml, remove_small
from kidseg.segment.adaptation import PRIOR_SLICES, Adapt, Adaptation, checked_adapt, checked_prior
from kidseg.segment.clock import Clock
from kidseg.segment.decision import weighted
from kidseg.segment.suitability import judge
from kidseg.segment.trained_method import damaged_if_invalid, load_method, schema_of

__all__ = ["Predictor", "Segmentation", "load_predictor"]

# Noise may have 100,000 connected components; listing them all would take seconds.
_MAX_PIECES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A trained method on a device.

    Attributes:
        method: with its networks in eval mode; of an ensemble, the first member.
        schema: numbers and names of its labels.
        sha256: of the model file.
        path: of the model file.
        training_range: ranges of the training patients in the model file; see
            `kidseg.cohort.training_range.training_range`. None if the file has none.
        adapt: what is adapted to each scan; see `kidseg.segment.adaptation`.
        prior_slices: see `PRIOR_SLICES` there.
        decision: weights of the outputs that are not 1; see `kidseg.segment.decision`.
        others: the other members of an ensemble; the probabilities of all are averaged.
    """

    method: Method
    schema: LabelSchema
    sha256: str
    path: Path
    training_range: Mapping[str, Any] | None = None
    adapt: Adapt = "none"
    prior_slices: float = PRIOR_SLICES
    decision: Mapping[str, float] = field(default_factory=dict)
    others: tuple[Method, ...] = ()

    @torch.no_grad()
    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        """Segment a scan, (channels, slices, rows, columns) in canonical order; HU for CT.

        Raises:
            InputError: see `kidseg.cohort.subject.prepare`.
        """
        clock = Clock()
        found = self.find(scan, name, clock)
        subject, progress = found.subject, found.progress
        labels, removed, least_ml = self.decide(found, scan.grid, clock=clock)
        middle = Midline.of(
            subject.image.grid, None if subject.body is None else subject.body.per_slice
        )
        sides = measure_sides(labels, self.schema, middle, name)
        clock.lap("measure")
        placement = self.method.report(subject.with_labels(labels), progress)
        renal = renal_numbers(self.schema, self.method.target)
        figures = {**placement.figures, **values_of(subject, labels, renal)}
        suitability = judge(figures, self.training_range, name)
        material = self.method.material(self.method.config, self.method.plan)
        unit_mm = material.pixel_mm or float(scan.grid.spacing_mm[2])
        facts = {
            "grids": {
                name: [_grid_facts(region, subject, unit_mm) for region in regions]
                for name, regions in progress.steps.items()
            },
            "adapted": {"by": self.adapt, **found.adaptation.as_dict()},
            "decision": self.decision,
            **self._ensemble_facts(),
            "overlap": _overlap_facts(placement, labels),
            "training_range": _rounded(suitability.facts),
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
                *suitability.findings,
                *found.adaptation.findings(self.adapt, name),
            ),
            seconds=clock.seconds,
            progress=progress,
            channels=self.method.plan.channels,
            placement=placement,
        )

    def _ensemble_facts(self) -> dict[str, Any]:
        """The members of an ensemble, and whose grids, figure and training range are told."""
        methods = [self.method, *self.others]
        facts = {"members": [method.name for method in methods], "shown": 0}
        return {"ensemble": facts} if self.others else {}

    @torch.no_grad()
    def find(self, scan: Volume, name: str = "scan", clock: Clock | None = None) -> Found:
        """Prepare a scan and run the steps, without deciding labels; errors as for a call."""
        clock = clock or Clock()
        first = self._advanced(self.method, scan, name, clock)
        regions = list(first.regions)
        for other in self.others:
            regions += self._advanced(other, scan, name, Clock()).regions
        if self.others:
            clock.lap("other members")
        return replace(first, regions=tuple(regions))

    def _advanced(self, method: Method, scan: Volume, name: str, clock: Clock) -> Found:
        """Prepare a scan for a member, and run its steps."""
        material = method.material(method.config, method.plan)
        subject = prepare(scan, material, method.plan.channels, name=name)
        clock.lap("prepare")
        adaptation = Adaptation.of(method, subject, self.prior_slices)
        progress = advance(subject.image, adaptation.steps(method.steps(subject)))
        clock.add(progress.seconds)
        return Found(
            subject=subject, progress=progress, adaptation=adaptation, regions=progress.found
        )

    @torch.no_grad()
    def decide(
        self,
        found: Found,
        scan: Grid,
        decision: Mapping[str, float] | None = None,
        clock: Clock | None = None,
    ) -> tuple[Volume, tuple[Piece, ...], float]:
        """Decide the labels on the scan's voxels, and remove small components.

        Args:
            found: the probabilities.
            scan: grid of the scan.
            decision: weights of the outputs; None: those of the model.
            clock: that measures it.

        Returns:
            (1, slices, rows, columns) uint8; the components removed; their largest volume in ml.
        """
        clock = clock or Clock()
        target = _target_of(found.progress, self.method)
        if decision is not None:
            target = weighted(target, self.schema, decision)
        restored = restore(found.regions, scan, target)
        clock.lap("restore")
        radius = None if found.subject.body is None else found.subject.body.radius_mm
        config = self.method.config.postprocess
        least_ml = min_volume_ml(config, radius, _voxel_ml(found.progress))
        keep_ends = config.least_voxels is None
        labels, removed = remove_small(restored, least_ml, keep_ends=keep_ends)
        clock.lap("postprocess")
        return labels, removed, least_ml


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The probabilities found in a scan.

    Attributes:
        subject: the prepared scan.
        progress: the regions of each step and their probabilities.
        adaptation: to the scan.
        regions: that decide the labels. Those of all members of an ensemble; all else is of the
            first.
    """

    subject: Subject
    progress: Progress
    adaptation: Adaptation
    regions: tuple[Region, ...]


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


def load_predictor(
    model: str | Path | None = None, device: str = "auto", adapt: Adapt | None = None
) -> Predictor:
    """Load the method of a model file.

    Args:
        model: a model file or run folder; "starter" or None for the starter; see `find_model`.
        device: see `choose_device`.
        adapt: what is adapted to each scan; None: what the model file says, or nothing.

    Raises:
        ModelError: see `find_model` and `load_model`; "damaged-model": the content does not match
            the header.
        UsageError, ResourceError: see `find_model` and `choose_device`.
    """
    path = find_model(model)
    file = load_model(path)
    with damaged_if_invalid(path):
        wanted = adapt or checked_adapt(file.header.get("adapt", "none"))
        prior_slices = checked_prior(file.header.get("adapt_prior_slices", PRIOR_SLICES))
        schema = schema_of(file.header)
        decision = dict(file.header.get("decision", {}))
        method, *others = (
            load_method(each.header, each.parts, path, device, wanted, decision)
            for each in members_of(file)
        )
        if any(other.target != method.target for other in others):
            raise ValueError("its members have different outputs")
    return Predictor(
        method=method,
        schema=schema,
        sha256=file.sha256,
        path=path,
        training_range=file.header.get("training_range"),
        adapt=wanted,
        prior_slices=prior_slices,
        decision=decision,
        others=tuple(others),
    )


def _target_of(progress: Progress, method: Method) -> Target:
    """The target of the step whose regions give the labels."""
    target = progress.found[0].target if progress.found else None
    return target or method.target


def _voxel_ml(progress: Progress) -> float:
    """Volume of the voxels on which the labels were predicted; 0 if nothing was."""
    volumes = [region.grid.voxel_ml.median() for region in progress.found]
    return float(volumes[0]) if volumes else 0.0


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
    """Overlap and agreement with the reference, which pose was kept, and the slices compared.

    None without a reference.

    Args:
        placement: of the patient.
        found: predicted labels, which determine the slices.
    """
    if placement.compared is None:
        return None
    by = "slices where something was found" if bool((found.data > 0).any()) else "all slices"
    return {
        **{when: _rounded(masks) for when, masks in placement.overlap.items()},
        "agreement": _rounded(placement.agreement),
        "kept": "correction" if placement.corrected else "start",
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
        step = "Check that kidneys are in view, and that the scan is like those of the training."
        notes.append(("nothing-found", cause, step))
    elif sides is None and (found[0].any() or found[-1].any()):
        cause = "the segmentation reaches the first or last slice; its volume is partial"
        notes.append(("cut-by-field", cause, "Use a scan that contains all of it."))
    if any(reaches_border(each, labels.grid, progress.found) for each in progress.found):
        cause = "the segmentation reaches the border of the region of interest"
        step = "Check it; train with larger regions ('kidseg config' explains the settings)."
        notes.append(("region-border", cause, step))
    measured = sides.findings if sides is not None and found.any() else ()
    return (
        *(Finding(code=code, path=path, cause=cause, next_step=s) for code, cause, s in notes),
        *measured,
    )
