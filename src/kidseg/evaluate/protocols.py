"""Evaluation protocols.

A protocol defines the labels of each structure, the tolerance of surface Dice, and the score of a
case in which both masks are empty.

| protocol | structures | both masks empty |
|---|---|---|
| native | kidney, kidney+tumour, tumour; or the regions of the data set | left out, counted |
| kits19 | kidney+tumour (1, 2, 3), tumour (2, 3) | left out, counted |
| kits23 | kidney+mass (1, 2, 3), mass (2, 3), tumour (2) | Dice and surface Dice 1 |

If one mask is empty, Dice and surface Dice are 0 in all protocols.

The labels of a data set are recognized as kidney, tumour and cyst by `LabelSchema.meaning`,
independent of their numbers; left and right are merged. The KiTS protocols refuse a data set with
other labels, because the official code has none.

Sources: kits19, `starter_code/evaluation.py` of the KiTS19 repository. Its code catches a division
by zero in order to score 0 if both masks are empty, but numpy returns NaN and raises nothing. Every
KiTS19 reference has kidney and tumour, so no official figure depends on it. kits23,
`kits23/evaluation/metrics.py` and `kits23/configuration/labels.py` of the KiTS23 repository. Its
official figures are Dice and surface Dice; HD95 and volume errors follow the native rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from kidseg.errors import UsageError
from kidseg.labels import KIDNEY_TUMOUR_CYST, CystAs, LabelSchema
from kidseg.meaning import RENAL

__all__ = ["KITS_TOLERANCE_MM", "Protocol", "ProtocolName", "Structure", "protocol_named"]

ProtocolName = Literal["native", "kits19", "kits23"]

KITS_TOLERANCE_MM = {
    "kidney+mass": 1.0330772532390826,
    "mass": 1.1328796488598762,
    "tumour": 1.1498198361434828,
}
"""Surface distance between annotators. Source: KiTS23, `HEC_SD_TOLERANCES_MM`."""

# The native protocol uses the tolerance of the corresponding structure, or that of the kidney for
# other structures, so that protocols are comparable. A choice: the papers have no surface Dice.
_OTHER_TOLERANCE_MM = KITS_TOLERANCE_MM["kidney+mass"]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A structure to score: its name, labels and surface tolerance."""

    name: str
    labels: tuple[int, ...]
    tolerance_mm: float


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Rules for scoring predictions.

    Attributes:
        name: as on the command line.
        structures: in the order of the report.
        known: {number: name} of the labels that may occur besides background.
        empty_scores_one: Dice and surface Dice are 1 if both masks are empty. Otherwise the case is
            excluded from the structure's mean, and counted.
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
        schema: of the data set; None: 1 is kidney, 2 tumour and 3 cyst.
        cyst: what a cyst counts as, in "native" and "kits19". If None, "native" reports the regions
            of the data set unchanged; without a schema, a cyst counts as tumour ("mass"), as in the
            code of KiTS19.

    Raises:
        UsageError: "unknown-protocol"; "fixed-cyst": kits23 defines what a cyst counts as;
            "labels-not-scored": the data set has labels that the KiTS protocols do not know, or
            lacks one that they score; "unknown-cyst".
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
            f"unknown protocol '{name}'",
            code="unknown-protocol",
            next_step=f"Choose one of {', '.join(get_args(ProtocolName))}.",
        )
    if name == "kits23" and cyst is not None:
        raise UsageError(
            "the kits23 protocol defines what a cyst counts as",
            code="fixed-cyst",
            next_step="Leave out the cyst setting, or use --protocol native.",
        )
    known = _as_kits(name, schema or KIDNEY_TUMOUR_CYST)
    if name == "kits19":
        regions = _sorted(known.usual_regions(cyst or "tumour"))
        regions.pop("kidney")
        return _protocol("kits19", regions, known)
    regions = {
        "kidney+mass": known.ids_of(*RENAL),
        "mass": known.ids_of("tumour", "cyst"),
        "tumour": known.ids_of("tumour"),
    }
    return _protocol("kits23", _sorted(regions), known, empty_scores_one=True)


def _native(schema: LabelSchema | None, cyst: CystAs | None) -> Protocol:
    if schema is None:
        return _native(KIDNEY_TUMOUR_CYST, cyst or "tumour")
    regions = schema.regions
    if cyst is not None and schema.ids_of("cyst"):
        regions = _sorted(schema.usual_regions(cyst))
    return _protocol("native", regions, schema)


def _protocol(
    name: ProtocolName,
    regions: Mapping[str, tuple[int, ...]],
    schema: LabelSchema,
    *,
    empty_scores_one: bool = False,
) -> Protocol:
    structures = tuple(
        Structure(name=region, labels=labels, tolerance_mm=_tolerance_mm(region, labels, schema))
        for region, labels in regions.items()
    )
    return Protocol(
        name=name, structures=structures, known=schema.names, empty_scores_one=empty_scores_one
    )


def _tolerance_mm(region: str, labels: tuple[int, ...], schema: LabelSchema) -> float:
    """Tolerance of the corresponding structure, by name or else by the meaning of its labels."""
    if region in KITS_TOLERANCE_MM:
        return KITS_TOLERANCE_MM[region]
    meanings = {schema.meaning[label] for label in labels}
    if meanings == {"tumour"}:
        return KITS_TOLERANCE_MM["tumour"]
    if meanings and meanings <= {"tumour", "cyst"}:
        return KITS_TOLERANCE_MM["mass"]
    return _OTHER_TOLERANCE_MM


def _as_kits(protocol: str, schema: LabelSchema) -> LabelSchema:
    """The schema with missing labels added under KiTS's numbers, which predictions may contain.

    Raises:
        UsageError: "labels-not-scored".
    """
    others = [f"{i} ({name})" for i, name in schema.names.items() if schema.meaning[i] is None]
    if others:
        raise UsageError(
            f"{protocol} scores kidney, tumour and cyst; this data set has {', '.join(others)}, "
            "which is not recognized as one of them",
            code="labels-not-scored",
            next_step="Use --protocol native, or rename these labels in dataset.json.",
        )
    free = tuple(
        label
        for meaning, label in zip(RENAL, KIDNEY_TUMOUR_CYST.labels, strict=True)
        if not schema.ids_of(meaning) and label.id not in schema.ids
    )
    filled = LabelSchema(labels=schema.labels + free, regions=schema.regions)
    for meaning in RENAL[:2]:
        if not filled.ids_of(meaning):
            raise UsageError(
                f"{protocol} scores {meaning}, but the data set has no label recognized as that",
                code="labels-not-scored",
                next_step=f"Use --protocol native, or name the label '{meaning}' in dataset.json.",
            )
    return filled


def _sorted(regions: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(sorted(labels)) for name, labels in regions.items()}
