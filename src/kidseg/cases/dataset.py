"""Open a data set in any layout; file paths for a new one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kidseg.cases.annotated import structures_text, survey_annotated
from kidseg.cases.case import Dataset, Layout, Survey
from kidseg.cases.folders import KITS_CASE, kits_folder, survey_dicom, survey_kits, survey_msd
from kidseg.cases.naming import DATASET_JSON, channel_file
from kidseg.cases.nnunet import survey_nnunet
from kidseg.cases.paths import problem_at, visible
from kidseg.cases.persons import load_json
from kidseg.cases.roi_rules import RoiRules, rules_of, unused_rules
from kidseg.errors import InputError, KidsegWarning, UsageError, first_error, not_found

__all__ = ["case_paths", "open_dataset", "survey_dataset"]

_SUPPORTED = (
    "A data set has a dataset.json (nnU-Net v2 or Medical Segmentation Decathlon), "
    "data/case_00000 or dataset/case_00000 (KiTS19, 21, 23), a folder per case with ct/ and "
    "labels.nii.gz (DICOM), or DICOM series with RTSTRUCT or SEG objects in any folders."
)


def open_dataset(root: str | Path, rules: RoiRules | None = None) -> Dataset:
    """Open a data set in any of the layouts of `Layout`, detected from its content.

    No voxels are read; `kidseg.check.check` does that. Of DICOM annotations, a `KidsegWarning` says
    which structures are which labels, and what is missing.

    Args:
        root: the folder.
        rules: for the structures of DICOM annotations; by default its own, or the usual ones.

    Raises:
        InputError: "not-found", "not-a-dataset"; or the first error that `survey_dataset`
            finds, with the number of further errors.
        UsageError: see `survey_dataset`.
    """
    survey = survey_dataset(root, rules)
    if (error := first_error(survey.findings, "'kidseg check' lists every problem.")) is not None:
        raise error
    if survey.structures:
        said = [structures_text(survey.structures), *_warned(survey)]
        warnings.warn(f"{root}: {'; '.join(said)}", KidsegWarning, stacklevel=2)
    return survey.dataset


def _warned(survey: Survey) -> Iterator[str]:
    """The warnings about a data set of DICOM annotations, by number."""
    counts = Counter(f.code for f in survey.findings if f.code != "structures-without-label")
    yield from (f"{n} {code.replace('-', ' ')}" for code, n in counts.items())


def survey_dataset(root: str | Path, rules: RoiRules | None = None) -> Survey:
    """Read the folders and tables of a data set and report every problem.

    Args:
        root: the folder.
        rules: for the structures of DICOM annotations; by default its own, or the usual ones.

    Raises:
        UsageError: "no-annotations": there are rules, but the labels are not DICOM annotations.
        InputError: "not-found", "unreadable"; "not-a-dataset": none of the layouts matches;
            "no-dataset-json", "bad-json", "bad-dataset-json", "unset-variable": a layout matches,
            but its description is missing or invalid.
    """
    root = Path(root)
    if (problem := problem_at(root)) is not None:
        missing = not_found(root)
        raise InputError(problem, path=root, code=missing.code, next_step=missing.next_step)
    try:
        survey = _survey(root, rules)
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            path=error.filename or root,
            code="unreadable",
            next_step="Check its permissions.",
        ) from error
    if survey.dataset.layout != "annotated":
        unused_rules(rules, root)
    return survey


def _survey(root: Path, rules: RoiRules | None) -> Survey:
    if (root / DATASET_JSON).is_file():
        return _survey_described(root)
    if (root / "imagesTr").is_dir():
        raise InputError(
            "imagesTr exists, as in nnU-Net and Decathlon data sets, but dataset.json is missing",
            path=root,
            code="no-dataset-json",
            next_step="Download or write dataset.json.",
        )
    if root.is_dir():
        if (folder := kits_folder(root)) is not None:
            return survey_kits(root, folder)
        if (survey := survey_dicom(root)) is not None:
            return survey
        if (survey := survey_annotated(root, rules_of(root, rules))) is not None:
            return survey
    raise InputError(
        "not a data set",
        path=root,
        code="not-a-dataset",
        next_step=_named_instead(root) or _SUPPORTED,
    )


def _named_instead(root: Path) -> str:
    """A next step if the data set is a folder above, or a single one in this folder."""
    whole = root.absolute()
    above = [
        folder
        for folder in whole.parents[:2]
        if (folder / DATASET_JSON).is_file() or KITS_CASE.fullmatch(folder.name)
    ]
    if KITS_CASE.fullmatch(whole.name):
        above = [whole.parent]
    inside = [folder for folder in visible(root) if (folder / DATASET_JSON).is_file()]
    if above or len(inside) == 1:
        return f"The data set is {(above or inside)[0]}: name that folder."
    return ""


def case_paths(
    root: Path, layout: Layout, case_id: str, n_channels: int = 1
) -> tuple[tuple[Path, ...], Path]:
    """Paths of the images (a file or a DICOM folder) and the labels of a training case.

    Raises:
        UsageError: "bad-case-name": not allowed in this layout; "one-channel": KiTS and DICOM
            data sets have one channel; "bad-layout": none is written so.
    """
    kits = layout in ("kits19", "kits21", "kits23")
    if not case_id or Path(case_id).name != case_id or "\\" in case_id or case_id.startswith("."):
        raise UsageError(
            f"'{case_id}' is not a valid case name",
            code="bad-case-name",
            next_step="Give it a plain name, without slashes, not beginning with a dot.",
        )
    if kits and not KITS_CASE.fullmatch(case_id):
        raise UsageError(
            f"'{case_id}' is not a valid name for a KiTS case",
            code="bad-case-name",
            next_step="KiTS cases are named case_00000, case_00001 and so on.",
        )
    if layout == "annotated":
        raise UsageError(
            "no data set is written in the layout of DICOM annotations",
            code="bad-layout",
            next_step="Write it as nnU-Net or KiTS.",
        )
    if n_channels != 1 and (kits or layout == "dicom"):
        raise UsageError(
            f"layout {layout} has one channel, not {n_channels}",
            code="one-channel",
            next_step="Write it in the layout of nnU-Net v2.",
        )
    if kits:
        folder = root / ("dataset" if layout == "kits23" else "data") / case_id
        name = "aggregated_MAJ_seg" if layout == "kits21" else "segmentation"
        return (folder / "imaging.nii.gz",), folder / f"{name}.nii.gz"
    if layout == "dicom":
        return (root / case_id / "ct",), root / case_id / "labels.nii.gz"
    labels = root / "labelsTr" / f"{case_id}.nii.gz"
    if layout == "msd":
        return (root / "imagesTr" / f"{case_id}.nii.gz",) * n_channels, labels
    images = [root / "imagesTr" / channel_file(case_id, k, ".nii.gz") for k in range(n_channels)]
    return tuple(images), labels


def _survey_described(root: Path) -> Survey:
    path = root / DATASET_JSON
    content = load_json(path)
    if isinstance(content, dict) and {"channel_names", "file_ending"} & set(content):
        return survey_nnunet(root, content)
    if isinstance(content, dict) and {"modality", "training"} & set(content):
        return survey_msd(root, content)
    raise InputError(
        "neither 'channel_names' (nnU-Net v2) nor 'modality' and 'training' (Decathlon) found",
        path=path,
        code="bad-dataset-json",
        next_step="Fix the file, or download it again.",
    )
