"""A data set of a study and its parts: training, validation and test cases."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kidseg.cases import Case, Dataset, open_dataset
from kidseg.cases.same_images import check_apart, voxels_sha256
from kidseg.config import StudyConfig, StudyDataConfig
from kidseg.errors import InputError, UsageError
from kidseg.evaluate import Protocol, protocol_named
from kidseg.io import ReadOptions, read, read_grid
from kidseg.io.content import sha256_of_all
from kidseg.splits import holdout
from kidseg.train.trained_images import TrainedImages

__all__ = ["Partition", "check_model", "check_partitions", "digest", "partition"]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A data set, divided by patient.

    Attributes:
        name: in the study's file; "" for the study's own data set.
        data: the data set.
        training: ids of the training cases.
        validation: ids of the cases for selecting weights.
        test: ids of the test cases.
        images: checksum of each case's images.
        sha256: checksum of each case's files, images and labels.
        protocol: of the evaluation.
    """

    name: str
    data: Dataset
    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    images: Mapping[str, str]
    sha256: Mapping[str, str]
    protocol: Protocol

    def of_patients(self, count: int | None, seed: int) -> tuple[str, ...]:
        """The training cases of so many patients, drawn with a seed; None: all."""
        if count is None:
            return self.training
        known = self.data.by_id
        patients = sorted({known[name].patient for name in self.training})
        random.Random(f"patients {seed}").shuffle(patients)
        drawn = set(patients[:count])
        return tuple(name for name in self.training if known[name].patient in drawn)

    def n_patients(self, cases: Sequence[str]) -> int:
        """Number of patients of these cases."""
        return len({self.data.by_id[name].patient for name in cases})

    @cached_property
    def test_voxels(self) -> Mapping[str, str]:
        """{digest of the voxels: test case}; reads the first image of each.

        Raises:
            InputError: as `kidseg.io.load`.
        """
        return {_Image(self.data, case).voxels: case for case in self.test}

    @property
    def meaning(self) -> dict[str, Any]:
        """What the values of the labels' files mean, which files of the data set beside them say.

        These are the names, the regions, and the structures of DICOM objects that are labels.
        """
        known = self.data.by_id
        structures = {
            case: [[part.number, part.label] for part in annotation.parts]
            for case in self.images
            if (annotation := known[case].annotation) is not None
        }
        return {
            **self.data.schema.as_dict(),
            "order": list(self.data.region_order),
            "ignored": self.data.ignore_label,
            "structures": digest(structures) if structures else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """The data set and its parts, as plain data."""
        parts = {"training": self.training, "validation": self.validation, "test": self.test}
        return {
            "dataset": self.data.name,
            "digest": digest(self.sha256),
            **{
                name: {"cases": list(cases), "patients": self.n_patients(cases)}
                for name, cases in parts.items()
            },
        }


def digest(content: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def partition(name: str, folder: Path, own: StudyDataConfig, config: StudyConfig) -> Partition:
    """Read a data set and divide it.

    Args:
        name: see `Partition`.
        folder: of the data set.
        own: its settings.
        config: of the study.

    Raises:
        InputError: as `open_dataset` and `holdout`; "same-image": in two parts.
        UsageError: "unknown-case"; "bad-split": no training cases remain, or a patient is in two
            parts.
    """
    data = open_dataset(folder)
    training, validation, test = _parts(data, own, config)
    known = data.by_id
    images = {case: _images(known[case]) for case in (*training, *validation, *test)}
    check_apart(images, training, validation, data.root)
    check_apart(images, (*training, *validation), test, data.root, other="test")
    return Partition(
        name=name,
        data=data,
        training=training,
        validation=validation,
        test=test,
        images=images,
        sha256={case: _content(known[case]) for case in images},
        protocol=protocol_named(config.protocol, data.schema, config.cyst),
    )


def check_partitions(partitions: Sequence[Partition], file: Path) -> None:
    """Check that no image is in the test part of one data set and in another data set's training.

    Images are compared by their files; between data sets also by their voxels, whatever the format,
    where they have as many along each axis.

    Raises:
        InputError: "same-image"; as `kidseg.io.load`.
    """
    learned = {
        _Image(one.data, case): one.images[case]
        for one in partitions
        for case in (*one.training, *one.validation)
    }
    tested = {_Image(one.data, case): one.images[case] for one in partitions for case in one.test}
    _check_apart(learned, tested, file)
    if len(partitions) == 1:
        return
    sizes = {image: image.size for image in (*learned, *tested)}
    shared = {sizes[image] for image in learned} & {sizes[image] for image in tested}
    _check_apart(
        {image: image.voxels for image in learned if sizes[image] in shared},
        {image: image.voxels for image in tested if sizes[image] in shared},
        file,
    )


@dataclass(frozen=True, eq=False)
class _Image:
    """The first image of a case."""

    data: Dataset
    case: str

    def __str__(self) -> str:
        return f"{self.data.root}/{self.case}"

    @property
    def size(self) -> tuple[int, ...]:
        """Voxels along each axis, in whatever order the file has them."""
        return tuple(sorted(read_grid(self._path, self._options).shape))

    @property
    def voxels(self) -> str:
        return voxels_sha256(read(self._path, self._options).volume)

    @property
    def _path(self) -> Path:
        return self.data.by_id[self.case].images[0]

    @property
    def _options(self) -> ReadOptions:
        return ReadOptions(volume=self.data.by_id[self.case].volume_of(0))


def check_model(
    images: TrainedImages, model: Path, partitions: Sequence[Partition], name: str
) -> None:
    """Check that a model to fine-tune has not learned from a test image, by the voxels.

    Args:
        images: from which it has learned.
        model: its file.
        partitions: the data sets.
        name: of the method that starts from it.

    Raises:
        InputError: "same-image", with the test case; as `kidseg.io.load`.
    """
    for one in partitions if images.voxels else ():
        found = sorted(one.test_voxels[each] for each in one.test_voxels.keys() & images.voxels)
        if found:
            others = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise InputError(
                f"methods.{name}: the model has learned from the image of test case"
                f" '{found[0]}'{others} of {one.data.root}",
                path=model,
                code="same-image",
                next_step="Start from a model that was trained on other patients, or test on"
                " others.",
            )


def _check_apart(learned: Mapping[_Image, str], tested: Mapping[_Image, str], file: Path) -> None:
    digests = {str(image): digest for image, digest in [*learned.items(), *tested.items()]}
    check_apart(digests, [*map(str, learned)], [*map(str, tested)], file, other="test")


def _parts(
    data: Dataset, own: StudyDataConfig, config: StudyConfig
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(training, validation, test) case ids; no patient is in two parts."""
    known = data.by_id
    if own.test:
        if unknown := sorted(set(own.test) - set(known)):
            raise UsageError(
                f"unknown test case(s), or without labels: {', '.join(unknown)}",
                path=data.root,
                code="unknown-case",
                next_step="Check its spelling: the id of a case is that of its files or folder.",
            )
        test = tuple(sorted(set(own.test)))
    else:
        test = holdout(data.cases, n_test=own.test_patients, seed=config.split_seed).test
    tested = {known[name].patient for name in test}
    rest = [case for case in data.cases if case.id not in test]
    if both := sorted(tested & {case.patient for case in rest}):
        raise UsageError(
            f"patient {both[0]} has both test cases and other cases",
            path=data.root,
            code="bad-split",
            next_step="List all cases of a patient in test, or none.",
        )
    try:
        kept = holdout(rest, test_fraction=config.validation_share, seed=config.split_seed)
    except InputError as error:
        raise UsageError(
            f"too few patients remain besides {len(tested)} test patient(s): {error.cause}",
            path=data.root,
            code="bad-split",
            next_step="Use fewer test patients.",
        ) from error
    return kept.train, kept.test, test


def _images(case: Case) -> str:
    """SHA-256 of the contents of a case's images."""
    return sha256_of_all(case.images if case.annotation is None else case.annotation.images)


def _content(case: Case) -> str:
    """SHA-256 of a case's file contents; a file of several channels is hashed once per channel."""
    if case.annotation is not None:
        return sha256_of_all([*case.annotation.images, *case.annotation.objects])
    return sha256_of_all([*case.images, *([] if case.labels is None else [case.labels])])
