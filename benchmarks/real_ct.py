"""Evaluate a model on real CT: segment and score the slices and volumes of a folder.

    python benchmarks/real_ct.py DATA -m MODEL -o OUT [--looks FILE.jsonl --note TEXT] [--json]

DATA contains any of
    kits19_slices/<case>_s<slice>_ct.nii.gz with <case>_s<slice>_seg.nii.gz (1 kidney, 2 tumour)
    amos_ct/<case>_ct.nii.gz with <case>_kidney.nii.gz (1 kidney)
    totalsegmentator_ct/ct.nii.gz with kidney.nii.gz (1 kidney)
    totalsegmentator_ct/dicom, without a kidney in view: nothing should be found
Scores are Dice on each scan's native voxels; all slices of a patient are pooled, so that n counts
patients. If the reference has no tumour label, only kidney+tumour is scored, against its kidney.
OUT/overlay.png shows reference (line) and result (area) of each patient, the worst first.
FILE.jsonl gets a line per run, so that it is known how often the data were looked at.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from kidseg.errors import BatchError
from kidseg.io import ReadOptions, read
from kidseg.model_file import find_model
from kidseg.segment import Predictor, load_predictor, scan_name, segment

AS_LABELS = ReadOptions(values="labels")
STRUCTURES = {"kidney": (1,), "kidney+tumour": (1, 2), "tumour": (2,)}


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
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--looks", type=Path, help="file to add the figures to")
    parser.add_argument("--note", default="", help="what this look is for")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    options = parser.parse_args()
    predictor = load_predictor(find_model(options.model))
    table: dict[str, dict[str, Figures]] = {}
    for name, (pattern, mark, other, structures) in SETS.items():
        real = [
            Real(path, path.with_name(path.name.replace(mark, other)))
            for path in sorted((options.data / name).glob(pattern))
        ]
        if not real:
            continue
        labels = options.out / name
        try:
            segment([r.scan for r in real], predictor, labels, overwrite=True)
        except BatchError as error:
            print(error)
        table[name] = scored(real, labels, structures)
        if name == "kits19_slices":
            draw(real, labels, table[name]["kidney+tumour"].by_patient, options.out / "overlay.png")
    found_ml = false_ml(options.data / "totalsegmentator_ct" / "dicom", predictor, options.out)
    figures = {
        name: {structure: f.as_dict() for structure, f in rows.items()}
        for name, rows in table.items()
    }
    if options.looks is not None:
        line = {
            "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
            "note": options.note,
            "sha256": predictor.sha256,
            "figures": figures,
            "false_ml": found_ml,
        }
        with options.looks.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps(figures, indent=2) if options.json else markdown(table))
    print(f"without kidney in view: {found_ml} ml found")


@dataclass(frozen=True)
class Figures:
    """Dice of a structure by patient."""

    by_patient: dict[str, float]
    scans: int

    def as_dict(self) -> dict[str, object]:
        values = list(self.by_patient.values())
        return {
            "mean": round(statistics.fmean(values), 4),
            "sd": round(statistics.stdev(values), 4) if len(values) > 1 else None,
            "median": round(statistics.median(values), 4),
            "patients": len(values),
            "scans": self.scans,
            "by_patient": {name: round(value, 4) for name, value in self.by_patient.items()},
        }


def scored(real: list[Real], labels: Path, structures: tuple[str, ...]) -> dict[str, Figures]:
    """Dice of each structure, all scans of a patient pooled; a scan without result is empty."""
    voxels: dict[str, dict[str, np.ndarray]] = {name: {} for name in structures}
    for r in real:
        reference = read(r.reference, AS_LABELS).volume.data[0].numpy()
        file = labels / f"{r.name}_seg.nii.gz"
        found = read(file, AS_LABELS).volume.data[0].numpy() if file.exists() else 0 * reference
        for name in structures:
            a, b = (np.isin(each, STRUCTURES[name]) for each in (found, reference))
            counts = np.array([(a & b).sum(), a.sum() + b.sum()])
            by_patient = voxels[name]
            by_patient[r.patient] = by_patient.get(r.patient, 0) + counts
    return {
        name: Figures(
            by_patient={p: float(2 * both / total) for p, (both, total) in counts.items() if total},
            scans=len(real),
        )
        for name, counts in voxels.items()
    }


def false_ml(scan: Path, predictor: Predictor, out: Path) -> float | None:
    """Volume found in a scan without kidney; None if there is none."""
    if not scan.exists():
        return None
    (entry,) = segment([scan], predictor, out / "no_kidney", overwrite=True)
    return float(entry["volumes_ml"]["kidney+tumour"])


def markdown(table: dict[str, dict[str, Figures]]) -> str:
    lines = [
        "| data | structure | Dice, mean (SD) | median | worst | patients | scans |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in table.items():
        for structure, known in figures.items():
            f = known.as_dict()
            spread = "-" if f["sd"] is None else f"{f['sd']:.3f}"
            worst = min(known.by_patient, key=known.by_patient.__getitem__)
            lines.append(
                f"| {name} | {structure} | {f['mean']:.3f} ({spread}) | {f['median']:.3f} | "
                f"{known.by_patient[worst]:.3f} {worst} | {f['patients']} | {f['scans']} |"
            )
    return "\n".join(lines)


def draw(real: list[Real], labels: Path, dice: dict[str, float], path: Path) -> None:
    """Draw each patient's slice with most reference: reference as line, result as area."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_patient: dict[str, list[Real]] = defaultdict(list)
    for r in real:
        by_patient[r.patient].append(r)
    columns = 5
    rows = -(-len(by_patient) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, patient in zip(places, sorted(dice, key=dice.__getitem__), strict=False):
        sizes = {
            r: int((read(r.reference, AS_LABELS).volume.data > 0).sum())
            for r in by_patient[patient]
        }
        shown = max(sizes, key=sizes.__getitem__)
        reference = read(shown.reference, AS_LABELS).volume.data[0].numpy()
        k = int((reference > 0).sum((1, 2)).argmax())
        image = read(shown.scan).volume
        _, row_mm, column_mm = image.grid.spacing_mm.tolist()
        axes.imshow(image.data[0, k], cmap="gray", vmin=-160, vmax=240, aspect=row_mm / column_mm)
        found = labels / f"{shown.name}_seg.nii.gz"
        if found.exists():
            area = read(found, AS_LABELS).volume.data[0, k].numpy()
            axes.imshow(np.ma.masked_equal(area, 0), cmap="autumn", alpha=0.4, vmin=1, vmax=2)
        for label, colour in ((1, "#56B4E9"), (2, "#CC79A7")):
            if (reference[k] == label).any():
                axes.contour(reference[k] == label, [0.5], colors=[colour], linewidths=1)
        axes.set_title(f"{shown.name} {dice[patient]:.2f}", fontsize=9)
    for axes in figure.axes:
        axes.set_axis_off()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
