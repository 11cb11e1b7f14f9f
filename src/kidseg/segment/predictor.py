"""Segment scans with a trained method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kidseg.cohort.subject import Material, Subject, prepare
from kidseg.cohort.training_range import Placement, renal_numbers, values_of
from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume
from kidseg.header import OnlyIn
from kidseg.intensity import Normalisation
from kidseg.labels import LabelSchema, Target
from kidseg.meaning import RENAL
from kidseg.measure import Midline, measure_sides
from kidseg.measure.midline import midline_of
from kidseg.methods import Method
from kidseg.pipeline import (
    Progress,
    Region,
    Watch,
    advance,
    restore,
    sample,
    share_of,
)
from kidseg.pipeline.windows import Window
from kidseg.postprocess import is_slab, least_kidney_ml
from kidseg.segment.adaptation import PRIOR_SLICES, Adapt, Adaptation, adapted_facts, unadapted
from kidseg.segment.clock import Clock
from kidseg.segment.decision import weighted
from kidseg.segment.drawn import Drawn
from kidseg.segment.intervals import Calibrated, unused_calibration
from kidseg.segment.plausibility import implausible
from kidseg.segment.removal import Decided, postprocessed
from kidseg.segment.result_facts import (
    grids_facts,
    notes_facts,
    overlap_facts,
    rounded,
    sides_facts,
    volumes_of,
)
from kidseg.segment.review import Observer, Review
from kidseg.segment.suitability import judge

__all__ = ["Found", "Predictor", "Segmentation"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A trained method on a device.

    Attributes:
        method: with its networks in eval mode; of an ensemble, the first member.
        schema: numbers and names of its labels.
        sha256: of the model file; of several, that of their digests.
        path: of the model file; of several, the first.
        paths: of all model files.
        training_ranges: of each member, ranges of the training patients in the model file; see
            `kidseg.cohort.training_range.training_range`. None if the file has none.
        adapt: what is adapted to each scan; see `kidseg.segment.adaptation`.
        prior_slices: see `PRIOR_SLICES` there.
        decision: weights of the outputs that are not 1; see `kidseg.segment.decision`.
        decided_for: what was adapted to the scans on which the decision was calibrated; None: it
            was not calibrated.
        others: the other members of an ensemble; the probabilities of all are averaged.
        only_in: of each member, the scans in which it counts: "slabs", "stacks", None for all; see
            `kidseg.members`. Empty: all count in all.
        members: methods of all models in the file. Fewer methods than members: some are merged,
            see `NnUnet.merged`.
        intervals: calibration of the intervals of volumes; None if the file has none.
        drawn: slices of the scan to segment whose labels are known, and stay; None: none are.
        on_progress: called with "segment" or "decide" while a scan is segmented, and how much of it
            is done, 0 to 1; each member of an ensemble counts the same.
    """

    method: Method
    schema: LabelSchema
    sha256: str
    path: Path
    training_ranges: tuple[Mapping[str, Any] | None, ...] = (None,)
    adapt: Adapt = "none"
    prior_slices: float = PRIOR_SLICES
    decision: Mapping[str, float] = field(default_factory=dict)
    decided_for: Adapt | None = None
    others: tuple[Method, ...] = ()
    only_in: tuple[OnlyIn | None, ...] = ()
    members: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    intervals: Calibrated | None = None
    drawn: Drawn | None = None
    on_progress: Callable[[str, float], None] = lambda what, done: None

    @torch.no_grad()
    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        """Segment a scan, (channels, slices, rows, columns) in canonical order; HU for CT.

        Raises:
            InputError: see `kidseg.cohort.subject.prepare`.
        """
        clock = Clock()
        found = self.find(scan, name, clock)
        subject, progress = found.subject, found.progress
        decided, review = self.reviewed(found, scan.grid, clock)
        labels = decided.labels
        per_slice = None if subject.body is None else subject.body.per_slice
        middle = midline_of(subject.image.grid, per_slice, labels, self.schema)
        sides = measure_sides(labels, self.schema, middle, name)
        method = found.methods[0]
        least_ml = least_kidney_ml(method.config.postprocess, _radius_mm(subject), scan.grid)
        clock.lap("measure")
        found_in = subject.with_labels(labels)
        placement = method.report(found_in, progress)
        renal = renal_numbers(self.schema, method.target)
        figures = {**placement.figures, **values_of(subject, labels, renal)}
        shown = self.counting(scan.grid).index(True)
        suitability = judge(figures, self.training_ranges[shown], name)
        material = method.material(method.config, method.plan)
        unit_mm = material.pixel_mm or float(scan.grid.spacing_mm[2])
        facts = {
            "grids": grids_facts(progress, subject, unit_mm),
            "adapted": adapted_facts(self.adapt, found.adaptations),
            "decision": self.decision,
            **({} if self.drawn is None else {"completed": dict(self.drawn.facts)}),
            **self._ensemble_facts(found),
            "overlap": overlap_facts(placement, found_in),
            "training_range": rounded(suitability.facts),
            "notes": notes_facts(progress),
            "removed": decided.removed_facts(),
            "volumes_ml": volumes_of(labels, self.schema, method.target),
            "sides": sides_facts(sides, middle, self.schema, method.target),
            "review": review.facts(self.calibrated_intervals),
        }
        return Segmentation(
            labels=labels,
            facts=facts,
            findings=(
                *(() if self.drawn is None else self.drawn.findings),
                *implausible(labels, subject, progress, sides, name, least_ml=least_ml),
                *decided.findings(name),
                *(finding for note in progress.notes.values() for finding in note.findings),
                *suitability.findings,
                *unadapted(self.adapt, found.adaptations, name),
                *unused_calibration(self.intervals, self.decided_for, self.adapt, name),
            ),
            seconds=clock.seconds,
            progress=progress,
            channels=method.plan.channels,
            placement=placement,
            review=review,
            midline=middle,
        )

    @property
    def calibrated_intervals(self) -> Calibrated | None:
        """The calibration, if probabilities are adapted to a scan as they were for it."""
        known = self.intervals
        return known if known is not None and known.adapt == self.adapt else None

    def target_of(self, found: Found) -> Target:
        """The target of the step whose regions give the labels."""
        regions = found.progress.found
        return (regions[0].target if regions else None) or self.method.target

    def _ensemble_facts(self, found: Found) -> dict[str, Any]:
        """The members that count in a scan, and whose grids, figure and training range are told."""
        if len(self.members) == 1:
            return {}
        counted = [each.name for each in found.methods] if self.only_in else list(self.members)
        left_out = len(self.members) - len(counted)
        facts = {"members": counted, "shown": 0, **({"left_out": left_out} if left_out else {})}
        return {"ensemble": facts}

    @torch.no_grad()
    def find(self, scan: Volume, name: str = "scan", clock: Clock | None = None) -> Found:
        """Prepare a scan and run the steps, without deciding labels; errors as for a call."""
        clock = clock or Clock()
        self.on_progress("segment", 0.0)
        methods = tuple(compress((self.method, *self.others), self.counting(scan.grid)))
        required, *others = _required(methods)
        subject = self._prepared(scan, required, name)
        clock.lap("prepare")
        first = self._advanced(methods, 0, subject, clock)
        regions, known = list(first.regions), {required: subject}
        adaptations = list(first.adaptations)
        for number, needs in enumerate(others, start=1):
            if needs not in known:
                known[needs] = self._prepared(scan, needs, name)
            other = self._advanced(methods, number, known[needs], Clock())
            regions += other.regions
            adaptations += other.adaptations
        if others:
            clock.lap("other members")
        return replace(first, regions=tuple(regions), adaptations=tuple(adaptations))

    def counting(self, scan: Grid) -> list[bool]:
        """Of each member, whether it counts in a scan of this grid."""
        methods = (self.method, *self.others)
        slabs = [is_slab(method.config.postprocess, scan) for method in methods]
        return [
            only_in in (None, "slabs" if slab else "stacks")
            for only_in, slab in zip(self.only_in or [None] * len(methods), slabs, strict=True)
        ]

    def _prepared(
        self, scan: Volume, needs: tuple[Material, tuple[Normalisation, ...]], name: str
    ) -> Subject:
        subject = prepare(scan, *needs, name=name)
        return replace(subject, renal=self.schema.ids_of(*RENAL))

    def _advanced(
        self, methods: tuple[Method, ...], number: int, subject: Subject, clock: Clock
    ) -> Found:
        """Run the steps of a member on a prepared scan."""
        method, share = methods[number], 1 / len(methods)
        steps = method.steps(subject)
        adaptation = Adaptation.of(method, steps, subject, self.prior_slices)
        on_progress = share_of(partial(self.on_progress, "segment"), number * share, share)
        progress = advance(subject.image, adaptation.steps(steps), on_progress)
        clock.add(progress.seconds)
        return Found(
            methods=methods,
            subject=subject,
            progress=progress,
            adaptations=(adaptation,),
            regions=progress.found,
        )

    def reviewed(
        self, found: Found, scan: Grid, clock: Clock | None = None
    ) -> tuple[Decided, Review]:
        """The labels, see `decide`, and where they are in doubt."""
        clock = clock or Clock()
        target = self.target_of(found)
        calibrated = self.calibrated_intervals
        temperature = 1.0 if calibrated is None else calibrated.temperature
        observer = Observer(scan, target, self.schema, temperature)

        def watch(k: int, window: Window, probabilities: Tensor) -> None:
            if self.drawn is None or not self.drawn.slices[k]:
                observer(k, window, probabilities)
            self.on_progress("decide", k / scan.shape[0])

        decided = self.decide(found, scan, clock, watch)
        review = Review.of(observer.doubt, found.regions, decided.labels, target, self.schema)
        clock.lap("review")
        self.on_progress("decide", 1.0)
        return decided, review

    @torch.no_grad()
    def decide(
        self,
        found: Found,
        scan: Grid,
        clock: Clock | None = None,
        watch: Watch | None = None,
    ) -> Decided:
        """Decide the labels on the scan's voxels, and remove components that are none.

        Args:
            found: the probabilities.
            scan: grid of the scan.
            clock: that measures it.
            watch: sees the probabilities; see `restore`.
        """
        clock = clock or Clock()
        restored = restore(found.regions, scan, self.target_of(found), watch)
        clock.lap("restore")
        decided = self._postprocessed(found, restored)
        clock.lap("postprocess")
        return decided

    @torch.no_grad()
    def decide_by(
        self, found: Found, scan: Grid, decisions: Sequence[Mapping[str, float]]
    ) -> Iterator[Decided]:
        """Decide the labels by the weights of each decision, as `decide` does by the model's.

        The probabilities are sampled once.
        """
        target = self.target_of(found)
        targets = [weighted(target, self.schema, decision) for decision in decisions]
        samples = sample(found.regions, scan, targets)
        for target in targets:
            yield self._postprocessed(found, samples.decided(target))

    def _postprocessed(self, found: Found, labels: Volume) -> Decided:
        return postprocessed(
            labels if self.drawn is None else self.drawn.over(labels),
            found.methods[0].config.postprocess,
            self.schema,
            self.target_of(found),
            _radius_mm(found.subject),
            _voxel_ml(found.progress),
            None if self.drawn is None else self.drawn.voxels.numpy(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The probabilities found in a scan.

    Attributes:
        methods: that found them: the members that count in the scan.
        subject: the prepared scan.
        progress: the regions of each step and their probabilities.
        adaptations: of each member of an ensemble to the scan.
        regions: that decide the labels. Those of all members of an ensemble; subject and progress
            are of the first.
    """

    methods: tuple[Method, ...]
    subject: Subject
    progress: Progress
    adaptations: tuple[Adaptation, ...]
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
        review: where the labels are in doubt.
        midline: of the body, or an estimate; all outputs tell sides by it.
    """

    labels: Volume
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]
    progress: Progress
    channels: tuple[Normalisation, ...]
    placement: Placement
    review: Review
    midline: Midline


def _required(methods: Sequence[Method]) -> list[tuple[Material, tuple[Normalisation, ...]]]:
    """What each method requires of a prepared scan, so that as many as possible share one.

    A method without masks shares that of a method with masks.
    """
    own = [(each.material(each.config, each.plan), each.plan.channels) for each in methods]
    shared = []
    for needs in own:
        alike = [other for other in own if (replace(other[0], masks=None), other[1]) == needs]
        shared.append(max(alike, key=lambda other: other[0].masks is not None, default=needs))
    return shared


def _radius_mm(subject: Subject) -> float | None:
    """Geometric mean of the semi-axes of the body; None without one."""
    return None if subject.body is None else subject.body.radius_mm


def _voxel_ml(progress: Progress) -> float:
    """Volume of the voxels on which the labels were predicted; 0 if nothing was."""
    volumes = [region.grid.voxel_ml.median() for region in progress.found]
    return float(volumes[0]) if volumes else 0.0
