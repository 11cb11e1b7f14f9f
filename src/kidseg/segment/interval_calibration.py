"""Calibrate the intervals of a model's volumes on labelled scans; see `intervals`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kidseg.cases import open_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.errors import UsageError
from kidseg.geometry import Volume
from kidseg.io.atomic import check_writable
from kidseg.io.content import joint_sha256, sha256_of
from kidseg.labels import Target
from kidseg.model_file import find_model
from kidseg.pipeline.windows import Window, part_of
from kidseg.provenance import provenance
from kidseg.segment.calibration import joint_digest, labelled_cases, read_case, trained_on
from kidseg.segment.intervals import INTERVALS, LEAST_CASES, LEVEL, conformal_ends
from kidseg.segment.model_loading import load_predictor
from kidseg.segment.predictor import Predictor
from kidseg.segment.result_facts import volumes_of
from kidseg.segment.review import TINY, Observer, Review, tempered
from kidseg.store.files import source_files

__all__ = [
    "TEMPERATURES",
    "Likelihood",
    "Seen",
    "Volumes",
    "calibrate_intervals",
    "chosen",
    "see",
    "volumes_at",
]

TEMPERATURES = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)
"""Steps of about a fifth: the likelihood is flat around its maximum."""


@dataclass(frozen=True, kw_only=True)
class Volumes:
    """A structure in one labelled scan.

    Attributes:
        true_ml: its volume by the reference labels.
        found_ml: as segmented.
        scale_ml: see `kidseg.segment.intervals.scale_ml`.
    """

    true_ml: float
    found_ml: float
    scale_ml: float

    @property
    def score(self) -> float:
        """The error in multiples of the scale."""
        return (self.true_ml - self.found_ml) / self.scale_ml


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A labelled scan at each temperature.

    Attributes:
        volumes: {temperature: {structure: its volumes}}.
        log_loss: {temperature: mean negative log-likelihood of the true labels}.
    """

    volumes: Mapping[float, Mapping[str, Volumes]]
    log_loss: Mapping[float, float]


def calibrate_intervals(
    model: str | Path,
    dataset: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    cases: Sequence[str] | None = None,
    scans: str = "",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Choose how wide the intervals of volumes must be, and write a model that says so.

    The new model differs from the old in the entry "intervals" of its header; its labels are the
    same. The decision must be calibrated before, best on other scans. First the temperature of the
    probabilities is chosen, by their likelihood, then the ends of the intervals.

    Args:
        model: a model file or a run folder.
        dataset: labelled scans that the model was not trained on, one of each patient, like those
            that it is for; in any layout of `kidseg.cases`.
        out: the model file to write.
        device: see `choose_device`.
        cases: ids of the cases to use; None: all.
        scans: what they are, such as "digital patients": said beside each interval, as it holds for
            scans like these only.
        overwrite: replace an existing file.
        progress: called with (cases done, total cases).

    Returns:
        {"model": {"path", "sha256"}, "level", "temperature", "ends": {structure: (low, high)},
        "adapt", "scans", "cases", "curve": {temperature: mean negative log-likelihood}, "volumes":
        {structure: {"true_ml", "found_ml", "scale_ml"} of each case}, "findings"}.

    Raises:
        UsageError: "too-few-cases"; "no-labels", "unknown-case", "output-exists".
        InputError: see `open_dataset`, `read_case`; "other-labels".
        ModelError: see `load_predictor`.
    """
    source, out = find_model(model), Path(out)
    check_writable(out, overwrite=overwrite)
    predictor = load_predictor(source, device)
    data = open_dataset(dataset)
    used = labelled_cases(data, cases)
    if len(used) < LEAST_CASES:
        raise UsageError(
            f"{len(used)} labelled case(s) cannot tell an interval that holds in"
            f" {LEVEL:.0%} of all scans; at least {LEAST_CASES} can",
            path=data.root,
            code="too-few-cases",
            next_step="Give more labelled scans that the model was not trained on.",
        )
    seen: list[Seen] = []
    for case in used:
        seen.append(see(predictor, *read_case(predictor, data, case), case.id))
        if progress is not None:
            progress(len(seen), len(used))
    file = load_model(source)
    digests = {case.id: joint_sha256(map(sha256_of, source_files(case))) for case in used}
    choice = chosen(seen)
    named = {"adapt": predictor.adapt, "scans": scans, "cases": [case.id for case in used]}
    record = {**choice, **named}
    entry = {**record, "digest": joint_digest(digests), "of": file.sha256, **provenance()}
    header = {**file.header, INTERVALS: entry}
    return {
        "model": {
            "path": str(out),
            "sha256": save_model(out, file.parts, header, overwrite=overwrite),
        },
        **record,
        "volumes": {
            name: [_rounded(one.volumes[choice["temperature"]][name]) for one in seen]
            for name in choice["ends"]
        },
        "findings": [f.as_dict() for f in trained_on(file.header, digests, data.root)],
    }


def chosen(seen: Sequence[Seen]) -> dict[str, Any]:
    """The calibration by labelled scans: "level", "temperature", "ends" and "curve".

    Args:
        seen: at least `LEAST_CASES` scans.
    """
    curve = {each: statistics.fmean(one.log_loss[each] for one in seen) for each in TEMPERATURES}
    temperature = min(TEMPERATURES, key=curve.__getitem__)
    return {
        "level": LEVEL,
        "temperature": temperature,
        "ends": {
            name: [
                round(end, 6)
                for end in conformal_ends([one.volumes[temperature][name].score for one in seen])
            ]
            for name in seen[0].volumes[temperature]
        },
        "curve": {str(each): round(value, 6) for each, value in curve.items()},
    }


def see(
    predictor: Predictor, scan: Volume, labels: Volume, ignore: Volume | None, name: str = "scan"
) -> Seen:
    """Segment a labelled scan, and compare with the truth at each temperature.

    Args:
        predictor: segments it.
        scan: the scan.
        labels: its reference, with the numbers of the model.
        ignore: voxels that count as they are segmented; None: none.
        name: of the scan.
    """
    found = predictor.find(scan, name)
    target, schema = predictor.target_of(found), predictor.schema
    observers = {each: Observer(scan.grid, target, schema, each) for each in TEMPERATURES}
    likelihood = Likelihood(target, labels, ignore)

    def watch(k: int, window: Window, probabilities: Tensor) -> None:
        likelihood(k, window, probabilities)
        for observer in observers.values():
            observer(k, window, probabilities)

    decided = predictor.decide(found, scan.grid, None, watch)
    volumes = {
        temperature: volumes_at(
            Review.of(observer.doubt, found.regions, decided.labels, target, schema),
            decided.labels,
            labels,
            ignore,
        )
        for temperature, observer in observers.items()
    }
    return Seen(volumes=volumes, log_loss=likelihood.log_loss)


def volumes_at(
    review: Review, found: Volume, labels: Volume, ignore: Volume | None
) -> dict[str, Volumes]:
    """The structures in a labelled scan.

    Args:
        review: of the segmentation.
        found: the labels that it found.
        labels: the reference.
        ignore: voxels that count as they are segmented; None: none.
    """
    truth = labels.data.to(torch.uint8)
    if ignore is not None:
        truth = torch.where(ignore.data > 0, found.data, truth)
    true_ml = volumes_of(Volume(truth, labels.grid), review.schema, review.target)
    return {
        name: Volumes(true_ml=true_ml[name], found_ml=found_ml, scale_ml=review.scale_ml(name))
        for name, found_ml in review.volumes_ml.items()
    }


class Likelihood:
    """The negative log-likelihood of the true labels in all voxels that are seen.

    Args:
        target: meaning of the channels.
        labels: the truth.
        ignore: voxels that are left out.
    """

    def __init__(self, target: Target, labels: Volume, ignore: Volume | None) -> None:
        self._target = target
        first = int(target.exclusive)
        member = torch.zeros((target.outputs, 256), dtype=torch.bool)
        for number, covered in enumerate(target.channels):
            member[first + number, list(covered)] = True
        if target.exclusive:
            member[0] = ~member[1:].any(0)
        self._member = member
        self._labels, self._ignore = labels.data[0], None if ignore is None else ignore.data[0] > 0
        self._sums = dict.fromkeys(TEMPERATURES, 0.0)
        self._count = 0

    def __call__(self, k: int, window: Window, probabilities: Tensor) -> None:
        """Take the probabilities of a window of slice k; see `kidseg.pipeline.restore`."""
        truth = self._member[:, part_of(self._labels[k], window).long()]
        kept = torch.ones(truth.shape[1:], dtype=torch.bool)
        if self._ignore is not None:
            kept = ~part_of(self._ignore[k], window)
        self._count += int(kept.sum())
        for temperature in self._sums:
            values = tempered(probabilities, self._target, temperature).clamp(TINY, 1 - TINY)
            likely = torch.where(truth, values, 1 - values).log()
            if self._target.exclusive:
                likely = likely.masked_fill(~truth, 0.0)
            self._sums[temperature] -= float(likely.sum(0)[kept].sum(dtype=torch.float64))

    @property
    def log_loss(self) -> dict[float, float]:
        """Mean over the voxels, by temperature; 0 if none was seen."""
        return {each: value / max(self._count, 1) for each, value in self._sums.items()}


def _rounded(volumes: Volumes) -> dict[str, float]:
    return {name: round(getattr(volumes, name), 4) for name in ("true_ml", "found_ml", "scale_ml")}
