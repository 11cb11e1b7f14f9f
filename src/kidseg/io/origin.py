"""Where labels come from, as the files that contain them say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kidseg.provenance import RESEARCH_USE, versions

__all__ = ["Origin"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of labels.

    Attributes:
        method: that segmented; "" if it is not known, such as of labels from another program.
        model_sha256: of the model file; "" if it is not known.
        scan_sha256: of the scan that was segmented; "" if it is not known.
        labels_sha256: of the label file that was converted; "" if they were not read from a file.
        is_drawn: a part of the labels was drawn by a person.
    """

    method: str = ""
    model_sha256: str = ""
    scan_sha256: str = ""
    labels_sha256: str = ""
    is_drawn: bool = False

    @property
    def algorithm_type(self) -> Literal["AUTOMATIC", "SEMIAUTOMATIC", ""]:
        """How the labels were made, in DICOM's terms; "" if it is not known."""
        if not self.method:
            return ""
        return "SEMIAUTOMATIC" if self.is_drawn else "AUTOMATIC"

    @property
    def version(self) -> str:
        """The version of kidseg that writes."""
        return versions()["kidseg"] or "unknown"

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 that are known, by name."""
        known = {
            "model SHA-256": self.model_sha256,
            "scan SHA-256": self.scan_sha256,
            "labels SHA-256": self.labels_sha256,
        }
        return {name: value for name, value in known.items() if value}

    @property
    def notes(self) -> str:
        """Intended use and origin in one line. It names no person, place or date."""
        how = f"method {self.method}" if self.method else "origin of the labels unknown"
        how += ", completed from drawn slices" if self.method and self.is_drawn else ""
        hashes = "".join(f"; {name} {value}" for name, value in self.hashes.items())
        return f"{RESEARCH_USE} kidseg {self.version}: {how}{hashes}"
