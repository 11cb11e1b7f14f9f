"""Doubt by hand: entropy, volumes in doubt, intervals, slices to review; and as commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import call_cli
from ellipses import make_ellipse_patient, write_ellipse_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.errors import ModelError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read, save
from kidseg.io.orientation import reorient
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema, Target
from kidseg.members import ensemble
from kidseg.pipeline import opinions_of, restore
from kidseg.segment import load_predictor, segment
from kidseg.segment.calibration import calibrate
from kidseg.segment.interval_calibration import (
    TEMPERATURES,
    Likelihood,
    Seen,
    Volumes,
    calibrate_intervals,
    chosen,
)
from kidseg.segment.intervals import (
    FLOOR_ML,
    LEAST_CASES,
    Calibrated,
    conformal_ends,
    doubt_interval,
    scale_ml,
    scaled_interval,
    unused_calibration,
)
from kidseg.segment.review import (
    ENTROPY_STEP,
    Observer,
    Review,
    Structure,
    entropy,
    in_order_of,
    region_probabilities,
    structures_of,
    tempered,
)
from probabilities import region
from trained import copied

TWO = Target.of_labels(KIDNEY_TUMOUR)
REGIONS = Target(channels=((1, 2), (2,)), exclusive=False, writes=(1, 2))
SCAN = Grid.from_spacing((4, 6, 5), (5.0, 2.0, 1.0), (0.0, 0.0, 40.0))
VOXEL_ML = 0.01
ANY = ReadOptions(values="any")


def of(*probabilities: float, grid: Grid = SCAN) -> Volume:
    """The same probabilities everywhere."""
    return Volume(torch.tensor(probabilities)[:, None, None, None].expand(-1, *grid.shape), grid)


def reviewed(*found: Volume, target: Target = TWO, schema: LabelSchema = KIDNEY_TUMOUR) -> Review:
    regions = [region(each) for each in found]
    scan = found[0].grid
    observer = Observer(scan, target, schema)
    labels = restore(regions, scan, target, observer)
    return Review.of(observer.doubt, regions, labels, target, schema)


# Entropy


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ((1.0, 0.0, 0.0), 0.0),
        ((0.0, 1.0, 0.0), 0.0),
        ((1 / 3, 1 / 3, 1 / 3), 1.0),
        ((0.5, 0.5, 0.0), math.log(2) / math.log(3)),
        ((0.7, 0.2, 0.1), 0.8018185525433372 / math.log(3)),
    ],
)
def test_entropy_by_hand(probabilities: tuple[float, ...], expected: float) -> None:
    assert float(entropy(torch.tensor(probabilities), TWO)) == pytest.approx(expected, abs=1e-6)


def test_entropy_of_regions_that_overlap_is_the_mean_of_each() -> None:
    for probabilities, expected in (((0.5, 0.5), 1.0), ((1.0, 0.5), 0.5), ((1.0, 0.0), 0.0)):
        found = entropy(torch.tensor(probabilities), REGIONS)
        assert float(found) == pytest.approx(expected, abs=1e-6)


def test_two_opinions_by_hand() -> None:
    """0.9 and 0.5 kidney: 0.7 on the mean, entropy of (0.3, 0.7, 0); 0.3 of each voxel in doubt."""
    review = reviewed(of(0.1, 0.9, 0.0), of(0.5, 0.5, 0.0))
    doubt = review.doubt
    expected = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7)) / math.log(3)
    assert doubt.entropy.data.unique().tolist() == [round(expected / ENTROPY_STEP)]
    area_cm2 = 30 * 2.0 / 100
    assert doubt.entropy_cm2.tolist() == pytest.approx([expected * area_cm2] * 4, rel=1e-5)
    assert doubt.doubtful_ml["kidney"].tolist() == pytest.approx([0.3 * 30 * VOXEL_ML] * 4)
    assert float(doubt.doubtful_ml["tumour"].sum()) == pytest.approx(0.0, abs=1e-6)
    # All 120 voxels by the first opinion, none by the second (a tie), all by their mean.
    assert review.opinions_ml("kidney") == pytest.approx([0.0, 1.2])
    facts = review.facts(None)
    kidney = facts["structures"]["kidney"]
    assert kidney["volume_ml"] == pytest.approx(1.2)
    # 1 ml, 0.36 ml in doubt, and half of the difference between the opinions.
    assert kidney["interval_ml"] == pytest.approx([0.0, 1.2 + 1 + 0.36 + 0.6], abs=1e-3)
    assert (facts["opinions"], facts["level"], facts["interval"]) == (2, 0.9, "doubt")
    empty = facts["structures"]["tumour"]
    assert (empty["volume_ml"], empty["interval_ml"]) == (0.0, pytest.approx([0.0, 1.0]))


def test_certain_and_equal_opinions_leave_no_doubt() -> None:
    sure = of(0.0, 1.0, 0.0)
    review = reviewed(sure, sure)
    assert not review.doubt.entropy.data.any() and review.doubt.slices() == []
    facts = review.facts(None)
    assert facts["opinions"] == 1 and facts["interval"] is None and facts["slices"] == []
    assert facts["structures"]["kidney"]["doubtful_ml"] == 0
    assert all(each["interval_ml"] is None for each in facts["structures"].values())
    assert review.scale_ml("kidney") == FLOOR_ML


def random_opinions(seed: int, count: int) -> list[Volume]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Volume((torch.randn(3, *SCAN.shape, generator=generator) * 2).softmax(0), SCAN)
        for _ in range(count)
    ]


def structures(review: Review) -> Any:
    return review.facts(None)["structures"]


def test_the_order_of_opinions_and_their_repetition_change_nothing() -> None:
    one, two, three = random_opinions(1, 3)
    known = reviewed(one, two, three)
    turned = reviewed(three, one, two)
    assert torch.allclose(known.doubt.entropy_cm2, turned.doubt.entropy_cm2)
    assert known.rows == turned.rows
    assert structures(known) == structures(turned)
    assert len(known.rows) == 3
    once, twice = reviewed(one), reviewed(one, one)
    assert once.facts(None) == twice.facts(None)
    assert torch.equal(once.doubt.entropy.data, twice.doubt.entropy.data)
    assert structures(reviewed(one, two, one, two)) == structures(reviewed(one, two))


def test_one_opinion_gives_entropy_but_no_interval() -> None:
    facts = reviewed(*random_opinions(2, 1)).facts(None)
    assert (facts["opinions"], facts["interval"]) == (1, None)
    assert all(each["interval_ml"] is None for each in facts["structures"].values())
    assert len(facts["slices"]) == 4 and facts["slices"][0]["entropy"] > 0


# Structures


def test_channels_of_structures() -> None:
    names = LabelSchema.from_names({1: "kidney", 2: "tumour"})
    assert structures_of(TWO, names) == {
        "kidney": Structure(inside=(0,)),
        "kidney+tumour": Structure(inside=(0, 1)),
        "tumour": Structure(inside=(1,)),
    }
    merged = Target.merged(names)
    assert structures_of(merged, names) == {"kidney+tumour": Structure(inside=(0,))}
    apart = structures_of(REGIONS, names)
    assert apart["kidney"] == Structure(inside=(0,), outside=(1,))
    assert apart["kidney+tumour"] == Structure(inside=(0, 1))
    found = torch.tensor([0.9, 0.3])
    for name, expected in (("kidney", 0.6), ("kidney+tumour", 0.9), ("tumour", 0.3)):
        assert float(region_probabilities(found, apart[name], REGIONS)) == pytest.approx(expected)
    three = torch.tensor([0.2, 0.5, 0.3])
    whole = structures_of(TWO, names)["kidney+tumour"]
    assert float(region_probabilities(three, whole, TWO)) == pytest.approx(0.8)


def test_regions_that_overlap_are_reviewed_as_written() -> None:
    review = reviewed(of(0.9, 0.4), of(0.9, 0.8), target=REGIONS)
    assert review.volumes_ml == {"kidney": 0.0, "kidney+tumour": 1.2, "tumour": 1.2}
    assert sorted(review.opinions_ml("tumour")) == pytest.approx([0.0, 1.2])
    assert sorted(review.opinions_ml("kidney")) == pytest.approx([0.0, 1.2])
    assert review.opinions_ml("kidney+tumour") == pytest.approx([1.2, 1.2])


# Slices


def test_slices_with_the_most_entropy_come_first() -> None:
    grid = Grid.from_spacing((60, 4, 4), (5.0, 2.0, 1.0), (0.0, 0.0, 100.0))
    data = torch.zeros(3, *grid.shape)
    data[0] = 1.0
    for k, count, channel in ((7, 1, 1), (30, 3, 2), (31, 2, 1)):
        data[0, k, 0, :count] = data[channel, k, 0, :count] = 0.5
    slices = reviewed(Volume(data, grid)).facts(None)["slices"]
    assert [each["slice"] for each in slices] == [30, 31, 7], "and none without entropy"
    assert [each["structures"] for each in slices] == [
        ["kidney+tumour", "tumour"],
        ["kidney", "kidney+tumour"],
        ["kidney", "kidney+tumour"],
    ]
    first = slices[0]
    assert first["entropy"] == pytest.approx(3 * 0.02 * math.log(2) / math.log(3), abs=1e-4)
    assert first["position_mm"] == pytest.approx(float(grid.mm([30.0, 0.0, 0.0])[2]))
    data[:2, :, 2] = 0.5
    assert len(reviewed(Volume(data, grid)).doubt.slices()) == 6, "a tenth"


@pytest.mark.parametrize(
    ("order", "axis", "numbers"),
    [((1, 1, 1), "k", [3, 0]), ((-1, 1, 1), "k", [0, 3]), ((1, -1, -1), "k", [3, 0])],
)
def test_slices_are_numbered_as_in_the_file(
    order: tuple[int, int, int], axis: str, numbers: list[int]
) -> None:
    flips = torch.diag(torch.tensor([*order, 1], dtype=torch.float64))
    native = reorient(
        Volume(torch.zeros(1, *SCAN.shape), SCAN), Grid((1, 1, 1), SCAN.mm_from_index @ flips)
    ).grid
    facts = {"slices": [{"slice": 3}, {"slice": 0}], "opinions": 1}
    found = in_order_of(native, SCAN, facts)
    assert found["slice_axis"] == axis and found["opinions"] == 1
    assert [each["slice"] for each in found["slices"]] == numbers


def test_the_axis_of_slices_may_be_any_of_the_file() -> None:
    matrix = SCAN.mm_from_index[:, [1, 2, 0, 3]]
    coronal = reorient(Volume(torch.zeros(1, *SCAN.shape), SCAN), Grid((1, 1, 1), matrix)).grid
    found = in_order_of(coronal, SCAN, {"slices": [{"slice": 2}]})
    assert found == {"slices": [{"slice": 2}], "slice_axis": "i"}


# Intervals


def test_ends_are_percentiles_with_room_for_the_next_score() -> None:
    scores = [float(k) for k in range(39)]
    assert conformal_ends(scores) == (1.0, 37.0)  # rank 38 of 39 on either side
    assert conformal_ends(scores[:LEAST_CASES]) == (0.0, 18.0)
    assert conformal_ends(scores[::-1]) == (1.0, 37.0)
    with pytest.raises(ValueError, match="18 scores are too few"):
        conformal_ends(scores[: LEAST_CASES - 1])
    assert conformal_ends([1.0, 2.0, 3.0], level=0.5) == (1.0, 3.0)


def test_new_scores_lie_between_the_ends_as_often_as_promised() -> None:
    """Of exchangeable scores, exactly (2 rank - n - 1) / (n + 1): 0.9 for 39."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        scores = rng.standard_cauchy(40) * 3 + 1
        low, high = conformal_ends(scores[1:].tolist())
        held += low <= scores[0] <= high
    assert 0.88 < held / 2000 < 0.92


@settings(max_examples=200)
@given(
    volume=st.floats(0, 3000),
    opinions=st.lists(st.floats(0, 3000), min_size=0, max_size=6),
    doubtful=st.floats(0, 1000),
    ends=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
)
def test_an_interval_contains_the_volume(
    volume: float, opinions: list[float], doubtful: float, ends: tuple[float, float]
) -> None:
    scale = scale_ml(doubtful, opinions)
    assert scale >= FLOOR_ML + doubtful
    low, high = scaled_interval(volume, scale, (min(ends), max(ends)))
    assert 0 <= low <= volume <= high
    found = doubt_interval(volume, scale)
    assert 0 <= found[0] <= volume <= found[1]
    assert scaled_interval(0.0, scale, (-1.0, 2.0)) == (0.0, 2 * scale), "what is not there"


def test_the_scale_by_hand() -> None:
    """1 ml, what is in doubt, and the standard deviation of 10 and 14 ml."""
    assert scale_ml(3.0, [10.0, 14.0]) == FLOOR_ML + 3.0 + 2.0
    assert scale_ml(3.0, [10.0]) == scale_ml(3.0, []) == FLOOR_ML + 3.0
    assert doubt_interval(100.0, 6.0) == (94.0, 106.0) and doubt_interval(0.0, 6.0) == (0.0, 6.0)


# Temperature


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31 - 1), temperature=st.sampled_from(TEMPERATURES))
def test_a_temperature_keeps_the_order_of_probabilities(seed: int, temperature: float) -> None:
    found = (torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)) * 2).softmax(0)
    changed = tempered(found, TWO, temperature)
    assert torch.allclose(changed.sum(0), torch.ones(7), atol=1e-5)
    assert torch.equal(changed.argmax(0), found.argmax(0))
    surer = entropy(changed, TWO) <= entropy(found, TWO) + 1e-5
    assert surer.all() if temperature <= 1 else (entropy(changed, TWO) >= entropy(found, TWO)).all()
    apart = tempered(found, REGIONS, temperature)
    assert torch.equal(apart > 0.5, found > 0.5)


def test_temperatures_by_hand() -> None:
    found = torch.tensor([0.2, 0.8, 0.0])
    assert tempered(found, TWO, 0.5).tolist() == pytest.approx(
        [0.04 / 0.68, 0.64 / 0.68, 0.0], abs=1e-6
    )
    odds = tempered(torch.tensor([0.8]), REGIONS, 2.0)
    assert float(odds) == pytest.approx(2 / 3)
    assert torch.equal(tempered(found, TWO, 1.0), found)


@pytest.mark.parametrize(
    ("target", "probabilities", "log_loss"),
    [
        # Half of the voxels is kidney, half background.
        (TWO, (0.2, 0.7, 0.1), -(math.log(0.2) + math.log(0.7)) / 2),
        (REGIONS, (0.7, 0.1), -(math.log(0.7) + math.log(0.3) + 2 * math.log(0.9)) / 2),
    ],
)
def test_likelihood_by_hand(
    target: Target, probabilities: tuple[float, ...], log_loss: float
) -> None:
    labels = torch.zeros(1, *SCAN.shape, dtype=torch.uint8)
    labels[:, :2] = 1
    ignore = torch.zeros_like(labels)
    ignore[:, 0] = ignore[:, 3] = 1
    for ignored in (None, Volume(ignore, SCAN)):
        likelihood = Likelihood(target, Volume(labels, SCAN), ignored)
        assert set(likelihood.log_loss.values()) == {0.0}
        restore([region(of(*probabilities))], SCAN, target, likelihood)
        assert likelihood.log_loss[1.0] == pytest.approx(log_loss, rel=1e-5)


def test_the_likeliest_temperature_is_chosen_and_its_scores() -> None:
    def seen(k: int) -> Seen:
        volumes = {
            each: {"kidney": Volumes(true_ml=100.0 + k, found_ml=100.0, scale_ml=10 * each)}
            for each in TEMPERATURES
        }
        return Seen(volumes=volumes, log_loss={each: (each - 0.7) ** 2 for each in TEMPERATURES})

    found = chosen([seen(k) for k in range(39)])
    assert found["temperature"] == 0.7
    assert found["ends"] == {"kidney": pytest.approx([1 / 7, 37 / 7], abs=1e-6)}
    assert found["curve"]["0.7"] == 0 and found["level"] == 0.9


# From the command line, on patients of ellipses


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the same with flips, and one with another network."""
    root = copied(trained, tmp_path_factory.mktemp("review"))
    (root / "run").rename(root / "one")
    known = load_model(root / "one" / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    parts = {
        part: {
            name: each * (1 + 0.1 * torch.randn(each.shape, generator=generator))
            if name.endswith("weight")
            else each
            for name, each in state.items()
        }
        for part, state in known.parts.items()
    }
    (root / "two").mkdir()
    save_model(root / "two" / "model.safetensors", parts, known.header)
    ensemble([root / "one"], root / "flipped.safetensors", flip=True)
    save(make_ellipse_patient(9).image, root / "anna.nii.gz")
    return root


def entry_of(out: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((out / "result.json").read_text())["scans"][0]
    return entry


def test_a_mirrored_scan_gets_intervals_slices_and_a_map(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = folder / "flipped.safetensors", tmp_path / "out"
    assert call_cli("segment", folder / "anna.nii.gz", "-m", model, "-o", out,
                "--formats", "nii,entropy") == 0  # fmt: skip
    text = " ".join(capsys.readouterr().out.split())
    entry = entry_of(out)
    review = entry["review"]
    assert review["opinions"] == 2 and review["interval"] == "doubt"
    for name, found in review["structures"].items():
        low, high = found["interval_ml"]
        assert low <= found["volume_ml"] == entry["volumes_ml"][name] <= high
    places = [f"{each['slice'] + 1} ({each['position_mm']:.1f} mm)" for each in review["slices"]]
    assert len(places) == 5 and review["slice_axis"] == "k"
    assert "To review: anna: 90% interval in ml of 2 opinions, not calibrated: kidney" in text
    assert f"slices along k, counted from 1: {', '.join(places)}" in text
    written = read(out / "anna_entropy.nii.gz", ANY).volume
    labels = read(out / "anna_seg.nii.gz", ANY).volume
    assert written.grid.same_as(labels.grid)
    entropies = written.data.double()
    assert 0 < entropies.max() <= 1 and not entropies[0, :, 0].any()
    area_cm2 = float(written.grid.spacing_mm[1] * written.grid.spacing_mm[2]) / 100
    for each in review["slices"]:
        found = float(entropies[0, each["slice"]].sum()) * area_cm2
        assert found == pytest.approx(each["entropy"], rel=0.02)
    # As the predictor says, and with the labels that nobody watched.
    predictor = load_predictor(model, "cpu")
    scan = read(folder / "anna.nii.gz").volume
    found = predictor.find(scan)
    target = predictor.target_of(found)
    assert torch.equal(restore(found.regions, scan.grid, target).data,
                       restore(found.regions, scan.grid, target, lambda *_: None).data)  # fmt: skip
    assert len(opinions_of(found.regions, target)) == 2


def test_one_opinion_is_said_to_be_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = folder / "anna.nii.gz", tmp_path / "out"
    assert call_cli("segment", scan, "-m", folder / "one", "-o", out) == 0
    assert "no interval of the volumes from 1 opinion; slices" in " ".join(
        capsys.readouterr().out.split()
    )
    alone = entry_of(out)
    assert alone["review"]["interval"] is None and not list(out.glob("*entropy*"))
    # A model that is asked twice is one opinion, and gives the same labels.
    twice = tmp_path / "twice"
    assert call_cli("segment", scan, "-m", folder / "one", "-m", folder / "one", "-o", twice) == 0
    again = entry_of(twice)
    assert again["review"] == alone["review"] and again["volumes_ml"] == alone["volumes_ml"]
    assert again["ensemble"]["members"] == ["plain", "plain"]
    assert len(again["model"]["paths"]) == 2
    assert again["model"]["sha256"] != alone["model"]["sha256"]


def test_several_models_are_an_ensemble_without_a_file(folder: Path, tmp_path: Path) -> None:
    scan, models = folder / "anna.nii.gz", [folder / "one", folder / "two"]
    ensemble(models, tmp_path / "both.safetensors")
    (expected,) = segment([scan], tmp_path / "both.safetensors", tmp_path / "a", device="cpu")
    (found,) = segment([scan], models, tmp_path / "b", device="cpu")
    assert found["review"] == expected["review"] and found["review"]["opinions"] == 2
    labels = [read(tmp_path / out / "anna_seg.nii.gz", ANY).volume.data for out in "ab"]
    assert torch.equal(*labels)
    (done,) = segment([scan], models, tmp_path / "b", device="cpu", resume=True)
    assert done["sha256"] == found["sha256"]
    with pytest.raises(UsageError) as error:
        segment([scan], models[::-1], tmp_path / "b", device="cpu", resume=True)
    assert error.value.code == "output-exists", "another ensemble"


@pytest.fixture(scope="module")
def calibrated(folder: Path) -> tuple[Path, dict[str, Any]]:
    write_ellipse_dataset(folder / "others", LEAST_CASES, seed=50)
    out = folder / "calibrated.safetensors"
    model = folder / "flipped.safetensors"
    made = calibrate_intervals(model, folder / "others", out, device="cpu", scans="ellipses")
    return out, made


def test_calibrated_intervals_hold_and_are_used(
    folder: Path,
    calibrated: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, made = calibrated
    assert made["cases"] == [f"ellipse_{k:03d}" for k in range(LEAST_CASES)]
    for name, (low, high) in made["ends"].items():
        scores = [Volumes(**each).score for each in made["volumes"][name]]
        assert (low, high) == pytest.approx((min(scores), max(scores)), abs=1e-3)
    assert call_cli("segment", folder / "anna.nii.gz", "-m", model, "-o", tmp_path / "out") == 0
    worth = "90% interval in ml, calibrated on ellipses, too narrow for others: kidney"
    assert worth in " ".join(capsys.readouterr().out.split())
    review = entry_of(tmp_path / "out")["review"]
    assert review["interval"] == "conformal" and review["calibrated_on"] == LEAST_CASES
    assert review["calibrated_scans"] == "ellipses"
    assert review["level"] == 0.9
    for found in review["structures"].values():
        low, high = found["interval_ml"]
        assert 0 <= low <= found["volume_ml"] <= high
    plain = load_predictor(folder / "flipped.safetensors", "cpu")
    scan = read(folder / "anna.nii.gz").volume
    predictor = load_predictor(model, "cpu")
    assert torch.equal(predictor(scan).labels.data, plain(scan).labels.data)
    known = predictor.calibrated_intervals
    assert known is not None and known.temperature == made["temperature"]
    other = replace(predictor, adapt="norm")
    assert other.calibrated_intervals is None, "adapted scans have other probabilities"
    (warned,) = unused_calibration(other.intervals, other.decided_for, other.adapt, "scan")
    assert warned.code == "other-adaptation" and "decision" not in warned.cause
    assert not unused_calibration(known, "none", "none", "scan")
    (both,) = unused_calibration(known, "none", "norm", "scan")
    assert "intervals and decision were calibrated with --adapt none" in both.cause
    assert call_cli("info", model) == 0
    assert "by 19 ellipses" in " ".join(capsys.readouterr().out.split())


def test_a_calibration_stays_with_its_probabilities(
    folder: Path, calibrated: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model, _ = calibrated

    def kept(name: str, make: Callable[[Path], Any]) -> bool:
        make(tmp_path / name)
        return "intervals" in load_model(tmp_path / name).header

    assert kept("copy.safetensors", lambda out: ensemble([model], out))
    assert not kept("plain.safetensors", lambda out: ensemble([model], out, flip=False))
    assert not kept("two.safetensors", lambda out: ensemble([model, folder / "two"], out))
    assert not kept("lone.safetensors", lambda out: ensemble([model], out, lone_tumour_ml=50.0))
    made = ensemble([model], tmp_path / "said.safetensors", flip=False)
    assert made["left_out"] == ["intervals"]
    cases = ["ellipse_000", "ellipse_001"]
    assert not kept(
        "decided.safetensors",
        lambda out: calibrate(model, folder / "others", out, device="cpu", cases=cases),
    )


@pytest.mark.parametrize(
    "damage",
    [{"ends": {"kidney": [2.0, 1.0]}}, {"ends": {"kidney": [None, 1.0]}}, {"ends": 3},
     {"level": 1.5}, {"temperature": 0.0}, {"temperature": "warm"}, {"cases": 3}],
    ids=str,
)  # fmt: skip
def test_a_damaged_calibration_is_refused(
    calibrated: tuple[Path, dict[str, Any]], tmp_path: Path, damage: dict[str, Any]
) -> None:
    known = load_model(calibrated[0])
    entry = {**known.header["intervals"], **damage}
    save_model(tmp_path / "bad.safetensors", known.parts, {**known.header, "intervals": entry})
    with pytest.raises(ModelError) as error:
        load_predictor(tmp_path / "bad.safetensors", "cpu")
    assert error.value.code == "damaged-model"


def test_too_few_cases_are_refused_before_any_is_segmented(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert call_cli("calibrate", folder / "one", folder / "data", "-o", out, "--intervals") == 2
    assert "at least 19 can" in " ".join(capsys.readouterr().err.split()) and not out.exists()
    words = ("calibrate", folder / "one", folder / "data", "-o", out, "--json")
    for option, code in ((["--intervals"], "too-few-cases"), (["--scans", "x"], "scans-unused")):
        assert call_cli(*words, *option) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == code


def test_calibrated_says_what_the_header_says() -> None:
    header = {"intervals": {"level": 0.9, "ends": {"kidney": [-1.0, 2.0]}, "temperature": 0.7,
                            "cases": ["a"], "adapt": "none"}}  # fmt: skip
    known = Calibrated.from_header(header)
    assert known is not None and known.ends == {"kidney": (-1.0, 2.0)} and known.cases == 1
    assert Calibrated.from_header({}) is None
    facts = reviewed(of(0.4, 0.6, 0.0)).facts(known)
    scale = FLOOR_ML + 0.4 * 1.2
    assert facts["structures"]["kidney"]["interval_ml"] == pytest.approx(
        [max(0.0, 1.2 - scale), 1.2 + 2 * scale], abs=1e-3
    )
    assert facts["interval"] == "conformal" and facts["opinions"] == 1
    assert facts["structures"]["tumour"]["interval_ml"] is None, "not calibrated"
