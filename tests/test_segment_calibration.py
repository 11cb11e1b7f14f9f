"""Weights of the decision: chosen by Dice on labelled scans, written into a model, applied."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ellipses import make_ellipse_patient, write_ellipse_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.cli import main
from kidseg.cli.derived import calibration_text
from kidseg.errors import InputError, KidsegWarning, ModelError, UsageError
from kidseg.header import FOREGROUND, decision_of, read_header
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.segment import load_predictor
from kidseg.segment.calibration import (
    BACKGROUND_WEIGHTS,
    SMOOTH_ML,
    TUMOUR_WEIGHTS,
    Choice,
    _choice,
    at_edge,
    calibrate,
    choose,
    grid_of,
)
from kidseg.segment.decision import output_names, weighted
from trained import copied, with_header


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copied(trained, tmp_path_factory.mktemp("calibration"))
    write_ellipse_dataset(root / "others", 2, seed=5)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return folder / "run" / "model.safetensors"


# Names and weights


def test_outputs_are_named_by_the_labels_they_write() -> None:
    target = Target.of_labels(KIDNEY_TUMOUR)
    assert output_names(target, KIDNEY_TUMOUR) == ("background", "kidney", "tumour")
    regions = Target(channels=((1, 2), (2,)), exclusive=False)
    assert output_names(regions, KIDNEY_TUMOUR) == ("kidney", "tumour")
    assert weighted(target, KIDNEY_TUMOUR, {"tumour": 2}).weights == (1.0, 1.0, 2.0)
    assert weighted(target, KIDNEY_TUMOUR, {}) == target
    twice = weighted(weighted(target, KIDNEY_TUMOUR, {"tumour": 2}), KIDNEY_TUMOUR, {})
    assert twice == target, "a decision replaces the last one"
    with pytest.raises(ValueError, match="no output"):
        weighted(regions, KIDNEY_TUMOUR, {"background": 0.5})


def test_a_model_with_an_impossible_decision_is_refused(model: Path, tmp_path: Path) -> None:
    for number, decision in enumerate(
        [{"liver": 1}, {"tumour": 0}, {"tumour": -1}, {"tumour": "much"}, [1], 3]
    ):
        bad = with_header(model, tmp_path / f"{number}.safetensors", decision=decision)
        with pytest.raises(ModelError) as error:
            load_predictor(bad, "cpu")
        assert error.value.code == "damaged-model"


def test_weights_that_an_earlier_version_chose_are_not_used(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were of each channel against the background; the warning names the file."""
    found, decision = {"cases": ["a"]}, {"tumour": 2.0}
    for record, used in ((found, {}), ({**found, "foreground": FOREGROUND}, decision)):
        file = tmp_path / f"{len(used)}.safetensors"
        with_header(model, file, decision=decision, calibration=record)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert load_predictor(file, "cpu").decision == used
            assert decision_of(read_header(file), file) == used, "also where it is fine-tuned"
            with pytest.raises(SystemExit) as ended:
                main(["info", str(file)])
            assert ended.value.code == 0
        assert ("weighted: tumour 2" in capsys.readouterr().out) == bool(used)
        said = [str(each.message) for each in caught if each.category is KidsegWarning]
        assert {str(file) in text and "Calibrate again" in text for text in said} == (
            set() if used else {True}
        )


def test_a_decision_is_that_of_the_weighted_probabilities(model: Path, tmp_path: Path) -> None:
    """By hand, on the grid of the network; without postprocessing."""
    decision = {"background": 0.2, "tumour": 3.0}
    config = load_model(model).header["config"]
    config = {**config, "postprocess": {**config["postprocess"], "min_volume_ml": 0.0}}
    plain = with_header(model, tmp_path / "a.safetensors", config=config)
    changed = with_header(model, tmp_path / "b.safetensors", config=config, decision=decision)
    scan = make_ellipse_patient(7).image
    first, second = (load_predictor(file, "cpu")(scan) for file in (plain, changed))
    assert first.facts["decision"] == {} and second.facts["decision"] == decision
    one, other = (result.progress.found[0].found for result in (first, second))
    assert one is not None and other is not None and torch.equal(one.data, other.data)
    assert (second.labels.data > 0).sum() > (first.labels.data > 0).sum() > 0
    background, kidney, tumour = one.data.double()
    found = torch.where(3 * tumour > kidney, 2, 1)
    by_hand = torch.where(kidney + tumour > 0.2 * background, found, 0)
    from kidseg.pipeline import decide

    target = second.progress.found[0].target
    assert target is not None and torch.equal(decide(one, target).data[0].long(), by_hand)


@pytest.mark.ci
def test_all_decisions_at_once_are_those_of_one_model_each(model: Path, tmp_path: Path) -> None:
    """The labels and what was removed from them, to the voxel."""
    predictor, scan = load_predictor(model, "cpu"), make_ellipse_patient(8).image
    found, grid = predictor.find(scan), grid_of(load_predictor(model, "cpu"))[::4]
    together = list(predictor.decide_by(found, scan.grid, grid))
    assert len({int((each.labels.data > 0).sum()) for each in together}) > 3
    for number, (decision, decided) in enumerate(zip(grid, together, strict=True)):
        alone = load_predictor(
            with_header(model, tmp_path / f"{number}.safetensors", decision=decision), "cpu"
        )
        result = alone(scan)
        assert torch.equal(decided.labels.data, result.labels.data)
        assert decided.removed_facts() == result.facts["removed"]


# The choice


def test_mean_dice_and_the_choice_by_hand() -> None:
    """Over the cases of each region first, then over the regions."""
    cases = [
        {"kidney": 0.9, "kidney+tumour": 0.7, "tumour": 0.6},
        {"kidney": 0.5, "kidney+tumour": 0.9, "tumour": 1.0},
    ]
    found = _choice({"background": 0.5}, cases, ("kidney+tumour", "tumour"))
    assert found.dice == pytest.approx({"kidney": 0.7, "kidney+tumour": 0.8, "tumour": 0.8})
    assert found.score == pytest.approx(0.8)
    assert found.cases == pytest.approx((0.65, 0.95))


def test_the_weights_nearest_to_1_of_those_as_good_as_the_best() -> None:
    def choice(weight: float, *cases: float) -> Choice:
        weights = {"background": weight, "tumour": 1.0}
        return Choice(weights=weights, score=sum(cases) / len(cases), dice={}, cases=cases)

    one, half, quarter = choice(1, 0.5, 0.6, 0.7), choice(0.5, 0.6, 0.7, 0.8), choice(0.25, 0.8)
    assert choose([quarter, choice(1, 0.7)]) == quarter, "of a single case: the best"
    assert choose([one, half]) == half, "each case gains the same: no error"
    by_chance = choice(0.5, 0.5, 0.6, 0.9)  # gains 0, 0, 0.2: mean 0.067, standard error 0.067
    assert choose([by_chance, one]) == one
    likely = choice(0.5, 0.5, 0.7, 0.9)  # gains 0, 0.1, 0.2: mean 0.1, standard error 0.058
    assert choose([one, likely]) == likely
    assert choose([choice(0.25, 0.8), choice(0.5, 0.8)]).weights["background"] == 0.5
    assert choose([choice(0.25, 0.8), choice(2, 0.8)]).weights["background"] == 2


def test_a_weight_at_the_end_of_those_tried_is_said() -> None:
    def told(background: float, tumour: float) -> str:
        weights = {"background": background, "tumour": tumour}
        choice = Choice(weights=weights, score=0.8, dice={}, cases=())
        found = at_edge(choice, Path("data"))
        assert {finding.code for finding in found} <= {"calibrated-at-edge"}
        return " ".join(finding.cause for finding in found)

    assert told(1.0, 1.0) == told(0.06, 1.4) == ""
    assert "tumour 5.6 (largest)" in told(1.0, 5.6) and "background" not in told(1.0, 5.6)
    assert "background 0.03 (smallest), tumour 0.5 (smallest)" in told(0.03, 0.5)
    alone = Choice(weights={"background": 1.0}, score=0.8, dice={}, cases=())
    assert at_edge(alone, Path("data")) == ()


def test_all_pairs_of_weights_are_tried(model: Path) -> None:
    predictor = load_predictor(model, "cpu")
    grid = grid_of(predictor)
    assert len(grid) == len(BACKGROUND_WEIGHTS) * len(TUMOUR_WEIGHTS)
    assert {"background": 1.0, "tumour": 1.0} in grid
    method = predictor.method
    merged = Target.merged(KIDNEY_TUMOUR)
    alone = type(method)(method.config, merged, method.plan, method.parts, method.device)
    assert grid_of(replace(predictor, method=alone)) == [
        {"background": weight} for weight in BACKGROUND_WEIGHTS
    ]


def test_a_calibrated_model_has_a_dice_of_the_curve(folder: Path, model: Path) -> None:
    """Measured again with the new file: what was said; the weights of the network are the same."""
    from kidseg.cohort.cohort import patient_dice

    out = folder / "calibrated.safetensors"
    found = calibrate(model, folder / "others", out, device="cpu")
    scores = [point["score"] for point in found["curve"]]
    assert max(scores) >= found["after"]["score"] >= found["before"]["score"]
    assert found["after"] in found["curve"]
    assert len(set(scores)) > 10 and found["regions"] == ["kidney+tumour", "tumour"]
    assert found["cases"] == ["ellipse_000", "ellipse_001"]
    assert "calibrated-on-training" not in [entry["code"] for entry in found["findings"]]
    new, old = load_model(out), load_model(model)
    assert new.header["decision"] == found["decision"]
    assert new.header["calibration"]["of"] == old.sha256
    assert new.header["calibration"]["after"] == found["after"]
    assert set(new.header) - set(old.header) == {"decision", "calibration"}
    for part, tensors in old.parts.items():
        for name, tensor in tensors.items():
            assert torch.equal(new.parts[part][name], tensor)
    predictor, dice = load_predictor(out, "cpu"), []
    for number in range(2):
        patient = make_ellipse_patient(5000 + number)
        labels = predictor(patient.image).labels
        dice.append(patient_dice(labels, patient.labels, KIDNEY_TUMOUR, smooth_ml=SMOOTH_ML))
    for region, value in found["after"]["dice"].items():
        mean = sum(case[region] or 0.0 for case in dice) / 2
        assert mean == pytest.approx(value, abs=1e-5)


def test_training_cases_are_named_and_refusals(folder: Path, model: Path, tmp_path: Path) -> None:
    training = load_model(model).header["plan"]["training"]
    out = tmp_path / "a.safetensors"
    found = calibrate(model, folder / "data", out, device="cpu", cases=training)
    assert "calibrated-on-training" in [entry["code"] for entry in found["findings"]]
    with pytest.raises(UsageError, match="already exists"):
        calibrate(model, folder / "others", out, device="cpu")
    missing = tmp_path / "b.safetensors"
    with pytest.raises(UsageError, match="no case x"):
        calibrate(model, folder / "others", missing, device="cpu", cases=["x"])
    labels = {"background": 0, "liver": 1, "spleen": 2}
    write_ellipse_dataset(tmp_path / "liver", 1, tells={"labels": labels})
    with pytest.raises(InputError) as error:
        calibrate(model, tmp_path / "liver", missing, device="cpu")
    assert error.value.code == "other-labels"
    assert not missing.exists()


def test_overlapping_regions_are_not_calibrated(folder: Path, model: Path, tmp_path: Path) -> None:
    """Each has a threshold of its own."""
    target = Target(channels=((1, 2), (2,)), exclusive=False)
    method = load_predictor(model, "cpu").method
    other = type(method).build(method.config, target, method.plan, device=method.device)
    parts = {part: net.state_dict() for part, net in other.parts.items()}
    header = load_model(model).header
    labels = {**header["labels"], "target": target.as_dict()}
    regions, out = tmp_path / "regions.safetensors", tmp_path / "out.safetensors"
    save_model(regions, parts, {**header, "labels": labels})
    with pytest.raises(UsageError) as error:
        calibrate(regions, folder / "others", out, device="cpu")
    assert error.value.code == "overlapping-regions" and not out.exists()


def test_known_weights_are_kept_unless_dice_is_higher_without(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    """Nothing else is tried."""

    def decided(weights: dict[str, float]) -> dict[str, Any]:
        known = with_header(model, tmp_path / f"{weights}", decision=weights)
        out = tmp_path / f"{weights}.safetensors"
        found = calibrate(model, folder / "others", out, device="cpu", weights_of=known)
        assert load_model(out).header["decision"] == found["decision"]
        assert found["after"]["score"] == max(point["score"] for point in found["curve"])
        assert len(found["curve"]) == 2 and found["before"] == found["curve"][1]
        return found

    best = calibrate(model, folder / "others", tmp_path / "best", device="cpu")
    assert best["decision"] and best["gain"]["mean"] > 0
    assert decided(best["decision"])["decision"] == best["decision"]
    harmful = decided({"background": 1000.0})
    assert harmful["decision"] == {} and harmful["curve"][0]["score"] < harmful["before"]["score"]
    unmoved = with_header(
        model, tmp_path / "ones", decision={}, calibration={"foreground": FOREGROUND}
    )
    again = tmp_path / "again.safetensors"
    kept = calibrate(model, folder / "others", again, device="cpu", weights_of=unmoved)
    assert kept["decision"] == {} and kept["after"] == kept["before"], "calibrated, all stay 1"


def test_weights_of_a_model_that_has_none_or_others_are_refused(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    other = with_header(model, tmp_path / "other.safetensors", decision={"liver": 2.0})
    out = tmp_path / "out.safetensors"
    for known, code in ((model, "no-weights"), (other, "other-outputs")):
        with pytest.raises(UsageError) as error:
            calibrate(model, folder / "others", out, device="cpu", weights_of=known)
        assert error.value.code == code and error.value.next_step and not out.exists()


def test_on_the_command_line(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.safetensors"
    words = ["calibrate", model, folder / "others", "-o", out, "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert not end.value.code
    text = capsys.readouterr().out
    assert "Decision:" in text and str(out) in text
    # One table, in which one row of weights is marked.
    assert text.count("background weight") == 1
    assert sum(line.endswith("*") for line in text.splitlines()) == 1
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--json", "--overwrite", "--case", "ellipse_001"])
    assert not end.value.code
    printed = json.loads(capsys.readouterr().out)
    assert printed["cases"] == ["ellipse_001"]
    assert printed["model"]["sha256"] == load_model(out).sha256


@pytest.mark.parametrize(
    ("tried", "reason"),
    [
        ((1.0,), "the known ones are no better"),
        ((1.0, 2.0), "the known ones are no better"),
        ((0.5, 1.0, 2.0), "more than the standard"),
    ],
)
def test_a_decision_that_changes_nothing_says_why(tried: tuple[float, ...], reason: str) -> None:
    """Weights with a higher score may stand in the table: their gain is chance."""
    curve = [
        {"weights": {"background": w, "tumour": 1.0}, "score": 0.9 + w / 100, "dice": {"tumour": 1}}
        for w in tried
    ]
    ones = curve[tried.index(1.0)]
    record: dict[str, Any] = {
        "decision": {},
        "regions": ["tumour"],
        "cases": ["a", "b"],
        "before": ones,
        "after": ones,
        "gain": {"mean": 0.0, "sd": 0.0, "n": 2},
        "curve": curve,
        "findings": [],
    }
    text = " ".join(calibration_text(record, Path("m.safetensors")).split())
    assert reason in text
    assert sum("*" in row for row in text.split("0.9")[1:]) == 1
