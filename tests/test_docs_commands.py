"""The commands of README and docs/ do what the pages say: run, each on a tiny patient (slow).

Those of the tutorials are run in order by test_tutorials.py. Those that are not run are listed with
the reason. Where a page names files of the reader, a folder has some of these names.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from kidseg.cli import main
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read, save
from pages import with_viewer
from serving import SETTINGS
from test_docs import TYPED, words_of

LEFT_OUT = {
    r"docs/tutorial_": "run in order by test_tutorials.py",
    r": kidseg (serve|node|dicomweb) ": "runs until it is stopped: test_cli_serving.py,"
    " test_pacs.py",
    r"--cluster ": "needs a cluster: test_cluster.py",
    r": kidseg study (study|benchmarks)": "takes hours: test_study.py runs small ones",
    r"import-nnunet|kits\.safetensors|adult\.safetensors": "needs a training of nnU-Net:"
    " test_import_nnunet.py",
    r"export-onnx|portable": "test_portable.py",
    r"docs/starter.md: kidseg (phantom|store|train|calibrate|study)": "how the starter was made,"
    " in days",
    r"docs/pose.md: kidseg train": "a whole training of the starter's pose network",
    r"docs/dicom_labels.md": "data sets of others: test_cases_annotated.py makes such ones",
    r"calibrate .* --intervals": "needs many labelled patients: test_segment_calibration.py",
    r" \[--": "a synopsis",
}
SMALL = {
    "phantom": "--patients 1 --size 48 --set max_slices=6",
    "complete": "--steps 1",
    "train": "--set segment.steps=2 --set segment.epochs=1 --set segment.min_epochs=0",
}
"""What is added to a command, by its name, so that it takes seconds."""


def reason_to_leave_out(page: Path, command: str) -> str:
    """Empty: it is run."""
    line = f"{page}: {command}"
    return next((why for what, why in LEFT_OUT.items() if re.search(what, line)), "")


RUN = [(page, command) for page, command in TYPED if not reason_to_leave_out(page, command)]


def kidseg(text: str | Sequence[str]) -> None:
    """A command in this process; it must end well."""
    with pytest.raises(SystemExit) as ended:
        main(text.split() if isinstance(text, str) else text)
    assert not ended.value.code, f"{text}: exit code {ended.value.code}"


def twin(path: str, *others: str) -> None:
    for other in others:
        if Path(path).is_dir():
            shutil.copytree(path, other, copy_function=os.link)
        else:
            shutil.copyfile(path, other)


def draw_slices(labels: Path) -> None:
    """Write drawn.nii.gz: every third slice of these labels."""
    known = read(labels, ReadOptions(values="labels")).volume
    drawn = torch.zeros_like(known.data)
    drawn[:, ::3] = known.data[:, ::3]
    save(Volume(drawn, known.grid), "drawn.nii.gz")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders under all names that pages give to those of the reader."""
    folder = tmp_path_factory.mktemp("shelf")
    before = Path.cwd()
    os.chdir(folder)
    try:
        kidseg("phantom patients --patients 4 --seed 3 --size 64 --set max_slices=12")
        kidseg(
            "phantom pairs --patients 2 --seed 4 --size 64 --set max_slices=12 --set timepoints=2"
        )
        kidseg("phantom dicom --patients 1 --seed 5 --size 64 --set max_slices=12 --layout dicom")
        small = " ".join(f"--set {each}" for each in SETTINGS)
        kidseg(f"train patients -o run --method plain --device cpu {small}")
        twin("patients", "mine", "my_dataset")
        twin("run", "run_a", "run_b")
        with Path("mine.toml").open("w") as file, redirect_stdout(file):
            kidseg("config homogenized --preset demo")
        Path("scans").mkdir()
        for path in sorted(Path("patients/imagesTr").iterdir()):
            shutil.copy(path, Path("scans", path.name.replace("_0000.nii", ".nii")))
        twin(str(path), "scan.nii.gz", "child.nii.gz")
        draw_slices(Path("patients/labelsTr", path.name.replace("_0000.nii", ".nii")))
        twin(str(next(Path("dicom/phantom_0000").glob("ct"))), "series", "child_dicom", "SCAN")
        kidseg("segment scans -m run -o result --device cpu")
        kidseg("segment series -m run -o of_series --device cpu --formats nii,seg.nrrd,rtstruct")
        kidseg("segment child.nii.gz -m run -o of_child --device cpu")
        (labels,) = Path("of_series").glob("*_seg.nii.gz")
        twin(str(labels), "labels.nii.gz", "earlier.nii.gz")
        twin(str(next(Path("of_series").glob("*.seg.nrrd"))), "edited.seg.nrrd")
        twin(str(next(Path("of_series").glob("*_rtstruct.dcm"))), "hospital_rtstruct.dcm")
        (of_child,) = Path("of_child").glob("*_seg.nii.gz")
        kidseg("evaluate result patients/labelsTr -o scores_a")
        twin(str(of_child), "child_seg.nii.gz", "result/child_seg.nii.gz")
        shutil.copy("child.nii.gz", "scans")
        twin("scores_a", "scores_b", "plain-scores", "metal-scores")
    finally:
        os.chdir(before)
    return folder


def test_each_reason_leaves_something_out_and_the_rest_is_run() -> None:
    for what in LEFT_OUT:
        assert any(re.search(what, f"{page}: {command}") for page, command in TYPED), what
    assert len(RUN) > 50


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kidseg.errors.KidsegWarning")
@pytest.mark.parametrize(("page", "command"), RUN, ids=lambda value: str(value)[:60])
def test_a_command_on_a_page_does_its_work(
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: Path,
    command: str,
) -> None:
    name, *words = words_of(command)
    if "html" in command and with_viewer.args[0]:
        pytest.skip(with_viewer.kwargs["reason"])
    folder = tmp_path / "here"
    if name == "phantom":
        folder.mkdir()
    else:
        shutil.copytree(shelf, folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    # The folder is of another model than the command's.
    if "-o" in words:
        shutil.rmtree(words[words.index("-o") + 1], ignore_errors=True)
    words = [each for word in words for each in (sorted(map(str, folder.glob(word))) or [word])]
    small = SMALL.get(name, "")
    if name == "train" and {"homogenized", "starter"} & set(words):
        small += " --set pose.stage.steps=2 --set pose.stage.epochs=1 --set pose.stage.min_epochs=0"
    kidseg([name, *words, *small.split()])
