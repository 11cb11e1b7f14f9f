"""One image of a digital patient, for the scripts that make the pictures of phantom_broad.md."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

COLOURS = {1: "lime", 2: "red"}


def picture(
    axis: Axes,
    values: np.ndarray,
    window: tuple[float, float],
    *,
    aspect: float = 1.0,
    labels: np.ndarray | None = None,
) -> None:
    """Show (rows, columns) HU in a window, with the outlines of kidneys and tumours, if given."""
    axis.imshow(values, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
    for value, colour in COLOURS.items():
        if labels is not None and (labels == value).any():
            axis.contour(labels == value, [0.5], colors=colour, linewidths=0.7)
    axis.axis("off")
