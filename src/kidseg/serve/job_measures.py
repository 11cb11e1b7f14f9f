"""The measures of a job: those of `kidseg measure`, without places on the server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kidseg.cases.naming import label_name
from kidseg.errors import Finding, KidsegError, converted
from kidseg.io.atomic import write_json
from kidseg.io.label_formats import FORMATS
from kidseg.measure.measuring import ENDING, Request, measure

__all__ = ["ENDING", "VOLUMES", "measured", "without_name"]

VOLUMES = ("nii", "nrrd", "mha", "seg.nrrd")
"""Formats of labels that can be measured, and that labels without a voxel have too."""


def measured(out: Path, entry: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Measure the labels of a scan, as `kidseg measure` does, into a file beside them.

    Args:
        out: folder of the results.
        entry: of the scan; one of its outputs is in a format of `VOLUMES`.
        request: what else is known.

    Returns:
        "outputs" with this file, and "warnings". If the labels cannot be measured, the outputs are
        the same, and a warning "not-measured" has the reason.
    """
    endings = tuple(FORMATS[name].ending for name in VOLUMES)
    labels = out / next(name for name in entry["outputs"] if name.endswith(endings))
    name = f"{label_name(labels)}{ENDING}"
    try:
        found = measure(labels, request)
        write_json(out / name, _named(found.as_dict()))
    except Exception as error:  # of any kind: the labels are whole
        (out / name).unlink(missing_ok=True)
        return {"warnings": [*entry["warnings"], _not_measured(error).as_dict()]}
    known = {(each["code"], each["cause"]) for each in entry["warnings"]}
    fresh = [each.as_dict() for each in found.findings if (each.code, each.cause) not in known]
    return {"outputs": [*entry["outputs"], name], "warnings": [*entry["warnings"], *fresh]}


def without_name(host: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a machine, without what it is called."""
    return {key: value for key, value in host.items() if key != "name"}


def _named(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Measures with names of files instead of their paths."""

    def short(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {**facts, "path": Path(str(facts["path"])).name}

    return {
        **measures,
        "labels": Path(measures["labels"]).name,
        "files": {role: list(map(short, files)) for role, files in measures["files"].items()},
        "warnings": list(map(short, measures["warnings"])),
        "host": without_name(measures["host"]),
    }


def _not_measured(error: Exception) -> Finding:
    known = error if isinstance(error, KidsegError) else converted(error)
    why = known.cause if known is not None else type(error).__name__
    return Finding(
        code="not-measured",
        path="",
        cause=f"only the volumes were measured: {why}",
        next_step="Download the labels, and run 'kidseg measure' on them.",
    )
