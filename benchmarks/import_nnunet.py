"""Peer check: labels of imported nnU-Net models against nnU-Net's own, voxel by voxel.

    python benchmarks/import_nnunet.py --peer PYTHON [--dataset RAW_FOLDER] [--stored LPS] [--json]

PYTHON is the interpreter of a virtual environment with nnunetv2 (2.8.1 was used); RAW_FOLDER is an
nnU-Net raw data set of at least five cases. Without it, small CT-like cases with several spacings
and shapes are created. nnU-Net plans (small networks and patches), trains two folds of "2d" and
"3d_fullres" for a few steps, and predicts all cases: with one fold and with both, with and without
mirroring. kidseg imports the same folders and segments the same files. The table gives the fraction
of equal voxels; the exit code is 1 if one is below 0.9999, or nothing was found.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATASET = "Dataset902_Import"
CONFIGURATIONS = ("2d", "3d_fullres")
FOLDS = ((0,), (0, 1))
TRAINER = "nnUNetTrainer"
LEAST = 0.9999


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="python with nnunetv2")
    parser.add_argument("--dataset", type=Path, help="nnU-Net raw data set")
    parser.add_argument("--stored", default="LPS", help="axes of the files that are created")
    parser.add_argument("--residual", action="store_true", help="plan a residual encoder")
    parser.add_argument("--regions", action="store_true", help="train overlapping regions")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="per epoch")
    parser.add_argument("--keep", type=Path, help="folder for all files; one that has them is used")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        run_peer(options.as_peer, options)
        return 0
    if options.peer is None:
        parser.error("--peer is needed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if not (folder / "done").exists():
            make_dataset(folder / "raw" / DATASET, options)
            start_peer(folder, sys.argv[1:], options.peer)
        rows = compare(folder)
    agree = all(row["equal"] >= LEAST and min(row["foreground"]) > 0 for row in rows)
    print(json.dumps({"rows": rows, "agree": agree}, indent=1) if options.json else table(rows))
    return 0 if agree else 1


def make_dataset(raw: Path, options: argparse.Namespace) -> None:
    """Copy the data set, or create one, stored in the axis order that was asked for."""
    if options.dataset:
        shutil.copytree(options.dataset, raw)
    else:
        from nnunet_preprocessing import write_synthetic

        write_synthetic(raw)
        for file in raw.glob("*Tr/*.nii.gz"):
            store(file, options.stored)
    if options.regions:
        path = raw / "dataset.json"
        content = json.loads(path.read_text())
        content["labels"] = {"background": 0, "kidney": [1, 2], "tumour": 2}
        content["regions_class_order"] = [1, 2]
        path.write_text(json.dumps(content))


def store(file: Path, axes: str) -> None:
    """Rewrite a NIfTI file with its axes in these directions, LPS or another order of such."""
    import nibabel
    from nibabel import orientations as o

    image = nibabel.load(file)
    wanted = o.axcodes2ornt(tuple(axes))
    change = o.ornt_transform(o.io_orientation(image.affine), wanted)
    nibabel.save(image.as_reoriented(change), file)


def start_peer(folder: Path, arguments: Sequence[str], python: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
    }
    subprocess.run(
        [python, Path(__file__).resolve(), *arguments, "--as-peer", folder],
        env=environment,
        stdout=sys.stderr,
        check=True,
    )
    (folder / "done").touch()


def run_peer(folder: Path, options: argparse.Namespace) -> None:
    """Plan, train and predict as nnU-Net's commands do; runs in the other environment."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.experiment_planning.experiment_planners.resencUNet_planner import (
        ResEncUNetPlanner,
    )
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    DatasetFingerprintExtractor(DATASET, 1).run()
    kind = ResEncUNetPlanner if options.residual else ExperimentPlanner
    planner = kind(DATASET, gpu_memory_target_in_gb=0.15)
    planner.plans_identifier = "nnUNetPlans"
    planner.UNet_base_num_features = 8
    planner.UNet_max_features_2d = planner.UNet_max_features_3d = 32
    planner.plan_experiment()
    preprocess_dataset(902, configurations=CONFIGURATIONS, num_processes=[1, 1])
    # Augment in this process; planning refuses 0.
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112
    for configuration in CONFIGURATIONS:
        for fold in FOLDS[-1]:
            train_peer(folder, configuration, fold, options)
        for folds in FOLDS:
            for mirrored in (True, False):
                predict_peer(folder, configuration, folds, mirrored)


def train_peer(folder: Path, configuration: str, fold: int, options: argparse.Namespace) -> None:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    preprocessed = folder / "preprocessed" / DATASET
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    trainer = nnUNetTrainer(
        {**plans, "continue_training": False},
        configuration,
        fold,
        json.loads((preprocessed / "dataset.json").read_text()),
        device=torch.device("cpu"),
    )
    trainer.num_epochs = options.epochs
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = options.steps, 2
    trainer.run_training()
    trainer.perform_actual_validation(False)


def predict_peer(folder: Path, configuration: str, folds: Sequence[int], mirrored: bool) -> None:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=mirrored, device=torch.device("cpu"), perform_everything_on_device=False
    )
    predictor.initialize_from_trained_model_folder(str(trained(folder, configuration)), folds)
    out = predictions(folder, configuration, folds, mirrored)
    out.mkdir(parents=True)
    predictor.predict_from_files_sequential(str(folder / "raw" / DATASET / "imagesTr"), str(out))


def trained(folder: Path, configuration: str) -> Path:
    return folder / "results" / DATASET / f"{TRAINER}__nnUNetPlans__{configuration}"


def predictions(folder: Path, configuration: str, folds: Sequence[int], mirrored: bool) -> Path:
    name = "-".join([configuration, *map(str, folds), "mirrored" if mirrored else "plain"])
    return folder / "predicted" / name


def compare(folder: Path) -> list[dict[str, Any]]:
    """Import every folder, segment every case, and compare with the peer's labels."""
    import torch

    torch.set_num_threads(1)
    rows = []
    for configuration in CONFIGURATIONS:
        for folds in FOLDS:
            for mirrored in (True, False):
                rows.append(compare_model(folder, configuration, folds, mirrored))
    return rows


def compare_model(
    folder: Path, configuration: str, folds: Sequence[int], mirrored: bool
) -> dict[str, Any]:
    """The row of one model: the fraction of equal voxels, over all cases and in the worst."""
    import nibabel
    import numpy as np

    from kidseg.import_nnunet import import_nnunet
    from kidseg.segment import segment

    with tempfile.TemporaryDirectory() as temporary:
        model, out = Path(temporary) / "model.safetensors", Path(temporary) / "segmented"
        import_nnunet(trained(folder, configuration), model, folds=folds, mirror=mirrored)
        theirs = predictions(folder, configuration, folds, mirrored)
        images = sorted((folder / "raw" / DATASET / "imagesTr").glob("*_0000.nii.gz"))
        segment(images, model, out, device="cpu")
        equal, voxels, worst, found = 0, 0, 1.0, [0, 0]
        for image in images:
            name = image.name.removesuffix("_0000.nii.gz")
            (mine,) = out.glob(f"{name}*_seg.nii.gz")
            ours = np.asarray(nibabel.load(mine).dataobj)
            peer = np.asarray(nibabel.load(theirs / f"{name}.nii.gz").dataobj)
            same = int((ours == peer).sum())
            equal, voxels = equal + same, voxels + peer.size
            worst = min(worst, same / peer.size)
            found = [found[0] + int((ours > 0).sum()), found[1] + int((peer > 0).sum())]
    return {
        "configuration": configuration,
        "folds": len(folds),
        "mirroring": mirrored,
        "cases": len(images),
        "voxels": voxels,
        "equal": equal / voxels,
        "worst": worst,
        "differ": voxels - equal,
        "foreground": found,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| configuration | folds | mirroring | cases | voxels | differ | equal | worst case"
        " | foreground: kidseg, nnU-Net |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["configuration"],
            row["folds"],
            "yes" if row["mirroring"] else "no",
            row["cases"],
            row["voxels"],
            row["differ"],
            f"{row['equal']:.6%}",
            f"{row['worst']:.6%}",
            ", ".join(map(str, row["foreground"])),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
