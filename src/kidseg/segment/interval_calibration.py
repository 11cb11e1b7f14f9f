"""Calibrate the intervals of a model's volumes on labelled scans; see `intervals`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kidseg.cases import Case, Dataset, open_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.errors import UsageError
from kidseg.geometry import Volume
from kidseg.io.atomic import check_writable
from kidseg.io.content import joint_sha256, sha256_of
from kidseg.model_file import find_model
from kidseg.provenance import provenance
from kidseg.segment.calibration import joint_digest, labelled_cases, read_case, trained_on
from kidseg.segment.intervals import INTERVALS, LEAST_CASES, LEVEL, conformal_ends
from kidseg.segment.predictor import Predictor, load_predictor
from kidseg.segment.result_facts import volumes_of
from kidseg.store.files import source_files

__all__ = ["Volumes", "calibrate_intervals", "volumes_in"]


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


def calibrate_intervals(
    model: str | Path,
    dataset: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    cases: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Choose how wide the intervals of volumes must be, and write a model that says so.

    The new model differs from the old in the entry "intervals" of its header; its labels are the
    same. The decision must be calibrated before, best on other scans.

    Args:
        model: a model file or a run folder.
        dataset: labelled scans that the model was not trained on, one of each patient, like those
            that it is for; in any layout of `kidseg.cases`.
        out: the model file to write.
        device: see `choose_device`.
        cases: ids of the cases to use; None: all.
        overwrite: replace an existing file.
        progress: called with (cases done, total cases).

    Returns:
        {"model": {"path", "sha256"}, "level", "ends": {structure: (low, high)}, "adapt", "cases",
        "volumes": {structure: {"true_ml", "found_ml", "scale_ml"} of each case}, "findings"}.

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
    found: list[Mapping[str, Volumes]] = []
    for case in used:
        found.append(_volumes_of_case(predictor, data, case))
        if progress is not None:
            progress(len(found), len(used))
    volumes = {name: [each[name] for each in found] for name in found[0]}
    file = load_model(source)
    digests = {case.id: joint_sha256(map(sha256_of, source_files(case))) for case in used}
    record = {
        "level": LEVEL,
        "ends": {
            name: [round(end, 6) for end in conformal_ends([each.score for each in values])]
            for name, values in volumes.items()
        },
        "adapt": predictor.adapt,
        "cases": [case.id for case in used],
    }
    entry = {**record, "digest": joint_digest(digests), "of": file.sha256, **provenance()}
    header = {**file.header, INTERVALS: entry}
    return {
        "model": {
            "path": str(out),
            "sha256": save_model(out, file.parts, header, overwrite=overwrite),
        },
        **record,
        "volumes": {name: [_rounded(each) for each in values] for name, values in volumes.items()},
        "findings": [f.as_dict() for f in trained_on(file.header, digests, data.root)],
    }


def volumes_in(
    predictor: Predictor, scan: Volume, labels: Volume, ignore: Volume | None, name: str = "scan"
) -> dict[str, Volumes]:
    """The structures in a labelled scan.

    Args:
        predictor: segments it.
        scan: the scan.
        labels: its reference, with the numbers of the model.
        ignore: voxels that count as they are segmented; None: none.
        name: of the scan.
    """
    decided, review = predictor.reviewed(predictor.find(scan, name), scan.grid)
    truth = labels
    if ignore is not None:
        data = torch.where(ignore.data > 0, decided.labels.data, labels.data.to(torch.uint8))
        truth = Volume(data, labels.grid)
    true_ml = volumes_of(truth, predictor.schema, review.target)
    return {
        structure: Volumes(
            true_ml=true_ml[structure], found_ml=found_ml, scale_ml=review.scale_ml(structure)
        )
        for structure, found_ml in review.volumes_ml.items()
    }


def _volumes_of_case(predictor: Predictor, data: Dataset, case: Case) -> dict[str, Volumes]:
    scan, labels, ignore = read_case(predictor, data, case)
    return volumes_in(predictor, scan, labels, ignore, case.id)


def _rounded(volumes: Volumes) -> dict[str, float]:
    return {name: round(getattr(volumes, name), 4) for name in ("true_ml", "found_ml", "scale_ml")}
