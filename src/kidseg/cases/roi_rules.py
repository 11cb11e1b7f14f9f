"""Which label a structure of a DICOM annotation is: by a rule, by its codes, or by its name.

A rule file is TOML:

    ignore = ["BODY.*", "Couch"]            # structures that are not labels
    annotation = "Reader 1"                 # which to take where several annotate one series
    [labels]                                # numbered 1, 2, ... in this order
    kidney = ["(RT|LT) ?KIDNEY"]            # regular expressions for whole names
    tumour = ['(RT|LT) ?KIDNEY ?\\d+', "GTV.*"]

Upper and lower case are equal. A rule counts first. Without a matching rule, the codes count that
the object states. Only without a rule file, the names count that `kidseg.meaning` recognizes; then
the labels are 1 kidney, 2 tumour, 3 cyst. A kidney with a number ("RIGHT KIDNEY - 1", "RTKIDNEY1")
is ambiguous: in the trials AREN0532, AREN0533 and AREN0534 on The Cancer Imaging Archive, such
structures are tumours.

Source of the codes: DICOM PS3.16, CID 7151, 7159 and 7183; for radiotherapy AAPM TG-263, which
names structures by the Foundational Model of Anatomy.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kidseg.errors import InputError, UsageError, quoted
from kidseg.io.structures import AnnotationObject, Structure
from kidseg.labels import KIDNEY_TUMOUR_CYST, Code, Meaning
from kidseg.meaning import meaning_of, meanings_in, side_of

__all__ = [
    "ROI_RULES",
    "Match",
    "RoiRules",
    "default_rules",
    "load_rules",
    "rules_of",
    "unused_rules",
]

ROI_RULES = "roi_rules.toml"
"""Name of a rule file in the folder of a data set, which counts unless another is named."""

Reason = Literal["rule", "code", "name", "ignored", "none", "unclear"]

_KEYS = {"labels", "ignore", "annotation"}
_KIDNEYS = {("SCT", "64033007"), ("SCT", "9846003"), ("SCT", "18639004"), ("SRT", "T-71000")}
_KIDNEYS |= {("FMA", "7203"), ("FMA", "7204"), ("FMA", "7205")}
# Neoplasm, primary, mass, lesion, gross tumour volume, renal cell carcinoma, nephroblastoma.
_TUMOURS = {"108369006", "86049000", "372087000", "4147007", "52988006", "228791009"}
_TUMOURS |= {"702391001", "25081006", "302849000"}
_OLD_TUMOURS = {
    "M-8FFFF",
    "M-80003",
    "M-03000",
    "M-01100",
    "R-429E0",
    "R-FB83F",
}  # SNOMED RT of the same
_SUBTRACTED = re.compile(r"kidney.*-\s*gtv", re.IGNORECASE)  # AAPM TG-263: "-" is "without"
_RENAL = re.compile(r"kidney|\bren(al)?\b|wilm|neph", re.IGNORECASE)  # in names of lesions
_CYSTS = {("SCT", "367643001"), ("SRT", "M-3340A")}


@dataclass(frozen=True, kw_only=True)
class Match:
    """The label of a structure.

    Attributes:
        label: its number; None: the structure is not a label.
        reason: what decided.
        said: why it is unclear.
    """

    label: int | None
    reason: Reason
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class RoiRules:
    """Rules for the structures of a data set.

    Attributes:
        patterns: {name of a label: regular expressions}; labels are numbered in this order.
        ignore: regular expressions of structures that are not labels.
        annotation: pattern of the object to take where several annotate one series: of its UID,
            series number, label, description or creator, with `*` for any text; "" for none.
        is_default: there is no rule file.
        path: of the rule file.
    """

    patterns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    annotation: str = ""
    is_default: bool = False
    path: Path | None = None

    @cached_property
    def names(self) -> dict[int, str]:
        """{label: name}."""
        return dict(enumerate(self.patterns, start=1))

    def match(self, structure: Structure) -> Match:
        """The label of a structure."""
        name = structure.name.strip()
        if self._matches(self.ignore, name):
            return Match(label=None, reason="ignored")
        ruled = [n for n, label in self.names.items() if self._matches(self.patterns[label], name)]
        if len(ruled) > 1:
            both = " and ".join(self.names[number] for number in ruled)
            return Match(label=None, reason="unclear", said=f"the rules for {both} match it")
        if ruled:
            return Match(label=ruled[0], reason="rule")
        coded = _coded(structure)
        named, why = _named(structure.words) if self.is_default else (None, "")
        if named in ("tumour", "cyst") and _is_elsewhere(structure):
            if not _RENAL.search(structure.words):  # a lesion, but of another organ
                return Match(label=None, reason="none")
            organ = ", ".join(code.meaning or code.value for code in structure.regions)
            said = f"its name says {named} of the kidney, its anatomic region {organ}"
            return Match(label=None, reason="unclear", said=said)
        if coded is not None and named is not None and coded != named:
            said = f"its code says {coded}, its name {named}"
            return Match(label=None, reason="unclear", said=said)
        meaning = coded or named
        if meaning is None:
            return Match(label=None, reason="unclear" if why else "none", said=why)
        label = self._label_of(meaning, structure)
        if label is None:
            return Match(label=None, reason="none")
        return Match(label=label, reason="code" if coded else "name")

    def agrees(self, other: RoiRules) -> bool:
        """Whether these rules, as far as they are given, are those."""
        is_given = self.path is not None or not self.is_default
        same = (self.patterns, self.ignore) == (other.patterns, other.ignore)
        return self.annotation == other.annotation and (same or not is_given)

    def takes(self, one: AnnotationObject) -> bool:
        """Whether `annotation` names this object."""
        wanted = self.annotation.casefold()
        texts = (one.uid, one.series_uid, one.series_number, one.label, one.description)
        return any(fnmatchcase(text.casefold(), wanted) for text in (*texts, one.creator))

    def _matches(self, patterns: Sequence[str], name: str) -> bool:
        return any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in patterns)

    def _label_of(self, meaning: Meaning, structure: Structure) -> int | None:
        """The only label with this meaning; of one for each side, that of the side."""
        alike = [number for number, name in self.names.items() if meaning_of(name) == meaning]
        sided = [n for n in alike if side_of(self.names[n]) == structure.side]
        found = alike if len(alike) == 1 and side_of(self.names[alike[0]]) is None else sided
        return found[0] if len(found) == 1 else None

    def as_toml(self) -> str:
        """The text of a rule file with these rules; "" for the default ones."""
        import tomli_w

        content: dict[str, Any] = {}
        if self.ignore:
            content["ignore"] = list(self.ignore)
        if self.annotation:
            content["annotation"] = self.annotation
        if not self.is_default:
            content["labels"] = {name: list(each) for name, each in self.patterns.items()}
        return tomli_w.dumps(content)


def default_rules() -> RoiRules:
    """By codes and by names that state their meaning: 1 kidney, 2 tumour, 3 cyst."""
    names = KIDNEY_TUMOUR_CYST.names.values()
    return RoiRules(patterns=dict.fromkeys(names, ()), is_default=True)


def load_rules(file: Path | None = None, annotation: str | None = None) -> RoiRules | None:
    """The rules that a user names; None if neither is given.

    Args:
        file: rule file.
        annotation: overrides that of the file.

    Raises:
        InputError: "bad-roi-rules": the file is missing or invalid.
    """
    if file is None and annotation is None:
        return None
    rules = default_rules() if file is None else _read(file)
    return rules if annotation is None else replace(rules, annotation=annotation)


def rules_of(root: Path, given: RoiRules | None) -> RoiRules:
    """The rules of a data set: those given, its own, or the default ones.

    If only the annotation is given, the rules are those of the data set.

    Raises:
        InputError: "bad-roi-rules".
    """
    own = root / ROI_RULES
    if given is not None and (given.path is not None or not given.is_default):
        return given
    rules = _read(own) if own.is_file() else default_rules()
    if given is not None and given.annotation:
        rules = replace(rules, annotation=given.annotation)
    return rules


def unused_rules(given: RoiRules | None, root: Path) -> None:
    """Refuse rules for a data set without DICOM annotations.

    Raises:
        UsageError: "no-annotations".
    """
    if given is not None:
        raise UsageError(
            "rules for structures, or a choice of annotations, were given, but its labels are not"
            " DICOM annotations",
            path=root,
            code="no-annotations",
            next_step="Leave out --roi-rules and --annotation.",
        )


def _read(path: Path) -> RoiRules:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _bad(f"it cannot be read ({error.strerror})", path) from error
    except (ValueError, RecursionError) as error:
        raise _bad(f"it is not valid TOML ({error})", path) from error
    if unknown := sorted(set(content) - _KEYS):
        raise _bad(f"{quoted(unknown[0])} is not one of {', '.join(sorted(_KEYS))}", path)
    annotation = content.get("annotation", "")
    if not isinstance(annotation, str):
        raise _bad("'annotation' must be text", path)
    ignore = _patterns("ignore", content.get("ignore", []), path)
    if "labels" not in content:
        return replace(default_rules(), ignore=ignore, annotation=annotation, path=path)
    labels = content["labels"]
    if not isinstance(labels, dict) or not labels or len(labels) > 255:
        raise _bad("[labels] must name 1 to 255 labels, each with a list of patterns", path)
    if blank := [name for name in labels if not name.strip()]:
        raise _bad(f"a label has the name {quoted(blank[0])}", path)
    patterns = {name: _patterns(f"labels.{name}", each, path) for name, each in labels.items()}
    return RoiRules(patterns=patterns, ignore=ignore, annotation=annotation, path=path)


def _patterns(name: str, value: object, path: Path) -> tuple[str, ...]:
    each = [value] if isinstance(value, str) else value
    if not isinstance(each, list) or not all(isinstance(one, str) for one in each):
        raise _bad(f"{quoted(name)} must be a pattern, or a list of patterns", path)
    for pattern in each:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            cause = f"{quoted(name)}: {quoted(pattern)} is not a regular expression ({error})"
            raise _bad(cause, path) from error
    return tuple(each)


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-roi-rules",
        next_step="Fix the rule file; docs/dicom_labels.md has an example.",
    )


def _coded(structure: Structure) -> Meaning | None:
    """What the codes say; a lesion of another organ is nothing."""
    found: set[Meaning] = set()
    for code in structure.codes:
        key = _key(code)
        if key in _KIDNEYS:
            found.add("kidney")
        elif key in _CYSTS:
            found.add("cyst")
        elif (key[0] == "SCT" and key[1] in _TUMOURS) or key in {("SRT", c) for c in _OLD_TUMOURS}:
            found.add("tumour")
    if len(found) != 1:
        return None
    (meaning,) = found
    return None if meaning != "kidney" and _is_elsewhere(structure) else meaning


def _is_elsewhere(structure: Structure) -> bool:
    """Is its anatomic region stated, and no kidney?"""
    return bool(structure.regions) and not any(_key(c) in _KIDNEYS for c in structure.regions)


def _key(code: Code) -> tuple[str, str]:
    """(scheme, value), of SNOMED CT and of SNOMED RT under one name each."""
    scheme = {"SNM3": "SRT", "99SDM": "SRT", "SNOMED-CT": "SCT"}.get(code.scheme, code.scheme)
    return scheme, code.value.removeprefix("FMA") if scheme == "FMA" else code.value


def _named(name: str) -> tuple[Meaning | None, str]:
    """What a name says, and why that is unclear."""
    meaning = meaning_of(name)
    if meaning is None:
        several = meanings_in(name)
        return None, f"its name says {' and '.join(sorted(several))}" if several else ""
    if _SUBTRACTED.search(name):
        return None, "it may be a kidney without the tumour, or the tumour"
    if meaning == "kidney" and any(c.isdigit() for c in name):
        return None, "it may be a kidney, or a tumour of it with a number, as in some trials"
    return meaning, ""
