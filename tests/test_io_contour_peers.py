"""Contours to voxels beside plastimatch, and files of rt-utils: run by hand (slow).

The interpreter of a virtual environment with rt-utils is named by RT_UTILS_PYTHON.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

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


NEEDS_PLASTIMATCH = pytest.mark.skipif(
    shutil.which("plastimatch") is None, reason="plastimatch is not installed"
)


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


def agreement(ct: Path, path: Path, names: dict[int, str], out: Path) -> list[float]:
    """Dice of our voxels and those of plastimatch, for structures {number: name}."""
    command: list[str | Path] = ["plastimatch", "convert", "--input", path, "--referenced-ct", ct]
    command += ["--output-prefix", out, "--prefix-format", "mha", "--xor-contours"]
    subprocess.run(command, check=True, capture_output=True)
    found = []
    for number, name in names.items():
        theirs = read(out / f"{name}.mha", LABELS).volume.data[0].numpy() > 0
        found.append(dice(voxels(ct, path, number), theirs))
    return found


def say(what: str, values: list[float]) -> None:
    """Shown with pytest -s."""
    middle, n = statistics.median(values), len(values)
    text = f"{what}: n {n}, Dice {min(values):.4f} to {max(values):.4f}, median {middle:.4f}"
    sys.stdout.write(f"\n{text}\n")


@NEEDS_PLASTIMATCH
def test_agreement_with_plastimatch_on_bodies(tmp_path: Path) -> None:
    ct = series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
    rois = [Roi(name=f"s{k}", contours=body) for k, body in enumerate(shapes().values())]
    path = save(structure_set(rois, headers_of(ct)), tmp_path / "rs.dcm")
    names = {k + 1: roi.name for k, roi in enumerate(rois)}
    found = agreement(ct, path, names, tmp_path / "masks")
    say("bodies", found)
    assert min(found) >= 0.99


@NEEDS_PLASTIMATCH
def test_agreement_with_plastimatch_on_digital_patients(tmp_path: Path) -> None:
    from kidseg.config import PhantomConfig
    from kidseg.convert import plan_conversion
    from kidseg.phantom import write_patients

    write_patients(
        tmp_path / "ph", replace(PhantomConfig(), size=128), patients=3, seed=4, layout="dicom"
    )
    names, found = {1: "kidney", 2: "tumour"}, []
    for folder in sorted((tmp_path / "ph").glob("phantom_*")):
        out = tmp_path / folder.name
        labels = folder / "labels.nii.gz"
        plan_conversion(labels, out, formats=("rtstruct",), ct=folder / "ct", names=names).write()
        found += agreement(folder / "ct", next(out.glob("*.dcm")), names, out / "masks")
    say("digital patients", found)
    assert min(found) >= 0.99


@pytest.mark.skipif("RT_UTILS_PYTHON" not in os.environ, reason="RT_UTILS_PYTHON names no rt-utils")
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_of_rt_utils_come_back(tmp_path: Path, orientation: str) -> None:
    from kidseg.geometry import Volume
    from kidseg.io.orientation import canonical

    def edit(ds: Dataset, _: int) -> None:
        """Square pixels, as rt-utils 1.2.7 exchanges the two spacings; and what it copies."""
        ds.PixelSpacing = [0.7, 0.7]
        ds.StudyDate = ds.SeriesDate = "20240101"
        ds.StudyTime = ds.SeriesTime = "120000"
        ds.StudyDescription = ds.PatientBirthDate = ds.PatientSex = ""
        ds.StudyID = ds.AccessionNumber = ds.ReferringPhysicianName = ""

    iop = ORIENTATIONS[orientation]
    ct = series(tmp_path / "ct", np.zeros((9, 48, 56), np.int16), iop=iop, edit=edit)
    source = read_source(ct, ANY)
    z, y, x = np.indices(source.native.shape)
    ball = ((z - 4) / 3.4) ** 2 + ((y - 22.3) / 15.2) ** 2 + ((x - 27.4) / 18.1) ** 2
    tail = (z >= 3) & (z <= 5) & (np.abs(y - 40) <= 3) & (np.abs(x - 40) <= 12)
    masks = np.array([ball < 1, (ball < 1) & (ball > 0.35), (ball < 0.6) | tail])
    np.save(tmp_path / "masks.npy", masks)
    for pin in ("hole", "pin"):
        out = tmp_path / f"{pin}.dcm"
        command: list[str | Path] = [
            os.environ["RT_UTILS_PYTHON"],
            "-c",
            _RT_UTILS,
            ct,
            tmp_path / "masks.npy",
            out,
            pin,
        ]
        bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(command, check=True, capture_output=True, env=bare)
        assert dcmread(out).Modality == "RTSTRUCT"
        for k, mask in enumerate(masks):
            from torch import from_numpy

            expected = canonical(Volume(from_numpy(mask)[None], source.native)).data[0].numpy()
            found = voxels(ct, out, k + 1)
            if pin == "hole":
                assert np.array_equal(found, expected), "voxel-exact"
            # The channel to a hole that rt-utils cuts into the mask has a width of pixels.
            assert dice(found, expected) >= 0.98
