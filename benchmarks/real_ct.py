"""Evaluate a model on real CT: segment and score the slices and volumes of a folder.

    python benchmarks/real_ct.py DATA -m MODEL -o OUT [--json]

DATA contains any of
    kits19_slices/<case>_s<slice>_ct.nii.gz with <case>_s<slice>_seg.nii.gz (1 kidney, 2 tumour)
    amos_ct/<case>_ct.nii.gz with <case>_kidney.nii.gz (1 kidney)
    totalsegmentator_ct/ct.nii.gz with kidney.nii.gz (1 kidney)
Scores are Dice on each scan's native voxels. Several slices of a patient are averaged first, so
that n counts patients. If the reference has no tumour label, only kidney+tumour is scored, against
its kidney. OUT/overlay.png shows reference (line) and result (area) of each patient.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kidseg.errors import BatchError
from kidseg.evaluate import evaluate
from kidseg.io import ReadOptions, read
from kidseg.segment import scan_name, segment


@dataclass(frozen=True)
class Real:
    """A scan and its reference."""

    scan: Path
    reference: Path

    @property
    def name(self) -> str:
        return scan_name(self.scan)

    @property
    def patient(self) -> str:
        return self.name.split("_s")[0]


SETS = {
    "kits19_slices": ("*_ct.nii.gz", "_ct.", "_seg.", ("kidney", "kidney+tumour", "tumour")),
    "amos_ct": ("*_ct.nii.gz", "_ct.", "_kidney.", ("kidney+tumour",)),
    "totalsegmentator_ct": ("ct.nii.gz", "ct.", "kidney.", ("kidney+tumour",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    options = parser.parse_args()
    table = {}
    shown: list[tuple[Real, Path]] = []
    for name, (pattern, mark, other, structures) in SETS.items():
        real = [
            Real(path, path.with_name(path.name.replace(mark, other)))
            for path in sorted((options.data / name).glob(pattern))
        ]
        if not real:
            continue
        labels = options.out / name / "labels"
        try:
            segment([r.scan for r in real], options.model, labels, overwrite=True)
        except BatchError as error:
            print(error)
        table[name] = scored(real, labels, options.out / name, structures)
        first = {r.patient: (r, labels / f"{r.name}_seg.nii.gz") for r in reversed(real)}
        shown += first.values()
    draw(shown, options.out / "overlay.png")
    print(json.dumps(table, indent=2) if options.json else markdown(table))


def scored(
    real: list[Real], labels: Path, out: Path, structures: tuple[str, ...]
) -> dict[str, dict[str, float | int | None]]:
    """Mean and SD over patients of each structure's Dice."""
    references = out / "references"
    references.mkdir(exist_ok=True)
    for r in real:
        link = references / f"{r.name}.nii.gz"
        link.unlink(missing_ok=True)
        link.symlink_to(r.reference.resolve())
    evaluate(labels, references, out / "scores", missing="empty", overwrite=True)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    patients = {r.name: r.patient for r in real}
    with (out / "scores" / "cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["structure"] in structures and row["dice"]:
                found[row["structure"]][patients[row["case"]]].append(float(row["dice"]))
    figures = {}
    for structure, by_patient in found.items():
        means = [statistics.fmean(values) for values in by_patient.values()]
        figures[structure] = {
            "mean": statistics.fmean(means),
            "sd": statistics.stdev(means) if len(means) > 1 else None,
            "patients": len(means),
            "scans": sum(map(len, by_patient.values())),
        }
    return figures


def markdown(table: dict[str, dict[str, dict[str, float | int | None]]]) -> str:
    lines = ["| data | structure | Dice, mean (SD) | patients | scans |", "|---|---|---|---|---|"]
    for name, figures in table.items():
        for structure, f in figures.items():
            spread = "-" if f["sd"] is None else f"{f['sd']:.3f}"
            lines.append(
                f"| {name} | {structure} | {f['mean']:.3f} ({spread}) | {f['patients']} | "
                f"{f['scans']} |"
            )
    return "\n".join(lines)


def draw(shown: list[tuple[Real, Path]], path: Path) -> None:
    """Draw each patient's slice with most reference: reference as line, result as area."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 5
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (real, found) in zip(
        figure.subplots(rows, columns, squeeze=False).ravel(), shown, strict=False
    ):
        as_labels = ReadOptions(values="labels")
        reference = read(real.reference, as_labels).volume.data[0].numpy()
        k = int((reference > 0).sum((1, 2)).argmax())
        image = read(real.scan).volume
        _, row_mm, column_mm = image.grid.spacing_mm.tolist()
        axes.imshow(image.data[0, k], cmap="gray", vmin=-160, vmax=240, aspect=row_mm / column_mm)
        if found.exists():
            area = read(found, as_labels).volume.data[0, k].numpy()
            axes.imshow(np.ma.masked_equal(area, 0), cmap="autumn", alpha=0.5, vmin=1, vmax=2)
        for label, colour in ((1, "#56B4E9"), (2, "#CC79A7")):
            if (reference[k] == label).any():
                axes.contour(reference[k] == label, [0.5], colors=[colour], linewidths=1)
        axes.set_title(real.patient, fontsize=9)
    for axes in figure.axes:
        axes.set_axis_off()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
