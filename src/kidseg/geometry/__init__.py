"""Geometry in patient millimetres, and the only interpolation in the package.

`grid` defines grids and the conventions, `volume` their values; `pose` builds grids from a pose or
a theta, and `resample` samples on them. Import everything public from here.
"""

from kidseg.geometry.between_slices import distances_mm, divided
from kidseg.geometry.binning import binned, binned_grid
from kidseg.geometry.grid import Grid, boxed, index_from_voxels
from kidseg.geometry.pose import (
    InPlanePose,
    grid_from_theta,
    has_parallel_slices,
    in_plane_pose,
    posed,
)
from kidseg.geometry.resample import is_sub_grid, resample, sample_window
from kidseg.geometry.slices import Field, Slices, sampled, slices_apart
from kidseg.geometry.volume import Volume, join_channels, stack

__all__ = [
    "Field",
    "Grid",
    "InPlanePose",
    "Slices",
    "Volume",
    "binned",
    "binned_grid",
    "boxed",
    "distances_mm",
    "divided",
    "grid_from_theta",
    "has_parallel_slices",
    "in_plane_pose",
    "index_from_voxels",
    "is_sub_grid",
    "join_channels",
    "posed",
    "resample",
    "sample_window",
    "sampled",
    "slices_apart",
    "stack",
]
