"""Inference: the steps of a method, and the way back to the scan's own voxels."""

from kidseg.pipeline.restore import decided, restore
from kidseg.pipeline.steps import Locate, Progress, Region, Segment, Step, advance
from kidseg.pipeline.views import Blocks, Planes, View

__all__ = [
    "Blocks",
    "Locate",
    "Planes",
    "Progress",
    "Region",
    "Segment",
    "Step",
    "View",
    "advance",
    "decided",
    "restore",
]
