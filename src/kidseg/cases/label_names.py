"""What the values of a label file mean: as its header, its folder or its user says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kidseg.cases.dataset import survey_dataset
from kidseg.cases.naming import DATASET_JSON, IMAGE_FOLDERS, LABEL_ENDINGS, SLICER_ENDING
from kidseg.cases.persons import load_json
from kidseg.cases.segments import segments_of
from kidseg.errors import Finding, InputError, UsageError
from kidseg.io import kind_of
from kidseg.labels import KIDNEY_TUMOUR_CYST, LabelSchema

__all__ = ["NamedLabels", "named_labels", "parse_names", "stated_labels"]

_RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class NamedLabels:
    """The meaning of the values of a label file.

    Attributes:
        schema: of the values.
        said_by: "names" (the user), "segments" (3D Slicer), "result" (`result.json` beside it),
            "dataset" (the data set around it), "structures" (a DICOM object) or "assumed".
        ignore: value of voxels that the data set excludes.
        record: the entry of the file in `result.json`, if there is one.
        numbered: values to whose names a number was added here, as the file has the name twice.
        findings: "assumed-names".
    """

    schema: LabelSchema
    said_by: str
    ignore: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    numbered: frozenset[int] = frozenset()
    findings: tuple[Finding, ...] = ()


def parse_names(pairs: Sequence[str]) -> dict[int, str]:
    """{value: name} of texts such as "1=left kidney".

    Raises:
        UsageError: "bad-label".
    """
    names: dict[int, str] = {}
    for pair in pairs:
        number, equals, name = pair.partition("=")
        number = number.strip()
        is_value = number.isascii() and number.isdigit() and 1 <= int(number[:4]) <= 255
        if not (equals and is_value and name.strip()) or int(number) in names:
            raise UsageError(
                f"'{pair}' does not name one label",
                code="bad-label",
                next_step="Write --label 1=kidney --label 2=tumour, each value (1..255) once.",
            )
        names[int(number)] = name.strip()
    if repeated := [name for name, n in Counter(names.values()).items() if n > 1]:
        raise UsageError(
            f"several labels have the name '{repeated[0]}'",
            code="bad-label",
            next_step="Give each label a name of its own.",
        )
    return names


def named_labels(path: Path, names: Mapping[int, str] | None = None) -> NamedLabels:
    """Find out what the values of a label file mean.

    The names given count first; then those in the file (3D Slicer), in `result.json` beside it, in
    the `dataset.json` of the data set around it; otherwise the values are assumed to be those of
    KiTS: 1 kidney, 2 tumour, 3 cyst.

    Raises:
        InputError: see `segments_of`, `survey_dataset`; "bad-json".
    """
    record = _records(path.parent).get(path.name, {})
    recorded = _as_recorded(record, path)
    if names:
        return NamedLabels(schema=LabelSchema.from_names(names), said_by="names", record=record)
    if kind_of(path) == "nrrd" and (segments := segments_of(path)):
        found = _unique({segment.value: segment.name for segment in segments})
        return NamedLabels(
            schema=LabelSchema.from_names(found),
            said_by="segments",
            record=record,
            numbered=frozenset(s.value for s in segments if found[s.value] != s.name),
        )
    if recorded is not None:
        return recorded
    if (root := _described_by(path)) is not None:
        return _as_described(root)
    known = ", ".join(f"{number} {name}" for number, name in KIDNEY_TUMOUR_CYST.names.items())
    finding = Finding(
        code="assumed-names",
        path=str(path),
        cause=f"nothing says what its values mean; they were taken for {known}",
        next_step="If they are others, name them: --label NUMBER=NAME.",
    )
    return NamedLabels(schema=KIDNEY_TUMOUR_CYST, said_by="assumed", findings=(finding,))


def _described_by(path: Path) -> Path | None:
    """The folder of the dataset.json that describes a file: its own, or that above its labelsTr."""
    folder = path.absolute().parent
    if (folder / DATASET_JSON).is_file():
        return folder
    labels = {name.replace("images", "labels") for name in IMAGE_FOLDERS}
    above = folder.parent
    return above if folder.name in labels and (above / DATASET_JSON).is_file() else None


def stated_labels(files: Iterable[Path]) -> dict[Path, NamedLabels]:
    """What `result.json` or `dataset.json` says of each of these label volumes; see `named_labels`.

    Files of which neither tells anything, and segmentations of 3D Slicer, are left out. Each
    description is read once.

    Raises:
        InputError: see `named_labels`.
    """
    records: dict[Path, Mapping[str, Mapping[str, Any]]] = {}
    of_root: dict[Path, NamedLabels] = {}
    found: dict[Path, NamedLabels] = {}
    for path in files:
        name = path.name.lower()
        if not name.endswith(LABEL_ENDINGS) or name.endswith(SLICER_ENDING):
            continue
        if path.parent not in records:
            records[path.parent] = _records(path.parent)
        if named := _as_recorded(records[path.parent].get(path.name, {}), path):
            found[path] = named
        elif (root := _described_by(path)) is not None:
            if root not in of_root:
                of_root[root] = _as_described(root)
            found[path] = of_root[root]
    return found


def _as_recorded(record: Mapping[str, Any], path: Path) -> NamedLabels | None:
    """The labels that an entry of `result.json` names; None if it names none."""
    _check_record(record, path.parent / _RESULT)
    if not (recorded := record.get("labels")):
        return None
    schema = LabelSchema.from_names({int(number): name for number, name in recorded.items()})
    return NamedLabels(schema=schema, said_by="result", record=record)


def _as_described(root: Path) -> NamedLabels:
    """The labels of a data set."""
    dataset = survey_dataset(root).dataset
    return NamedLabels(schema=dataset.schema, said_by="dataset", ignore=dataset.ignore_label)


def _records(folder: Path) -> dict[str, Mapping[str, Any]]:
    """{name of a file: its entry} of the `result.json` of a folder; {} if there is none.

    Raises:
        InputError: "bad-json".
    """
    if not (folder / _RESULT).is_file():
        return {}
    content = load_json(folder / _RESULT)
    entries = content.get("scans") if isinstance(content, dict) else None
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries if isinstance(entries, list) else []:
        outputs = entry.get("outputs") if isinstance(entry, dict) else None
        for name in outputs if isinstance(outputs, list) else []:
            found.setdefault(str(name), entry)
    return found


def _check_record(entry: Mapping[str, Any], path: Path) -> None:
    labels = entry.get("labels", {})
    sound = isinstance(labels, dict) and all(
        number.isdecimal()
        and len(number) <= 3
        and 1 <= int(number) <= 255
        and isinstance(name, str)
        for number, name in labels.items()
    )
    if not sound or len(set(labels.values())) < len(labels):
        raise InputError(
            "the names of labels in it are damaged",
            path=path,
            code="bad-json",
            next_step="Restore the file, or name the labels: --label 1=...",
        )


def _unique(names: Mapping[int, str]) -> dict[int, str]:
    """Names that occur twice, or are empty, with their number."""
    counts = Counter(names.values())
    found: dict[int, str] = {}
    for number, name in names.items():
        unique = name
        while not unique or counts[unique] > 1 or unique in found.values():
            unique = f"{unique or 'segment'} {number}"
        found[number] = unique
    return found
