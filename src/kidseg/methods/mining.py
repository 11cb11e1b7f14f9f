"""Mining of hard slices: those on which a network takes most background for kidney or tumour."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from kidseg.cohort.batch import drawn_grid, drawn_labels
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn
from kidseg.geometry import Grid
from kidseg.intensity import Scaling
from kidseg.labels import Target
from kidseg.losses import encode, probabilities
from kidseg.pipeline import Planes
from kidseg.stage import TrainStep

__all__ = ["HardSlices"]

# Of the candidates, the hardest quarter is kept. Source: Shrivastava et al., OHEM, CVPR 2016, keeps
# the hardest of many; the fraction is ours.
_KEPT = 0.25
_BATCH_SIZE = 8


class HardSlices:
    """The hard training slices of the current epoch.

    Before each epoch, random slices are segmented with the network as it is, and those with most
    falsely labelled pixels are kept. Equal weights and steps give equal slices, in every process.

    Args:
        net: the network.
        cohort: its training cases, and how many candidates there are.
        grids: slice-wise input grids of the training cases.
        view: (scalings of one or all slices) -> view of the network.
        target: meaning of the network's output channels.

    Attributes:
        rows: rows of the cohort's index, ascending; empty before the first `find`.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        cohort: Cohort,
        grids: Sequence[Grid],
        view: Callable[[Sequence[Sequence[Scaling]]], Planes],
        target: Target,
    ) -> None:
        self.net, self.cohort, self.grids = net, cohort, grids
        self.view, self.target = view, target
        self.rows = np.zeros(0, dtype=np.int64)

    def find(self, step: TrainStep) -> None:
        """Find the hard slices of an epoch; slices without a false pixel are not hard."""
        index, config = self.cohort.index, self.cohort.config
        rng = np.random.default_rng([step.seed, step.epoch, 0, 1])
        count = min(config.hard_candidates, len(index))
        candidates = rng.permutation(len(index))[:count]
        false = np.concatenate(
            [
                self._false_pixels([(int(c), int(k)) for c, k in index.every[rows]])
                for rows in np.array_split(candidates, -(-count // _BATCH_SIZE))
            ]
        )
        most = np.argsort(-false, kind="stable")[: max(1, round(_KEPT * count))]
        self.rows = np.sort(candidates[most[false[most] > 0]])

    @torch.no_grad()
    def _false_pixels(self, drawn: Drawn) -> np.ndarray:
        """(n,) background pixels that the network labels, on its input grid."""
        cohort, planes = self.cohort, self.view(self.cohort.scalings(drawn))
        grid = drawn_grid(self.grids, drawn)
        subjects = [case.image for case in cohort.training]
        image = planes.image(planes.slices(subjects, drawn), grid)
        with planes.device.autocast():
            moved = image.to(planes.device.torch)
            (logits,) = self.net(moved.contiguous(memory_format=torch.channels_last))
        found = probabilities(logits, self.target)
        reference = drawn_labels(cohort.training, drawn, grid)
        truth = encode(reference.labels.data[0], self.target).to(found.device)
        if self.target.exclusive:
            false = (found.argmax(1) > 0) & (truth == 0)
        else:
            false = ((found > 0.5) & ~truth).any(1)
        if reference.valid is not None:
            false &= reference.valid.to(found.device)
        return np.asarray(false.flatten(1).sum(1).cpu().numpy())
