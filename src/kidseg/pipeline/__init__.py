"""Inference: run the steps of a method, and restore the result to the scan's voxels."""

from kidseg.pipeline.borders import reaches_border
from kidseg.pipeline.restore import Samples, decide, restore, sample
from kidseg.pipeline.steps import Locate, Note, Progress, Region, Segment, Step, advance
from kidseg.pipeline.views import Blocks, Planes, View

__all__ = [
    "Blocks",
    "Locate",
    "Note",
    "Planes",
    "Progress",
    "Region",
    "Samples",
    "Segment",
    "Step",
    "View",
    "advance",
    "decide",
    "reaches_border",
    "restore",
    "sample",
]
