"""SNOMED CT codes of labels: those of DICOM, and an honest answer to names that are not known."""

from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from kidseg.io.terms import Term, term_of, unknown_terms
from kidseg.labels import Code, Label, LabelSchema


def terms(*names: str) -> list[Term]:
    schema = LabelSchema.from_names(dict(enumerate(names, start=1)))
    return [term_of(label, schema) for label in schema.labels]


def is_same(code: Code | None, known: object) -> bool:
    """Value and scheme; CID 7150 spells some meanings with other capitals."""
    return code is not None and (code.value, code.scheme) == (
        known.value,  # type: ignore[attr-defined]
        known.scheme_designator,  # type: ignore[attr-defined]
    )


def test_codes_are_those_of_the_dictionary_of_dicom() -> None:
    kidney, tumour, cyst, other = terms("kidney", "Wilms tumour", "cyst", "Milz")
    assert is_same(kidney.category, codes.cid7150.AnatomicalStructure)
    assert is_same(kidney.kind, codes.SCT.Kidney) and kidney.region is None
    for lesion, kind in ((tumour, codes.cid7159.Neoplasm), (cyst, codes.cid7159.Cyst)):
        assert is_same(lesion.category, codes.cid7150.MorphologicallyAbnormalStructure)
        assert is_same(lesion.kind, kind) and is_same(lesion.region, codes.SCT.Kidney)
    assert is_same(other.category, codes.cid7150.Tissue)
    assert is_same(other.kind, codes.SCT.Tissue) and other.region is None


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("left kidney", codes.cid244.Left),
        ("Kidney_R", codes.cid244.Right),
        ("tumour left", codes.cid244.Left),
        ("left spleen", codes.cid244.Left),
    ],
)
def test_the_side_in_a_name_is_a_modifier(name: str, side: object) -> None:
    (term,) = terms(name)
    assert is_same(term.side, side)


def test_no_side_is_made_up() -> None:
    assert [term.side for term in terms("kidney", "both kidneys", "tumour")] == [None] * 3


def test_the_code_of_a_label_counts_before_its_name() -> None:
    spleen = Code(value="78961009", scheme="SCT", meaning="Spleen")
    label = Label(id=1, name="thing", rgb=(1, 2, 3), code=spleen)
    schema = LabelSchema(labels=(label,))
    assert term_of(label, schema).kind == spleen
    assert unknown_terms(schema, "x") == ()


def test_labels_without_a_code_are_said() -> None:
    schema = LabelSchema.from_names({1: "kidney", 2: "Milz", 3: "liver"})
    (finding,) = unknown_terms(schema, "file")
    assert finding.code == "label-without-code" and "Milz, liver" in finding.cause
