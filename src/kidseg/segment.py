"""Scans in, labels out: what the command line and the server call."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kidseg.checkpoint import INTENDED_USE, load_model
from kidseg.config import load
from kidseg.device import Device, choose_device, tune_allocator
from kidseg.errors import BatchError, Finding, InputError, KidsegError, ModelError, UsageError
from kidseg.geometry import Grid, Volume, in_plane_pose
from kidseg.io import ReadOptions, read, save
from kidseg.io.atomic import writing
from kidseg.labels import LabelSchema
from kidseg.methods import Method, method_named
from kidseg.methods.subject import Subject, prepare
from kidseg.pipeline import Outcome, run
from kidseg.plan import Plan
from kidseg.postprocess import least_volume_ml, remove_small

__all__ = ["FORMATS", "Predictor", "Segmentation", "load_predictor", "scan_name", "segment"]

FORMATS = {"nii": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}
"""Formats of label volumes, and their endings."""

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".zip", ".dcm")


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A trained method, ready on a device.

    Attributes:
        method: what it is.
        config: its settings.
        plan: of its training set.
        schema: numbers and names of its labels.
        nets: its networks, in evaluation mode.
        device: where they run.
        sha256: of the model file.
        path: of the model file.
    """

    method: Method
    config: Any
    plan: Plan
    schema: LabelSchema
    nets: Mapping[str, nn.Module]
    device: Device
    sha256: str
    path: Path

    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        """Segment a scan, (1, slices, rows, columns) HU in canonical order.

        Raises:
            InputError: as `kidseg.methods.subject.prepare`.
        """
        start = time.perf_counter()
        subject = prepare(
            scan,
            self.config.view,
            self.plan,
            name=name,
            multiple=self.method.multiple(self.config),
        )
        prepared_s = time.perf_counter() - start
        steps = self.method.steps(self.config, self.nets, self.plan, subject, self.device)
        outcome = run(subject.image, steps, onto=scan.grid)
        start = time.perf_counter()
        radius = float(subject.body.radii_mm.prod().sqrt())
        least_ml = least_volume_ml(self.config.postprocess, radius)
        labels, removed = remove_small(outcome.labels, least_ml)
        seconds = {
            "prepare": prepared_s,
            **outcome.seconds,
            "postprocess": time.perf_counter() - start,
        }
        facts = {
            "grids": {name: _grid_facts(grid, subject) for name, grid in outcome.grids.items()},
            "removed": {
                "below_ml": round(least_ml, 4),
                "pieces": [piece.as_dict() for piece in removed],
            },
            "volumes_ml": _volumes(labels, self.schema),
        }
        findings = _findings(labels, subject, outcome, name)
        return Segmentation(labels=labels, facts=facts, findings=findings, seconds=seconds)


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """What a predictor found.

    Attributes:
        labels: (1, slices, rows, columns) uint8 on the scan's own voxels.
        facts: plain data: grids with pose, pieces removed, volumes.
        findings: what a reader of the result should know.
        seconds: wall time of each step.
    """

    labels: Volume
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]


def load_predictor(model: str | Path, device: str = "auto") -> Predictor:
    """The method in a model file.

    Raises:
        ModelError: as `load_model`; "damaged-model": it does not hold what its header says.
        UsageError, ResourceError: as `choose_device`.
    """
    path = Path(model)
    file = load_model(path)
    try:
        method = method_named(file.header["method"])
        config: Any = load(method.config, base=file.header["config"])
        plan = Plan.from_dict(file.header["plan"])
        labels = file.header["labels"]
        schema = LabelSchema.from_names(
            {int(number): name for number, name in labels["names"].items()},
            {name: tuple(ids) for name, ids in labels["regions"].items()},
        )
        nets = method.networks(config, len(schema.labels) + 1, 0)
        for name, net in nets.items():
            net.load_state_dict(dict(file.parts[name]))
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        raise ModelError(
            f"does not hold what its header says: {error}",
            path=path,
            code="damaged-model",
            next_step="Was it written by a newer kidseg?",
        ) from error
    hardware = choose_device(device, config.precision)
    for net in nets.values():
        net.to(hardware.torch).eval().requires_grad_(False)
    return Predictor(
        method=method,
        config=config,
        plan=plan,
        schema=schema,
        nets=nets,
        device=hardware,
        sha256=file.sha256,
        path=path,
    )


def segment(
    scans: Sequence[str | Path],
    model: str | Path | Predictor,
    out: str | Path,
    *,
    formats: Sequence[str] = ("nii",),
    device: str = "auto",
    options: ReadOptions | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Segment scans; labels come out on each scan's own voxels.

    Writes `<name>_seg.nii.gz` (and other formats) into `out`, and `result.json`, which is up to
    date after each scan. One bad scan does not stop the others.

    Args:
        scans: files or folders, as `kidseg.io.read` takes them.
        model: a model file, or a predictor.
        out: folder; made if it is not there.
        formats: keys of `FORMATS`.
        device: for a model file; see `choose_device`.
        options: of reading.
        overwrite: replace results that are there.
        progress: told (done, all) after each scan.

    Returns:
        An entry per scan that was segmented, as in result.json.

    Raises:
        UsageError: "unknown-format", "no-scans", "same-name" (two scans would write the same file),
            "output-exists"; all before the work starts.
        BatchError: some of several scans failed; each is named. The error itself, if there was one
            scan.
    """
    tune_allocator()
    out = Path(out)
    targets = _targets([Path(scan) for scan in scans], out, formats, overwrite)
    predictor = model if isinstance(model, Predictor) else load_predictor(model, device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}", path=out, code="not-writable"
        ) from error
    done: list[dict[str, Any]] = []
    failed: list[KidsegError] = []
    for k, (scan, files) in enumerate(targets.items()):
        try:
            done.append(_one(scan, files, predictor, options or ReadOptions(), overwrite))
        except KidsegError as error:
            failed.append(error)
        _write_result(out, predictor, done, failed)
        if progress is not None:
            progress(k + 1, len(targets))
    if failed and len(targets) == 1:
        raise failed[0]
    if failed:
        raise BatchError(
            f"{len(failed)} of {len(targets)} scans failed: " + "; ".join(map(str, failed)),
            path=out,
            code="scans-failed",
            next_step="The others are done; result.json names both.",
        )
    return done


def scan_name(path: Path) -> str:
    """What a scan's results are called: its file or folder, without endings and channel number.

    "imaging" (as KiTS names all files) and "ct" (a DICOM case) are called like their folder.
    """
    name = path.resolve().name if path.name in ("", ".", "..") else path.name
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    if name in ("imaging", "ct"):
        name = path.resolve().parent.name
    return name.removesuffix("_0000")


def _targets(
    scans: Sequence[Path], out: Path, formats: Sequence[str], overwrite: bool
) -> dict[Path, list[Path]]:
    """The files that each scan writes, none of them twice or there already."""
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(
            f"labels cannot be written as {', '.join(unknown)}",
            code="unknown-format",
            next_step=f"Choose from {', '.join(FORMATS)}.",
        )
    if not scans or not formats:
        raise UsageError("there is nothing to segment, or no format", code="no-scans")
    targets: dict[Path, list[Path]] = {}
    taken: dict[str, Path] = {}
    for scan in scans:
        name = scan_name(scan)
        if name in taken:
            raise UsageError(
                f"{taken[name]} and {scan} would both be called '{name}'",
                code="same-name",
                next_step="Segment them into different folders.",
            )
        taken[name] = scan
        targets[scan] = [out / f"{name}_seg{FORMATS[kind]}" for kind in dict.fromkeys(formats)]
    for files in targets.values():
        for file in files:
            if file.exists() and not overwrite:
                raise UsageError(
                    "it exists already",
                    path=file,
                    code="output-exists",
                    next_step="Choose another folder, or --overwrite.",
                )
    return targets


def _one(
    path: Path, files: Sequence[Path], predictor: Predictor, options: ReadOptions, overwrite: bool
) -> dict[str, Any]:
    start = time.perf_counter()
    scan = read(path, options)
    read_s = time.perf_counter() - start
    result = predictor(scan.volume, str(path))
    start = time.perf_counter()
    for file in files:
        like = path if scan.format == "nifti" and path.suffix != ".zip" else scan.native
        save(result.labels, file, like=like, overwrite=overwrite)
    written_s = time.perf_counter() - start
    seconds = {"read": read_s, **result.seconds, "write": written_s}
    return {
        "name": scan_name(path),
        "path": str(path),
        "sha256": _content(path),
        "outputs": [file.name for file in files],
        **result.facts,
        "warnings": [finding.as_dict() for finding in (*scan.findings, *result.findings)],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def _write_result(
    out: Path,
    predictor: Predictor,
    done: Sequence[Mapping[str, Any]],
    failed: Sequence[KidsegError],
) -> None:
    from importlib.metadata import version

    content = {
        "intended_use": INTENDED_USE,
        "kidseg": version("kidseg"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": str(predictor.device.torch),
        "precision": predictor.device.precision,
        "model": {
            "path": str(predictor.path),
            "sha256": predictor.sha256,
            "method": predictor.method.name,
        },
        "scans": list(done),
        "failed": [error.as_finding().as_dict() for error in failed],
    }
    with writing(out / "result.json", overwrite=True) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _grid_facts(grid: Grid, subject: Subject) -> dict[str, Any]:
    """Shape and pixel of a grid, and how its planes lie in the scan's."""
    pose = in_plane_pose(grid, subject.image.grid)
    spacing = grid.spacing_mm.reshape(-1, 3)
    figures = {
        "angle_deg": torch.rad2deg(pose.angle_rad).reshape(-1, 1),
        "scale": (spacing[:, 1:].flip(-1) / subject.base.spacing_mm[1:].flip(0)),
        "shift_mm": pose.shift_mm.reshape(-1, 2),
    }
    facts: dict[str, Any] = {
        "shape": list(grid.shape),
        "pixel_mm": [round(float(v), 4) for v in spacing[:, 1:].median(0).values],
    }
    for name, values in figures.items():
        table = values.double()
        facts[name] = {
            "median": [round(float(v), 4) for v in table.median(0).values],
            "least": [round(float(v), 4) for v in table.amin(0)],
            "most": [round(float(v), 4) for v in table.amax(0)],
        }
        if bool((table != table[:1]).any()):
            facts[name]["per_slice"] = [[round(float(v), 4) for v in row] for row in table]
    return facts


def _volumes(labels: Volume, schema: LabelSchema) -> dict[str, float]:
    """Millilitres of each region."""
    counts = np.bincount(labels.data.numpy().ravel(), minlength=256)
    voxel_ml = float(labels.grid.voxel_ml)
    return {
        name: round(float(counts[list(members)].sum()) * voxel_ml, 4)
        for name, members in schema.regions.items()
    }


def _findings(labels: Volume, subject: Subject, outcome: Outcome, path: str) -> tuple[Finding, ...]:
    """What the result itself says about how far it can be trusted."""
    from scipy import ndimage

    found = labels.data[0].numpy() > 0
    notes = []
    if not bool(subject.body.radii_mm.isfinite().all()):
        notes.append(("no-body", "no body was found in it", "Is it a CT in Hounsfield units?"))
    if found[0].any() or found[-1].any():
        cause = "what was found reaches the first or last slice; its volume is partial"
        notes.append(("cut-by-field", cause, "Use a scan that holds both kidneys whole."))
    if not found.any():
        notes.append(("nothing-found", "neither kidney nor tumour was found", "Look at the scan."))
    else:
        pieces = int(ndimage.label(found)[1])
        if pieces != 2:
            cause = f"kidneys and tumour form {pieces} connected piece(s), not two"
            notes.append(("not-two-kidneys", cause, "Single, fused or missed kidney: look at it."))
    if _touches_border(outcome.found, outcome.grids, subject):
        cause = "what was found reaches the border of the crop in the plane"
        notes.append(("crop-border", cause, "Widen crop.localizer.margin, or do without a crop."))
    return tuple(
        Finding(code=code, path=path, cause=cause, next_step=step) for code, cause, step in notes
    )


def _touches_border(found: Volume, grids: Mapping[str, Grid], subject: Subject) -> bool:
    if "crop" not in grids:
        return False
    there = found.data.argmax(0) > 0
    edges = (there[:, 0], there[:, -1], there[:, :, 0], there[:, :, -1])
    return any(bool(edge.any()) for edge in edges)


def _content(path: Path) -> str:
    """SHA-256 of a file; of a folder, over its files' digests in the order of their names."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
