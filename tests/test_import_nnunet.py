"""Models of nnU-Net: read without executing anything, and the same labels as by its formulas."""

from __future__ import annotations

import contextlib
import json
import os
import pydoc
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel import orientations
from scipy import ndimage

from commands import call_cli
from ellipses import in_two_channels, make_ellipse_patient, write_ellipse_dataset
from kidseg import nets
from kidseg.checkpoint import load_model, read_header
from kidseg.errors import InputError, KidsegError, KidsegWarning, ModelError, UsageError
from kidseg.import_nnunet import import_nnunet
from kidseg.import_nnunet.architecture import renamed
from kidseg.import_nnunet.torch_file import read_torch_file
from kidseg.io import save
from kidseg.members import ensemble
from kidseg.segment import load_predictor, segment
from kidseg.topology import Topology
from kidseg.train import Setup, train
from mutated_documents import mutated_bytes, mutated_json
from nnunet_folders import (
    FLAT,
    RESIDUAL,
    STATISTICS,
    THICK,
    architecture,
    description,
    network,
    plans,
    their_weights,
    write_folder,
)

# Mutations of each document; more by hand.
N = int(os.environ.get("KIDSEG_MUTATIONS", "30"))
# Near-ties apart, which nnU-Net's half precision decides; these formulas are in full precision.
CLOSE = 0.999
WINDOW = (16, 72, 80)  # larger than the scan
LINEAR = {"order": 1, "order_z": 0, "force_separate_z": False}
PLANS = {
    "2d": plans(FLAT, (3.1, 2.6), WINDOW[1:]),
    "3d": plans(THICK, (10.0, 3.1, 2.6), WINDOW),
    "residual": plans(RESIDUAL, (10.0, 3.1, 2.6), WINDOW),
    "thin slices": plans(THICK, (4.5, 3.1, 2.6), WINDOW),
    "linear": plans(
        THICK,
        (7.0, 3.1, 2.6),
        WINDOW,
        resampling_fn_data_kwargs=LINEAR,
        resampling_fn_probabilities_kwargs=LINEAR,
    ),
    "arguments left out": plans(
        THICK,
        (8.5, 3.1, 2.6),
        WINDOW,
        resampling_fn_data_kwargs={},
        resampling_fn_probabilities_kwargs={},
    ),
}
# Those of nnU-Net's function for resampling, if plans leave them out.
DEFAULTS = {"order": 3, "force_separate_z": False}


def topology_in(content: Mapping[str, Any]) -> Topology:
    if content is PLANS["residual"]:
        return RESIDUAL
    return FLAT if "2d" in content["configurations"] else THICK


def imported(folder: Path, out: Path, **options: Any) -> Path:
    import_nnunet(folder, out, **{"stored": "LPS", **options})
    return out


# ---- the labels --------------------------------------------------------------------------------


def small_scan(path: Path) -> tuple[Path, np.ndarray]:
    """A scan with a border of zeros and odd sides; its voxels (slices, rows, columns)."""
    patient = make_ellipse_patient(4).image
    data = patient.data[:, :7, 10:49, 6:57].clone()
    data[:, :, :3], data[:, 0] = 0, 0
    grid = patient.grid.crop((0, 10, 6), data.shape[1:])
    save(type(patient)(data, grid), path)
    return path, data[0].numpy().astype(float)


Logits = Callable[[torch.Tensor], torch.Tensor]
Decide = Callable[[np.ndarray], np.ndarray]


def by_the_formulas(
    voxels: np.ndarray,
    content: Mapping[str, Any],
    logits_of: Logits,
    decide: Decide = lambda logits: logits.argmax(0),
) -> np.ndarray:
    """Crop, normalise, resize with skimage, logits, resize back, the largest wins.

    Args:
        voxels: (slices, rows, columns), or with channels before.
        content: plans.
        logits_of: (channels, ...) to (outputs, ...).
        decide: (outputs, ...) to labels.
    """
    (chosen,) = content["configurations"].values()
    channels = voxels.reshape(-1, *voxels.shape[-3:])
    spacing = (10.0, 4.0, 4.0)
    target = (*spacing[: 3 - len(chosen["spacing"])], *chosen["spacing"])
    places = np.argwhere((channels != 0).any(0))
    box = tuple(slice(a, b) for a, b in zip(places.min(0), places.max(0) + 1, strict=True))
    image = normalised(channels[(slice(None), *box)], chosen)
    size = image.shape[1:]
    shape = [round(s / t * n) for s, t, n in zip(spacing, target, size, strict=True)]
    kwargs, back_kwargs = (
        {**DEFAULTS, **chosen[f"resampling_fn_{what}_kwargs"]} for what in ("data", "probabilities")
    )
    separate = [max(s) / min(s) > 3 for s in (spacing, target)]
    apart = any(separate) if kwargs["force_separate_z"] is None else kwargs["force_separate_z"]
    seen = np.stack([resized(each, shape, kwargs["order"], apart) for each in image])
    with torch.no_grad():
        logits = logits_of(torch.from_numpy(seen).float()).numpy()
    back = np.stack([resized(each, size, back_kwargs["order"], apart) for each in logits])
    out = np.zeros(channels.shape[1:], dtype=np.uint8)
    out[box] = decide(back)
    return out


def normalised(image: np.ndarray, chosen: Mapping[str, Any]) -> np.ndarray:
    """CT by the data set's statistics; other channels by their own, inside what is not zero."""
    if chosen["normalization_schemes"][0] == "CTNormalization":
        found: np.ndarray = (image.clip(-400, 400) - STATISTICS["mean"]) / STATISTICS["std"]
        return found
    inside = ndimage.binary_fill_holes((image != 0).any(0))
    return np.stack(
        [np.where(inside, (each - each[inside].mean()) / each[inside].std(), 0) for each in image]
    )


def resized(image: np.ndarray, shape: Any, order: int, apart: bool) -> np.ndarray:
    transform = pytest.importorskip("skimage.transform")
    how = {"order": order, "mode": "edge", "anti_aliasing": False}
    if not apart:
        found: np.ndarray = transform.resize(image, shape, **how)
        return found
    planes = np.stack([transform.resize(plane, shape[1:], **how) for plane in image])
    nearest = np.floor((np.arange(shape[0]) + 0.5) * len(image) / shape[0]).astype(int)
    return planes[nearest]


def in_one_window(net: Any, image: torch.Tensor) -> torch.Tensor:
    """Logits of an image smaller than a window: with as many zeros on both sides, or one more."""
    window = WINDOW[-len(net.multiple) :]
    size = image.shape[-len(window) :]
    missing = [w - n for w, n in zip(window, size, strict=True)]
    ends = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
    padded = torch.nn.functional.pad(image, ends)
    batch = padded.transpose(0, 1) if len(window) == 2 else padded[None]
    (found,) = net(batch)
    found = found.transpose(0, 1) if len(window) == 2 else found[0]
    for axis, (before, n) in enumerate(zip(missing, size, strict=True), start=4 - len(size)):
        found = found.narrow(axis, before // 2, n)
    return found


def labels_in(folder: Path) -> np.ndarray:
    (file,) = folder.glob("*_seg.nii.gz")
    return np.asarray(nibabel.load(file).dataobj).transpose(2, 1, 0)


@pytest.mark.parametrize("name", PLANS)
def test_labels_are_those_of_nnunets_formulas(name: str, tmp_path: Path) -> None:
    """Slices far apart are resampled one by one, others together; the border of zeros is cut.

    Arguments of the resampling that plans leave out have nnU-Net's defaults.
    """
    content = PLANS[name]
    topology = topology_in(content)
    folder = write_folder(tmp_path / "trained", content, [network(topology)])
    scan, voxels = small_scan(tmp_path / "scan.nii.gz")
    model = imported(folder, tmp_path / "model.safetensors")
    segment([scan], model, tmp_path / "out", device="cpu")
    expected = by_the_formulas(
        voxels, content, lambda image: in_one_window(network(topology), image)
    )
    found = labels_in(tmp_path / "out")
    assert len(np.unique(expected)) == 3 and min(np.bincount(expected.ravel())) > 100
    assert (found == expected).mean() > CLOSE


def test_the_logits_of_folds_are_averaged(tmp_path: Path) -> None:
    """Not their probabilities: a sure network counts more."""
    content = PLANS["2d"]
    nets = [network(FLAT, seed) for seed in (0, 1, 2)]
    folder = write_folder(tmp_path / "trained", content, nets)
    scan, voxels = small_scan(tmp_path / "scan.nii.gz")
    made = import_nnunet(folder, tmp_path / "two.safetensors", folds=[0, "2"], stored="LPS")
    assert made["folds"] == ["0", "2"]
    result = segment([scan], tmp_path / "two.safetensors", tmp_path / "out", device="cpu")
    expected = by_the_formulas(
        voxels,
        content,
        lambda image: (in_one_window(nets[0], image) + in_one_window(nets[2], image)) / 2,
    )
    assert (labels_in(tmp_path / "out") == expected).mean() > CLOSE
    assert result[0]["ensemble"]["members"] == ["nnunet", "nnunet"]
    assert import_nnunet(folder, tmp_path / "all.safetensors", stored="LPS")["folds"] == list("012")


def test_folds_are_opinions_of_the_review(tmp_path: Path) -> None:
    """Of two folds, each has a say: volumes have an interval; that of one has none."""
    nets = [network(FLAT, seed) for seed in (0, 1)]
    folder = write_folder(tmp_path / "trained", PLANS["2d"], nets)
    scan, _ = small_scan(tmp_path / "scan.nii.gz")
    for folds, interval in (([0, 1], "doubt"), ([0], None)):
        model = imported(folder, tmp_path / f"{len(folds)}.safetensors", folds=folds)
        (entry,) = segment([scan], model, tmp_path / f"out{len(folds)}", device="cpu")
        review = entry["review"]
        assert (review["opinions"], review["interval"]) == (len(folds), interval)
        for name, found in review["structures"].items():
            assert (found["interval_ml"] is None) == (interval is None)
            if interval is not None:
                low, high = found["interval_ml"]
                assert low < high and low <= entry["volumes_ml"][name] <= high


def test_folds_without_a_checkpoint_and_postprocessing_are_said_to_be_left_out(
    tmp_path: Path,
) -> None:
    nets = [network(FLAT, seed) for seed in (0, 1, 2)]
    folder = write_folder(tmp_path / "trained", PLANS["2d"], nets)
    (folder / "fold_1" / "checkpoint_final.pth").rename(folder / "fold_1" / "checkpoint_best.pth")
    with pytest.warns(
        KidsegWarning, match=r"fold 1 has no checkpoint_final\.pth.*used: 0, 2"
    ) as said:
        made = import_nnunet(folder, tmp_path / "two.safetensors", stored="LPS")
    assert made["folds"] == ["0", "2"] and len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they were chosen
        import_nnunet(folder, tmp_path / "one.safetensors", folds=[0], stored="LPS")
    validated = folder / "crossval_results_folds_0_2"
    validated.mkdir()
    (validated / "postprocessing.pkl").write_bytes(b"cos\nsystem\n.")
    with pytest.warns(KidsegWarning, match=r"postprocessing\.pkl is not applied"):
        import_nnunet(folder, tmp_path / "other.safetensors", folds=[0], stored="LPS")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_weights_of_compiled_and_parallel_networks_are_those_of_the_network(prefix: str) -> None:
    net = network(FLAT)
    theirs = {prefix + name: tensor for name, tensor in their_weights(net).items()}
    found, known = renamed(theirs, FLAT, 1, 3, Path("x.pth")), net.state_dict()
    assert found.keys() == known.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in known.items())


def test_members_with_other_settings_keep_their_probabilities(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", PLANS["2d"], [network(FLAT)], mirror_axes=(0, 1))
    one = imported(folder, tmp_path / "one.safetensors")
    other = imported(folder, tmp_path / "other.safetensors", mirror=False)
    ensemble([one, other], tmp_path / "both.safetensors")
    predictor = load_predictor(tmp_path / "both.safetensors", "cpu")
    assert len(predictor.others) == 1 and len(predictor.method.parts) == 1
    ensemble([one, one], tmp_path / "twice.safetensors")
    predictor = load_predictor(tmp_path / "twice.safetensors", "cpu")
    assert predictor.others == () and len(predictor.method.parts) == 2


def test_mirroring_is_as_the_training_allows_or_as_wanted(tmp_path: Path) -> None:
    for k, (axes, wanted, expected) in enumerate(
        [
            ((0, 1), None, (True, (0, 1))),
            ((0, 1), False, (False, (0, 1))),
            (None, None, (False, None)),
        ]
    ):
        folder = write_folder(
            tmp_path / f"trained{k}", PLANS["2d"], [network(FLAT)], mirror_axes=axes
        )
        model = imported(folder, tmp_path / f"{k}.safetensors", mirror=wanted)
        config = load_predictor(model, "cpu").method.config
        assert (config.test_time_flip, config.mirror_axes) == expected  # type: ignore[attr-defined]


def test_only_mirroring_that_was_trained_is_done(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", PLANS["2d"], [network(FLAT)], mirror_axes=(1,))
    made = import_nnunet(folder, tmp_path / "one.safetensors", stored="LPS", mirror=True)
    assert made["mirror_axes"] == [1]
    never = write_folder(tmp_path / "never", PLANS["2d"], [network(FLAT)], mirror_axes=None)
    asked: list[dict[str, Any]] = [
        {"folder": never, "mirror": True},
        {"folder": never, "overrides": ["test_time_flip=true"]},
        {"folder": folder, "overrides": ["mirror_axes=[0, 1]"]},
    ]
    for each in asked:
        with pytest.raises(UsageError, match="mirrored images") as caught:
            import_nnunet(out=tmp_path / "other.safetensors", stored="LPS", **each)
        assert caught.value.code == "bad-setting" and not (tmp_path / "other.safetensors").exists()
    apart = write_folder(tmp_path / "apart", PLANS["2d"], [network(FLAT)] * 2, mirror_axes=(0, 1))
    with_checkpoint(inference_allowed_mirroring_axes=(0,))(apart)
    with pytest.raises(ModelError, match="different configurations or mirroring") as refused:
        import_nnunet(apart, tmp_path / "other.safetensors", stored="LPS")
    assert refused.value.code == "other-plans"


def test_the_network_sees_axes_as_they_were_stored(tmp_path: Path) -> None:
    """Validated labels, or an image, tell the order; then a scan's own order does not matter."""
    content = {**PLANS["3d"], "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    folder = write_folder(tmp_path / "trained", content, [network(THICK)])
    scan, voxels = small_scan(tmp_path / "scan.nii.gz")
    image = nibabel.load(scan)
    stored = {}
    for axes in ("LPS", "SAR"):
        change = orientations.ornt_transform(
            orientations.io_orientation(image.affine), orientations.axcodes2ornt(tuple(axes))
        )
        stored[axes] = tmp_path / f"{axes}.nii.gz"
        nibabel.save(image.as_reoriented(change), stored[axes])
    (folder / "fold_0" / "validation").mkdir()
    (folder / "fold_0" / "validation" / "summary.json").write_text("{}")
    nibabel.save(nibabel.load(stored["SAR"]), folder / "fold_0/validation/a.nii.gz")
    made = import_nnunet(folder, tmp_path / "model.safetensors")
    assert made["axes"] == "SRA" and made["axes_known"]
    same = import_nnunet(folder, tmp_path / "same.safetensors", stored=stored["SAR"])
    assert same["axes"] == made["axes"]
    seen = voxels[:, ::-1, ::-1].transpose(0, 2, 1)  # slices up, columns to the right, rows forward
    expected = by_the_formulas(
        seen, content, lambda image: in_one_window(network(THICK), image)
    ).transpose(0, 2, 1)[:, ::-1, ::-1]
    for axes, path in stored.items():
        segment([path], tmp_path / "model.safetensors", tmp_path / axes, device="cpu")
        (file,) = (tmp_path / axes).glob("*_seg.nii.gz")
        labels = nibabel.as_closest_canonical(nibabel.load(file))
        found = np.asarray(labels.dataobj)[::-1, ::-1].transpose(2, 1, 0)
        assert (found == expected).mean() > CLOSE
    nibabel.save(nibabel.load(stored["LPS"]), folder / "fold_0/validation/b.nii.gz")
    with pytest.raises(InputError, match="several orders") as caught:
        import_nnunet(folder, tmp_path / "model.safetensors", overwrite=True)
    assert caught.value.code == "axes-differ"


def test_regions_are_decided_as_nnunet_does(tmp_path: Path) -> None:
    labels = {"background": 0, "kidney": [1, 2], "tumour": 2}
    described = description(labels, regions_class_order=[1, 2])
    net = network(FLAT, outputs=2)
    folder = write_folder(tmp_path / "trained", PLANS["2d"], [net], described=described)
    scan, voxels = small_scan(tmp_path / "scan.nii.gz")
    model = imported(folder, tmp_path / "model.safetensors")
    segment([scan], model, tmp_path / "out", device="cpu")
    expected = by_the_formulas(
        voxels,
        PLANS["2d"],
        lambda image: in_one_window(net, image),
        lambda logits: np.where(logits[1] > 0, 2, np.where(logits[0] > 0, 1, 0)),
    )
    assert len(np.unique(expected)) == 3
    assert (labels_in(tmp_path / "out") == expected).mean() > CLOSE


def test_channels_are_normalised_as_planned(tmp_path: Path) -> None:
    """Two of an MR, by mean and SD inside the patient, where nothing is zero but holes."""
    content = changed(
        PLANS["3d"],
        normalization_schemes=["ZScoreNormalization"] * 2,
        use_mask_for_norm=[True, True],
    )
    content["foreground_intensity_properties_per_channel"] = {"0": STATISTICS, "1": STATISTICS}
    described = description(channel_names={"0": "T1", "1": "T2"})
    net = network(THICK, channels=2)
    folder = write_folder(tmp_path / "trained", content, [net], described=described)
    patient = in_two_channels(make_ellipse_patient(4), 1.5).image
    data = patient.data[:, :7, 8:60, 6:60].clone()
    data[:, 3, 20:30, 25:35] = 0  # a hole
    for k, channel in enumerate(data):
        grid = patient.grid.crop((0, 8, 6), channel.shape)
        save(type(patient)(channel[None], grid), tmp_path / f"scan_{k:04d}.nii.gz")
    model = imported(folder, tmp_path / "model.safetensors")
    segment([tmp_path / "scan_0000.nii.gz"], model, tmp_path / "out", device="cpu")
    expected = by_the_formulas(
        data.numpy().astype(float), content, lambda image: in_one_window(net, image)
    )
    assert len(np.unique(expected)) == 3
    assert (labels_in(tmp_path / "out") == expected).mean() > CLOSE


# ---- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["3d", "residual"])
def test_a_model_has_the_weights_the_plan_and_the_labels(name: str, tmp_path: Path) -> None:
    topology = topology_in(PLANS[name])
    net = network(topology)
    folder = write_folder(tmp_path / "trained", PLANS[name], [net], mirror_axes=(0, 1, 2))
    model = load_model(imported(folder, tmp_path / "model.safetensors"))
    state = net.state_dict()
    assert model.parts["segment"].keys() == state.keys()
    assert all(torch.equal(model.parts["segment"][name], t) for name, t in state.items())
    header = model.header
    assert header["method"] == "nnunet" and header["labels"]["names"] == {
        "1": "kidney",
        "2": "tumour",
    }
    assert header["input"]["channels"] == ["CT"] and header["input"]["unit"] == "HU"
    planned = header["plan"]["configurations"]["3d_fullres"]
    assert planned["spacing_mm"] == [10.0, 3.1, 2.6] and planned["patch_size"] == list(WINDOW)
    assert planned["topology"] == json.loads(json.dumps(asdict(topology)))
    assert header["config"]["postprocess"]["min_volume_ml"] == 0.0
    assert header["imported"]["fold"] == "0"


def old_plans(content: Mapping[str, Any], topology: Topology) -> dict[str, Any]:
    """As before nnU-Net 2.3: numbers instead of a named architecture."""
    ((name, chosen),) = content["configurations"].items()
    stages = len(topology.features)
    numbers = {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_kernel_sizes": topology.kernels,
        "pool_op_kernel_sizes": topology.strides,
        "num_pool_per_axis": [2, 2],
    }
    rest = {key: value for key, value in chosen.items() if key != "architecture"}
    known = dict(content)
    known["foreground_intensity_properties_by_modality"] = known.pop(
        "foreground_intensity_properties_per_channel"
    )
    return {**known, "configurations": {name: {**rest, **numbers}}}


def inheriting_plans(content: Mapping[str, Any]) -> dict[str, Any]:
    ((name, chosen),) = content["configurations"].items()
    own = {"inherits_from": name, "batch_size": 9}
    return {**content, "configurations": {f"{name}_bs9": own, name: chosen}}


def test_old_and_inheriting_plans_give_the_same_network(tmp_path: Path) -> None:
    for topology, key in ((FLAT, "2d"), (THICK, "3d")):
        content = PLANS[key]
        (chosen,) = content["configurations"].values()
        forms = (content, old_plans(content, topology), inheriting_plans(content))
        found = []
        for k, form in enumerate(forms):
            folder = write_folder(tmp_path / f"{key}{k}", form, [network(topology)])
            header = read_header(imported(folder, tmp_path / f"{key}{k}.safetensors"))
            (configuration,) = header["plan"]["configurations"].values()
            found.append({**configuration, "batch_size": 2})
            size = header["config"]["segment"]["batch_size"]
            assert size == (9 if k == 2 else chosen["batch_size"])
        assert found[0] == found[1] == found[2]


def test_settings_are_nnunets_or_as_wanted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", PLANS["2d"], [network(FLAT)])
    wanted = ["resizing=null", "overlap=0.25"]
    model = imported(folder, tmp_path / "model.safetensors", overrides=wanted)
    config = read_header(model)["config"]
    assert config["resizing"] is None and config["overlap"] == 0.25 and config["axes"] == "SPL"
    scan, _ = small_scan(tmp_path / "scan.nii.gz")
    segment([scan], model, tmp_path / "out", device="cpu")
    assert len(np.unique(labels_in(tmp_path / "out"))) == 3
    for wrong in ("overlaps=0.1", "configuration=3d_lowres"):
        with pytest.raises(UsageError, match=wrong.split("=")[0]) as caught:
            imported(folder, tmp_path / "other.safetensors", overrides=[wrong])
        assert caught.value.code == "bad-setting"


def test_axes_that_are_not_known_are_said_to_be_assumed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", PLANS["2d"], [network(FLAT)])
    with pytest.warns(KidsegWarning, match="LPS is assumed"):
        made = import_nnunet(folder, tmp_path / "model.safetensors")
    assert made["axes"] == "SPL" and not made["axes_known"]
    for reader in ("NibabelIOWithReorient", "SimpleITKIOWithReorient"):
        content = {**PLANS["2d"], "image_reader_writer": reader}
        folder = write_folder(tmp_path / reader, content, [network(FLAT)])
        for k, stored in enumerate((None, "LPS")):  # such a reader makes it irrelevant
            made = import_nnunet(folder, tmp_path / f"{reader}{k}.safetensors", stored=stored)
            assert made["axes"] == "SAR" and made["axes_known"]
    with pytest.raises(InputError, match="neither a file nor") as caught:
        import_nnunet(folder, tmp_path / "other.safetensors", stored="XYZ")
    assert caught.value.code == "bad-axes"


# ---- what is refused ---------------------------------------------------------------------------


class Trap:
    """A pickle of it calls a function when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    for k, place in enumerate(("logging", "trainer_name", "extra")):
        folder = write_folder(
            tmp_path / f"trained{k}", PLANS["2d"], [network(FLAT)], **{place: Trap(trace)}
        )
        with pytest.raises(ModelError, match="nothing of it was executed") as caught:
            import_nnunet(folder, tmp_path / "model.safetensors", stored="LPS")
        assert caught.value.code == "unsafe-checkpoint"
        assert not trace.exists() and not (tmp_path / "model.safetensors").exists()
    torch.load(folder / "fold_0/checkpoint_final.pth", weights_only=False)
    assert trace.exists(), "the trap would have worked"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SCALAR = b"cnumpy._core.multiarray\nscalar\n"
NESTED = b"]" * 20_000 + b"a" * 19_999
# Instructions of pickle beyond what `pickle.dumps` writes of an object with `__reduce__`; %s calls.
HOSTILE = {
    "by torch's function": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n"
    b"%s\x85}tR.",
    "an instance": b"(%sios\nsystem\n.",
    "a name from the stack": text("os") + text("system") + b"\x93%s\x85R.",
    "an attribute of an allowed name": b"cnumpy.dtype\n__init__\n%s\x85R.",
    "another type of number": SCALAR + b"ccollections\nOrderedDict\n)R}%ssbU\x0812345678\x86R.",
    "a number of no type": SCALAR + b"cnumpy\ndtype\n)\x81U\x0812345678\x86R.",
    "objects": b"cnumpy\ndtype\n" + text("O8") + b"\x85R.",
    "nested lists": NESTED + b".",
    "a set of nested lists": b"cbuiltins\nset\n" + NESTED + b"\x85R.",
}


@pytest.mark.parametrize("how", HOSTILE)
def test_no_instruction_of_a_pickle_calls_anything(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor if the environment tells torch to trust files."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trace, file = tmp_path / "executed", tmp_path / "x.pth"
    with zipfile.ZipFile(file, "w") as archive:
        code = HOSTILE[how].replace(b"%s", text(f"touch {trace}"))
        archive.writestr("archive/data.pkl", b"\x80\x02" + code)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    if how == "nested lists":
        assert isinstance(read_torch_file(file), list)
    else:
        with pytest.raises(ModelError) as refused:
            read_torch_file(file)
        assert refused.value.code in ("unsafe-checkpoint", "damaged-checkpoint")
    assert not trace.exists()


def changed(content: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Plans whose configuration has other entries, or a network other arguments (arch_...)."""
    ((name, chosen),) = content["configurations"].items()
    out = {**chosen}
    for key, value in changes.items():
        if key.startswith("arch_"):
            kwargs = {**out["architecture"]["arch_kwargs"], key.removeprefix("arch_"): value}
            out["architecture"] = {**out["architecture"], "arch_kwargs": kwargs}
        else:
            out[key] = value
    return {**content, "configurations": {name: out}}


OTHER_CLASS = {"network_class_name": "x.y.Primus", "arch_kwargs": {}}
UNSUPPORTED = {
    "a cascade after 3d_lowres": {"previous_stage": "3d_lowres"},
    "class Primus": {"architecture": OTHER_CLASS},
    "squeeze_excitation True": {"arch_squeeze_excitation": True},
    "preprocessor Mine": {"preprocessor_name": "Mine"},
    "resampling resample_torch": {"resampling_fn_data": "resample_torch"},
    "normalization Mine": {"normalization_schemes": ["Mine"]},
    "norm_op torch.nn.BatchNorm2d": {"arch_norm_op": "torch.nn.BatchNorm2d"},
    "nonlin torch.nn.GELU": {"arch_nonlin": "torch.nn.GELU"},
    "dropout_op torch.nn.Dropout2d": {"arch_dropout_op": "torch.nn.Dropout2d"},
    "stages of \\[2, 3\\] convolutions": {"arch_n_conv_per_stage": [2, 2, 3]},
    "kernels of \\(\\(2, 2\\)": {"arch_kernel_sizes": [[2, 2], [3, 3], [3, 3]]},
    "strides \\(2, 2\\) in the first": {"arch_strides": [[2, 2], [2, 2], [2, 1]]},
    # nnU-Net builds a network without the part if its entry is missing.
    **{
        f"{name} None": {f"arch_{name}": None}
        for name in ("conv_op", "norm_op", "norm_op_kwargs", "conv_bias", "nonlin")
    },
    "separate_z_anisotropy_threshold 5": {
        "resampling_fn_data_kwargs": {"separate_z_anisotropy_threshold": 5}
    },
    "order 2": {"resampling_fn_probabilities_kwargs": {"order": 2}},
    "order_z 1": {"resampling_fn_data_kwargs": {"order_z": 1}},
    "antialiased True": {"resampling_fn_data_kwargs": {"antialiased": True}},
    "force_separate_z 'None'": {"resampling_fn_data_kwargs": {"force_separate_z": "None"}},
    "force_separate_z \\[True, False\\]": {
        "resampling_fn_data_kwargs": {"force_separate_z": True},
        "resampling_fn_probabilities_kwargs": {},
    },
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_kidseg_cannot_represent_is_refused_by_name(what: str, tmp_path: Path) -> None:
    content = changed(PLANS["2d"], **UNSUPPORTED[what])
    folder = write_folder(tmp_path / "trained", content, [network(FLAT)])
    with pytest.raises(ModelError, match=what) as caught:
        import_nnunet(folder, tmp_path / "model.safetensors", stored="LPS")
    assert caught.value.code == "unsupported-model" and "Supported: " in caught.value.next_step


def test_other_readers_of_images_are_refused(tmp_path: Path) -> None:
    """They read pictures, or give their axes any order."""
    content = {**PLANS["2d"], "image_reader_writer": "NaturalImage2DIO"}
    folder = write_folder(tmp_path / "trained", content, [network(FLAT)])
    with pytest.raises(ModelError, match="images read by NaturalImage2DIO") as caught:
        import_nnunet(folder, tmp_path / "model.safetensors", stored="LPS")
    assert caught.value.code == "unsupported-model"


def truncate(folder: Path) -> None:
    path = folder / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:5000])


def without_file(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewritten(name: str, **changes: Any) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return rewrite


def with_checkpoint(**changes: Any) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "fold_0" / "checkpoint_final.pth"
        torch.save({**torch.load(path, weights_only=False), **changes}, path)

    return rewrite


def with_plans(**changes: Any) -> Callable[[Path], None]:
    return rewritten("plans.json", **changed(PLANS["2d"], **changes))


def with_weight(change: Callable[[torch.Tensor], Any]) -> Callable[[Path], None]:
    """Another tensor in place of the weights of the first convolution."""
    weights = their_weights(network(FLAT))
    first = "encoder.stages.0.0.convs.0.conv.weight"
    return with_checkpoint(network_weights={**weights, first: change(weights[first])})


OTHER_WIDTH = Topology(features=(4, 6, 8), kernels=FLAT.kernels, strides=FLAT.strides)
# Numbers of the plans that no scan, network or machine has, and entries that contradict others.
ABSURD: dict[str, Mapping[str, Any]] = {
    "patches of nothing": {"patch_size": [0, 80]},
    "negative patches": {"patch_size": [-72, 80]},
    "patches beyond any memory": {"patch_size": [65536, 65536]},
    "sides beyond any scan": {"patch_size": [10**9, 80]},
    "patches with an axis more": {"patch_size": [16, 72, 80]},
    "no spacing": {"spacing": [0.0, 2.6]},
    "negative spacing": {"spacing": [-3.1, 2.6]},
    "infinitesimal spacing": {"spacing": [1e-300, 2.6]},
    "spacing beyond any body": {"spacing": [1e300, 2.6]},
    "images of nothing": {"median_image_size_in_voxels": [0.5, 80.0]},
    "images beyond any scan": {"median_image_size_in_voxels": [1e300, 80.0]},
    "no batch": {"batch_size": 0},
    "a batch beyond any memory": {"batch_size": 10**9},
    "kernels of nothing": {"arch_kernel_sizes": [[0, 3], [3, 3], [3, 3]]},
    "negative kernels": {"arch_kernel_sizes": [[-1, 3], [3, 3], [3, 3]]},
    "no strides": {"arch_strides": [[1, 1], [0, 2], [2, 1]]},
    "no maps": {"arch_features_per_stage": [4, 0, 6]},
    "stages without convolutions": {"arch_n_conv_per_stage": 0, "arch_n_conv_per_stage_decoder": 0},
    "numbers for fewer stages": {"arch_n_conv_per_stage": [2]},
    "numbers for no stage": {"arch_n_conv_per_stage_decoder": []},
    "another number of stages": {"arch_n_stages": 4},
}
ABSURD_DATA: dict[str, Mapping[str, Any]] = {
    "two axes": {"original_median_spacing_after_transp": [1.0, 1.0]},
    "negative median spacing": {"original_median_spacing_after_transp": [3.0, -1.0, 1.0]},
    "an axis twice": {"transpose_forward": [0, 1, 1]},
    "axes that are not brought back": {"transpose_backward": [2, 0, 1]},
    "no way back": {"transpose_backward": None},
    **{
        f"{name} of {value:g}": {
            "foreground_intensity_properties_per_channel": {"0": {**STATISTICS, name: value}}
        }
        for name, value in (
            ("std", 0.0),
            ("std", -1.0),
            ("std", 1e9),
            ("mean", 901.9),
            ("median", -500.0),
            ("percentile_00_5", 500.0),
            ("max", -950.0),
            ("max", 1e300),
        )
    },
}
INFINITE = {name: t + torch.inf for name, t in their_weights(network(FLAT)).items()}
FAULTS: dict[str, tuple[Callable[[Path], None], type[KidsegError], str]] = {
    "no plans": (without_file("plans.json"), InputError, "no-training"),
    "no description": (without_file("dataset.json"), InputError, "no-training"),
    "no checkpoint": (without_file("fold_0/checkpoint_final.pth"), InputError, "no-fold"),
    "truncated": (truncate, ModelError, "damaged-checkpoint"),
    "no json": (lambda f: (f / "plans.json").write_text("{"), InputError, "not-json"),  # type: ignore[dict-item, func-returns-value]
    "no spacing": (with_plans(spacing="fine"), InputError, "bad-plans"),
    "patch that does not fit": (with_plans(patch_size=[33, 40]), InputError, "bad-plans"),
    "a billion convolutions": (
        with_plans(arch_n_conv_per_stage=10**9, arch_n_conv_per_stage_decoder=10**9),
        InputError,
        "bad-plans",
    ),
    "a thousand stages": (
        with_plans(arch_features_per_stage=[4] * 1000),
        InputError,
        "bad-plans",
    ),
    "no number": (with_plans(spacing=[float("nan"), 1.0]), InputError, "bad-plans"),
    "circular": (with_plans(inherits_from="2d"), InputError, "bad-plans"),
    "channels": (
        rewritten("dataset.json", channel_names={"0": "CT", "1": "PET"}),
        InputError,
        "bad-plans",
    ),
    "gaps in labels": (
        rewritten("dataset.json", labels={"background": 0, "a": 2}),
        InputError,
        "bad-dataset-json",
    ),
    "other patch": (with_plans(patch_size=[32, 40]), ModelError, "other-plans"),
    "other labels": (
        rewritten("dataset.json", labels={"background": 0, "kidney": 1}),
        ModelError,
        "other-plans",
    ),
    "other network": (
        with_checkpoint(network_weights=their_weights(network(OTHER_WIDTH))),
        ModelError,
        "other-network",
    ),
    "unknown weight": (
        with_checkpoint(network_weights={"encoder.stem.weight": torch.ones(2)}),
        ModelError,
        "other-network",
    ),
    "no weights": (with_checkpoint(network_weights={}), ModelError, "other-network"),
    "not finite": (with_checkpoint(network_weights=INFINITE), ModelError, "not-finite"),
    "not finite in float32": (
        with_weight(lambda t: t.double() + 1e300),
        ModelError,
        "not-finite",
    ),
    "no arguments": (with_checkpoint(init_args=[]), ModelError, "damaged-checkpoint"),
    "a tensor": (
        lambda f: torch.save(torch.ones(3), f / "fold_0/checkpoint_final.pth"),
        ModelError,
        "damaged-checkpoint",
    ),
    "no configuration": (
        with_checkpoint(init_args={"configuration": ["2d"]}),
        ModelError,
        "damaged-checkpoint",
    ),
    "weights without names": (
        with_checkpoint(network_weights={1: torch.ones(2)}),
        ModelError,
        "other-network",
    ),
    "maps beyond any network": (
        with_plans(arch_features_per_stage=[10**30] * 3),
        InputError,
        "bad-plans",
    ),
    **{
        f"mirrored along {axes!r}": (
            with_checkpoint(inference_allowed_mirroring_axes=axes),
            ModelError,
            "damaged-checkpoint",
        )
        for axes in ((0, 2), (-1,), (0, 0), "01", 1, [float("inf")])
    },
    **{name: (with_plans(**changes), InputError, "bad-plans") for name, changes in ABSURD.items()},
    **{
        name: (rewritten("plans.json", **changes), InputError, "bad-plans")
        for name, changes in ABSURD_DATA.items()
    },
    **{
        f"weights that are {kind}": (with_weight(change), ModelError, "other-network")
        for kind, change in {
            "no numbers": lambda t: t.to("meta"),
            "one number": lambda t: torch.zeros(()).expand(t.shape),
            "sparse": lambda t: t.to_sparse(),
            "complex": lambda t: t.to(torch.complex64),
            "of 8 bits": lambda t: t.to(torch.float8_e4m3fn),
            "no tensor": lambda t: t.tolist(),
        }.items()
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_incomplete_and_mixed_folders_are_refused(fault: str, tmp_path: Path) -> None:
    damage, kind, code = FAULTS[fault]
    folder = write_folder(tmp_path / "trained", PLANS["2d"], [network(FLAT)])
    damage(folder)
    with pytest.raises(kind) as caught:
        import_nnunet(folder, tmp_path / "model.safetensors", stored="LPS")
    assert caught.value.code == code and caught.value.next_step
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("form", ["plans.json", "old plans", "dataset.json", "checkpoint"])
def test_whatever_is_written_only_errors_of_kidseg_are_raised(form: str, tmp_path: Path) -> None:
    content = PLANS["residual"] if form == "plans.json" else PLANS["3d"]
    topology = topology_in(content)
    if form == "old plans":
        content = old_plans(content, topology)
    folder = write_folder(tmp_path / "trained", content, [network(topology)])
    known = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    path = folder / ("plans.json" if "plans" in form else "dataset.json")
    whole = path.read_bytes()
    for seed in range(N):
        path.write_bytes(whole if form == "checkpoint" else mutated_json(json.loads(whole), seed))
        if form == "checkpoint":
            changed_plans = mutated_json({**known["init_args"], "device": None}, seed)
            try:
                start = json.loads(changed_plans)
            except (ValueError, RecursionError):
                continue
            torch.save({**known, "init_args": start}, folder / "fold_0" / "checkpoint_final.pth")
        with contextlib.suppress(KidsegError):
            import_nnunet(folder, tmp_path / "model.safetensors", stored="LPS", overwrite=True)


def test_whatever_bytes_a_checkpoint_has_only_errors_of_kidseg_are_raised(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "trained", PLANS["2d"], [network(FLAT)])
    path = folder / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    for seed in range(N):
        path.write_bytes(mutated_bytes(whole, random.Random(seed)))
        with contextlib.suppress(KidsegError):
            import_nnunet(folder, tmp_path / "model.safetensors", stored="LPS", overwrite=True)


def test_folders_and_folds_that_are_near_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "results" / "trained", PLANS["2d"], [network(FLAT)])
    out = tmp_path / "model.safetensors"
    for near in (tmp_path / "results", tmp_path, folder / "fold_0"):
        with pytest.raises(InputError, match=str(folder)):
            import_nnunet(near, out)
    with pytest.raises(InputError, match=r"fold 3, all has no .*Folds with one: 0"):
        import_nnunet(folder, out, folds=[0, 3, "all"])
    (folder / "fold_0").rename(folder / "fold_all")
    assert import_nnunet(folder, tmp_path / "all.safetensors", stored="LPS")["folds"] == ["all"]
    (folder / "fold_all").rename(folder / "fold_0")
    for name in ("checkpoint_x.pth", "", "*", "**/a"):
        with pytest.raises(InputError, match=r"checkpoint_best\.pth") as lacking:
            import_nnunet(folder, out, checkpoint=name)
        assert lacking.value.code == "no-fold"
    exported, old = tmp_path / "exported.zip", tmp_path / "v1"
    exported.write_bytes(b"PK")
    (old / "fold_0").mkdir(parents=True)
    (old / "plans.pkl").write_bytes(b"")
    (old / "fold_0" / "model_final_checkpoint.model.pkl").write_bytes(b"")
    for given, said in ((exported, "unpack it"), (old, "nnU-Net v2"), (old / "fold_0", "v2")):
        with pytest.raises(InputError, match=r"nnU-Net v1|not a folder") as refused:
            import_nnunet(given, out)
        assert refused.value.code == "no-training" and said in refused.value.next_step
    out.write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        import_nnunet(folder, out, stored="LPS")
    assert caught.value.code == "output-exists"


# ---- going on with it --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "topology"), [("2d", FLAT), ("3d", RESIDUAL)])
def test_an_imported_model_is_fine_tuned(name: str, topology: Topology, tmp_path: Path) -> None:
    """From its weights, on patches of its size; the new model segments as nnU-Net does, too."""
    spacing = (4.0, 4.0) if name == "2d" else (10.0, 4.0, 4.0)
    patch = (32, 32) if name == "2d" else (4, 32, 32)
    content = plans(topology, spacing, patch)
    folder = write_folder(tmp_path / "trained", content, [network(topology)])
    start = imported(folder, tmp_path / "start.safetensors", stored="RAS")
    patients = write_ellipse_dataset(tmp_path / "data", 3)
    setup = Setup(
        start=start,
        overrides=("segment.epochs=1", "segment.steps=2", "augment=none"),
    )
    summary = train(tmp_path / "data", tmp_path / "run", setup, device="cpu")
    assert set(summary["stages"]) == {"segment"}
    before, after = (load_model(m) for m in (start, tmp_path / "run" / "model.safetensors"))
    assert after.header["config"]["axes"] == "SAR"
    weights = [model.parts["segment"]["encode.0.0.convolution.weight"] for model in (before, after)]
    change = (weights[0] - weights[1]).abs().max()
    assert change < 0.1, "from its weights"
    assert bool(change > 0) == (summary["stages"]["segment"]["epoch"] >= 0), "or they are kept"
    scan = tmp_path / "data" / "imagesTr" / "ellipse_000_0000.nii.gz"
    (result,) = segment([scan], tmp_path / "run", tmp_path / "out", device="cpu")
    ensemble([start, tmp_path / "run"], tmp_path / "both.safetensors")  # of the same input
    assert labels_in(tmp_path / "out").shape == tuple(patients["ellipse_000"].labels.grid.shape)
    assert "code" not in result


@pytest.mark.slow
def test_an_imported_model_is_homogenized_on_files(tmp_path: Path) -> None:
    """Imported with bodies of one size and pose, used, and trained on: labels on the scan's grid.

    Ellipses of 60 to 95 mm, turned; a network that is not told sees them as they are.
    """
    content = plans(THICK, (10.0, 4.0, 4.0), (4, 32, 32))
    folder = write_folder(tmp_path / "trained", content, [network(THICK)])
    body = {"min_radius_mm": 120.0, "max_radius_mm": 120.0, "upright": True}
    start = imported(
        folder,
        tmp_path / "start.safetensors",
        overrides=["body.min_radius_mm=120", "body.max_radius_mm=120", "body.upright=true"],
    )
    plain = imported(folder, tmp_path / "plain.safetensors")
    assert read_header(start)["config"]["body"] == body
    write_ellipse_dataset(tmp_path / "data", 3)
    setup = Setup(start=start, overrides=("segment.epochs=1", "segment.steps=1", "augment=none"))
    summary = train(tmp_path / "data", tmp_path / "run", setup, device="cpu")
    tuned = tmp_path / "run" / "model.safetensors"
    assert read_header(tuned)["config"]["body"] == body
    weights = [
        load_model(m).parts["segment"]["encode.0.0.convolution.weight"] for m in (start, tuned)
    ]
    change = (weights[0] - weights[1]).abs().max()
    assert change < 0.1
    assert bool(change > 0) == (summary["stages"]["segment"]["epoch"] >= 0)
    scan = tmp_path / "data" / "imagesTr" / "ellipse_000_0000.nii.gz"
    found = {}
    for model in (plain, start, tuned):
        segment([scan], model, tmp_path / "out" / model.stem, device="cpu")
        (file,) = (tmp_path / "out" / model.stem).glob("*_seg.nii.gz")
        made, image = nibabel.load(file), nibabel.load(scan)
        assert made.shape == image.shape and np.allclose(made.affine, image.affine, atol=1e-4)
        found[model.stem] = np.asarray(made.dataobj)
        assert len(np.unique(found[model.stem])) > 1
    assert (found["plain"] != found["start"]).mean() > 0.01, "it sees other voxels"


def test_the_command_line_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nets = [network(FLAT, seed) for seed in (0, 1)]
    folder = write_folder(tmp_path / "trained", PLANS["2d"], nets, mirror_axes=(0, 1))
    out = tmp_path / "model.safetensors"
    arguments = [str(folder), "-o", str(out), "--fold", "1", "--no-mirror", "--stored", "xyz"]
    assert call_cli("import-nnunet", *arguments, "--json") == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad-axes"
    code = call_cli("import-nnunet", *arguments[:-1], "lps")
    text = capsys.readouterr().out
    assert code == 0
    assert "fold 1" in text and "without mirroring" in text and "1 kidney, 2 tumour" in text
    code = call_cli("import-nnunet", *arguments[:-1], "LPS", "--overwrite", "--json")
    made = json.loads(capsys.readouterr().out)
    call_cli("info", out)
    told = capsys.readouterr().out
    assert "by nnU-Net v2: Dataset007_Kidneys, nnUNetPlans, 2d" in told and "fold 1" in told
    assert made["folds"] == ["1"] and made["mirror_axes"] == [] and made["axes"] == "SPL"


# ---- the real one ------------------------------------------------------------------------------


def rows_of_benchmark(name: str, *arguments: str) -> list[dict[str, Any]]:
    python = os.environ.get("KIDSEG_NNUNET_PYTHON")
    if python is None:
        pytest.skip("KIDSEG_NNUNET_PYTHON: the interpreter of an environment with nnunetv2")
    script = Path(__file__).parents[1] / "benchmarks" / name
    command = [sys.executable, str(script), "--peer", python, "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


@pytest.mark.slow
def test_labels_are_those_of_the_real_nnunet(tmp_path: Path) -> None:
    """Trained, predicted and compared by benchmarks/import_nnunet.py."""
    rows = rows_of_benchmark("import_nnunet.py", "--stored", "SAR")
    assert len(rows) == 8 and all(row["equal"] >= 0.9999 for row in rows)


@pytest.mark.slow
def test_whatever_plans_say_labels_are_those_of_the_real_nnunet() -> None:
    """Untrained networks, predicted and compared by benchmarks/import_nnunet_plans.py."""
    rows = rows_of_benchmark("import_nnunet_plans.py")
    assert len(rows) > 30 and all(row["equal"] >= 0.9999 for row in rows)
    assert all(row["probabilities"] < 0.003 for row in rows)  # of sums in half precision


def test_logits_are_those_of_the_real_networks() -> None:
    """Every network that can be represented, built by nnU-Net's own package."""
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet", reason="nnU-Net's networks"
    )
    for k, topology in enumerate((FLAT, THICK, RESIDUAL)):
        described = architecture(topology)
        kind = described["network_class_name"].rpartition(".")[2]
        kwargs = {
            name: pydoc.locate(value)
            if name in described["_kw_requires_import"] and value
            else value
            for name, value in described["arch_kwargs"].items()
        }
        torch.manual_seed(k)
        theirs = getattr(unet, kind)(2, num_classes=3, deep_supervision=False, **kwargs).eval()
        mine = nets.build(topology, 2, 3, seed=9).eval()
        mine.load_state_dict(renamed(theirs.state_dict(), topology, 2, 3, Path("x.pth")))
        image = torch.randn(1, 2, *(2 * n for n in topology.divisors))
        with torch.no_grad():
            assert torch.equal(mine(image)[0], theirs(image))
