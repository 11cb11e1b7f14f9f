"""Subjects in a store: bit by bit as made ready in memory, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cohorts import PLAN, VIEW
from ellipses import make_ellipse_patient, write_ellipse_dataset
from kidseg.cases import Dataset, open_dataset
from kidseg.cohort.cohort import gather_cohort
from kidseg.cohort.stored import SubjectRecipe, check_view, schema_of_store, subject_of
from kidseg.cohort.subject import Subject, prepare
from kidseg.config import CohortConfig, ViewConfig
from kidseg.errors import InputError, KidsegError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.plan import Plan
from kidseg.store import Store, build_store, open_store

MULTIPLE = 8
# The stored plan says which case trains.
ONE_TRAINS = replace(PLAN, training=("ellipse_000",))


def built(data: Dataset, path: Path, plan: Plan = ONE_TRAINS) -> Store:
    recipe = SubjectRecipe.of_dataset(data, plan, VIEW, multiple=MULTIPLE)
    return build_store(data, plan, path, content=recipe)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data") / "ellipses"
    write_ellipse_dataset(root, 2)
    return open_dataset(root)


@pytest.fixture(scope="module")
def store(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return built(data, tmp_path_factory.mktemp("stores") / "store")


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(KidsegError) as caught:
        action()
    assert caught.value.next_step and caught.value.path
    return caught.value.code


def assert_same_volume(a: Volume | None, b: Volume | None) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert a.data.dtype == b.data.dtype and torch.equal(a.data, b.data)
        assert_same_grid(a.grid, b.grid)


def assert_same_grid(a: Grid, b: Grid) -> None:
    assert a.shape == b.shape and torch.equal(a.mm_from_index, b.mm_from_index)


def assert_same_subject(a: Subject, b: Subject) -> None:
    assert a.id == b.id
    for name in ("image", "masks", "labels", "ignore"):
        assert_same_volume(getattr(a, name), getattr(b, name))
    assert_same_grid(a.base, b.base)
    assert_same_grid(a.whole, b.whole)
    for name in ("body", "body_per_slice"):
        for part in ("centre_mm", "angle_rad", "radii_mm"):
            x, y = (getattr(getattr(s, name), part) for s in (a, b))
            assert x.dtype == y.dtype and torch.equal(x.isnan(), y.isnan())
            assert torch.equal(x.nan_to_num(), y.nan_to_num())


def test_a_stored_subject_is_the_one_made_in_memory(store: Store) -> None:
    cohort = gather_cohort(store, CohortConfig())
    assert [s.id for s in cohort.training] == ["ellipse_000"]
    assert [s.id for s in cohort.validation] == ["ellipse_001"]
    assert cohort.plan == ONE_TRAINS and cohort.schema.names == {1: "kidney", 2: "tumour"}
    for seed, stored in enumerate((*cohort.training, *cohort.validation)):
        patient = make_ellipse_patient(seed)
        name = f"ellipse_{seed:03d}"
        made = prepare(
            patient.image, VIEW, PLAN, name=name, multiple=MULTIPLE, labels=patient.labels
        )
        assert_same_subject(stored, made)


def test_slices_without_a_body_and_voxels_that_do_not_count(tmp_path: Path) -> None:
    """Their radii are NaN, which JSON must carry; what is ignored is an array of its own."""
    root = tmp_path / "data"
    patients = write_ellipse_dataset(root, 1)
    image, labels = patients["ellipse_000"].image, patients["ellipse_000"].labels
    image.data[:, 0] = -1000
    labels.data[:, 3, :20] = 3
    save(image, root / "imagesTr" / "ellipse_000_0000.nii.gz", overwrite=True)
    save(labels, root / "labelsTr" / "ellipse_000.nii.gz", overwrite=True)
    content = json.loads((root / "dataset.json").read_text())
    content["labels"]["ignore"] = 3
    (root / "dataset.json").write_text(json.dumps(content))
    store = built(open_dataset(root), tmp_path / "store")
    made = prepare(
        image, VIEW, PLAN, name="ellipse_000", multiple=MULTIPLE, labels=labels, ignore_label=3
    )
    assert made.ignore is not None and made.ignore.data.any()
    assert made.body_per_slice.radii_mm[0].isnan().all()
    assert_same_subject(subject_of(store.cases[0]), made)


def test_a_store_of_another_window_is_refused(store: Store) -> None:
    check_view(store, VIEW, None, multiple=MULTIPLE)
    wider = replace(VIEW, size=56)
    for action in (
        lambda: check_view(store, wider, None, multiple=MULTIPLE),
        lambda: check_view(store, VIEW, "kidney", multiple=MULTIPLE),
        lambda: check_view(store, VIEW, None, multiple=16),
    ):
        assert code_of(action) == "store-of-other-settings"
    with pytest.raises(UsageError, match=r"view\.size = 48, not 56"):
        check_view(store, wider, None, multiple=MULTIPLE)


def test_a_store_of_other_contents_is_refused(data: Dataset, tmp_path: Path) -> None:
    voxels = build_store(data, PLAN, tmp_path / "store")
    assert code_of(lambda: check_view(voxels, VIEW, None, multiple=8)) == "not-subjects"


def test_a_build_with_other_settings_is_refused(data: Dataset, store: Store) -> None:
    other = SubjectRecipe.of_dataset(data, ONE_TRAINS, ViewConfig(size=56), multiple=MULTIPLE)
    assert (
        code_of(lambda: build_store(data, ONE_TRAINS, store.path, content=other))
        == "store-of-other-settings"
    )
    assert code_of(lambda: open_store(store.path, content=other)) == "store-of-other-settings"


def test_regions_that_are_no_labels_and_unknown_ones(data: Dataset, store: Store) -> None:
    assert schema_of_store(store).regions == data.schema.regions
    with pytest.raises(InputError, match="liver") as error:
        gather_cohort(store, CohortConfig(selection=("liver",)))
    assert error.value.code == "unknown-region"
    regions = replace(data, region_order=(1, 2))
    with pytest.raises(InputError) as error:
        SubjectRecipe.of_dataset(regions, PLAN, VIEW, multiple=MULTIPLE)
    assert error.value.code == "regions-not-labels"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux does")
def test_mapped_arrays_keep_no_file_open(store: Store) -> None:
    """A usual system lets a process open 1024 files; a data set has that many arrays."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    subjects = [subject_of(case) for case in store.cases for _ in range(20)]
    assert all(bool(subject.masks.data.any()) for subject in subjects)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
