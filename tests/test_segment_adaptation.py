"""The statistics of the batch norms, taken from each scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import cascades
from cascades import NETS, Oracle, config_with
from cohorts import TARGET, VOLUMES
from commands import call_cli
from ellipses import make_ellipse_patient
from kidseg import device
from kidseg.checkpoint import load_model
from kidseg.cohort.subject import Material, prepare
from kidseg.config import Plain3dConfig
from kidseg.device import choose_device
from kidseg.errors import ModelError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.methods.cascade.system_c import Cascade
from kidseg.methods.plain3d import Plain3d
from kidseg.nets.adaptive import AdaptiveNet
from kidseg.segment import load_predictor, segment
from kidseg.segment.adaptation import Adaptation, adapted_facts, checked_adapt, unadapted
from trained import with_header

CPU = choose_device("cpu", "fp32")


@pytest.fixture(scope="module")
def model(trained: Path) -> Path:
    return trained / "run" / "model.safetensors"


def probabilities(predictor: Any, scan: Volume) -> torch.Tensor:
    (region,) = predictor(scan).progress.found
    data = region.found.data
    assert isinstance(data, torch.Tensor)
    return data


def darker(scan: Volume) -> Volume:
    """A scan whose tissue is shifted by 40 HU; air stays."""
    hu = scan.data
    return Volume(torch.where(hu > -300, hu - 40, hu), scan.grid)


def test_each_scan_is_adapted_to_from_the_trained_statistics(model: Path) -> None:
    """In any order of scans; the result differs from that of the trained statistics."""
    scan, other = make_ellipse_patient(0).image, darker(make_ellipse_patient(5).image)
    fixed, adapting = load_predictor(model, "cpu"), load_predictor(model, "cpu", adapt="norm")
    assert fixed(scan).facts["adapted"] == {"by": "none", "slices": 0, "weight": 0.0}
    first = adapting(scan)
    assert first.facts["adapted"] == {"by": "norm", "slices": 8, "weight": round(8 / 12, 4)}
    found = probabilities(adapting, scan)
    probabilities(adapting, other)
    assert torch.equal(probabilities(adapting, scan), found)
    assert (found - probabilities(fixed, scan)).abs().max() > 0.01
    assert torch.equal(probabilities(load_predictor(model, "cpu", adapt="norm"), scan), found), (
        "the same in another process"
    )


def test_in_bfloat16_the_folded_network_is_adapted_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_supports_bf16", lambda kind: True)
    header = load_model(model).header
    config = {**header["config"], "precision": "bf16"}
    quick = with_header(model, tmp_path / "a.safetensors", config=config, adapt="norm")
    scan = darker(make_ellipse_patient(0).image)
    expected = load_predictor(model, "cpu", adapt="norm")(scan).labels.data
    found = load_predictor(quick, "cpu")(scan)
    assert found.facts["adapted"]["slices"] == 8
    assert (found.labels.data == expected).float().mean() > 0.99


def test_with_a_flip_the_statistics_are_those_of_both_sides(model: Path, tmp_path: Path) -> None:
    """So that a mirror image keeps the mirrored result."""
    config = {**load_model(model).header["config"], "test_time_flip": True}
    flipping = with_header(model, tmp_path / "a.safetensors", config=config, adapt="norm")
    scan = make_ellipse_patient(3).image
    mirrored = Volume(scan.data.flip(-1), scan.grid)
    predictor = load_predictor(flipping, "cpu")
    one, other = predictor(scan).labels.data, predictor(mirrored).labels.data
    assert (one > 0).any() and (one != other.flip(-1)).sum() <= 2


def test_the_model_file_decides_unless_it_is_asked_otherwise(model: Path, tmp_path: Path) -> None:
    told = with_header(model, tmp_path / "a.safetensors", adapt="norm", adapt_prior_slices=0)
    scan = make_ellipse_patient(0).image
    assert load_predictor(told, "cpu")(scan).facts["adapted"]["weight"] == 1.0
    assert load_predictor(told, "cpu", adapt="none")(scan).facts["adapted"]["by"] == "none"
    for number, changes in enumerate(
        [{"adapt": "all"}, {"adapt": 3}, {"adapt_prior_slices": -1}, {"adapt_prior_slices": "a"}]
    ):
        bad = with_header(model, tmp_path / f"bad{number}.safetensors", **changes)
        with pytest.raises(ModelError) as error:
            load_predictor(bad, "cpu")
        assert error.value.code == "damaged-model"
    with pytest.raises(ValueError, match="none, norm"):
        checked_adapt("layer")


def test_statistics_are_of_slices_that_show_the_body(model: Path) -> None:
    """At most 32, evenly spaced: of 100 slices, 80 of them with a body."""
    patient = make_ellipse_patient(0).image
    tall = patient.data[:, 4:5].repeat(1, 100, 1, 1)
    tall[:, :10], tall[:, 90:] = -1000, -1000
    scan = Volume(tall, Grid.from_spacing((100, 64, 64), (2.0, 4.0, 4.0)))
    predictor = load_predictor(model, "cpu", adapt="norm")
    method = predictor.method
    subject = prepare(
        scan, method.material(method.config, method.plan), method.plan.channels, name="a"
    )
    found = Adaptation.of(method, method.steps(subject), subject, 4.0)
    steps = [b - a for a, b in zip(found.slices, found.slices[1:], strict=False)]
    assert len(found.slices) == 32 and set(steps) <= {2, 3}
    assert found.slices[0] == 10 and found.slices[-1] == 89
    assert found.weight == pytest.approx(32 / 36)


def test_without_a_body_the_trained_statistics_are_used_and_it_is_said(model: Path) -> None:
    scan = make_ellipse_patient(0).image
    empty = Volume(torch.full_like(scan.data, -1000), scan.grid)
    adapting = load_predictor(model, "cpu", adapt="norm")
    adapting(scan)
    found = adapting(empty)
    assert found.facts["adapted"] == {"by": "norm", "slices": 0, "weight": 0.0}
    assert "nothing-to-adapt" in [finding.code for finding in found.findings]
    expected = probabilities(load_predictor(model, "cpu"), empty)
    assert torch.equal(probabilities(adapting, empty), expected), "nor those of the last scan"


def test_networks_that_no_step_adapts_stay_as_they_are_and_it_is_said() -> None:
    parts = {name: AdaptiveNet(Oracle(False), CPU, lambda net: net) for name in NETS}
    cascade = Cascade(config_with(), cascades.TARGET, VOLUMES, parts, CPU)
    subject = prepare(make_ellipse_patient(0).image, Material(), VOLUMES.channels, name="a")
    found = Adaptation.of(cascade, cascade.steps(subject), subject, 4.0)
    assert adapted_facts("norm", [found]) == {"by": "norm", "slices": 0, "weight": 0.0}
    (finding,) = unadapted("norm", [found], "a")
    assert finding.code == "nothing-to-adapt" and "no batch norms that can" in finding.cause


def test_instance_norms_are_not_adapted_and_it_is_said() -> None:
    method = Plain3d.build(Plain3dConfig(augment="none"), TARGET, VOLUMES, device=CPU)
    subject = prepare(make_ellipse_patient(0).image, Material(), VOLUMES.channels, name="a")
    found = Adaptation.of(method, method.steps(subject), subject, 4.0)
    assert found.slices == ()
    (finding,) = unadapted("norm", [found], "a")
    assert finding.code == "nothing-to-adapt" and "no batch norms" in finding.cause
    assert unadapted("none", [found], "a") == ()


def test_each_member_of_an_ensemble_that_is_not_adapted_is_said() -> None:
    fixed = Adaptation(networks=0, slices=(), weight=0.0)
    moved = Adaptation(networks=1, slices=(0, 1, 2, 3), weight=0.5)
    bare = Adaptation(networks=1, slices=(), weight=0.0)
    for members in ([fixed, moved], [moved, fixed]):
        assert adapted_facts("norm", members) == {"by": "norm", "slices": 4, "weight": 0.5}
    (finding,) = unadapted("norm", [fixed, moved, fixed], "a")
    assert finding.cause.startswith("member 0, 2 of the model was not adapted")
    assert unadapted("norm", [moved, moved], "a") == ()
    (nobody,) = unadapted("norm", [bare, bare], "a")
    assert (
        nobody.cause == "the model was not adapted to the scan: no slice of the scan shows a body"
    )


def test_a_decision_calibrated_without_adaptation_is_said(model: Path, tmp_path: Path) -> None:
    decided = with_header(model, tmp_path / "a.safetensors", decision={"tumour": 2.0})
    scan = make_ellipse_patient(0).image

    def told(**how: Any) -> list[str]:
        return [finding.code for finding in load_predictor(decided, "cpu", **how)(scan).findings]

    assert "other-adaptation" in told(adapt="norm") and "other-adaptation" not in told()


def test_on_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said on the terminal and in result.json; --resume does not mix both kinds of result."""
    scan = save(make_ellipse_patient(0).image, tmp_path / "s.nii.gz")
    words = ["segment", scan, "-m", model, "-o", tmp_path / "out", "--device", "cpu"]
    assert call_cli(*words, "--adapt", "norm") == 0
    assert "adapted to each of 1 scan(s), from 8 slice(s)" in capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "out" / "result.json").read_text())["scans"]
    assert entry["adapted"] == {"by": "norm", "slices": 8, "weight": 0.6667}
    again = {"device": "cpu", "resume": True}
    (kept,) = segment([scan], model, tmp_path / "out", adapt="norm", **again)
    assert kept == entry
    with pytest.raises(UsageError, match="--adapt norm") as error:
        segment([scan], model, tmp_path / "out", **again)
    assert error.value.code == "output-exists"
    predictor = load_predictor(model, "cpu")
    segment([scan], predictor, tmp_path / "fixed")
    (fixed,) = json.loads((tmp_path / "fixed" / "result.json").read_text())["scans"]
    assert fixed["adapted"]["by"] == "none"
