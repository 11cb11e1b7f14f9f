"""Is a scan one that the model is for? By hand, and through a trained model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ellipses import EllipsePatient, in_fine_pixels, make_ellipse_patient, write_ellipse_dataset
from kidseg.checkpoint import load_model
from kidseg.geometry import Volume
from kidseg.labels import LabelSchema
from kidseg.measure import measure_sides
from kidseg.measure.midline import midline_of
from kidseg.segment import Predictor, load_predictor
from kidseg.segment.plausibility import implausible
from kidseg.segment.suitability import judge
from kidseg.train import Setup, train
from trained import SETTINGS

OWN = {"no-contrast", "unusual-values", "outside-training-range"}
ENHANCED = {"n": 9, "min": 45.0, "max": 260.0, "mean": 180.0, "sd": 50.0}
SOFT = {"n": 9, "min": 40.0, "max": 80.0, "mean": 60.0, "sd": 10.0}


def codes(figures: dict[str, float], ranges: dict[str, Any] | None) -> list[str]:
    return [finding.code for finding in judge(figures, ranges, "scan").findings]


@pytest.mark.parametrize(
    ("renal_hu", "mean", "expected"),
    [
        (30.0, 180.0, ["no-contrast"]),
        (74.0, 180.0, ["no-contrast"]),  # though the darkest of the training was at 45
        (76.0, 180.0, []),
        (50.0, 55.0, []),  # a model for scans without contrast agent
        (50.0, 110.0, []),  # half of them
        (400.0, 180.0, ["outside-training-range"]),
    ],
)
def test_kidneys_without_contrast_by_hand(
    renal_hu: float, mean: float, expected: list[str]
) -> None:
    ranges = {"renal_hu": {**ENHANCED, "mean": mean}}
    assert codes({"renal_hu": renal_hu}, ranges) == expected


@pytest.mark.parametrize(
    ("bright_hu", "expected"),
    [(60.0, []), (5.0, []), (89.0, []), (91.0, ["unusual-values"]), (600.0, ["unusual-values"])],
)
def test_brightness_by_hand(bright_hu: float, expected: list[str]) -> None:
    """More than an SD above the range; below it is a window or much fat."""
    assert codes({"bright_hu": bright_hu}, {"bright_hu": SOFT}) == expected


def test_each_kind_is_said_once_with_its_numbers() -> None:
    figures = {"renal_hu": 20.0, "bright_hu": 300.0, "slice_mm": 30.0, "radius_long_mm": 500.0}
    length = {"n": 9, "min": 1.0, "max": 5.0, "mean": 3.0, "sd": 1.0}
    ranges = {
        "renal_hu": ENHANCED,
        "bright_hu": SOFT,
        "slice_mm": length,
        "radius_long_mm": length,
    }
    judged = judge(figures, ranges, "scan")
    assert [finding.code for finding in judged.findings] == [
        "no-contrast",
        "unusual-values",
        "outside-training-range",
    ]
    dark, bright, far = (finding.cause for finding in judged.findings)
    assert "20 HU" in dark and "bright_hu 300" in bright
    assert "slice_mm 30" in far and "radius_long_mm 500" in far and "_hu" not in far
    assert set(judged.facts["figures"]) == set(figures)


def test_nothing_is_known_without_a_range() -> None:
    judged = judge({"renal_hu": 20.0, "bright_hu": 900.0}, None, "scan")
    assert judged.findings == ()
    assert judged.facts == {"known": False, "far_sd": 1.0, "figures": {}}


# Through a trained model


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    root = tmp_path_factory.mktemp("suitability")
    write_ellipse_dataset(root / "data", 6)
    train(root / "data", root / "run", Setup(method="plain", overrides=SETTINGS), device="cpu")
    return load_predictor(root / "run", "cpu")


def told(predictor: Predictor, image: Volume) -> set[str]:
    return {finding.code for finding in predictor(image).findings}


def with_hu(patient: EllipsePatient, kidney: float) -> Volume:
    """Kidneys and tumour at another value."""
    data = patient.image.data.clone()
    data[patient.labels.data > 0] += round(kidney - 180)
    return Volume(data, patient.image.grid)


class Recalled(nn.Module):
    """Repeats what a network said of other images, whatever the values are now."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.said, self.recalls = net, [], False
        self.multiple = net.multiple

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        if self.recalls:
            return self.said.pop(0)
        self.said.append(self.net(image))
        return self.said[-1]


def of_the_same_places(predictor: Predictor, known: Volume, now: Volume) -> set[str]:
    """What is told of an image where the kidneys are found that are found in another one."""
    method = predictor.method
    net = Recalled(method.parts["segment"])
    of = type(method)(method.config, method.target, method.plan, {"segment": net}, method.device)
    both = replace(predictor, method=of)
    assert (both(known).labels.data > 0).any()
    net.recalls = True
    return told(both, now)


def test_the_model_file_knows_the_values_of_its_training(predictor: Predictor) -> None:
    """Kidneys at 180 with 12 HU of noise, averaged over blocks of 2 x 2; body at 30."""
    ranges = load_model(predictor.path).header["training_range"]
    assert 180 < ranges["renal_hu"]["min"] <= ranges["renal_hu"]["max"] < 205
    assert 80 < ranges["bright_hu"]["min"] <= ranges["bright_hu"]["max"] < 300


@pytest.mark.parametrize("seed", range(50, 56))
def test_ordinary_patients_are_not_warned_about(predictor: Predictor, seed: int) -> None:
    patient = make_ellipse_patient(seed, sizes=(0.8, 1.2))
    assert not told(predictor, patient.image) & {"no-contrast", "unusual-values"}


@pytest.mark.requirement("suitable scan")
def test_kidneys_without_contrast_are_told(predictor: Predictor) -> None:
    patient = make_ellipse_patient(3)
    bright = patient.image
    assert "no-contrast" in of_the_same_places(predictor, bright, with_hu(patient, 35))
    assert "no-contrast" not in of_the_same_places(predictor, bright, with_hu(patient, 120))


@pytest.mark.requirement("suitable scan")
def test_values_of_an_mr_are_told(predictor: Predictor) -> None:
    """Signal 400 to 800 in the body, and noise round it."""
    image = make_ellipse_patient(3).image
    inside = image.data > -500
    noise = torch.randint(0, 20, image.data.shape, generator=torch.Generator().manual_seed(1))
    signal = torch.where(inside, image.data + 400, noise.to(image.data.dtype))
    assert "unusual-values" in told(predictor, Volume(signal, image.grid))


@pytest.mark.requirement("suitable scan")
def test_nothing_in_view_is_told(predictor: Predictor) -> None:
    """Slices without kidneys; and air."""
    patient = make_ellipse_patient(3)
    image = patient.image
    thorax = image.slices(0, 1)
    assert not (patient.labels.data[:, :1] > 0).any()
    assert "nothing-found" in told(predictor, thorax)
    air = Volume(torch.full_like(image.data, -1000), image.grid)
    assert {"nothing-found", "no-body"} <= told(predictor, air)


@pytest.mark.requirement("suitable scan")
def test_a_crumb_of_kidney_is_told(predictor: Predictor) -> None:
    """Voxels of 0.16 ml; of a model without kidneys none are expected."""
    image = make_ellipse_patient(3).image
    found = predictor.find(image)

    def told(voxels: int, schema: LabelSchema) -> set[str]:
        data = torch.zeros(image.data.shape, dtype=torch.uint8)
        data[0, 4, 30, 20 : 20 + voxels] = 1
        labels = Volume(data, image.grid)
        middle = midline_of(image.grid, None, labels, schema)
        sides = measure_sides(labels, schema, middle, "scan")
        findings = implausible(labels, found.subject, found.progress, sides, "s", least_ml=1.0)
        return {finding.code for finding in findings}

    assert "little-found" in told(6, predictor.schema)
    assert "little-found" not in told(7, predictor.schema) | told(0, predictor.schema)
    assert "nothing-found" in told(0, predictor.schema)
    tumours = LabelSchema.from_names({1: "tumour"})
    assert "little-found" not in told(6, tumours)


@pytest.mark.requirement("partial")
@pytest.mark.parametrize(("slice_", "is_cut"), [(0, True), (3, False), (-1, True)])
def test_a_tumour_in_the_first_or_last_slice_is_partial_also_without_kidneys(
    predictor: Predictor, slice_: int, is_cut: bool
) -> None:
    """Of a model that has kidneys, `measure_sides` says it."""
    image = make_ellipse_patient(3).image
    found = predictor.find(image)
    data = torch.zeros(image.data.shape, dtype=torch.uint8)
    data[0, slice_, 30, 20:26] = 1
    labels = Volume(data, image.grid)
    findings = implausible(labels, found.subject, found.progress, None, "s", least_ml=1.0)
    assert ("cut-by-field" in {finding.code for finding in findings}) == is_cut


def test_finer_pixels_have_the_same_values(predictor: Predictor) -> None:
    """Labels on the scan's own pixels are compared on those of the network."""
    patient = make_ellipse_patient(4)
    fine = in_fine_pixels(patient, 3)
    coarse, found = predictor(patient.image), predictor(fine.image)
    for name in ("renal_hu", "bright_hu"):
        values = [one.facts["training_range"]["figures"][name]["value"] for one in (coarse, found)]
        assert values[0] == pytest.approx(values[1], abs=12)


def test_training_and_inference_measure_alike(predictor: Predictor) -> None:
    """A patient of the training lies in the range; its labels are nearly the reference."""
    result = predictor(make_ellipse_patient(0).image)
    figures = result.facts["training_range"]["figures"]
    assert figures["bright_hu"]["distance_sd"] == 0.0
    assert figures["renal_hu"]["distance_sd"] < 1.0
    assert not {finding.code for finding in result.findings} & OWN
