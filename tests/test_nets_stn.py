"""The localisation network, and the grids its outputs mean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kidseg import nets
from kidseg.config import LocalizerConfig
from kidseg.geometry import Grid, Volume, boxed, in_plane_pose, posed, resample
from kidseg.losses import crop_loss, soft_dice
from kidseg.nets.stn import (
    CROP_OUTPUTS,
    Crop,
    crop_around,
    crop_from,
    crop_grid,
    pose_from,
    pose_grid,
    pose_outputs,
    widened,
)

LARGEST = 1e4
raw = st.floats(-LARGEST, LARGEST, width=32)


def scan_grid(slices: int, rows: int, columns: int, pixel_mm: tuple[float, float]) -> Grid:
    return Grid.from_spacing((slices, rows, columns), (3.0, *pixel_mm), (10, -20, 30)).slicewise()


def weights(net: nets.Localizer) -> int:
    return sum(p.numel() for p in net.parameters())


# ---- the network -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 128, 256, 512])
@pytest.mark.parametrize("head", ["pooled", "dense"])
def test_shape_and_weights_by_hand(size: int, head: str) -> None:
    config = LocalizerConfig(size=size, head=head, hidden=(12, 7))  # type: ignore[arg-type]
    net = nets.build(config, 2, 5)
    assert net(torch.zeros(3, 2, size, size)).shape == (3, 5)
    side = 16 if head == "pooled" else size // 4
    convolutions = (7 * 7 * 2 + 1) * 8 + (5 * 5 * 8 + 1) * 10
    assert weights(net) == convolutions + (10 * side**2 + 1) * 12 + (12 + 1) * 7 + (7 + 1) * 5


def test_there_may_be_a_single_hidden_layer() -> None:
    """The other reading of "2 fully convolutional layers": one, and that of the outputs."""
    net = nets.build(LocalizerConfig(size=64, hidden=(12,)), 2, 5)
    assert len([layer for layer in net.head if hasattr(layer, "weight")]) == 2
    assert net(torch.zeros(3, 2, 64, 64)).shape == (3, 5)


def test_the_papers_dense_head_has_157_million_weights_at_512() -> None:
    """10 maps of 128 x 128 pixels into 960 units."""
    with torch.device("meta"):
        net = nets.Localizer(LocalizerConfig(head="dense", hidden=(960, 64)), 2, 5)
    assert net.head[0].weight.numel() == 10 * 128 * 128 * 960 == 157_286_400


def test_work_by_hand() -> None:
    net = nets.build(LocalizerConfig(size=128), 2, 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 2, 128, 128))
    pairs = 128**2 * 49 * 2 * 8 + 64**2 * 25 * 8 * 10 + 2560 * 128 + 128 * 64 + 64 * 5
    assert counter.get_total_flops() == 2 * pairs


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="64 x 64"):
        nets.build(LocalizerConfig(size=64), 2, 5)(torch.zeros(1, 2, 64, 128))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": 66}, "multiple of 4"),
        ({"kernels": (6, 5)}, "odd"),
        ({"maps": (0, 10)}, "at least 1"),
        ({"hidden": (32, 0)}, "at least 1"),
        ({"hidden": ()}, "hidden"),
        ({"size": 96, "pooled": 16}, "must divide a quarter of size, 24"),
        ({"scale_limit": 1.0}, "greater than 1"),
        ({"head": "wide"}, "head"),
        ({"scales": 3}, "scales"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LocalizerConfig(**settings)  # type: ignore[arg-type]


def test_a_fresh_network_gives_zeros_for_any_image() -> None:
    net = nets.build(LocalizerConfig(size=64), 2, 9)
    image = torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (net(image) == 0).all()


def test_a_seed_gives_the_same_weights() -> None:
    config = LocalizerConfig(size=64)
    one, same, other = (nets.build(config, 2, 5, seed=seed) for seed in (3, 3, 4))
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.head[0].weight, other.head[0].weight)


def awake(net: nets.Localizer) -> nets.Localizer:
    """With a last layer that is not zero, as after the first step."""
    with torch.no_grad():
        for parameter in net.head[-1].parameters():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return net


def test_the_first_step_moves_the_last_layer_and_the_next_all_layers() -> None:
    config = LocalizerConfig(size=64)
    image = torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = (image[:, :1] > 0).float()
    grid = scan_grid(4, 64, 64, (1.0, 1.0))

    def gradients(net: nets.Localizer) -> dict[str, float]:
        found = pose_grid(grid, pose_from(net(image), config))
        seen = resample(Volume(mask.transpose(0, 1), grid), found)
        (1 - soft_dice(seen.data.transpose(0, 1), mask.flip(0)).mean()).backward()
        return {name: float(p.grad.abs().max()) for name, p in net.named_parameters()}  # type: ignore[union-attr]

    fresh = gradients(nets.build(config, 2, 5))
    assert fresh["head.4.weight"] > 0 and fresh["head.4.bias"] > 0
    assert all(value > 0 for value in gradients(awake(nets.build(config, 2, 5))).values())


def test_autocast_keeps_the_answer_in_float32() -> None:
    net = awake(nets.build(LocalizerConfig(size=64), 2, 5))
    net = net.to(memory_format=torch.channels_last)
    image = torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = net(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            narrow = net(image)
    assert narrow.dtype == torch.float32
    assert torch.allclose(narrow, plain, atol=0.02 * float(plain.abs().max()))


def test_autocast_leaves_the_grids_exact() -> None:
    config, grid = LocalizerConfig(), scan_grid(3, 64, 64, (0.7, 0.9))
    outputs = 0.3 * torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    plain = pose_grid(grid, pose_from(outputs[:, :5], config))
    box = crop_grid(grid, crop_from(outputs[:, 5:], config), 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pose_grid(grid, pose_from(outputs[:, :5], config)).same_as(plain, 1e-9)
        assert crop_grid(grid, crop_from(outputs[:, 5:], config), 32).same_as(box, 1e-9)


def test_one_graph_for_the_compiler() -> None:
    torch._dynamo.reset()
    config = LocalizerConfig(size=64)
    net = awake(nets.build(config, 2, 4))
    image = torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(0))

    def theta(image: Tensor) -> Tensor:
        return crop_from(net(image), config).theta

    compiled = torch.compile(theta, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(image), theta(image), atol=1e-6)


# ---- pose --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [1, 2])
def test_zeros_are_the_identity_pose(scales: int) -> None:
    config = LocalizerConfig(scales=scales)  # type: ignore[arg-type]
    assert pose_outputs(config) == 3 + scales
    pose = pose_from(torch.zeros(3, pose_outputs(config)), config)
    assert (pose.angle_rad == 0).all() and (pose.scale == 1).all() and (pose.shift == 0).all()
    grid = scan_grid(3, 40, 30, (0.5, 0.8))
    assert pose_grid(grid, pose).same_as(grid, 1e-9)


def test_outputs_are_radians_log_scales_and_half_images_near_zero() -> None:
    config = LocalizerConfig()
    outputs = torch.tensor([[0.02, 0.01, -0.01, 0.03, -0.02]])
    pose = pose_from(outputs, config)
    assert pose.angle_rad.item() == pytest.approx(0.02, abs=1e-5)
    assert pose.scale[0].tolist() == pytest.approx([math.exp(0.01), math.exp(-0.01)], abs=1e-5)
    assert pose.shift[0].tolist() == pytest.approx([0.03, -0.02], abs=1e-4)


@given(st.lists(raw, min_size=5, max_size=5))
@settings(max_examples=50)
def test_poses_stay_in_bounds(values: list[float]) -> None:
    pose = pose_from(torch.tensor([values]), LocalizerConfig())
    assert pose.angle_rad.abs().item() <= math.pi + 1e-6
    assert ((pose.scale >= 0.5 - 1e-6) & (pose.scale <= 2 + 1e-6)).all()
    assert (pose.shift.abs() <= 1).all()


def test_poses_keep_a_gradient_near_their_bounds() -> None:
    outputs = torch.tensor([[8.0, 1.8, -1.8, 3.0, -3.0]], requires_grad=True)
    pose = pose_from(outputs, LocalizerConfig())
    assert pose.scale[0].tolist() == pytest.approx([2.0, 0.5], abs=0.02)
    (pose.angle_rad.sum() + pose.scale.log().sum() + pose.shift.sum()).backward()
    assert outputs.grad is not None and (outputs.grad > 0.005).all()


def test_one_scale_is_a_similarity() -> None:
    config = LocalizerConfig(scales=1)
    pose = pose_from(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), config)
    assert pose.scale[0, 0] == pose.scale[0, 1]
    assert pose.scale[0, 0].item() == pytest.approx(2 ** math.tanh(0.2 / math.log(2)), abs=1e-6)
    assert pose.shift[0].tolist() == pytest.approx([math.tanh(0.3), math.tanh(0.4)])


def test_a_pose_is_made_in_millimetres_on_a_grid_that_is_not_square() -> None:
    """Half an image to the right is half the width in mm; a turn stays a turn."""
    grid = scan_grid(2, 40, 30, (0.5, 0.8))
    outputs = torch.tensor([[0.4, 0.1, -0.2, 0.3, -0.6], [-0.3, 0.0, 0.2, 0.0, 0.1]])
    pose = pose_from(outputs, LocalizerConfig())
    found = in_plane_pose(pose_grid(grid, pose), grid)
    assert torch.allclose(found.angle_rad.float(), pose.angle_rad, atol=1e-5)
    assert torch.allclose(found.scale.float(), pose.scale, atol=1e-5)
    half_mm = torch.tensor([30 * 0.8 / 2, 40 * 0.5 / 2])
    assert torch.allclose(found.shift_mm.float(), pose.shift * half_mm, atol=1e-4)


def test_a_pose_is_a_residual_upon_its_start() -> None:
    """On square pixels two similarities in a row are one: angles add, scales multiply."""
    grid = scan_grid(1, 32, 32, (1.0, 1.0))
    start = posed(
        grid,
        angle_rad=torch.tensor([0.5]),
        scale=torch.tensor([[1.4, 1.4]]),
        shift_mm=torch.tensor([[6.0, -3.0]]),
    )
    config = LocalizerConfig(scales=1)
    pose = pose_from(torch.tensor([[-0.2, 0.1, 0.0, 0.0]]), config)
    found = in_plane_pose(pose_grid(start, pose), grid)
    assert found.angle_rad.item() == pytest.approx(0.5 + pose.angle_rad.item(), abs=1e-6)
    assert found.scale[0].tolist() == pytest.approx([1.4 * pose.scale[0, 0].item()] * 2, abs=1e-5)
    assert found.shift_mm[0].tolist() == pytest.approx([6.0, -3.0], abs=1e-6)


# ---- crop --------------------------------------------------------------------------------------


def test_zeros_are_the_whole_image() -> None:
    crop = crop_from(torch.zeros(2, CROP_OUTPUTS), LocalizerConfig())
    whole = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, -1, -1)
    assert torch.equal(crop.theta, whole)
    grid = scan_grid(2, 32, 32, (0.7, 0.7))
    assert crop_grid(grid, crop, 32).same_as(grid, 1e-9)
    assert crop_grid(grid, crop, 16).same_as(grid.resized((2, 16, 16)), 1e-9)


def test_outputs_move_the_corners() -> None:
    outputs = torch.tensor([[0.2, 0.6, -1.0, -0.6]])  # x -0.8 .. 0, y -0.4 .. 0.4: square
    for square in (True, False):
        crop = crop_from(outputs, LocalizerConfig(square=square))
        assert crop.centre[0].tolist() == pytest.approx([-0.4, 0.0])
        assert crop.half[0].tolist() == pytest.approx([0.4, 0.4])


def test_an_oblong_box_becomes_the_square_of_its_mean_side() -> None:
    outputs = torch.tensor([[0.4, 0.7, -0.4, -0.7]])  # x -0.6 .. 0.6, y -0.3 .. 0.3
    config = LocalizerConfig(square=False)
    assert crop_from(outputs, config).half[0].tolist() == pytest.approx([0.6, 0.3])
    assert crop_from(outputs, LocalizerConfig()).half[0].tolist() == pytest.approx([0.45, 0.45])


def allowed(crop: Crop, config: LocalizerConfig) -> bool:
    inside = (crop.centre.abs() + crop.half <= 1 + 1e-6).all()
    sized = (crop.half >= config.min_side - 1e-6).all() and (crop.half <= 1 + 1e-6).all()
    square = not config.square or torch.equal(crop.half[:, 0], crop.half[:, 1])
    return bool(inside and sized and square)


@given(st.lists(raw, min_size=4, max_size=4), st.booleans(), st.floats(0.05, 1.0))
@settings(max_examples=100)
def test_boxes_stay_inside_and_large_enough(
    values: list[float], square: bool, least: float
) -> None:
    config = LocalizerConfig(square=square, min_side=least)
    crop = crop_from(torch.tensor([values]), config)
    assert allowed(crop, config)
    assert allowed(widened(crop, config), config)


def test_a_box_that_reached_too_far_can_still_come_back() -> None:
    """Plain clamping would hold it there for ever; and nothing drives it further out."""
    config = LocalizerConfig()
    for start in ([-3.0, -3, 3, 3], [1.5, 1.5, -1.5, -1.5], [4.0, 0, 4, 0], [-2.0, 1, 0, 3]):
        outputs = torch.tensor([start], requires_grad=True)
        target = torch.tensor([[0.5, 0, 0.2], [0, 0.5, -0.3]])[None]
        optimizer = torch.optim.SGD([outputs], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            (crop_from(outputs, config).theta - target).square().sum().backward()
            optimizer.step()
        assert torch.allclose(crop_from(outputs, config).theta, target, atol=1e-3), start
    outputs = torch.tensor([[-3.0, -3, 3, 3]], requires_grad=True)
    (-crop_from(outputs, config).half.sum()).backward()
    assert outputs.grad is not None and (outputs.grad == 0).all()


def test_inside_its_bounds_a_box_has_its_true_derivative() -> None:
    config = LocalizerConfig()
    outputs = torch.tensor([[0.3, 0.4, -0.2, -0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: crop_from(values, config).theta, (outputs,))


def test_the_target_box_by_hand() -> None:
    mask = torch.zeros(3, 32, 32)
    mask[0, 8:16, 4:20] = 2  # 16 columns by 8 rows: x 4 .. 20, y 8 .. 16
    mask[1, 31, 31] = 1  # one pixel in the corner
    crop = crop_around(mask, LocalizerConfig())
    assert crop.half[0].tolist() == pytest.approx([0.5, 0.5])
    assert crop.centre[0].tolist() == pytest.approx([2 * 12 / 32 - 1, 2 * 12 / 32 - 1])
    assert crop.half[1].tolist() == pytest.approx([0.25, 0.25])  # a quarter of the image
    assert crop.centre[1].tolist() == pytest.approx([0.75, 0.75])  # moved inside
    assert crop.half[2].tolist() == [1, 1] and crop.centre[2].tolist() == [0, 0]  # empty: all
    oblong = crop_around(mask > 0, LocalizerConfig(square=False))
    assert oblong.half[0].tolist() == pytest.approx([0.5, 0.25])


def test_the_target_box_holds_every_labelled_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = scan_grid(20, 24, 24, (0.9, 0.9))
    mask = torch.zeros(20, 24, 24)
    for plane in mask:
        rows, columns = torch.randint(0, 24, (2, 3), generator=generator)
        plane[rows, columns] = 1
    box = crop_grid(grid, crop_around(mask, LocalizerConfig()), 24)
    ones = Volume(torch.ones(1, *box.shape), box)
    covered = resample(ones, grid, mode="nearest").data[0]
    assert (covered[mask > 0] == 1).all()


def test_a_box_on_the_grid_is_the_box_of_its_indices() -> None:
    grid = scan_grid(1, 32, 32, (0.7, 0.7))
    mask = torch.zeros(1, 32, 32)
    mask[0, 10:20, 6:16] = 1
    low, high = torch.tensor([-0.5, 9.5, 5.5]), torch.tensor([0.5, 19.5, 15.5])
    crop = crop_around(mask, LocalizerConfig())
    assert crop_grid(grid, crop, 20).same_as(boxed(grid, low, high, (1, 20, 20)), 1e-5)


def test_the_margin_widens_about_the_middle() -> None:
    config = LocalizerConfig(margin=0.1)
    crop = Crop(torch.tensor([[0.2, 0.0]]), torch.tensor([[0.5, 0.5]]))
    assert widened(crop, config).half[0].tolist() == pytest.approx([0.55, 0.55])
    assert widened(crop, config).centre[0].tolist() == pytest.approx([0.2, 0.0])
    edge = Crop(torch.tensor([[0.5, 0.0]]), torch.tensor([[0.5, 0.5]]))
    assert widened(edge, config).centre[0].tolist() == pytest.approx([0.45, 0.0])


# ---- learning ----------------------------------------------------------------------------------


def body(grid: Grid) -> Tensor:
    """(slices, 2, rows, columns): a notched ellipse, bright at the notch, and its mask."""
    slices, rows, columns = grid.shape
    index = torch.stack(
        torch.meshgrid(torch.arange(rows) + 0.0, torch.arange(columns) + 0.0, indexing="ij"), -1
    ).reshape(-1, 2)
    index = torch.cat([torch.zeros(len(index), 1), index], dim=1).double()
    planes = []
    for k in range(slices):
        matrix = grid.mm_from_index[k]
        x, y, _ = (index @ matrix[:3, :3].T + matrix[:3, 3]).unbind(-1)
        ellipse = (x / 22) ** 2 + (y / 15) ** 2 < 1
        notch = x**2 + (y + 15) ** 2 < 36
        spine = x**2 + (y + 6) ** 2 < 9
        mask = (ellipse & ~notch).float()
        planes.append(torch.stack([mask + 2 * spine.float(), mask]).reshape(2, rows, columns))
    return torch.stack(planes)


@pytest.mark.ci
def test_it_learns_to_undo_known_poses() -> None:
    """Twelve slices, turned and shifted; trained on the overlap of masks alone."""
    generator = torch.Generator().manual_seed(0)
    count, size = 12, 64
    home = Grid.from_spacing((count, size, size), (1.0, 1.0, 1.0)).slicewise()
    angle = (torch.rand(count, generator=generator) - 0.5) * 1.4
    shift_mm = (torch.rand(count, 2, generator=generator) - 0.5) * 12
    scans = posed(home, angle_rad=angle, scale=torch.ones(count, 2), shift_mm=shift_mm)
    image, reference = body(scans), body(home)[:, 1:]
    masks = Volume(image[:, 1:].transpose(0, 1), scans)

    config = LocalizerConfig(size=size, hidden=(64, 32))
    net = nets.build(config, 2, pose_outputs(config))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    history = []
    for _ in range(150):
        optimizer.zero_grad()
        found = pose_grid(scans, pose_from(net(image), config))
        seen = resample(masks, found).data.transpose(0, 1)
        loss = 1 - soft_dice(seen, reference).mean()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    left = in_plane_pose(found, home)
    before = in_plane_pose(scans, home)
    assert history[-1] < 0.03 < 0.15 < history[0]
    assert left.angle_rad.abs().mean() < 0.2 * before.angle_rad.abs().mean()
    assert left.shift_mm.abs().mean() < 0.2 * before.shift_mm.abs().mean()


@pytest.mark.ci
def test_it_learns_to_find_known_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    count, size = 12, 64
    grid = Grid.from_spacing((count, size, size), (1.0, 1.0, 1.0)).slicewise()
    labels = torch.zeros(count, size, size)
    for plane in labels:
        row, column = torch.randint(4, 36, (2,), generator=generator).tolist()
        plane[row : row + 20, column : column + 16] = 1
    image = torch.stack([labels, torch.ones_like(labels)], dim=1)
    scan = Volume(image[:, :1].transpose(0, 1), grid)
    config = LocalizerConfig(size=size, hidden=(64, 32))
    target = crop_around(labels, config)
    wanted = resample(scan, crop_grid(grid, target, 32)).data

    net = nets.build(config, 2, CROP_OUTPUTS)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        crop = crop_from(net(image), config)
        seen = resample(scan, crop_grid(grid, crop, 32)).data
        loss = crop_loss(seen, wanted, crop.theta, target.theta)
        loss.backward()
        optimizer.step()
    assert (crop.centre - target.centre).abs().mean() < 0.03
    assert (crop.half - target.half).abs().mean() < 0.03
