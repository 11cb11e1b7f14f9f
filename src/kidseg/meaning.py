"""The meaning of a label by its name: kidney, tumour, cyst, or not recognized.

A name is recognized if every word in it is. Case, plural, accents, numbering, separators
(`left_kidney`, `Kidney-L`, `KidneyTumor`) and the side do not matter. One unknown word makes the
name unrecognized: an *adrenal* gland, a renal *vein*, a *liver* tumour or a kidney *stone* is
neither kidney nor renal tumour, and a wrong guess would be worse than none.

Sources of the names: KiTS19, KiTS21 and KiTS23 ("kidney", "tumor", "cyst"); nnU-Net's data set of
KiTS23 ("kidney", "masses", "tumor"); AMOS, BTCV and FLARE22 ("right kidney", "left kidney", also
"kidney right", "R.kidney", "RK"); TotalSegmentator ("kidney_left", "kidney_cyst_right"); for
radiotherapy AAPM TG-263 ("Kidney_L", "Kidneys", "Kidney_Cortex_R"), and "GTV". Names of tumours:
WHO Classification of Tumours, Urinary and Male Genital Tumours (5th edition, 2022) and Pediatric
Tumours (5th edition, 2023). Nephroblastomatosis and nephrogenic rests are precursors, not tumours,
and deliberately excluded. "Cystic mass" is excluded too, because it may be a tumour or a cyst.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

__all__ = ["RENAL", "Meaning", "Side", "meaning_of", "meanings_by_label", "meanings_in", "side_of"]

Meaning = Literal["kidney", "tumour", "cyst"]
RENAL: tuple[Meaning, ...] = get_args(Meaning)
"""All meanings."""
Side = Literal["left", "right"]

_SIDES: dict[str, Side] = {
    **dict.fromkeys(("left", "l", "lt", "lk", "lkidney"), "left"),
    **dict.fromkeys(("right", "r", "rt", "rk", "rkidney"), "right"),
}
# Words without influence on the meaning: side, extent, kind of annotation.
_NEUTRAL = {"both", "bilateral", "contralateral", "ipsilateral", "left", "right"}
_NEUTRAL |= {"l", "lt", "r", "rt", "whole", "total", "entire", "all", "of", "the", "in"}
_NEUTRAL |= {"label", "mask", "seg", "segmentation"}

_KIDNEY = {"kidney", "ren", "renal", "lk", "rk", "lkidney", "rkidney"}
_PARENCHYMA = {"parenchyma", "cortex", "medulla", "tissue", "healthy", "normal", "remnant"}
_PARENCHYMA |= {"affected", "unaffected", "residual", "native", "transplant", "horseshoe"}

_TUMOUR = {"tumour", "tumor", "neoplasm", "neoplasia", "cancer", "malignancy", "carcinoma"}
_TUMOUR |= {"adenocarcinoma", "sarcoma", "rcc", "ccrcc", "prcc", "chrcc", "oncocytoma"}
_TUMOUR |= {"angiomyolipoma", "wilms", "wilm", "nephroblastoma", "nephroma", "rhabdoid"}
_TUMOUR |= {"ccsk", "mrtk", "gtv"}
_OF_TUMOURS = {"tissue", "solid", "primary", "malignant", "benign", "residual", "cell", "clear"}
_OF_TUMOURS |= {"papillary", "chromophobe", "mesoblastic", "congenital", "cellular"}
# A mass may be a tumour or a cyst. Source: KiTS23, whose "mass" is both.
_MASS = {"mass", "lesion"}

_CYST = {"cyst"}
_OF_CYSTS = {"simple", "complex", "benign", "bosniak"}

_KNOWN = _NEUTRAL | _KIDNEY | _PARENCHYMA | _TUMOUR | _OF_TUMOURS | _MASS | _CYST | _OF_CYSTS
_JOINED = re.compile(r"[+&/,]|\b(?:and|with|plus|or)\b")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_GLUED = re.compile(r"(left|right)?(.+?)(left|right)?")


def meaning_of(name: str) -> Meaning | None:
    """The meaning of a label name; None if it is not recognized or has several meanings.

    A mass or lesion counts as tumour.
    """
    meanings = meanings_in(name)
    if meanings == {"tumour", "cyst"} and not _JOINED.search(_plain(name)):
        return "tumour"
    return next(iter(meanings)) if len(meanings) == 1 else None


def meanings_in(name: str) -> frozenset[Meaning]:
    """All meanings in a name: "kidney+tumour" has both, "mass" has tumour and cyst.

    Empty if any part of the name is not recognized.
    """
    split = (set(_words(part)) - _NEUTRAL for part in _JOINED.split(_plain(name)))
    parts = [_of_words(words) for words in split if words]  # "left and right kidney" has one part
    return frozenset[Meaning]().union(*parts) if all(parts) else frozenset()


def meanings_by_label(
    names: Mapping[int, str], regions: Mapping[str, tuple[int, ...]]
) -> dict[int, Meaning | None]:
    """{label: its meaning} by its name, or else by the smallest recognized region with it.

    The meanings of regions inside that region are taken off: in nnU-Net's KiTS23, `kidney` = 1, 2,
    3, `masses` = 2, 3 and `tumor` = 2 make 1 kidney, 2 tumour and 3 cyst.

    Args:
        names: {label: its name}.
        regions: {name: its labels}.
    """
    return {i: meaning_of(name) or _by_regions(i, regions) for i, name in names.items()}


def _by_regions(number: int, regions: Mapping[str, tuple[int, ...]]) -> Meaning | None:
    """Meaning of the smallest recognized region, minus the meanings of regions inside it."""
    for name, members in sorted(regions.items(), key=lambda region: len(set(region[1]))):
        if number not in members or not (meanings := meanings_in(name)):
            continue
        inside = [n for n, m in regions.items() if set(m) < set(members) and number not in m]
        rest = meanings.difference(*(meanings_in(n) for n in inside)) or meanings
        if rest == meanings:
            return meaning_of(name)
        if rest == {"tumour", "cyst"}:
            return "tumour"  # a mass, not specified further
        return next(iter(rest)) if len(rest) == 1 else None
    return None


def side_of(name: str) -> Side | None:
    """The side stated by a name; None if it states none or both."""
    sides = {_SIDES[word] for word in _words(_plain(name)) if word in _SIDES}
    return sides.pop() if len(sides) == 1 else None


def _of_words(words: set[str]) -> frozenset[Meaning]:
    """The meanings of a name without "and"."""
    lesion, cyst = words & (_TUMOUR | _MASS), words & _CYST
    if lesion and not cyst and words <= _TUMOUR | _MASS | _OF_TUMOURS | _KIDNEY:
        return frozenset(("tumour",) if words & _TUMOUR else ("tumour", "cyst"))
    if cyst and words <= _CYST | _OF_CYSTS | _KIDNEY:
        return frozenset(("cyst",))
    if words & _KIDNEY and words <= _KIDNEY | _PARENCHYMA:
        return frozenset(("kidney",))
    return frozenset()


def _plain(name: str) -> str:
    """Lower case, without accents and apostrophes, CamelCase split into words."""
    letters = unicodedata.normalize("NFKD", name).replace("'", "").replace("’", "")
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    # Do not split known words such as "ccRCC".
    split = [
        word if _singular(word.lower()) in _KNOWN else _CAMEL.sub(" ", word)
        for word in re.split(r"([^A-Za-z]+)", letters)
    ]
    return re.sub(r"[_\s]+", " ", "".join(split).lower())


def _words(text: str) -> Iterable[str]:
    """The words in the singular, without numbers; "leftkidney" gives two words."""
    for word in re.findall(r"[^\W\d_]+", text):
        if (known := _singular(word)) in _KNOWN:
            yield known
        elif (match := _GLUED.fullmatch(word)) is not None:
            yield from (_singular(part) for part in match.groups() if part)


def _singular(word: str) -> str:
    """The known word that this is, or is the plural of; otherwise the word itself."""
    found = (word, word.removesuffix("s"), word.removesuffix("es"))
    return next((one for one in found if one in _KNOWN), word)
