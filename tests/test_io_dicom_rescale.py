"""Images of one CT that differ in rescale slope or intercept: right, or off by the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset

from dicom_files import SHAPE, Edit, assign, body, refused, series, set_pixels
from kidseg.io.dicom import read_series
from kidseg.io.scan import ReadOptions

HALF = {3, 4, 5}


def stated(slope: float, intercept: float, which: set[int]) -> Edit:
    """Images that say so of pixels that were stored so."""

    def edit(ds: Dataset, k: int) -> None:
        if k in which:
            set_pixels(ds, np.round((body()[k] - intercept) / slope).astype(np.int16))
            ds.RescaleSlope, ds.RescaleIntercept = slope, intercept

    return edit


@pytest.mark.row(10)
@pytest.mark.parametrize("which", [{2}, {0}, HALF])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1000), (1, 0), (0.5, -1024), (2, -1024)])
def test_images_that_state_what_holds_for_them_are_read(
    tmp_path: Path, which: set[int], slope: float, intercept: float
) -> None:
    path = series(tmp_path, edit=stated(slope, intercept, which))
    scan = read_series(path)
    (finding,) = scan.findings
    assert finding.code == "mixed-rescale"
    assert f"slope {slope:g}, intercept {intercept:g} in {len(which)} image" in finding.cause
    assert "014-2.dcm" in finding.cause or which != {2}
    assert float((scan.volume.data[0] - torch.from_numpy(body())).abs().max()) <= slope / 2


@pytest.mark.row(10)
@pytest.mark.parametrize("which", [{2}, {0}, {5}])
@pytest.mark.parametrize(
    ("name", "value", "off"),
    [("RescaleIntercept", -1000, 24), ("RescaleIntercept", 0, 1024), ("RescaleSlope", 2, None)],
)
def test_an_image_that_is_off_by_what_its_rescaling_differs_is_refused(
    tmp_path: Path, which: set[int], name: str, value: float, off: float | None
) -> None:
    (k,) = which
    said = refused(series(tmp_path, edit=assign(name, value, k)), code="bad-rescale")
    assert f"{k * 7:03d}-{k}.dcm fits its neighbour" in said
    assert off is None or f"it is off by {off} HU" in said


@pytest.mark.row(10)
def test_a_difference_that_noise_hides_is_said(tmp_path: Path) -> None:
    scan = read_series(series(tmp_path, edit=assign("RescaleIntercept", -1022, 2)))
    assert [finding.code for finding in scan.findings] == ["mixed-rescale"]


def test_each_image_of_a_pet_has_its_own_without_a_word(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.Modality, ds.RescaleSlope, ds.RescaleIntercept = "PT", 1 + k, 0

    scan = read_series(series(tmp_path, edit=edit), ReadOptions(values="any"))
    assert not scan.findings and scan.volume.data.shape == (1, *SHAPE)
