"""The formats in which labels are written: volumes, segmentations, DICOM objects, surfaces.

One table names them, `FORMATS`; the command line, the checks before the work and the writing
(`kidseg.io.label_writing`) all read it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kidseg.errors import UsageError, printable
from kidseg.extras import check_installed
from kidseg.geometry import Grid
from kidseg.labels import LabelSchema

__all__ = [
    "FORMATS",
    "LabelFile",
    "LabelFormat",
    "check_formats",
    "check_grid",
    "label_files",
]

_NIFTI_SIDE = 32767  # its sizes are 16-bit integers


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """A format.

    Attributes:
        ending: of the file, after the name of the scan; with {label}, a file for each label.
        extra: of kidseg that installs what it requires.
        packages: that it requires.
        needs_series: it refers to the images of a DICOM series.
        may_be_missing: without voxels there is no file.
        needs: the format that it refers to.
        is_page: a page about scan and labels, which `kidseg.report` writes.
        needs_entropy: it shows the entropy of the segmentation, which labels alone do not have.
        measures: it has what was measured of the labels.
    """

    ending: str
    extra: str = ""
    packages: tuple[str, ...] = ()
    needs_series: bool = False
    may_be_missing: bool = False
    needs: str = ""
    is_page: bool = False
    needs_entropy: bool = False
    measures: bool = False


_DICOM: Mapping[str, Any] = {"extra": "dicom", "needs_series": True}
_MESH: Mapping[str, Any] = {
    "extra": "mesh",
    "packages": ("skimage", "trimesh"),
    "may_be_missing": True,
}

FORMATS: Mapping[str, LabelFormat] = {
    "nii": LabelFormat(ending="_seg.nii.gz"),
    "nrrd": LabelFormat(ending="_seg.nrrd"),
    "mha": LabelFormat(ending="_seg.mha"),
    "seg.nrrd": LabelFormat(ending=".seg.nrrd"),
    "dicomseg": LabelFormat(ending="_seg.dcm", packages=("highdicom",), **_DICOM),
    "labelmap": LabelFormat(ending="_labelmap.dcm", packages=("highdicom",), **_DICOM),
    "rtstruct": LabelFormat(ending="_rtstruct.dcm", packages=("contourpy",), **_DICOM),
    "sr": LabelFormat(
        ending="_report.dcm",
        packages=("highdicom",),
        needs="dicomseg",
        may_be_missing=True,
        measures=True,
        **_DICOM,
    ),
    "stl": LabelFormat(ending="_seg_{label}.stl", **_MESH),
    "obj": LabelFormat(ending="_seg.obj", **_MESH),
    "glb": LabelFormat(ending="_seg.glb", **_MESH),
    "html": LabelFormat(ending="_report.html", extra="mesh", packages=("skimage",), is_page=True),
    "entropy": LabelFormat(ending="_entropy.nii.gz", needs_entropy=True),
}
"""By the name in `--formats`."""


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A file to write.

    Attributes:
        path: of the file.
        format: key of `FORMATS`.
        label: whose surface it contains; None: all labels.
    """

    path: Path
    format: str
    label: int | None = None

    @property
    def may_be_missing(self) -> bool:
        """Is there no file if there are no voxels?"""
        return FORMATS[self.format].may_be_missing

    @property
    def is_surface(self) -> bool:
        """Does it contain surfaces?"""
        return FORMATS[self.format].extra == "mesh" and not self.is_page

    @property
    def is_page(self) -> bool:
        """Is it a page about scan and labels?"""
        return FORMATS[self.format].is_page


def check_formats(formats: Sequence[str]) -> None:
    """Check that labels can be written in these formats, with what is installed.

    Raises:
        UsageError: "unknown-format", "missing-extra"; "missing-format": one refers to another.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(
            f"labels cannot be written as {', '.join(unknown)}",
            code="unknown-format",
            next_step=f"Choose among {', '.join(FORMATS)}.",
        )
    for name in formats:
        needed = FORMATS[name].needs
        if needed and needed not in formats:
            raise UsageError(
                f"the format {name} refers to a file of the format {needed}",
                code="missing-format",
                next_step=f"Request both: --formats {needed},{name}",
            )
        extra = f"kidseg[{FORMATS[name].extra}]"
        check_installed(f"the format {name}", FORMATS[name].packages, extra)


def label_files(
    name: str, out: Path, formats: Sequence[str], schema: LabelSchema
) -> tuple[LabelFile, ...]:
    """The files of a scan of this name in these formats."""
    files = []
    for kind in dict.fromkeys(formats):
        ending = FORMATS[kind].ending
        if "{label}" not in ending:
            files.append(LabelFile(path=out / f"{name}{ending}", format=kind))
            continue
        for number, slug in _slugs(schema).items():
            path = out / f"{name}{ending.format(label=slug)}"
            files.append(LabelFile(path=path, format=kind, label=number))
    return tuple(files)


def check_grid(native: Grid, files: Sequence[LabelFile]) -> None:
    """Check that labels on this grid can be written into these files.

    Raises:
        UsageError: "too-large-for-nifti".
    """
    for file in files:
        if file.format in ("nii", "entropy") and max(native.shape) > _NIFTI_SIDE:
            raise UsageError(
                f"the scan has {max(native.shape)} voxels along an axis, too many for NIfTI",
                path=file.path,
                code="too-large-for-nifti",
                next_step="Use --formats nrrd or mha.",
            )


def _slugs(schema: LabelSchema) -> dict[int, str]:
    """{label: its name as a part of a file name}, all different."""
    found: dict[int, str] = {}
    for number, name in schema.names.items():
        plain = unicodedata.normalize("NFKD", printable(name)).encode("ascii", "ignore").decode()
        slug = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:40] or f"label-{number}"
        if slug.lower() in {other.lower() for other in found.values()}:
            slug = f"{slug}-{number}"
        found[number] = slug
    return found
