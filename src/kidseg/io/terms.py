"""What a label is called in DICOM and in 3D Slicer: SNOMED CT codes for its name.

A kidney is an anatomical structure; a tumour or a cyst is a morphologically abnormal structure in
the anatomic region kidney. The side is a modifier, if the name of the label states it. A label
that is not recognized is "Tissue", under its own name.

Source of the codes: DICOM PS3.16, CID 7150 (categories), CID 7151 and 7159 (types), CID 244
(laterality), as in `pydicom.sr.codedict`; the tests compare with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kidseg.errors import Finding
from kidseg.labels import KIDNEY_TUMOUR_CYST, Code, Label, LabelSchema
from kidseg.meaning import Side, side_of

__all__ = ["Term", "side_code", "term_of", "unknown_terms"]

_ANATOMICAL = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
_ABNORMAL = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
_TISSUE = Code(value="85756007", scheme="SCT", meaning="Tissue")
_SIDES: Mapping[Side, Code] = {
    "left": Code(value="7771000", scheme="SCT", meaning="Left"),
    "right": Code(value="24028007", scheme="SCT", meaning="Right"),
}
_USUAL = {KIDNEY_TUMOUR_CYST.meaning[label.id]: label.code for label in KIDNEY_TUMOUR_CYST.labels}


@dataclass(frozen=True, kw_only=True)
class Term:
    """The coded meaning of a label.

    Attributes:
        category: anatomical structure, abnormal structure, or tissue.
        kind: kidney, neoplasm, cyst, or tissue.
        side: of the kidney, or of the kidney with the lesion; None if the name states none.
        region: in which a lesion lies; None for a kidney, or if it is not known.
    """

    category: Code
    kind: Code
    side: Code | None = None
    region: Code | None = None


def term_of(label: Label, schema: LabelSchema) -> Term:
    """The coded meaning of a label of this schema."""
    meaning = schema.meaning[label.id]
    stated = side_of(label.name)
    side = None if stated is None else side_code(stated)
    kind = label.code or _USUAL.get(meaning)
    if meaning is None or kind is None:
        return Term(category=_TISSUE, kind=kind or _TISSUE, side=side)
    if meaning == "kidney":
        return Term(category=_ANATOMICAL, kind=kind, side=side)
    return Term(category=_ABNORMAL, kind=kind, side=side, region=_USUAL["kidney"])


def side_code(side: Side) -> Code:
    """The code of a side, from the view of the patient."""
    return _SIDES[side]


def unknown_terms(schema: LabelSchema, path: str) -> tuple[Finding, ...]:
    """A finding "label-without-code" that names the labels without a code of their own."""
    names = [label.name for label in schema.labels if term_of(label, schema).kind == _TISSUE]
    if not names:
        return ()
    cause = f"no SNOMED CT code is known for {', '.join(names)}: coded as 'Tissue', under this name"
    return (Finding(code="label-without-code", path=path, cause=cause),)
