"""The files that are written for a scan: all of them, or none."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.errors import Finding, InputError, KidsegError, ResourceError, UsageError, converted
from kidseg.geometry import Grid, Volume, resample
from kidseg.io import ReadOptions, read_grid, save
from kidseg.io.atomic import check_writable, make_folder
from kidseg.io.orientation import reorient
from kidseg.segment.index import RESULT, Index
from kidseg.segment.predictor import Predictor, Segmentation
from kidseg.segment.scans import ScanFiles
from kidseg.segment.sources import Source

__all__ = [
    "FORMATS",
    "Outputs",
    "Written",
    "check_grid",
    "check_outputs",
    "earlier_outputs",
    "outputs_of",
    "prepare_folder",
    "staging",
    "write_outputs",
]

FORMATS = {"nii": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}
"""File extensions of the label volume formats."""

_NAME_BYTES = 255  # limit of a file name on all common file systems
_NIFTI_SIDE = 32767  # its sizes are 16-bit integers


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The output files of a scan.

    Attributes:
        labels: a file for each format.
        figure: of the steps; None if not requested.
    """

    labels: tuple[Path, ...]
    figure: Path | None

    @property
    def all(self) -> list[Path]:
        """All files."""
        return [*self.labels, *([] if self.figure is None else [self.figure])]


@dataclass(frozen=True, kw_only=True)
class Written:
    """Outputs that are complete, but not in place yet.

    Attributes:
        files: {temporary file: output}.
        findings: "no-figure".
        seconds: wall time of each kind of output.
    """

    files: Mapping[Path, Path]
    findings: tuple[Finding, ...]
    seconds: Mapping[str, float]


def outputs_of(name: str, out: Path, formats: Sequence[str], *, figure: bool) -> Outputs:
    """The output files of a scan of this name."""
    return Outputs(
        labels=tuple(out / f"{name}_seg{FORMATS[kind]}" for kind in dict.fromkeys(formats)),
        figure=out / f"{name}_steps.png" if figure else None,
    )


def check_outputs(
    sources: Sequence[Source],
    outputs: Mapping[str, Outputs],
    index: Index,
    *,
    overwrite: bool,
    resumable: bool,
) -> tuple[Source, ...]:
    """Check that no output exists; names that are too long become errors of their scans.

    Scans with an error have no outputs.

    Args:
        sources: the scans.
        outputs: of each, by name.
        index: of the folder.
        overwrite: replace files, but no folders.
        resumable: existing results may be those of a stopped run.

    Raises:
        UsageError: "output-exists".
    """
    checked, taken = [], []
    for source in sources:
        if source.error is not None:
            checked.append(source)
            continue
        files = outputs[source.name].all
        longest = max(files, key=lambda file: len(os.fsencode(file.name)))
        if len(os.fsencode(longest.name)) > _NAME_BYTES:
            checked.append(replace(source, error=_too_long(source, longest)))
            continue
        checked.append(source)
        taken += [f for f in files if f.is_dir() or (not overwrite and os.path.lexists(f))]
        if source.name in index.scans and not overwrite:
            taken.append(files[0].with_name(RESULT))
    if taken:
        first = taken[0]
        kind = "a folder of this name" if first.is_dir() else "the file"
        if first.name == RESULT:
            kind = "a result of this scan"
        more = f", and so do {len(taken) - 1} others" if len(taken) > 1 else ""
        step = (
            ", use --overwrite, or --resume after a stopped run."
            if resumable
            else (", or use --overwrite.")
        )
        if first.is_dir():
            step = "."
        raise UsageError(
            f"{kind} already exists{more}",
            path=first,
            code="output-exists",
            next_step=f"Choose another folder{step}",
        )
    return tuple(checked)


def prepare_folder(out: Path) -> None:
    """Create the folder of the results, and check that it can be written to.

    Raises:
        InputError: "not-writable".
        UsageError: "output-exists": result.json is a folder.
        ResourceError: "disk-full".
    """
    make_folder(out)
    check_writable(out / RESULT, overwrite=True)


def check_grid(native: Grid, outputs: Outputs) -> None:
    """Check that labels on this grid can be written in the formats.

    Raises:
        UsageError: "too-large-for-nifti".
    """
    for file in outputs.labels:
        if file.name.endswith(".nii.gz") and max(native.shape) > _NIFTI_SIDE:
            raise UsageError(
                f"the scan has {max(native.shape)} voxels along an axis, too many for NIfTI",
                path=file,
                code="too-large-for-nifti",
                next_step="Use --formats nrrd or mha.",
            )


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder for temporary files beside the outputs; removed in the end.

    Errors name the outputs, not the temporary files.

    Raises:
        ResourceError: "disk-full".
        InputError: "not-accessible".
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".kidseg-", dir=out) as name:
            try:
                yield Path(name)
            except KidsegError as error:
                raise _renamed(error, name, str(out)) from error
    except OSError as error:
        known = converted(error, out)
        assert known is not None
        raise known from error


def write_outputs(
    folder: Path,
    outputs: Outputs,
    name: str,
    scan: ScanFiles,
    result: Segmentation,
    predictor: Predictor,
    options: ReadOptions,
    known: tuple[Volume, Volume | None] | None,
) -> Written:
    """Write labels and figure into a temporary folder.

    Args:
        folder: see `staging`.
        outputs: where they belong.
        name: of the scan.
        scan: as read.
        result: of its segmentation.
        predictor: that segmented it.
        options: of reading.
        known: reference labels and voxels to ignore, for the figure.

    Raises:
        InputError, ResourceError: see `kidseg.io.save`.
    """
    files, findings = {}, []
    start = time.perf_counter()
    native = scan.first.native
    labels = result.labels
    if not reorient(labels, native).grid.same_as(native):  # slightly sheared
        labels = resample(labels, native, mode="nearest")
    like = _like(scan, options)
    for file in outputs.labels:
        files[save(labels, folder / file.name, like=like)] = file
    seconds = {"write": time.perf_counter() - start}
    if outputs.figure is not None:
        start = time.perf_counter()
        drawn = folder / outputs.figure.name
        finding = _draw(drawn, name, scan, result, predictor, known)
        seconds["figure"] = time.perf_counter() - start
        if finding is None:
            files[drawn] = outputs.figure
        else:
            findings.append(finding)
    return Written(files=files, findings=tuple(findings), seconds=seconds)


def earlier_outputs(
    old: Mapping[str, Any] | None, written: Sequence[Path], out: Path
) -> tuple[Finding, ...]:
    """A finding about files of an earlier result that the new one does not replace."""
    new = {file.name for file in written}
    names = [] if old is None else [n for n in old["outputs"] if n not in new]
    left = [name for name in names if (out / name).exists()]
    if not left:
        return ()
    return (
        Finding(
            code="earlier-output",
            path=str(out),
            cause=f"{', '.join(left)} is of an earlier segmentation of this scan",
            next_step="Remove it, or request the same outputs again.",
        ),
    )


def _like(scan: ScanFiles, options: ReadOptions) -> Path | Grid:
    """The NIfTI file whose affines are copied, or else the grid."""
    first, native = scan.first, scan.first.native
    if first.format != "nifti" or first.path.suffix.lower() == ".zip":
        return native
    if options.trust is not None or options.spacing_mm is not None:
        return native
    same = read_grid(first.path, ReadOptions(values="any")).same_as(native)
    return first.path if same else native


def _draw(
    file: Path,
    name: str,
    scan: ScanFiles,
    result: Segmentation,
    predictor: Predictor,
    known: tuple[Volume, Volume | None] | None,
) -> Finding | None:
    """Draw the figure of a scan; a finding if it fails."""
    from kidseg.segment.figure import draw_steps

    reference, ignore = known or (None, None)
    try:
        draw_steps(
            file, name, scan.volume, result, predictor.schema, reference=reference, ignore=ignore
        )
    except ResourceError:
        raise
    except Exception as error:  # whatever fails in a picture, the labels are right
        return Finding(
            code="no-figure",
            path=str(scan.paths[0]),
            cause=f"the figure could not be drawn: {_first_line(error)}",
            next_step="The labels are written. Fix the cause, and segment again with --overwrite.",
        )
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _too_long(source: Source, file: Path) -> InputError:
    return InputError(
        f"its name is too long for the file of its results, {len(os.fsencode(file.name))} bytes",
        path=source.path,
        code="name-too-long",
        next_step="Give the scan a shorter name.",
    )


def _renamed(error: KidsegError, old: str, new: str) -> KidsegError:
    """The same error with another path."""
    return type(error)(
        error.cause.replace(old, new),
        path=None if error.path is None else error.path.replace(old, new),
        next_step=error.next_step.replace(old, new),
        code=error.code,
    )
