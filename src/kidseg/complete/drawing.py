"""Read a scan and the labels that are drawn in some of its slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kidseg.errors import Finding, InputError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions
from kidseg.io.content import sha256_of
from kidseg.labels import LabelSchema
from kidseg.segment.drawn import Drawn
from kidseg.segment.predictor import Predictor
from kidseg.segment.scans import read_scan
from kidseg.segment.sources import Source
from kidseg.segment.truth import find_references

__all__ = ["Drawing", "read_drawn"]

_AXES = {1: "coronal", 2: "sagittal"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A scan with drawn slices.

    Attributes:
        scan: (channels, slices, rows, columns).
        drawn: its drawn slices, with what there is to say about them.
        name: of the scan, for messages.
    """

    scan: Volume
    drawn: Drawn
    name: str

    @property
    def facts(self) -> Mapping[str, Any]:
        """See `Drawn`."""
        return self.drawn.facts


def read_drawn(
    source: Source,
    drawn: Path,
    predictor: Predictor,
    options: ReadOptions,
    *,
    nothing_beyond: bool,
) -> Drawing:
    """Read a scan, and the labels drawn in some of its slices.

    Args:
        source: the scan.
        drawn: a label volume on its voxels. Voxels that it ignores are not drawn.
        predictor: whose labels they are.
        options: of reading the scan.
        nothing_beyond: what lies below the lowest and above the uppermost slice with labels is
            drawn, too: it is background.

    Raises:
        InputError: "nothing-drawn"; "nothing-left": all slices are; "drawn-across": the labels are
            drawn in coronal or sagittal planes; see `find_references`, `ReferenceLabels.on` and
            `read_scan`.
    """
    method = predictor.method
    image = read_scan(source.path, method.plan.channels, options, source.case).volume
    if not drawn.is_file():
        raise InputError(
            "there is no such file of labels" if not drawn.exists() else "it is no file of labels",
            path=drawn,
            code="no-labels",
            next_step="Name the label volume in which slices are drawn.",
        )
    cyst = method.config.cohort.cyst
    found = find_references({source.path: source.name}, drawn, predictor.schema, cyst)
    reading = replace(options, series=None, volume=None)
    labels, ignored, findings = found[source.path].read_on(image.grid, reading)
    labelled = (labels.data[0] > 0).flatten(1).any(1)
    if not bool(labelled.any()):
        raise InputError(
            "no slice is drawn: all labels are background",
            path=drawn,
            code="nothing-drawn",
            next_step="Draw kidneys and tumours in a few slices, one in six or more.",
        )
    _check_axis(labels, drawn)
    slices = labelled.clone()
    if nothing_beyond:
        shown = labelled.nonzero()[:, 0]
        slices[: shown[0]] = True
        slices[shown[-1] + 1 :] = True
    if bool(slices.all()):
        raise InputError(
            "all its slices are drawn, so that nothing is left to complete",
            path=drawn,
            code="nothing-left",
            next_step="Leave out --nothing-beyond if there may be more beyond them."
            if nothing_beyond
            else "These labels are complete: 'kidseg measure' and 'kidseg convert' take them.",
        )
    facts = {
        "drawn": str(drawn),
        "sha256": sha256_of(drawn),
        "slices": int(labelled.sum()),
        "of": len(labelled),
        "nothing_beyond": nothing_beyond,
    }
    voxels = slices[:, None, None].expand(image.grid.shape)
    known = Drawn(
        labels=labels,
        voxels=voxels if ignored is None else voxels & ~ignored.data[0],
        facts=facts,
        findings=(*findings, *_not_drawn(labels, predictor.schema, drawn)),
    )
    return Drawing(scan=image, drawn=known, name=str(source.path))


def _not_drawn(labels: Volume, schema: LabelSchema, path: Path) -> tuple[Finding, ...]:
    """A finding for the labels that no slice has: the model learns to find none of them."""
    present = set(labels.data.unique().tolist())
    names = [name for number, name in schema.names.items() if number not in present]
    if not names:
        return ()
    return (
        Finding(
            code="not-drawn",
            path=str(path),
            cause=f"no drawn slice has {' or '.join(names)}, so that none is learned, and hardly"
            " any will be found",
            next_step="If the scan shows any, draw a slice through it, and run again.",
        ),
    )


def _check_axis(labels: Volume, path: Path) -> None:
    """Check that labels are not drawn in planes across the slices: one voxel thin, in several.

    Raises:
        InputError: "drawn-across".
    """
    data = labels.data[0].numpy() > 0
    for axis, plane in _AXES.items():
        others = tuple(k for k in range(3) if k != axis)
        used = np.asarray(data.any(others))
        apart = not (used[1:] & used[:-1]).any()
        in_slices = np.asarray(data.any(3 - axis))[:, used].sum(0)
        if apart and int(in_slices.min()) > 1:
            raise InputError(
                f"its labels are drawn in {int(used.sum())} {plane} plane(s), not in axial slices",
                path=path,
                code="drawn-across",
                next_step="Draw whole axial slices.",
            )


def as_training_labels(drawing: Drawing, ignore: int) -> Volume:
    """The labels, with voxels that are not drawn marked by a label to ignore."""
    drawn = drawing.drawn
    data = drawn.labels.data.masked_fill(~drawn.voxels, ignore)
    return Volume(data.to(torch.uint8), drawn.labels.grid)
