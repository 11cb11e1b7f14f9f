"""What is scored, and by whose rules.

A protocol says which labels make up each structure, within which tolerance a surface counts as
found, and what a case counts for in which there was nothing to find and nothing was found.

| protocol | structures | both masks empty |
|---|---|---|
| native | kidney, kidney+tumour, tumour; or the regions of the data set | left out, counted |
| kits19 | kidney+tumour (every label above 0), tumour (above 1) | left out, counted |
| kits23 | kidney+mass (1, 2, 3), mass (2, 3), tumour (2) | Dice and surface Dice 1 |

If one mask is empty, Dice and surface Dice are 0 in all of them.

Sources: kits19, `starter_code/evaluation.py` of the KiTS19 repository. Its code catches a division
by zero in order to score 0 where both masks are empty, but numpy gives NaN there and raises
nothing, and every KiTS19 reference has kidney and tumour: no official figure depends on it. kits23,
`kits23/evaluation/metrics.py` and `kits23/configuration/labels.py` of the KiTS23 repository. Its
official figures are Dice and surface Dice; HD95 and volume errors follow the native rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from kidseg.errors import UsageError
from kidseg.labels import KIDNEY_TUMOUR_CYST, CystAs, LabelSchema

__all__ = ["KITS_TOLERANCE_MM", "Protocol", "ProtocolName", "Structure", "protocol_named"]

ProtocolName = Literal["native", "kits19", "kits23"]

KITS_TOLERANCE_MM = {
    "kidney+mass": 1.0330772532390826,
    "mass": 1.1328796488598762,
    "tumour": 1.1498198361434828,
}
"""How far annotators' surfaces lie apart. Source: KiTS23, `HEC_SD_TOLERANCES_MM`."""

# The native protocol takes over the tolerance of the like structure, and the kidney's for any other
# one, so that figures compare between protocols. Choice: the papers score no surfaces.
_OTHER_TOLERANCE_MM = KITS_TOLERANCE_MM["kidney+mass"]

_KITS_NUMBERS = {"kidney": 1, "tumour": 2, "cyst": 3}
_KITS23_STRUCTURES = {"kidney+mass": (1, 2, 3), "mass": (2, 3), "tumour": (2,)}


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One thing to score: its name, the labels it is made of, the tolerance of its surface."""

    name: str
    labels: tuple[int, ...]
    tolerance_mm: float


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How predictions are scored.

    Attributes:
        name: as on the command line.
        structures: in the order of the report.
        known: {number: name} of the labels that may occur beside background.
        empty_scores_one: do Dice and surface Dice count as 1 where both masks are empty? Else the
            case is left out of the structure's mean, and counted.
    """

    name: ProtocolName
    structures: tuple[Structure, ...]
    known: Mapping[int, str]
    empty_scores_one: bool = False


def protocol_named(
    name: str, schema: LabelSchema | None = None, cyst: CystAs | None = None
) -> Protocol:
    """The protocol of this name for label volumes of a schema.

    Args:
        name: "native", "kits19" or "kits23".
        schema: of the data set; without one, 1 is kidney, 2 tumour and 3 cyst.
        cyst: what a cyst counts as, in "native" and "kits19". Without it, "native" reports the
            regions of a data set as they are; and where there is no schema, a cyst is tumour
            ("mass"), as the code of KiTS19 counts it.

    Raises:
        UsageError: "unknown-protocol"; "fixed-cyst": kits23 fixes what a cyst is; "other-numbers":
            the data set's numbers are not those of the KiTS protocol; "unknown-cyst".
    """
    if cyst is not None and cyst not in get_args(CystAs):
        raise UsageError(
            f"a cyst cannot count as '{cyst}'",
            code="unknown-cyst",
            next_step=f"Choose one of {', '.join(get_args(CystAs))}.",
        )
    if name == "native":
        return _native(schema, cyst)
    if name not in get_args(ProtocolName):
        raise UsageError(
            f"there is no protocol '{name}'",
            code="unknown-protocol",
            next_step=f"Choose one of {', '.join(get_args(ProtocolName))}.",
        )
    if schema is not None:
        _check_kits_numbers(name, schema)
    if name == "kits19":
        regions = _with_cyst(_KITS_NUMBERS, cyst or "tumour")
        regions.pop("kidney")
        return _protocol("kits19", regions, KIDNEY_TUMOUR_CYST.names)
    if cyst is not None:
        raise UsageError(
            "the kits23 protocol fixes what a cyst counts as",
            code="fixed-cyst",
            next_step="Leave out the cyst setting, or use --protocol native.",
        )
    return _protocol("kits23", _KITS23_STRUCTURES, KIDNEY_TUMOUR_CYST.names, empty_scores_one=True)


def _native(schema: LabelSchema | None, cyst: CystAs | None) -> Protocol:
    if schema is None:
        return _native(KIDNEY_TUMOUR_CYST, cyst or "tumour")
    numbers = _numbers(schema)
    regions: Mapping[str, tuple[int, ...]] = schema.regions
    if cyst is not None and set(numbers) == set(_KITS_NUMBERS):
        regions = _with_cyst(numbers, cyst)
    return _protocol("native", regions, schema.names)


def _protocol(
    name: ProtocolName,
    regions: Mapping[str, tuple[int, ...]],
    known: Mapping[int, str],
    *,
    empty_scores_one: bool = False,
) -> Protocol:
    structures = tuple(
        Structure(
            name=region,
            labels=labels,
            tolerance_mm=KITS_TOLERANCE_MM.get(
                region.replace("tumor", "tumour"), _OTHER_TOLERANCE_MM
            ),
        )
        for region, labels in regions.items()
    )
    return Protocol(
        name=name, structures=structures, known=known, empty_scores_one=empty_scores_one
    )


def _with_cyst(numbers: Mapping[str, int], cyst: CystAs) -> dict[str, tuple[int, ...]]:
    """The default regions, each with the cyst where it holds what a cyst counts as."""
    kidney, tumour = numbers["kidney"], numbers["tumour"]
    regions = {"kidney": {kidney}, "kidney+tumour": {kidney, tumour}, "tumour": {tumour}}
    if cyst != "background":
        for labels in regions.values():
            if numbers[cyst] in labels:
                labels.add(numbers["cyst"])
    return {name: tuple(sorted(labels)) for name, labels in regions.items()}


def _numbers(schema: LabelSchema) -> dict[str, int]:
    """{name: number}, in our spelling."""
    return {name.lower().replace("tumor", "tumour"): i for i, name in schema.names.items()}


def _check_kits_numbers(protocol: str, schema: LabelSchema) -> None:
    numbers = _numbers(schema)
    wrong = {n: i for n, i in numbers.items() if _KITS_NUMBERS.get(n, i) != i}
    beyond = {n: i for n, i in numbers.items() if i not in _KITS_NUMBERS.values()}
    if wrong or beyond:
        found = ", ".join(f"{i} {n}" for n, i in sorted((wrong | beyond).items()))
        raise UsageError(
            f"{protocol} numbers 1 kidney, 2 tumour, 3 cyst; this data set has {found}",
            code="other-numbers",
            next_step="Use --protocol native, or number the labels as KiTS does.",
        )
