"""The meaning of the numbers in a label volume.

The schema comes from the data set. Kidney and tumour are the default; any other names work too. A
*label* is one voxel value. A *region* is a named union of labels; metrics are reported per region.
`kidseg.meaning` derives from the names which labels are kidney, tumour or cyst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from math import inf
from pathlib import Path
from typing import Any, Literal

from kidseg.errors import Finding, InputError
from kidseg.meaning import RENAL, Meaning, meanings_by_label

__all__ = [
    "KIDNEY_TUMOUR",
    "KIDNEY_TUMOUR_CYST",
    "Code",
    "CystAs",
    "Label",
    "LabelSchema",
    "Meaning",
    "Target",
    "unclear_labels",
]

CystAs = Literal["tumour", "kidney", "background"]

# Colours of labels without one of their own: the Okabe-Ito palette, safe for colour-blind readers.
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
    """One voxel value: number (1..255), name, colour (0..255 each), and coded concept if known."""

    id: int
    name: str
    rgb: tuple[int, int, int]
    code: Code | None = None


@dataclass(frozen=True, kw_only=True)
class LabelSchema:
    """The labels of a data set, without background (always 0), and its reported regions.

    Attributes:
        labels: numbers, names, colours, codes.
        regions: {name: labels}, in the order of the report; `usual_regions` unless given.

    Raises:
        ValueError: a number or a name occurs twice, a number is outside 1..255, or a region
            contains a number that is not a label.
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
                raise ValueError(f"region '{name}' = {members} must contain only labels of {ids}")
        if not self.regions:
            object.__setattr__(self, "regions", self.usual_regions())

    @classmethod
    def from_names(
        cls, names: Mapping[int, str], regions: Mapping[str, tuple[int, ...]] | None = None
    ) -> LabelSchema:
        """A schema for {number: name} as stated by a data set; recognized labels get their code.

        Kidney, tumour and cyst have fixed colours. A second label of the same meaning (the other
        kidney) and unrecognized labels get other colours.
        """
        names = {number: name for number, name in sorted(names.items()) if number != 0}
        meanings = meanings_by_label(names, regions or {})
        like = {number: _USUAL.get(meaning) for number, meaning in meanings.items()}
        reserved = {known.rgb for known in like.values() if known}
        others = (rgb for rgb in _colours() if rgb not in reserved)
        used: set[tuple[int, int, int]] = set()
        labels = []
        for number, name in names.items():
            known = like[number]
            rgb = known.rgb if known and known.rgb not in used else next(others)
            used.add(rgb)
            labels.append(Label(id=number, name=name, rgb=rgb, code=known.code if known else None))
        return cls(labels=tuple(labels), regions=dict(regions or {}))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSchema:
        """Inverse of `as_dict`, also after JSON; other entries are ignored.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: invalid data.
        """
        return cls.from_names(
            {int(number): name for number, name in data["names"].items()},
            {name: tuple(ids) for name, ids in data["regions"].items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """Names and regions as plain data, for JSON."""
        return {
            "names": {str(number): name for number, name in self.names.items()},
            "regions": {name: list(ids) for name, ids in self.regions.items()},
        }

    @property
    def ids(self) -> tuple[int, ...]:
        """The voxel values of the labels, without background."""
        return tuple(label.id for label in self.labels)

    @property
    def names(self) -> dict[int, str]:
        """{number: name}, without background."""
        return {label.id: label.name for label in self.labels}

    @cached_property
    def meaning(self) -> dict[int, Meaning | None]:
        """{number: kidney, tumour or cyst}; None if the label is not recognized.

        The code of a label takes precedence over its name and regions; see `meanings_by_label`.
        """
        coded = {label.id: _MEANING_OF_CODE.get(label.code) for label in self.labels if label.code}
        named = meanings_by_label(self.names, self.regions)
        return {number: coded.get(number) or meaning for number, meaning in named.items()}

    def ids_of(self, *meanings: Meaning) -> tuple[int, ...]:
        """The labels with one of these meanings, ordered by `meanings`, then by the schema."""
        return tuple(i for m in meanings for i in self.ids if self.meaning[i] == m)

    def usual_regions(self, cyst: CystAs | None = None) -> dict[str, tuple[int, ...]]:
        """The standard regions for reporting kidneys, as far as the schema has labels for them.

        Both conventions: kidney, kidney+tumour, tumour; with separate cyst labels KiTS23's
        kidney+mass, mass, tumour. Left and right are merged. An unrecognized label is a region
        under its own name.

        Args:
            cyst: what a cyst counts as; None: its own label.
        """
        kidney, tumour, cysts = (self.ids_of(m) for m in RENAL)
        if cyst is not None:
            kidney += cysts if cyst == "kidney" else ()
            tumour += cysts if cyst == "tumour" else ()
            cysts = ()
        mass = tumour + cysts
        regions = {
            "kidney": kidney if not (tumour and cysts) else (),
            "kidney+tumour": kidney + tumour if kidney and tumour and not cysts else (),
            "kidney+mass": kidney + mass if kidney and tumour and cysts else (),
            "mass": mass if tumour and cysts else (),
            "tumour": tumour,
            "cyst": cysts if not tumour else (),
        }
        regions = {name: members for name, members in regions.items() if members}
        for number, name in self.names.items():
            if self.meaning[number] is None:
                regions[name if name not in regions else f"{name} (label {number})"] = (number,)
        return regions


@dataclass(frozen=True, kw_only=True)
class Target:
    """The meaning of a network's output channels, and how they are converted to labels.

    Exclusive channels: background, then one for each of `channels`, with softmax. The label of a
    voxel is the one written by the channel with the highest probability (argmax), or 0. With
    `weights` there are two questions: is it background, if its weighted probability is not lower
    than that of all channels together; and if not, which channel, the one with the highest weighted
    probability. So the weight of a tumour moves its border with the kidney, not that of both.

    Channels that are not exclusive are regions that may overlap, each with its own probability
    (sigmoid). Labels are initialized to 0; then, in channel order, each channel overwrites every
    voxel with a probability above 0.5::

        for i, label in enumerate(target.writes):
            labels[probabilities[i] > 0.5] = label

    So a region that contains others must come first. Source: nnU-Net,
    `LabelManager.convert_probabilities_to_segmentation` and region_based_training.md.

    Attributes:
        channels: the labels that each channel covers. Other labels count as background.
        exclusive: each voxel belongs to one channel or to the background, so no two channels share
            a label.
        writes: the label that each channel writes, nnU-Net's `regions_class_order`; by default the
            first label it covers.
        weights: factors of the output probabilities before the decision, background first if
            exclusive; (): none. Not a property of the training: no part of `as_dict`.

    Raises:
        ValueError: no channels, an empty channel, exclusive channels that share a label, the
            lengths of `writes` and `channels` differ, or `weights` are not positive and one for
            each output.
    """

    channels: tuple[tuple[int, ...], ...]
    exclusive: bool = True
    writes: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.channels or not all(self.channels):
            raise ValueError(f"channels must cover labels: {self.channels}")
        if not self.writes:
            object.__setattr__(self, "writes", tuple(channel[0] for channel in self.channels))
        if len(self.writes) != len(self.channels):
            raise ValueError(
                f"{len(self.writes)} labels to write for {len(self.channels)} channels"
            )
        members = [label for channel in self.channels for label in channel]
        if self.exclusive and len(set(members)) != len(members):
            raise ValueError(f"exclusive channels share a label: {self.channels}")
        if self.weights and len(self.weights) != self.outputs:
            raise ValueError(f"{len(self.weights)} weights for {self.outputs} outputs")
        if not all(0 < weight < inf for weight in self.weights):
            raise ValueError(f"weights must be positive: {self.weights}")

    def expresses(self, region: Sequence[int]) -> bool:
        """Can the labels that the channels write tell a region from the rest?

        Args:
            region: its labels.
        """
        members = set(region)
        apart = all(set(c) <= members or not set(c) & members for c in self.channels)
        return members <= set(self.learned) and (apart or not self.exclusive)

    @classmethod
    def of_labels(cls, schema: LabelSchema) -> Target:
        """One channel per label of a schema."""
        return cls(channels=tuple((number,) for number in schema.ids))

    @classmethod
    def of_regions(cls, schema: LabelSchema, writes: Sequence[int]) -> Target:
        """One channel per region of a schema, not exclusive, in the order of the schema."""
        return cls(channels=tuple(schema.regions.values()), exclusive=False, writes=tuple(writes))

    @classmethod
    def merged(cls, schema: LabelSchema) -> Target:
        """One channel for kidneys with their contents: kidney, tumour and cyst.

        Raises:
            InputError: "no-kidney-label": no label is recognized as kidney.
        """
        if not schema.ids_of("kidney"):
            raise _missing("kidney", schema)
        return cls(channels=(schema.ids_of(*RENAL),))

    @classmethod
    def two(cls, schema: LabelSchema) -> Target:
        """Kidneys and renal tumours, of either side; cysts count as kidney.

        Raises:
            InputError: "no-kidney-label", "no-tumour-label": no such label.
        """
        for meaning in ("kidney", "tumour"):
            if not schema.ids_of(meaning):
                raise _missing(meaning, schema)
        return cls(channels=(schema.ids_of("kidney", "cyst"), schema.ids_of("tumour")))

    @classmethod
    def alone(cls, schema: LabelSchema, meaning: Meaning) -> Target:
        """One channel for the labels of one meaning; everything else is background.

        Raises:
            InputError: "no-kidney-label", "no-tumour-label", "no-cyst-label": no such label.
        """
        if not schema.ids_of(meaning):
            raise _missing(meaning, schema)
        return cls(channels=(schema.ids_of(meaning),))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Target:
        """Inverse of `as_dict`, also after JSON.

        Raises:
            ValueError, KeyError, TypeError: invalid data.
        """
        return cls(
            channels=tuple(tuple(int(i) for i in channel) for channel in data["channels"]),
            exclusive=bool(data["exclusive"]),
            writes=tuple(int(i) for i in data["writes"]),
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "channels": [list(channel) for channel in self.channels],
            "exclusive": self.exclusive,
            "writes": list(self.writes),
        }

    @property
    def learned(self) -> tuple[int, ...]:
        """The labels that any channel covers, ascending; others are background."""
        return tuple(sorted({label for channel in self.channels for label in channel}))

    @property
    def outputs(self) -> int:
        """Number of network output channels, including background if exclusive."""
        return len(self.channels) + int(self.exclusive)

    @property
    def background(self) -> tuple[float, ...]:
        """Output probabilities of certain background."""
        return (1.0,) * int(self.exclusive) + (0.0,) * len(self.channels)


def unclear_labels(schema: LabelSchema, path: str | Path) -> tuple[Finding, ...]:
    """Warnings about labels of a data set that are not recognized.

    "label-not-understood" names them all; "no-kidney-label": no label is recognized as kidney.

    Args:
        schema: of the data set.
        path: the file that names the labels, or the data set.
    """
    names = {i: name for i, name in schema.names.items() if schema.meaning[i] is None}
    found = []
    if names:
        found.append(
            Finding(
                code="label-not-understood",
                path=str(path),
                cause="these labels are not recognized as kidney, tumour or cyst: "
                f"{_listed(names)}; they are trained and reported under their own names",
                next_step="If one of them is, rename it, or the region that contains it, in "
                "dataset.json: 'kidney', 'tumour' or 'cyst'.",
            )
        )
    if not schema.ids_of("kidney"):
        error = _missing("kidney", schema, path)
        found.append(replace(error.as_finding(), severity="warning"))
    return tuple(found)


def _missing(meaning: Meaning, schema: LabelSchema, path: str | Path | None = None) -> InputError:
    codes = {"kidney": "no-kidney-label", "tumour": "no-tumour-label", "cyst": "no-cyst-label"}
    return InputError(
        f"no label is recognized as {meaning}: {_listed(schema.names)}",
        path=path,
        code=codes[meaning],
        next_step=f"Name the label '{meaning}', or 'left {meaning}' and so on, in dataset.json.",
    )


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(f"{number} ({name})" for number, name in names.items())


def _colours() -> Iterator[tuple[int, int, int]]:
    """The palette, then hues spaced by the golden ratio, so that consecutive colours differ."""
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
"""The default: 1 healthy renal parenchyma, 2 tumour; both reporting conventions."""

KIDNEY_TUMOUR_CYST = LabelSchema(
    labels=(_KIDNEY, _TUMOUR, _CYST),
    regions={"kidney+mass": (1, 2, 3), "mass": (2, 3), "tumour": (2,)},
)
"""KiTS21 and KiTS23. Source of the regions: KiTS23's "hierarchical evaluation classes"."""

_USUAL: dict[Meaning | None, Label] = {"kidney": _KIDNEY, "tumour": _TUMOUR, "cyst": _CYST}
_MEANING_OF_CODE = {label.code: meaning for meaning, label in _USUAL.items()}
