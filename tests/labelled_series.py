"""DICOM series in all orientations, and labels on their voxels."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dicom_files import AXIAL, enhanced, placed, series
from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.io import ReadOptions
from kidseg.io.dicom_source import SourceSeries, read_source
from kidseg.io.label_writing import Exported
from kidseg.io.origin import Origin
from kidseg.labels import LabelSchema
from kidseg.measure import Midline
from kidseg.measure.measuring import parts_of
from kidseg.measure.parts import Labelled
from kidseg.measure.reporting import with_report

SCHEMA = LabelSchema.from_names({1: "left kidney", 2: "tumour", 5: "Milz größer"})
ORIGIN = Origin(method="homogenized", model_sha256="ab" * 32, scan_sha256="cd" * 32)
needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dicom3tools is not installed"
)
ANY = ReadOptions(values="any")
REPAIR = ReadOptions(values="any", repair=True)

_TURN = np.radians(25.0)
ORIENTATIONS = {
    "axial": AXIAL,
    "feet first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "flipped": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (np.cos(_TURN), np.sin(_TURN), 0.0, 0.0, 0.0, -1.0),
}
KINDS = (*ORIENTATIONS, "tilted", "uneven", "multi-frame")
"""Kinds of series; those that are tilted or uneven are repaired."""


def make_series(folder: Path, kind: str) -> tuple[Path, ReadOptions]:
    """A series of this kind and the options to read it with."""
    if kind == "tilted":
        angle = np.radians(18.5)
        iop = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(-np.sin(angle)))
        return series(folder, iop=iop, positions=placed(np.arange(6) * 2.5)), REPAIR
    if kind == "uneven":
        return series(folder, positions=placed([0, 2.5, 5, 10, 12.5, 15])), REPAIR
    if kind == "multi-frame":
        return enhanced(folder / "frames.dcm", shuffle=True).parent, ANY
    return series(folder, iop=ORIENTATIONS[kind]), ANY


def make_labels(source: SourceSeries, seed: int = 0) -> Volume:
    """Labels of `SCHEMA`: blocks with rough borders and holes; none in slices 0 and 2."""
    random = np.random.default_rng(seed)
    values = np.zeros(source.native.shape, np.uint8)
    inner = values[1:, 4:-4, 3:-5]
    inner[:, :12] = random.choice([0, 1, 1, 1], inner[:, :12].shape)
    inner[:, 12:, :14] = random.choice([0, 2, 2, 2, 2], inner[:, 12:, :14].shape)
    inner[1:3, 14:, 18:] = 5
    values[2] = 0
    return Volume(torch.from_numpy(values)[None], source.native)


def make_case(folder: Path, kind: str) -> tuple[SourceSeries, Volume]:
    """A series of this kind as a source, and labels on it."""
    path, options = make_series(folder, kind)
    source = read_source(path, options)
    return source, make_labels(source)


def reported(exported: Exported, path: Path) -> tuple[Exported, tuple[Finding, ...]]:
    """Labels of a body in the middle of the image, with what is measured of them."""
    middle = Midline.at(float(exported.labels.grid.centre_mm[0]), "body")
    labelled = Labelled(labels=exported.labels, schema=exported.schema, midline=middle, path=path)
    return with_report(exported, labelled, parts_of(labelled))


def assert_conforms(file: Path, kind: str) -> None:
    """dciodvfy takes a file for an object of this kind, and finds no error in it."""
    found = subprocess.run(["dciodvfy", file], capture_output=True, text=True)
    errors = [line for line in found.stderr.splitlines() if "Error" in line]
    assert kind in found.stderr and not errors, errors
