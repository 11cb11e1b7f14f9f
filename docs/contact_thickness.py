"""How much of a contact is found, by the size of the voxels over the thickness of the parenchyma.

    python docs/contact_thickness.py [--rows OUT.jsonl]   # benchmarks/measure_phantoms.py --finer

A tumour of 14 mm radius lies in a shell of parenchyma that covers six tenths of it. Grids are
oblique.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from kidseg.measure.contact import contact_area, contact_of  # noqa: E402
from solids import filmed_ball, oblique  # noqa: E402

RADIUS_MM, SEEDS = 14.0, range(1, 5)
SPACINGS_MM = ((1.5, 1.0, 1.0), (3.0, 0.9, 0.9))
RATIOS = (0.33, 0.67, 1.0, 1.67, 2.5, 4.0, 6.7)
LIMIT = 0.05
COLOURS = ("tab:blue", "tab:orange")
MARKERS = {"children": "o", "adults": "^"}


def shares(spacing_mm: tuple[float, ...], ratio: float, seed: int) -> tuple[float, float]:
    """What is found of a contact by faces of voxels alone, and with its gaps closed."""
    thick_mm = max(spacing_mm) / ratio
    grid = oblique(RADIUS_MM + thick_mm + 2 * max(spacing_mm), spacing_mm, seed)
    tumour, kidney, true_cm2 = filmed_ball(grid, RADIUS_MM, thick_mm, seed)
    found = contact_of(tumour, kidney).area_cm2, contact_area(tumour, kidney).value
    return found[0] / true_cm2, found[1] / true_cm2


def patients(rows: Path) -> dict[str, list[tuple[float, float]]]:
    """{cohort: (voxel over thickness, share of the contact that was found) of each tumour}.

    The thickness is the median behind the contact, in voxels of half the spacing.
    """
    known: dict[tuple[str, int, str], dict[str, dict[str, float]]] = defaultdict(dict)
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        known[row["cohort"], row["patient"], row["structure"]][row["measure"]] = row
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (cohort, _, _), measures in known.items():
        contact, rim = (measures.get(name) for name in ("contact with the kidney", "rim, median"))
        if contact and rim and contact["true"] > 0 and rim["true"] > 0:
            ratio = contact["voxel_mm"] / rim["true"]
            found[cohort].append((ratio, contact["found"] / contact["true"]))
    return found


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path)
    args = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    axes.axhspan(-100 * LIMIT, 100 * LIMIT, color="0.9", label=f"within {LIMIT:.0%}")
    for spacing_mm, colour in zip(SPACINGS_MM, COLOURS, strict=True):
        each = np.array([[shares(spacing_mm, x, seed) for seed in SEEDS] for x in RATIOS])
        name = " x ".join(f"{step:g}" for step in spacing_mm) + " mm"
        for k, (style, what) in enumerate((("--", "faces alone"), ("-", "gaps closed"))):
            error = 100 * (each[..., k] - 1)
            axes.errorbar(
                RATIOS, error.mean(1), error.std(1), fmt=style, color=colour, capsize=2,
                label=f"shell, {name}: {what}",
            )  # fmt: skip
            print(f"{name}, {what}:", *(f"{e:+.1f}" for e in error.mean(1)))
    for cohort, points in (patients(args.rows) if args.rows else {}).items():
        x, share = np.array(points).T
        axes.plot(x, 100 * (share - 1), MARKERS[cohort], color="k", label=f"digital {cohort}")
    axes.set(
        xscale="log", xticks=RATIOS, xticklabels=[f"{x:g}" for x in RATIOS],
        xlabel="widest spacing of the voxels / thickness of the parenchyma",
        ylabel="error of the contact, %",
    )  # fmt: skip
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(HERE / "contact_thickness.png", dpi=110)


if __name__ == "__main__":
    main()
