"""Contours to voxels beside plastimatch, and files of rt-utils: run by hand (slow).

The interpreter of a virtual environment with rt-utils is named by RT_UTILS_PYTHON.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from annotated_folders import FIRST, Roi, headers_of, structure_set
from dicom_files import SPACING, save, series
from kidseg.io import ReadOptions, read
from kidseg.io.dicom_source import read_source
from kidseg.io.structures import Annotation, Part
from labelled_series import ANY, ORIENTATIONS

pytestmark = pytest.mark.slow

LABELS = ReadOptions(values="labels")
SHAPE = (14, 96, 110)
_RT_UTILS = """
import sys
import numpy as np
from rt_utils import RTStructBuilder
folder, masks, out, pin = sys.argv[1:]
made = RTStructBuilder.create_new(dicom_series_path=folder)
for k, mask in enumerate(np.load(masks)):
    made.add_roi(mask=mask.transpose(1, 2, 0), name=f"structure {k}", use_pin_hole=pin == "pin")
made.save(out)
"""


def voxels(folder: Path, path: Path, number: int = 1) -> np.ndarray:
    annotation = Annotation(
        folder=folder,
        images=tuple(sorted(folder.rglob("*.dcm"))),
        series="1.2.3",
        parts=(Part(path=path, number=number, label=1),),
    )
    scan = read(path, replace(LABELS, annotation=annotation))
    return scan.volume.data[0].numpy() > 0


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def lobed(radius_mm: float, centre_mm: tuple[float, float, float], seed: int) -> list[np.ndarray]:
    """Contours of a body whose surface is a sphere with lobes, drawn on every slice."""
    random = np.random.default_rng(seed)
    phases, sizes = random.uniform(0, 2 * np.pi, 4), random.uniform(0, 0.12, 4)
    angle = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    found = []
    for k in range(SHAPE[0]):
        z = FIRST[2] + SPACING[0] * k
        inside = radius_mm**2 - (z - centre_mm[2]) ** 2
        if inside <= 4.0:
            continue
        lobes = sum(
            s * np.cos((n + 2) * angle + p)
            for n, (s, p) in enumerate(zip(sizes, phases, strict=True))
        )
        r = np.sqrt(inside) * (1 + lobes)
        x, y = centre_mm[0] + r * np.cos(angle), centre_mm[1] + r * np.sin(angle)
        found.append(np.column_stack([x, y, np.full(len(x), z)]))
    return found


def shrunk(contours: list[np.ndarray], factor: float) -> list[np.ndarray]:
    found = []
    for points in contours:
        centre = points.mean(axis=0)
        found.append(centre + (points - centre) * [factor, factor, 1.0])
    return found


def shapes() -> dict[str, list[np.ndarray]]:
    """Bodies of 0.3 to 40 ml: whole, with a hole, as a keyhole, two in one structure."""
    found = {}
    for seed, radius in enumerate((4.5, 6.0, 9.0, 12.0, 14.0, 15.0)):
        middle = (
            float(FIRST[0]) + 27 + 0.37 * seed,
            float(FIRST[1]) + 35.2,
            float(FIRST[2]) + 16.4,
        )
        body = lobed(radius, middle, seed)
        found[f"body {radius:g} mm"] = body
        if radius >= 9:
            hole = shrunk(body, 0.5)
            found[f"hole {radius:g} mm"] = body + hole
            found[f"keyhole {radius:g} mm"] = [
                np.vstack([outer, outer[:1], inner[::-1], inner[-1:]])
                for outer, inner in zip(body, [np.roll(h, -1, axis=0) for h in hole], strict=True)
            ]
    two = lobed(6.0, (2.0, 0.0, 45.0), 7) + lobed(5.0, (26.0, 25.0, 48.0), 8)
    return found | {"two": two}


@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="plastimatch is not installed")
def test_agreement_with_plastimatch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ct = series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
    bodies = shapes()
    rois = [Roi(name=f"s{k}", contours=body) for k, body in enumerate(bodies.values())]
    path = save(structure_set(rois, headers_of(ct)), tmp_path / "rs.dcm")
    command = ["plastimatch", "convert", "--input", path, "--referenced-ct", ct]
    command += ["--output-prefix", tmp_path / "masks", "--prefix-format", "mha"]
    subprocess.run(command, check=True, capture_output=True)
    found = {}
    for k, name in enumerate(bodies):
        theirs = read(tmp_path / "masks" / f"s{k}.mha", LABELS).volume.data[0].numpy() > 0
        found[name] = dice(voxels(ct, path, k + 1), theirs)
    with capsys.disabled():
        values = list(found.values())
        print(
            f"\nplastimatch: n {len(values)}, Dice {min(values):.4f} to {max(values):.4f},", end=" "
        )
        print(f"median {statistics.median(values):.4f}", found)
    assert min(found.values()) >= 0.99


@pytest.mark.skipif("RT_UTILS_PYTHON" not in os.environ, reason="RT_UTILS_PYTHON names no rt-utils")
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_of_rt_utils_come_back(
    tmp_path: Path, orientation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from kidseg.geometry import Volume
    from kidseg.io.orientation import canonical

    ct = series(tmp_path / "ct", np.zeros((9, 48, 56), np.int16), iop=ORIENTATIONS[orientation])
    source = read_source(ct, ANY)
    z, y, x = np.indices(source.native.shape)
    ball = ((z - 4) / 3.4) ** 2 + ((y - 22.3) / 15.2) ** 2 + ((x - 27.4) / 18.1) ** 2
    tail = (z >= 3) & (z <= 5) & (np.abs(y - 40) <= 3) & (np.abs(x - 40) <= 12)
    masks = np.array([ball < 1, (ball < 1) & (ball > 0.35), (ball < 0.6) | tail])
    np.save(tmp_path / "masks.npy", masks)
    for pin in ("hole", "pin"):
        out = tmp_path / f"{pin}.dcm"
        command = [
            os.environ["RT_UTILS_PYTHON"],
            "-c",
            _RT_UTILS,
            ct,
            tmp_path / "masks.npy",
            out,
            pin,
        ]
        subprocess.run(command, check=True, capture_output=True)
        assert dcmread(out).Modality == "RTSTRUCT"
        for k, mask in enumerate(masks):
            from torch import from_numpy

            expected = canonical(Volume(from_numpy(mask)[None], source.native)).data[0].numpy()
            found = voxels(ct, out, k + 1)
            with capsys.disabled():
                print(orientation, pin, k, f"{dice(found, expected):.4f}", end="; ")
            if pin == "hole":
                assert np.array_equal(found, expected)
            assert dice(found, expected) >= 0.99
