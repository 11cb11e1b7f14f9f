r"""Which members of an ensemble are best in scans that cover little, by what they cover.

    kidseg phantom displaced --patients 24 --ages 0-90 --size 256 --seed 9191 \
        --set "slice_mm=[3.0,5.0]" --set displaced_share=1.0
    python benchmarks/thin_scans.py displaced --members 1 2 --against 0 2 -o thin.jsonl

Of each patient one slab for each thickness is cut out, at random among those whose middle slice
shows kidney or tumour. Both sets of members segment it, whatever scans the model counts them in
(`only_in`). Prints, by thickness, the mean Dice (SD) of kidney+tumour and of tumour of either set,
and the mean of the differences, with its standard error; a slab without tumour has no Dice of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from kidseg.cases import open_dataset
from kidseg.checkpoint import Model, load_model, save_model
from kidseg.geometry import Volume
from kidseg.header import ONLY_IN
from kidseg.io import ReadOptions, load, read
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.members import as_one, members_of
from kidseg.metrics import dice
from kidseg.model_file import find_model
from kidseg.segment import Predictor, load_predictor

AS_LABELS = ReadOptions(values="labels")
REGIONS = ("kidney+tumour", "tumour")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", "-m", type=find_model, default=find_model())
    parser.add_argument("--members", type=int, nargs="+", required=True)
    parser.add_argument("--against", type=int, nargs="+", required=True)
    parser.add_argument("--cover-mm", type=float, nargs="+", default=[5, 12, 20, 28, 36, 60, 90])
    parser.add_argument("--out", "-o", type=Path, required=True, help="a line per slab")
    given = parser.parse_args()
    model = load_model(given.model)
    sets = [of_members(model, chosen) for chosen in (given.members, given.against)]
    rng = np.random.default_rng(0)
    with given.out.open("w") as lines:
        rows = []
        for case in open_dataset(given.data).cases:
            if case.labels is None:
                continue
            image, labels = load(case.images[0]), read(case.labels, AS_LABELS).volume
            for cover_mm in given.cover_mm:
                start, stop = slab(labels, cover_mm, rng)
                scan, truth = image.slices(start, stop), labels.slices(start, stop)
                scores = [scored(predictor, scan, truth) for predictor in sets]
                rows.append({"case": case.id, "cover_mm": cover_mm, "dice": scores})
                print(json.dumps(rows[-1]), file=lines, flush=True)
    for cover_mm in given.cover_mm:
        report(cover_mm, [row["dice"] for row in rows if row["cover_mm"] == cover_mm])


def of_members(model: Model, chosen: Sequence[int]) -> Predictor:
    """These members, which count in all scans, with the decision of the whole."""
    known = members_of(model)
    one = as_one([without_limit(known[k]) for k in chosen])
    header = {**one.header, "decision": model.header.get("decision", {})}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_model(file, one.parts, header)
        return load_predictor(file, device="cpu")


def without_limit(member: Model) -> Model:
    """The member, which counts in all scans."""
    header = {name: value for name, value in member.header.items() if name != ONLY_IN}
    return replace(member, header=header)


def slab(labels: Volume, cover_mm: float, rng: np.random.Generator) -> tuple[int, int]:
    """First slice and end of a slab whose middle shows a label, within the scan."""
    shown = (labels.data[0] > 0).flatten(1).any(1).nonzero()[:, 0].tolist()
    count = max(1, round(cover_mm / float(labels.grid.spacing_mm[0])))
    slices = labels.data.shape[1]
    start = int(rng.choice(shown)) - count // 2
    start = min(max(start, 0), max(slices - count, 0))
    return start, min(start + count, slices)


def scored(predictor: Predictor, scan: Volume, truth: Volume) -> dict[str, float | None]:
    """Dice by region."""
    found = predictor(scan).labels.data[0].numpy()
    true = truth.data[0].numpy()
    return {
        name: dice(*(np.isin(each, KIDNEY_TUMOUR.regions[name]) for each in (found, true)))
        for name in REGIONS
    }


def report(cover_mm: float, pairs: Sequence[Sequence[dict[str, float | None]]]) -> None:
    for name in REGIONS:
        table = np.array([[one[name] for one in pair] for pair in pairs], dtype=float)
        table = table[np.isfinite(table).all(1)]
        if not len(table):
            continue
        (a, b), (sd_a, sd_b) = table.mean(0), table.std(0, ddof=1)
        gain = table[:, 0] - table[:, 1]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        print(
            f"{cover_mm:5g} mm, {name}, n {len(table)}: {a:.3f} ({sd_a:.3f}), against"
            f" {b:.3f} ({sd_b:.3f}); {gain.mean():+.3f} ({error:.3f})"
        )


if __name__ == "__main__":
    main()
