"""A really full disk, at every point of a batch: said, nothing half written, and it can go on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks import mounted
from ellipses import make_ellipse_patient
from kidseg.errors import ResourceError
from kidseg.io import save
from kidseg.segment import Predictor, load_predictor, segment
from kidseg.segment.batch_page import PAGE
from kidseg.segment.cohort_table import SUMMARY
from kidseg.segment.index import RESULT

SCANS = 2
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return load_predictor(trained / "run" / "model.safetensors", "cpu")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for k in range(SCANS):
        save(make_ellipse_patient(k).image, folder / f"s{k}.nii.gz")
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on which a file system can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, "size=1m"):
        pytest.skip("file systems cannot be mounted here")
    subprocess.run(["umount", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def check_stopped(out: Path, error: ResourceError) -> None:
    """What is there is whole, and can go on."""
    assert (error.code, error.exit_code) == ("disk-full", 5)
    there = [path.name for path in out.iterdir()] if out.exists() else []
    labels = {name for name in there if name.endswith("_seg.nii.gz")}
    assert not [name for name in there if name.startswith(".")]
    recorded = json.loads((out / RESULT).read_text())["scans"] if RESULT in there else []
    assert {name for entry in recorded for name in entry["outputs"]} == labels
    assert "--overwrite" not in error.next_step
    assert not labels or "--resume" in error.next_step


@pytest.mark.ci
@pytest.mark.fault("disk full")
@pytest.mark.parametrize(("what", "step"), [("size", 2 * PAGE_BYTES), ("nr_inodes", 1)])
def test_a_disk_that_fills_up_at_any_point(
    scans: Path, predictor: Predictor, disk: Path, what: str, step: int
) -> None:
    """Ever more space, or room for files, until it is enough."""
    codes = []
    for amount in range(2, 40):
        assert mounted(disk, f"{what}={amount * step}")
        out = disk / "out"
        try:
            segment([scans], predictor, out)
        except ResourceError as error:
            codes.append(error.code)
            check_stopped(out, error)
            more = ["mount", "-o", "remount,size=10m,nr_inodes=1000", str(disk)]
            subprocess.run(more, check=True)
            assert len(segment([scans], predictor, out, resume=True)) == SCANS
        else:
            break
        finally:
            names = {path.name for path in out.iterdir()} if out.exists() else set()
            subprocess.run(["umount", str(disk)], check=True)
        assert names == {RESULT, SUMMARY, PAGE, *(f"s{k}_seg.nii.gz" for k in range(SCANS))}
    assert len(codes) > 3 and amount < 39
