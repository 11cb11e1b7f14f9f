"""The paper presets against one table of the paper's numbers."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kidseg.config import METHODS, StudyConfig, load, preset
from kidseg.registry import PRESETS

# La Barbera et al., ISBI 2021: setting, value, and the words that state it (section 4 unless
# another place is named). Of what the paper does not state, there are only readings, so marked.
COMMON = {
    "cohort.label_share": 1 / 3,  # "at least one third of the images containing the kidney ..."
    "cohort.validation_share": 0.2,  # 3760 of 15036 + 3760
    "cohort.clip_hu": None,  # "0.5 and 99.5 percentile of the foreground voxels"
    "postprocess.min_volume_ml": 0.0,  # none
    "unet.architecture": "unet",  # its levels are stated
    "unet.bottleneck": 8,  # "8 x 8 image"
    "unet.skips": 32,  # "up to the 32 x 32 image level"
    "unet.supervised_to": 32,  # "up to the level N, where there is the last skip connection"
    "unet.head_kernel": 3,  # "kernel = 3"
    "unet.head_norm": True,  # "batch normalization"
    "segment.min_epochs": 50,  # "at least 50 epochs"
    "segment.optimizer.name": "sgd",
    "segment.optimizer.learning_rate": 0.01,
    "segment.optimizer.momentum": 0.99,
    "segment.optimizer.weight_decay": 3e-5,
    "segment.optimizer.poly_power": 0.9,  # "a poly learning rate policy [...], as nnUNet"
    "augment": "none",  # table 2: "(without data augmentation)"
}
PLAIN = {
    "reach": 0,  # section 5: "we chose a 2D network"
}
STN = {
    "stage.epochs": 50,  # "for 50 epochs"
    "stage.min_epochs": 50,
    "stage.patience": None,
    "stage.optimizer.name": "sgd",
    "stage.optimizer.learning_rate": 0.01,
    "stage.optimizer.momentum": 0.0,
    "stage.optimizer.weight_decay": 0.0,
    "stage.optimizer.poly_power": 0.0,
    "stage.optimizer.clip_norm": None,
    "localizer.head": "dense",  # "reduces the image by a factor of 4"
    "per": "slice",  # "per image"
}
HOMOGENIZED = {
    "reach": 0,  # section 5: "we chose a 2D network"
    "pose.start": "identity",  # eq. 1
    "pose.target": "body",  # eq. 1: "foreground mask"
    "pose.loss_scale": 100.0,  # eq. 1
    "pose.reference_mode": "slice",  # "the reference image"
    "pose.localizer.scales": 2,  # "2 for scaling"
    "pose.teacher": 0.0,
    "pose.symmetry": 0.0,
    "pose.bone": 0.0,
    "pose.flip": False,
    "pose.only_better": False,
    "pose.iterations": 1,
    "pose.cut": 0.0,
    "pose.jitter_deg": 0.0,
    "pose.jitter_scale": 0.0,
    "pose.jitter_shift": 0.0,
    "pose.body_width": None,
    "loss_space": "original",  # eq. 3
    "supervision": "paper",  # eq. 3
    "schedule": "sequential",  # "a training of one STN after the other"
    "joint.optimizer.clip_norm": None,  # none
    **{f"pose.{name}": value for name, value in STN.items()},
}
CROP = {
    "crop.target": "slice",  # "minimum and maximum non-zero values of the reference segmentation"
    "crop.empty": "patient",  # a reading: slices without labels are not mentioned
    "crop.localizer.square": True,  # "forced to be a square"
    "crop.localizer.min_side": 0.25,  # "a quarter of the original image"
    "crop.localizer.margin": 0.0,  # none
    **{f"crop.{name}": value for name, value in STN.items()},
}
SIZES = {  # section 5, table 2: size and batch size
    128: {"view.size": 128, "segment.batch_size": 32},
    512: {"view.size": 512, "segment.batch_size": 12},
}

# Santini et al., KiTS19: the sections and tables are those of the paper.
NETS = ("coarse", "resunet", "resnet")
MULTISTAGE = {
    "slice_mm": 3.0,  # 2.2
    "cohort.clip_hu": (-30.0, 300.0),  # 2.2
    "reach": 2,  # 3.1: "two slices above and two slices below"
    "reduction": 2,  # 2.3: "halved"
    "coarse_size": 256,  # 2.3: "at 256 x 256 pixels"
    "box": 256,  # 2.3
    "pixel_mm": None,  # 2.3: "original full resolution along x-y"
    "regions": "predicted",  # 2.3: "from the first stage segmentations"
    "ensemble": ("resunet", "resnet"),  # 2.3
    "hard_negatives": 0.0,  # 4: planned for
    "kidneys.min_voxels": 5001,  # 2.4: "more than 5000 pixels"
    "postprocess.min_voxels": 5001,  # 2.4
    "cohort.validation_share": 0.0952,  # 3: 20 of 210
    "resnet.net.dropout": 0.5,  # 2.3
    **{f"{net}.net.levels": 4 for net in ("coarse", "resunet")},  # 2.3: "four encoding levels"
    **{f"{net}.net.blocks": 1 for net in ("coarse", "resunet")},  # 2.3: two convolutions a level
    **{f"{net}.net.skips": "concatenated" for net in ("coarse", "resunet")},  # 2.3
    **{f"{net}.augmentation.rotation_deg": 30.0 for net in NETS},  # 3.1
    **{f"{net}.augmentation.rotated_share": 1.0 for net in NETS},  # table 1
    **{f"{net}.stage.epochs": 250 for net in NETS},  # 3.1
    **{f"{net}.stage.batch_size": 32 for net in NETS},  # 3.1
    **{f"{net}.stage.optimizer.name": "adam" for net in NETS},  # 3.1
    **{f"{net}.stage.optimizer.weight_decay": 0.1 for net in NETS},  # 3.1
    **{f"{net}.stage.optimizer.decayed": "kernels" for net in NETS},  # 3.1: "on kernel weights"
    **{
        f"{net}.{setting}": value
        for net, row in {  # table 1
            "coarse": ("truncated_normal", (0.3, 1.0, 3.0), 1e-4, 0.5, 0.0),
            "resunet": ("truncated_normal", (0.3, 1.0, 3.0), 1e-4, 0.5, 0.66),
            "resnet": ("he_uniform", (0.2, 0.25, 0.55), 1e-3, 0.0, 0.0),
        }.items()
        for setting, value in zip(
            (
                "net.init",
                "weights",
                "stage.optimizer.learning_rate",
                "augmentation.flipped_share",
                "augmentation.cropped_share",
            ),
            row,
            strict=True,
        )
    },
}
# Zhang et al., KiTS19.
CASCADE = {
    "spacing_mm": (3.0, 0.7816, 0.7816),  # 1.3
    "coarse.size": 128,  # 1.3: H and W of C
    "correct.size": (64, 256),  # 1.3: D and H of A
    "fine.size": 160,  # 1.3: H and W of F
    "kidney.min_voxels": 10000,  # 1.3
    "correct.iterations": 1,  # 1.2: "one iteration is enough"
    "crops": "truth",  # 1.2: "refer the ground truth in training stage"
    "dice_over": "sample",  # 1.1, eq. 1
    "cohort.label_share": 0.0,  # 1.1: all slices
    "fine.grow": False,  # 1.1: "of the same image size"
    "unet.architecture": "unet",  # 1: "U-net"
    "unet.skips": "all",  # 1: "U-net"
    **{f"{net}.loss": "dice" for net in ("coarse", "correct", "fine")},  # 1.1
    "tumour.loss": "cross-entropy",  # 2.1, eq. 6
    "tumour.unet.skips": "long",  # 2.1: "a long skip connection"
    "tumour.unet.dimensions": 3,  # 2.1
    "tumour.frame_px": 30,  # 2.4
    "tumour.frame_mm": 30.0,  # 2.4
    "refine.inside": "lesion",  # 2.5: "within detected tumor region"
    "postprocess.min_volume_ml": 0.0,  # none
}
# How the comment of a line begins.
PLACE = re.compile(r"\s*((section|table|eq\.|figure) \d|ours\b|not stated|none stated)")
SECTION = re.compile(r"\s*(\d(\.\d)?\b|table \d|unstated)")

# What a preset of a paper need not say: where and for how long a training runs; and, by the setting
# that puts them out of force, those that are without effect.
OF_THE_MACHINE = r"(.*\.)?budget_s|budget_clock|precision|workers"
OF_THE_RUN = r"pose\.reference|unet\.size"  # --reference; the side of the network's own input
WITHOUT_EFFECT: dict[tuple[str, object], str] = {
    ("cohort.hard_share", 0.0): r"cohort\.hard_candidates",
    ("postprocess.lone_tumour_ml", 0.0): r"postprocess\.(within_mm|stack_mm)",
    ("kidneys.lone_tumour_ml", 0.0): r"kidneys\.(within_mm|stack_mm)",
    ("postprocess.min_volume_ml", 0.0): r"postprocess\.(body_radius_mm|min_voxels)",
    ("postprocess.min_voxels", 5001): r"postprocess\.(min_volume_ml|body_radius_mm)",
    ("kidneys.min_voxels", 5001): r"kidneys\.(min_volume_ml|body_radius_mm)",
    ("kidney.min_voxels", 10000): r"kidney\.(min_volume_ml|body_radius_mm)",
    (
        "refine.almost_nothing.min_voxels",
        100,
    ): r"refine\.almost_nothing\.(min_volume_ml|body_radius_mm)",
    ("coarse.augmentation.cropped_share", 0.0): r"coarse\.augmentation\.min_centre",
    ("resnet.augmentation.cropped_share", 0.0): r"resnet\.augmentation\.min_centre",
    ("coarse.stage.optimizer.name", "adam"): r".*optimizer\.momentum",
    ("coarse_size", 256): r"cohort\.label_share",  # `multistage` has shares of its own
    ("augment", "none"): r"style\..*",
    ("pose.target", "body"): r"view\.bone_.*",
    ("pose.start", "identity"): r"pose\.moments",
    ("pose.reference_mode", "slice"): r"pose\.reference_slices",
    ("pose.localizer.head", "dense"): r"pose\.localizer\.pooled",
    ("crop.localizer.head", "dense"): r"crop\.localizer\.pooled",
    # A pose has no crop's settings, and a crop none of a pose.
    ("pose.localizer.scales", 2): r"pose\.localizer\.(square|min_side|margin)",
    ("crop.localizer.square", True): r"crop\.localizer\.scales",
    ("reach", 0): r"apart_mm|view\.bone_.*",  # `plain` looks at no bone
    ("unet.dimensions", 2): r"(tumour\.)?unet\.dimensions",  # fixed by the method
}


def flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict)
        out |= flat(value, f"{above}{name}.") if nested else {f"{above}{name}": value}
    return out


def resolved(size: int, method: str, *overrides: str) -> dict[str, Any]:
    kind = METHODS[method]
    config = load(kind, base=preset(f"paper-{size}", method), overrides=overrides)
    return flat(asdict(config))


def of_paper(method: str) -> dict[str, Any]:
    return flat(asdict(load(METHODS[method], base=preset("paper", method))))


def stn_sizes(size: int, part: str) -> dict[str, Any]:
    batch = SIZES[size]["segment.batch_size"]
    return {f"{part}.localizer.size": size, f"{part}.stage.batch_size": batch}


@pytest.mark.parametrize("size", [128, 512])
def test_the_papers_numbers(size: int) -> None:
    wanted = {**COMMON, **SIZES[size]}
    plain = resolved(size, "plain")
    assert {name: plain[name] for name in wanted | PLAIN} == wanted | PLAIN
    wanted |= {**HOMOGENIZED, **stn_sizes(size, "pose")}
    wanted["joint.batch_size"] = wanted["segment.batch_size"]
    if size == 512:
        wanted |= {**CROP, **stn_sizes(size, "crop")}
    found = resolved(size, "homogenized")
    assert {name: found[name] for name in wanted} == wanted
    assert len(found["pose.localizer.hidden"]) == 2, '"2 fully convolutional layers"'
    assert found["segment.patience"] is not None, '"a subsequent early-stopping condition"'
    if size == 128:
        assert found["crop"] is None, "table 2 has no crop at 128 x 128"


@pytest.mark.parametrize(
    ("size", "settings", "side"),
    [
        (128, (), 128),
        (512, ("crop=null",), 512),
        (512, (), 512),
        (512, ("crop.output=half",), 256),  # table 3
    ],
)
def test_the_bottleneck_is_8_in_every_row_of_the_tables(
    size: int, settings: tuple[str, ...], side: int
) -> None:
    kind = METHODS["homogenized"]
    config = load(kind, base=preset(f"paper-{size}", "homogenized"), overrides=settings)
    network = config.network  # type: ignore[attr-defined]
    assert network.size == side and side >> network.halvings == 8
    assert side >> network.supervised == 32


@pytest.mark.parametrize(
    ("name", "marked", "least"),
    [("paper-128", PLACE, 70), ("paper-512", PLACE, 90), ("paper", SECTION, 150)],
)
def test_every_number_has_its_place_or_is_marked(
    name: str, marked: re.Pattern[str], least: int
) -> None:
    """Each in its own line: the heading of a table does not speak for what is added to it."""
    numbers = 0
    for line in (PRESETS / f"{name}.toml").read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            numbers += 1
            assert marked.match(line.partition("#")[2]), line
    assert numbers > least


@pytest.mark.parametrize(
    ("method", "numbers"), [("multistage", MULTISTAGE), ("cascade", CASCADE)], ids=str
)
def test_the_numbers_of_the_methods_of_kits19(method: str, numbers: dict[str, Any]) -> None:
    found = of_paper(method)
    assert {name: found[name] for name in numbers} == numbers


def test_what_follows_from_the_numbers_of_the_methods_of_kits19() -> None:
    multistage: Any = load(METHODS["multistage"], base=preset("paper", "multistage"))
    assert multistage.coarse.net == multistage.resunet.net, '2.3: "identical"'
    assert round(210 * multistage.cohort.validation_share) == 20
    cascade: Any = load(METHODS["cascade"], base=preset("paper", "cascade"))
    assert cascade.unet.halvings == 4 and cascade.unet.supervised == 0
    assert cascade.tumour.stage.batch_size % 3 == 0, "2.1: a third each"


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("paper-128", "plain"),
        ("paper-128", "homogenized"),
        ("paper-512", "plain"),
        ("paper-512", "homogenized"),
        ("paper", "multistage"),
        ("paper", "cascade"),
    ],
)
def test_no_setting_that_is_in_force_is_left_to_a_default(name: str, method: str) -> None:
    """So that a default that changes does not change a preset of a paper."""
    base = preset(name, method)
    config = flat(asdict(load(METHODS[method], base=base)))
    patterns = [OF_THE_MACHINE, OF_THE_RUN]
    patterns += [what for (of, value), what in WITHOUT_EFFECT.items() if config.get(of) == value]
    left = set(config) - set(flat(base))
    assert not {each for each in left if not any(re.fullmatch(p, each) for p in patterns)}


@pytest.mark.parametrize("study", ["phantom_study", "phantom_study_gpu"])
def test_the_studys_paper_pose_is_the_presets(study: str) -> None:
    """But for the time it is given."""
    file = Path(__file__).parents[1] / "benchmarks" / f"{study}.toml"
    arm = load(StudyConfig, file=file).methods["homogenized-paper-pose"]
    kind = METHODS["homogenized"]
    found, wanted = (
        asdict(config.pose)  # type: ignore[attr-defined]
        for config in (
            load(kind, overrides=arm.set),
            load(kind, base=preset("paper-128", "homogenized")),
        )
    )
    assert found["stage"].pop("budget_s") and wanted["stage"].pop("budget_s") is None
    assert found == wanted
