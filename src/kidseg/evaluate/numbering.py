"""What the numbers of predicted and reference labels mean, as the descriptions beside them say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kidseg.cases.label_names import NamedLabels, stated_labels
from kidseg.labels import KIDNEY_TUMOUR_CYST, LabelSchema

__all__ = ["Numbering", "numbering_of"]


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """The meaning of numbers.

    Attributes:
        schema: of the references; None: nothing says it, and they are taken for KiTS's.
        ignore_label: voxels of the references with this value are ignored.
        stated: {label volume: the labels that `result.json` or `dataset.json` states for it}.
    """

    schema: LabelSchema | None
    ignore_label: int | None
    stated: Mapping[Path, LabelSchema]


def numbering_of(
    predicted: Iterable[Path],
    references: Iterable[Path],
    schema: LabelSchema | None,
    ignore_label: int | None,
) -> Numbering:
    """The meaning of numbers: as the references say, or else the predictions, or else KiTS.

    Args:
        predicted: label volumes; other files are not looked at.
        references: likewise.
        schema: of the references, if they are those of a data set.
        ignore_label: likewise.

    Raises:
        InputError: see `stated_labels`.
    """
    of_predictions = stated_labels(predicted)
    of_references = {} if schema is not None else stated_labels(references)
    stated = {**of_predictions, **of_references}
    if (found := _common(of_references, of_predictions)) is not None and schema is None:
        schema, ignore_label = found.schema, found.ignore if of_references else None
    return Numbering(
        schema=schema,
        ignore_label=ignore_label,
        stated={path: named.schema for path, named in stated.items()},
    )


def _common(
    references: Mapping[Path, NamedLabels], predictions: Mapping[Path, NamedLabels]
) -> NamedLabels | None:
    """What is stated first; None if it says nothing else than KiTS does."""
    named = next(iter((*references.values(), *predictions.values())), None)
    if named is None or (references and named.said_by == "dataset"):
        return named
    usual = KIDNEY_TUMOUR_CYST.meaning
    is_usual = all(usual.get(number) == what for number, what in named.schema.meaning.items())
    return None if is_usual else named
