"""Collect the cases of a data set and the problems of their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kidseg.cases.case import Case, Dataset, Survey
from kidseg.cases.paths import problem_at
from kidseg.cases.persons import Person, read_patients_csv, with_persons
from kidseg.errors import Finding

if TYPE_CHECKING:
    from kidseg.io.structures import Annotation

__all__ = ["Gathering"]


@dataclass
class Gathering:
    """Cases found by a layout. Each problem becomes a finding; collection continues.

    Attributes:
        root: of the data set.
        n_channels: images that each case must have.
        fetch: the next step for a missing image.
    """

    root: Path
    n_channels: int
    fetch: str = "Download or restore the file, or remove the case."
    findings: list[Finding] = field(default_factory=list)
    _cases: dict[str, Case] = field(default_factory=dict)
    _unlabelled: dict[str, Case] = field(default_factory=dict)
    _incomplete: list[Case] = field(default_factory=list)

    def add(
        self,
        name: str,
        images: Sequence[Path],
        labels: Path | None,
        annotation: Annotation | None = None,
        *,
        is_complete: bool = True,
    ) -> None:
        """Add a case with its expected files; a case without labels is a test case.

        Args:
            name: of the case.
            images: its files.
            labels: its labels.
            annotation: see `Case`.
            is_complete: it can be used, if its files are there.
        """
        case = Case(
            id=name, images=tuple(images), labels=labels, patient=name, annotation=annotation
        )
        if name in self._cases or name in self._unlabelled:
            self.error(
                "duplicate-case",
                self.root,
                f"case '{name}' occurs twice",
                "Give each case a unique name.",
            )
        if self._is_complete(case) and is_complete:
            (self._unlabelled if labels is None else self._cases).setdefault(name, case)
            return
        there = tuple(path for path in case.images if problem_at(path) is None)
        kept = labels if labels is not None and problem_at(labels) is None else None
        self._incomplete.append(replace(case, images=there, labels=kept))

    def error(self, code: str, path: Path, cause: str, next_step: str = "") -> None:
        """Add an error."""
        self.findings.append(
            Finding(code=code, path=str(path), cause=cause, next_step=next_step, severity="error")
        )

    def warn(self, code: str, path: Path, cause: str, next_step: str = "") -> None:
        """Add a warning."""
        self.findings.append(Finding(code=code, path=str(path), cause=cause, next_step=next_step))

    def orphan(self, path: Path) -> None:
        """Add a warning about a file that belongs to no case."""
        self.warn(
            "orphan-file", path, "belongs to no case", "Rename it, or remove it if not needed."
        )

    def survey(self, persons: Mapping[str, Person] | None = None, **facts: Any) -> Survey:
        """The data set. patients.csv describes the cases and takes precedence over `persons`.

        Args:
            persons: from another table.
            facts: the other fields of `Dataset`.
        """
        others = {case.id for case in (*self._incomplete, *self._unlabelled.values())}
        names = others | set(self._cases)
        patients, noted = read_patients_csv(self.root, names)
        for same in _alike(names):
            self.warn(
                "similar-names",
                self.root,
                f"the cases {same} differ only in upper and lower case: on Windows and macOS, files"
                " of one replace those of the other",
                "Rename all but one of them.",
            )
        if not (self._cases or self._unlabelled or self._incomplete):
            self.error(
                "no-cases", self.root, "contains no cases", "Check that the data set is complete."
            )

        def described(cases: Mapping[str, Case]) -> tuple[Case, ...]:
            return with_persons(
                with_persons((cases[name] for name in sorted(cases)), persons or {}), patients
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
                f"case '{case.id}' has {len(case.images)} images, but the data set has "
                f"{self.n_channels} channel(s)",
                "Give each case one image per channel.",
            )
        for image in dict.fromkeys(case.images):
            if problem := problem_at(image):
                self.error(
                    "missing-image",
                    image,
                    f"image of case '{case.id}': {problem}",
                    self.fetch,
                )
        if case.labels is not None and (problem := problem_at(case.labels)):
            self.error(
                "missing-labels",
                case.labels,
                f"labels of case '{case.id}': {problem}",
                "Download or restore the file, or move the case to the test cases.",
            )
        return len(self.findings) == before


def _alike(names: Iterable[str]) -> list[str]:
    """The names that are equal but for upper and lower case, as in "'Anna', 'anna'"."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(name.casefold(), []).append(f"'{name}'")
    return [", ".join(same) for same in groups.values() if len(same) > 1]
