"""Hounsfield units or not: what is sound passes in silence, what is not is said by how sure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kidseg.config import PhantomConfig
from kidseg.errors import InputError
from kidseg.io import ReadOptions, read
from kidseg.io.hounsfield import check_intensities
from kidseg.phantom.patient import make_patient

HERE = Path("scan.nii.gz")
JUDGED = {"shifted-hu", "scaled-hu", "no-structure"}


def body(seed: int = 0) -> torch.Tensor:
    """(1, 6, 64, 64) int16 HU: air around a disc of fat around soft tissue, with some bone."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    far = np.hypot(x, y)
    plane = np.where(far < 0.6, 50.0, np.where(far < 0.75, -100.0, -1000.0))
    plane[np.hypot(x, y - 0.4) < 0.1] = 600.0
    noisy = plane + rng.normal(0, 15, (6, 64, 64))
    return torch.from_numpy(np.maximum(noisy, -1024).astype(np.int16))[None]


def codes(data: torch.Tensor, stored: str | None = None) -> list[str]:
    dtype = None if stored is None else np.dtype(stored)
    return [f.code for f in check_intensities(data, HERE, dtype)]


def refused(data: torch.Tensor, stored: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        codes(data, stored)
    assert caught.value.path == str(HERE) and caught.value.next_step
    return caught.value.code


# ---- row 11: Hounsfield units ------------------------------------------------------------------


@pytest.mark.row(11)
def test_a_ct_passes_in_silence() -> None:
    assert codes(body(), "int16") == []
    assert codes(body().float(), "float32") == []
    for padding in (-2000, -2048, -3024):
        padded = body()
        padded[..., :12] = padding
        assert codes(padded) == []
    metal = body()
    metal[0, 3, 30:32, 30:32] = 30000
    assert codes(metal) == []
    nearly_air = body()  # a small body in a large field, as a newborn in an adult's
    nearly_air[..., :20] = nearly_air[..., -20:] = -1000
    assert codes(nearly_air) == []


@pytest.mark.row(11)
def test_surely_no_hounsfield_units_is_refused() -> None:
    ct = body().float()
    assert refused(torch.full((1, 4, 8, 8), -7.0)) == "constant-image"
    assert refused(torch.from_numpy(np.arange(256).reshape(1, 4, 8, 8) % 3)) == "label-map"
    assert refused((ct + 1024) / 2048) == "normalised-intensities"
    assert refused((ct + 1024) / 1024 - 1) == "normalised-intensities"
    assert refused((ct - ct.mean()) / ct.std()) == "normalised-intensities"
    clipped = ct.clamp(-36, 303)  # nnU-Net's preprocessed
    assert refused((clipped - 77) / 68) == "normalised-intensities"
    window = ((ct + 160) / 400 * 255).clamp(0, 255).to(torch.uint8)
    assert refused(window, "uint8") == "eight-bit-intensities"
    for shift in (1000, 1024):
        assert refused(body() + shift) == "shifted-hu"
        padded = body() + shift
        padded[..., :12] = -2000
        assert refused(padded) == "shifted-hu"
    assert refused(ct * 1e6) == "absurd-intensities"
    swapped = torch.from_numpy(body().numpy().byteswap())  # bytes in the wrong order
    assert refused(swapped) == "absurd-intensities"


@pytest.mark.row(11)
def test_a_skull_is_not_taken_for_shifted_soft_tissue() -> None:
    """A ring of 900 HU around a brain, in air."""
    head = body()
    head[head < 0] = -1000
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    far = torch.from_numpy(np.hypot(x, y))
    head[:, :, (far > 0.5) & (far < 0.6)] = 900
    assert codes(head) == []
    assert refused(head + 1024) == "shifted-hu"


@pytest.mark.row(11)
def test_shifted_is_seen_in_a_small_body_and_in_a_crop() -> None:
    small = torch.full((1, 6, 64, 64), 3, dtype=torch.int16)
    small[..., 25:35, 25:35] = body()[..., 25:35, 25:35] + 1024
    assert refused(small) == "shifted-hu"
    assert refused(body()[..., 25:35, 25:35] + 1024) == "shifted-hu"


@pytest.mark.row(11)
def test_doubtful_is_said() -> None:
    ct = body()
    assert codes(ct.clamp(0, 255), "int16") == ["windowed-intensities"]
    assert codes(ct.clamp(-160, 240)) == ["no-air"]
    assert codes(ct.clamp(-500, 2000)) == ["windowed-intensities"]
    crop = ct[..., 16:48, 16:48]  # fat and tissue
    assert codes(crop) == ["no-air"]
    assert codes(ct - 1024) == ["no-soft-tissue", "shifted-hu"]
    quantised = (ct // 16 * 16).float()
    assert codes(quantised, "uint8") == ["eight-bit-intensities"]
    assert codes(torch.full_like(ct, -1000) + (ct > 0).short()) == ["no-soft-tissue"]


# ---- row 11: shifted, scaled, noise ------------------------------------------------------------


def judged(data: torch.Tensor) -> list[str]:
    """Codes of the judgement by landmarks; "refused" before one that is an error."""
    try:
        return [code for code in codes(data) if code in JUDGED]
    except InputError as error:
        return ["refused", error.code]


@pytest.fixture(scope="module")
def phantoms() -> list[torch.Tensor]:
    """Digital patients from birth to 16 years, in their scanners' own fields of view."""
    ages = [(0, 0.2), (1, 2), (6, 7), (15, 16)]
    return [
        make_patient(
            PhantomConfig(size=64, max_slices=8, ages_years=age), seed=3, index=k
        ).scan.data
        for k, age in enumerate(ages)
    ]


@pytest.mark.row(11)
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data,
        lambda data: data.clamp(-1024, 600),
        lambda data: data.clamp(-200, 300),
        lambda data: data.clamp(0, 255),
        lambda data: data.clamp(-500, 1300),
        lambda data: data[..., :32],
        lambda data: data[:, :1],
        lambda data: data[..., 20:44, 20:44],
        lambda data: data[:, 3:5, 26:38, 26:38],
    ],
)
def test_phantoms_windows_and_crops_are_judged_sound(
    phantoms: list[torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    assert [judged(change(data)) for data in phantoms] == [[]] * len(phantoms)


@pytest.mark.row(11)
@pytest.mark.parametrize("level", [200, 300, 500, 800, 925, 950, 975, 1000, 1010, 1500, 2000])
def test_a_clipped_scan_is_not_called_shifted_or_scaled(
    phantoms: list[torch.Tensor], level: int
) -> None:
    for data in [*phantoms, body(), water_and_muscle()]:
        for low, high in ((-level, level), (-level, 3071), (-1000, level)):
            assert judged(data.clamp(low, high)) == []


def water_and_muscle() -> torch.Tensor:
    """An infant without fat: water at 30 and organs with contrast agent at 100 HU, in air."""
    rng = np.random.default_rng(0)
    plane = np.full((96, 96), -1000.0)
    plane[10:86, 10:40], plane[10:86, 40:86] = 30.0, 100.0
    return torch.from_numpy((plane + rng.normal(0, 20, (12, 96, 96))).round())[None]


@pytest.mark.row(11)
def test_a_low_dose_is_judged_sound(phantoms: list[torch.Tensor]) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 50, phantoms[0].shape))
    for data in phantoms:
        assert judged((data + noise[..., : data.shape[-1]][:, : data.shape[1]]).round()) == []


@pytest.mark.row(11)
@pytest.mark.parametrize("shift", [-100, -50, 50, 100])
def test_shifted_units_are_said(phantoms: list[torch.Tensor], shift: int) -> None:
    for data in [*phantoms, body()]:
        assert judged(data + shift) == ["shifted-hu"]
    (finding,) = check_intensities(phantoms[-1] + shift, HERE)
    assert "air is at" in finding.cause and "instead of -1000" in finding.cause
    stated = float(finding.cause.split("by about ")[1].split(" HU")[0])
    assert stated == pytest.approx(shift, abs=15)


@pytest.mark.row(11)
@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_multiplied_units_are_said_or_refused(phantoms: list[torch.Tensor], factor: float) -> None:
    for data in [*phantoms, body()]:
        assert judged(data.float() * factor)[-1:] == ["scaled-hu"]
    assert judged(body().float() * 2) == ["refused", "scaled-hu"]


@pytest.mark.row(11)
def test_halved_units_are_never_silent(phantoms: list[torch.Tensor]) -> None:
    """Where air was clipped, as half of it is, they look like a window."""
    for data in [*phantoms, body()]:
        try:
            found = codes(data.float() / 2)
        except InputError as error:
            found = [error.code]
        assert set(found) & {"scaled-hu", "windowed-intensities"}


@pytest.mark.row(11)
def test_fat_and_tissue_tell_where_air_is_cropped_away() -> None:
    """A large crop of fat and muscle, without air."""
    rng = np.random.default_rng(0)
    plane = np.where(np.arange(200)[:, None] < 90, -100.0, 50.0) + np.zeros((200, 200))
    crop = torch.from_numpy((plane + rng.normal(0, 12, (12, 200, 200))).round())[None].float()
    crop[..., :40, :] = -160  # what was below is clipped
    assert judged(crop) == []
    assert judged(crop * 2) == ["scaled-hu"] and judged(crop / 2 - 100) == ["scaled-hu"]
    assert judged(crop + 50 - 100 * (crop < -150)) == ["shifted-hu"]
    assert judged(crop - 50) == ["shifted-hu"]


@pytest.mark.row(11)
def test_a_shift_without_fat_and_air_cannot_be_told() -> None:
    """Said in the documentation of the module: muscle may be where contrast agent puts organs."""
    rng = np.random.default_rng(0)
    muscle = torch.from_numpy(rng.normal(50, 12, (1, 12, 200, 200)).round())
    assert judged(muscle) == judged(muscle + 50) == []


@pytest.mark.row(11)
@pytest.mark.parametrize("seed", range(3))
def test_noise_is_refused_and_a_noisy_crop_is_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (1, 8, 16 + 16 * seed, 40)
    for drawn in (
        rng.normal(0, 400, shape),
        rng.uniform(-1024, 1500, shape),
        rng.choice([-1000.0, -100.0, 50.0], shape),
        rng.permutation(body(seed).numpy().ravel()).reshape(body().shape),
    ):
        noise = torch.from_numpy(drawn.round())
        assert judged(noise) == ["refused", "no-structure"]
    assert judged(torch.from_numpy(rng.normal(40, 100, shape).round())) == ["no-structure"]
    assert judged(torch.from_numpy(rng.normal(40, 60, shape).round())) == []


@pytest.mark.row(11)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (1, 3, 1, 300), (1, 300, 2, 2), (1, 1, 5, 5), (1, 40, 3, 3)]
)
def test_tiny_and_thin_scans_are_no_trouble(shape: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(0).normal(-200, 400, shape).round()
    drawn.ravel()[0] = 500
    judged(torch.from_numpy(drawn))
    judged(torch.from_numpy(drawn.clip(-1000, -999)))


def real_scans() -> list[Path]:
    data = Path(__file__).parents[2] / "shared" / "data"
    names = ["amos_ct/amos_0013_ct.nii.gz", "totalsegmentator_ct/ct.nii.gz"]
    return [data / name for name in (*names, "totalsegmentator_ct/dicom")]


@pytest.mark.row(11)
@pytest.mark.parametrize("path", real_scans(), ids=lambda path: path.parent.name)
def test_real_scans_pass_and_changed_ones_do_not(path: Path) -> None:
    if not path.exists():
        pytest.skip("the real scans beside the project are absent")
    data = read(path, ReadOptions(values="any")).volume.data
    assert judged(data) == []
    for change in (50, -50):
        assert judged(data + change) == ["shifted-hu"]
    assert judged(data.float() * 2)[-1:] == ["scaled-hu"]
    shuffled = np.random.default_rng(0).permutation(data[:, :4].numpy().ravel())
    assert "no-structure" in judged(torch.from_numpy(shuffled).reshape(data[:, :4].shape))
