"""The networks of the presets `paper` of KiTS19 at their real sizes: parameters by hand, a step."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from cohorts import PLAN, make_cohort
from kidseg import nets
from kidseg.config import METHODS, load, preset
from kidseg.device import choose_device
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.methods import method_named
from kidseg.stage import TrainStep
from kidseg.train.loop import _optimizer

CPU = choose_device("cpu", "fp32")
NOW = TrainStep(seed=0, epoch=0, step=0)
TARGETS = {"multistage": Target.of_labels(KIDNEY_TUMOUR), "cascade": Target.two(KIDNEY_TUMOUR)}
STAGES = {
    "multistage": ("coarse", "resunet", "resnet"),
    "cascade": ("coarse", "correct", "fine", "tumour", "refine"),
}
SMALL_IMAGES = {
    "multistage": ("slice_mm=null", "coarse_size=32", "box=32"),
    "cascade": (
        "spacing_mm=[10,4,4]",
        "coarse.size=32",
        "correct.size=[16,32]",
        "fine.size=32",
        "tumour.patch=[4,16,16]",
        "refine.size=32",
    ),
}


def paper(method: str, *settings: str) -> Any:
    return load(METHODS[method], base=preset("paper", method), overrides=settings)


# The papers state no numbers of parameters, nor of maps but in figures; by hand, from the layers.


def residual_block(inputs: int, outputs: int, *, first: bool = False) -> int:
    """Two convolutions without bias, each after a norm (but that of the image); the shortcut."""
    norms = (0 if first else 2 * inputs) + 2 * outputs
    return norms + 9 * inputs * outputs + 9 * outputs**2 + inputs * outputs + outputs


def residual_net(blocks: int, *, concatenated: bool) -> int:
    """Levels of 32, 64, 128 and 256 maps, a bridge of 512; five slices in, three classes out."""
    maps = [32, 64, 128, 256, 512]
    count = residual_block(5, 32, first=True) + (blocks - 1) * residual_block(32, 32)
    for fine, coarse in pairwise(maps):
        count += residual_block(fine, coarse) + (blocks - 1) * residual_block(coarse, coarse)
        count += 4 * coarse * fine + fine  # the transposed convolution, kernel 2
        joined = 2 * fine if concatenated else fine
        count += residual_block(joined, fine) + (blocks - 1) * residual_block(fine, fine)
    return count + 2 * 32 + 32 * 3 + 3


def unet(maps: list[int], inputs: int, cube: int, *, long: bool) -> int:
    """Two blocks a level, on the way down, at the bottom and up, each a convolution and a norm."""
    pairs = [(inputs, maps[0]), (maps[-1], maps[-1])]
    pairs += [(n, n) for n in maps[1:-1]]
    for level, (fine, coarse) in enumerate(pairwise(maps)):
        pairs += [(fine, coarse), (coarse, fine)]
        pairs += [(fine if long and level else 2 * fine, fine)]
    return sum(cube * n * m + 2 * m for n, m in pairs) + maps[0] * 2 + 2


RONNEBERGER = [64, 128, 256, 512, 1024]
COUNTS = {
    "multistage": {
        "coarse": residual_net(1, concatenated=True),
        "resunet": residual_net(1, concatenated=True),
        "resnet": residual_net(2, concatenated=False),
    },
    "cascade": {
        **{name: unet(RONNEBERGER, 1, 9, long=False) for name in ("coarse", "correct", "fine")},
        "tumour": unet([24, 48, 96], 1, 27, long=True),
        "refine": unet(RONNEBERGER, 2, 9, long=False),
    },
}


def size_of(net: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method, names in STAGES.items() for name in names]
)
def test_parameters_of_the_papers_networks_by_hand(method: str, name: str) -> None:
    """Without memory for them."""
    config = paper(method)
    with torch.device("meta"):
        if method == "multistage":
            net: torch.nn.Module = nets.build(getattr(config, name).net, 5, 3)
        else:
            architecture = config.tumour.unet if name == "tumour" else config.unet
            net = nets.build(architecture, 2 if name == "refine" else 1, 2)
    assert size_of(net) == COUNTS[method][name]


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGES)
def test_the_papers_networks_take_a_step(method: str) -> None:
    """Their own loss and optimizer, two small images: every weight moves and stays finite."""
    batches = [f"{name}.stage.batch_size=2" for name in STAGES[method]]
    config = paper(method, *SMALL_IMAGES[method], *batches)
    system = method_named(method).build(config, TARGETS[method], PLAN, device=CPU)
    assert {name: size_of(net) for name, net in system.parts.items()} == COUNTS[method]
    cohort = replace(make_cohort(2, 1), target=TARGETS[method])
    seen = []
    for stage in system.stages(cohort):
        seen.append(stage.name)
        batch = stage.batch(NOW)
        assert batch.image.shape[0] == 2 and max(batch.image.shape[2:]) <= 64
        stage.net.train()
        before = {name: weight.detach().clone() for name, weight in stage.net.named_parameters()}
        optimizer = _optimizer(stage.net, stage.config.optimizer)
        loss = stage.loss(stage.net, batch)["loss"]
        loss.backward()
        optimizer.step()
        assert bool(loss.isfinite())
        for name, weight in stage.net.named_parameters():
            assert bool(weight.isfinite().all()) and not torch.equal(weight, before[name]), name
        stage.net.zero_grad()
    assert tuple(seen) == STAGES[method]
