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
# another place is named). What the paper does not state is not in the table.
COMMON = {
    "cohort.label_share": 1 / 3,  # "at least one third of the images containing the kidney ..."
    "cohort.validation_share": 0.2,  # 3760 of 15036 + 3760
    "postprocess.least_ml": 0.0,  # none
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
    "augment": "none",  # table 2: "(without data augmentation)"
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
    "pose.start": "identity",  # eq. 1
    "pose.target": "body",  # eq. 1: "foreground mask"
    "pose.loss_scale": 100.0,  # eq. 1
    "pose.reference_mode": "slice",  # "the reference image"
    "pose.localizer.scales": 2,  # "2 for scaling"
    "pose.teacher": 0.0,
    "pose.symmetry": 0.0,
    "pose.bone": 0.0,
    "pose.mirrored": False,
    "pose.only_better": False,
    "pose.iterations": 1,
    "pose.cut": 0.0,
    "pose.jitter_deg": 0.0,
    "pose.jitter_scale": 0.0,
    "pose.jitter_shift": 0.0,
    "pose.fill": None,
    "loss_space": "original",  # eq. 3
    "supervision": "paper",  # eq. 3
    "schedule": "sequential",  # "a training of one STN after the other"
    **{f"pose.{name}": value for name, value in STN.items()},
}
CROP = {
    "crop.target": "slice",  # "minimum and maximum non-zero values of the reference segmentation"
    "crop.localizer.square": True,  # "forced to be a square"
    "crop.localizer.least_side": 0.25,  # "a quarter of the original image"
    "crop.localizer.margin": 0.0,  # none
    **{f"crop.{name}": value for name, value in STN.items()},
}
SIZES = {  # section 5, table 2: size and batch size
    128: {"view.size": 128, "segment.batch_size": 32},
    512: {"view.size": 512, "segment.batch_size": 12},
}
STATED = re.compile(
    r"[Ss]ection \d|[Tt]able \d|[Ee]q\. \d|[Ff]igure \d|[Nn]ot stated|[Nn]one stated"
)


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


def stn_sizes(size: int, part: str) -> dict[str, Any]:
    batch = SIZES[size]["segment.batch_size"]
    return {f"{part}.localizer.size": size, f"{part}.stage.batch_size": batch}


@pytest.mark.parametrize("size", [128, 512])
def test_the_papers_numbers(size: int) -> None:
    wanted = {**COMMON, **SIZES[size]}
    plain = resolved(size, "plain")
    assert {name: plain[name] for name in wanted} == wanted
    wanted |= {**HOMOGENIZED, **stn_sizes(size, "pose")}
    if size == 512:
        wanted |= {**CROP, **stn_sizes(size, "crop")}
    found = resolved(size, "homogenized")
    assert {name: found[name] for name in wanted} == wanted
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


@pytest.mark.parametrize("size", [128, 512])
def test_every_number_has_its_place_or_is_marked(size: int) -> None:
    """By a comment in its line, or above its table."""
    above: list[str] = []
    covered = False
    numbers = 0
    for line in (PRESETS / f"paper-{size}.toml").read_text().splitlines():
        if line.startswith("#"):
            above.append(line)
        elif line.startswith("["):
            covered, above = bool(STATED.search(" ".join(above))), []
        elif not line:
            above = []
        else:
            numbers += 1
            own = line.partition("#")[2]
            assert covered or STATED.search(own) or "paper" in own, line
    assert numbers > 40


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
