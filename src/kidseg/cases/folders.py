"""The other layouts: KiTS19, KiTS21, KiTS23, the Medical Segmentation Decathlon, and DICOM."""

from __future__ import annotations

import re
import reprlib
import textwrap
from pathlib import Path
from typing import Any, Literal

from kidseg.cases.case import Survey
from kidseg.cases.gathering import Gathering
from kidseg.cases.naming import DATASET_JSON, SCAN_ENDINGS, first_channel_of, split_ending
from kidseg.cases.paths import stated_path, visible
from kidseg.cases.persons import read_kits_table
from kidseg.errors import InputError
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema

__all__ = ["KITS_CASE", "kits_folder", "survey_dicom", "survey_kits", "survey_msd"]

KITS_CASE = re.compile(r"case_\d{5}")
_KITS21_LABELS = "aggregated_MAJ_seg.nii.gz"
_KITS23_TABLE = "kits23.json"
# A KiTS case contains at least one of these; `raw` and `instances` are manual annotations.
_KITS_FILES = ("imaging.nii.gz", "segmentation.nii.gz", _KITS21_LABELS, "raw", "instances")


def kits_folder(root: Path) -> Path | None:
    """The folder that contains case_00000, case_00001, ... of a KiTS data set; None if not KiTS."""
    for folder in (root / "data", root / "dataset", root):
        if any((case / name).exists() for case in _kits_cases(folder) for name in _KITS_FILES):
            return folder
    return None


def survey_kits(root: Path, folder: Path) -> Survey:
    """Survey a KiTS data set; a case without segmentation is a test case.

        KiTS19   data/case_*/imaging.nii.gz, segmentation.nii.gz; data/kits.json
        KiTS21   data/case_*/imaging.nii.gz, aggregated_MAJ_seg.nii.gz (majority of the annotators)
        KiTS23   dataset/case_*/imaging.nii.gz, segmentation.nii.gz (3: cyst); dataset/kits23.json

    Source: the READMEs of github.com/neheller/kits19, kits21 and kits23.
    """
    cases = _kits_cases(folder)
    year = _kits_year(folder, cases)
    labels_name = _KITS21_LABELS if year == "kits21" else "segmentation.nii.gz"
    found = Gathering(
        root, 1, fetch="Download the images with the challenge's own script, then try again."
    )
    for case in cases:
        labels = case / labels_name
        found.add(case.name, [case / "imaging.nii.gz"], labels if labels.exists() else None)
    table = folder / (_KITS23_TABLE if year == "kits23" else "kits.json")
    persons, noted = read_kits_table(table)
    found.findings.extend(noted)
    schema = KIDNEY_TUMOUR if year == "kits19" else KIDNEY_TUMOUR_CYST
    return found.survey(persons, layout=year, name=year, schema=schema, channels=("CT",))


def survey_msd(root: Path, content: Any) -> Survey:
    """Survey a task of the Medical Segmentation Decathlon: dataset.json lists the files.

    A file with several modalities is four-dimensional; `Case.images` then lists it once per
    channel.

    Source: Simpson et al., "A large annotated medical image dataset ...", 2019,
    arXiv:1902.09063, and the dataset.json of its tasks.

    Raises:
        InputError: "bad-dataset-json".
    """
    path = root / DATASET_JSON
    channels = _numbered(content, "modality", path)
    names = _numbered(content, "labels", path)
    if set(names) <= {0}:
        raise _bad("'labels' has no label besides background", path)
    found = Gathering(root, len(channels), fetch=_fetch_msd(root))
    listed: set[Path] = set()
    for field in ("training", "test"):
        entries = content.get(field, [])
        if not isinstance(entries, list):
            raise _bad(f"'{field}' must be a list", path)
        for entry in entries:
            image, labels = _files(root, entry, field, path)
            listed |= {image} if labels is None else {image, labels}
            if not image.name.startswith("._"):
                name, _ = split_ending(image.name, SCAN_ENDINGS)
                found.add(name, [image] * len(channels), labels)
    n_training = len(content.get("training", []))
    if (stated := content.get("numTraining", n_training)) != n_training:
        found.error(
            "wrong-case-count",
            path,
            f"numTraining is {reprlib.repr(stated)}, but {n_training} cases are listed",
            "Correct numTraining, or restore the missing cases.",
        )
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        for file in visible(root / folder):
            if file not in listed:
                found.orphan(file)
    try:
        schema = LabelSchema.from_names(names)
    except ValueError as error:
        raise _bad(textwrap.shorten(str(error), 300, placeholder=" ..."), path) from error
    name = content.get("name")
    return found.survey(
        layout="msd",
        name=name if isinstance(name, str) and name else root.name,
        schema=schema,
        channels=tuple(channels[k] for k in sorted(channels)),
    )


def survey_dicom(root: Path) -> Survey | None:
    """Survey a folder per case with ct/*.dcm and labels.nii.gz, as for digital patients.

    A case without labels is a test case. Labels are kidney and tumour. None for another layout.
    """
    folders = [
        path
        for path in visible(root)
        if (path / "ct").is_dir() or (path / "labels.nii.gz").is_file()
    ]
    if not any((f / "ct").is_dir() and (f / "labels.nii.gz").is_file() for f in folders):
        return None
    found = Gathering(root, 1)
    for folder in folders:
        labels = folder / "labels.nii.gz"
        found.add(folder.name, [folder / "ct"], labels if labels.exists() else None)
    return found.survey(layout="dicom", name=root.name, schema=KIDNEY_TUMOUR, channels=("CT",))


def _kits_cases(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if KITS_CASE.fullmatch(path.name) and path.is_dir()]


def _kits_year(folder: Path, cases: list[Path]) -> Literal["kits19", "kits21", "kits23"]:
    if any((case / _KITS21_LABELS).exists() for case in cases):
        return "kits21"
    if folder.name == "dataset" or (folder / _KITS23_TABLE).exists():
        return "kits23"
    return "kits23" if any((case / "instances").is_dir() for case in cases) else "kits19"


def _numbered(content: Any, field: str, path: Path) -> dict[int, str]:
    """Parse a field such as {"0": "background", "1": "liver"}."""
    value = content.get(field)
    if not isinstance(value, dict) or not value:
        raise _bad(f"'{field}' must map numbers to names, as in {{'0': ...}}", path)
    try:
        numbered = {int(number): name for number, name in value.items()}
    except ValueError:
        numbered = {}
    if len(numbered) != len(value) or not all(isinstance(name, str) for name in numbered.values()):
        raise _bad(
            f"'{field}' must map numbers to names, as in {{'0': ...}}, not {reprlib.repr(value)}",
            path,
        )
    if field == "modality" and sorted(numbered) != list(range(len(numbered))):
        raise _bad(
            f"'modality' must be numbered 0, 1, ..., not {reprlib.repr(sorted(numbered))}", path
        )
    return numbered


def _files(root: Path, entry: Any, field: str, path: Path) -> tuple[Path, Path | None]:
    image, labels = entry, None
    if isinstance(entry, dict):
        image, labels = entry.get("image"), entry.get("label")
    is_test = field == "test"
    if isinstance(image, str) and (is_test or isinstance(labels, str)):
        stated = stated_path(root, image, path)
        return stated, None if is_test else stated_path(root, str(labels), path)
    raise _bad(f"an entry of '{field}' does not name its files: {reprlib.repr(entry)}", path)


def _fetch_msd(root: Path) -> str:
    if any(first_channel_of(path) for path in visible(root / "imagesTr")):
        return "This looks like an nnU-Net v1 data set; convert it with nnU-Net's own converter."
    return "Download or restore the file, or remove it from dataset.json."


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-dataset-json",
        next_step="Fix the file, or download it again.",
    )
