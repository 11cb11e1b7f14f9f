"""System C: kidneys coarse to fine with a correction of abnormal cases, then their tumours.

Source: Zhang et al., KiTS19: two sub-tasks, kidney with tumour in three 2D networks, tumour in a 3D
and a two-channel 2D network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

from torch import nn

from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Material, Subject
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import CascadeConfig
from kidseg.device import Device
from kidseg.geometry import Volume
from kidseg.labels import Target
from kidseg.methods.cascade.chain import Chain
from kidseg.methods.cascade.decisions import Rules, Targets
from kidseg.methods.cascade.training import Training, truth
from kidseg.nets import build
from kidseg.pipeline import Blocks, Planes, Progress, Region, Segment, Step
from kidseg.plan import Plan
from kidseg.stage import Stage, shares

__all__ = ["Cascade"]

_STAGES = ("coarse", "correct", "fine", "tumour", "refine")


class Cascade:
    """Five networks, trained one after the other; see `Chain` for the steps."""

    name: ClassVar[str] = "cascade"

    def __init__(
        self,
        config: CascadeConfig,
        target: Target,
        plan: Plan,
        parts: Mapping[str, nn.Module],
        device: Device,
    ) -> None:
        self.config, self.target, self.plan = config, target, plan
        self.parts, self.device = parts, device
        self.targets = Targets.of(target)

    @classmethod
    def material(cls, config: CascadeConfig, plan: Plan) -> Material:
        """Any channels, without masks."""
        return Material(pixel_mm=max(config.spacing_mm[1:]))

    @classmethod
    def build(
        cls, config: CascadeConfig, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """See `Method.build`; all networks start from the same seed.

        Raises:
            ValueError: the target is not kidney and tumour.
        """
        channels, targets = len(plan.channels), Targets.of(target)
        parts: dict[str, nn.Module] = {}
        for name in _STAGES:
            outputs = targets.renal if name in ("coarse", "correct", "fine") else targets.tumour
            architecture = config.tumour.unet if name == "tumour" else config.unet
            inputs = channels + (name == "refine")
            net = build(architecture, inputs, outputs.outputs, seed=seed)
            parts[name] = net.to(device.torch)
        return cls(config, target, plan, parts, device)

    def stages(self, cohort: Cohort) -> Iterator[Stage]:
        """ "coarse", "correct" (unless it never corrects), "fine", "tumour" and "refine".

        A stage that is not trained leaves its network as it is, in evaluation mode.
        """
        training = Training(
            config=self.config,
            targets=self.targets,
            cohort=cohort,
            parts=self.parts,
            chain=self.chain,
            view=self._view,
        )
        names = [n for n in _STAGES if n != "correct" or self.config.correct.iterations]
        share = shares([getattr(self.config, name).stage for name in names])
        for name, part in zip(names, share, strict=True):
            yield replace(training.stage(name), share=part)
            self.parts[name].eval()

    def steps(self, subject: Subject) -> list[Step]:
        """Those of `Chain`."""
        return self.chain(subject).steps

    def chain(self, subject: Subject, *, by_truth: bool = False) -> Chain:
        """The steps of a case.

        Args:
            subject: the case.
            by_truth: its reference labels speak in place of the networks.
        """
        rules = Rules(config=self.config, targets=self.targets, subject=subject)
        segment: dict[str, Segment] = {}
        for name in _STAGES:
            target = self.targets.tumour if name in ("tumour", "refine") else self.targets.renal
            if by_truth:
                segment[name] = partial(truth, subject, target)
            elif name == "refine":
                segment[name] = partial(self._refine, rules)
            else:
                view = self._view(subject, name)
                segment[name] = partial(view.predict, self.parts[name], target)
        return Chain(rules=rules, segment=segment)

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """The sizes of the body and of the voxels."""
        return Placement(figures=figures_of(subject), overlap={})

    @property
    def facts(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def _refine(self, rules: Rules, progress: Progress, region: Region) -> Volume:
        """Tumour, from the scan and the kidneys that the fine network found."""
        mask = rules.renal_on(progress, region.grid)[None].float()
        view = self._planes(rules.subject, flip=self.config.test_time_flip)
        return view.predict(self.parts["refine"], self.targets.tumour, progress, region, mask)

    def _view(self, subject: Subject, name: str) -> Planes | Blocks:
        if name == "tumour":
            return self._blocks(subject)
        # The columns of sagittal slices run from front to back.
        return self._planes(subject, flip=self.config.test_time_flip and name != "correct")

    def _planes(self, subject: Subject, *, flip: bool) -> Planes:
        return Planes(
            scalings=[subject.scalings],
            padding=self.plan.padding,
            device=self.device,
            flip=flip,
        )

    def _blocks(self, subject: Subject) -> Blocks:
        return Blocks(
            patch=self.config.tumour.patch,
            overlap=self.config.tumour.overlap,
            scalings=[subject.scalings],
            padding=self.plan.padding,
            device=self.device,
            flip=self.config.test_time_flip,
        )
