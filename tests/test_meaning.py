from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidseg.meaning import meaning_of, meanings_in, side_of

KIDNEYS = ["kidney", "renal parenchyma", "kidney cortex", "renal medulla", "ren", "healthy kidney"]
TUMOURS = [
    *("tumour", "tumor", "kidney tumor", "Wilms", "wilms tumor", "nephroblastoma", "neoplasm"),
    *("renal mass", "mass", "lesion", "carcinoma", "renal cell carcinoma", "cancer", "malignancy"),
    *("clear cell sarcoma", "mesoblastic nephroma", "rhabdoid tumour", "solid mass", "GTV"),
]
CYSTS = ["cyst", "renal cyst", "kidney cyst", "simple cyst"]
UNKNOWN = [
    *("liver", "spleen", "adrenal gland", "suprarenal", "renal vein", "renal artery", "ureter"),
    *("renal pelvis", "kidney hilum", "kidney stone", "perirenal fat", "liver tumour", "label 1"),
    *("cortex", "medulla", "parenchyma", "pancreas lesion", "cystic mass", "tumour thrombus"),
    *("nephroblastomatosis", "nephrogenic rest", "kidneyish", "brightness", "", "7", "腎"),
]


@pytest.mark.parametrize("names", [(KIDNEYS, "kidney"), (TUMOURS, "tumour"), (CYSTS, "cyst")])
def test_the_names_of_the_field(names: tuple[list[str], str]) -> None:
    assert {name: meaning_of(name) for name in names[0]} == dict.fromkeys(*names)


@pytest.mark.parametrize("name", UNKNOWN)
def test_one_unknown_word_and_a_name_is_not_understood(name: str) -> None:
    assert meaning_of(name) is None and meanings_in(name) == frozenset()


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("left_kidney", "kidney", "left"),  # FLARE22
        ("right kidney", "kidney", "right"),  # AMOS, BTCV
        ("kidney_right", "kidney", "right"),  # TotalSegmentator
        ("kidney_cyst_left", "cyst", "left"),
        ("Kidney_L", "kidney", "left"),  # TG-263
        ("Kidneys", "kidney", None),
        ("Kidney_Cortex_R", "kidney", "right"),
        ("R.kidney", "kidney", "right"),
        ("RK", "kidney", "right"),
        ("LKidney", "kidney", "left"),
        ("leftkidney", "kidney", "left"),
        ("LeftKidney", "kidney", "left"),
        ("left and right kidney", "kidney", None),
        ("KidneyTumor", "tumour", None),
        ("ccRCC", "tumour", None),
        ("Wilms' tumour (right)", "tumour", "right"),
        ("Néphroblastoma", "tumour", None),
        ("tumor_2", "tumour", None),
        ("cysts", "cyst", None),
    ],
)
def test_spellings(name: str, meaning: str, side: str | None) -> None:
    assert (meaning_of(name), side_of(name)) == (meaning, side)


@given(
    name=st.sampled_from([*KIDNEYS, *TUMOURS, *CYSTS]),
    joint=st.sampled_from([" ", "_", "-", "."]),
    side=st.sampled_from(["", "left", "L", "Right", "R", "both"]),
    after=st.booleans(),
    change=st.sampled_from([str.lower, str.upper, str.title, str]),
    number=st.sampled_from(["", " 1", "_02"]),
)
def test_case_separators_side_and_number_do_not_matter(
    name: str, joint: str, side: str, after: bool, change: type[str], number: str
) -> None:
    words = [*name.split(), side] if after else [side, *name.split()]
    written = joint.join(change(word) for word in words if word) + number
    assert meaning_of(written) == meaning_of(name)


@given(
    word=st.sampled_from(["liver", "adrenal", "vein", "without", "x"]),
    name=st.sampled_from([*KIDNEYS, *TUMOURS, *CYSTS]),
)
def test_beside_an_unknown_word_nothing_is_guessed(word: str, name: str) -> None:
    for written in (f"{word} {name}", f"{name}_{word}", f"{word} and {name}", f"{name}+{word}"):
        assert meaning_of(written) is None and meanings_in(written) == frozenset()


def test_a_name_of_several_things() -> None:
    for name in ("kidney+tumour", "kidney and tumor", "Kidney_with_Wilms", "kidney/tumour"):
        assert meaning_of(name) is None
        assert meanings_in(name) == {"kidney", "tumour"}
    assert meanings_in("masses") == {"tumour", "cyst"} and meaning_of("masses") == "tumour"
    assert meanings_in("tumour, cyst") == {"tumour", "cyst"} and meaning_of("tumour, cyst") is None
    assert meanings_in("kidney + liver") == frozenset()
