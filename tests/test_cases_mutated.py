"""Whatever a data set's description or tables contain, only kidseg's own errors are raised."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kidseg.cases import case_paths, learned_labels, open_dataset, survey_dataset
from kidseg.cases.naming import scan_name
from kidseg.errors import KidsegError
from kidseg.evaluate.pairs import pair
from mutated_documents import mutated_bytes, mutated_json

N = int(os.environ.get("KIDSEG_MUTATIONS", "250"))

NNUNET = {
    "name": "x",
    "channel_names": {"0": "CT", "1": "T1"},
    "labels": {"background": 0, "kidney": [1, 2], "tumor": 2, "ignore": 3},
    "regions_class_order": [1, 2],
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
LISTED = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "kidney": 1, "tumor": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "dataset": {
        name: {"images": [f"imagesTr/{name}_0000.nii.gz"], "label": f"labelsTr/{name}.nii.gz"}
        for name in "ab"
    },
}
DECATHLON = {
    "name": "x",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "kidney", "2": "tumor"},
    "numTraining": 2,
    "training": [
        {"image": f".\\imagesTr\\{name}_0000.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in "ab"
    ],
    "test": ["./imagesTr/a_0001.nii.gz", {"image": "./imagesTr/b_0001.nii.gz"}],
}
KITS = [{"case_id": f"case_{k:05d}", "age_at_nephrectomy": 40 + k, "gender": "x"} for k in range(3)]
PATIENTS = b"case,patient,age_years,sex,side\na,Ann,3.5,f,left\nb,Bob,,m,bilateral\n"


def use(root: Path) -> None:
    """What the commands do with a data set before they read its voxels."""
    survey = survey_dataset(root)
    for case in (*survey.dataset.cases, *survey.dataset.unlabelled):
        scan_name(case.images[0])
        case_paths(root, "nnunet", case.id, len(survey.dataset.channels))
    json.dumps([finding.as_dict() for finding in survey.findings]).encode()
    learned_labels(survey.dataset)
    pair(root / "labelsTr", root, missing="empty")
    open_dataset(root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for file in (f"imagesTr/{name}_0000", f"imagesTr/{name}_0001", f"labelsTr/{name}"):
            path = tmp_path / f"{file}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
    return tmp_path


def survives(path: Path, mutate: Callable[[int], bytes]) -> int:
    """The number of mutations that were refused in a few words; other exceptions end the test."""
    refused = 0
    for seed in range(N):
        path.write_bytes(mutate(seed))
        try:
            use(path.parent)
        except KidsegError as error:
            refused += bool(error.code) and len(str(error)) < 10_000
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")
    return refused


@pytest.mark.parametrize("content", [NNUNET, LISTED, DECATHLON], ids=["nnunet", "listed", "msd"])
def test_mutated_descriptions(root: Path, content: Any) -> None:
    (root / "dataset.json").write_text(json.dumps(content))
    use(root)
    refused = survives(root / "dataset.json", lambda seed: mutated_json(content, seed))
    assert 0 < refused < N


def test_mutated_tables_of_patients(root: Path) -> None:
    (root / "dataset.json").write_text(json.dumps(LISTED))
    (root / "patients.csv").write_bytes(PATIENTS)
    use(root)
    refused = survives(
        root / "patients.csv", lambda seed: mutated_bytes(PATIENTS, random.Random(seed))
    )
    assert 0 < refused < N


def test_mutated_tables_of_kits(tmp_path: Path) -> None:
    for k in range(3):
        for name in ("imaging", "segmentation"):
            path = tmp_path / f"case_{k:05d}" / f"{name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
    (tmp_path / "labelsTr").mkdir()
    for k in range(3):
        (tmp_path / "labelsTr" / f"case_{k:05d}.nii.gz").write_bytes(b"x")
    (tmp_path / "kits.json").write_text(json.dumps(KITS))
    open_dataset(tmp_path)
    refused = survives(tmp_path / "kits.json", lambda seed: mutated_json(KITS, seed))
    assert 0 < refused < N
