"""Tiny cascades: settings, and networks that tell the tissues of the ellipse patients apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kidseg.config import METHODS, CascadeConfig, load
from kidseg.labels import KIDNEY_TUMOUR, Target

NETS = ("coarse", "correct", "fine", "tumour", "refine")
TARGET = Target.two(KIDNEY_TUMOUR)
SETTINGS = (
    "precision=fp32",
    "spacing_mm=[10,4,4]",
    "unet.size=16",
    "unet.features=2",
    "unet.max_features=4",
    "unet.supervised_to=16",
    "coarse.size=64",
    "correct.size=[8,48]",
    "fine.size=32",
    "tumour.unet.size=16",
    "tumour.unet.features=2",
    "tumour.unet.supervised_to=16",
    "tumour.patch=[4,16,16]",
    "tumour.frame_px=3",
    "tumour.frame_mm=10",
    "tumour.overlap=0.25",
    "refine.size=32",
    *(
        f"{net}.stage.{key}={value}"
        for net in NETS
        for key, value in (("epochs", 1), ("steps", 1), ("batch_size", 4))
    ),
)
"""For ellipse patients, on their own voxels."""


def config_with(*more: str) -> CascadeConfig:
    config = load(METHODS["cascade"], overrides=[*SETTINGS, *more])
    assert isinstance(config, CascadeConfig)
    return config


class Oracle(nn.Module):
    """Tells tissues of ellipse patients apart by their intensity."""

    def __init__(self, tumour: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.tumour = tumour
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen.append(tuple(image.shape))
        hu = image[:, :1] * 50 + 130
        away = [(hu - kind).abs() for kind in (40.0, 230.0, 180.0, 90.0)]
        inside = away[3] if self.tumour else torch.minimum(away[2], away[3])
        others = torch.minimum(away[0], away[1])
        outside = torch.minimum(others, away[2]) if self.tumour else others
        return [torch.cat([-outside, -inside], dim=1) * self.scale]


def oracles() -> dict[str, nn.Module]:
    return {name: Oracle(name in ("tumour", "refine")).eval() for name in NETS}
