"""Which label a structure is: by rule, by code, by name; and what is said instead of guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.sr.codedict import codes

from kidseg.cases.roi_rules import (
    ROI_RULES,
    RoiRules,
    default_rules,
    load_rules,
    rules_of,
    unused_rules,
)
from kidseg.errors import InputError, UsageError
from kidseg.io.structures import AnnotationObject, Structure
from kidseg.labels import Code

COG = """
ignore = ["BODY.*"]
annotation = "*reader 1*"
[labels]
kidney = "(RT|LT|RIGHT|LEFT) ?KIDNEY"
tumour = ['(RT|LT) ?KIDNEY ?\\d+', '(RIGHT|LEFT) KIDNEY - \\d+']
"""


def structure(
    name: str, *coded: tuple[str, str], region: tuple[str, str] | None = None
) -> Structure:
    return Structure(
        number=1,
        name=name,
        codes=tuple(Code(value=v, scheme=s, meaning="-") for s, v in coded),
        regions=() if region is None else (Code(value=region[1], scheme=region[0], meaning="-"),),
    )


def file(folder: Path, text: str = COG) -> Path:
    path = folder / "rules.toml"
    path.write_text(text)
    return path


def rules(folder: Path, text: str = COG) -> RoiRules:
    found = load_rules(file(folder, text))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *(("RTKIDNEY1", 2), ("LT KIDNEY 2", 2), ("RIGHT KIDNEY - 1", 2), ("left kidney - 12", 2)),
        *(("RT KIDNEY", 1), ("Left Kidney ", 1), ("BODY", None), ("Liver", None), ("", None)),
    ],
)
def test_a_rule_makes_the_numbered_kidneys_of_trials_tumours(
    tmp_path: Path, name: str, label: int | None
) -> None:
    assert rules(tmp_path).match(structure(name)).label == label


def test_a_rule_file_numbers_the_labels_in_its_order(tmp_path: Path) -> None:
    found = rules(tmp_path, '[labels]\ntumour = ["GTV.*"]\n"left kidney" = ["LK"]\n')
    assert found.names == {1: "tumour", 2: "left kidney"} and not found.is_default


@pytest.mark.parametrize(
    ("name", "label"),
    [
        *(("kidney", 1), ("Kidney_L", 1), ("RT KIDNEY", 1), ("RTKIDNEY", 1), ("RK", 1)),
        *(("tumour", 2), ("Wilms tumor", 2), ("GTV 2", 2), ("renal mass", 2), ("cyst", 3)),
        *(("BODY", None), ("Adrenal gland", None), ("liver tumour", None), ("", None)),
    ],
)
def test_without_rules_names_that_state_their_meaning_count(name: str, label: int | None) -> None:
    match = default_rules().match(structure(name))
    assert match.label == label and match.reason == ("none" if label is None else "name")


@pytest.mark.parametrize(
    "name",
    [
        *("RTKIDNEY1", "RIGHT KIDNEY - 1", "Kidney 2", "LTKIDNEY 3", "kidney+tumour"),
        *("Kidneys-GTV", "Kidney_L - GTV"),
    ],
)
def test_an_ambiguous_name_is_said_and_not_guessed(name: str) -> None:
    match = default_rules().match(structure(name))
    assert match.label is None and match.reason == "unclear" and match.said


def test_codes_count_before_names() -> None:
    found = default_rules()
    kidney, neoplasm, cyst = ("SCT", "64033007"), ("SCT", "108369006"), ("SCT", "367643001")
    for name in ("Segment 1", "Structure", "x1"):
        assert found.match(structure(name, kidney)).label == 1
        assert found.match(structure(name, neoplasm)).label == 2
        assert found.match(structure(name, cyst)).label == 3
    assert found.match(structure("RTKIDNEY1", neoplasm)).label == 2, "no longer ambiguous"
    assert found.match(structure("Segment", ("SRT", "T-71000"))).label == 1
    assert found.match(structure("Segment", ("FMA", "7205"))).label == 1
    assert found.match(structure("Segment", ("99X", "64033007"))).label is None


def test_a_lesion_of_another_organ_is_no_label() -> None:
    neoplasm, liver = ("SCT", "108369006"), ("SCT", "10200004")
    found = default_rules()
    assert found.match(structure("Segment", neoplasm, region=liver)).label is None
    assert found.match(structure("Segment", neoplasm, region=("SCT", "64033007"))).label == 2


@pytest.mark.parametrize("name", ["lesion", "Tumor", "GTV", "Mass 2", "cyst", "Simple_Cyst_L"])
def test_a_lesion_of_another_organ_is_no_label_whatever_its_name(name: str) -> None:
    rules, neoplasm = default_rules(), ("SCT", "108369006")
    liver, kidney = ("SCT", "10200004"), ("SCT", "64033007")
    for coded in ((), (neoplasm,)) if "yst" not in name else ((),):
        elsewhere = rules.match(structure(name, *coded, region=liver))
        assert (elsewhere.label, elsewhere.reason) == (None, "none")
        assert rules.match(structure(name, *coded, region=kidney)).label in (2, 3)
        assert rules.match(structure(name, *coded)).label in (2, 3)


@pytest.mark.parametrize("name", ["renal mass", "Kidney_Cyst", "Wilms tumour", "nephroblastoma"])
def test_a_region_against_a_name_of_the_kidney_is_unclear(name: str) -> None:
    found = default_rules().match(structure(name, region=("SCT", "10200004")))
    assert (found.label, found.reason) == (None, "unclear") and "region" in found.said


def test_a_code_that_contradicts_the_name_is_said() -> None:
    match = default_rules().match(structure("tumour", ("SCT", "64033007")))
    assert match.label is None and match.reason == "unclear"
    assert "kidney" in match.said and "tumour" in match.said


def test_a_rule_counts_before_a_code_and_a_code_before_nothing(tmp_path: Path) -> None:
    found = rules(tmp_path)
    kidney = ("SCT", "64033007")
    assert found.match(structure("RTKIDNEY1", kidney)).label == 2
    assert found.match(structure("Segment 3", kidney)).label == 1
    assert found.match(structure("tumour")).label is None, "no guess beside a rule file"


def test_sides_of_labels_are_those_of_structures(tmp_path: Path) -> None:
    found = rules(tmp_path, '[labels]\n"left kidney" = []\n"right kidney" = []\n')
    kidney = ("SCT", "64033007")
    assert found.match(structure("left one", kidney)).label == 1
    assert found.match(structure("R", kidney)).label == 2
    assert found.match(structure("one", kidney)).label is None


def test_two_rules_for_one_name_are_said(tmp_path: Path) -> None:
    found = rules(tmp_path, '[labels]\nkidney = [".*kidney.*"]\ntumour = [".*1"]\n')
    match = found.match(structure("kidney 1"))
    assert match.reason == "unclear" and "kidney and tumour" in match.said
    assert found.match(structure("kidney")).label == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("labels = 3", "[labels]"),
        ("[labels]", "[labels]"),
        ("[labels]\nkidney = 3", "labels.kidney"),
        ("[labels]\nkidney = [3]", "labels.kidney"),
        ('[labels]\nkidney = ["(("]', "regular expression"),
        ('[labels]\n" " = ["x"]', "name"),
        ('labls = ["x"]', "labls"),
        ("annotation = 1", "annotation"),
        ("ignore = 1", "ignore"),
        ("[labels", "TOML"),
    ],
)
def test_invalid_rule_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_rules(file(tmp_path, text))
    assert caught.value.code == "bad-roi-rules" and said in caught.value.cause
    assert caught.value.path == str(tmp_path / "rules.toml")


def test_a_rule_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_rules(tmp_path / "missing.toml")
    assert caught.value.code == "bad-roi-rules"


def test_which_rules_count(tmp_path: Path) -> None:
    assert load_rules() is None and rules_of(tmp_path, None).is_default
    (tmp_path / ROI_RULES).write_text('[labels]\nown = ["x"]\n')
    assert rules_of(tmp_path, None).names == {1: "own"}
    only = rules_of(tmp_path, load_rules(annotation="B"))
    assert only.names == {1: "own"} and only.annotation == "B"
    given = load_rules(file(tmp_path), "C")
    assert rules_of(tmp_path, given).names == {1: "kidney", 2: "tumour"}
    assert rules_of(tmp_path, given).annotation == "C"
    ignoring = load_rules(file(tmp_path, 'ignore = ["x"]'))
    assert rules_of(tmp_path, ignoring).ignore == ("x",)


def test_rules_for_other_labels_are_refused(tmp_path: Path) -> None:
    unused_rules(None, tmp_path)
    with pytest.raises(UsageError) as caught:
        unused_rules(default_rules(), tmp_path)
    assert caught.value.code == "no-annotations"


def test_rules_as_toml_are_the_same_rules(tmp_path: Path) -> None:
    for text in (COG, 'ignore = ["a"]\n', 'annotation = "x"\n'):
        found = rules(tmp_path, text)
        again = rules(tmp_path, found.as_toml())
        assert found.agrees(again) and again.agrees(found)
        assert (again.patterns, again.ignore) == (found.patterns, found.ignore)
    assert not rules(tmp_path).agrees(rules(tmp_path, '[labels]\nx = ["y"]\n'))


def test_an_object_is_chosen_by_what_it_states() -> None:
    one = AnnotationObject(
        path=Path("a.dcm"),
        kind="SEG",
        uid="1.2.3",
        series_uid="1.2.4",
        series_number="7",
        label="SECOND",
        description="by Reader 1",
        creator="Nobody",
        date="20240101",
        patient_id="p",
        study_uid="1",
        time_point="",
        frames_of_reference=frozenset(),
        referenced_series=frozenset(),
        drawn_on=frozenset(),
        referenced_images=frozenset(),
        structures=(structure("kidney"),),
    )
    for text in ("1.2.3", "1.2.4", "7", "second", "*reader 1", "nobody", "*"):
        assert RoiRules(annotation=text).takes(one), text
    for text in ("reader", "a.dcm", "1.2", "2"):
        assert not RoiRules(annotation=text).takes(one), text
    assert "1.2.3" in str(one) and "SECOND" in str(one) and "kidney" in str(one)


def test_the_codes_are_those_of_the_dictionary() -> None:
    """What this pydicom knows of them."""
    sct = codes.SCT
    for code, label in (
        (sct.Kidney, 1),
        (sct.Neoplasm, 2),
        (sct.NeoplasmPrimary, 2),
        (sct.MalignantNeoplasmPrimary, 2),
        (sct.Mass, 2),
        (sct.Lesion, 2),
        (sct.GrossTumorVolume, 2),
        (sct.RenalCellCarcinoma, 2),
        (sct.Cyst, 3),
    ):
        given = structure("Segment", (code.scheme_designator, code.value))
        assert default_rules().match(given).label == label, code.meaning
    for code in (sct.NeoplasmSecondary, sct.AdrenalGland, sct.RenalVein, sct.RenalStone):
        given = structure("Segment", (code.scheme_designator, code.value))
        assert default_rules().match(given).label is None, code.meaning
