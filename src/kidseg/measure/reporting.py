"""What of the measures of labels goes into a report on their segments (DICOM SR)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from kidseg.errors import Finding
from kidseg.io.dicom_report import Reported
from kidseg.io.label_writing import Exported
from kidseg.measure.parts import Labelled, Part, Parts, whole_labels
from kidseg.measure.sizes import sizes_of, volume_of

__all__ = ["report_on", "with_report"]


def with_report(
    exported: Exported, labelled: Labelled, parts: Parts
) -> tuple[Exported, tuple[Finding, ...]]:
    """Labels to write, with what a report says of them; and findings, see `report_on`.

    Args:
        exported: the labels, on all voxels of their scan.
        labelled: the same voxels, in any order.
        parts: its structures.
    """
    reported, findings = report_on(labelled, parts)
    return replace(exported, reported=reported), findings


def report_on(labelled: Labelled, parts: Parts) -> tuple[tuple[Reported, ...], tuple[Finding, ...]]:
    """The volumes and diameters that `kidseg measure` finds, by segment.

    Each label with voxels is a group. Where it is one kidney, lesion or cyst as a whole, it has the
    measures of that; otherwise its volume, and a group follows for each of these that lies in this
    label alone.

    Returns:
        The groups, by label; and findings: those of `find_parts`; "no-segment": a structure
        consists of several labels, so that no segment contains it.
    """
    cysts = [part for (meaning, _), part in parts.masses.items() if meaning == "cyst"]
    structures = [*parts.kidneys.values(), *parts.tumours, *cysts]
    within = defaultdict[int, list[Part]](list)
    for part in structures:
        within[part.numbers[0]] += [part] if len(part.numbers) == 1 else []
    groups = [
        group
        for whole in whole_labels(labelled, sorted(labelled.schema.ids))
        for group in _groups(whole, within[whole.numbers[0]])
    ]
    spread = [part for part in structures if len(part.numbers) > 1]
    return tuple(groups), (*parts.findings, *_without_segment(spread, labelled))


def _groups(whole: Part, structures: Sequence[Part]) -> Iterator[Reported]:
    """Of a label."""
    (number,) = whole.numbers
    size = _voxels(whole)
    same = [part for part in structures if _voxels(part) == size]
    if same:
        (part,) = same
        yield Reported(
            label=number,
            name=part.id,
            side=part.side,
            is_whole=True,
            is_partial=part.is_partial,
            values=sizes_of(part),
        )
        return
    yield Reported(
        label=number,
        name=whole.id,
        side=None,
        is_whole=True,
        is_partial=whole.is_partial,
        values=[volume_of(whole)],
    )
    for part in structures:
        yield Reported(
            label=number,
            name=part.id,
            side=part.side,
            is_whole=False,
            is_partial=part.is_partial,
            values=sizes_of(part),
        )


def _voxels(part: Part) -> int:
    return int(np.count_nonzero(part.mask.data))


def _without_segment(spread: Sequence[Part], labelled: Labelled) -> list[Finding]:
    if not spread:
        return []
    named = "; ".join(f"the {part.id} ({part.label})" for part in spread)
    return [
        Finding(
            code="no-segment",
            path=str(labelled.path),
            cause=f"several labels form {named}: the report has the volumes of these labels only",
        )
    ]
