"""Inference: run the steps of a method, and restore the result to the scan's voxels."""

from kidseg.pipeline.borders import reaches_border
from kidseg.pipeline.deciding import decide
from kidseg.pipeline.opinions import Predicted, opinions_of, rows_of
from kidseg.pipeline.restore import Samples, Watch, restore, sample
from kidseg.pipeline.steps import (
    Locate,
    Note,
    OnProgress,
    Progress,
    Region,
    Segment,
    Step,
    advance,
    ignore_progress,
    share_of,
)
from kidseg.pipeline.views import Blocks, Planes, View

__all__ = [
    "Blocks",
    "Locate",
    "Note",
    "OnProgress",
    "Planes",
    "Predicted",
    "Progress",
    "Region",
    "Samples",
    "Segment",
    "Step",
    "View",
    "Watch",
    "advance",
    "decide",
    "ignore_progress",
    "opinions_of",
    "reaches_border",
    "restore",
    "rows_of",
    "sample",
    "share_of",
]
