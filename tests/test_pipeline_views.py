"""How a network sees a region: each slice on its own, padded to what it takes, and cut back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cohorts import PLAN, TARGET, base_of, make_cohort
from ellipses import make_ellipse_patient
from kidseg.config import UNetConfig
from kidseg.device import choose_device
from kidseg.geometry import Grid, Slices, Volume, posed, resample
from kidseg.intensity import AIR_HU, Normalisation, Scaling, as_input, scalings
from kidseg.labels import Target
from kidseg.nets import build
from kidseg.pipeline import Blocks, Planes, Progress, Region
from kidseg.pipeline.views import pad_to_multiple, smooth_across_slices
from kidseg.topology import Topology

CPU = choose_device("cpu", "fp32")
SCALINGS = scalings(torch.zeros(1, 1), PLAN.channels)  # of a CT: the same for all
VIEW = Planes(scalings=[SCALINGS], padding=PLAN.padding, device=CPU)


class Seen(nn.Module):
    """Keeps what it is shown; its logits are 0, the image and minus the image."""

    def __init__(self, multiple: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.parts: list[Tensor] = []
        if multiple is not None:
            self.multiple = multiple

    @property
    def images(self) -> list[Tensor]:
        """All slices, which come a few at a time."""
        return [torch.cat(self.parts)]

    def forward(self, image: Tensor) -> list[Tensor]:
        self.parts.append(image)
        return [torch.cat([torch.zeros_like(image), image, -image], dim=1)]


def predict(net: nn.Module, grid: Grid, seed: int = 0) -> Tensor:
    image = make_ellipse_patient(seed).image
    found = VIEW.predict(net, TARGET, Progress(image=image), Region(grid=grid))
    assert found.grid is grid and found.data.dtype == torch.float32
    return found.data


def turned(shape: tuple[int, int, int]) -> Grid:
    return posed(make_ellipse_patient(0).image.grid, angle_rad=0.3).resized(shape)


def test_the_image_is_normalised_with_air_around_it() -> None:
    image = make_ellipse_patient(0).image
    grid = image.grid.crop((0, -8, -8), (8, 80, 80))
    seen = VIEW.image(image, grid)
    assert seen.shape == (8, 1, 80, 80) and seen.dtype == torch.float32
    hu = resample(image, grid, fill=AIR_HU).data.transpose(0, 1)
    torch.testing.assert_close(seen, (hu.clamp(40, 230) - 130) / 50, atol=1e-6, rtol=1e-6)
    assert seen[:, :, 0].unique().tolist() == pytest.approx([(40 - 130) / 50])
    drawn = Slices.of([image], [(0, 5), (0, 2)])
    place = Grid((2, 80, 80), grid.slicewise().mm_from_index[[5, 2]])
    torch.testing.assert_close(VIEW.image(drawn, place), seen[[5, 2]], atol=0, rtol=0)


def test_a_network_sees_what_the_view_shows_of_it() -> None:
    """In training and in inference alike; the answer is the softmax."""
    net, grid = Seen(), turned((8, 24, 32))
    found = predict(net, grid)
    shown = torch.cat(net.images)
    torch.testing.assert_close(shown, VIEW.image(make_ellipse_patient(0).image, grid))
    logits = torch.cat([torch.zeros_like(shown), shown, -shown], dim=1)
    torch.testing.assert_close(found, logits.softmax(1).transpose(0, 1))


@pytest.mark.parametrize("multiple", [None, (1, 1), (8, 8), (5, 5), (4, 9), (8, 1)])
def test_sides_are_padded_to_what_the_network_takes_and_cut_back(
    multiple: tuple[int, int] | None,
) -> None:
    """20 x 27 pixels; of its border, repeated: the same answer as without."""
    net, grid = Seen(multiple), turned((8, 20, 27))
    found = predict(net, grid)
    assert found.shape == (3, 8, 20, 27)
    shown = torch.cat(net.images)
    wanted = {
        None: (20, 27),
        (1, 1): (20, 27),
        (8, 8): (24, 32),
        (5, 5): (20, 30),
        (4, 9): (20, 27),
        (8, 1): (24, 27),
    }[multiple]
    assert shown.shape == (8, 1, *wanted)
    rows, columns = (
        torch.arange(n).clamp(max=m - 1) for n, m in zip(wanted, (20, 27), strict=True)
    )
    plain = Seen()
    torch.testing.assert_close(predict(plain, grid), found, atol=0, rtol=0)
    assert torch.equal(shown, torch.cat(plain.images)[:, :, rows][:, :, :, columns])


def test_a_unet_takes_any_side() -> None:
    """Its sides must be multiples of 8; where they are, nothing is added."""
    net = build(UNetConfig(size=64, features=4), 1, 3, seed=0).eval()
    assert net.multiple == (8, 8)
    odd = predict(net, turned((8, 43, 50)))
    assert odd.shape == (3, 8, 43, 50)
    torch.testing.assert_close(odd.sum(0), torch.ones(8, 43, 50))
    even = predict(net, turned((8, 48, 56)))
    with torch.no_grad():
        image = VIEW.image(make_ellipse_patient(0).image, turned((8, 48, 56)))
        direct = net(image)[0].softmax(1).transpose(0, 1)
    torch.testing.assert_close(even, direct, atol=1e-5, rtol=1e-4)


def test_probabilities_are_those_of_the_network_in_any_number_of_slices() -> None:
    subject = make_cohort(1, 1).training[0]
    net = build(UNetConfig(size=64, features=4), 1, 3, seed=0).eval()
    base, progress = base_of(subject), Progress(image=subject.image)
    whole = VIEW.predict(net, TARGET, progress, Region(grid=base))
    assert whole.data.shape == (3, 8, 48, 48)
    torch.testing.assert_close(whole.data.sum(0), torch.ones(8, 48, 48))
    one = VIEW.predict(net, TARGET, progress, Region(grid=base.slices(3, 4)))
    torch.testing.assert_close(one.data[:, 0], whole.data[:, 3], atol=1e-5, rtol=1e-4)
    many = VIEW.predict(net, TARGET, progress, Region(grid=base.resized((37, 48, 48))))
    assert many.data.shape == (3, 37, 48, 48), "more than are shown at once"
    torch.testing.assert_close(many.data.sum(0), torch.ones(37, 48, 48))


def test_a_mask_is_shown_after_the_image_as_it_is() -> None:
    """Of each slice its own, padded with it."""
    image = make_ellipse_patient(0).image
    grid = image.grid.crop((0, 0, 0), (5, 30, 40))
    mask = (
        torch.arange(5.0)[:, None, None].expand(2, *grid.shape)
        + torch.tensor([0.0, 10.0])[:, None, None, None]
    )

    class Told(nn.Module):
        multiple = (16, 16)

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, image: Tensor) -> list[Tensor]:
            self.seen.append(image)
            return [torch.zeros(len(image), 3, *image.shape[2:])]

    net = Told()
    VIEW.predict(net, TARGET, Progress(image=image), Region(grid=grid), mask)
    shown = torch.cat(net.seen)
    assert shown.shape == (5, 3, 32, 48)
    assert torch.equal(shown[:, 0, :30, :40], VIEW.image(image, grid)[:, 0])
    assert torch.equal(shown[:, 1:, :30, :40].transpose(0, 1), mask)


def test_regions_that_overlap_have_probabilities_of_their_own() -> None:
    net, grid = Seen(), turned((8, 24, 32))
    target = Target(channels=((1, 2), (1,), (2,)), exclusive=False)
    found = VIEW.predict(
        net, target, Progress(image=make_ellipse_patient(0).image), Region(grid=grid)
    )
    shown = torch.cat(net.images).transpose(0, 1)
    wanted = torch.cat([torch.zeros_like(shown), shown, -shown]).sigmoid()
    torch.testing.assert_close(found.data, wanted)


def two_channels() -> tuple[Volume, tuple[Scaling, ...], list[float]]:
    """A CT and another image of one patient, their scalings, and what surrounds each."""
    statistics = PLAN.channels[0].statistics
    channels = tuple(Normalisation.of_channel(name, statistics) for name in ("CT", "T1"))
    ct = make_ellipse_patient(0).image
    image = Volume(torch.cat([ct.data.float(), ct.data.abs() * 3.0]), ct.grid)
    padding = [channel.padding_value for channel in channels]
    return image, scalings(image.data, channels), padding


def test_several_channels_have_their_own_scaling_and_surroundings() -> None:
    """Air around a CT, 0 around another; in predict as in training."""
    image, own, padding = two_channels()
    view = Planes(scalings=[own], padding=padding, device=CPU)
    grid = image.grid.crop((0, -8, -8), (8, 80, 80))
    seen = view.image(image, grid)
    assert seen.shape == (8, 2, 80, 80)
    air, nothing = (40 - 130) / 50, -own[1].shift / own[1].scale
    assert seen[:, 0, 0].unique().tolist() == pytest.approx([air])
    assert seen[:, 1, 0].unique().tolist() == pytest.approx([nothing])
    torch.testing.assert_close(seen[:, :, 8:72, 8:72], as_input(image.data, [own]))

    shown: list[Tensor] = []

    class Two(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            shown.append(image)
            return [torch.zeros(len(image), 3, *image.shape[2:])]

    view.predict(Two(), TARGET, Progress(image=image), Region(grid=grid))
    assert {len(image) for image in shown} == {view.batch_size}
    torch.testing.assert_close(torch.cat(shown), seen)


def test_slices_of_several_patients_are_each_scaled_as_their_own() -> None:
    statistics = PLAN.channels[0].statistics
    how = (Normalisation.of_channel("T1", statistics),)
    images = [make_ellipse_patient(0).image, make_ellipse_patient(1).image]
    images[1] = Volume(images[1].data.float() * 7, images[1].grid)
    own = [scalings(image.data, how) for image in images]
    drawn = [(1, 5), (0, 2), (1, 0)]
    matrices = [images[case].grid.slicewise().mm_from_index[k] for case, k in drawn]
    place = Grid((3, 64, 64), torch.stack(matrices))
    view = Planes(scalings=[own[case] for case, _ in drawn], padding=[0.0], device=CPU)
    seen = view.image(Slices.of(images, drawn), place)
    for row, (case, k) in enumerate(drawn):
        alone = replace(view, scalings=[own[case]]).image(images[case], images[case].grid)
        torch.testing.assert_close(seen[row], alone[k], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("sides", "multiple", "wanted"),
    [
        ((5, 8), (1, 1), (5, 8)),
        ((5, 8), (4, 4), (8, 8)),
        ((5, 8), (1, 16), (5, 16)),
        ((3, 5, 8), (2, 4, 3), (4, 8, 9)),
    ],
)
def test_padding_repeats_the_end_of_each_axis(
    sides: tuple[int, ...], multiple: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    image = torch.rand((2, 3, *sides), generator=torch.Generator().manual_seed(0))
    found = pad_to_multiple(image, multiple)
    assert found.shape == (2, 3, *wanted)
    for axis, (old, new) in enumerate(zip(sides, wanted, strict=True), start=2):
        image = image.index_select(axis, torch.arange(new).clamp(max=old - 1))
    assert torch.equal(found, image)


def test_padding_of_another_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        pad_to_multiple(torch.zeros(1, 1, 4, 4), (2, 2, 2))


# Three-dimensional networks


def blocks(patch: tuple[int, int, int], overlap: float = 0.5) -> Blocks:
    return Blocks(
        patch=patch, overlap=overlap, scalings=[SCALINGS], padding=PLAN.padding, device=CPU
    )


def answered(view: Blocks, net: nn.Module, grid: Grid, image: Volume | None = None) -> Tensor:
    image = image or make_ellipse_patient(0).image
    found = view.predict(net, TARGET, Progress(image=image), Region(grid=grid))
    assert found.grid is grid and found.data.dtype == torch.float32
    assert found.data.shape == (3, *grid.shape) and found.data.is_contiguous()
    return found.data


def test_of_a_volume_the_slices_are_an_axis_of_the_image() -> None:
    image = make_ellipse_patient(0).image
    grid = image.grid.crop((-1, -8, 0), (10, 80, 64))
    seen = blocks((4, 16, 16)).image(image, grid)
    assert seen.shape == (1, 1, 10, 80, 64)
    slicewise = VIEW.image(image, grid)
    assert torch.equal(seen[0, 0], slicewise[:, 0])
    assert seen[0, 0, 0].unique().tolist() == pytest.approx([(40 - 130) / 50]), "air around it"


def test_one_window_that_covers_a_region_is_a_direct_call() -> None:
    topology = Topology(
        features=(4, 8), kernels=((1, 3, 3), (3, 3, 3)), strides=((1, 1, 1), (2, 2, 2))
    )
    net = build(topology, 1, 3, seed=0).eval()
    view, image = blocks((8, 32, 48)), make_ellipse_patient(0).image
    grid = image.grid.crop((0, 16, 8), (8, 32, 48))
    with torch.no_grad():
        direct = net(view.image(image, grid))[0].softmax(1)[0]
    torch.testing.assert_close(answered(view, net, grid), direct, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("spacing_mm", [(10.0, 4.0, 4.0), (2.5, 6.0, 3.0), (7.0, 2.0, 9.0)])
def test_windows_of_any_voxels_are_put_together(
    spacing_mm: tuple[float, float, float], overlap: float
) -> None:
    """What a network says of each voxel is what it would say of the whole."""
    image = make_ellipse_patient(0).image
    grid = image.grid.with_spacing(spacing_mm)
    net, view = Seen(), blocks((4, 16, 24), overlap)
    found = answered(view, net, grid)
    assert len(net.parts) > 8 and {tuple(i.shape) for i in net.parts} == {(1, 1, 4, 16, 24)}
    shown = view.image(image, grid)[0]
    wanted = torch.cat([torch.zeros_like(shown), shown, -shown]).softmax(0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [(11, 24, 24), (8, 20, 17), (13, 40, 35), (4, 21, 8)])
def test_a_region_smaller_than_a_window_is_seen_with_what_lies_around(
    patch: tuple[int, int, int],
) -> None:
    """On both sides, the odd voxel behind; the answer is of the region alone."""
    image = make_ellipse_patient(0).image
    grid = image.grid.crop((0, 20, 20), (8, 20, 17))
    net, view = Seen(), blocks(patch)
    found = answered(view, net, grid)
    before = [max(0, w - n) // 2 for w, n in zip(patch, grid.shape, strict=True)]
    wide = grid.crop(
        [-b for b in before], [max(w, n) for w, n in zip(patch, grid.shape, strict=True)]
    )
    seen = view.image(image, wide)
    if wide.shape == patch:
        (shown,) = net.images
        assert torch.equal(shown, seen)
        if patch[1] > 20:
            assert seen[..., 4, before[1] - 1, :].std() > 0, "patient, not padding, around"
    inner = view.image(image, grid)[0]
    wanted = torch.cat([torch.zeros_like(inner), inner, -inner]).softmax(0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_blocks_of_two_channels_have_their_own_scaling_and_surroundings() -> None:
    image, own, padding = two_channels()
    view = Blocks(patch=(10, 66, 32), overlap=0.5, scalings=[own], padding=padding, device=CPU)
    shown: list[Tensor] = []

    class First(nn.Module):
        def forward(self, block: Tensor) -> list[Tensor]:
            shown.append(block)
            return [torch.cat([block, block[:, :1]], dim=1)]

    found = answered(view, First(), image.grid, image)
    assert {tuple(block.shape) for block in shown} == {(1, 2, 10, 66, 32)}
    air, nothing = (40 - 130) / 50, -own[1].shift / own[1].scale
    for block in shown:
        assert block[0, 0, 0].unique().tolist() == pytest.approx([air])
        assert block[0, 1, 0].unique().tolist() == pytest.approx([nothing])
    whole = as_input(image.data, [own]).transpose(0, 1)
    torch.testing.assert_close(
        found, torch.cat([whole, whole[:1]]).softmax(0), atol=1e-5, rtol=1e-4
    )


def test_blocks_of_regions_that_overlap_have_probabilities_of_their_own() -> None:
    net, grid = Seen(), make_ellipse_patient(0).image.grid
    target = Target(channels=((1, 2), (1,), (2,)), exclusive=False)
    image = make_ellipse_patient(0).image
    view = blocks((4, 32, 32))
    found = view.predict(net, target, Progress(image=image), Region(grid=grid)).data
    shown = view.image(image, grid)[0]
    wanted = torch.cat([torch.zeros_like(shown), shown, -shown]).sigmoid()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def volume_of_heights(slices: int = 6) -> Volume:
    """Each voxel's value is its slice's number."""
    grid = Grid.from_spacing((slices, 16, 16), (3.0, 1.0, 1.0))
    heights = torch.arange(slices, dtype=torch.float32)[None, :, None, None]
    return Volume(heights.expand(1, slices, 16, 16).contiguous(), grid)


RAW = (Normalisation.of_channel("nonorm", PLAN.channels[0].statistics),)
FIVE = Planes(scalings=[scalings(torch.zeros(1, 1), RAW)], padding=(0.0,), device=CPU, reach=2)


def test_neighbouring_slices_are_channels_and_the_edge_slice_repeats() -> None:
    """By hand: slices k - 2 .. k + 2; the first and last stand in for those beyond."""
    image = volume_of_heights()
    seen = FIVE.image(image, image.grid)
    assert seen.shape == (6, 5, 16, 16)
    assert seen[0, :, 0, 0].tolist() == [0, 0, 0, 1, 2]
    assert seen[3, :, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert seen[5, :, 0, 0].tolist() == [3, 4, 5, 5, 5]


def test_neighbours_on_resliced_slices_repeat_the_edge_slice_of_these() -> None:
    """Slices of 6 mm in a scan of 3 mm, at heights 0.5, 2.5 and 4.5 of its slices."""
    image = volume_of_heights()
    resliced = image.grid.with_spacing((6.0, 1.0, 1.0))
    seen = replace(FIVE, resliced=resliced).image(image, resliced)
    assert seen[0, :, 0, 0].tolist() == pytest.approx([0.5, 0.5, 0.5, 2.5, 4.5])
    assert seen[2, :, 0, 0].tolist() == pytest.approx([0.5, 2.5, 4.5, 4.5, 4.5])
    last = replace(FIVE, resliced=resliced).image(image, resliced.slices(2, 3))
    assert torch.equal(last, seen[2:])


def test_neighbours_of_a_region_come_from_the_scan_beyond_it() -> None:
    image = volume_of_heights()
    region = image.grid.slices(2, 4)
    assert FIVE.image(image, region)[:, :, 0, 0].tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    turned_region = posed(image.grid, angle_rad=torch.full((6,), 0.3)).slices(2, 4)
    assert FIVE.image(image, turned_region)[0, :, 8, 8].tolist() == [0, 1, 2, 3, 4]


def test_a_batch_has_the_neighbours_that_inference_sees() -> None:
    image = volume_of_heights()
    drawn = [(0, 5), (0, 0), (0, 3)]
    place = Grid((3, 16, 16), image.grid.slicewise().mm_from_index[[k for _, k in drawn]])
    batch = FIVE.image(Slices.of([image], drawn, reach=2), place)
    assert torch.equal(batch, FIVE.image(image, image.grid)[[k for _, k in drawn]])


@pytest.mark.parametrize(
    ("apart_mm", "middle"),
    [
        (0.0, [1, 2, 3, 4, 5]),
        (4.4, [1, 2, 3, 4, 5]),
        (4.6, [0, 1, 3, 5, 7]),
        (6.0, [0, 1, 3, 5, 7]),
        (40.0, [0, 0, 3, 7, 7]),
    ],
)
def test_neighbours_lie_whole_slices_apart(apart_mm: float, middle: list[int]) -> None:
    """Slices of 3 mm; the edge slices stand in for those beyond; a batch has the same."""
    image, drawn = volume_of_heights(8), [(0, 3), (0, 7)]
    view = replace(FIVE, apart_mm=apart_mm)
    seen = view.image(image, image.grid)
    assert seen[3, :, 0, 0].tolist() == middle
    place = Grid((2, 16, 16), image.grid.slicewise().mm_from_index[[3, 7]])
    assert torch.equal(view.image(view.slices([image], drawn), place), seen[[3, 7]])


def test_a_single_slice_is_its_own_neighbours() -> None:
    image = volume_of_heights(1)
    seen = replace(FIVE, apart_mm=5.0).image(image, image.grid)
    assert seen.shape == (1, 5, 16, 16) and not seen.any()


def test_sagittal_slices_are_planes_of_a_permuted_grid() -> None:
    image = make_ellipse_patient(0).image
    sagittal = image.grid.permuted((2, 0, 1))
    seen = VIEW.image(image, sagittal)
    expected = as_input(image.data, [SCALINGS])[:, 0].permute(2, 0, 1)[:, None]
    torch.testing.assert_close(seen, expected)
    beside = replace(VIEW, reach=1).image(image, sagittal)
    assert torch.equal(beside[1:, 0], seen[:-1, 0]) and torch.equal(beside[0, 0], seen[0, 0])
    with pytest.raises(ValueError, match="order of"):
        image.grid.permuted((0, 0, 1))


# The flip at inference


def one_sided(topology: UNetConfig | Topology) -> nn.Module:
    """A network that sees left and right differently."""
    return build(topology, 1, 3, seed=1).eval()


SLABS = Topology(features=(4, 8), kernels=((1, 3, 3), (3, 3, 3)), strides=((1, 1, 1), (2, 2, 2)))
FLIPPED = [
    (VIEW, UNetConfig(size=32, features=4), (8, 43, 50)),  # padded at its end
    (blocks((4, 16, 24)), SLABS, (8, 40, 50)),
]


@pytest.mark.parametrize(("view", "topology", "shape"), FLIPPED, ids=["planes", "blocks"])
def test_with_a_flip_probabilities_are_the_mean_of_both_sides(
    view: Planes | Blocks, topology: UNetConfig | Topology, shape: tuple[int, int, int]
) -> None:
    """By hand: of a grid, and of the same grid with its columns in reverse order."""
    net, grid = one_sided(topology), turned(shape)
    progress = Progress(image=make_ellipse_patient(0).image)

    def found(view: Planes | Blocks, grid: Grid) -> Tensor:
        return view.predict(net, TARGET, progress, Region(grid=grid)).data

    reverse = torch.eye(4, dtype=torch.float64)
    reverse[2, 2], reverse[2, 3] = -1, shape[2] - 1
    reversed_ = Grid(shape, grid.mm_from_index @ reverse)
    one, other = found(view, grid), found(view, reversed_).flip(-1)
    assert (one - other).abs().max() > 0.01
    both = replace(view, flip=True)
    torch.testing.assert_close(found(both, grid), (one + other) / 2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        found(both, reversed_).flip(-1), found(both, grid), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(found(both, grid).sum(0), torch.ones(shape))


@pytest.mark.parametrize(("view", "topology", "shape"), FLIPPED, ids=["planes", "blocks"])
def test_with_a_flip_a_mirror_image_has_the_mirrored_probabilities(
    view: Planes | Blocks, topology: UNetConfig | Topology, shape: tuple[int, int, int]
) -> None:
    """Of a scan whose voxels are mirrored; without a flip they differ."""
    net, image = one_sided(topology), make_ellipse_patient(0).image
    mirrored = Volume(image.data.flip(-1), image.grid)
    for flip in (True, False):
        own = replace(view, flip=flip)
        one, other = (
            own.predict(net, TARGET, Progress(image=each), Region(grid=image.grid)).data
            for each in (image, mirrored)
        )
        apart = (one - other.flip(-1)).abs().max()
        assert apart < 1e-5 if flip else apart > 0.01, flip


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("patch", [None, (4, 32, 32), (40, 90, 90)])
def test_every_view_tells_how_far_it_is(patch: tuple[int, int, int] | None, flip: bool) -> None:
    """Evenly, in whole parts, up to 1."""
    known = {"scalings": [SCALINGS], "padding": PLAN.padding, "device": CPU, "flip": flip}
    view: Any = Planes(**known) if patch is None else Blocks(patch=patch, overlap=0.5, **known)
    image, told = make_ellipse_patient(0).image, list[float]()
    view.predict(
        Seen(), TARGET, Progress(image=image, on_progress=told.append), Region(grid=image.grid)
    )
    assert told == pytest.approx([(k + 1) / len(told) for k in range(len(told))])
    assert len(told) == (image.grid.shape[0] // 2 if patch is None else len(told))


def test_smoothing_is_the_weighted_mean_of_the_slices_that_are_there() -> None:
    """A slice more than three standard deviations away counts nothing."""
    first = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0)).slicewise().mm_from_index
    matrices = first.repeat(3, 1, 1)
    heights = torch.tensor([0.0, 4.0, 16.5]).to(matrices)
    matrices[:, :3, 3] += heights[:, None] * first[:, :3, 0]
    values = torch.rand((2, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    smoothed = values.clone()
    smooth_across_slices(smoothed, Grid((3, 2, 2), matrices), 4.0)
    one = math.exp(-0.5)
    expected = (values[:, 0] + one * values[:, 1]) / (1 + one)
    assert torch.allclose(smoothed[:, 0], expected)
    assert torch.allclose(smoothed[:, 2], values[:, 2])


@pytest.mark.parametrize("turn", [False, True])
def test_smoothing_counts_millimetres_and_keeps_what_is_constant(turn: bool) -> None:
    grid = Grid.from_spacing((7, 3, 3), (2.5, 1.0, 1.0))
    grid = posed(grid, angle_rad=0.3) if turn else grid
    values = torch.zeros((1, 7, 3, 3))
    values[0, 3] = 1.0
    smooth_across_slices(values, grid, 2.5)
    around = [math.exp(-0.5 * k**2) for k in (3, 2, 1, 0, 1, 2, 3)]
    for k, weight in enumerate(around):
        there = sum(math.exp(-0.5 * (k - j) ** 2) for j in range(7) if abs(k - j) <= 3)
        assert torch.allclose(values[0, k], torch.full((3, 3), weight / there))
    constant = torch.full((2, 7, 3, 3), 0.25)
    smooth_across_slices(constant, grid, 6.0)
    assert torch.allclose(constant, torch.full_like(constant, 0.25))


def test_without_smoothing_or_neighbours_no_bit_changes() -> None:
    values = torch.rand((2, 3, 4, 4))
    for data, sd_mm in ((values, 0.0), (values[:, :1], 5.0)):
        kept = data.clone()
        smooth_across_slices(kept, Grid.from_spacing((data.shape[1], 4, 4), (3, 1, 1)), sd_mm)
        assert torch.equal(kept, data)


@pytest.mark.parametrize("flip", [False, True])
def test_a_view_smooths_what_the_network_found(flip: bool) -> None:
    patient = make_ellipse_patient(0)

    def found(smooth_mm: float, image: Volume = patient.image, *, flip: bool = False) -> Tensor:
        view = replace(VIEW, flip=flip, smooth_mm=smooth_mm)
        region = Region(grid=patient.image.grid)
        return view.predict(Seen(), TARGET, Progress(image=image), region).data

    opinions = [found(0.0)]
    if flip:
        mirrored = Volume(patient.image.data.flip(-1), patient.image.grid)
        opinions.append(found(0.0, mirrored).flip(-1).contiguous())
    for opinion in opinions:
        smooth_across_slices(opinion, patient.image.grid, 4.0)
    sharp, smooth = found(0.0, flip=flip), found(4.0, flip=flip)
    expected = sum(opinions) / len(opinions)
    assert torch.equal(smooth, expected) and not torch.equal(smooth, sharp)
    assert torch.allclose(smooth.sum(0), torch.ones(smooth.shape[1:]))
