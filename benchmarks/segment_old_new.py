"""Segmentation before and after a change: CPU seconds, peak memory, labels and Dice.

    python benchmarks/segment_old_new.py --old CHECKOUT [--new CHECKOUT] [--slices 24] [-k 1]
        [--precision bf16] [--model RUN/model.safetensors --data DATASET]

Each volume is segmented by a fresh process of each checkout, file to file, on one thread, turn by
turn. Weights are those of a training of one step, so labels lie anywhere: the worst case for the
way back. With --model and --data a trained model of the old checkout segments real cases with both
instead, and Dice is compared: the data set must not be what it was trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

CONFIGURATIONS = {
    "plain": ("plain", []),
    "pose": ("homogenized", []),
    "pose + crop half": ("homogenized", ["crop.output=half"]),
    "pose + crop quarter": ("homogenized", ["crop.output=quarter"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("-k", type=int, default=1, help="volumes")
    parser.add_argument("--only", nargs="+", default=list(CONFIGURATIONS))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, help="nnU-Net data set of held-out cases")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.model:
            compare_dice(options, root)
        else:
            compare_speed(options, root)


def run(
    tree: Path, *arguments: object, program: Sequence[str] = ("-m", "kidseg")
) -> tuple[float, float]:
    """A command of a checkout: CPU seconds and peak MB of the process."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, *map(str, arguments), "-q"]
    child = subprocess.Popen(command, env=environment)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    assert isinstance(used, resource.struct_rusage)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def labels(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*_seg.nii.gz"))
    return {file.name: np.asarray(nibabel.load(file).dataobj) for file in files}


def compare_speed(options: argparse.Namespace, root: Path) -> None:
    sized = ("--size", options.size, "--set", f"max_slices={options.slices}")
    run(options.old, "phantom", root / "small", "-n", 3, "--seed", 1, "--size", 64,
        "--set", "max_slices=8")  # fmt: skip
    run(options.old, "phantom", root / "large", "-n", options.k, "--seed", 2, *sized)
    scans = sorted((root / "large" / "imagesTr").glob("*.nii.gz"))
    print(f"{len(scans)} volume(s) of {options.size}^2 x {options.slices}, {options.precision}")
    print("| | CPU s old | new | old / new | MB old | new | labels equal |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        model = trained(options, root, name)
        rows: dict[str, list[tuple[float, float]]] = {"old": [], "new": []}
        for k, scan in enumerate(scans):
            for side, tree in (("old", options.old), ("new", options.new)):
                out = root / f"{name}-{side}-{k}"
                rows[side].append(run(tree, "segment", scan, "-m", model, "-o", out))
        same = [
            float(np.mean(a == b))
            for k in range(len(scans))
            for a, b in zip(
                labels(root / f"{name}-old-{k}").values(),
                labels(root / f"{name}-new-{k}").values(),
                strict=True,
            )
        ]
        old, new = (
            [statistics.median(values) for values in zip(*rows[side], strict=True)]
            for side in ("old", "new")
        )
        print(
            f"| {name} | {old[0]:.2f} | {new[0]:.2f} | {old[0] / new[0]:.2f} | {old[1]:.0f} |"
            f" {new[1]:.0f} | {min(same):.4%} |",
            flush=True,
        )


def trained(options: argparse.Namespace, root: Path, name: str) -> Path:
    """A model of the old checkout that looks at whole slices and has hardly learned anything."""
    method, settings = CONFIGURATIONS[name]
    side = options.size
    short = ["epochs=1", "min_epochs=0", "steps=1", "batch_size=2"]
    settings = [
        *settings,
        f"view.size={side}",
        "view.pixel_mm=0.7",
        f"precision={options.precision}",
        f"unet.size={side}",
        *(f"segment.{text}" for text in short),
    ]
    if method == "homogenized":
        settings += [f"pose.stage.{text}" for text in short]
    if any(text.startswith("crop.") for text in settings):
        settings += [f"crop.stage.{text}" for text in short]
    out = root / f"run-{name}"
    listed = [part for text in settings for part in ("--set", text)]
    run(options.old, "train", root / "small", "-o", out, "--method", method, *listed)
    return out / "model.safetensors"


def compare_dice(options: argparse.Namespace, root: Path) -> None:
    scans = sorted((options.data / "imagesTr").glob("*_0000.nii.gz"))
    found: dict[str, Any] = {}
    for side, tree in (("old", options.old), ("new", options.new)):
        seconds, peak = run(tree, "segment", *scans, "-m", options.model, "-o", root / side)
        run(tree, "evaluate", root / side, options.data / "labelsTr", "-o", root / f"{side}-scores")
        summary = json.loads((root / f"{side}-scores" / "summary.json").read_text())
        dice = {name: s["dice"]["mean"] for name, s in summary["structures"].items()}
        found[side] = {"cpu_s": seconds, "peak_mb": peak, "n": summary["n_cases"], "dice": dice}
    pairs = zip(labels(root / "old").values(), labels(root / "new").values(), strict=True)
    found["equal_voxels"] = min(float(np.mean(a == b)) for a, b in pairs)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
