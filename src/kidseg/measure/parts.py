"""Kidneys and tumours in a label volume, each as a mask of its own, with side and name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kidseg.check.anomalies import border_faces, numbered_components
from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import canonical
from kidseg.labels import LabelSchema, Meaning
from kidseg.meaning import RENAL, Side
from kidseg.measure.kidney_pieces import kidney_findings, main_pieces, stretched
from kidseg.measure.mask import Mask
from kidseg.measure.midline import Midline
from kidseg.measure.part import Part
from kidseg.measure.sides import SidedVoxels, assign_sides, side_findings
from kidseg.metrics import union_box

__all__ = ["SIDES", "Labelled", "Part", "Parts", "find_parts", "tracked_lesions", "whole_labels"]

SIDES: tuple[Side, ...] = ("right", "left")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """A label volume, and what is known of it.

    Attributes:
        labels: (1, slices, rows, columns) uint8, volumetric, in any voxel order.
        schema: of the labels.
        midline: of the body, in the same patient space.
        path: of the file, for findings.
        tracking: {label: identifier of the lesion}, the same at every time; a label with one is one
            lesion. Without, each connected component of a tumour label is.
        tracking_uids: {label: Tracking UID}, of labels with a tracking identifier.
        is_cropped: the volume may be cropped to its labels, so that its border is not the scan's.
        record: entry of the file in the result.json beside it; {} if there is none.
        facts: of the header of the scan.
        findings: of reading.
    """

    labels: Volume
    schema: LabelSchema
    midline: Midline
    path: Path = Path("labels")
    tracking: Mapping[int, str] = field(default_factory=dict)
    tracking_uids: Mapping[int, str] = field(default_factory=dict)
    is_cropped: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """All structures of a volume.

    Attributes:
        kidneys: parenchyma, by side; a side without any is missing.
        tumours: lesions, by side and from large to small.
        masses: {(meaning, side): all voxels of tumours or cysts on this side, specks included}.
        specks: {side: all pieces of tumours that are too small to count}.
        others: labels that are not recognized.
        findings: about sides, borders and labels.
        meanings: those of the labels: without one, nothing is known of such structures.
        scanned: the voxels of the scan; None if the volume may be cropped to its labels.
    """

    kidneys: Mapping[Side, Part]
    tumours: tuple[Part, ...]
    masses: Mapping[tuple[Meaning, Side], Part]
    specks: Mapping[Side, Part]
    others: tuple[Part, ...]
    findings: tuple[Finding, ...]
    meanings: frozenset[Meaning]
    scanned: Grid | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Box:
    """The box around all kidneys and masses.

    Attributes:
        label: (slices, rows, columns) uint8, only of kidneys and masses.
        is_right: bool.
        grid: of the box.
        start: index of its first voxel in the image.
        whole: shape of the image; None if its border is not that of the scan.
        names: {label: name}.
    """

    label: np.ndarray
    is_right: np.ndarray
    grid: Grid
    start: tuple[int, ...]
    whole: tuple[int, int, int] | None
    names: Mapping[int, str]

    def on(self, side: Side, labels: tuple[int, ...]) -> np.ndarray:
        """Voxels with one of these labels on a side."""
        return np.asarray(np.isin(self.label, labels) & (self.is_right == (side == "right")))

    def part(
        self,
        data: np.ndarray,
        name: str,
        meaning: Meaning | None,
        side: Side | None,
        tracking: str | None = None,
    ) -> Part:
        """A structure that is not empty."""
        numbers = tuple(int(number) for number in np.unique(self.label[data]))
        (mask,) = Mask(data, self.grid).cropped()
        return Part(
            id=name,
            meaning=meaning,
            side=side,
            label=", ".join(self.names[number] for number in numbers),
            numbers=numbers,
            tracking=tracking,
            mask=mask,
            main=mask,
            borders=self._borders(data),
        )

    def _borders(self, data: np.ndarray) -> tuple[str, ...]:
        if self.whole is None:
            return ()
        box = union_box(data)
        assert box is not None
        moved = [
            slice(extent.start + low, extent.stop + low)
            for extent, low in zip(box, self.start, strict=True)
        ]
        return border_faces(moved, self.whole)


def tracked_lesions(schema: LabelSchema, numbered: Collection[int] = ()) -> dict[int, str]:
    """{label: tracking id} of single lesions: tumours whose name has a number, as "tumour 2" has.

    Args:
        schema: of the labels.
        numbered: labels whose names have a number that is not part of them.
    """
    return {
        number: schema.names[number]
        for number in schema.ids_of("tumour")
        if number not in numbered and any(letter.isdigit() for letter in schema.names[number])
    }


def find_parts(labelled: Labelled, smallest_tumour_ml: float) -> Parts:
    """Find kidneys, tumours and other structures.

    Args:
        labelled: the labels.
        smallest_tumour_ml: smaller components of a tumour label are specks, no lesions.
    """
    sided = assign_sides(labelled.labels, labelled.schema, labelled.midline, labelled.path)
    findings = [*labelled.findings]
    schema = labelled.schema
    unknown = [number for number in schema.ids if schema.meaning[number] is None]
    others = tuple(whole_labels(labelled, unknown))
    if not len(sided.index):
        findings.append(_nothing(labelled))
        return Parts(
            kidneys={},
            tumours=(),
            masses={},
            specks={},
            others=others,
            findings=tuple(findings),
            **_known(labelled),
        )
    box = _boxed(sided, labelled)
    if labelled.is_cropped:
        findings.append(_unknown_border(labelled))
    noted = side_findings(sided, labelled.midline, labelled.path)
    unclear = {"kidney-cut"} if labelled.is_cropped else set()
    findings += [finding for finding in noted if finding.code not in unclear]
    kidneys: dict[Side, Part] = {}
    masses: dict[tuple[Meaning, Side], Part] = {}
    tumours: list[Part] = []
    specks: dict[Side, Part] = {}
    for side in SIDES:
        lesions, small = _lesions(box, side, labelled, smallest_tumour_ml)
        tumours += lesions
        for meaning in RENAL:
            data = box.on(side, schema.ids_of(meaning))
            if not data.any():
                continue
            whole = box.part(data, f"{side} {meaning}", meaning, side)
            if meaning == "kidney":
                tumour = Mask(box.on(side, schema.ids_of("tumour")), box.grid)
                kidneys[side] = _kidney(whole, tumour, lesions, smallest_tumour_ml)
                findings += kidney_findings(kidneys[side], smallest_tumour_ml, str(labelled.path))
            else:
                masses[meaning, side] = whole
        if small.any():
            specks[side] = box.part(small, f"{side} specks", "tumour", side)
            findings.append(_specks(specks[side], smallest_tumour_ml, labelled))
    return Parts(
        kidneys=kidneys,
        tumours=tuple(tumours),
        masses=masses,
        specks=specks,
        others=others,
        findings=tuple(findings),
        **_known(labelled),
    )


def _known(labelled: Labelled) -> dict[str, Any]:
    """What the labels could show at all."""
    schema = labelled.schema
    return {
        "meanings": frozenset(meaning for meaning in RENAL if schema.ids_of(meaning)),
        "scanned": None if labelled.is_cropped else labelled.labels.grid,
    }


def _boxed(sided: SidedVoxels, labelled: Labelled) -> _Box:
    start = tuple(extent.start for extent in sided.box)
    shape = tuple(extent.stop - extent.start for extent in sided.box)
    label, is_right = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=bool)
    where = tuple((sided.index - start).T)
    label[where], is_right[where] = sided.label, sided.is_right
    return _Box(
        label=label,
        is_right=is_right,
        grid=sided.grid.crop(start, shape),
        start=start,
        whole=None if labelled.is_cropped else sided.grid.shape,
        names=labelled.schema.names,
    )


def _lesions(
    box: _Box, side: Side, labelled: Labelled, smallest_ml: float
) -> tuple[list[Part], np.ndarray]:
    """The lesions of a side from large to small, and the voxels of its specks."""
    found: list[tuple[np.ndarray, int]] = []
    specks = np.zeros(box.label.shape, dtype=bool)
    for number in labelled.schema.ids_of("tumour"):
        data = box.on(side, (number,))
        if number in labelled.tracking:
            found += [(data, number)] if data.any() else []
            continue
        numbered, _ = numbered_components(data)
        is_speck = np.bincount(numbered.ravel()) * float(box.grid.voxel_ml) < smallest_ml
        is_speck[0] = True  # what is outside of all is not a lesion either
        found += [(numbered == k, number) for k in np.flatnonzero(~is_speck)]
        specks |= data & is_speck[numbered]
    found.sort(key=lambda lesion: -np.count_nonzero(lesion[0]))
    lesions = [
        replace(
            box.part(data, f"{side} tumour {k}", "tumour", side, labelled.tracking.get(number)),
            tracking_uid=labelled.tracking_uids.get(number),
        )
        for k, (data, number) in enumerate(found, 1)
    ]
    return lesions, specks


def _kidney(whole: Part, tumour: Mask, lesions: Sequence[Part], least_ml: float) -> Part:
    """A kidney with its shape, from all tumour voxels of its side in the box of all structures."""
    main = main_pieces(whole.mask, tumour.onto(whole.mask), least_ml)
    return stretched(replace(whole, main=main), lesions, tumour)


def whole_labels(labelled: Labelled, numbers: Sequence[int]) -> Iterator[Part]:
    """All voxels of each of these labels as a structure; nothing of a label without voxels."""
    from scipy import ndimage

    if not numbers:
        return
    labels = canonical(labelled.labels)
    values, grid = labels.data[0].numpy(), labels.grid
    found = dict(enumerate(ndimage.find_objects(values), 1))
    for number in numbers:
        if (extent := found.get(number)) is None:
            continue
        start = [side.start for side in extent]
        label = np.where(values[extent] == number, np.uint8(number), np.uint8(0))
        box = _Box(
            label=label,
            is_right=label > 0,
            grid=grid.crop(start, label.shape),
            start=tuple(start),
            whole=None if labelled.is_cropped else grid.shape,
            names=labelled.schema.names,
        )
        yield box.part(label > 0, labelled.schema.names[number], None, None)


def _specks(specks: Part, least_ml: float, labelled: Labelled) -> Finding:
    number = numbered_components(specks.mask.data)[1]
    cause = (
        f"{number} speck(s) of tumour on the {specks.side}, under {least_ml:g} ml each and"
        f" {specks.mask.volume_ml:.2g} ml altogether, are part of the volume, but not of the number"
    )
    return _finding("tumour-specks", cause, "Check the labels.", labelled)


def _nothing(labelled: Labelled) -> Finding:
    cause = "no voxel is labelled as kidney, tumour or cyst"
    step = "Check that it is the right file, and what its labels are called (--label)."
    return _finding("nothing-labelled", cause, step, labelled)


def _unknown_border(labelled: Labelled) -> Finding:
    cause = (
        "the labels may be cropped to their structures, so whether the scan cuts one of them off"
        " cannot be told"
    )
    return _finding("border-unknown", cause, "Name the scan: --ct.", labelled)


def _finding(code: str, cause: str, next_step: str, labelled: Labelled) -> Finding:
    return Finding(code=code, path=str(labelled.path), cause=cause, next_step=next_step)
