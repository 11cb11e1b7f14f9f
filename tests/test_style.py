"""Domain randomization: random pose and appearance of CT slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kidseg.config import StyleConfig
from kidseg.geometry import Grid, in_plane_pose
from kidseg.stage import TrainStep
from kidseg.style import Style, draw_styles, restyled, styled_grid

STEP = TrainStep(seed=3, epoch=1, step=5)
QUIET = StyleConfig(
    rotation_deg=0,
    zoom=(1.0, 1.0),
    stretch=0,
    shift_mm=0,
    flip=False,
    gain=0,
    offset_hu=0,
    tone=0,
    bias_hu=0,
    label_hu=0,
    texture_hu=0,
    noise_hu=0,
    blur_px=0,
    window_share=0,
    single_share=0,
)


def _grid(count: int, side: int = 32) -> Grid:
    matrix = torch.diag(torch.tensor([5.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    return Grid((count, side, side), matrix.expand(count, 4, 4).clone())


def _slices(count: int, channels: int = 1, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    hu = torch.randn((channels, count, side, side), generator=rng) * 80 + 20
    labels = torch.zeros((channels, count, side, side), dtype=torch.uint8)
    labels[..., 8:16, 8:16], labels[..., 16:24, 8:16] = 1, 2
    return hu, labels


def _only(**changes: object) -> Style:
    return draw_styles(
        StyleConfig(**{**QUIET.__dict__, **changes}),  # type: ignore[arg-type]
        STEP,
        6,
        2,
    )


def _quiet(style: Style) -> Style:
    style.sharpening[:] = 0
    return style


def test_without_ranges_nothing_changes() -> None:
    hu, labels = _slices(6)
    style = _quiet(_only())
    assert torch.allclose(restyled(hu, labels, style), hu, atol=1e-3)
    grid = _grid(6)
    assert torch.allclose(styled_grid(grid, style).mm_from_index, grid.mm_from_index)


def test_input_is_not_modified() -> None:
    hu, labels = _slices(4)
    before = hu.clone()
    restyled(hu, labels, draw_styles(StyleConfig(), STEP, 4, 2))
    assert torch.equal(hu, before)


def test_equal_steps_give_equal_images_and_other_steps_others() -> None:
    hu, labels = _slices(4)

    def changed(step: TrainStep) -> torch.Tensor:
        return restyled(hu, labels, draw_styles(StyleConfig(), step, 4, 2))

    assert torch.equal(changed(STEP), changed(STEP))
    for other in (
        TrainStep(seed=4, epoch=1, step=5),
        TrainStep(seed=3, epoch=2, step=5),
        TrainStep(seed=3, epoch=1, step=6),
    ):
        assert not torch.allclose(changed(STEP), changed(other))


def test_processes_share_the_batch_of_one() -> None:
    hu, labels = _slices(4)
    whole = restyled(hu, labels, draw_styles(StyleConfig(), STEP, 4, 2))
    for rank in (0, 1):
        step = TrainStep(seed=3, epoch=1, step=5, rank=rank, world=2)
        own = slice(rank, None, 2)
        part = restyled(hu[:, own], labels[:, own], draw_styles(StyleConfig(), step, 2, 2))
        assert torch.equal(part, whole[:, own])


def test_pose_stays_in_its_ranges_and_keeps_the_slices() -> None:
    config = StyleConfig(rotation_deg=15, zoom=(0.8, 1.25), stretch=0.0, shift_mm=20, flip=False)
    grid = _grid(64)
    moved = styled_grid(grid, draw_styles(config, STEP, 64, 2))
    pose = in_plane_pose(moved, grid)
    assert float(pose.angle_rad.abs().max()) <= np.deg2rad(15) + 1e-9
    assert float(pose.scale.min()) >= 0.8 - 1e-9 and float(pose.scale.max()) <= 1.25 + 1e-9
    assert float(pose.shift_mm.abs().max()) <= 20 + 1e-9
    assert torch.allclose(moved.mm_from_index[:, :3, 0], grid.mm_from_index[:, :3, 0])


def test_mirror_reverses_half_of_the_samples() -> None:
    grid = _grid(400)
    moved = styled_grid(grid, draw_styles(StyleConfig(rotation_deg=0), STEP, 400, 2))
    mirrored = moved.mm_from_index[:, 2, 2] < 0
    assert 0.4 < float(mirrored.float().mean()) < 0.6


def test_offset_and_gain_by_hand() -> None:
    hu, labels = _slices(6)
    style = _quiet(_only(offset_hu=10.0, gain=0.3))
    expected = (hu - 40) * torch.from_numpy(style.gain).float()[None, :, None, None] + 40
    expected += torch.from_numpy(style.offset_hu).float()[None, :, None, None]
    assert torch.allclose(restyled(hu, labels, style), expected, atol=1e-3)


def test_tone_is_monotone_and_keeps_air_and_bone_apart() -> None:
    ramp = torch.linspace(-1024, 1500, 32 * 32).view(1, 1, 32, 32).expand(1, 6, 32, 32)
    labels = torch.zeros((1, 6, 32, 32), dtype=torch.uint8)
    out = restyled(ramp, labels, _quiet(_only(tone=0.5)))[0].flatten(1)
    assert bool((out.diff() > 0).all())
    assert bool((out.diff()[:, -100:] - ramp.flatten(2)[0, 0].diff()[-100:]).abs().max() < 1e-2)
    assert float((out - ramp.flatten(2)[0]).abs().max()) > 5  # it does change something


def test_labels_change_by_themselves() -> None:
    hu, labels = _slices(6)
    style = _quiet(_only(label_hu=30.0))
    change = (restyled(hu, labels, style) - hu)[0]
    for k in range(6):
        for number in (1, 2):
            inside = change[k][10:14, 10:14] if number == 1 else change[k][18:22, 10:14]
            assert torch.allclose(
                inside.median(), torch.tensor(style.label_hu[k, number - 1]).float(), atol=0.5
            )
        assert float(change[k, 28:, 28:].abs().max()) < 1e-3


def test_neighbouring_slices_change_where_their_own_labels_are() -> None:
    """A tumour in the upper neighbour alone; the others change as without it."""
    hu, labels = _slices(6, channels=3)
    style = _quiet(_only(label_hu=30.0))
    before = restyled(hu, labels, style)
    labels[2, :, 20:28, 20:28] = 2
    added = restyled(hu, labels, style) - before
    assert not added[:2].any()
    for k in range(6):
        expected = torch.tensor(style.label_hu[k, 1]).float()
        assert torch.allclose(added[2, k, 22:26, 22:26].median(), expected, atol=0.5)


def test_a_single_slice_in_place_of_its_neighbours_has_one_label() -> None:
    hu, labels = _slices(6, channels=3)
    labels[0] = 2
    style = draw_styles(StyleConfig(single_share=1.0), STEP, 6, 2)
    alone = restyled(hu[1:2].repeat(3, 1, 1, 1), labels[1:2].repeat(3, 1, 1, 1), style)
    assert torch.equal(restyled(hu, labels, style), alone)


def test_channels_of_a_slice_change_alike() -> None:
    """Two channels in each of three slices."""
    hu, labels = _slices(6, channels=3)
    style = _quiet(_only(label_hu=30.0, bias_hu=10.0))
    both = torch.stack([hu, hu + 1.0], dim=1).flatten(0, 1)
    change = (restyled(both, labels, style) - both).unflatten(0, (3, 2))
    assert torch.allclose(change[:, 0], change[:, 1], atol=1e-3)
    assert torch.allclose(change[:, 0], restyled(hu, labels, style) - hu, atol=1e-3)


def test_window_clips_a_share() -> None:
    hu, labels = _slices(400, side=8)
    style = draw_styles(StyleConfig(window_share=0.5), STEP, 400, 2)
    out = restyled(hu * 20, labels, style)[0]
    clipped = np.isfinite(style.low_hu)
    assert 0.4 < clipped.mean() < 0.6
    for k in np.flatnonzero(clipped):
        assert float(out[k].min()) >= style.low_hu[k] - 1e-4
        assert float(out[k].max()) <= style.high_hu[k] + 1e-4


@pytest.mark.parametrize("channels", [3, 5])
def test_single_slices_repeat_the_middle_one(channels: int) -> None:
    hu, labels = _slices(6, channels)
    style = draw_styles(StyleConfig(single_share=1.0), STEP, 6, 2)
    out = restyled(hu, labels, style)
    for channel in range(channels):
        assert torch.equal(out[channel], out[channels // 2])


def test_noise_has_the_drawn_amount() -> None:
    hu = torch.zeros((1, 6, 64, 64))
    labels = torch.zeros((1, 6, 64, 64), dtype=torch.uint8)
    style = _quiet(_only(noise_hu=25.0))
    out = restyled(hu, labels, style)[0]
    found = out.flatten(1).std(1)
    assert torch.allclose(found, torch.from_numpy(style.noise_hu).float(), rtol=0.02, atol=0.05)


def test_zoom_must_be_positive_and_ordered() -> None:
    with pytest.raises(ValueError, match="zoom"):
        StyleConfig(zoom=(1.2, 0.8))
    with pytest.raises(ValueError, match="zoom"):
        StyleConfig(zoom=(0.0, 1.0))


def test_the_smooth_field_is_smooth_and_has_the_drawn_amount() -> None:
    hu, labels = _slices(6, side=96)
    style = _quiet(_only(bias_hu=12.0))
    field = (restyled(hu, labels, style) - hu)[0]
    for k in range(6):
        assert 0.4 < float(field[k].square().mean().sqrt() / style.bias_hu[k]) < 1.8
        assert float(field[k].diff(dim=0).abs().max()) < 0.35 * style.bias_hu[k]
