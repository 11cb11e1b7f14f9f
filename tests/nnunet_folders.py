"""Folders as nnU-Net's training leaves them: plans, description, and checkpoints of its names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kidseg import nets
from kidseg.topology import ResidualTopology, Topology

FLAT = Topology(features=(4, 6, 6), kernels=((3, 3),) * 3, strides=((1, 1), (2, 2), (2, 1)))
THICK = Topology(
    features=(4, 6, 6),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
)
RESIDUAL = ResidualTopology(
    features=THICK.features,
    kernels=THICK.kernels,
    strides=THICK.strides,
    convolutions=1,
    blocks=(1, 2, 1),
)
LABELS: Mapping[str, Any] = {"background": 0, "kidney": 1, "tumour": 2}
STATISTICS = {
    "mean": 60.0,
    "std": 100.0,
    "median": 60.0,
    "min": -900.0,
    "max": 900.0,
    "percentile_00_5": -400.0,
    "percentile_99_5": 400.0,
}


def architecture(topology: Topology) -> dict[str, Any]:
    dims, stages = topology.dimensions, len(topology.features)
    kind, encoder = "PlainConvUNet", {"n_conv_per_stage": [topology.convolutions] * stages}
    if isinstance(topology, ResidualTopology):
        kind, encoder = "ResidualEncoderUNet", {"n_blocks_per_stage": list(topology.blocks)}
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(topology.features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [list(each) for each in topology.kernels],
            "strides": [list(each) for each in topology.strides],
            **encoder,
            "n_conv_per_stage_decoder": [topology.convolutions] * (stages - 1),
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


def plans(
    topology: Topology, spacing: Sequence[float], patch: Sequence[int], **changes: Any
) -> dict[str, Any]:
    """nnU-Net's plans with one configuration, in which `changes` are made."""
    name = configuration(topology)
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset007_Kidneys",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            name: {
                "data_identifier": f"nnUNetPlans_{name}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch),
                "median_image_size_in_voxels": [float(n) for n in patch],
                "spacing": list(spacing),
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {**resampling, "order": 3},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": architecture(topology),
                "batch_dice": True,
                **changes,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": STATISTICS},
    }


def configuration(topology: Topology) -> str:
    return "2d" if topology.dimensions == 2 else "3d_fullres"


def description(labels: Mapping[str, Any] = LABELS, **more: Any) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        "labels": dict(labels),
        "numTraining": 4,
        "file_ending": ".nii.gz",
        **more,
    }


def network(
    topology: Topology, seed: int = 0, outputs: int = 3, channels: int = 1
) -> nets.PlannedUNet:
    """A network whose logits differ clearly between voxels, and no class prevails."""
    net = nets.build(topology, channels, outputs, seed=seed).eval()
    with torch.no_grad():
        weight = net.heads[0].weight
        weight.sub_(weight.mean(1, keepdim=True)).mul_(4)
    return net


def their_weights(net: nets.PlannedUNet) -> dict[str, Tensor]:
    """The weights under nnU-Net's names, with its copies, and its output that kidseg lacks."""
    stages, residual = len(net.encode), any("first" in name for name in net.state_dict())
    out: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        first, level, *rest = name.split(".")
        stage = stages - 2 - int(level)
        if first == "encode" and residual:
            where, *rest = _residual_name(int(level), net.encode, *rest)
        else:
            where = {
                "encode": f"encoder.stages.{level}.0.convs",
                "decode": f"decoder.stages.{stage}.convs",
                "up": f"decoder.transpconvs.{stage}",
                "heads": f"decoder.seg_layers.{stage}",
            }[first]
        theirs = ".".join([where, *rest]).replace("convolution", "conv")
        out[theirs] = tensor
        if first in ("encode", "decode"):
            place = {"convolution": "all_modules.0", "norm": "all_modules.1"}[rest[-2]]
            out[".".join([where, *rest[:-2], place, rest[-1]])] = tensor
    out |= {f"decoder.{name}": t for name, t in list(out.items()) if name.startswith("encoder.")}
    coarse = net.up[-1].weight.shape[1]
    shape = (net.heads[0].weight.shape[0], coarse, *[1] * (net.heads[0].weight.ndim - 2))
    out["decoder.seg_layers.0.weight"] = torch.ones(shape)
    out["decoder.seg_layers.0.bias"] = torch.zeros(shape[0])
    return out


def _residual_name(level: int, encode: Any, block: str, *rest: str) -> tuple[str, ...]:
    """The stem, then the blocks; a projection comes after the pooling, if there is one."""
    if level == 0 and block == "0":
        return ("encoder.stem.convs.0", *rest)
    pooled = isinstance(encode[level][int(block)].pool, torch.nn.Identity)
    part = {"first": "conv1", "second": "conv2", "project": f"skip.{0 if pooled else 1}"}[rest[0]]
    number = int(block) - (1 if level == 0 else 0)
    return (f"encoder.stages.{level}.blocks.{number}", part, *rest[1:])


def write_folder(
    root: Path,
    content: Mapping[str, Any],
    networks: Sequence[nets.PlannedUNet],
    *,
    described: Mapping[str, Any] | None = None,
    mirror_axes: tuple[int, ...] | None = (),
    **more: Any,
) -> Path:
    """The folder of a training with a fold for each network; `more` is in every checkpoint."""
    root.mkdir(parents=True)
    described = described or description()
    (root / "plans.json").write_text(json.dumps(content))
    (root / "dataset.json").write_text(json.dumps(described))
    for fold, net in enumerate(networks):
        checkpoint = {
            "network_weights": their_weights(net),
            "optimizer_state": {"state": {}, "param_groups": []},
            "grad_scaler_state": None,
            "logging": {"ema_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.25)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 1,
            "init_args": {
                "plans": dict(content),
                "configuration": next(iter(content["configurations"])),
                "fold": fold,
                "dataset_json": dict(described),
                "device": torch.device("cpu"),
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": mirror_axes,
            **more,
        }
        (root / f"fold_{fold}").mkdir()
        torch.save(checkpoint, root / f"fold_{fold}" / "checkpoint_final.pth")
    return root
