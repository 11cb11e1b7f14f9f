"""A model ready for scans: its networks as quick as its precision allows, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from commands import call_cli
from ellipses import LABELS, make_ellipse_patient, write_ellipse_dataset
from kidseg import device
from kidseg.checkpoint import load_model, save_model
from kidseg.config import PostprocessConfig
from kidseg.errors import converted
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.nets import UNet
from kidseg.postprocess import LoneTumours, Piece
from kidseg.report.sections import removed_small
from kidseg.segment import Segmentation, load_predictor
from kidseg.segment.figure import step_panels
from kidseg.segment.removal import Decided, postprocessed
from kidseg.segment.trained_method import damaged_if_invalid
from kidseg.table import place_text
from kidseg.train import Setup, train
from kidseg.train.setup import resolve
from trained import SETTINGS


@pytest.fixture(scope="module")
def model(trained: Path) -> Path:
    return trained / "run" / "model.safetensors"


def in_precision(model: Path, precision: str, path: Path) -> Path:
    """The same weights, asked to compute otherwise."""
    known = load_model(model)
    header = {**known.header, "config": {**known.header["config"], "precision": precision}}
    save_model(path, known.parts, header)
    return path


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that computes in bf16; others emulate it."""
    monkeypatch.setattr(device, "_supports_bf16", lambda kind: True)


def test_a_model_of_bf16_is_used_in_fp32_where_bf16_would_be_emulated(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = in_precision(model, "bf16", tmp_path / "a.safetensors")
    for known, used in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(device, "_supports_bf16", lambda kind, known=known: known)
        assert load_predictor(trained, "cpu").method.device.precision == used
        assert load_predictor(model, "cpu").method.device.precision == "fp32"
        fine = resolve(Setup(start=trained)).config
        assert device.choose_device("cpu", fine.precision).precision == used
        assert resolve(Setup(start=model)).config.precision == "fp32"
        asked = resolve(Setup(start=model, overrides=["precision=bf16"])).config
        assert device.choose_device("cpu", asked.precision).precision == "bf16"


@pytest.mark.usefixtures("with_bf16")
def test_networks_are_folded_for_bf16_alone(model: Path, tmp_path: Path) -> None:
    whole = load_predictor(model, "cpu").method
    quick = load_predictor(in_precision(model, "bf16", tmp_path / "a.safetensors"), "cpu").method
    assert (whole.device.precision, quick.device.precision) == ("fp32", "bf16")
    net, folded = whole.parts["segment"], quick.parts["segment"]
    assert isinstance(net, UNet) and norms(net) > 0
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert not isinstance(folded, UNet) and norms(folded) == 0
    kinds = {m.weight.dtype for m in folded.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.usefixtures("with_bf16")
def test_bf16_gives_the_labels_of_fp32_nearly_everywhere(model: Path, tmp_path: Path) -> None:
    whole = load_predictor(model, "cpu")
    quick = load_predictor(in_precision(model, "bf16", tmp_path / "a.safetensors"), "cpu")
    for seed in (0, 11):
        image = make_ellipse_patient(seed).image
        expected, found = whole(image).labels.data, quick(image).labels.data
        assert (expected > 0).any() and (expected == found).float().mean() >= 0.99
        there = (expected > 0) | (found > 0)
        assert (expected == found)[there].float().mean() > 0.9, "nor only where nothing is"


def decided_of(*removed: Piece) -> Decided:
    """No labels are left; pieces below 3 ml were removed, tumours from 0.5 ml with a warning."""
    labels = Volume(
        torch.zeros(1, 1, 1, 1, dtype=torch.uint8), Grid.from_spacing((1, 1, 1), (1, 1, 1))
    )
    return Decided(
        labels=labels,
        removed=removed,
        small_ml=3.0,
        lone=LoneTumours(below_ml=50.0),
        tumour=(2,),
        notable_ml=0.5,
    )


def test_of_thousands_of_pieces_the_largest_hundred_are_named() -> None:
    """All are counted; 150 pieces of 1 to 150 voxels of 0.01 ml are 113.25 ml."""
    pieces = [
        Piece(volume_ml=k / 100, centre_mm=(0.0, 0.0, 0.0), voxels={1: k})
        for k in range(150, 0, -1)
    ]
    decided = decided_of(*pieces)
    facts = decided.removed_facts()
    assert (facts["count"], facts["volume_ml"], facts["below_ml"]) == (150, 113.25, 3.0)
    assert facts["without_kidney_below_ml"] == 50.0 and not decided.findings("scan")
    assert [piece["volume_ml"] for piece in facts["pieces"]] == [
        k / 100 for k in range(150, 50, -1)
    ]
    alone = [replace(piece, reason="no-kidney") for piece in pieces[:5]]
    (said,) = replace(decided, removed=tuple(alone)).findings("scan")
    assert "The largest of them: " in said.next_step and said.next_step.count(" mm (") == 3
    none = replace(decided, removed=(), small_ml=0.0, lone=LoneTumours()).removed_facts()
    assert none == {
        "below_ml": 0.0,
        "without_kidney_below_ml": 0.0,
        "count": 0,
        "volume_ml": 0,
        "by_reason": {key: {"count": 0, "volume_ml": 0} for key in ("no-kidney", "small")},
        "pieces": [],
    }


def test_small_pieces_are_listed_beside_any_number_of_lone_tumours() -> None:
    lone = Piece(volume_ml=5.0, centre_mm=(0.0, 0.0, 0.0), voxels={2: 500}, reason="no-kidney")
    small = Piece(volume_ml=0.1, centre_mm=(0.0, 0.0, 0.0), voxels={1: 10})
    facts = decided_of(*[lone] * 150, small).removed_facts()
    assert (facts["count"], len(facts["pieces"])) == (151, 101)
    assert facts["by_reason"] == {
        "small": {"count": 1, "volume_ml": 0.1},
        "no-kidney": {"count": 150, "volume_ml": 750.0},
    }


@pytest.mark.parametrize(
    ("voxels", "warned"),
    [
        ({2: 270}, True),
        ({2: 50}, True),
        ({1: 200, 2: 50}, True),
        ({2: 49}, False),
        ({1: 250, 2: 20}, False),
        ({1: 270}, False),
        ({3: 270}, False),
    ],
)
def test_small_pieces_are_warned_about_if_they_contain_tumour(
    voxels: dict[int, int], warned: bool
) -> None:
    """Voxels of 0.01 ml: half a millilitre of tumour, whatever else is in the piece."""
    volume_ml = sum(voxels.values()) / 100
    piece = Piece(volume_ml=volume_ml, centre_mm=(44.5, -17.7, 46.2), voxels=voxels)
    speck = Piece(volume_ml=0.01, centre_mm=(0.0, 0.0, 0.0), voxels={2: 1})
    findings = decided_of(piece, speck).findings("scan")
    assert [found.code for found in findings] == ["small-tumour"] * warned
    for found in findings:
        assert f"1 component(s) with tumour, {volume_ml:.1f} ml in all" in found.cause
        assert "below 3 ml" in found.cause
        assert f"R 44.5, P 17.7, S 46.2 mm ({volume_ml:.1f} ml)." in found.next_step


@pytest.mark.parametrize(("label", "name"), [(2, "tumour"), (1, "kidney")])
def test_a_small_piece_is_in_the_report_and_warned_about_if_it_is_tumour(
    label: int, name: str
) -> None:
    """343 voxels of 0.008 ml in an adult, by the default threshold, far from the kidney."""
    data = torch.zeros(1, 30, 40, 60, dtype=torch.uint8)
    data[0, 5:25, 5:25, 5:25] = 1
    data[0, 10:17, 20:27, 50:57] = label
    scan = Grid.from_spacing((30, 40, 60), (2.0, 2.0, 2.0))
    decided = postprocessed(
        Volume(data, scan),
        PostprocessConfig(),
        KIDNEY_TUMOUR,
        Target.of_labels(KIDNEY_TUMOUR),
        body_radius_mm=150.0,
        voxel_ml=0.008,
    )
    assert (decided.labels.data > 0).sum() == 20**3
    (piece,) = decided.removed
    found = decided.findings("the scan")
    assert [each.code for each in found] == ["small-tumour"] * (name == "tumour")
    record = json.loads(json.dumps({"removed": decided.removed_facts()}))
    said = removed_small(record, KIDNEY_TUMOUR)
    place = place_text(piece.centre_mm)
    assert said == f"1 piece, 2.7 ml, below 3 ml, was removed: {name}, at {place}."


class Noise(nn.Module):
    """Finds a kidney in every second pixel along each side, in the middle four of eight slices."""

    multiple = (1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.slices = 0

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        logits = torch.zeros(len(image), 3, *image.shape[2:])
        logits[:, 0] = 1.0
        for row in range(len(image)):
            if 2 <= self.slices + row < 6:
                logits[row, 1, ::2, ::2] = 1.6  # too little to reach half way to the next
        self.slices += len(image)
        return [logits]


def test_noise_is_removed_counted_and_not_all_of_it_listed(model: Path) -> None:
    known = load_predictor(model, "cpu").method
    noise = {"segment": Noise()}
    method = type(known)(known.config, known.target, known.plan, noise, known.device)
    image = make_ellipse_patient(0).image
    thin = Volume(image.data, Grid.from_spacing(image.grid.shape, (0.25, 4.0, 4.0)))
    found = replace(load_predictor(model, "cpu"), method=method)(thin)
    assert not bool(found.labels.data.any())
    removed = found.facts["removed"]
    assert removed["count"] > 100 == len(removed["pieces"])
    sizes = [piece["volume_ml"] for piece in removed["pieces"]]
    assert sizes == sorted(sizes, reverse=True) and 0 < sizes[0] < removed["below_ml"]
    assert sum(sizes) < removed["volume_ml"] <= sizes[0] * removed["count"]


class LoneTumour(nn.Module):
    """Finds a kidney at the left of each slice, and a tumour at its right."""

    multiple = (1, 1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        logits = torch.zeros(len(image), 3, *image.shape[2:])
        logits[:, 0] = 4.0
        rows, columns = image.shape[2] // 2, image.shape[3] // 4
        logits[:, 1, rows - 3 : rows + 3, columns - 3 : columns + 3] = 9.0
        logits[:, 2, rows - 2 : rows + 2, 3 * columns - 2 : 3 * columns + 2] = 9.0
        return [logits]


def test_a_tumour_without_a_kidney_is_removed_from_a_stack_and_said(model: Path) -> None:
    known = load_predictor(model, "cpu")
    scan = make_ellipse_patient(0).image
    thin = Volume(scan.data[:, 3:4], scan.grid.crop((3, 0, 0), (1, 64, 64)))

    def found(scan: Volume, lone_tumour_ml: float) -> Segmentation:
        method = known.method
        postprocess = replace(method.config.postprocess, lone_tumour_ml=lone_tumour_ml)
        config = replace(method.config, postprocess=postprocess)
        nets = {"segment": LoneTumour()}
        method = type(method)(config, method.target, method.plan, nets, method.device)
        return replace(known, method=method)(scan, "the scan")

    kept, cleaned = found(scan, 0.0), found(scan, 1000.0)
    volume_ml = kept.facts["volumes_ml"]["tumour"]
    assert volume_ml > 20 and kept.facts["removed"]["count"] == 0
    assert cleaned.facts["volumes_ml"] == {
        **kept.facts["volumes_ml"],
        "tumour": 0.0,
        "kidney+tumour": kept.facts["volumes_ml"]["kidney"],
    }
    (piece,) = cleaned.facts["removed"]["pieces"]
    assert piece["reason"] == "no-kidney" and piece["voxels"].keys() == {2}
    assert piece["volume_ml"] == pytest.approx(volume_ml, abs=1e-3)
    assert volume_ml < cleaned.facts["removed"]["without_kidney_below_ml"] < 1000, "of a child"
    (said,) = [finding for finding in cleaned.findings if finding.code == "lone-tumour"]
    assert said.path == "the scan" and f"{volume_ml:.1f} ml" in said.cause
    x, y, z = piece["centre_mm"]
    place = f"{'LR'[x > 0]} {abs(x):.1f}, {'PA'[y > 0]} {abs(y):.1f}, {'IS'[z > 0]} {abs(z):.1f} mm"
    assert said.next_step == f"Look there if a tumour is expected: {place} ({volume_ml:.1f} ml)."
    assert "lone-tumour" not in {finding.code for finding in kept.findings}
    assert found(thin, 1000.0).facts["volumes_ml"]["tumour"] > 0, "a kidney may lie beside it"


# Several channels


@pytest.fixture(scope="module")
def mr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mr")
    write_ellipse_dataset(root / "data", 4, channels=("T1", "T2"))
    setup = Setup(method="plain", overrides=SETTINGS, cases=[f"ellipse_{k:03d}" for k in range(3)])
    train(root / "data", root / "run", setup, device="cpu")
    return root


def command(*words: object) -> int:
    return call_cli(*words, "--device", "cpu")


def test_two_channels_on_the_command_line(
    mr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second lies beside the first; labels, record and figure as of a CT."""
    from matplotlib.image import imread

    first = mr / "data" / "imagesTr" / "ellipse_003_0000.nii.gz"
    model, out = mr / "run" / "model.safetensors", tmp_path / "out"
    assert command("segment", first, "-m", model, "-o", out, "--figures", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["name"] == "ellipse_003"
    assert {file.name for file in out.iterdir()} == {
        "ellipse_003_seg.nii.gz",
        "ellipse_003_steps.png",
        "result.json",
    }
    options = ReadOptions(values="labels")
    found = read(out / "ellipse_003_seg.nii.gz", options).volume
    truth = read(mr / "data" / "labelsTr" / "ellipse_003.nii.gz", options).volume
    assert found.grid.same_as(truth.grid) and set(found.data.unique().tolist()) <= set(
        LABELS.values()
    )
    there, wanted = found.data > 0, truth.data > 0
    assert 2 * (there & wanted).sum() / (there.sum() + wanted.sum()) > 0.6
    assert imread(out / "ellipse_003_steps.png")[..., :3].std() > 0.1, "it is drawn"


def test_an_mr_is_drawn_in_its_own_window(mr: Path) -> None:
    """From its darkest to all but its brightest half per cent; a CT in that of the abdomen."""
    predictor = load_predictor(mr / "run" / "model.safetensors", "cpu")
    files = [mr / "data" / "imagesTr" / f"ellipse_003_000{k}.nii.gz" for k in (0, 1)]
    channels = [read(file, ReadOptions(values="any")).volume for file in files]
    image = Volume(torch.cat([one.data for one in channels]), channels[0].grid)
    panels = step_panels(image, predictor(image), 4)
    first = image.data[0].float()
    wanted = (float(first.min()), float(first.quantile(0.995)))
    for panel in panels:
        assert panel.window == pytest.approx(wanted, rel=0.01)


def test_a_channel_that_is_missing_exits_3(
    mr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "a_0000.nii.gz"
    first.write_bytes((mr / "data" / "imagesTr" / "ellipse_003_0000.nii.gz").read_bytes())
    model = mr / "run" / "model.safetensors"
    assert command("segment", first, "-m", model, "-o", tmp_path / "out", "--json") == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "missing-channel"


def test_a_predictor_tells_how_far_a_scan_is(model: Path) -> None:
    """First the probabilities, each member of an ensemble its share, then the labels."""
    scan = make_ellipse_patient(0).image
    for paths in ([model], [model, model]):
        told: list[tuple[str, float]] = []
        predictor = load_predictor(paths, "cpu")
        tell = partial(lambda told, *word: told.append(word), told)
        labels = replace(predictor, on_progress=tell)(scan).labels
        assert labels.data.equal(predictor(scan).labels.data)
        stages = [stage for stage, _ in told]
        assert stages == sorted(stages, key=["segment", "decide"].index)
        for stage in ("segment", "decide"):
            shares = [done for each, done in told if each == stage]
            assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
            assert len(set(shares)) > 4


def test_too_little_memory_for_a_model_is_no_damage_of_its_file(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
    with pytest.raises(torch.OutOfMemoryError), damaged_if_invalid(tmp_path / "model.safetensors"):
        raise error
    said = converted(error)
    assert said is not None
    assert (said.code, said.exit_code) == ("out-of-memory", 5) and "--device cpu" in str(said)
