"""The extension of 3D Slicer on real nodes of its scene, in slicer-core: there and back, exactly.

`SLICER_PYTHON` is a Python with the package slicer-core, which has the scene but no window.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read
from kidseg.io.slicer_seg import write_slicer_segmentation
from kidseg.labels import LabelSchema
from KidSegLib.measures import measures_of, shown

ROOT = Path(__file__).parents[1]
SLICER = os.environ.get("SLICER_PYTHON", "")
SCHEMA = LabelSchema.from_names({1: "kidney", 2: "tumour"})
NATIVE = ReadOptions(values="any")

pytestmark = pytest.mark.skipif(
    not SLICER, reason="SLICER_PYTHON is not a Python with the package slicer-core"
)


def in_slicer(
    *words: str | Path, temporary: Path, script: str = "slicer_scene.py"
) -> dict[str, Any]:
    """Run a command of a script of the tests."""
    run = subprocess.run(
        [SLICER, ROOT / "tests" / script, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.partition("found:")[2])


def labels_of(values: np.ndarray) -> np.ndarray:
    """Labels in some voxels of a scan, which its values tell."""
    return np.select([values > 600, values > 200], [2, 1], 0).astype(np.uint8)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with volumes of each kind of place in the patient, and what is known of them."""
    folder = tmp_path_factory.mktemp("places")
    return folder, in_slicer("export", folder, temporary=folder)


@pytest.mark.requirement("slicer")
def test_scans_and_labels_keep_their_place_in_the_patient(
    places: tuple[Path, dict[str, Any]],
) -> None:
    """Axial, flipped, coronal, sagittal, oblique, mirrored, transformed, cropped: both ways."""
    tmp_path, exported = places
    assert len(exported) == 13 and "cropped" in exported
    for name, facts in exported.items():
        values = np.array(facts["values"])  # (slices, rows, columns)
        index = np.stack(np.indices(values.shape), -1).reshape(-1, 3)
        world = np.array(facts["world"])
        at = index[:, ::-1] @ world[:3, :3].T + world[:3, 3]
        for ending, near_mm in (("nrrd", 1e-9), ("nii.gz", 1e-3)):
            scan = read(tmp_path / f"{name}.{ending}", NATIVE)
            native = scan.native.shape
            assert native == values.shape, name
            assert np.allclose(scan.native.mm(index.astype(float)), at, atol=near_mm), name
            there = scan.volume.grid.index(at).round().long()
            inside = scan.volume.data[0][tuple(there.T)].numpy().reshape(values.shape)
            assert np.array_equal(inside, values), name
        data = torch.from_numpy(labels_of(values))[None]
        with (tmp_path / f"{name}.seg.nrrd").open("wb") as file:
            grid = read(tmp_path / f"{name}.nrrd", NATIVE).native
            write_slicer_segmentation(Volume(data, grid), SCHEMA, file, "")
    returned = in_slicer("back", tmp_path, temporary=tmp_path)
    assert returned.keys() == exported.keys()
    for name, segments in returned.items():
        labels = labels_of(np.array(exported[name]["values"]))
        assert segments.pop("transform"), "it is where the volume is, and moves with it"
        assert list(segments) == ["kidney", "tumour"]
        for label in SCHEMA.labels:
            segment = segments[label.name]
            assert segment["voxels"] == np.argwhere(labels == label.id).tolist(), (name, label)
            assert np.allclose(segment["colour"], np.array(label.rgb) / 255, atol=1e-5)
            assert segment["open edges"] == 0 < segment["faces"]
        assert [s["code"] for s in segments.values()] == ["64033007", "108369006"]


REFUSED = {
    "none": ("no-volume", "Choose a CT scan"),
    "empty": ("no-image", "'empty' has no image"),
    "labels": ("label-map", "'labels' is a label map"),
    "colours": ("several-components", "has 3 values per voxel"),
    "pet": ("not-ct", "is PT, not CT"),
    "bent": ("not-linear", "Harden transform"),
    "sheared": ("sheared", "right angles"),
    "format": ("unknown-format", "dicomseg"),
    "folder": ("no-folder", "no folder"),
    "tag": ("no-digest", "k:latest"),
    "failing": ("unexpected", "ZeroDivisionError: by chance"),
    "elsewhere": ("other-grid", "not on the voxels"),
}


@pytest.mark.requirement("privacy")
def test_refusals_are_in_words_and_leave_the_scene_as_it_was(
    places: tuple[Path, dict[str, Any]],
) -> None:
    tmp_path, exported = places
    data = torch.from_numpy(labels_of(np.array(exported["axial"]["values"])))[None]
    with (tmp_path / "elsewhere.seg.nrrd").open("wb") as file:
        grid = read(tmp_path / "oblique 0.nrrd", NATIVE).native
        write_slicer_segmentation(Volume(data, grid), SCHEMA, file, "")
    found = in_slicer("refusals", tmp_path, temporary=tmp_path)
    for name, (code, words) in REFUSED.items():
        assert found[name][0] == code and words in found[name][1], (name, found[name])
    assert "'t1'" in found["notes"][0]
    assert "'us'" in found["no notes"][0] and len(found["no notes"]) == 1
    assert found["new nodes"] == 0
    assert found["left"] == 0 and not found["stale"], "no temporary folder is left"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digital patient."""
    folder = tmp_path_factory.mktemp("patient")
    words = ["--patients", "1", "--seed", "3", "--size", "128", "--ages", "4-5"]
    kidseg("phantom", folder, *words, "--set", "max_slices=24")
    return folder / "imagesTr" / "phantom_0000_0000.nii.gz"


def kidseg(*words: str | Path) -> str:
    command = [sys.executable, "-m", "kidseg", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def this_kidseg(folder: Path, before: str = "") -> str:
    """Settings of a back end: this kidseg as a program, after a line of shell."""
    path = folder / "kidseg"
    path.write_text(f'#!/bin/sh\n{before}\n{shlex.quote(sys.executable)} -m kidseg "$@"\n')
    path.chmod(0o755)
    return json.dumps({"command": str(path)})


@pytest.fixture
def command(tmp_path: Path) -> str:
    return this_kidseg(tmp_path)


def check_whole(found: dict[str, Any], scan: Path, tmp_path: Path) -> None:
    """The result in the scene is that of the command line."""
    kidseg("segment", scan, "-o", tmp_path / "outside", "--device", "cpu")
    labels = read(tmp_path / "outside" / "phantom_0000_seg.nii.gz", ReadOptions(values="labels"))
    grid = labels.native
    facts = found["facts"]
    assert facts.pop("transform") and list(facts) == ["kidney", "tumour"]
    for label in SCHEMA.labels:
        voxels = np.array(facts[label.name]["voxels"], dtype=float)
        inside = labels.volume.data[0] == label.id
        index = labels.volume.grid.index(grid.mm(voxels)).round().long()
        assert len(voxels) == int(inside.sum()) > 1000
        assert bool(inside[tuple(index.T)].all()), "voxel by voxel"
        assert facts[label.name]["open edges"] == 0 < facts[label.name]["faces"]
    assert [facts[name]["code"] for name in facts] == ["64033007", "108369006"]
    assert set(found["places"]) == {"study"}, "under the study of the scan"
    assert "For research use only" in found["description"]
    assert found["same node"] and found["segmentations"] == 1 and found["segments"] == 2
    assert found["left"] == 0
    header, *rows = found["table"]
    assert header == ["of", "measure", "value", "unit", "low", "high", "interval", "note"]
    tumour_ml = len(facts["tumour"]["voxels"]) * float(grid.voxel_ml)
    volumes = [row for row in rows if row[1] == "tumour volume" and row[0] in ("right", "patient")]
    assert any(row[2:4] == [shown(tumour_ml), "ml"] for row in volumes)
    file = tmp_path / "outside" / "phantom_0000_seg.nii.gz"
    known = measures_of({}, json.loads(kidseg("measure", file, "--ct", scan, "--json")))
    assert [[*row[:2], row[3]] for row in rows] == [[k.of, k.measure, k.unit] for k in known]
    for row, expected in zip(rows, known, strict=True):
        for text, number in zip([row[2], *row[4:6]], expected[2:3] + expected[4:6], strict=True):
            near = {shown(number * share) for share in (0.999, 1.0, 1.001)}  # files are rounded
            assert text in near, expected
    assert found["tables"] == 2 and found["criteria"], "filled again, not doubled"
    assert any("is trained on digital patients only" in note for note in found["notes"])
    assert any("least sure in slices" in note for note in found["notes"])
    assert all(note in found["description"] for note in found["notes"])
    assert "result.json" not in str(found["notes"]) and "--" not in str(found["criteria"])
    assert not any("%" in text for text in found["said"] if not text.startswith("Uploading"))
    assert found["done"] == 1 and 0.1 < found["half"] < 0.9
    assert found["files"] == [
        "phantom_0000_0000.nii.gz.seg.nrrd",
        "phantom_0000_0000.nii.gz_seg_kidney.stl",
        "phantom_0000_0000.nii.gz_seg_tumour.stl",
    ]


@pytest.mark.requirement("slicer")
@pytest.mark.slow
def test_the_command_segments_a_scan_of_the_scene(scan: Path, command: str, tmp_path: Path) -> None:
    (kept := tmp_path / "kept").mkdir()
    found = in_slicer("whole", kept, scan, command, temporary=tmp_path)
    check_whole(found, scan, tmp_path)


@pytest.mark.slow
def test_cancelling_ends_kidseg_and_removes_its_files(
    scan: Path, command: str, tmp_path: Path
) -> None:
    found = in_slicer("cancel", tmp_path, scan, command, temporary=tmp_path)
    assert found["cancel"][0] == "cancelled"
    for way in ("cancel", "close"):
        assert found[f"{way} worked"] > 0 and found[f"{way} running"] == 0
        assert found[f"{way} took_s"] < 15
    assert found["new nodes"] == 0 and found["left"] == 0


@pytest.mark.requirement("slicer")
@pytest.mark.slow
def test_a_server_segments_a_scan_of_the_scene(scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("kidseg.serve", reason="this kidseg has no server")
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    words = [sys.executable, "-m", "kidseg", "serve", "--port", "0", "--json", "--device", "cpu"]
    words += ["--folder", str(tmp_path / "server")]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        text = ""
        while "}\n}" not in text:
            text += server.stdout.readline()
        settings = {"kind": "server", "address": json.loads(text)["serving"]["address"]}
        (kept := tmp_path / "kept").mkdir()
        found = in_slicer("whole", kept, scan, json.dumps(settings), temporary=tmp_path)
        check_whole(found, scan, tmp_path)
        assert any(text.startswith("Uploading: 100") for text in found["said"])
        files = [path for path in (tmp_path / "server").rglob("*.nrrd") if path.is_file()]
        assert not files, "nothing of the scan stays on the server"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.requirement("slicer")
@pytest.mark.slow
def test_a_container_segments_a_scan_of_the_scene(scan: Path, tmp_path: Path) -> None:
    image = os.environ.get("KIDSEG_IMAGE", "")
    if not image:
        pytest.skip("KIDSEG_IMAGE is not an image of kidseg, NAME@sha256:DIGEST")
    settings = {"kind": "container", "image": image, "engine": os.environ.get("ENGINE", "")}
    (kept := tmp_path / "kept").mkdir()
    found = in_slicer("whole", kept, scan, json.dumps(settings), temporary=tmp_path)
    check_whole(found, scan, tmp_path)
