"""Reduced fields of view, which cut the body of a training slice on some sides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn
from kidseg.config import PoseConfig
from kidseg.geometry import Field

__all__ = ["cut_fields", "fields_of_masks"]


def cut_fields(
    cohort: Cohort, drawn: Drawn, config: PoseConfig, uniform: Tensor
) -> list[Field | None]:
    """Fields of view that truncate the body on one or more sides, for a share of the slices.

    Args:
        cohort: the training patients, with bodies.
        drawn: the slices.
        config: with the share, `cut`.
        uniform: (slices, 4) random numbers in -1 .. 1.

    Returns:
        (top, bottom, left, right) in pixels of each slice; None: whole.
    """
    fields: list[Field | None] = []
    for (case, k), (selector, *u) in zip(drawn, uniform.tolist(), strict=True):
        body = cohort.training[case].body
        assert body is not None
        moments = body.per_slice
        if (selector + 1) / 2 >= config.cut or not bool(moments.radii_mm[k].isfinite().all()):
            fields.append(None)
            continue
        grid = cohort.training[case].image.grid
        _, rows, columns = grid.shape
        _, dy, dx = grid.spacing_mm.tolist()
        x, y = (moments.centre_mm[k] / torch.tensor([dx, dy])).tolist()
        radii = (moments.radii_mm[k] / torch.tensor([dx, dy])).tolist()
        # Left, right and front move inwards or outwards by up to a third of the semi-axis.
        left, right, front = (
            radii[n] * (1.0 + 0.33 * v) for n, v in ((0, u[0]), (0, u[1]), (1, u[2]))
        )
        fields.append(
            (
                max(0, round(rows / 2 + y - front)),
                rows,
                max(0, round(columns / 2 + x - left)),
                min(columns, round(columns / 2 + x + right)),
            )
        )
    return fields


def fields_of_masks(
    fields: Sequence[Field | None], cohort: Cohort, drawn: Drawn
) -> list[Field | None]:
    """Convert fields of images to fields of their masks, whose pixels may be larger."""
    out: list[Field | None] = []
    for field, (case, _) in zip(fields, drawn, strict=True):
        subject = cohort.training[case]
        assert subject.masks is not None
        ratio = float(subject.masks.grid.spacing_mm[2] / subject.image.grid.spacing_mm[2])
        top, bottom, left, right = (round(n / ratio) for n in field or (0, 0, 0, 0))
        if field is not None:  # the last block of pixels may extend beyond the image
            _, rows, columns = subject.image.grid.shape
            _, mask_rows, mask_columns = subject.masks.grid.shape
            bottom = mask_rows if field[1] == rows else bottom
            right = mask_columns if field[3] == columns else right
        out.append(None if field is None else (top, bottom, left, right))
    return out
