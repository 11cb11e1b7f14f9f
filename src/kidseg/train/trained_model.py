"""The model file of a training, and the ranges of the patients it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from kidseg.checkpoint import save_model
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject
from kidseg.cohort.training_range import renal_numbers, training_range, values_of
from kidseg.methods import Method
from kidseg.pipeline import advance
from kidseg.train.record import Cases
from kidseg.train.trained_images import TRAINING_SET, TrainedImages

__all__ = ["measured_range", "write_model"]


def write_model(
    out: Path,
    method: Method,
    cohort: Cohort,
    used: Cases,
    images: TrainedImages,
    summary: Mapping[str, Any],
) -> dict[str, str]:
    """Write model.safetensors into the folder of a run; its name and hash, for summary.json.

    Args:
        out: folder of the run.
        method: trained.
        cohort: it was trained on.
        used: the cases of the cohort.
        images: that it has seen, also as the model it started from.
        summary: of the run: how the weights were selected.
    """
    all_ct = all(channel.scheme == "ct" for channel in cohort.plan.channels)
    header = {
        "method": method.name,
        "config": asdict(method.config),
        "plan": cohort.plan.as_dict(),
        "labels": {**cohort.schema.as_dict(), "target": cohort.target.as_dict()},
        "input": {
            "channels": [channel.channel for channel in cohort.plan.channels],
            "unit": "HU" if all_ct else "as in the data set",
            "orientation": "any; brought to canonical order",
        },
        TRAINING_SET: {
            "digest": used.digest,
            "cases": len(used.training),
            "images": asdict(images),
        },
        "selection": {
            "by": f"mean Dice of {', '.join(cohort.selection)} over validation patients",
            "validation": summary["validation"],
            "steps": summary["steps"],
            "validation_cases": len(used.validation),
            "stages": summary["stages"],
            "seed": summary["seed"],
        },
        "licence": "as the training data allow",
        "training_range": measured_range(method, cohort),
        **method.facts,
    }
    parts = {name: net.state_dict() for name, net in method.parts.items()}
    path = out / "model.safetensors"
    return {"path": path.name, "sha256": save_model(path, parts, header, overwrite=True)}


@torch.no_grad()
def measured_range(method: Method, cohort: Cohort) -> dict[str, Any]:
    """The ranges of size, position and HU of the training patients; see `training_range`.

    The position is from the locating steps alone.
    """
    renal = renal_numbers(cohort.schema, cohort.target)

    def figures(subject: Subject) -> Mapping[str, float]:
        steps = takewhile(lambda step: step.segment is None, method.steps(subject))
        placed = method.report(subject, advance(subject.image, list(steps)))
        return {**placed.figures, **values_of(subject, subject.labels, renal)}

    return training_range([figures(subject) for subject in cohort.training])
