"""Labels that lie where their scan shows air."""

from __future__ import annotations

from pathlib import Path

import torch

from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.io.orientation import canonical
from kidseg.labels import LabelSchema
from kidseg.meaning import RENAL

__all__ = ["air_findings"]

# Denser than lung, less dense than any fat; at the contour a few voxels may have gas of the bowel.
_AIR_HU = -300.0
_MOST_AIR = 0.05


def air_findings(
    labels: Volume, scan: Volume, schema: LabelSchema, path: Path, ct: Path
) -> tuple[Finding, ...]:
    """The finding "labels-in-air" if kidneys lie where the scan shows air: it is another's.

    Args:
        labels: (1, slices, rows, columns) uint8 on the voxels of the scan, in any order.
        scan: canonical, in HU.
        schema: of the labels.
        path: of the labels.
        ct: of the scan.
    """
    data = canonical(labels).data[0]
    ids = schema.ids_of(*RENAL)
    renal = torch.isin(data, torch.tensor(ids, dtype=torch.uint8))
    share = float((scan.data[0][renal] < _AIR_HU).double().mean()) if renal.any() else 0.0
    if share <= _MOST_AIR:
        return ()
    cause = f"{share:.0%} of the voxels of kidneys and tumours are air or lung in {ct}"
    step = "Name the scan of these labels, and check that neither is flipped."
    return (Finding(code="labels-in-air", path=str(path), cause=cause, next_step=step),)
