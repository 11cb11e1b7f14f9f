"""On a GPU: every method trains and segments, resumes to the bit, and says when memory runs out.

Skipped where there is none, as in CI.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cascades import SETTINGS as CASCADE
from commands import call_cli
from ellipses import write_ellipse_dataset
from kidseg.errors import ResourceError
from kidseg.io import ReadOptions, read
from kidseg.segment import segment
from kidseg.train import Setup, train
from trained import SETTINGS, stopped_after, tiny, tiny_pose
from weights import weights_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LABELS = ReadOptions(values="labels")
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("plain", SETTINGS),
    "augmented": ("plain", (*SETTINGS, "augment=nnunet")),
    "style": ("plain", (*SETTINGS, "augment=style", "segment.average=0.9", "smooth_mm=3")),
    "neighbours": ("plain", (*SETTINGS, "reach=1")),
    "pose": ("homogenized", (*tiny(2), *tiny_pose(2))),
    "pose, loss on the network's grid": (
        "homogenized",
        (*tiny(2), *tiny_pose(2), "loss_space=network"),
    ),
    "pose and crop": (
        "homogenized",
        (
            *(s for s in tiny(2) if not s.startswith("unet.size")),
            *tiny_pose(2),
            "crop.localizer.size=32",
            "crop.localizer.pooled=4",
            "crop.localizer.hidden=[16,8]",
            "crop.stage.epochs=2",
            "crop.stage.min_epochs=0",
            "crop.stage.steps=2",
            "crop.stage.batch_size=6",
            "crop.output=full",
        ),
    ),
    "plain3d": (
        "plain3d",
        (
            "blocks.patch=[8,32,32]",
            "blocks.features=4",
            "blocks.max_features=16",
            "segment.epochs=2",
            "segment.steps=2",
            "segment.batch_size=2",
        ),
    ),
    "multistage": (
        "multistage",
        (
            "slice_mm=null",
            "coarse_size=32",
            "box=32",
            *(
                f"{net}.{setting}"
                for net in ("coarse", "resunet", "resnet")
                for setting in (
                    "net.levels=2",
                    "net.features=8",
                    "stage.epochs=8",
                    "stage.steps=8",
                    "stage.batch_size=9",
                    "stage.optimizer.learning_rate=0.01",
                )
            ),
        ),
    ),
    "cascade": ("cascade", CASCADE),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gpu") / "data"
    write_ellipse_dataset(root, 5)
    return root


def differing(one: Path, other: Path) -> float:
    """The share of differing voxels among those that either labels."""
    a, b = (read(path, LABELS).volume.data for path in (one, other))
    return float((a != b).sum() / ((a > 0) | (b > 0)).sum().clamp(min=1))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_segments(data: Path, tmp_path: Path, name: str) -> None:
    """What it segments is what the processor segments, in the same precision, but for near ties."""
    method, settings = METHODS[name]
    setup = Setup(method=method, overrides=(*settings, "precision=fp32"))
    summary = train(data, tmp_path / "run", setup, device="cuda")
    assert summary["device"] == "cuda"
    assert summary["peak_memory_mb"]["device"] > 0
    scan = data / "imagesTr" / "ellipse_001_0000.nii.gz"
    for device in ("cuda", "cpu"):
        segment([scan], tmp_path / "run", tmp_path / device, device=device)
    labels = [tmp_path / device / "ellipse_001_seg.nii.gz" for device in ("cuda", "cpu")]
    assert differing(*labels) < 0.02


@pytest.mark.parametrize(
    "name",
    ["plain", "augmented", "style", "pose", "pose, loss on the network's grid", "pose and crop"],
)
def test_a_stopped_training_goes_on_to_the_same_bits(data: Path, tmp_path: Path, name: str) -> None:
    method, settings = METHODS[name]
    setup = Setup(method=method, overrides=settings)
    train(data, tmp_path / "whole", setup, device="cuda")
    stop = stopped_after("segment", 1)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", setup, device="cuda", progress=stop)
    train(data, tmp_path / "parts", resume=True, device="cuda")
    whole, parts = (weights_of(tmp_path / run / "model.safetensors") for run in ("whole", "parts"))
    assert whole == parts


def test_workers_change_nothing(data: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        settings = (*METHODS["style"][1], f"workers={workers}")
        run = tmp_path / str(workers)
        train(data, run, Setup(method="plain", overrides=settings), device="cuda")
    none, two = (weights_of(tmp_path / str(workers) / "model.safetensors") for workers in (0, 2))
    assert none == two


def test_too_little_memory_is_said(data: Path, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(200 * 2**20 / total)
    try:
        settings = ("view.size=256", "unet.features=8", "segment.batch_size=64", "segment.steps=2")
        with pytest.raises(ResourceError) as error:
            train(data, tmp_path / "run", Setup(method="plain", overrides=settings), device="cuda")
        assert error.value.code == "out-of-memory"
        scan = data / "imagesTr" / "ellipse_001_0000.nii.gz"
        code = call_cli("segment", scan, "-o", tmp_path / "out", "--device", "cuda")
        assert code in (0, 5)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_starter_finds_what_it_finds_on_the_processor(tmp_path: Path) -> None:
    """In bf16, as it chooses itself."""
    made = tmp_path / "made"
    assert not call_cli("phantom", made, "-n", 1, "--seed", 5, "--set", "max_slices=16")
    scan = made / "imagesTr" / "phantom_0000_0000.nii.gz"
    for device in ("cuda", "cpu"):
        code = call_cli("segment", scan, "-o", tmp_path / device, "--device", device)
        assert not code
    labels = [tmp_path / device / "phantom_0000_seg.nii.gz" for device in ("cuda", "cpu")]
    assert differing(*labels) < 0.02
    result = json.loads((tmp_path / "cuda" / "result.json").read_text())
    assert "cuda" in json.dumps(result)
