"""Inference: the steps of a method, and the way back to the scan's own voxels."""

from kidseg.pipeline.outcome import Locate, Outcome, Segment, Step, run
from kidseg.pipeline.restore import restore

__all__ = ["Locate", "Outcome", "Segment", "Step", "restore", "run"]
