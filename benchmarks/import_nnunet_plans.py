"""Peer check: what plans of nnU-Net can say, one model of untrained networks for each.

    python benchmarks/import_nnunet_plans.py --peer PYTHON [--only NAME ...] [--json]

PYTHON is the interpreter of a virtual environment with nnunetv2 (2.8.1 was used). For each row of
`MODELS`, nnU-Net builds the networks of its plans with random weights (those of the output
enlarged, so that voxels differ clearly), writes checkpoints of them, and predicts a small scan:
labels and probabilities. kidseg imports the folder and segments the same files. The table gives the
voxels that differ and the largest difference of a probability; the exit code is 1 if a row has
fewer than 99.99 % equal voxels, or fewer than two labels.
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

LEAST = 0.9999
SHAPE = (13, 44, 38)
CT, ZSCORE, NONE = "CTNormalization", "ZScoreNormalization", "NoNormalization"
FLAT: Mapping[str, Any] = {
    "spacing": [2.3, 2.9],
    "patch_size": [32, 24],
    "kernel_sizes": [[3, 3], [3, 3], [3, 3]],
    "strides": [[1, 1], [2, 2], [2, 1]],
}
THICK: Mapping[str, Any] = {
    "spacing": [5.0, 2.3, 2.9],
    "patch_size": [8, 32, 24],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]],
}
RESIDUAL: Mapping[str, Any] = {"blocks": [1, 3, 2], "decoder": 1}
REGIONS: Mapping[str, Any] = {
    "labels": {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2},
    "regions_class_order": [1, 3, 2],
}
IGNORE = {"labels": {"background": 0, "kidney": 1, "tumour": 2, "ignore": 3}}
BOTH = (0, 1)
# What each model has besides the defaults of `plans_of`.
MODELS: Mapping[str, Mapping[str, Any]] = {
    "2d": {**FLAT, "mirror": (0, 1)},
    "2d, residual, two folds": {**FLAT, **RESIDUAL, "folds": BOTH, "mirror": (0, 1)},
    "2d, residual, regions": {**FLAT, **RESIDUAL, **REGIONS},
    "2d, two channels, mask": {**FLAT, "schemes": [ZSCORE, ZSCORE], "masks": [True, True]},
    "2d, patch larger than the scan": {**FLAT, "patch_size": [64, 40], "mirror": (1,)},
    "2d, transposed": {**FLAT, "transpose": [2, 0, 1], "slice_mm": 2.5},
    "2d, fold all, 4 labels": {
        **FLAT,
        "folds": ("all",),
        "labels": {"background": 0, "left": 1, "right": 2, "tumour": 3, "cyst": 4},
    },
    "3d": {**THICK, "mirror": (0, 1, 2)},
    "3d, two folds, one axis mirrored": {**THICK, "folds": BOTH, "mirror": (2,)},
    "3d, patch larger than the scan": {**THICK, "patch_size": [16, 64, 24], "mirror": (0, 1)},
    "3d, regions": {**THICK, **REGIONS, "mirror": (0, 1, 2)},
    "3d, residual": {**THICK, **RESIDUAL, "mirror": (0, 1, 2)},
    "3d, residual, regions, two folds": {**THICK, **RESIDUAL, **REGIONS, "folds": BOTH},
    "3d, CT and z-score without mask": {**THICK, "schemes": [CT, ZSCORE], "masks": [False, False]},
    "3d, CT and z-score inside a mask": {**THICK, "schemes": [CT, ZSCORE], "masks": [False, True]},
    "3d, not normalised, 0 to 1": {**THICK, "schemes": [NONE, "RescaleTo01Normalization"]},
    "3d, RGB": {**THICK, "schemes": ["RGBTo01Normalization"] * 3},
    "3d, ignore label": {**THICK, **IGNORE},
    "3d, fractions of HU": {**THICK, "fractions": True},
    "3d, RAS": {**THICK, "stored": "RAS", "mirror": (0,)},
    "3d, PSR, nibabel": {**THICK, "stored": "PSR", "reader": "NibabelIO"},
    "3d, PSR, reoriented by nibabel": {**THICK, "stored": "PSR", "reader": "NibabelIOWithReorient"},
    "3d, ASL, reoriented by ITK": {**THICK, "stored": "ASL", "reader": "SimpleITKIOWithReorient"},
    "3d, transposed, stored ILP": {**THICK, "stored": "ILP", "transpose": [1, 2, 0]},
    "3d, slice by slice": {**THICK, "slice_mm": 9.5},
    "3d, slice by slice always": {**THICK, "resampling": {"force_separate_z": True}},
    "3d, never slice by slice": {
        **THICK,
        "slice_mm": 9.5,
        "resampling": {"force_separate_z": False},
    },
    "3d, linear, logits cubic": {**THICK, "image_order": 1, "logits_order": 3},
    "3d, arguments left out": {**THICK, "slice_mm": 9.5, "arguments": {}},
    "3d, spacing of the scan": {**THICK, "spacing": [4.0, 2.0, 2.0]},
    "3d, inherited, low resolution": {**THICK, "configuration": "3d_lowres", "inherited": True},
    "3d, plans before 2.3": {**THICK, "old": True},
    "3d, one label": {**THICK, "labels": {"background": 0, "kidney": 1}},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="python with nnunetv2")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--scan", type=Path, help="a CT (NIfTI) for the models of one channel")
    parser.add_argument("--keep", type=Path, help="folder for all files")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        for name in options.only:
            make(options.as_peer / folder_of(name), MODELS[name], options.scan)
        return 0
    if options.peer is None:
        parser.error("--peer is needed")
    if options.scan:
        options.only = [name for name in options.only if schemes_of(MODELS[name]) == [CT]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        import torch

        start_peer(folder, options)
        torch.set_num_threads(1)
        rows = [compared(folder / folder_of(name), name) for name in options.only]
    agree = all(row["equal"] >= LEAST and len(row["labels"]) > 1 for row in rows)
    print(json.dumps({"rows": rows, "agree": agree}, indent=1) if options.json else table(rows))
    return 0 if agree else 1


def folder_of(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


# ---- nnU-Net's side ----------------------------------------------------------------------------


def start_peer(folder: Path, options: argparse.Namespace) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"nnUNet_compile": "f", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    environment |= dict.fromkeys(
        ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), str(folder)
    )
    command = [options.peer, Path(__file__).resolve(), "--as-peer", folder]
    command += ["--scan", options.scan.resolve()] if options.scan else []
    subprocess.run(
        [*command, "--only", *options.only],
        env=environment,
        stdout=sys.stderr,
        check=True,
    )


def make(folder: Path, model: Mapping[str, Any], scan: Path | None) -> None:
    """The folder of a training that did not take place, a scan, and nnU-Net's prediction of it."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trained, scans = folder / "trained", folder / "scans"
    scans.mkdir(parents=True)
    if scan:
        shutil.copy(scan, scans / "scan_0000.nii.gz")
    else:
        write_scan(scans, model)
    folds = model.get("folds", (0,))
    for number, fold in enumerate(folds):
        write_fold(trained, model, fold, number)
    predictor = nnUNetPredictor(
        use_mirroring="mirror" in model,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(trained), folds)
    for kind in (False, True):
        out = folder / ("probabilities" if kind else "labels")
        out.mkdir()
        predictor.predict_from_files_sequential(str(scans), str(out), save_probabilities=kind)


def write_scan(folder: Path, model: Mapping[str, Any]) -> None:
    """A body with organs, noise and a border of zeros, in each channel, stored as asked for."""
    import nibabel
    import numpy as np
    from nibabel import orientations as o
    from scipy import ndimage

    rng = np.random.default_rng(3)
    spacing = (model.get("slice_mm", 4.0), 2.0, 2.0)
    for k, scheme in enumerate(schemes_of(model)):
        mm = [(np.arange(n) - n / 2) * s for n, s in zip(SHAPE, spacing, strict=True)]
        z, y, x = np.meshgrid(*mm, indexing="ij")
        values = np.where((x / 33) ** 2 + (y / 37) ** 2 < 1, 40.0, -900.0)
        values[(x - 12) ** 2 + (y + 4) ** 2 + (z / 2) ** 2 < 13**2] = 160 - 70 * k
        values[(x + 14) ** 2 + (y - 6) ** 2 + (z / 2) ** 2 < 11**2] = 90 + 50 * k
        values += 300 * ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 1.5)
        if scheme.startswith("RGB"):
            values = values.clip(0, 255)
        elif k or scheme != CT or any(model.get("masks", ())):
            values = np.where(values < -500, 0, values)
        values[:, :4], values[:1], values[..., -3:] = 0, 0, 0
        kind = np.float32 if model.get("fractions") else np.int16
        values = values if model.get("fractions") else values.round()
        image = nibabel.Nifti1Image(
            values.astype(kind).transpose(2, 1, 0),
            np.diag([-spacing[2], -spacing[1], spacing[0], 1.0]),
        )
        wanted = o.axcodes2ornt(tuple(model.get("stored", "LPS")))
        turned = image.as_reoriented(o.ornt_transform(o.io_orientation(image.affine), wanted))
        nibabel.save(turned, folder / f"scan_{k:04d}.nii.gz")


def write_fold(trained: Path, model: Mapping[str, Any], fold: int | str, seed: int) -> None:
    """Plans, description and the checkpoint of networks as nnU-Net's trainer builds them."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, described = plans_of(model), description_of(model)
    name = model.get("configuration", "2d" if len(model["spacing"]) == 2 else "3d_fullres")
    (trained / f"fold_{fold}").mkdir(parents=True)
    (trained / "plans.json").write_text(json.dumps(plans))
    (trained / "dataset.json").write_text(json.dumps(described))
    manager = PlansManager(json.loads(json.dumps(plans)))
    chosen = manager.get_configuration(name)
    channels = determine_num_input_channels(manager, chosen, described)
    outputs = manager.get_label_manager(described).num_segmentation_heads
    torch.manual_seed(seed)
    net = nnUNetTrainer.build_network_architecture(manager, chosen, channels, outputs, True)
    with torch.no_grad():
        for part, values in net.named_parameters():
            if ".norm." in part or part.endswith("bias"):  # else all norms and biases are equal
                values.add_(torch.rand_like(values) * 0.4 - 0.2)
        last = net.decoder.seg_layers[-1].weight
        last.sub_(last.mean(1, keepdim=True)).mul_(4)
    checkpoint = {
        "network_weights": net.state_dict(),
        "init_args": {
            "plans": plans,
            "configuration": name,
            "fold": fold,
            "dataset_json": described,
            "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": model.get("mirror"),
    }
    torch.save(checkpoint, trained / f"fold_{fold}" / "checkpoint_final.pth")


def schemes_of(model: Mapping[str, Any]) -> Sequence[str]:
    schemes: Sequence[str] = model.get("schemes", [CT])
    return schemes


def description_of(model: Mapping[str, Any]) -> dict[str, Any]:
    labels = model.get("labels", {"background": 0, "kidney": 1, "tumour": 2})
    described = {
        "channel_names": {str(k): f"channel {k}" for k in range(len(schemes_of(model)))},
        "labels": labels,
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    if "regions_class_order" in model:
        described["regions_class_order"] = model["regions_class_order"]
    return described


def plans_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net's plans of a model."""
    schemes = schemes_of(model)
    by_function = {}
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        order = model.get({"data": "image_order", "probabilities": "logits_order"}.get(what), order)
        arguments = {"is_seg": what == "seg", "order": order, "order_z": 0}
        arguments |= {"force_separate_z": None, **model.get("resampling", {})}
        by_function[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        if what != "seg" and "arguments" in model:
            arguments = model["arguments"]
        by_function[f"resampling_fn_{what}_kwargs"] = arguments
    entry = {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": model["patch_size"],
        "median_image_size_in_voxels": [40.0] * len(model["spacing"]),
        "spacing": model["spacing"],
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": model.get("masks", [False] * len(schemes)),
        **by_function,
        "batch_dice": True,
        **(old_network(model) if model.get("old") else {"architecture": network(model)}),
    }
    name = model.get("configuration", "2d" if len(model["spacing"]) == 2 else "3d_fullres")
    configurations = {name: entry}
    if model.get("inherited"):
        below = {"inherits_from": "base", "spacing": model["spacing"], "next_stage": "3d_cascade"}
        configurations = {"base": {**entry, "spacing": [1.0, 1.0, 1.0]}, name: below}
    known = {"mean": 50.0, "std": 120.0, "median": 40.0, "min": -900.0, "max": 400.0}
    known |= {"percentile_00_5": -300.0, "percentile_99_5": 250.0}
    transpose = model.get("transpose", [0, 1, 2])
    return {
        "dataset_name": "Dataset903_Plans",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [4.0, 2.0, 2.0],
        "original_median_shape_after_transp": list(SHAPE),
        "image_reader_writer": model.get("reader", "SimpleITKIO"),
        "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "configurations": configurations,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(k): known for k in range(len(schemes))},
    }


def network(model: Mapping[str, Any]) -> dict[str, Any]:
    """The entry 'architecture', small."""
    dims, stages = len(model["spacing"]), len(model["strides"])
    kind, encoder = "PlainConvUNet", {"n_conv_per_stage": [2] * stages}
    if "blocks" in model:
        kind, encoder = "ResidualEncoderUNet", {"n_blocks_per_stage": model["blocks"]}
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [6, 8, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": model["kernel_sizes"],
            "strides": model["strides"],
            **encoder,
            "n_conv_per_stage_decoder": [model.get("decoder", 2)] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def old_network(model: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers as plans gave them before nnU-Net 2.3."""
    stages = len(model["strides"])
    return {
        "UNet_class_name": "ResidualEncoderUNet" if "blocks" in model else "PlainConvUNet",
        "UNet_base_num_features": 6,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": model.get("blocks", [2] * stages),
        "n_conv_per_stage_decoder": [model.get("decoder", 2)] * (stages - 1),
        "num_pool_per_axis": [2] * len(model["spacing"]),
        "pool_op_kernel_sizes": model["strides"],
        "conv_kernel_sizes": model["kernel_sizes"],
    }


# ---- kidseg's side -----------------------------------------------------------------------------


def compared(folder: Path, name: str) -> dict[str, Any]:
    """The row of a model."""
    import nibabel
    import numpy as np

    from kidseg.import_nnunet import import_nnunet
    from kidseg.segment import segment

    model, out = folder / "model.safetensors", folder / "segmented"
    scan = folder / "scans" / "scan_0000.nii.gz"
    import_nnunet(folder / "trained", model, stored=scan, overwrite=True)
    segment([scan], model, out, device="cpu", overwrite=True)
    (file,) = out.glob("*_seg.nii.gz")
    ours = np.asarray(nibabel.load(file).dataobj)
    theirs = np.asarray(nibabel.load(folder / "labels" / "scan.nii.gz").dataobj)
    with np.load(folder / "probabilities" / "scan.npz") as stored:
        known = stored["probabilities"]
    found = probabilities(folder, model, MODELS[name])
    return {
        "model": name,
        "voxels": theirs.size,
        "labels": {str(n): int((theirs == n).sum()) for n in np.unique(theirs)},
        "differ": int((ours != theirs).sum()),
        "equal": float((ours == theirs).mean()),
        "probabilities": float(np.abs(found - known).max()),
    }


def probabilities(folder: Path, file: Path, model: Mapping[str, Any]) -> Any:
    """(outputs, ...) in the order of the voxels that nnU-Net's reader gives."""
    import nibabel
    import numpy as np
    import torch
    from nibabel import orientations

    from kidseg.geometry import Volume
    from kidseg.io import load
    from kidseg.segment import load_predictor

    files = sorted((folder / "scans").glob("*.nii.gz"))
    channels = [load(each) for each in files]
    scan = Volume(torch.cat([each.data for each in channels]), channels[0].grid)
    predictor = load_predictor(file, "cpu")
    (region,) = predictor.find(scan).regions
    values = np.zeros((len(region.found.data), *scan.grid.shape), np.float32)
    values[0] = predictor.method.target.exclusive  # outside of what is not zero
    matrices = [grid.mm_from_index.numpy() for grid in (scan.grid, region.grid)]
    to_scan = np.linalg.solve(*matrices)
    box = tuple(
        slice(round(s), round(s) + n)
        for s, n in zip(to_scan[:3, 3], region.grid.shape, strict=True)
    )
    values[(slice(None), *box)] = region.found.data.numpy()
    # Canonical voxels, slices first; the file's order from nibabel's.
    own = orientations.io_orientation(nibabel.load(files[0]).affine)
    if model.get("reader", "").endswith("Reorient"):
        own = orientations.axcodes2ornt(("R", "A", "S"))
    turn = orientations.ornt_transform(orientations.axcodes2ornt(("L", "P", "S")), own)
    return np.stack(
        [
            orientations.apply_orientation(each.transpose(2, 1, 0), turn).transpose(2, 1, 0)
            for each in values
        ]
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| model | voxels | of each label | differ | largest difference of a probability |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        counts = ", ".join(str(count) for count in row["labels"].values())
        lines.append(
            f"| {row['model']} | {row['voxels']} | {counts} | {row['differ']} |"
            f" {row['probabilities']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
