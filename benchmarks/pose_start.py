"""Measure the pose of a model at its start, as learned, and as kept; whole and clipped scans.

    python benchmarks/pose_start.py -m MODEL [--real DATA] [--digital DATASET] [--json]

MODEL is one of the method "homogenized". DATA contains any of the stacks of `STACKS`; DATASET is
one of digital patients with its folder truth, whose angle is known. Overlap is the soft Dice of the
body with the reference's, at the labelled slices or at all; agreement is what the correction is
kept by. The last table compares each scan of DATASET with itself clipped to [0, 255] HU, where fat
and air have one value, on the slice with most foreground: "mask" is the Dice of the two body masks,
the others are the differences of the two poses.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from kidseg.body import body_mask
from kidseg.cases import open_dataset
from kidseg.cases.reading import CaseReader
from kidseg.cohort.subject import Subject, prepare
from kidseg.geometry import Grid, Volume, in_plane_pose
from kidseg.io import ReadOptions, read
from kidseg.methods.homogenized.placement import reference_placement
from kidseg.methods.homogenized.system_a import Homogenized
from kidseg.segment import load_predictor
from pose_trial import angles_deg

WAYS = ("start", "as learned", "kept")
# Scans and their labels.
STACKS = {
    "amos_ct/amos_0013_ct.nii.gz": "amos_ct/amos_0013_kidney.nii.gz",
    "totalsegmentator_ct/ct.nii.gz": "totalsegmentator_ct/kidney.nii.gz",
    "totalsegmentator_ct/dicom": None,
}
CLIP_HU = (0, 255)


@dataclass(frozen=True, eq=False)
class Known:
    """A scan, its labels, and the truth of a digital patient."""

    name: str
    image: Volume
    labels: Volume | None
    truth: dict[str, Any] | None = None

    @property
    def fullest(self) -> Known:
        """Only the slice with most foreground, clipped in no way."""
        assert self.labels is not None
        k = int((self.labels.data[0] > 0).flatten(1).sum(1).argmax())
        return replace(self, image=self.image.slices(k, k + 1), labels=self.labels.slices(k, k + 1))

    @property
    def clipped(self) -> Known:
        return replace(self, image=Volume(self.image.data.clamp(*CLIP_HU), self.image.grid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--real", type=Path, help="folder of the real stacks")
    parser.add_argument("--digital", type=Path, help="data set of digital patients")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    method = cast("Homogenized", load_predictor(options.model, "cpu").method)
    table: dict[str, Any] = {}
    if options.real is not None:
        table["real"] = {known.name: measured(known, method) for known in stacks(options.real)}
    if options.digital is not None:
        patients = list(digital(options.digital))
        table["digital"] = {known.name: measured(known, method) for known in patients}
        table["clipped"] = {known.name: clipped(known.fullest, method) for known in patients}
    print(json.dumps(table, indent=2) if options.json else markdown(table))


def stacks(data: Path) -> Iterator[Known]:
    for scan, labels in STACKS.items():
        if (data / scan).exists():
            own = None if labels is None else read(data / labels, ReadOptions(values="labels"))
            yield Known(scan, read(data / scan).volume, None if own is None else own.volume)


def digital(folder: Path) -> Iterator[Known]:
    data = open_dataset(folder)
    reader = CaseReader.of_dataset(data)
    for case in data.cases:
        found = reader.read(case)
        truth = json.loads((folder / "truth" / f"{case.id}.json").read_text())
        yield Known(case.id, found.image, found.labels, truth)


def prepared(known: Known, method: Homogenized) -> Subject:
    material = method.material(method.config, method.plan)
    channels = method.plan.channels
    return prepare(known.image, material, channels, name=known.name, labels=known.labels)


def grids(subject: Subject, method: Homogenized) -> dict[str, Grid]:
    """The start, the learned pose, and the one that is kept."""
    scene = method.pose.scene(subject)
    free = replace(method.pose, config=replace(method.config.pose, only_better=False))
    guarded = replace(method.pose, config=replace(method.config.pose, only_better=True))
    return dict(zip(WAYS, (scene.start, free.locate(scene), guarded.locate(scene)), strict=True))


def measured(known: Known, method: Homogenized) -> dict[str, dict[str, float]]:
    """Overlap, agreement, and the median error of the angle, for each way."""
    subject = prepared(known, method)
    base, first, last = method.pose.base(subject), *subject.labelled_or_all
    out = {}
    for way, grid in grids(subject, method).items():
        placed = reference_placement(subject, base, grid, method.config.pose, method.reference)
        out[way] = {
            "overlap": placed.overlap["after"]["body"],
            "agreement": placed.agreement["after"],
            "corrected": float(placed.corrected),
        }
        if known.truth is not None:
            angles = angles_deg(grid, known.truth)[first : last + 1]
            out[way]["angle_deg"] = float(np.median(np.abs(angles)))
    return out


def clipped(known: Known, method: Homogenized) -> dict[str, float]:
    """A slice and the same clipped: Dice of the masks, differences of the starts and poses."""
    masks = [body_mask(one.image).data for one in (known, known.clipped)]
    both = int((masks[0] & masks[1]).sum())
    out = {"mask": 2 * both / max(1, sum(int(mask.sum()) for mask in masks))}
    pairs = [grids(prepared(one, method), method) for one in (known, known.clipped)]
    for way in ("start", "kept"):
        pose = in_plane_pose(pairs[1][way], pairs[0][way])
        angle = float(torch.rad2deg(pose.angle_rad.abs()).max())
        out |= {
            f"{way} angle_deg": min(angle, 180 - angle),
            f"{way} width": float((pose.scale[..., 0] - 1).abs().max()),
            f"{way} depth": float((pose.scale[..., 1] - 1).abs().max()),
            f"{way} shift_mm": float(pose.shift_mm.norm(dim=-1).max()),
        }
    return out


def markdown(table: dict[str, Any]) -> str:
    lines: list[str] = []
    if "real" in table:
        lines += ["| stack | overlap | agreement | kept |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {name} | {arrows(rows, 'overlap')} | {arrows(rows, 'agreement')} | "
            f"{'correction' if rows['kept']['corrected'] else 'start'} |"
            for name, rows in table["real"].items()
        ]
    if "digital" in table:
        rows = list(table["digital"].values())
        lines += ["", f"{len(rows)} digital patients:", ""]
        lines += ["| pose | overlap, mean | agreement, mean | angle's error, mean, max (deg) |"]
        lines += ["| --- | --- | --- | --- |"]
        for way in WAYS:
            column = column_of(rows, way)
            angle = column("angle_deg")
            lines.append(
                f"| {way} | {statistics.fmean(column('overlap')):.3f} | "
                f"{statistics.fmean(column('agreement')):.3f} | "
                f"{statistics.fmean(angle):.2f}, {max(angle):.1f} |"
            )
        kept = sum(int(row["kept"]["corrected"]) for row in rows)
        lines += ["", f"The correction was kept in {kept} of {len(rows)}."]
    if "clipped" in table:
        rows = list(table["clipped"].values())
        lines += ["", f"{len(rows)} slices, clipped to {CLIP_HU[0]}..{CLIP_HU[1]} HU:", ""]
        lines += ["| difference | median | largest |", "| --- | --- | --- |"]
        for name in rows[0]:
            values = [1 - row[name] if name == "mask" else row[name] for row in rows]
            shown = "mask, 1 - Dice" if name == "mask" else name
            lines.append(f"| {shown} | {statistics.median(values):.3f} | {max(values):.3f} |")
    return "\n".join(lines)


def arrows(rows: dict[str, dict[str, float]], name: str) -> str:
    return " -> ".join(f"{rows[way][name]:.3f}" for way in WAYS)


def column_of(rows: Sequence[dict[str, Any]], way: str) -> Callable[[str], list[float]]:
    return lambda name: [row[way][name] for row in rows]


if __name__ == "__main__":
    main()
