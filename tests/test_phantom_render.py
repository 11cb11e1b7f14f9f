"""Rendering: sizes and labels of what is drawn, partial volume, deformation, determinism."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from kidseg.geometry import Grid
from kidseg.phantom.anatomy import ORGANS, Anatomy, Look, Stone
from kidseg.phantom.canvas import Canvas, Locator
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.mass import draw_mass
from kidseg.phantom.people import draw_anatomy
from kidseg.phantom.posture import Pose
from kidseg.phantom.render import KIDNEY, TUMOUR, Rendering, render
from kidseg.phantom.shapes import ellipsoid, smooth_max, smooth_min, tube
from kidseg.phantom.splines import Splines, draw_texture
from kidseg.phantom.tissues import TISSUES_HU, draw_broad_tissues, draw_tissues
from kidseg.phantom.tumour import pushed

NUMBER = {name: number for number, name in ORGANS.items()}
STEP_MM = 2.0


def child(seed: int, age: float, **options: str) -> Anatomy:
    return draw_anatomy(np.random.default_rng(seed), age, **options)  # type: ignore[arg-type]


def kidneys_mm(anatomy: Anatomy) -> tuple[float, float]:
    """(low, high) z of kidneys and tumours."""
    ends = [(k.centre_mm[2], k.length_mm / 2) for k in anatomy.kidneys]
    ends += [
        (t.centre_mm[2], 1.05 * t.radius_mm * max(abs(z) + r for _, _, z, r in t.lobes))
        for t in anatomy.tumours
    ]
    return min(z - h for z, h in ends), max(z + h for z, h in ends)


def around_kidneys(anatomy: Anatomy, step_mm: float = STEP_MM) -> Grid:
    low, high = kidneys_mm(anatomy)
    side = int(1.35 * anatomy.lateral_mm / step_mm)
    shape = (int((high - low + 30.0) / step_mm), side, side)
    return Grid.from_spacing(shape, (step_mm,) * 3, (0.0, 0.0, (low + high) / 2))


def drawn(anatomy: Anatomy, pose: Pose | None = None, phase: str = "early-arterial") -> Rendering:
    grid = around_kidneys(anatomy)
    return render(anatomy, pose or Pose(), grid, phase, np.random.default_rng(1))  # type: ignore[arg-type]


@cache
def healthy() -> tuple[Anatomy, Rendering]:
    anatomy = replace(child(3, 3.0, tumour="none", kidneys="separate"), cysts=())
    return anatomy, drawn(anatomy)


@cache
def ill() -> tuple[Anatomy, Rendering]:
    anatomy = child(4, 3.0, tumour="one-sided", kidneys="separate")
    return anatomy, drawn(anatomy)


def on_side(rendering: Rendering, side: str) -> np.ndarray:
    columns = np.arange(rendering.hu.shape[2]) < rendering.hu.shape[2] / 2  # columns go left
    return np.broadcast_to(columns if side == "right" else ~columns, rendering.hu.shape)


def longest_mm(mask: np.ndarray, step_mm: float) -> float:
    points = np.argwhere(mask) * step_mm
    return float(pdist(points[ConvexHull(points).vertices]).max())


@pytest.mark.ci
@pytest.mark.parametrize(("seed", "age"), [(1, 0.1), (2, 2.0), (5, 9.0)])
def test_rendered_kidneys_have_their_drawn_length_and_a_plausible_volume(
    seed: int, age: float
) -> None:
    anatomy = replace(child(seed, age, tumour="none", kidneys="separate"), cysts=())
    rendering = drawn(anatomy)
    for kidney in anatomy.kidneys:
        mask = (rendering.labels == KIDNEY) & on_side(rendering, kidney.side)
        parts, count = ndimage.label(mask)
        sizes = ndimage.sum(mask, parts, range(1, count + 1))
        whole = parts == 1 + int(np.argmax(sizes))
        assert sizes.max() > 0.97 * mask.sum(), "one piece"
        assert longest_mm(whole, STEP_MM) == pytest.approx(kidney.length_mm, rel=0.10, abs=STEP_MM)
        box_ml = kidney.length_mm * kidney.width_mm * kidney.thickness_mm / 1000.0
        assert 0.34 < whole.sum() * STEP_MM**3 / 1000.0 / box_ml < 0.65, "about pi/6, less sinus"


def test_body_has_its_diameter_and_is_one_piece() -> None:
    anatomy, rendering = healthy()
    middle = rendering.organs[len(rendering.organs) // 2] > 0
    _, count = ndimage.label(middle)
    diameter = 2 * np.sqrt(middle.sum() * STEP_MM**2 / np.pi)
    assert count == 1
    assert diameter == pytest.approx(anatomy.effective_diameter_mm, rel=0.05)


@pytest.mark.ci
@pytest.mark.parametrize(("seed", "age"), [(4, 3.0), (6, 0.3), (8, 7.0), (9, 1.0)])
def test_tumour_has_its_drawn_volume_on_its_side(seed: int, age: float) -> None:
    anatomy = child(seed, age, tumour="one-sided", kidneys="separate")
    rendering = drawn(anatomy)
    mask = rendering.labels == TUMOUR
    tumour = anatomy.tumours[0]
    assert mask.sum() * STEP_MM**3 / 1000.0 == pytest.approx(tumour.volume_ml, rel=0.06)
    assert (mask & on_side(rendering, tumour.side)).sum() > 0.5 * mask.sum()
    _, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    assert count <= 3


@pytest.mark.ci
def test_tumour_displaces_and_nothing_breaks() -> None:
    """Kidney and liver are pushed, not overwritten; body outline, wall and spine stay whole."""
    anatomy, rendering = ill()
    bare = replace(anatomy, tumours=())
    without = render(
        bare, Pose(), around_kidneys(anatomy), "early-arterial", np.random.default_rng(1)
    )
    side = anatomy.tumours[0].side
    before = ((without.labels == KIDNEY) & on_side(without, side)).sum()
    after = ((rendering.labels == KIDNEY) & on_side(rendering, side)).sum()
    assert 0.4 * before < after < 2.0 * before
    covered = ((without.labels == KIDNEY) & (rendering.labels == TUMOUR)).sum()
    assert after > before - covered, "the tumour took the kidney's place, the kidney moved on"
    spine = without.organs == NUMBER["spine"]
    assert (spine & (rendering.labels == TUMOUR)).sum() < 0.005 * spine.sum()
    air = rendering.organs == 0
    for k in range(0, len(air), 8):
        outside, _ = ndimage.label(air[k])
        assert set(np.unique(outside)) <= {0, outside[0, 0]}, "no hole to the outside"
    touching = ndimage.binary_dilation(rendering.labels == TUMOUR) & air
    assert not touching.any(), "skin and wall over the tumour"


def test_labels_are_a_summary_of_the_organs() -> None:
    _, rendering = ill()
    kidney = np.isin(
        rendering.organs, [NUMBER[n] for n in ("renal cortex", "renal medulla", "cyst")]
    )
    assert np.array_equal(rendering.labels == KIDNEY, kidney)
    assert np.array_equal(rendering.labels == TUMOUR, rendering.organs == NUMBER["tumour"])
    assert rendering.hu.dtype == np.float32 and rendering.labels.dtype == np.uint8
    assert set(np.unique(rendering.organs)) <= {0, *ORGANS}


@pytest.mark.ci
def test_all_organs_of_a_whole_abdomen_are_there() -> None:
    anatomy = child(12, 4.0, tumour="one-sided", kidneys="separate")
    low, high = anatomy.modelled_mm
    side = int(1.5 * anatomy.lateral_mm / 2.5)
    grid = Grid.from_spacing(
        (int((high - low) / 2.5), side, side), (2.5,) * 3, (0, 0, (low + high) / 2)
    )
    rendering = render(anatomy, Pose(arms=True), grid, "excretory", np.random.default_rng(0))
    there = {ORGANS[n] for n in np.unique(rendering.organs) if n}
    pelvic = {"bladder", "uterus", "prostate", "femur", "ovary", "ureter"}
    assert there >= set(ORGANS.values()) - {"cyst", "adrenal", "renal sinus fat"} - pelvic
    assert not there & pelvic, "only with a pelvis"


def test_organs_lie_where_they_belong() -> None:
    anatomy, rendering = healthy()
    grid = around_kidneys(anatomy)

    def middle_mm(name: str) -> np.ndarray:
        places = np.argwhere(rendering.organs == NUMBER[name]).astype(float)
        return grid.mm(places).numpy().mean(axis=0)

    assert middle_mm("liver")[0] > 20 and middle_mm("spleen")[0] < -20
    assert middle_mm("aorta")[0] < middle_mm("vena cava")[0]
    assert middle_mm("spine")[1] < middle_mm("aorta")[1]
    assert abs(middle_mm("spine")[0]) < 2.0
    assert middle_mm("renal cortex")[1] < 0


@pytest.mark.ci
@pytest.mark.parametrize(
    ("phase", "brighter", "darker"),
    [
        ("early-arterial", "renal cortex", "renal medulla"),
        ("early-arterial", "aorta", "vena cava"),
        ("excretory", "renal pelvis", "aorta"),
        ("portal-venous", "liver", "muscle"),
        ("unenhanced", "spine", "liver"),
    ],
)
def test_contrast_phases(phase: str, brighter: str, darker: str) -> None:
    anatomy, _ = healthy()
    rendering = drawn(anatomy, phase=phase)
    medians = [np.median(rendering.hu[rendering.organs == NUMBER[n]]) for n in (brighter, darker)]
    assert medians[0] > medians[1] + 15


@pytest.mark.ci
def test_turned_patient_is_the_same_patient_turned() -> None:
    """The kidneys' middle in scanner mm is the map of where it was."""
    anatomy, straight = healthy()
    grid = around_kidneys(anatomy)
    for pose in (Pose(angle_deg=20.0), Pose(tilt_deg=5.0, offset_mm=(8.0, -5.0))):
        turned = drawn(anatomy, pose)
        places = [
            grid.mm(np.argwhere(np.isin(r.labels, [KIDNEY])).astype(float))
            for r in (straight, turned)
        ]
        matrix = pose.scanner_from_anatomy()
        expected = matrix[:3, :3] @ places[0].mean(dim=0) + matrix[:3, 3]
        assert torch.allclose(places[1].mean(dim=0), expected, atol=0.7)
        assert len(places[1]) == pytest.approx(len(places[0]), rel=0.03)


@pytest.mark.ci
@pytest.mark.parametrize("angle", [0.0, 25.0])
def test_fluid_levels_are_level_however_the_patient_lies(angle: float) -> None:
    """In the stomach gas lies above fluid in the scanner, also where the patient is turned."""
    anatomy, _ = healthy()
    anatomy = replace(anatomy, viscera=replace(anatomy.viscera, stomach_gas=0.5))
    rendering = drawn(anatomy, Pose(angle_deg=angle))
    stomach = rendering.organs == NUMBER["stomach"]
    gas = stomach & (rendering.hu < -700)
    fluid = stomach & (rendering.hu > -20) & ndimage.binary_erosion(stomach, iterations=3)
    assert gas.sum() > 100 and fluid.sum() > 100
    assert np.percentile(np.nonzero(gas)[1], 95) <= np.percentile(np.nonzero(fluid)[1], 5) + 2


@pytest.mark.ci
def test_scoliosis_moves_the_spine_and_arms_appear() -> None:
    anatomy, straight = healthy()
    bent = drawn(anatomy, Pose(scoliosis_mm=12.0, scoliosis_length_mm=150.0, arms=True))
    places = [np.argwhere(r.organs == NUMBER["spinal canal"]) for r in (straight, bent)]
    middle = len(straight.hu) // 2
    columns = [p[np.abs(p[:, 0] - middle) < 4][:, 2].mean() for p in places]
    assert columns[0] - columns[1] > 3, "to the right, by nearly 12 mm"
    assert (bent.organs == NUMBER["arm"]).any() and not (straight.organs == NUMBER["arm"]).any()


@pytest.mark.ci
def test_scoliosis_keeps_the_tumours_volume() -> None:
    anatomy, _ = ill()
    bent = drawn(anatomy, Pose(scoliosis_mm=-14.0, scoliosis_length_mm=180.0))
    volume_ml = (bent.labels == TUMOUR).sum() * STEP_MM**3 / 1000.0
    assert volume_ml == pytest.approx(anatomy.tumours[0].volume_ml, rel=0.04)


@pytest.mark.ci
def test_horseshoe_kidneys_are_joined_and_single_ones_alone() -> None:
    joined = drawn(child(21, 5.0, tumour="none", kidneys="horseshoe"))
    parts, count = ndimage.label(joined.labels == KIDNEY)
    sizes = np.sort(ndimage.sum(joined.labels > 0, parts, range(1, count + 1)))
    assert sizes[-1] > 0.95 * sizes.sum()
    anatomy = child(22, 5.0, tumour="none", kidneys="single")
    alone = drawn(anatomy)
    other = "left" if anatomy.kidneys[0].side == "right" else "right"
    assert not ((alone.labels == KIDNEY) & on_side(alone, other)).any()


def test_thick_slices_are_the_mean_of_thin_ones() -> None:
    anatomy, _ = healthy()
    thin = Grid.from_spacing((6, 90, 110), (1.0, 1.6, 1.6), (0, 0, 10.0))
    thick = Grid.from_spacing((1, 90, 110), (6.0, 1.6, 1.6), (0, 0, 10.0))
    fine, coarse = (
        render(anatomy, Pose(), g, "portal-venous", np.random.default_rng(2)).hu
        for g in (thin, thick)
    )
    error = np.abs(fine.mean(axis=0) - coarse[0])
    assert np.median(error) < 6 and (error < 60).mean() > 0.85


def test_draws_do_not_depend_on_the_grid() -> None:
    anatomy, _ = healthy()
    whole = Grid.from_spacing((5, 60, 80), (4.0, 2.5, 2.5), (0, 0, 0.0))
    part = whole.crop((1, 10, 8), (2, 40, 60))
    a = render(anatomy, Pose(), whole, "portal-venous", np.random.default_rng(2))
    b = render(anatomy, Pose(), part, "portal-venous", np.random.default_rng(2))
    inner = a.hu[1:3, 10:50, 8:68]
    assert np.abs(inner - b.hu)[:, 2:-2, 2:-2].mean() < 1.0
    again = render(anatomy, Pose(), part, "portal-venous", np.random.default_rng(2))
    assert np.array_equal(b.hu, again.hu) and np.array_equal(b.organs, again.organs)


def test_a_grid_beside_the_body_is_air_and_an_oblique_one_is_refused() -> None:
    anatomy, _ = healthy()
    beside = Grid.from_spacing((2, 20, 20), (3.0, 2.0, 2.0), (600.0, 0.0, 0.0))
    empty = render(anatomy, Pose(), beside, "unenhanced", np.random.default_rng(0))
    assert (empty.hu == -1000).all() and not empty.labels.any() and not empty.organs.any()
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(ValueError, match="axial"):
        render(
            anatomy,
            Pose(),
            beside.moved(torch.from_numpy(turn)),
            "unenhanced",
            np.random.default_rng(0),
        )


# --- the broad cohort ---


@cache
def adult() -> Anatomy:
    anatomy = child(31, 60.0, tumour="none", kidneys="separate")
    return replace(anatomy, cysts=(), look=Look(perirenal_mm=10.0))


def broadly(anatomy: Anatomy, step_mm: float = 3.0, phase: str = "portal-venous") -> Rendering:
    grid = around_kidneys(anatomy, step_mm)
    rng = np.random.default_rng(1)
    return render(anatomy, Pose(), grid, phase, rng, broad=True)  # type: ignore[arg-type]


def with_look(**changes: object) -> Rendering:
    return broadly(replace(adult(), look=replace(adult().look, **changes)))  # type: ignore[arg-type]


@pytest.mark.ci
def test_perirenal_fat_surrounds_the_kidneys() -> None:
    def ring_fat(rendering: Rendering) -> float:
        kidney = rendering.labels == KIDNEY
        ring = ndimage.binary_dilation(kidney, iterations=3) & ~kidney
        return float((rendering.hu[ring] <= 0).mean())

    slim, obese = ring_fat(with_look(perirenal_mm=1.5)), ring_fat(with_look(perirenal_mm=30.0))
    assert obese > slim + 0.1 and obese > 0.6


@pytest.mark.ci
def test_fewer_loops_leave_mesenteric_fat() -> None:
    few, many = (with_look(bowel_share=share) for share in (0.25, 1.0))
    small = [(r.organs == NUMBER["small bowel"]).sum() for r in (few, many)]
    assert small[0] < 0.5 * small[1]


@pytest.mark.ci
def test_fatty_muscles_are_darker_and_the_fatty_liver_too() -> None:
    lean, fatty = with_look(muscle_fat=0.01), with_look(muscle_fat=0.9, liver_fat_hu=50.0)
    for organ, less in (("muscle", 3.0), ("liver", 40.0)):
        means = [r.hu[r.organs == NUMBER[organ]].mean() for r in (lean, fatty)]
        assert means[1] < means[0] - less


@pytest.mark.ci
def test_plaques_and_screws_are_bright() -> None:
    plain, worn = with_look(), with_look(calcification=1.0, screws=True)
    assert (plain.hu > 2000).sum() == 0 and (worn.hu > 2000).sum() > 5
    near = ndimage.binary_dilation(worn.organs == NUMBER["aorta"])
    assert (worn.hu[near] > 350).sum() > (plain.hu[near] > 350).sum()


@pytest.mark.ci
def test_stones_lie_in_the_collecting_system_and_are_no_kidney() -> None:
    centre = Frame.of(adult().kidneys[0]).anatomy_mm(-0.4, 0.0, 0.0)
    x, y, z = (float(v) for v in centre)
    stone = Stone(centre_mm=(x, y, z), half_mm=(6.0, 6.0, 6.0), hu=1200.0)
    rendering = with_look(stones=(stone,))
    bright = rendering.hu > 1000
    assert bright.sum() * 27 == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.6)
    assert not rendering.labels[bright].any()


@pytest.mark.ci
@pytest.mark.parametrize(
    "tissue",
    ["solid", *(pytest.param(t, marks=pytest.mark.slow) for t in ("cystic", "fatty"))],
)
def test_a_mass_has_its_volume_and_its_tissue(tissue: str) -> None:
    body, kidney = adult().body, adult().kidneys[1]
    mass = draw_mass(np.random.default_rng(3), body, kidney, 40.0)
    mass = replace(mass, tissue=tissue, uptake=0.5, necrosis=0.4, calcified=False)  # type: ignore[arg-type]
    rendering = broadly(replace(adult(), tumours=(mass,)))
    inside = rendering.labels == TUMOUR
    assert inside.sum() * 0.027 == pytest.approx(40.0, rel=0.15)
    mean = rendering.hu[inside].mean()
    low, high = {"solid": (30, 140), "cystic": (0, 80), "fatty": (-110, 40)}[tissue]
    assert low < mean < high
    kidney_before = (broadly(adult()).labels == KIDNEY).sum()
    assert 0.6 * kidney_before < (rendering.labels == KIDNEY).sum() <= 1.05 * kidney_before


@pytest.mark.ci
def test_uptake_sets_the_contrast_between_kidney_and_mass() -> None:
    mass = draw_mass(np.random.default_rng(4), adult().body, adult().kidneys[1], 30.0)
    gaps = []
    for uptake in (0.1, 1.0):
        solid = replace(mass, tissue="solid", uptake=uptake, necrosis=0.0, structure_hu=4.0)
        rendering = broadly(replace(adult(), tumours=(solid,)))
        gaps.append(
            rendering.hu[rendering.labels == KIDNEY].mean()
            - rendering.hu[rendering.labels == TUMOUR].mean()
        )
    assert gaps[0] > 45 and abs(gaps[1]) < 25


def test_broad_tissues_spread_over_the_measured_range_of_kidneys() -> None:
    rng = np.random.default_rng(2)
    kidneys = []
    for phase in ("early-arterial", "portal-venous"):
        for _ in range(300):
            hu = draw_broad_tissues(rng, phase, adult=True, look=Look())  # type: ignore[arg-type]
            kidneys.append(0.6 * hu["renal cortex"] + 0.4 * hu["renal medulla"])
    low, high = np.percentile(kidneys, [5, 95])
    assert 75 < low < 105 and 170 < high < 230


# --- the parts it is made of ---


def test_splines_reproduce_linear_functions_on_any_axial_grid() -> None:
    z, y, x = torch.meshgrid(*(torch.arange(12.0) * 3.0 - 15.0,) * 3, indexing="ij")
    field = Splines.through((2.0 * x - y + 0.5 * z)[None], (-15.0, -15.0, -15.0), 3.0)
    grid = Grid.from_spacing((5, 6, 7), (0.7, 1.3, 0.9), (0.4, 1.0, -0.3))
    index = torch.stack(torch.meshgrid(*map(torch.arange, (5, 6, 7)), indexing="ij"), dim=-1)
    mm = grid.mm(index.reshape(-1, 3).double()).reshape(5, 6, 7, 3)
    expected = 2.0 * mm[..., 0] - mm[..., 1] + 0.5 * mm[..., 2]
    assert torch.allclose(field.on(grid)[0].double(), expected, atol=1e-4)


def test_textures_have_unit_spread_and_their_correlation() -> None:
    texture = draw_texture(np.random.default_rng(0), (90.0,) * 3, (0.0,) * 3, 3.0)
    values = texture.on(Grid.from_spacing((60, 60, 60), (1.0,) * 3))[0]
    assert abs(float(values.mean())) < 0.1 and float(values.std()) == pytest.approx(1.0, abs=0.07)
    lag = float((values[6:] * values[:-6]).mean())  # two standard deviations of the kernel
    assert lag == pytest.approx(np.exp(-(6.0**2) / (4 * 3.0**2)), abs=0.12)


def test_shapes_are_distances() -> None:
    x = torch.linspace(-5, 5, 11)
    zero = torch.zeros_like(x)
    ball = ellipsoid((x, zero, zero), (0, 0, 0), (2, 2, 2))
    assert torch.allclose(ball, x.abs() - 2.0, atol=1e-3)
    pipe = tube((x, zero, zero), np.array([[0, 0, -9], [0, 0, 9.0]]), np.array([1.0, 3.0]))
    assert torch.allclose(pipe, x.abs() - 2.0, atol=1e-3)
    assert float(smooth_min(x, x, 1.0)[5]) == pytest.approx(-0.25)
    assert float(smooth_max(x, x, 1.0)[5]) == pytest.approx(0.25)


def a_canvas(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Canvas:
    """One whose reference anatomy is the scanner itself."""
    axis = torch.arange(-14.0, 15.0) * 4.0
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    field = Splines.through(torch.stack([x, y, z]), (-56.0,) * 3, 4.0)
    grid = Grid.from_spacing(shape, spacing)
    return Canvas(grid, field, Locator(field.coefficients), {}, lambda x, y, z: (x, x))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (2.0, 0.7, 1.1)])
def test_partial_volume_conserves_a_balls_volume(spacing: tuple[float, float, float]) -> None:
    shape = tuple(int(40 / s) for s in spacing)
    patch = a_canvas(shape, spacing).full()  # type: ignore[arg-type]
    cover = patch.cover(ellipsoid(patch.place, (0.3, -0.2, 0.4), (10, 10, 10)))
    volume = float(cover.sum()) * np.prod(spacing)
    assert volume == pytest.approx(4 / 3 * np.pi * 1000, rel=0.03)


def test_thin_vessels_stay_thin_in_thick_slices() -> None:
    patch = a_canvas((1, 40, 40), (8.0, 1.0, 1.0)).full()
    path, radii = np.array([[-30.0, 0, -20.0], [30, 0, 20.0]]), np.array([0.4, 0.4])
    f = tube(patch.place, path, radii)
    assert float(patch.cover(f, 0.8).max()) < 0.35 < float(patch.cover(f).max())


def test_patches_hold_their_structure_and_little_else() -> None:
    canvas = a_canvas((30, 60, 60), (1.0, 1.0, 1.0))
    patch = canvas.patch(((-6, -6, -6), (6, 6, 6)))
    assert patch is not None
    cover = patch.cover(ellipsoid(patch.place, (0, 0, 0), (6, 6, 6)))
    assert float(cover.sum()) == pytest.approx(4 / 3 * np.pi * 216, rel=0.03)
    assert patch.hu.numel() < 30**3
    patch.paint(cover, 100.0, 7)
    assert int((canvas.organs == 7).sum()) == int((cover >= 0.5).sum())
    assert canvas.patch(((400, 0, 0), (410, 5, 5))) is None
    assert canvas.where(torch.zeros(31, 60, 60, dtype=torch.bool)) is None


def test_push_leaves_far_tissue_and_the_spine_and_opens_room() -> None:
    anatomy, _ = ill()
    tumour, body = anatomy.tumours[0], anatomy.body
    centre = torch.tensor(tumour.centre_mm)
    far = (centre + torch.tensor([0.0, 0.0, 4.5 * tumour.radius_mm]))[:, None]
    assert torch.allclose(pushed(tumour, body, far), far, atol=0.5)
    spine = torch.tensor([[0.0], [body.spine_y_mm], [tumour.centre_mm[2]]])
    assert torch.allclose(pushed(tumour, body, spine), spine, atol=0.1)
    outward = torch.tensor([0.0, 0.0, 1.0])
    near = (centre + 1.6 * tumour.radius_mm * outward)[:, None]
    moved = torch.linalg.vector_norm(pushed(tumour, body, near) - near)
    assert float(moved) > 0.03 * tumour.radius_mm


def test_tissues_vary_between_patients_about_their_means() -> None:
    rng = np.random.default_rng(0)
    cortex = np.array([draw_tissues(rng, "early-arterial")["renal cortex"] for _ in range(400)])
    assert cortex.mean() == pytest.approx(TISSUES_HU["renal cortex"][0][1], rel=0.06)
    assert cortex.std() > 10


@pytest.mark.ci
@pytest.mark.parametrize("axis", [1, 2])
def test_a_scan_of_one_row_or_column_is_drawn_too(axis: int) -> None:
    anatomy, whole = ill()
    grid = around_kidneys(anatomy)
    start, shape = [0, 0, 0], list(grid.shape)
    start[axis], shape[axis] = grid.shape[axis] // 2, 1
    strip = render(
        anatomy, Pose(), grid.crop(start, shape), "early-arterial", np.random.default_rng(1)
    )
    same = strip.organs == whole.organs.take([start[axis]], axis)
    assert same.mean() > 0.95
    assert np.isfinite(strip.hu).all()
