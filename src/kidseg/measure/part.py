"""One structure of a label volume."""

from __future__ import annotations

from dataclasses import dataclass

from kidseg.labels import Meaning
from kidseg.meaning import Side
from kidseg.measure.mask import Mask

__all__ = ["Part"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One structure.

    Attributes:
        id: unique in its volume: "right kidney", "left tumour 2", or the name of another label.
        meaning: None for a label that is not recognized.
        side: None for a label that is not recognized.
        label: its name in the file.
        numbers: of its labels.
        tracking: identifier of a lesion over time; None if it has none.
        tracking_uid: another one, which is unique; None if it has none.
        mask: in its own box, with a margin.
        main: the same without fragments, which are not part of its shape.
        within: of a kidney that tumours have stretched to less than a voxel: itself with them, on
            which the ends that have no label are; None of others.
        stretched_by: the ids of these tumours.
        borders: of the scan that it touches, so that its volume is a lower bound.
    """

    id: str
    meaning: Meaning | None
    side: Side | None
    label: str
    numbers: tuple[int, ...]
    tracking: str | None
    mask: Mask
    main: Mask
    borders: tuple[str, ...]
    tracking_uid: str | None = None
    within: Mask | None = None
    stretched_by: tuple[str, ...] = ()

    @property
    def is_partial(self) -> bool:
        """Whether the scan cuts it off."""
        return bool(self.borders)
