"""Collecting the cases of a data set: complete ones, others, and what is wrong with their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kidseg.cases.case import Case, Dataset, Survey
from kidseg.cases.persons import Person, read_patients_csv, with_persons
from kidseg.errors import Finding

__all__ = ["Gathering", "visible"]


@dataclass
class Gathering:
    """Cases as a layout finds them. A problem becomes a finding; nothing stops at the first.

    Attributes:
        root: of the data set.
        n_channels: images that each case must have.
        fetch: what to do about a missing image.
    """

    root: Path
    n_channels: int
    fetch: str = "Fetch or restore the file, or remove the case."
    findings: list[Finding] = field(default_factory=list)
    _cases: dict[str, Case] = field(default_factory=dict)
    _unlabelled: dict[str, Case] = field(default_factory=dict)
    _incomplete: list[Case] = field(default_factory=list)

    def add(self, name: str, images: Sequence[Path], labels: Path | None) -> None:
        """A case as it should be; without labels it is a test case."""
        case = Case(id=name, images=tuple(images), labels=labels, patient=name)
        if name in self._cases or name in self._unlabelled:
            self.error(
                "duplicate-case",
                self.root,
                f"case '{name}' occurs twice",
                "Give each case a name of its own.",
            )
        if self._is_complete(case):
            (self._unlabelled if labels is None else self._cases).setdefault(name, case)
            return
        there = tuple(path for path in case.images if path.exists())
        kept = labels if labels is not None and labels.exists() else None
        self._incomplete.append(replace(case, images=there, labels=kept))

    def error(self, code: str, path: Path, cause: str, next_step: str = "") -> None:
        """Note an error."""
        self.findings.append(
            Finding(code=code, path=str(path), cause=cause, next_step=next_step, severity="error")
        )

    def warn(self, code: str, path: Path, cause: str, next_step: str = "") -> None:
        """Note a warning."""
        self.findings.append(Finding(code=code, path=str(path), cause=cause, next_step=next_step))

    def orphan(self, path: Path) -> None:
        """Note a file that belongs to no case."""
        self.warn(
            "orphan-file", path, "it belongs to no case", "Rename it, or remove it if not needed."
        )

    def survey(self, persons: Mapping[str, Person] | None = None, **facts: Any) -> Survey:
        """The data set, its cases described by `persons` and, over them, patients.csv.

        Args:
            persons: what another table says.
            facts: the other fields of `Dataset`.
        """
        everyone = {case.id for case in (*self._incomplete, *self._unlabelled.values())}
        told, noted = read_patients_csv(self.root, everyone | set(self._cases))
        if not (self._cases or self._unlabelled or self._incomplete):
            self.error("no-cases", self.root, "it holds no cases", "Check that it is complete.")

        def described(cases: Mapping[str, Case]) -> tuple[Case, ...]:
            return with_persons(
                with_persons((cases[name] for name in sorted(cases)), persons or {}), told
            )

        dataset = Dataset(
            root=self.root,
            cases=described(self._cases),
            unlabelled=described(self._unlabelled),
            **facts,
        )
        return Survey(
            dataset=dataset,
            findings=(*self.findings, *noted),
            incomplete=tuple(self._incomplete),
        )

    def _is_complete(self, case: Case) -> bool:
        before = len(self.findings)
        if len(case.images) != self.n_channels:
            self.error(
                "wrong-channel-count",
                self.root,
                f"case '{case.id}' has {len(case.images)} images, and the data set has "
                f"{self.n_channels} channel(s)",
                "Give each case one image per channel.",
            )
        for image in dict.fromkeys(case.images):
            if not image.exists():
                self.error("missing-image", image, f"case '{case.id}' needs it", self.fetch)
        if case.labels is not None and not case.labels.exists():
            self.error(
                "missing-labels",
                case.labels,
                f"case '{case.id}' needs it",
                "Fetch or restore the file, or move the case to the test cases.",
            )
        return len(self.findings) == before


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files and macOS's "._" twins; [] if none."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
