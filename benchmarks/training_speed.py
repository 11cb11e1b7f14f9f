"""How fast a device trains the methods of the papers at the papers' size, and where the time goes.

    kidseg phantom data/ --patients 4 --seed 7 --size 512 --set max_slices=24
    python benchmarks/training_speed.py data/ -o speed.json [--device cuda] [--steps 60]
        [--only NAME]

Each network is trained for that many steps of its own batch, with the whole loop of kidseg: reading
and augmentation, in processes of their own on a GPU, warps, loss with deep supervision, optimizer.
Prints for each network the median time of a step, what part of it waits for data, samples per
second, the arithmetic of forward and backward passes in TFLOP/s, and the peak of the device's
memory; steps after the first ten count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import kidseg.train.loop as loop
import kidseg.train.run as run_module
from kidseg.provenance import provenance
from kidseg.stage import Batch, Stage
from kidseg.train import Setup, train
from kidseg.train.loop import fit

WARM_UP = 10
# name: (method, preset, settings).
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "paper-128, plain": ("plain", "paper-128", []),
    "paper-128, plain, nnU-Net's augmentation": ("plain", "paper-128", ["augment=nnunet"]),
    "paper-128, pose": ("homogenized", "paper-128", ["crop=null"]),
    "paper-512, plain": ("plain", "paper-512", []),
    "paper-512, plain, nnU-Net's augmentation": ("plain", "paper-512", ["augment=nnunet"]),
    "paper-512, pose": ("homogenized", "paper-512", ["crop=null"]),
    "paper-512, pose and crop to a half": ("homogenized", "paper-512", ["crop.output=half"]),
    "multistage, paper": ("multistage", "paper", []),
    "cascade, paper": ("cascade", "paper", []),
    "plain3d": ("plain3d", "", []),
    "starter, plain": ("plain", "starter", []),
    "starter, homogenized": ("homogenized", "starter", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="digital patients")
    parser.add_argument("-o", "--out", type=Path, help="the figures as JSON")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", action="append", choices=RUNS, help="may be repeated")
    parser.add_argument("--set", action="append", default=[], help="of every method, KEY=VALUE")
    options = parser.parse_args()
    figures: dict[str, Any] = {"provenance": provenance(), "networks": {}}
    print(f"{'':<52} ms a step  waits  samples/s  TFLOP/s  peak MB")
    for name in options.only or RUNS:
        for stage, found in measured(name, options):
            figures["networks"][f"{name}: {stage}"] = found
            print(
                f"{f'{name}: {stage}':<52} {found['step_ms']:9.1f} {found['waiting']:6.0%}"
                f" {found['samples_per_s']:10.0f} {found['tflop_per_s']:8.1f}"
                f" {found['peak_mb']:8.0f}",
                flush=True,
            )
            if options.out:
                options.out.write_text(json.dumps(figures, indent=1) + "\n")


def measured(name: str, options: argparse.Namespace) -> list[tuple[str, dict[str, float]]]:
    """The networks of a method and their figures."""
    method, preset, settings = RUNS[name]
    found: list[tuple[str, dict[str, float]]] = []

    def timed(stage: Stage, run: loop.Run, before: tuple[str, ...]) -> loop.Fitted:
        clock = StepClock(run.device)
        config = replace(stage.config, epochs=1, min_epochs=0, budget_s=None)
        short = replace(
            stage,
            config=config,
            steps=options.steps,
            loss=clock.counted(stage.loss),
            validate=lambda: {"score": 0.0},
        )
        with patch.object(loop, "batches", clock.watched(loop.batches)):
            fitted = fit(short, run, before)
        found.append((stage.name, clock.figures(config.batch_size)))
        return fitted

    with tempfile.TemporaryDirectory() as folder, patch.object(run_module, "fit", timed):
        setup = Setup(method=method, preset=preset or None, overrides=[*settings, *options.set])
        train(options.data, Path(folder) / "run", setup, device=options.device)
    return found


class StepClock:
    """Times the steps of a stage, and counts the arithmetic of the first."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[float] = []
        self.waits: list[float] = []
        self.flop = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def watched(self, batches: Callable[..., Iterator[Batch]]) -> Callable[..., Iterator[Batch]]:
        def watching(*arguments: Any) -> Iterator[Batch]:
            source = batches(*arguments)
            start = time.perf_counter()
            for batch in source:
                arrived = time.perf_counter()
                yield batch
                self._finish()
                end = time.perf_counter()
                self.waits.append(arrived - start)
                self.steps.append(end - start)
                start = end

        return watching

    def counted(self, loss: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        def counting(*arguments: Any) -> dict[str, Tensor]:
            if self.flop:
                return loss(*arguments)
            with FlopCounterMode(display=False) as counter:
                values = loss(*arguments)
                values["loss"].backward(retain_graph=True)
            self.flop = counter.get_total_flops()
            return values

        return counting

    def figures(self, batch_size: int) -> dict[str, float]:
        step = statistics.median(self.steps[WARM_UP:])
        peak = 0.0
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        return {
            "step_ms": step * 1e3,
            "waiting": sum(self.waits[WARM_UP:]) / sum(self.steps[WARM_UP:]),
            "samples_per_s": batch_size / step,
            "tflop_per_s": self.flop / step / 1e12,
            "peak_mb": peak,
            "batch_size": batch_size,
        }

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


if __name__ == "__main__":
    main()
