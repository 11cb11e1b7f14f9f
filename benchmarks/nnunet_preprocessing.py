"""Peer check: planning and preprocessing against the real nnU-Net v2, value by value.

    python benchmarks/nnunet_preprocessing.py --peer PYTHON [--dataset RAW_FOLDER] [--json]

PYTHON is the interpreter of a virtual environment with nnunetv2 (2.8.1 was used); RAW_FOLDER is an
nnU-Net raw dataset. Without it, CT-like cases with several spacings and shapes are created. Both
sides fingerprint, plan and preprocess the same files; the table compares the results, and the exit
code is 1 if any difference exceeds its tolerance. Both also plan for the fingerprints of many
synthetic datasets. nnU-Net runs with `suppress_transpose`, because slices in kidseg are always
axial.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DATASET = "Dataset901_Peer"
CONFIGURATIONS = ("2d", "3d_fullres")
# Tolerances: statistics in SD, normalised voxel values.
MOST_OF_STATISTICS = 1e-3
MOST_OF_INTENSITY = 1e-3

# (slices, rows, columns), (slice, row, column) mm. Thick slices are resampled one by one.
SYNTHETIC = [
    ((40, 96, 100), (3.0, 0.78, 0.78)),
    ((25, 110, 90), (5.0, 0.65, 0.65)),
    ((60, 80, 84), (1.5, 0.91, 0.91)),
    ((34, 102, 97), (3.0, 0.71, 0.74)),
    ((48, 88, 120), (2.5, 0.85, 0.85)),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="python with nnunetv2")
    parser.add_argument("--dataset", type=Path, help="nnU-Net raw data set")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        run_peer(options.as_peer)
        return 0
    if options.peer is None:
        parser.error("--peer is needed")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw" / DATASET
        if options.dataset:
            shutil.copytree(options.dataset, raw)
        else:
            write_synthetic(raw)
        seconds = {"nnunetv2": start_peer(options.peer, Path(folder))}
        began = time.perf_counter()
        rows = compare(raw, Path(folder))
        seconds["kidseg"] = time.perf_counter() - began
    report = {"rows": rows, "seconds": seconds, "agree": all(row["agree"] for row in rows)}
    print(json.dumps(report, indent=1) if options.json else as_table(report))
    return 0 if report["agree"] else 1


def write_synthetic(raw: Path) -> None:
    """Write bodies with two organs of known HU, noise and air; the last one cropped with zeros."""
    import torch

    from kidseg import io
    from kidseg.cases import write_dataset_json
    from kidseg.geometry import Grid, Volume
    from kidseg.labels import KIDNEY_TUMOUR

    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k, (shape, spacing) in enumerate(SYNTHETIC):
        grid = Grid.from_spacing(shape, spacing, (3.0 * k, -20.0, 5.0))
        mm = [(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)]
        z, y, x = np.meshgrid(*mm, indexing="ij")
        hu = np.where((x / 33) ** 2 + (y / 27) ** 2 < 1, 40.0, -1000.0)
        kidney = (x - 12) ** 2 + (y + 4) ** 2 + (z / 2) ** 2 < 9.5**2
        tumour = (x - 15) ** 2 + (y + 1) ** 2 + (z / 2 - 3) ** 2 < (5 + k) ** 2
        hu[kidney], hu[tumour] = 160.0, 70.0
        hu += rng.normal(0, 15, shape) + 10 * np.sin(x / 3) * np.cos(y / 4)
        if k == len(SYNTHETIC) - 1:
            hu[:, :7], hu[:2], hu[..., -11:] = 0, 0, 0
        labels = np.where(tumour, 2, kidney)
        image = torch.from_numpy(hu.round().astype(np.int16))[None]
        io.save(Volume(image, grid), raw / "imagesTr" / f"case_{k}_0000.nii.gz")
        numbers = torch.from_numpy(labels.astype(np.uint8))[None]
        io.save(Volume(numbers, grid), raw / "labelsTr" / f"case_{k}.nii.gz")
    write_dataset_json(raw, channels=("CT",), schema=KIDNEY_TUMOUR, n_training=len(SYNTHETIC))


def imagined() -> list[list[tuple[list[float], list[int]]]]:
    """(spacing, shape) of the cases of varied synthetic datasets, the same on both sides."""
    rng = np.random.default_rng(7)
    data_sets = []
    for _ in range(12):
        pixel, slices = rng.uniform(0.4, 1.2), rng.uniform(0.6, 6.0)
        height = rng.uniform(100, 500)
        cases = []
        for _ in range(int(rng.integers(1, 60))):
            inside, along = pixel * rng.uniform(0.8, 1.25), slices * rng.uniform(0.6, 1.6)
            rows, columns = (int(n) for n in rng.choice([256, 384, 512, 480], 2))
            count = max(3, int(height / along))
            cases.append(([float(along), float(inside), float(inside)], [count, rows, columns]))
        data_sets.append(cases)
    return data_sets


def start_peer(python: Path, folder: Path) -> float:
    """Run nnU-Net and return its wall time; its plans and arrays stay in the folder."""
    environment = {
        **os.environ,
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": "1",
    }
    began = time.perf_counter()
    subprocess.run(
        [python, Path(__file__).resolve(), "--as-peer", folder],
        env=environment,
        stdout=sys.stderr,
        check=True,
    )
    return time.perf_counter() - began


def run_peer(folder: Path) -> None:
    """Call nnU-Net's classes as its commands do; runs in the other environment."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw = folder / "raw" / DATASET
    DatasetFingerprintExtractor(DATASET, 1).run()
    plans = ExperimentPlanner(DATASET, suppress_transpose=True).plan_experiment()
    (folder / "plans.json").write_text(json.dumps(plans))
    description = json.loads((raw / "dataset.json").read_text())
    planned = []
    for cases in imagined():
        planner = ExperimentPlanner(DATASET, suppress_transpose=True)
        planner.dataset_fingerprint["spacings"] = [case[0] for case in cases]
        planner.dataset_fingerprint["shapes_after_crop"] = [case[1] for case in cases]
        planner.dataset_json["numTraining"] = len(cases)
        planned.append(planner.plan_experiment())
    (folder / "imagined.json").write_text(json.dumps(planned))
    manager = PlansManager(plans)
    began = time.perf_counter()
    for name, files in get_filenames_of_train_images_and_targets(str(raw), description).items():
        for configuration in CONFIGURATIONS:
            if configuration not in plans["configurations"]:
                continue
            data, _, _ = DefaultPreprocessor(verbose=False).run_case(
                files["images"],
                files["label"],
                manager,
                manager.get_configuration(configuration),
                description,
            )
            np.savez(folder / f"{name}-{configuration}.npz", data=data)
    print(f"nnunetv2: preprocessing {time.perf_counter() - began:.2f} s")


def compare(raw: Path, folder: Path) -> list[dict[str, Any]]:
    """Run kidseg on the same files and compare with the results of the peer."""
    import torch

    from kidseg.cases import open_dataset
    from kidseg.cases.reading import CaseReader
    from kidseg.geometry import resample
    from kidseg.plan import fingerprint, network_input, plan
    from kidseg.plan.nonzero import nonzero_box

    torch.set_num_threads(1)  # as each of nnU-Net's workers, and ours
    peer = json.loads((folder / "plans.json").read_text())
    dataset = open_dataset(raw)
    ours = plan(fingerprint(dataset), dataset.schema)
    rows = [*compare_statistics(ours, peer), *compare_plans("", ours, peer)]
    rows += compare_imagined(ours, dataset.schema, folder)
    reader = CaseReader.of_dataset(dataset)
    seconds = 0.0
    for case in dataset.cases:
        voxels = reader.read(case)
        for name in ours.configurations:
            began = time.perf_counter()
            cropped = resample(voxels.image, voxels.image.grid.crop(*nonzero_box(voxels.image)))
            done = network_input(cropped, ours.channels, ours.configurations[name])
            seconds += time.perf_counter() - began
            with np.load(folder / f"{case.id}-{name}.npz") as arrays:
                rows += compare_voxels(f"{name}: {case.id}", done, case.images[0], arrays)
    print(f"kidseg: preprocessing {seconds:.2f} s", file=sys.stderr)
    return rows


def compare_statistics(ours: Any, peer: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for k, channel in enumerate(ours.channels):
        known = peer["foreground_intensity_properties_per_channel"][str(k)]
        sd = max(known["std"], 1e-8)
        for mine, theirs in [
            ("mean", "mean"),
            ("sd", "std"),
            ("median", "median"),
            ("percentile_00_5", "percentile_00_5"),
            ("percentile_99_5", "percentile_99_5"),
        ]:
            value = getattr(channel.statistics, mine)
            far = abs(value - known[theirs]) / sd
            what = f"{channel.channel}: {mine}"
            rows.append(row(what, value, known[theirs], far <= MOST_OF_STATISTICS))
    return rows


def compare_imagined(ours: Any, schema: Any, folder: Path) -> list[dict[str, Any]]:
    """Compare the plans for the synthetic datasets; one row each if they agree completely."""
    from kidseg.plan import CaseFacts, Fingerprint, plan

    rows = []
    peers = json.loads((folder / "imagined.json").read_text())
    for k, (cases, peer) in enumerate(zip(imagined(), peers, strict=True)):
        facts = tuple(
            CaseFacts(id="", spacing_mm=tuple(s), shape=tuple(n), shape_after_crop=tuple(n))
            for s, n in cases
        )
        known = tuple(channel.statistics for channel in ours.channels)
        names = tuple(channel.channel for channel in ours.channels)
        made = plan(Fingerprint(channels=names, cases=facts, intensities=known), schema)
        details = compare_plans(f"imagined {k}: ", made, peer)
        wrong = [entry for entry in details if not entry["agree"]]
        patch = {name: c.patch_size for name, c in made.configurations.items()}
        rows += wrong or [row(f"imagined {k}: all, patches", *[list(patch.values())] * 2, True)]
    return rows


def compare_plans(what_of: str, ours: Any, peer: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    median = [list(ours.median_spacing_mm), peer["original_median_spacing_after_transp"]]
    rows.append(row(f"{what_of}median spacing", *median, np.allclose(*median, atol=1e-6)))
    for name in CONFIGURATIONS:
        theirs, mine = peer["configurations"].get(name), ours.configurations.get(name)
        if theirs is None or mine is None:
            rows.append(row(what_of + name, mine is not None, theirs is not None, mine is theirs))
            continue
        network = theirs["architecture"]["arch_kwargs"]
        scheme = [c.scheme for c in ours.channels]
        named = {"CTNormalization": "ct", "ZScoreNormalization": "zscore"}
        for what, a, b in [
            ("spacing", mine.spacing_mm, theirs["spacing"]),
            ("median shape", mine.median_shape, theirs["median_image_size_in_voxels"]),
            ("patch", mine.patch_size, theirs["patch_size"]),
            ("batch", mine.batch_size, theirs["batch_size"]),
            ("features", mine.topology.features, network["features_per_stage"]),
            ("strides", mine.topology.strides, network["strides"]),
            ("kernels", mine.topology.kernels, network["kernel_sizes"]),
            ("normalisation", scheme, [named.get(s, s) for s in theirs["normalization_schemes"]]),
            ("inside only", [c.inside_only for c in ours.channels], theirs["use_mask_for_norm"]),
        ]:
            same = np.array_equal(a, b) or (what == "spacing" and np.allclose(a, b, atol=1e-6))
            rows.append(row(f"{what_of}{name}: {what}", a, b, bool(same)))
    return rows


def compare_voxels(
    what: str, done: Any, file: Path, arrays: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Largest difference of a value."""
    from kidseg import io
    from kidseg.io.orientation import reorient

    native = io.read_grid(file)
    image = reorient(done, native).data.numpy()
    theirs = arrays["data"]
    if image.shape != theirs.shape:
        return [row(f"{what}: shape", image.shape, theirs.shape, False)]
    far = float(np.abs(image - theirs).max())
    what = f"{what}: {image.shape[1:]} largest difference"
    return [row(what, far, 0.0, far <= MOST_OF_INTENSITY)]


def row(what: str, ours: Any, theirs: Any, agree: bool) -> dict[str, Any]:
    return {"what": what, "kidseg": plain(ours), "nnunetv2": plain(theirs), "agree": bool(agree)}


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=float))


def as_table(report: Mapping[str, Any]) -> str:
    lines = ["| | kidseg | nnunetv2 | |", "|---|---|---|---|"]
    for entry in report["rows"]:
        cells = [short(entry["kidseg"]), short(entry["nnunetv2"])]
        mark = "" if entry["agree"] else "differs"
        lines.append(f"| {entry['what']} | {cells[0]} | {cells[1]} | {mark} |")
    times = ", ".join(f"{name} {s:.1f} s" for name, s in report["seconds"].items())
    verdict = "agree" if report["agree"] else "DISAGREE"
    return "\n".join([*lines, "", f"They {verdict}. Wall time with imports: {times}."])


def short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " ".join(
            short(v) if not isinstance(v, list) else "x".join(map(str, v)) for v in value
        )
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
