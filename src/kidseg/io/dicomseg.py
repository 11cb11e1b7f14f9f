"""Write labels as a DICOM Segmentation, with highdicom: binary, or as a label map.

Segments are numbered 1, 2, ... in the order of the labels; those of a label map keep the numbers of
the labels. Frames without any voxel are left out. Frames of acquired slices refer to their images;
those of a repaired series have positions of their own.

Source: DICOM PS3.3, A.51 (Segmentation IOD), C.8.20; CP and supplement 243 (Label Map).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from kidseg.errors import InputError, printable
from kidseg.geometry import Volume
from kidseg.io.dicom_header import derived_uid, quiet
from kidseg.io.dicom_source import EXPORT_AGAIN, SourceSeries, file_name
from kidseg.io.origin import Origin
from kidseg.io.terms import Term, term_of
from kidseg.labels import Code, Label, LabelSchema
from kidseg.provenance import RESEARCH_USE

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom import Dataset

__all__ = [
    "DESCRIPTION",
    "SERIES_NUMBERS",
    "concept",
    "deriving",
    "equipment_of",
    "long_string",
    "segment_names",
    "write_dicom_segmentation",
]

SERIES_NUMBERS = {"binary": 9101, "labelmap": 9102, "rtstruct": 9103, "report": 9104, "pages": 9105}
"""Series Numbers of the objects that kidseg adds to a study, by kind."""

DESCRIPTION = "kidseg labels (RESEARCH USE ONLY)"
"""Series Description of these objects."""

_LONG_STRING = 64  # characters


def write_dicom_segmentation(
    labels: Volume,
    schema: LabelSchema,
    source: SourceSeries,
    origin: Origin,
    file: BinaryIO,
    *,
    labelmap: bool = False,
) -> None:
    """Write a DICOM Segmentation of all labels of the schema, also of empty ones.

    Args:
        labels: (1, slices, rows, columns) uint8 on `source.native`.
        schema: of the labels.
        source: the series that was segmented.
        origin: of the labels.
        file: to write to.
        labelmap: a label map, one frame for each slice, instead of one for each slice and segment.

    Raises:
        InputError: "dicom-refused": the headers of the series are not valid enough.
    """
    assert labels.grid.shape == source.native.shape
    with deriving(source.path, source.headers):
        dataset = _segmentation(labels, schema, source, origin, labelmap)
        dataset.ImageComments = origin.notes
        if source.is_multiframe and not source.is_acquired:
            _refer_to_frames(dataset, source)
        if not origin.method:  # optional, and highdicom would have it: claim no algorithm
            for segment in dataset.SegmentSequence:
                segment.pop("SegmentationAlgorithmIdentificationSequence", None)
        dataset.save_as(file, enforce_file_format=True)


@contextmanager
def deriving(path: Path, headers: Sequence[Dataset]) -> Iterator[None]:
    """Convert what the headers of a series lack, or have invalid, to an `InputError` of it.

    Other errors, which are not those of the series, pass as they are.

    Args:
        path: of the series.
        headers: of its images.

    Raises:
        InputError: "dicom-refused": no object can be made from them.
    """
    try:
        with quiet():
            yield
    except (AttributeError, KeyError) as error:
        if (cause := _missing(error, headers)) is None:
            raise
        raise _refused(path, cause) from error
    except (ValueError, TypeError) as error:
        if not _is_of_library(error):
            raise
        text = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise _refused(path, text) from error


def _refused(path: Path, cause: str) -> InputError:
    return InputError(
        f"its headers cannot be used in a derived DICOM object ({cause})",
        path=path,
        code="dicom-refused",
        next_step=EXPORT_AGAIN,
    )


def _missing(error: AttributeError | KeyError, headers: Sequence[Dataset]) -> str | None:
    """Which element the error is about, and of which image; None if it is not about one of them."""
    from pydicom.datadict import tag_for_keyword

    for header in headers:
        file = file_name(header)
        if isinstance(error, AttributeError):
            tag = tag_for_keyword(error.name or "")
            if tag is not None and any(error.obj is one for one in _with_items(header)):
                return f"{error.name} ({tag >> 16:04x},{tag & 0xFFFF:04x}) is missing in {file}"
        # highdicom looks up by it which modules a kind of image has.
        elif error.args == (kind := header.get("SOPClassUID"),):
            return f"SOPClassUID (0008,0016) of {file} is {kind}, which no known kind of image has"
    return None


def _with_items(dataset: Dataset) -> Iterator[Dataset]:
    """A data set, and all items of its sequences, of theirs, and so on."""
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _with_items(item)


def _is_of_library(error: Exception) -> bool:
    """Whether an error was raised by highdicom or pydicom, which check what they are given."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return frames[-1].f_globals["__name__"].split(".")[0] in ("highdicom", "pydicom")


def _segmentation(
    labels: Volume, schema: LabelSchema, source: SourceSeries, origin: Origin, labelmap: bool
) -> Any:
    from highdicom import UID
    from highdicom.seg import Segmentation

    numbers = _numbered(labels, schema, labelmap)
    if source.is_acquired and source.is_multiframe:  # in the order of the frames in the file
        numbers = numbers[np.argsort(source.frames)]
    return Segmentation(
        source_images=source.headers,
        pixel_array=numbers,
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=_descriptions(schema, source, origin, labelmap),
        series_instance_uid=UID(),
        series_number=SERIES_NUMBERS["labelmap" if labelmap else "binary"],
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="kidseg",
        manufacturer_model_name="kidseg",
        software_versions=origin.version,
        device_serial_number=origin.model_sha256[:_LONG_STRING] or "none",
        content_description=RESEARCH_USE,
        content_label="KIDSEG",
        contributing_equipment=[equipment_of(origin)],
        series_description=DESCRIPTION,
        specific_character_set="ISO_IR 192",
        # Without any voxel all frames are written, of which highdicom would have to warn.
        omit_empty_frames=bool(numbers.any()),
        **({} if source.is_acquired else _geometry(source)),
    )


def _refer_to_frames(dataset: Dataset, source: SourceSeries) -> None:
    """Make frames refer to those of the volume that was segmented.

    highdicom takes the first frame at their position, which may be of another phase in the file.
    """
    for item in dataset.PerFrameFunctionalGroupsSequence:
        place = item.PlanePositionSequence[0].ImagePositionPatient
        image = source.image_at(np.array(place, dtype=np.float64))
        for derivation in item.get("DerivationImageSequence") or []:
            if image is None:
                item.DerivationImageSequence = []
            else:
                derivation.SourceImageSequence[0].ReferencedFrameNumber = source.frames[image] + 1


def _geometry(source: SourceSeries) -> dict[str, Any]:
    """Where the frames are, if they are not simply the images."""
    from highdicom import PlanePositionSequence
    from highdicom.content import PixelMeasuresSequence, PlaneOrientationSequence

    matrix = source.lps_from_index
    step, down, along = matrix[:3, 0], matrix[:3, 1], matrix[:3, 2]
    spacing = float(np.linalg.norm(down)), float(np.linalg.norm(along))
    along, down = along / spacing[1], down / spacing[0]
    apart = abs(float(step @ np.cross(along, down)))
    places = matrix[:3, 3] + np.outer(np.arange(source.native.shape[0]), step)
    thickness = source.headers[0].get("SliceThickness") or apart
    return {
        "pixel_measures": PixelMeasuresSequence(
            pixel_spacing=spacing, slice_thickness=float(thickness), spacing_between_slices=apart
        ),
        "plane_orientation": PlaneOrientationSequence("PATIENT", [*along, *down]),
        "plane_positions": [PlanePositionSequence("PATIENT", place) for place in places],
    }


def _in_order(schema: LabelSchema) -> list[Label]:
    return sorted(schema.labels, key=lambda label: label.id)


def _numbered(labels: Volume, schema: LabelSchema, labelmap: bool) -> np.ndarray:
    """(slices, rows, columns) uint8 numbers of segments."""
    values: np.ndarray = labels.data[0].numpy()
    if labelmap:
        return values
    number_of = np.zeros(256, np.uint8)
    for k, label in enumerate(_in_order(schema)):
        number_of[label.id] = k + 1
    return np.asarray(number_of[values])


def _descriptions(
    schema: LabelSchema, source: SourceSeries, origin: Origin, labelmap: bool
) -> list[SegmentDescription]:
    """Of the segments, in their order."""
    names, series = segment_names(schema), str(source.headers[0].SeriesInstanceUID)
    found = []
    for k, label in enumerate(_in_order(schema)):
        name, number = names[label.id], label.id if labelmap else k + 1
        uid = derived_uid("tracking", series, name)
        found.append(_description(number, name, uid, term_of(label, schema), label.rgb, origin))
    return found


def _description(
    number: int, name: str, uid: str, term: Term, rgb: tuple[int, int, int], origin: Origin
) -> SegmentDescription:
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    description = SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=concept(term.category),
        segmented_property_type=concept(term.kind),
        algorithm_type=origin.algorithm_type or "SEMIAUTOMATIC",
        algorithm_identification=_algorithm(origin),
        tracking_uid=uid,
        tracking_id=name,
        anatomic_regions=None if term.region is None else [concept(term.region)],
        display_color=CIELabColor.from_rgb(*rgb),
    )
    if term.side is not None:
        side = [concept(term.side)]
        if term.region is None:
            kind = description.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = side
        else:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
    return description


def _algorithm(origin: Origin) -> Any:
    """Identification of what made the labels; removed in the end if that is not known."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    return AlgorithmIdentificationSequence(
        name=f"kidseg {origin.method}" if origin.method else "unknown",
        family=codes.DCM.ArtificialIntelligence,
        version=origin.version,
        source="kidseg",
        parameters=origin.hashes or None,
    )


def equipment_of(origin: Origin) -> Any:
    """kidseg as equipment that contributed, with the intended use and the origin."""
    from highdicom import ContributingEquipment
    from pydicom.sr.codedict import codes

    return ContributingEquipment(
        manufacturer="kidseg",
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name="kidseg",
        software_versions=origin.version,
        contribution_description=origin.notes,
    )


def long_string(text: str) -> str:
    """Text as one value of a long string (LO): printable, 64 characters, without backslash."""
    return " ".join(printable(text).split()).replace("\\", "/")[:_LONG_STRING]


def segment_names(schema: LabelSchema) -> dict[int, str]:
    """{label: its name as a long string}, all different, as identifiers are made of them."""
    found: dict[int, str] = {}
    for number, full in sorted(schema.names.items()):
        name, own = long_string(full), f" ({number})"
        if not name or name in found.values():
            name = f"{name[: _LONG_STRING - len(own)].rstrip()}{own}".strip()
        found[number] = name
    return found


def concept(code: Code) -> CodedConcept:
    """The code as highdicom writes it."""
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)
