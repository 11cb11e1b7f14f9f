"""Write labels in the formats of `FORMATS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.io.atomic import writing
from kidseg.io.dicom_report import Reported
from kidseg.io.dicom_source import SourceSeries
from kidseg.io.label_formats import LabelFile
from kidseg.io.mesh import Surface, surface_of
from kidseg.io.origin import Origin
from kidseg.io.terms import unknown_terms
from kidseg.labels import Label, LabelSchema

__all__ = ["Exported", "WrittenLabels", "write_label_files"]

_MOST_CHANGE = 0.01  # of the volume, by making a surface
_CODED = ("seg.nrrd", "dicomseg", "labelmap", "rtstruct")


@dataclass(frozen=True, kw_only=True, eq=False)
class Exported:
    """Labels to write.

    Attributes:
        labels: (1, slices, rows, columns) uint8 in the voxel order of the scan.
        schema: of the labels.
        origin: of the labels.
        like: the NIfTI file whose affines are copied, or else the grid; see `kidseg.io.save`.
        source: the DICOM series; required by the formats that refer to it.
        entropy: (1, slices, rows, columns) uint8 on the same voxels, and its unit; required by the
            formats that show it.
        reported: what was measured of them, for the format sr; see `kidseg.measure.reporting`.
    """

    labels: Volume
    schema: LabelSchema
    origin: Origin
    like: Path | Grid
    source: SourceSeries | None = None
    entropy: tuple[Volume, float] | None = None
    reported: tuple[Reported, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WrittenLabels:
    """What was written.

    Attributes:
        files: {temporary file: file to be}.
        findings: "label-without-code", "no-surface", "surface-volume", "empty-report".
        facts: "surfaces": volume of the surface and of the voxels in ml, and its relative change.
    """

    files: Mapping[Path, Path]
    findings: tuple[Finding, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_label_files(
    exported: Exported, files: Sequence[LabelFile], folder: Path
) -> WrittenLabels:
    """Write labels into temporary files in a folder; pages are left out.

    Args:
        exported: the labels.
        files: to be; their names are those in the folder.
        folder: for the temporary files.

    Raises:
        InputError: see `kidseg.io.save`, `write_dicom_segmentation`, `write_structure_set`.
        ResourceError: "disk-full".
    """
    path = str(files[0].path) if files else ""
    findings: list[Finding] = []
    if any(file.format in _CODED for file in files):
        findings += unknown_terms(exported.schema, path)
    surfaces: dict[int, Surface] = {}
    if any(file.is_surface for file in files):
        surfaces = _surfaces(exported)
        findings += _surface_findings(exported.schema, surfaces, path)
    written = {}
    at = {file.format: folder / file.path.name for file in files}
    for file in files:
        temporary = folder / file.path.name
        if file.format == "sr" or file.is_page:  # refers to others, and comes last
            continue
        if _write(exported, file, temporary, surfaces):
            written[temporary] = file.path
    for file in (file for file in files if file.format == "sr"):
        if _write_report(exported, at["dicomseg"], at["sr"]):
            written[at["sr"]] = file.path
        else:
            cause = "not written: no label has voxels, so there is nothing to report"
            findings.append(Finding(code="empty-report", path=str(file.path), cause=cause))
    return WrittenLabels(
        files=written, findings=tuple(findings), facts=_facts(exported.schema, surfaces)
    )


def _write(
    exported: Exported, file: LabelFile, temporary: Path, surfaces: Mapping[int, Surface]
) -> bool:
    """Write one file; False if there is nothing to write."""
    if file.format in ("nii", "nrrd", "mha"):
        save(exported.labels, temporary, like=exported.like)
        return True
    if file.format == "entropy":
        assert exported.entropy is not None
        values, step = exported.entropy
        save(values, temporary, like=exported.like, step=step)
        return True
    if not file.is_surface:
        with writing(temporary) as opened:
            _write_segments(exported, file.format, opened)
        return True
    wanted = _coloured(exported.schema, surfaces, file.label)
    if not wanted:
        return False
    from kidseg.io.mesh_files import write_glb, write_obj, write_stl

    with writing(temporary) as opened:
        if file.format == "stl":
            write_stl(wanted[0][1], opened)
        elif file.format == "obj":
            write_obj(wanted, opened, exported.origin.notes)
        else:
            write_glb(wanted, opened, exported.origin.notes)
    return True


def _write_segments(exported: Exported, kind: str, opened: Any) -> None:
    """Write a format of named segments."""
    labels, schema, origin = exported.labels, exported.schema, exported.origin
    if kind == "seg.nrrd":
        from kidseg.io.slicer_seg import write_slicer_segmentation

        write_slicer_segmentation(labels, schema, opened, origin.notes)
        return
    source = exported.source
    assert source is not None
    if kind == "rtstruct":
        from kidseg.io.rtstruct import write_structure_set

        write_structure_set(labels, schema, source, origin, opened)
        return
    from kidseg.io.dicomseg import write_dicom_segmentation

    is_map = kind == "labelmap"
    write_dicom_segmentation(labels, schema, source, origin, opened, labelmap=is_map)


def _write_report(exported: Exported, segmentation: Path, temporary: Path) -> bool:
    """Write what was measured of the labels; False if no label has voxels."""
    from pydicom import dcmread

    from kidseg.io.dicom_report import write_measurement_report

    if not exported.reported:
        return False
    assert exported.source is not None
    known = dcmread(segmentation, stop_before_pixels=True)
    with writing(temporary) as opened:
        write_measurement_report(
            exported.reported, known, exported.schema, exported.source, exported.origin, opened
        )
    return True


def _surfaces(exported: Exported) -> dict[int, Surface]:
    """The surface of each label that occurs."""
    values = exported.labels.data[0].numpy()
    found = {}
    for number in exported.schema.ids:
        surface = surface_of(values == number, exported.labels.grid)
        if surface is not None:
            found[number] = surface
    return found


def _coloured(
    schema: LabelSchema, surfaces: Mapping[int, Surface], label: int | None
) -> list[tuple[Label, Surface]]:
    return [
        (one, surfaces[one.id])
        for one in schema.labels
        if one.id in surfaces and label in (None, one.id)
    ]


def _surface_findings(
    schema: LabelSchema, surfaces: Mapping[int, Surface], path: str
) -> list[Finding]:
    """Findings about labels without voxels, and about surfaces with another volume."""
    findings = []
    if empty := [name for number, name in schema.names.items() if number not in surfaces]:
        cause = f"without voxels, and so without a surface: {', '.join(empty)}"
        findings.append(Finding(code="no-surface", path=path, cause=cause))
    changed = [
        f"{schema.names[number]} by {surface.change:+.1%}"
        for number, surface in surfaces.items()
        if abs(surface.change) > _MOST_CHANGE
    ]
    if changed:
        cause = f"surfaces differ in volume from the voxels: {', '.join(changed)}"
        step = "Take volumes from the voxels."
        findings.append(Finding(code="surface-volume", path=path, cause=cause, next_step=step))
    return findings


def _facts(schema: LabelSchema, surfaces: Mapping[int, Surface]) -> dict[str, Any]:
    if not surfaces:
        return {}
    return {
        "surfaces": {
            schema.names[number]: {
                "volume_ml": round(surface.volume_ml, 4),
                "voxels_ml": round(surface.voxels_ml, 4),
                "change": round(surface.change, 6),
            }
            for number, surface in surfaces.items()
        }
    }
