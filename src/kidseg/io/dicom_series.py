"""Group DICOM images by series, and choose the series to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kidseg.errors import Finding, InputError
from kidseg.io.dicom_header import Image, derived_uid
from kidseg.io.scan import ReadOptions

__all__ = ["Series", "check_consistent", "choose", "group_series", "identity", "series_facts"]

_CODES = {
    "segmentation": "not-a-scan",
    "secondary capture": "not-a-scan",
    "localiser": "not-a-scan",
    "colour image": "colour-image",
    "images without position": "no-position",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """Images of one kind that share a Series Instance UID.

    Attributes:
        uid: Series Instance UID, "" if missing.
        number: Series Number, as text.
        description: Series Description.
        modality: "CT", "MR", ...; "" if not stated.
        images: its files.
        kind: "volume", or another kind: "localiser", "segmentation", ...
    """

    uid: str
    number: str
    description: str
    modality: str
    images: tuple[Image, ...]
    kind: str

    @property
    def n_images(self) -> int:
        """Number of image planes: files, or frames of multi-frame files."""
        return sum(len(image.planes) for image in self.images)

    def __str__(self) -> str:
        kind = "" if self.kind == "volume" else f", {self.kind}"
        return (
            f"series {self.number or 'without number'} '{self.description}' "
            f"({self.modality or 'no modality'}, {self.n_images} images{kind}, "
            f"UID {self.uid or 'missing'})"
        )


def group_series(images: Sequence[Image]) -> tuple[Series, ...]:
    """Group images by series, and by kind within a series; sorted by number."""
    groups: dict[tuple[str, str, str], list[Image]] = {}
    for image in images:
        key = (image.text("SeriesInstanceUID"), image.modality, image.excluded_kind)
        groups.setdefault(key, []).append(image)
    found = []
    for (uid, modality, kind), members in groups.items():
        unplaced = all(p.position_mm is None for image in members for p in image.planes)
        found.append(
            Series(
                uid=uid,
                number=members[0].text("SeriesNumber"),
                description=members[0].text("SeriesDescription"),
                modality=modality,
                images=tuple(members),
                kind=kind or ("images without position" if unplaced else "volume"),
            )
        )
    return tuple(sorted(found, key=lambda s: (s.number.zfill(8), s.uid, s.kind)))


def choose(
    series: Sequence[Series], path: Path, options: ReadOptions
) -> tuple[Series, tuple[Finding, ...]]:
    """Choose the series to read; findings name the ignored ones.

    Raises:
        InputError: "no-such-series"; "several-series"; "not-ct": volumes of another modality;
            "no-position", "colour-image", "not-a-scan", "no-volume": it contains no volume.
    """
    matching = [s for s in series if options.series in (None, s.uid, s.number)]
    if not matching:
        raise _refusal(
            f"it does not contain series {options.series}, but", series, path, "no-such-series"
        )
    volumes = [s for s in matching if s.kind == "volume"]
    usable = [s for s in volumes if s.modality == "CT" or options.values != "ct"]
    if len(usable) > 1:
        raise _refusal(f"it contains {len(usable)} series:", usable, path, "several-series")
    if volumes and not usable:
        names = ", ".join(sorted({s.modality or "not stated" for s in volumes}))
        raise InputError(
            f"its modality is {names}, not CT: {'; '.join(map(str, volumes[:8]))}",
            path=path,
            code="not-ct",
            next_step="Use a CT series.",
        )
    if not usable:
        code = _CODES.get(matching[0].kind, "not-a-scan") if len(matching) == 1 else "no-volume"
        raise _refusal("it does not contain a volume, but", matching, path, code)
    ignored = [s for s in series if s is not usable[0]]
    if not ignored:
        return usable[0], ()
    cause = f"{usable[0]} was read; ignored: {_listed(ignored)}"
    return usable[0], (Finding(code="ignored-series", path=str(path), cause=cause),)


def _refusal(cause: str, series: Sequence[Series], path: Path, code: str) -> InputError:
    steps = {
        "no-such-series": "Choose one with --series NUMBER or --series UID.",
        "several-series": "Choose one with --series NUMBER or --series UID.",
        "no-position": "Export the original series from the scanner or the archive again: "
        "Image Position (Patient) is required.",
    }
    return InputError(
        f"{cause} {_listed(series)}",
        path=path,
        code=code,
        next_step=steps.get(code, "Use a CT series of parallel slices."),
    )


def _listed(series: Sequence[Series], limit: int = 20) -> str:
    more = f"; and {len(series) - limit} more" if len(series) > limit else ""
    return "; ".join(map(str, series[:limit])) + more


def check_consistent(series: Series, path: Path) -> tuple[int, int]:
    """Check that all images share a patient and a size, (rows, columns), and return the size.

    Raises:
        InputError: "mixed-patients", "mixed-frames-of-reference", "mixed-size", "empty-axis".
    """
    for name, code in (
        ("PatientID", "mixed-patients"),
        ("FrameOfReferenceUID", "mixed-frames-of-reference"),
    ):
        counts = Counter(image.text(name) for image in series.images)
        if len(counts) > 1:
            shown = ", ".join(f"{n} images" for _, n in counts.most_common())
            raise InputError(
                f"its images differ in {name}: {shown}; their positions cannot be compared",
                path=path,
                code=code,
                next_step="Put each patient and each acquisition in a separate folder.",
            )
    sizes = Counter((image.text("Rows"), image.text("Columns")) for image in series.images)
    if len(sizes) > 1:
        shown = ", ".join(f"{r} x {c} ({n}x)" for (r, c), n in sizes.most_common())
        raise InputError(
            f"images differ in size: {shown}",
            path=path,
            code="mixed-size",
            next_step="Put each reconstruction in a separate folder.",
        )
    ((rows, columns),) = sizes
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise InputError(
            f"its images have {rows or 'no'} rows and {columns or 'no'} columns",
            path=path,
            code="empty-axis",
            next_step="The header is damaged: export the series again.",
        )
    return int(rows), int(columns)


_IDENTITY = {
    "PatientID": "patient_id",
    "StudyInstanceUID": "study_uid",
    "SeriesInstanceUID": "series_uid",
    "FrameOfReferenceUID": "frame_of_reference_uid",
}
_FACTS = {
    "PatientSex": "sex",
    "PatientAge": "age",
    "StudyDate": "study_date",
    "StudyDescription": "study_description",
    "SeriesNumber": "series_number",
    "SeriesDescription": "description",
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "model",
    "BodyPartExamined": "body_part",
    "PatientPosition": "patient_position",
    "ContrastBolusAgent": "contrast_agent",
    "ConvolutionKernel": "kernel",
    "KVP": "tube_voltage_kv",
    "SliceThickness": "slice_thickness_mm",
}


def identity(series: Series, path: Path) -> tuple[dict[str, str], tuple[Finding, ...]]:
    """The identifiers of a series. Missing ones get placeholders, which are reproducible.

    Returns:
        patient_id, study_uid, series_uid and frame_of_reference_uid; and a finding
        "missing-identity" that names the placeholders.
    """
    first = series.images[0]
    known = {name: first.text(name) for name in _IDENTITY}
    missing = [name for name, value in known.items() if not value]
    seeds = sorted(image.text("SOPInstanceUID") or image.path.name for image in series.images)
    for name in missing:
        known[name] = "unknown" if name == "PatientID" else derived_uid(name, *seeds)
    facts = {_IDENTITY[name]: value for name, value in known.items()}
    if not missing:
        return facts, ()
    cause = f"{', '.join(missing)} missing in the header; placeholders were used"
    return facts, (Finding(code="missing-identity", path=str(path), cause=cause),)


def series_facts(series: Series) -> dict[str, str]:
    """Other metadata in the header; missing elements are left out."""
    first = series.images[0]
    facts = {name: first.text(tag) for tag, name in _FACTS.items()}
    return {name: value for name, value in facts.items() if value}
