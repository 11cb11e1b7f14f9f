"""Multi-stage and cascade, trained on digital children, on any number of kidneys (slow)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from kidseg.cli import main
from kidseg.config import PhantomConfig
from kidseg.evaluate import evaluate
from kidseg.geometry import Volume
from kidseg.io import read_grid, save
from kidseg.phantom import make_patient, write_patients
from kidseg.train import Setup, train

pytestmark = pytest.mark.slow

SIZE, SLICES = 128, 16
HEALTHY: Mapping[str, Any] = {"tumour_share": 0.0}
DISEASED: Mapping[str, Any] = {"tumour_share": 1.0, "tumours": "one-sided"}
BILATERAL: Mapping[str, Any] = {"tumour_share": 1.0, "tumours": "bilateral"}
ANATOMIES: Mapping[str, Mapping[str, Any]] = {
    "two": {"kidneys": "separate", **HEALTHY},
    "tumour": {"kidneys": "separate", **DISEASED},
    "bilateral": {"kidneys": "separate", **BILATERAL},
    "joined": {"kidneys": "separate", **BILATERAL},  # by a tumour across the midline
    "single": {"kidneys": "single", **DISEASED},
    "horseshoe": {"kidneys": "horseshoe", **DISEASED},
    "fused": {"kidneys": "fused", **DISEASED},
    "absent": {"kidneys": "absent", **HEALTHY},
}


def joined(scan: Volume, labels: Volume) -> tuple[Volume, Volume]:
    """With a bar of tumour from one kidney to the other."""
    at = labels.data[0].nonzero()
    low, high = at.amin(0), at.amax(0)
    k, row = ((low + high) // 2)[:2].tolist()
    hu, known = scan.data.clone(), labels.data.clone()
    tumour = hu[labels.data == 2].double().mean().to(hu.dtype)
    bar = (0, slice(k - 1, k + 2), slice(row, row + 6), slice(int(low[2]), int(high[2]) + 1))
    hu[bar] = torch.where(known[bar] == 0, tumour, hu[bar])
    known[bar] = torch.where(known[bar] == 0, 2, known[bar])
    return Volume(hu, scan.grid), Volume(known, labels.grid)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """training/; scans/ and labels/ of each anatomy."""
    root = tmp_path_factory.mktemp("anatomies")
    config = PhantomConfig(size=SIZE, max_slices=SLICES)
    write_patients(root / "training", config, patients=12, seed=5)
    for folder in ("scans", "labels"):
        (root / folder).mkdir()
    for name, settings in ANATOMIES.items():
        own = PhantomConfig(size=SIZE, max_slices=SLICES, **settings)
        patient = make_patient(own, seed=6, index=0)
        scan, labels = patient.scan, patient.labels
        if name == "joined":
            scan, labels = joined(scan, labels)
        save(scan, root / "scans" / f"{name}.nii.gz")
        save(labels, root / "labels" / f"{name}.nii.gz")
    return root


def codes_of(entry: Mapping[str, Any]) -> set[str]:
    return {warning["code"] for warning in entry["warnings"]}


def assert_multistage_says(entry: Mapping[str, Any]) -> None:
    """Each region that stage 1 found, or that there is none."""
    note = entry["notes"]["kidneys"]
    names = [region["name"] for region in note["regions"]]
    assert len(names) == len(set(names)) <= 3
    for step in ("resunet", "resnet", "ensemble"):
        assert [grid["name"] for grid in entry["grids"][step]] == names
    assert all(name in note["text"] for name in names)
    assert ("no-kidney-region" in codes_of(entry)) == (not names)
    assert ("no kidney" in note["text"]) == (not names)


def assert_cascade_says(entry: Mapping[str, Any]) -> None:
    """Whether the case was normal, what ran, what was dropped."""
    notes, grids = entry["notes"], entry["grids"]
    assert list(notes) == ["coarse", "correct", "fine", "tumour", "refine"]
    coarse, correct = notes["coarse"], notes["correct"]
    assert coarse["normal"] == (coarse["kidneys"] == 2)
    assert ("abnormal" in coarse["text"]) == (not coarse["normal"]) == correct["ran"]
    assert len(grids["correct"]) == correct["ran"]
    regions = notes["fine"]["regions"]
    assert len(regions) == len(set(regions)) == len(grids["fine"])
    dropped = [notes[step].get("dropped", 0) for step in ("tumour", "refine")]
    assert ("lesions-dropped" in codes_of(entry)) == any(dropped)
    assert ("correction-further" in codes_of(entry)) == correct.get("further", False)
    assert ("kidney-not-confirmed" in codes_of(entry)) == bool(notes["fine"]["empty"])
    searched = notes["refine"]["mode"]
    assert searched in (("searched", "refined") if grids["tumour"] else ("none",))


SAYS = {"multistage": assert_multistage_says, "cascade": assert_cascade_says}


@pytest.mark.parametrize("method", SAYS)
def test_any_anatomy_is_segmented_and_what_happened_is_said(
    method: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the terminal, in the record and with a figure; by networks of two minutes' training."""
    asked = Setup(
        method=method, preset="demo", overrides=["budget_s=120", "budget_clock=processor"]
    )
    train(data / "training", tmp_path / "run", asked, device="cpu")
    out = tmp_path / "out"
    words = ["segment", data / "scans", "-m", tmp_path / "run", "-o", out, "--figures"]
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in (*words, "--device", "cpu")])
    assert not end.value.code, capsys.readouterr()
    entries = {e["name"]: e for e in json.loads((out / "result.json").read_text())["scans"]}
    assert set(entries) == set(ANATOMIES)
    said = " ".join(capsys.readouterr().out.split())
    for name, entry in entries.items():
        scan = read_grid(data / "scans" / f"{name}.nii.gz")
        assert read_grid(out / f"{name}_seg.nii.gz").same_as(scan)
        assert (out / f"{name}_steps.png").exists()
        assert all(note["text"] for note in entry["notes"].values())
        assert all(warning["cause"] in said for warning in entry["warnings"])
        SAYS[method](entry)
    evaluate(out, data / "labels", tmp_path / "figures")
    summary = json.loads((tmp_path / "figures" / "summary.json").read_text())
    dice = summary["structures"]["kidney+tumour"]["dice"]
    assert dice["n"] >= len(ANATOMIES) - 1 and dice["mean"] > 0.2, "networks that have learned"
