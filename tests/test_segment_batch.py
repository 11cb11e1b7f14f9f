"""Batches: a failure of any kind is that of its scan, what is done is recorded, at any moment."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from commands import call_cli
from ellipses import make_ellipse_patient
from kidseg.errors import (
    BatchError,
    InputError,
    KidsegError,
    ModelError,
    ResourceError,
    UsageError,
)
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read, save
from kidseg.report.cohort_page import pictures_in
from kidseg.segment import Predictor, Segmentation, batch_page, load_predictor, segment
from kidseg.segment.batch_page import PAGE, write_batch_page
from kidseg.segment.cohort_table import SUMMARY
from kidseg.segment.index import RESULT, read_index
from trained import copied


@pytest.fixture(scope="module")
def root(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model in run/, and scans/s0.nii.gz to s3.nii.gz."""
    root = copied(trained, tmp_path_factory.mktemp("batch"))
    (root / "scans").mkdir()
    for k in range(4):
        save(make_ellipse_patient(k).image, root / "scans" / f"s{k}.nii.gz")
    return root


@pytest.fixture(scope="module")
def predictor(root: Path) -> Predictor:
    return load_predictor(root / "run" / "model.safetensors", "cpu")


class Faulty(Predictor):
    """Fails for the scans whose names contain a key, with its error."""

    faults: dict[str, BaseException] = {}  # noqa: RUF012

    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        for key, error in self.faults.items():
            if key in Path(name).name:
                raise error
        return super().__call__(scan, name)


def faulty(predictor: Predictor, faults: dict[str, BaseException]) -> Faulty:
    values = {field.name: getattr(predictor, field.name) for field in fields(Predictor)}
    made = Faulty(**values)
    object.__setattr__(made, "faults", faults)
    return made


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / RESULT).read_text())
    return content


def names(folder: Path, which: str = "scans") -> list[str]:
    return [entry["name"] for entry in record(folder)[which]]


# One record for each scan


def test_runs_into_one_folder_keep_each_others_records(
    root: Path, predictor: Predictor, tmp_path: Path
) -> None:
    a, b = root / "scans" / "s0.nii.gz", root / "scans" / "s1.nii.gz"
    segment([a], predictor, tmp_path)
    (first,) = record(tmp_path)["scans"]
    segment([b], predictor, tmp_path, formats=["mha"])
    assert names(tmp_path) == ["s0", "s1"] and record(tmp_path)["scans"][0] == first
    with pytest.raises(UsageError) as error:
        segment([a, root / "scans" / "s2.nii.gz"], predictor, tmp_path, formats=["nrrd"])
    assert error.value.code == "output-exists" and names(tmp_path) == ["s0", "s1"]
    (again,) = segment([a], predictor, tmp_path, formats=["nrrd"], overwrite=True)
    assert [w["code"] for w in again["warnings"]].count("earlier-output") == 1
    assert "s0_seg.nii.gz" in again["warnings"][-1]["cause"]
    assert again["outputs"] == ["s0_seg.nrrd"] and names(tmp_path) == ["s0", "s1"]


def test_runs_with_other_models_do_not_mix(
    root: Path, predictor: Predictor, tmp_path: Path
) -> None:
    from kidseg.checkpoint import load_model, save_model

    file = load_model(predictor.path)
    save_model(tmp_path / "other.safetensors", file.parts, {**file.header, "note": "other"})
    out = tmp_path / "out"
    segment([root / "scans" / "s0.nii.gz"], predictor, out)
    segment([root / "scans" / "s1.nii.gz"], tmp_path / "other.safetensors", out, device="cpu")
    first, second = record(out)["scans"]
    assert first["model"]["sha256"] == predictor.sha256 != second["model"]["sha256"]
    with pytest.raises(UsageError):
        segment([root / "scans"], tmp_path / "other.safetensors", out, device="cpu", resume=True)


@pytest.mark.parametrize("text", ["{", '{"rows": []}', "[1]"])
def test_a_foreign_record_is_refused_before_the_work(
    root: Path, predictor: Predictor, tmp_path: Path, text: str
) -> None:
    (tmp_path / RESULT).write_text(text)
    for overwrite in (False, True):
        with pytest.raises(ModelError) as error:
            segment([root / "scans"], predictor, tmp_path, overwrite=overwrite)
        assert error.value.exit_code == 6 and RESULT in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == [RESULT]
    assert (tmp_path / RESULT).read_text() == text


# Failures


FAULTS: list[tuple[BaseException, int, str]] = [
    (MemoryError(), 5, "out-of-memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 5, "out-of-memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 5, "out-of-memory"),
    (OSError(errno.EIO, "Input/output error", "x.nii.gz"), 3, "not-accessible"),
    (OSError("something"), 3, "not-accessible"),
    (OSError(errno.ENOSPC, "No space left on device", "/elsewhere/x"), 5, "disk-full"),
    (RuntimeError("shape mismatch\nand a trace"), 3, "scan-failed"),
    (RecursionError("maximum recursion depth exceeded"), 3, "scan-failed"),
    (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), 3, "scan-failed"),
    (ZeroDivisionError(), 3, "scan-failed"),
    (ModelError("NaN", code="diverged"), 6, "diverged"),
    (ResourceError("no memory", code="not-enough-memory"), 5, "not-enough-memory"),
]


@pytest.mark.ci
@pytest.mark.fault("one bad case")
@pytest.mark.parametrize(("fault", "exit_code", "code"), FAULTS, ids=lambda x: type(x).__name__)
def test_whatever_fails_in_a_scan_the_others_are_segmented(
    root: Path,
    predictor: Predictor,
    tmp_path: Path,
    fault: BaseException,
    exit_code: int,
    code: str,
) -> None:
    model = faulty(predictor, {"s1": fault})
    heard: list[tuple[str, str | None]] = []
    with pytest.raises(BatchError, match="1 of 3") as error:
        segment(
            [root / "scans" / f"s{k}.nii.gz" for k in range(3)],
            model,
            tmp_path,
            report=lambda entry: heard.append((entry["name"], entry.get("code"))),
        )
    assert error.value.exit_code == 4
    assert heard == [("s0", None), ("s1", code), ("s2", None)]
    assert names(tmp_path) == ["s0", "s2"] and names(tmp_path, "failed") == ["s1"]
    (failed,) = record(tmp_path)["failed"]
    assert failed["code"] == code and failed["cause"] and failed["next_step"] is not None
    assert {file.name for file in tmp_path.iterdir()} == {
        RESULT, SUMMARY, "s0_seg.nii.gz", "s2_seg.nii.gz", "cohort.html",
    }  # fmt: skip
    with pytest.raises(KidsegError) as alone:
        segment([root / "scans" / "s1.nii.gz"], model, tmp_path)
    assert alone.value.exit_code == exit_code and alone.value.code == code
    segment([root / "scans" / "s1.nii.gz"], predictor, tmp_path)
    assert names(tmp_path) == ["s0", "s2", "s1"] and not record(tmp_path)["failed"]


@pytest.mark.fault("disk full")
def test_a_full_disk_ends_the_batch_with_what_is_done(
    root: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    calls = []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="1 of 4 scans are segmented") as error:
        segment([root / "scans"], predictor, tmp_path)
    assert error.value.exit_code == 5 and "--resume" in error.value.next_step
    assert names(tmp_path) == ["s0"] and not record(tmp_path)["failed"]
    assert {file.name for file in tmp_path.iterdir()} == {RESULT, "s0_seg.nii.gz"}
    monkeypatch.undo()
    done = segment([root / "scans"], predictor, tmp_path, resume=True)
    assert [entry["name"] for entry in done] == ["s0", "s1", "s2", "s3"]


def test_an_interrupt_keeps_what_is_done_and_can_go_on(
    root: Path, predictor: Predictor, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        segment([root / "scans"], faulty(predictor, {"s2": KeyboardInterrupt()}), tmp_path)
    assert names(tmp_path) == ["s0", "s1"]
    before = record(tmp_path)["scans"]
    shown: list[tuple[int, int]] = []
    done = segment(
        [root / "scans"], predictor, tmp_path, resume=True, progress=lambda *n: shown.append(n)
    )
    assert done[:2] == before and [entry["name"] for entry in done] == ["s0", "s1", "s2", "s3"]
    assert shown == [(3, 4), (4, 4)]
    (tmp_path / "s3_seg.nii.gz").unlink()
    assert len(segment([root / "scans"], predictor, tmp_path, overwrite=True)) == 4
    assert segment([root / "scans"], predictor, tmp_path, resume=True), "nothing to do is no error"


def test_all_failed_is_not_called_some(root: Path, predictor: Predictor, tmp_path: Path) -> None:
    model = faulty(predictor, {"s0": ValueError(), "s1": ValueError()})
    paths = [root / "scans" / f"s{k}.nii.gz" for k in range(3)]
    with pytest.raises(BatchError, match="2 of 2") as error:
        segment(paths[:2], model, tmp_path)
    assert "other scans" not in error.value.next_step
    assert error.value.next_step.startswith("No scan is segmented")
    with pytest.raises(BatchError, match="2 of 3") as error:
        segment(paths, model, tmp_path)
    assert error.value.next_step.startswith("The other scans are segmented")


def test_a_stop_between_outputs_and_record_leaves_neither(
    root: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def stopped(number: int) -> None:
        if (tmp_path / "s1_seg.nii.gz").exists():
            raise KeyboardInterrupt
        real(number)

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        segment([root / "scans"], predictor, tmp_path)
    monkeypatch.undo()
    assert {file.name for file in tmp_path.iterdir()} == {RESULT, "s0_seg.nii.gz"}
    assert names(tmp_path) == ["s0"]
    assert len(segment([root / "scans"], predictor, tmp_path, resume=True)) == 4


@pytest.mark.row(26)
def test_names_that_are_not_utf_8(root: Path, predictor: Predictor, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.nii.gz")
    shutil.copy(root / "scans" / "s0.nii.gz", tmp_path / name)
    shutil.copy(root / "scans" / "s1.nii.gz", tmp_path / "b.nii.gz")
    out = tmp_path / "out"
    results = segment([tmp_path / name, tmp_path / "b.nii.gz"], predictor, out, figures=True)
    assert [entry["name"] for entry in results] == [os.fsdecode(b"caf\xe9"), "b"]
    assert set(read_index(out).scans) == {os.fsdecode(b"caf\xe9"), "b"}
    assert os.fsencode(out / results[0]["outputs"][0]).endswith(b"caf\xe9_seg.nii.gz")


def test_a_name_that_is_too_long_is_its_scans_failure(
    root: Path, predictor: Predictor, tmp_path: Path
) -> None:
    long = tmp_path / f"{'x' * 246}.nii.gz"
    shutil.copy(root / "scans" / "s0.nii.gz", long)
    with pytest.raises(BatchError, match="too long"):
        segment([long, root / "scans" / "s1.nii.gz"], predictor, tmp_path / "out")
    assert names(tmp_path / "out") == ["s1"]
    assert [one["code"] for one in record(tmp_path / "out")["failed"]] == ["name-too-long"]


def test_pictures_are_drawn_while_the_scans_are_in_memory(
    root: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pictures as from the files, whose scans would be read a second time."""
    turned = nibabel.load(root / "scans" / "s0.nii.gz").as_reoriented([[2, 1], [0, -1], [1, 1]])
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.delattr(batch_page, "read")
        segment([root / "scans", tmp_path / "turned.nii.gz"], predictor, out)
    drawn = pictures_in(out / PAGE)
    assert set(drawn) == {"s0", "s1", "s2", "s3", "turned"}
    (out / PAGE).unlink()
    write_batch_page(out)
    assert pictures_in(out / PAGE) == drawn


# Found before the work


@pytest.mark.row(26)
def test_what_cannot_be_written_is_found_before_the_work(
    root: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """The predictor would raise if a scan were segmented."""
    model = faulty(predictor, {"s": AssertionError("too late")})
    (tmp_path / "file").touch()
    refused = {tmp_path / "file": "output-exists", tmp_path / "file" / "below": "not-writable"}
    for out, code in refused.items():
        with pytest.raises(KidsegError) as error:
            segment([root / "scans"], model, out)
        assert error.value.code == code
    (tmp_path / "out" / "s1_seg.nii.gz").mkdir(parents=True)
    with pytest.raises(UsageError, match="a folder of this name"):
        segment([root / "scans"], model, tmp_path / "out", overwrite=True)
    (tmp_path / "o" / RESULT).mkdir(parents=True)
    with pytest.raises(KidsegError):
        segment([root / "scans"], model, tmp_path / "o")


def test_too_many_voxels_for_nifti_are_found_before_the_network(
    predictor: Predictor, tmp_path: Path
) -> None:
    grid = Grid.from_spacing((1, 1, 40_000), (5.0, 1.0, 1.0))
    data = torch.randint(-1000, 300, (1, *grid.shape), dtype=torch.int16)
    path = save(Volume(data, grid), tmp_path / "s.mha")
    with pytest.raises(UsageError) as error:
        segment([path], faulty(predictor, {"s": AssertionError("too late")}), tmp_path / "out")
    assert error.value.code == "too-large-for-nifti" and "nrrd" in error.value.next_step


@pytest.mark.row(4)
@pytest.mark.parametrize("kind", ["sheared", "trust", "spacing"])
def test_what_is_read_can_be_written(
    root: Path, predictor: Predictor, tmp_path: Path, kind: str
) -> None:
    """On the scan's own voxels, whatever reading had to correct."""
    image = nibabel.load(root / "scans" / "s0.nii.gz")
    options = ReadOptions()
    if kind == "sheared":
        affine = image.affine.copy()
        affine[0, 2] += 0.02 * affine[2, 2]
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), affine)
    elif kind == "trust":
        affine = image.affine.copy()
        affine[:3, 3] += 50.0
        image.header.set_qform(affine, 1)
        image.header.set_sform(image.affine, 1)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header)
        options = ReadOptions(trust="sform")
    else:
        options = ReadOptions(spacing_mm=(9.0, 4.0, 4.0))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    (result,) = segment([tmp_path / "scan.nii.gz"], predictor, tmp_path, options=options)
    scan = read(tmp_path / "scan.nii.gz", options)
    written = read(tmp_path / "scan_seg.nii.gz", ReadOptions(values="labels"))
    assert written.native.same_as(scan.native)
    assert result["volumes_ml"]["kidney"] > 0


# The command line


def command(*words: object) -> int:
    return call_cli(*words, "--device", "cpu")


def test_the_terminal_says_volumes_warnings_and_failures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes((root / "scans" / "s0.nii.gz").read_bytes()[:500])
    out = tmp_path / "out"
    words = ("segment", "-i", f"{root}/scans/s[01].nii.gz", bad, "-m", root / "run", "-o", out)
    assert command(*words) == 4
    told = capsys.readouterr()
    assert "[1/3] bad: failed: " in told.err and "[3/3] s1: right kidney" in told.err
    assert "right kidney" in told.out and "Failed:" in told.out and "truncated" in told.out
    assert all(len(line) <= 80 for line in told.out.splitlines() if str(out) not in line)
    entry = record(out)["scans"][0]
    for finding in entry["warnings"]:
        assert finding["cause"].split()[0] in told.out
    assert f"{entry['sides']['left']['volumes_ml']['kidney']:.1f}" in told.out
    assert command(*words, "--overwrite", "--quiet") == 4
    told = capsys.readouterr()
    assert not told.out and told.err.count("\n") == 1 and "truncated" in told.err
    assert command(*words, "--overwrite", "--json") == 4
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert [entry["name"] for entry in answer["results"]] == ["s0", "s1"]
    assert [entry["name"] for entry in answer["failed"]] == ["bad"]
    assert answer["error"]["code"] == "scans-failed"


@pytest.mark.parametrize(("path", "code"), [("none*.nii", "no-scans"), ("", "no-scans")])
def test_nothing_to_segment_exits_3(
    root: Path, tmp_path: Path, path: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("segment", tmp_path / path, "-m", root / "run", "-o", tmp_path / "out", "--json")
    assert command(*words) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.fault("two jobs, one folder")
def test_two_commands_and_a_stop_lose_nothing(root: Path, tmp_path: Path) -> None:
    """Two processes write into one folder; one is stopped, and goes on later."""
    for number, prefix in enumerate("ab"):
        (tmp_path / prefix).mkdir()
        for k in range(8):
            target = tmp_path / prefix / f"{prefix}{k}.nii.gz"
            shutil.copy(root / "scans" / f"s{(k + number) % 4}.nii.gz", target)
    out = tmp_path / "out"

    def start(prefix: str) -> subprocess.Popen[bytes]:
        words = ["segment", tmp_path / prefix, "-m", root / "run", "-o", out, "--resume"]
        return subprocess.Popen(
            [sys.executable, "-m", "kidseg", *map(str, words), "--device", "cpu"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    first, second = start("a"), start("b")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out / "a1_seg.nii.gz").exists():
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert first.returncode in (130, 143) and second.returncode == 0
    known = set(names(out))
    assert {f"b{k}" for k in range(8)} <= known and "a0" in known
    assert known == {file.name.removesuffix("_seg.nii.gz") for file in out.glob("*_seg.nii.gz")}
    assert not [file for file in out.iterdir() if file.name.startswith(".")]
    again = start("a")
    again.communicate(timeout=60)
    assert again.returncode == 0 and len(names(out)) == 16


def test_a_single_failure_keeps_its_own_exit_code(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = root / "run"
    assert command("segment", tmp_path / "no.nii.gz", "-m", model, "-o", tmp_path / "o") == 3
    assert command("segment", root / "scans", "-m", tmp_path / "no", "-o", tmp_path / "o") == 6
    assert "kidseg train" in capsys.readouterr().err
    with pytest.raises(InputError):
        segment([tmp_path / "no.nii.gz"], model, tmp_path / "o", device="cpu")


def test_a_scan_that_ended_a_run_comes_last_in_the_next(
    root: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """So that a scan on which a library crashes cannot keep the others from being segmented."""
    left = tmp_path / ".kidseg-run-dead"
    left.mkdir()
    scan = root / "scans" / "s0.nii.gz"
    (left / "trying.json").write_text(json.dumps({"name": "s0", "scan": str(scan)}))
    order: list[str] = []

    def report(entry: Any) -> None:
        order.append(entry["name"])
        if entry["name"] == "s3":
            assert [one["code"] for one in record(tmp_path)["failed"]] == ["run-died"]
            (trying,) = tmp_path.glob(".kidseg-run-*/trying.json")
            assert json.loads(trying.read_text())["name"] == "s3"

    segment([root / "scans"], predictor, tmp_path, resume=True, report=report)
    assert order == ["s1", "s2", "s3", "s0"] and record(tmp_path)["failed"] == []
    assert not list(tmp_path.glob(".kidseg-run-*"))
