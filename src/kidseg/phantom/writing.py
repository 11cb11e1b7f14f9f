"""Write digital patients as an nnU-Net, KiTS19 or DICOM dataset, with their ground truth.

    OUT/<images and labels in the layout>
    OUT/patients.csv                    age, sex and side, for stratified splits
    OUT/truth/<case>.json               age, pose, scale, volumes, scanner
    OUT/truth/<case>_organs.nii.gz      all organ labels, on the scan's voxels
    OUT/truth/organs.json               names of the organ labels

A case appears only when it is complete: its files are written to a temporary folder, then moved.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kidseg import new_folders
from kidseg.cases import case_paths, write_dataset_json, write_patients_csv
from kidseg.config import PhantomConfig
from kidseg.errors import ResourceError, UsageError, is_disk_full
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.io.atomic import file_in_the_way, write_json
from kidseg.io.orientation import reorient
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.phantom.anatomy import ORGANS
from kidseg.phantom.patient import DigitalPatient, make_patient
from kidseg.workers import in_processes

__all__ = ["Layout", "write_patients"]

Layout = Literal["nnunet", "kits19", "dicom"]
Progress = Callable[[int, int], None]

_TEMPORARY = ".writing"
_TIMES = ("_before", "_after")
_TRUTH = "truth"
_MARK = "organs.json"
_OURS = ("imagesTr", "labelsTr", "data", "dataset.json", "patients.csv", _TEMPORARY)
# Axis order of KiTS19, slowest to fastest: right-left, front-back, and slices from head to foot.
# Source: the affines of its imaging.nii.gz files.
_KITS_ORDER = Grid((2, 2, 2), torch.diag(torch.tensor([-1.0, -1.0, -1.0, 1.0]).double()))

# The stream of a patient's axis order, and the share of files whose slices are not axial.
_ORDER = 7
_OTHER_AXES_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class _Task:
    out: Path
    config: PhantomConfig
    seed: int
    index: int
    layout: Layout
    timepoint: int = 0

    @property
    def id(self) -> str:
        if self.layout == "kits19":
            return f"case_{self.index * self.config.timepoints + self.timepoint:05d}"
        return self.patient + ("" if self.config.timepoints == 1 else _TIMES[self.timepoint])

    @property
    def patient(self) -> str:
        """Both scans of a patient have the same."""
        one = self.layout == "kits19" and self.config.timepoints == 1
        return self.id if one else f"phantom_{self.index:04d}"


def write_patients(
    out: Path,
    config: PhantomConfig,
    *,
    patients: int,
    seed: int,
    layout: Layout = "nnunet",
    jobs: int = 1,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make digital patients 0 .. patients - 1 of a seed and write them as a dataset.

    With two timepoints each patient is two cases, which patients.csv gives the same patient.

    Args:
        out: folder to create, with its parents.
        config: of the patients.
        patients: number of patients, at least 1.
        seed: of the patients; with the same settings, patient k does not depend on their number.
        layout: "nnunet" (v2 raw folder), "kits19", or "dicom" (a series per patient, NIfTI labels).
        jobs: processes; each takes about 1 GB for a large scan.
        progress: called with (done, total) after each case.
        overwrite: replace digital patients in `out`; other files there are not touched.

    Returns:
        Plain data: out, layout, seed, config, and one row per case with age, sex, side, volumes.

    Raises:
        UsageError: "output-exists", or "not-phantoms": `out` contains something else.
        ResourceError: "disk-full", "worker-killed"; patients that are already complete are kept.
    """
    if patients < 1:
        raise UsageError(
            f"the number of patients must be at least 1, not {patients}",
            code="no-patients",
            next_step="Ask for at least 1.",
        )
    check_output(out, overwrite)
    tasks = [
        _Task(out=out, config=config, seed=seed, index=k, layout=layout, timepoint=timepoint)
        for k in range(patients)
        for timepoint in range(config.timepoints)
    ]
    rows: dict[int, dict[str, Any]] = {}
    with new_folders.removed_if_empty():
        try:
            _clear(out)
            organs = {str(number): name for number, name in ORGANS.items()}
            write_json(out / _TRUTH / _MARK, organs, overwrite=True)
            for k, row in _written(tasks, jobs):
                rows[k] = row
                if progress is not None:
                    progress(len(rows), len(tasks))
            cases = [rows[k] for k in range(len(tasks))]
            _write_tables(out, layout, cases)
        except (OSError, ResourceError) as error:
            if not is_disk_full(error):
                raise
            raise _disk_full(out) from error
        finally:
            shutil.rmtree(out / _TEMPORARY, ignore_errors=True)
            if not rows:
                _remove_begun(out)
    return {
        "out": str(out),
        "layout": layout,
        "seed": seed,
        "config": asdict(config),
        "cases": cases,
    }


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse an output that exists, or that contains something other than digital patients."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out.exists() or out.is_symlink()):
        return
    if not out.is_dir():
        raise file_in_the_way(out)
    if not overwrite:
        raise UsageError(
            "it already exists",
            path=out,
            next_step="Choose another folder, or replace the digital patients in it: --overwrite.",
            code="output-exists",
        )
    if not (out / _TRUTH / _MARK).is_file():
        raise UsageError(
            "it does not contain digital patients, so it is not overwritten",
            path=out,
            next_step="Choose another folder.",
            code="not-phantoms",
        )


def _clear(out: Path) -> None:
    """Remove the output of an earlier run, the marker file last; then create the folder."""
    ours = [out / name for name in _OURS]
    ours += [path for path in sorted(out.glob("phantom_*")) if (path / "ct").is_dir()]
    ours += [path for path in sorted(out.glob(f"{_TRUTH}/*")) if path.name != _MARK]
    for path in [*ours, out / _TRUTH]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    new_folders.create(out / _TRUTH)


def _remove_begun(out: Path) -> None:
    """If there is no file but the marker, remove it and our folders, so that a repeat can start."""
    if any(path.is_file() for path in out.rglob("*") if path != out / _TRUTH / _MARK):
        return
    shutil.rmtree(out / _TRUTH, ignore_errors=True)
    ours = [out / name for name in _OURS]
    cases = [*out.glob("data/*"), *out.glob("phantom_*/ct"), *out.glob("phantom_*")]
    for path in [*cases, *ours]:
        with suppress(OSError):  # other folders that are not empty
            path.rmdir()


def _written(tasks: list[_Task], jobs: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Make and write each case, in one or several processes; yields them as they complete."""
    if jobs == 1 or len(tasks) == 1:
        for k, task in enumerate(tasks):
            yield k, _write_case(task)
        return
    yield from in_processes(_write_case, tasks, jobs)


def _write_case(task: _Task) -> dict[str, Any]:
    """Make one patient, write it to a temporary folder and move it, the image last."""
    patient = make_patient(task.config, seed=task.seed, index=task.index, timepoint=task.timepoint)
    temporary = task.out / _TEMPORARY / task.id
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for path in _save_files(task, patient, temporary):
            target = task.out / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    truth = patient.truth
    return {
        "case": task.id,
        "patient": task.patient,
        "age_years": truth["age_years"],
        "sex": truth["sex"],
        "side": truth["tumour_side"],
        "phase": truth["phase"],
        "shape": truth["scanner"]["shape"],
        "kidney_ml": truth["kidney_ml"],
        "tumour_ml": truth["tumour_ml"],
    }


def _save_files(task: _Task, patient: DigitalPatient, root: Path) -> list[Path]:
    """Write all files of a case below `root`; returns them in the order in which to move them."""
    truth = root / _TRUTH / f"{task.id}.json"
    organs = root / _TRUTH / f"{task.id}_organs.nii.gz"
    (image,), labels = case_paths(root, task.layout, task.id, 1)
    for path in (truth, organs, labels, image):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        truth,
        {"case": task.id, "seed": task.seed, "index": task.index, **patient.truth},
        overwrite=True,
    )
    for volume, path in ((patient.organs, organs), (patient.labels, labels)):
        save(_ordered(volume, task), path)
    if task.layout == "dicom":
        from kidseg.io.dicom import write_series

        write_series(patient.scan, image, facts=_series_facts(task, patient))
    else:
        save(_ordered(patient.scan, task), image)
    return [truth, organs, labels, image]


def _ordered(volume: Volume, task: _Task) -> Volume:
    """In the layout's axis order; in the broad cohort as nnU-Net's data in any of the 48."""
    if task.layout == "kits19":
        return reorient(volume, _KITS_ORDER)
    if task.layout == "dicom" or not task.config.is_broad:
        return volume
    rng = np.random.default_rng([task.seed, task.index, _ORDER + 10 * task.timepoint])
    order = rng.permutation(3) if rng.random() < _OTHER_AXES_SHARE else np.arange(3)
    matrix = volume.grid.mm_from_index.numpy().copy()
    matrix[:3, :3] = matrix[:3, :3][:, order] * rng.choice([-1.0, 1.0], size=3)
    return reorient(volume, Grid((2, 2, 2), torch.from_numpy(matrix)))


def _series_facts(task: _Task, patient: DigitalPatient) -> dict[str, str]:
    age = patient.truth["age_years"]
    return {
        "patient_id": task.patient,
        "sex": {"female": "F", "male": "M"}[patient.truth["sex"]],
        "age": f"{int(age):03d}Y" if age >= 2 else f"{int(age * 12):03d}M",
        "description": f"digital patient, {patient.truth['phase']}",
        "seed": f"{task.seed}/{task.index}/{task.timepoint}/{_settings(task.config)}",
    }


def _settings(config: PhantomConfig) -> str:
    """The settings as text for the UIDs; without a later setting as before there was one."""
    text = repr(config)
    for later in ("implant_share", "neighbour_share", "apposed_share"):
        text = text.replace(f"{later}=0.0, ", "")
    return text


def _write_tables(out: Path, layout: Layout, cases: Iterable[dict[str, Any]]) -> None:
    """Write patients.csv, and for nnU-Net dataset.json last, which completes the dataset."""
    cases = list(cases)
    write_patients_csv(
        out,
        [
            {
                "case": row["case"],
                "patient": row["patient"],
                "age_years": row["age_years"],
                "sex": row["sex"],
                "side": row["side"],
            }
            for row in cases
        ],
    )
    if layout == "nnunet":
        write_dataset_json(out, channels=("CT",), schema=KIDNEY_TUMOUR, n_training=len(cases))


def _disk_full(out: Path) -> ResourceError:
    return ResourceError(
        "the disk is full; only complete patients were kept",
        path=out,
        next_step="Free some space and run again with --overwrite.",
        code="disk-full",
    )
