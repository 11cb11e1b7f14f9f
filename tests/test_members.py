"""Ensembles in one file: written, sealed, averaged, taken apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import call_cli
from ellipses import make_ellipse_patient
from kidseg.checkpoint import load_model, save_model
from kidseg.cohort.subject import prepare
from kidseg.errors import KidsegWarning, ModelError, UsageError
from kidseg.geometry import resample
from kidseg.io import save
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.members import ensemble, members_of
from kidseg.metrics import dice
from kidseg.registry import BY_KIDNEY
from kidseg.segment import load_predictor, segment
from kidseg.train import Setup, train
from kidseg.train.setup import resolve
from test_segment import SETTINGS as POSED
from trained import SETTINGS, copied, with_header


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slice-wise models of other seeds, and one that homogenizes."""
    root = copied(trained, tmp_path_factory.mktemp("members"))
    (root / "run").rename(root / "plain0")
    other = Setup(method="plain", overrides=(*SETTINGS, "segment.epochs=2"), seed=1)
    train(root / "data", root / "plain1", other, device="cpu")
    posed = Setup(method="homogenized", overrides=(*POSED, "segment.epochs=3"))
    train(root / "data", root / "posed", posed, device="cpu")
    ensemble([root / "plain0", root / "plain1", root / "posed"], root / "all.safetensors")
    return root


def test_a_model_of_members_has_their_headers_and_tensors(folder: Path) -> None:
    whole = load_model(folder / "all.safetensors")
    assert whole.header["method"] == "plain"
    members = members_of(whole)
    names = ("plain0", "plain1", "posed")
    assert [member.header["method"] for member in members] == ["plain", "plain", "homogenized"]
    for name, member in zip(names, members, strict=True):
        alone = load_model(folder / name / "model.safetensors")
        assert member.header["config"] == alone.header["config"]
        assert member.header["training_set"] == alone.header["training_set"]
        assert member.parts.keys() == alone.parts.keys()
        for part, tensors in alone.parts.items():
            assert member.parts[part].keys() == tensors.keys()
            assert all(torch.equal(member.parts[part][k], t) for k, t in tensors.items())
    (same,) = members_of(load_model(folder / "plain0" / "model.safetensors"))
    assert "members" not in same.header


def test_probabilities_are_the_mean_on_the_scans_voxels(folder: Path) -> None:
    """By hand, of the probabilities of each model, where the grids of all cover the scan."""
    scan = make_ellipse_patient(3).image
    together = load_predictor(folder / "all.safetensors", "cpu")
    found = together.find(scan)
    assert len(found.regions) == 3 and len(together.others) == 2
    total = torch.zeros((3, *scan.grid.shape), dtype=torch.float64)
    count = torch.zeros(scan.grid.shape)
    for name in ("plain0", "plain1", "posed"):
        alone = load_predictor(folder / name / "model.safetensors", "cpu").find(scan)
        (region,) = alone.regions
        assert region.found is not None
        seen = resample(region.found, scan.grid, fill=float("nan")).data.double()
        total += seen.nan_to_num(0.0)
        count += ~seen[0].isnan()
    total[0][count == 0] = 1.0
    labels = together.decide(found, scan.grid).labels
    result = together(scan)
    assert torch.equal(labels.data, result.labels.data) and (labels.data > 0).any()
    assert result.facts["ensemble"] == {"members": ["plain", "plain", "homogenized"], "shown": 0}
    by_hand = total.argmax(0)
    assert (by_hand == labels.data[0]).float().mean() > 0.99, "but for pieces that are removed"
    kept = labels.data[0] > 0
    assert torch.equal(by_hand[kept], labels.data[0][kept].long())


def test_of_two_equal_models_the_result_is_that_of_one(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "twice.safetensors"
    ensemble([folder / "plain0", folder / "plain0"], out)
    scan = make_ellipse_patient(5).image
    one = load_predictor(folder / "plain0" / "model.safetensors", "cpu")(scan)
    assert torch.equal(load_predictor(out, "cpu")(scan).labels.data, one.labels.data)
    assert "ensemble" not in one.facts


def test_a_scan_is_prepared_once_for_members_that_require_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks of one serve those that use none; other pixels are averaged apart."""
    prepared = []

    def counted(*given: Any, **named: Any) -> Any:
        prepared.append(given[1])
        return prepare(*given, **named)

    monkeypatch.setattr("kidseg.segment.predictor.prepare", counted)
    scan = make_ellipse_patient(4).image
    model = folder / "posed" / "model.safetensors"
    view = {**load_model(model).header["config"]["view"], "pixel_mm": 9.0}
    config = {**load_model(model).header["config"], "view": view}
    coarse = with_header(model, tmp_path / "coarse.safetensors", config=config)
    for models, masks in (
        (["plain0", "plain1"], [False]),
        (["plain0", "posed", "plain1"], [True]),
        (["plain0", coarse], [False, True]),
    ):
        prepared.clear()
        ensemble([folder / each for each in models], tmp_path / "e.safetensors", overwrite=True)
        together = load_predictor(tmp_path / "e.safetensors", "cpu").find(scan)
        assert [material.masks is not None for material in prepared] == masks
        alone = [load_predictor(folder / each, "cpu").find(scan) for each in models]
        for region, found in zip(together.regions, alone, strict=True):
            (own,) = found.regions
            assert region.found is not None and own.found is not None
            assert torch.equal(region.found.data, own.found.data)


def test_smoothing_is_a_setting_of_all_members_that_segment_slices(
    folder: Path, tmp_path: Path
) -> None:
    models = [str(folder / name) for name in ("plain0", "posed")]
    out = tmp_path / "e.safetensors"
    assert call_cli("ensemble", *models, "-o", out, "--smooth-mm", "3", "--quiet") == 0
    assert [each.header["config"]["smooth_mm"] for each in members_of(load_model(out))] == [3, 3]
    assert load_predictor(out, "cpu").method.config.smooth_mm == 3
    decided = with_header(out, tmp_path / "d.safetensors", decision={"tumour": 2.0})
    made = ensemble([decided], tmp_path / "copy.safetensors", smooth_mm=0.0)
    assert made["left_out"] == ["decision"], "of other probabilities"
    volumes = with_header(
        folder / "plain0" / "model.safetensors", tmp_path / "v.safetensors", method="plain3d"
    )
    with pytest.raises(UsageError, match="does not segment slice by slice") as error:
        ensemble([volumes], tmp_path / "no.safetensors", smooth_mm=3.0)
    assert error.value.code == "no-slices" and error.value.path == str(volumes)
    assert not (tmp_path / "no.safetensors").exists()


def test_lone_tumours_are_a_setting_of_all_members(folder: Path, tmp_path: Path) -> None:
    models = [str(folder / name) for name in ("plain0", "posed")]
    out = tmp_path / "e.safetensors"
    assert call_cli("ensemble", *models, "-o", out, "--lone-tumour-ml", "100", "--quiet") == 0
    for member in members_of(load_model(out)):
        assert member.header["config"]["postprocess"]["lone_tumour_ml"] == 100
    predictor = load_predictor(out, "cpu")
    assert predictor.method.config.postprocess.lone_tumour_ml == 100
    card = {"trained_on": "ellipses"}
    decided = with_header(out, tmp_path / "d.safetensors", decision={"tumour": 2.0}, note=card)
    made = ensemble([decided], tmp_path / "copy.safetensors", lone_tumour_ml=50.0)
    before, after = load_model(decided).header, load_model(tmp_path / "copy.safetensors").header
    assert made["left_out"] == [] and (after["decision"], after["note"]) == ({"tumour": 2.0}, card)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"config", "members", "sha256"} and before.keys() == after.keys()
    for named in ({"flip": True}, {"adapt": "norm"}, {"half": True}, {"member": 0}):
        made = ensemble([decided], tmp_path / "copy.safetensors", overwrite=True, **named)
        assert made["left_out"] == ["decision"], "of other probabilities"
    ensemble([out], tmp_path / "one.safetensors", member=1, lone_tumour_ml=0.0)
    alone = load_model(tmp_path / "one.safetensors").header["config"]
    assert alone == load_model(folder / "posed" / "model.safetensors").header["config"]


def test_a_member_comes_out_as_it_went_in(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.safetensors"
    made = ensemble([folder / "all.safetensors"], out, member=1)
    assert made["members"] == ["plain"]
    whole, alone = load_model(out), load_model(folder / "plain1" / "model.safetensors")
    assert whole.header == {**alone.header, "sha256": whole.header["sha256"]}
    for part, tensors in alone.parts.items():
        assert all(torch.equal(whole.parts[part][name], t) for name, t in tensors.items())
    with pytest.raises(UsageError) as error:
        ensemble([folder / "all.safetensors"], tmp_path / "b.safetensors", member=3)
    assert error.value.code == "no-member"
    again = ensemble([folder / "all.safetensors", folder / "posed"], tmp_path / "c.safetensors")
    assert again["members"] == ["plain", "plain", "homogenized", "homogenized"], "not nested"


def test_half_precision_halves_the_file_and_keeps_the_labels(folder: Path, tmp_path: Path) -> None:
    """Float32 again when loaded; norms and the reference patient are stored as they are."""
    models, out = [folder / "plain0", folder / "posed"], tmp_path / "half.safetensors"
    full = tmp_path / "full.safetensors"
    ensemble(models, full)
    ensemble(models, out, half=True)
    halved, whole = load_model(out), load_model(full)
    values = sum(
        tensor.numel()
        for tensors in whole.parts.values()
        for name, tensor in tensors.items()
        if name.endswith("weight") and tensor.ndim > 1
    )
    saved = full.stat().st_size - out.stat().st_size
    assert values > 50_000 and abs(saved - 2 * values) < 1000, "two bytes less for each"
    for part, tensors in whole.parts.items():
        for name, tensor in tensors.items():
            found = halved.parts[part][name]
            assert found.dtype == tensor.dtype
            torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-7)
            if not name.endswith("weight") or tensor.ndim < 2:
                assert torch.equal(found, tensor)
    for seed in range(3):
        patient = make_ellipse_patient(seed)
        one, other = (
            load_predictor(file, "cpu")(patient.image).labels.data for file in (full, out)
        )
        assert (one != other).sum() <= 2 and (one > 0).any()
        figures = [
            float(dice(each[0].numpy() > 0, patient.labels.data[0].numpy() > 0) or 0.0)
            for each in (one, other)
        ]
        assert abs(figures[0] - figures[1]) < 1e-3
    again = tmp_path / "again.safetensors"
    ensemble([out], again, member=0)
    assert load_model(again).header["weights"] == "float16", "it stays half, whatever is done"


def test_a_weight_beyond_half_precision_is_stored_whole(tmp_path: Path) -> None:
    parts = {"a": {"weight": torch.tensor([[1e5, 1.0]]), "b.weight": torch.tensor([[1 / 3, 1.0]])}}
    save_model(tmp_path / "a.safetensors", parts, {"weights": "float16"})
    found = load_model(tmp_path / "a.safetensors").parts["a"]
    assert torch.equal(found["weight"], parts["a"]["weight"])
    assert found["b.weight"].dtype == torch.float32
    assert 0 < (found["b.weight"] - parts["a"]["b.weight"]).abs().max() < 1e-3


def test_members_that_answer_other_questions_are_refused(folder: Path, tmp_path: Path) -> None:
    first, out = folder / "plain0" / "model.safetensors", tmp_path / "out.safetensors"
    header = load_model(first).header
    labels = {**header["labels"], "names": {"1": "kidney", "2": "cyst"}}
    other_input = {**header["input"], "channels": ["T1"]}
    for number, changes in enumerate([{"labels": labels}, {"input": other_input}]):
        other = with_header(first, tmp_path / f"{number}.safetensors", **changes)
        with pytest.raises(UsageError) as error:
            ensemble([first, other], out)
        assert error.value.code == "members-differ" and str(first) in error.value.cause
    with pytest.raises(ModelError):
        ensemble([first, tmp_path / "none"], out)
    assert not out.exists()
    ensemble([first, first], out)
    with pytest.raises(UsageError) as error:
        ensemble([first, first], out)
    assert error.value.code == "output-exists"


@pytest.mark.parametrize("method", BY_KIDNEY)
def test_models_with_a_region_for_each_kidney_stand_alone(
    folder: Path, tmp_path: Path, method: str
) -> None:
    """They have no places in common; alone such a model can be written anew."""
    first, out = folder / "plain0" / "model.safetensors", tmp_path / "out.safetensors"
    other = with_header(first, tmp_path / "other.safetensors", method=method)
    for models in ([first, other], [other, other]):
        with pytest.raises(UsageError, match=method) as error:
            ensemble(models, out)
        assert error.value.code == "members-by-kidney" and error.value.path == str(other)
    assert ensemble([other], out, flip=True)["members"] == [method]


@pytest.mark.parametrize(
    "change",
    [
        lambda h: {**h, "members": h["members"][:1]},
        lambda h: {**h, "members": h["members"][:2]},
        lambda h: {**h, "members": [*h["members"], h]},
        lambda h: {**h, "members": 3},
        lambda h: {**h, "members": [h["members"][2]] * 3},
        lambda h: {**h, "members": ["a", "b", "c"]},
    ],
)
def test_members_that_do_not_match_the_tensors_are_damage(
    folder: Path, tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    known = load_model(folder / "all.safetensors")
    path = tmp_path / "a.safetensors"
    save_model(path, known.parts, change(known.header))
    with pytest.raises(ModelError) as error:
        load_predictor(path, "cpu")
    assert error.value.code == "damaged-model"


def test_one_digest_covers_all_members(folder: Path, tmp_path: Path) -> None:
    """A bit of any member's weights, a digit of any member's header."""
    content = (folder / "all.safetensors").read_bytes()
    size = len(content)
    for place in (size - 5, size // 2, size // 3, content.index(b"batch_size") + 14):
        altered = bytearray(content)
        altered[place] ^= 1
        path = tmp_path / "a.safetensors"
        path.write_bytes(altered)
        with pytest.raises(ModelError) as error:
            load_model(path)
        assert error.value.code == "damaged-model"


def test_settings_of_inference_can_be_given_to_all_members(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    ensemble([folder / "plain0", folder / "posed"], out, flip=True, adapt="norm")
    predictor = load_predictor(out, "cpu")
    assert all(m.config.test_time_flip for m in (predictor.method, *predictor.others))
    found = predictor(make_ellipse_patient(0).image)
    assert found.facts["adapted"]["slices"] == 8
    decided = with_header(out, tmp_path / "b.safetensors", decision={"background": 0.5})
    made = ensemble([decided, folder / "plain1"], tmp_path / "c.safetensors")
    assert made["left_out"] == ["decision"]
    assert load_predictor(tmp_path / "c.safetensors", "cpu").decision == {}
    assert load_predictor(decided, "cpu").others[0].target.weights == (0.5, 1.0, 1.0)


def test_training_starts_from_the_member_of_the_method(folder: Path) -> None:
    """The first of the method; without a method the first of all, which is said; so are others."""
    both, taken_out = folder / "all.safetensors", r"starts from member 0, 'plain'\. Take another"
    members = members_of(load_model(both))
    found = resolve(Setup(start=both, method="homogenized"))
    assert found.method.name == "homogenized" and found.start is not None
    for part, tensors in members[2].parts.items():
        assert all(torch.equal(tensors[n], found.start.parts[part][n]) for n in tensors)
    with pytest.warns(KidsegWarning, match=taken_out):
        first = resolve(Setup(start=both))
    with pytest.warns(KidsegWarning, match=taken_out):
        resolve(Setup(start=both, method="plain"))
    assert first.start is not None and first.method.name == "plain"
    weights = first.start.parts["segment"]
    assert all(torch.equal(weights[n], v) for n, v in members[0].parts["segment"].items())
    with pytest.raises(UsageError) as error:
        resolve(Setup(start=both, method="plain3d"))
    assert error.value.code == "other-method"
    assert "'plain' and 'plain' and 'homogenized', not 'plain3d'" in error.value.cause


def test_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made, told by info, used by segment, which says it on the terminal and in its record."""

    def call(*words: object) -> str:
        assert call_cli(*words) == 0
        return capsys.readouterr().out

    out = tmp_path / "e.safetensors"
    text = call("ensemble", folder / "plain0", folder / "posed", "-o", out, "--half")
    assert "An ensemble of 2 models (plain, homogenized)" in text
    assert "0 plain, 1 homogenized" in call("info", out)
    scan = save(make_ellipse_patient(0).image, tmp_path / "s.nii.gz")
    text = call("segment", scan, "-m", out, "-o", tmp_path / "o", "--device", "cpu", "--figures")
    assert "mean of 2 models (plain, homogenized)" in " ".join(text.split())
    (entry,) = json.loads((tmp_path / "o" / "result.json").read_text())["scans"]
    assert entry["ensemble"] == {"members": ["plain", "homogenized"], "shown": 0}
    assert (tmp_path / "o" / "s_steps.png").is_file()
    (kept,) = segment([scan], out, tmp_path / "o", device="cpu", resume=True)
    assert kept == entry and KIDNEY_TUMOUR.regions.keys() == entry["volumes_ml"].keys()


def test_a_member_may_count_in_single_slices_or_in_whole_scans_only(
    folder: Path, tmp_path: Path
) -> None:
    """The labels are those of an ensemble of the members that count, to the voxel."""
    plain, other, posed = (folder / name for name in ("plain0", "plain1", "posed"))
    of_slabs, of_stacks = tmp_path / "slabs.safetensors", tmp_path / "stacks.safetensors"
    ensemble([posed], of_stacks, only_in="stacks")
    ensemble([other], of_slabs, only_in="slabs")
    joint, joint_slabs, joint_stacks = (tmp_path / f"{name}.safetensors" for name in "abc")
    made = ensemble([of_stacks, plain, of_slabs], joint)
    assert made["members"] == ["homogenized (stacks only)", "plain", "plain (slabs only)"]
    ensemble([plain, other], joint_slabs)
    ensemble([posed, plain], joint_stacks)
    predictor = load_predictor(joint, "cpu")
    stack = make_ellipse_patient(3).image
    limit_mm = predictor.method.config.postprocess.stack_mm
    assert stack.grid.shape[0] * float(stack.grid.spacing_mm[0]) >= limit_mm
    for scan, same, members in (
        (stack, joint_stacks, ["homogenized", "plain"]),
        (stack.slices(4, 5), joint_slabs, ["plain", "plain"]),
    ):
        result, expected = predictor(scan), load_predictor(same, "cpu")(scan)
        assert torch.equal(result.labels.data, expected.labels.data)
        assert (result.labels.data > 0).any()
        assert result.facts["ensemble"] == {"members": members, "shown": 0, "left_out": 1}
        assert result.facts["grids"] == expected.facts["grids"]
        assert result.facts["training_range"] == expected.facts["training_range"]
        assert result.facts["review"] == expected.facts["review"]
    one, three = tmp_path / "one.safetensors", tmp_path / "three.safetensors"
    ensemble([joint], one, member=2)
    assert load_predictor(one, "cpu")(stack).labels.grid.same_as(stack.grid), "alone it counts"
    ensemble([joint], three, half=True)
    assert [m.header.get("only_in") for m in members_of(load_model(three))] == [
        "stacks",
        None,
        "slabs",
    ]


def test_the_members_that_count_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By info of each, by segment of those that counted in any scan."""

    def call(*words: object) -> str:
        assert call_cli(*words) == 0
        return capsys.readouterr().out

    slabs, joint, out = (tmp_path / name for name in ("s.safetensors", "j.safetensors", "out"))
    assert call_cli("ensemble", folder / "plain1", "-o", slabs, "--only-in", "slabs", "-q") == 0
    ensemble([folder / "posed", slabs, folder / "plain0"], joint)
    text = call("info", joint)
    assert "0 homogenized, 1 plain (slabs only), 2 plain" in text
    scans = [tmp_path / f"{name}.nii.gz" for name in ("stack", "slice")]
    stack = make_ellipse_patient(3).image
    for scan, image in zip(scans, (stack, stack.slices(4, 5)), strict=True):
        save(image, scan)
    text = " ".join(call("segment", *scans, "-m", joint, "-o", out).split())
    assert (
        "the mean of 2 models (homogenized, plain), or of 3 models (homogenized, plain, plain)"
        in text
    )


def test_every_scan_needs_a_member_that_counts_in_it(folder: Path, tmp_path: Path) -> None:
    stacks, out = tmp_path / "stacks.safetensors", tmp_path / "out.safetensors"
    made = ensemble([folder / "plain0"], stacks, only_in="stacks")
    assert made["members"] == ["plain (stacks only)"]
    for join in (
        lambda: ensemble([stacks, stacks], out),
        lambda: ensemble([folder / "plain0", folder / "plain1"], out, only_in="stacks"),
        lambda: load_predictor([stacks, stacks], "cpu"),
    ):
        with pytest.raises(UsageError, match="no member counts in slabs") as error:
            join()
        assert error.value.code == "scans-without-member" and not out.exists()
    both = ensemble([stacks, folder / "plain1"], out)
    assert both["members"] == ["plain (stacks only)", "plain"]
    damaged = tmp_path / "damaged.safetensors"
    model = load_model(out)
    headers = [{**header, "only_in": "stacks"} for header in model.header["members"]]
    save_model(damaged, model.parts, {**model.header, "members": headers})
    with pytest.raises(ModelError, match="no member counts in slabs"):
        load_predictor(damaged, "cpu")
