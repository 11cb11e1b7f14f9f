"""The model card in the header of a model file: training data, figures, limits.

Source: Mitchell et al., Model cards for model reporting, FAT* 2019, 10.1145/3287560.3287596; the
sections that a reader of segmentations needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kidseg.errors import ModelError
from kidseg.records import Record, checked

__all__ = ["CARD", "ModelCard", "Score", "card_of"]

CARD = "model_card"
"""Key of the card in the header of a model file."""


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """One metric of one structure, over the cases of one data set.

    Attributes:
        data: the cases, in words: how many there are of what kind, and from where.
        n: number of them.
        structure: a region, such as "kidney+tumour".
        metric: its name, such as "Dice".
        mean: over the cases.
        sd: sample standard deviation; None: not known, or n is 1.
        median: None: not known.
        best: the best case; a metric may be better when it is greater or when it is less.
        worst: the worst case.

    Raises:
        ValueError: empty texts, n below 1, a negative SD, or a mean or median that is not between
            best and worst.
    """

    data: str
    n: int
    structure: str
    metric: str
    mean: float
    sd: float | None = None
    median: float | None = None
    best: float | None = None
    worst: float | None = None

    def __post_init__(self) -> None:
        if not (self.data.strip() and self.structure.strip() and self.metric.strip()):
            raise ValueError("a score names its data, structure and metric")
        if self.n < 1 or (self.sd is not None and self.sd < 0):
            raise ValueError(f"n = {self.n} and sd = {self.sd} are impossible")
        if self.best is None or self.worst is None:
            return
        low, high = sorted((self.best, self.worst))
        for name, value in (("mean", self.mean), ("median", self.median)):
            if value is not None and not low <= value <= high:
                raise ValueError(f"the {name} {value} is not between {low} and {high}")


@dataclass(frozen=True, kw_only=True)
class ModelCard(Record):
    """What a user should know of a model before using it.

    Attributes:
        trained_on: the training data, in words: patients, ages, seeds.
        command: which made the model.
        measured: scores on data that the model was not trained on.
        fails_on: kinds of scans on which it fails, a line each.
        not_for: what it must not be used for, a line each.
        licence: of the model.

    Raises:
        ValueError: a text is empty.
    """

    trained_on: str
    command: str
    measured: tuple[Score, ...]
    fails_on: tuple[str, ...]
    not_for: tuple[str, ...]
    licence: str

    def __post_init__(self) -> None:
        texts = (self.trained_on, self.command, self.licence, *self.fails_on, *self.not_for)
        if not all(text.strip() for text in texts):
            raise ValueError("a text of the model card is empty")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ModelCard:
        """Inverse of `as_dict`.

        Raises:
            ValueError: a field is missing, unknown, of another type or invalid.
        """
        return checked(cls, content)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for the header."""
        return asdict(self)


def card_of(header: Mapping[str, Any], path: Path) -> ModelCard | None:
    """The card in the header of a model file; None if it has none.

    Raises:
        ModelError: "bad-card": its card is invalid.
    """
    if header.get(CARD) is None:
        return None
    try:
        return ModelCard.from_dict(header[CARD])
    except ValueError as error:
        raise ModelError(
            f"its model card is invalid: {error}",
            path=path,
            code="bad-card",
            next_step="Check whether it was written by a newer version of kidseg;"
            " 'kidseg info --json' shows the card as it is.",
        ) from error
