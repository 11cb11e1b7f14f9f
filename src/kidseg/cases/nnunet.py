"""nnU-Net v2's raw data folder.

    dataset.json                           channels, labels, file ending, number of cases
    imagesTr/<case>_<channel, 4 digits><ending>, labelsTr/<case><ending>, imagesTs/

or, instead of the folders, a "dataset" in dataset.json that names the files of each case.

Source: nnU-Net, documentation/dataset_format.md, region_based_training.md and ignore_label.md;
`get_filenames_of_train_images_and_targets` in nnunetv2/utilities/utils.py for the second form.
"""

from __future__ import annotations

import json
import re
import reprlib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from kidseg.cases.case import Survey
from kidseg.cases.gathering import Gathering
from kidseg.cases.naming import DATASET_JSON, channel_file
from kidseg.cases.paths import stated_path, visible
from kidseg.errors import InputError
from kidseg.labels import LabelSchema

__all__ = ["Description", "describe_nnunet", "survey_nnunet", "write_dataset_json"]

_TYPES = ("int", "list[int]")  # what pydantic tried for a label
_ENDING = re.compile(r"(\.\w{1,10}){1,3}", re.ASCII)
_CHECKED = ConfigDict(extra="ignore", strict=True)


@dataclass(frozen=True, config=_CHECKED)
class _Files:
    images: list[str]
    label: str


@dataclass(frozen=True, config=_CHECKED)
class _Description:
    """dataset.json with nnU-Net's field names."""

    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    numTraining: int  # noqa: N815
    file_ending: str
    name: str | None = None
    regions_class_order: list[int] | None = None
    dataset: dict[str, _Files] | None = None


@dataclass(frozen=True)
class _Labels:
    schema: LabelSchema
    region_order: tuple[int, ...]
    ignore_label: int | None


@dataclass(frozen=True)
class Description:
    """What dataset.json says of channels and labels, without the files.

    Attributes:
        channels: their names.
        schema: of the labels.
        region_order: label that each region of the schema writes; () if labels are not regions.
        ignore_label: of voxels to ignore; None: there is none.
    """

    channels: tuple[str, ...]
    schema: LabelSchema
    region_order: tuple[int, ...]
    ignore_label: int | None


def describe_nnunet(content: Any, path: Path) -> Description:
    """Channels and labels of the content of a dataset.json.

    Raises:
        InputError: "bad-dataset-json".
    """
    description = _description(content, path)
    labels = _labels(description, path)
    return Description(
        channels=_channels(description, path),
        schema=labels.schema,
        region_order=labels.region_order,
        ignore_label=labels.ignore_label,
    )


def survey_nnunet(root: Path, content: Any) -> Survey:
    """Survey the data set that dataset.json and the folders describe.

    Findings about files: errors "missing-image", "missing-labels", "wrong-channel-count",
    "wrong-case-count" (numTraining), "wrong-file-ending", "duplicate-case"; warnings "orphan-file",
    "labels-not-consecutive".

    Raises:
        InputError: "bad-dataset-json": a field is missing or invalid; the message names it;
            "unset-variable": in the path of a file.
    """
    path = root / DATASET_JSON
    description = _description(content, path)
    channels = _channels(description, path)
    labels = _labels(description, path)
    found = Gathering(root, len(channels))
    if description.dataset is None:
        _add_training_folders(found, description.file_ending)
        n_training = len(_by_case(found, root / "imagesTr", description.file_ending))
    else:
        for name, files in description.dataset.items():
            stated = [
                stated_path(root, text, path, variables=True)
                for text in (*files.images, files.label)
            ]
            found.add(name, stated[:-1], stated[-1])
        n_training = len(description.dataset)
    for name, images in _by_case(
        found, root / "imagesTs", description.file_ending, note=True
    ).items():
        found.add(name, images, None)
    if not n_training and (others := visible(root / "imagesTr")) and description.dataset is None:
        found.error(
            "wrong-file-ending",
            path,
            f"no image in imagesTr is named CASE_0000{description.file_ending}, as file_ending"
            f" says; there is {others[0].name}",
            "Correct file_ending, or the names of the files.",
        )
    elif n_training != description.numTraining:
        found.error(
            "wrong-case-count",
            path,
            f"numTraining is {description.numTraining}, but there are {n_training} training cases",
            "Correct numTraining, or restore the missing cases.",
        )
    _check_numbers(found, labels, path)
    return found.survey(
        layout="nnunet",
        name=description.name or root.name,
        schema=labels.schema,
        channels=channels,
        region_order=labels.region_order,
        ignore_label=labels.ignore_label,
    )


def write_dataset_json(
    root: Path,
    *,
    channels: Sequence[str],
    schema: LabelSchema,
    n_training: int,
    name: str | None = None,
    region_order: Sequence[int] = (),
    ignore_label: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write nnU-Net's dataset.json.

    Args:
        root: of the data set.
        channels: their names; nnU-Net treats "CT" specially.
        schema: its labels are written; its regions too if `region_order` is given.
        n_training: number of training cases.
        name: of the data set; the name of the folder by default.
        region_order: as in `Dataset`.
        ignore_label: as in `Dataset`.
        overwrite: replace a file that exists.

    Raises:
        UsageError, InputError, ResourceError: as `kidseg.io.atomic.writing`.
    """
    from kidseg.io.atomic import write_json

    labels: dict[str, int | list[int]] = {"background": 0}
    if region_order:
        for region, members in schema.regions.items():
            labels[region] = list(members) if len(members) > 1 else members[0]
    else:
        labels |= {label.name: label.id for label in schema.labels}
    if ignore_label is not None:
        labels["ignore"] = ignore_label
    content: dict[str, Any] = {
        "name": name or root.resolve().name,
        "channel_names": {str(k): channel for k, channel in enumerate(channels)},
        "labels": labels,
        "numTraining": n_training,
        "file_ending": ".nii.gz",
    }
    if region_order:
        content["regions_class_order"] = list(region_order)
    path = root / DATASET_JSON
    write_json(path, content, overwrite=overwrite)
    return path


def _description(content: Any, path: Path) -> _Description:
    try:
        # Via JSON: strict validation of Python objects requires instances, not mappings.
        description: _Description = TypeAdapter(_Description).validate_json(json.dumps(content))
    except ValidationError as error:
        raise _bad(_problem(error.errors()[0]), path) from error
    except (ValueError, RecursionError) as error:
        raise _bad(f"its content is invalid ({error})", path) from error
    if not _ENDING.fullmatch(description.file_ending):
        raise _bad(
            f"file_ending must begin with a dot and name a file type, such as .nii.gz, not "
            f"{reprlib.repr(description.file_ending)}",
            path,
        )
    return description


def _problem(error: Any) -> str:
    """What is wrong with a field, and what it contains, of an error of pydantic."""
    names = [str(part) for part in error["loc"] if part not in _TYPES]
    if not names:
        return f"its content is invalid ({error['msg']})"
    found = reprlib.repr(error["input"])
    if names[0] == "labels" and len(names) > 1 and isinstance(error["input"], str):
        entry = f"{reprlib.repr(names[1])} to {found}"
        return f"'labels' must map names to numbers, as in {{'kidney': 1}}, not {entry}"
    wrong = "" if error["type"] == "missing" else f", not {found}"
    return f"'{'.'.join(names)}': {error['msg'].lower()}{wrong}"


def _channels(description: _Description, path: Path) -> tuple[str, ...]:
    names = description.channel_names
    if not names or set(names) != {str(k) for k in range(len(names))}:
        raise _bad(f"channel_names must be numbered from 0, not {reprlib.repr(list(names))}", path)
    return tuple(names[str(k)] for k in range(len(names)))


def _labels(description: _Description, path: Path) -> _Labels:
    if description.labels.get("background") != 0:
        raise _bad("labels must contain 'background': 0", path)
    ignore = description.labels.get("ignore")
    if isinstance(ignore, list):
        raise _bad("the ignore label must be one number", path)
    regions = {
        name: (tuple(dict.fromkeys(members)) if isinstance(members, list) else (members,))
        for name, members in description.labels.items()
        if name not in ("background", "ignore")
    }
    if not regions:
        raise _bad("no labels besides background", path)
    names = {members[0]: name for name, members in regions.items() if len(members) == 1}
    if len(names) != sum(len(members) == 1 for members in regions.values()):
        raise _bad("two labels have the same number", path)
    if ignore is not None and (not 1 <= ignore <= 255 or ignore in names):
        raise _bad(f"the ignore label must be in 1..255 and not a label, not {ignore}", path)
    try:
        if all(len(members) == 1 for members in regions.values()):
            return _Labels(LabelSchema.from_names(names), (), ignore)
        names = _named_by_regions(regions)
        schema = LabelSchema.from_names(names, regions)
    except ValueError as error:
        raise _bad(_shortened(error), path) from error
    if ignore in names:
        raise _bad(f"the ignore label {ignore} is also a label of a region", path)
    order = description.regions_class_order or []
    if len(order) != len(regions) or len(set(order)) != len(order) or not set(order) <= set(names):
        raise _bad(
            f"regions_class_order must give each of the {len(regions)} regions one of the labels, "
            f"not {reprlib.repr(order)}",
            path,
        )
    return _Labels(schema, tuple(order), ignore)


def _named_by_regions(regions: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """A name for each label of a region-based data set, which names only regions.

    A label is named after the smallest region that contains it, without the largest regions inside
    it that do not: in KiTS23 (`kidney` = 1, 2, 3, `masses` = 2, 3, `tumor` = 2) 1 is "kidney
    without masses",
    2 "tumor", 3 "masses without tumor". Regions that do not contain one another are joined by
    "and". Labels that no region distinguishes are numbered parts: "kidney part 1", "kidney part 2".
    So the names depend only on the regions, not on the label numbers, and an export keeps them.
    """
    sets = {name: frozenset(members) for name, members in regions.items()}
    by_name: dict[str, list[int]] = {}
    for number in sorted(frozenset[int]().union(*sets.values())):
        around = {name: members for name, members in sets.items() if number in members}
        smallest = [name for name, m in around.items() if not any(o < m for o in around.values())]
        shared = frozenset.intersection(*around.values())
        others = {name: m & shared for name, m in sets.items() if number not in m and m & shared}
        largest = [name for name, m in others.items() if not any(m < o for o in others.values())]
        name = " and ".join(smallest) + (f" without {' and '.join(largest)}" if largest else "")
        by_name.setdefault(name, []).append(number)
    names = {}
    for name, numbers in by_name.items():
        for k, number in enumerate(numbers, start=1):
            names[number] = name if len(numbers) == 1 else f"{name} part {k}"
    return names


def _check_numbers(found: Gathering, labels: _Labels, path: Path) -> None:
    numbers = sorted(labels.schema.ids)
    if labels.ignore_label is not None:
        numbers.append(labels.ignore_label)
    if numbers != list(range(1, len(numbers) + 1)):
        found.warn(
            "labels-not-consecutive",
            path,
            f"the label numbers are {numbers}; nnU-Net requires 1, 2, 3, ... with 'ignore' last",
            "Export the data set to renumber them.",
        )


def _add_training_folders(found: Gathering, ending: str) -> None:
    images = _by_case(found, found.root / "imagesTr", ending, note=True)
    folder = found.root / "labelsTr"
    labelled = {}
    for file in visible(folder):
        if file.name.endswith(ending) and file.name != ending:
            labelled[file.name.removesuffix(ending)] = file
        else:
            found.orphan(file)
    for name in sorted({*images, *labelled}):
        expected = [found.root / "imagesTr" / channel_file(name, 0, ending)]
        found.add(name, images.get(name, expected), folder / f"{name}{ending}")


def _by_case(
    found: Gathering, folder: Path, ending: str, *, note: bool = False
) -> dict[str, list[Path]]:
    """{case: one file per channel}; missing channels get the expected file name."""
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    channels: dict[str, dict[int, Path]] = {}
    for file in visible(folder):
        if match := pattern.fullmatch(file.name):
            channels.setdefault(match[1], {})[int(match[2])] = file
        elif note:
            found.orphan(file)
    return {
        name: [
            files.get(k, folder / channel_file(name, k, ending))
            for k in sorted({*range(found.n_channels), *files})
        ]
        for name, files in channels.items()
    }


def _shortened(error: ValueError) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-dataset-json",
        next_step="Fix the file; see nnU-Net's documentation of the dataset format.",
    )
