"""What DICOM's Image Type says of an image that is not a slice as it was reconstructed.

The first two values (ORIGINAL or DERIVED, PRIMARY or SECONDARY) decide nothing: anonymised and
compressed slices are DERIVED too. The words behind them do.

Source: DICOM PS3.3, C.8.2.1.1.1, C.8.15.2.1.1.5 and C.8.16.1 (Image Type and Frame Type; derived
pixel contrast; multi-energy CT); the other words are those that vendors write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kidseg.errors import Finding

if TYPE_CHECKING:
    from kidseg.io.dicom_frames import Image

__all__ = ["EXCLUDED", "SAID", "excluded_by", "image_type_findings", "image_type_table"]

_MATERIALS = ("IODINE", "IODINE_MAP")
"""Without a word that it was removed, such an image shows how much of the material there is."""

_REMOVED = (
    *("MAT_REMOVED", "IODINE_REMOVED", "VNC", "VUE", "VIRTUAL_NON_CONTRAST"),
    *("VIRTUAL_UNENHANCED", "VIRTUAL_NON_CALCIUM"),
)

EXCLUDED: Mapping[str, tuple[str, ...]] = {
    "localiser": ("LOCALIZER",),
    "projection": ("MIP", "MIN_IP", "MAXIMUM", "MINIMUM"),
    "rendering": ("VRT", "SSD", "VOLUME_RENDERING"),
    "subtraction image": ("SUBTRACT", "SUBTRACTED", "SUBTRACTION"),
    "material map": (
        *("MAT_SPECIFIC", "MAT_FRACTIONAL", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "Z_EFF"),
        *_MATERIALS,
    ),
    "computed map": ("DIVISION", "MULTIPLICATION", "STD_DEVIATION", "QUANTITY"),
}
"""Words of images that are no scan: they are ignored as localisers are."""

_NO_SLICES = ("localiser", "projection", "rendering")

SAID: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "it is a perfusion map": (
        "derived-values",
        "values may not be Hounsfield units",
        ("PERFUSION",),
    ),
    "it is a virtual monoenergetic image": (
        "derived-values",
        "the contrast of tissues is another than in a scan at one tube voltage",
        (
            *("VMI", "MONO", "MONO_#", "MONO_#_KEV", "#_KEV", "MONO_E", "MONO_E_#", "MONO_E_#_KEV"),
            *("VIRTUAL_MONO", "MONO_ENERGETIC", "MONO_ENERGETIC_PLUS", "MONO_CHROMATIC"),
            *("VIRTUAL_MONO_ENERGETIC", "VIRTUAL_MONO_CHROMATIC"),
        ),
    ),
    "a material was removed from it by computation": (
        "derived-values",
        "values may not be Hounsfield units",
        (*_REMOVED, "MAT_MODIFIED", "MAT_VALUE_BASED"),
    ),
    "it was reformatted from other slices": (
        "reformatted",
        "interpolation has smoothed it; segment the original slices if there are any",
        ("MPR", "REFORMATTED", "RESAMPLED"),
    ),
}
"""What is said of images that are read: the code of the finding, the consequence, the words."""


def excluded_by(image_type: str, modality: str = "CT") -> str:
    """The kind in `EXCLUDED` that an Image Type names; "" if none.

    A virtual non-contrast image may name the material that was removed, and is no map of it.

    Args:
        image_type: its values, separated by backslashes.
        modality: of another than CT, such as MR, only what is no slice is excluded.
    """
    kinds = {kind: EXCLUDED[kind] for kind in EXCLUDED if modality == "CT" or kind in _NO_SLICES}
    harmless = _MATERIALS if _names(image_type, _REMOVED) else ()
    for kind, words in kinds.items():
        if _names(image_type, [word for word in words if word not in harmless]):
            return kind
    return ""


def image_type_findings(images: Sequence[Image], path: Path) -> Iterator[Finding]:
    """One finding for each meaning in `SAID` that CT images of a volume state."""
    images = [image for image in images if image.modality == "CT"]
    for what, (code, consequence, words) in SAID.items():
        stating = [image for image in images if _names(image.image_type, words)]
        if stating:
            cause = f"{what} (Image Type {stating[0].image_type}): {consequence}"
            if len(stating) < len(images):
                cause += f"; so state {len(stating)} of {len(images)} files"
            yield Finding(code=code, path=str(path), cause=cause)


def image_type_table() -> list[str]:
    """The lines of a Markdown table: words of Image Type, and what becomes of such CT images."""
    lines = ["| word in Image Type or Frame Type | what becomes of the image |", "|---|---|"]
    for kind, words in EXCLUDED.items():
        lines.append(
            f"| {_shown(words)} | {kind}: ignored with a warning beside a CT, refused alone |"
        )
    for what, (code, consequence, words) in SAID.items():
        lines.append(f"| {_shown(words)} | read; `{code}`: {what}: {consequence} |")
    return [*lines, "| others, also `DERIVED` and `SECONDARY` | read in silence |"]


def _shown(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _names(image_type: str, words: Sequence[str]) -> bool:
    """Whether one of the words is in it, and not as a part of another word."""
    stated = image_type.upper()
    return any(re.search(rf"(?<![A-Z0-9]){_pattern(word)}(?![A-Z0-9])", stated) for word in words)


def _pattern(word: str) -> str:
    """What matches a word: `_` is also a space, a hyphen or nothing, and `#` is a number."""
    return word.replace("_", "[_ -]?").replace("#", r"\d+")
