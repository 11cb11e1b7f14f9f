"""The files of a scan, by the channels that a model takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume
from kidseg.intensity import Normalisation, Statistics
from kidseg.io import ReadOptions, save
from kidseg.segment.scans import read_scan

GRID = Grid.from_spacing((3, 8, 9), (5.0, 1.0, 1.0))
STATISTICS = Statistics(
    mean=0.0, sd=1.0, median=0.0, min=0.0, max=1.0, percentile_00_5=0.0, percentile_99_5=1.0
)
MR = tuple(Normalisation.of_channel(name, STATISTICS) for name in ("T1", "T2"))


def write(path: Path, value: float, grid: Grid = GRID) -> Path:
    save(Volume(torch.full((1, *grid.shape), value), grid), path)
    return path


def test_channels_are_the_files_beside_the_first(tmp_path: Path) -> None:
    first = write(tmp_path / "a_0000.nii.gz", 0.25)
    second = write(tmp_path / "a_0001.nii.gz", 7.5)
    scan = read_scan(first, MR, ReadOptions())
    assert scan.paths == (first, second)
    assert scan.volume.data.shape == (2, 3, 8, 9)
    assert scan.volume.data[:, 0, 0, 0].tolist() == [0.25, 7.5]
    assert not scan.findings, "values of an MR are not judged as Hounsfield units"
    alone = read_scan(second, MR[1:], ReadOptions())
    assert alone.volume.channels == 1 and alone.paths == (second,)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("a_0000.nii.gz",), "missing-channel"),
        (("a.nii.gz", "a_0001.nii.gz"), "missing-channel"),
    ],
)
def test_a_channel_that_is_missing_is_named(
    tmp_path: Path, names: tuple[str, ...], code: str
) -> None:
    files = [write(tmp_path / name, 1.0) for name in names]
    with pytest.raises(InputError) as error:
        read_scan(files[0], MR, ReadOptions())
    assert error.value.code == code and error.value.next_step
    assert str(files[0]) in str(error.value)


def test_channels_on_other_voxels_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a_0000.nii.gz", 1.0)
    write(tmp_path / "a_0001.nii.gz", 1.0, GRID.crop((0, 0, 1), GRID.shape))
    with pytest.raises(InputError) as error:
        read_scan(first, MR, ReadOptions())
    assert error.value.code == "channels-differ"
