"""What the numbers in a label volume mean.

The schema comes from the data set: kidney and tumour are the default, and any other set of names
works everywhere. A *label* is one voxel value; a *region* is a named union of labels and is what
figures are reported for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from colorsys import hsv_to_rgb
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

__all__ = [
    "KIDNEY_TUMOUR",
    "KIDNEY_TUMOUR_CYST",
    "Code",
    "CystAs",
    "Label",
    "LabelSchema",
    "Target",
]

CystAs = Literal["tumour", "kidney", "background"]

# Distinct colours for labels that bring none: the Okabe-Ito palette, safe for colour-blind readers.
# Source: Okabe and Ito, "Color Universal Design", 2008.
_PALETTE = (
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 114, 178),
    (204, 121, 167),
    (240, 228, 66),
)


@dataclass(frozen=True, kw_only=True)
class Code:
    """A coded concept, as DICOM writes it: value, scheme ("SCT" is SNOMED CT) and meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Label:
    """One voxel value: number (1..255), name, colour (0..255 each), coded concept if known."""

    id: int
    name: str
    rgb: tuple[int, int, int]
    code: Code | None = None


@dataclass(frozen=True, kw_only=True)
class LabelSchema:
    """The labels of a data set, without background (always 0), and its reported regions.

    Raises:
        ValueError: a number or a name occurs twice, a number is outside 1..255, or a region names
            a number that is no label.
    """

    labels: tuple[Label, ...]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [label.id for label in self.labels]
        names = [label.name for label in self.labels]
        if len(set(ids)) != len(ids) or len(set(names)) != len(names):
            raise ValueError(f"label numbers and names must be unique: {ids}, {names}")
        if not all(1 <= i <= 255 for i in ids):
            raise ValueError(f"label numbers must lie in 1..255: {ids}")
        for name, members in self.regions.items():
            if not members or not set(members) <= set(ids):
                raise ValueError(f"region '{name}' = {members} must name some of the labels {ids}")
        if not self.regions:
            object.__setattr__(self, "regions", {n: (i,) for n, i in zip(names, ids, strict=True)})

    @classmethod
    def from_names(
        cls, names: Mapping[int, str], regions: Mapping[str, tuple[int, ...]] | None = None
    ) -> LabelSchema:
        """A schema for {number: name}, as data sets state it; known names keep their codes."""
        known = {label.name: label for label in KIDNEY_TUMOUR_CYST.labels}
        known["tumor"] = known["tumour"]
        taken = {known[name.lower()].rgb for name in names.values() if name.lower() in known}
        colours = (rgb for rgb in _colours() if rgb not in taken)
        labels = []
        for number, name in sorted(names.items()):
            if number == 0:
                continue
            like = known.get(name.lower())
            if like:
                labels.append(Label(id=number, name=name, rgb=like.rgb, code=like.code))
            else:
                labels.append(Label(id=number, name=name, rgb=next(colours)))
        return cls(labels=tuple(labels), regions=dict(regions or {}))

    @property
    def ids(self) -> tuple[int, ...]:
        """The voxel values of the labels, without background."""
        return tuple(label.id for label in self.labels)

    @property
    def names(self) -> dict[int, str]:
        """{number: name}, without background."""
        return {label.id: label.name for label in self.labels}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the output channels of a network mean.

    Attributes:
        channels: the labels that each channel covers. Exclusive channels share no label, and the
            background is a channel of its own before them; labels that no channel covers count as
            background.
        exclusive: each voxel belongs to one channel or to the background (softmax); otherwise
            channels are regions that may overlap, each decided on its own (sigmoid), as in
            nnU-Net's region-based training.
        writes: the label that each channel writes. Where regions overlap, the later channel's
            holds (nnU-Net's `regions_class_order`).

    Raises:
        ValueError: no channel, an empty one, exclusive ones that share a label, or another number
            of labels to write than of channels.
    """

    channels: tuple[tuple[int, ...], ...]
    exclusive: bool = True
    writes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.writes:
            object.__setattr__(self, "writes", tuple(channel[0] for channel in self.channels))
        if not self.channels or not all(self.channels):
            raise ValueError(f"channels must cover labels: {self.channels}")
        if len(self.writes) != len(self.channels):
            raise ValueError(
                f"{len(self.writes)} labels to write for {len(self.channels)} channels"
            )
        members = [label for channel in self.channels for label in channel]
        if self.exclusive and len(set(members)) != len(members):
            raise ValueError(f"exclusive channels share a label: {self.channels}")

    @classmethod
    def of_labels(cls, schema: LabelSchema) -> Target:
        """Each label of a schema a channel."""
        return cls(channels=tuple((number,) for number in schema.ids))

    @property
    def outputs(self) -> int:
        """Channels of the network; with the background's, if they are exclusive."""
        return len(self.channels) + int(self.exclusive)

    @property
    def background(self) -> tuple[float, ...]:
        """Probabilities where there is background for certain."""
        return (1.0,) * int(self.exclusive) + (0.0,) * len(self.channels)


def _colours() -> Iterator[tuple[int, int, int]]:
    """The palette, then hues a golden section apart, so that neighbours differ."""
    yield from _PALETTE
    for k in count(1):
        red, green, blue = hsv_to_rgb(k * 0.61803398875 % 1.0, 0.65, 0.9)
        yield round(255 * red), round(255 * green), round(255 * blue)


# Source of the codes: SNOMED CT as used by DICOM PS3.16 (CID 7166, CID 7159) for segment types.
_KIDNEY = Label(
    id=1,
    name="kidney",
    rgb=(0, 158, 115),
    code=Code(value="64033007", scheme="SCT", meaning="Kidney"),
)
_TUMOUR = Label(
    id=2,
    name="tumour",
    rgb=(230, 159, 0),
    code=Code(value="108369006", scheme="SCT", meaning="Neoplasm"),
)
_CYST = Label(
    id=3,
    name="cyst",
    rgb=(86, 180, 233),
    code=Code(value="367643001", scheme="SCT", meaning="Cyst"),
)

KIDNEY_TUMOUR = LabelSchema(
    labels=(_KIDNEY, _TUMOUR),
    regions={"kidney": (1,), "kidney+tumour": (1, 2), "tumour": (2,)},
)
"""The default: 1 healthy renal parenchyma, 2 tumour; both reporting conventions, always named."""

KIDNEY_TUMOUR_CYST = LabelSchema(
    labels=(_KIDNEY, _TUMOUR, _CYST),
    regions={"kidney+mass": (1, 2, 3), "mass": (2, 3), "tumour": (2,)},
)
"""KiTS21 and KiTS23. Source of the regions: KiTS23's "hierarchical evaluation classes"."""
