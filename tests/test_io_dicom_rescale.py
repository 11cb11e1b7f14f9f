"""Images of one CT that differ in rescale slope or intercept: right, or off by the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset

from dicom_files import SHAPE, Edit, assign, body, refused, series, set_pixels
from kidseg.errors import InputError
from kidseg.io.dicom import read_series
from kidseg.io.dicom_frames import Plane
from kidseg.io.dicom_rescale import check_valid
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
@pytest.mark.parametrize("which", [{2}, HALF])
@pytest.mark.parametrize("intercept", [-1000, -800])
def test_a_mask_that_is_stored_as_0_in_all_images_tells_nothing(
    tmp_path: Path, which: set[int], intercept: float
) -> None:
    """Outside of the mask the images differ by what their intercepts do, and are right inside."""
    state, rest = stated(1, intercept, which), stated(1, -900, set(range(6)) - which)

    def edit(ds: Dataset, k: int) -> None:
        state(ds, k)
        rest(ds, k)
        pixels = ds.pixel_array.copy()
        pixels[body()[k] < -500] = 0
        set_pixels(ds, pixels)

    scan = read_series(series(tmp_path, edit=edit))
    assert "mixed-rescale" in {finding.code for finding in scan.findings}
    inside = torch.from_numpy(body() >= -500)
    assert torch.equal(scan.volume.data[0][inside], torch.from_numpy(body()).float()[inside])


@pytest.mark.row(10)
@pytest.mark.parametrize(
    ("slope", "intercept", "words"),
    [
        (None, "1e999", "slope 1, intercept inf"),
        (1, "1e999", "slope 1, intercept inf"),
        ("0", None, "slope 0, intercept 0"),
        ("-1e999", -1024, "slope -inf, intercept -1024"),
    ],
)
def test_numbers_that_cannot_rescale_are_refused_also_if_one_is_missing(
    slope: float | str | None, intercept: float | str | None, words: str
) -> None:
    numbers = [None if v is None else float(v) for v in (slope, intercept)]
    plane = Plane(
        path=Path("1.dcm"),
        frame=0,
        position_mm=None,
        directions=None,
        spacing_mm=None,
        thickness_mm=None,
        slope=numbers[0],
        intercept=numbers[1],
        rescale_type="",
        fields={},
    )
    with pytest.raises(InputError) as caught:
        check_valid([plane])
    assert caught.value.code == "bad-rescale" and words in str(caught.value)


@pytest.mark.row(10)
def test_a_difference_that_noise_hides_is_said(tmp_path: Path) -> None:
    scan = read_series(series(tmp_path, edit=assign("RescaleIntercept", -1022, 2)))
    assert [finding.code for finding in scan.findings] == ["mixed-rescale"]


def test_each_image_of_a_pet_has_its_own_without_a_word(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.Modality, ds.RescaleSlope, ds.RescaleIntercept = "PT", 1 + k, 0

    scan = read_series(series(tmp_path, edit=edit), ReadOptions(values="any"))
    assert not scan.findings and scan.volume.data.shape == (1, *SHAPE)
