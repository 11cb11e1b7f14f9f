"""Subjects in a store: bit by bit as made ready in memory, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cohorts import PLAN, material_of
from ellipses import in_fine_pixels, make_ellipse_patient, write_ellipse_dataset
from findings import code_of
from kidseg.cases import Dataset, open_dataset
from kidseg.cohort.cohort import gather_cohort
from kidseg.cohort.stored import (
    SubjectRecipe,
    check_store,
    schema_of_store,
    subject_of,
    target_of_store,
)
from kidseg.cohort.subject import Material, Subject, prepare
from kidseg.config import CohortConfig
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.plan import Plan
from kidseg.store import Store, build_store, open_store
from test_store import VOXELS

MATERIAL = material_of()
BLOCKS = replace(MATERIAL, pixel_mm=8.0)
FULL = Material()
# The stored plan says which case trains.
ONE_TRAINS = replace(PLAN, training=("ellipse_000",))


def built(
    data: Dataset, path: Path, plan: Plan = ONE_TRAINS, material: Material = MATERIAL
) -> Store:
    return build_store(data, plan, path, recipe=SubjectRecipe.of_dataset(data, plan, material))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data") / "ellipses"
    write_ellipse_dataset(root, 2)
    return open_dataset(root)


@pytest.fixture(scope="module")
def store(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return built(data, tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="module")
def stores(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Of the scans' own pixels, of blocks of 2 x 2, and of these without masks."""
    root = tmp_path_factory.mktemp("stores")
    kinds = {"full": FULL, "blocks": BLOCKS, "bare": replace(BLOCKS, masks=None)}
    return {name: built(data, root / name, material=kind) for name, kind in kinds.items()}


def assert_same_volume(a: Volume | None, b: Volume | None) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert a.data.dtype == b.data.dtype and torch.equal(a.data, b.data)
        assert_same_grid(a.grid, b.grid)


def assert_same_grid(a: Grid, b: Grid) -> None:
    assert a.shape == b.shape and torch.equal(a.mm_from_index, b.mm_from_index)


def assert_same_subject(a: Subject, b: Subject) -> None:
    assert (a.id, a.scalings) == (b.id, b.scalings)
    for name in ("image", "masks", "labels", "ignore"):
        assert_same_volume(getattr(a, name), getattr(b, name))
    assert a.counts.shape == b.counts.shape and (a.counts == b.counts).all()
    assert (a.body is None) == (b.body is None)
    if a.body is None or b.body is None:
        return
    assert a.body.box == b.body.box
    for name in ("whole", "per_slice"):
        for part in ("centre_mm", "angle_rad", "radii_mm"):
            x, y = (getattr(getattr(body, name), part) for body in (a.body, b.body))
            assert x.dtype == y.dtype and torch.equal(x.isnan(), y.isnan())
            assert torch.equal(x.nan_to_num(), y.nan_to_num())


def made(seed: int, material: Material) -> Subject:
    patient = make_ellipse_patient(seed)
    return prepare(
        patient.image,
        material,
        PLAN.channels,
        name=f"ellipse_{seed:03d}",
        labels=patient.labels,
    )


def test_a_stored_subject_is_the_one_made_in_memory(store: Store) -> None:
    cohort = gather_cohort(store, CohortConfig(), lambda _: MATERIAL)
    assert [s.id for s in cohort.training] == ["ellipse_000"]
    assert [s.id for s in cohort.validation] == ["ellipse_001"]
    assert cohort.plan == ONE_TRAINS and cohort.schema.names == {1: "kidney", 2: "tumour"}
    assert cohort.target == target_of_store(store) == Target.of_labels(KIDNEY_TUMOUR)
    assert cohort.training[0].renal == cohort.validation[0].renal == (1, 2)
    assert_same_volume(cohort.masks[0], cohort.training[0].masks)
    assert len(cohort.masks) == 1
    for seed, stored in enumerate((*cohort.training, *cohort.validation)):
        assert_same_subject(stored, made(seed, MATERIAL))


def test_a_range_of_hounsfield_units_is_set_in_plan_and_cases(store: Store) -> None:
    """For training from any store, and in the plan that the model will have."""
    cohort = gather_cohort(store, CohortConfig(clip_hu=(-30.0, 300.0)), lambda _: MATERIAL)
    assert [channel.clip for channel in cohort.plan.channels] == [(-30.0, 300.0)]
    for subject in (*cohort.training, *cohort.validation):
        assert [(s.low, s.high) for s in subject.scalings] == [(-30.0, 300.0)]
    assert Plan.from_dict(json.loads(json.dumps(cohort.plan.as_dict()))) == cohort.plan
    with pytest.raises(ValueError, match="minimum first"):
        CohortConfig(clip_hu=(300.0, -30.0))


@pytest.mark.parametrize("kind", ["full", "blocks", "bare"])
@pytest.mark.parametrize("masks", [True, False])
def test_what_a_store_lacks_is_made_of_it(stores: dict[str, Store], kind: str, masks: bool) -> None:
    """Coarser pixels, masks of the body: the bits that the files would give."""
    wanted = BLOCKS if masks else replace(BLOCKS, masks=None)
    check_store(stores[kind], wanted, None)
    cohort = gather_cohort(stores[kind], CohortConfig(), lambda _: wanted)
    for seed, stored in enumerate((*cohort.training, *cohort.validation)):
        there = stored if masks else replace(stored, masks=None)
        assert_same_subject(there, made(seed, wanted))


def test_counts_are_those_of_the_stored_labels(stores: dict[str, Store]) -> None:
    """The store keeps them apart from the labels."""
    for store in stores.values():
        for case in store.cases:
            subject = subject_of(case)
            assert subject.labels is not None
            again = replace(subject, counts=subject.counts[:0])
            assert again.counts.shape == subject.counts.shape == (8, 256)
            assert (again.counts == subject.counts).all()


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
    opened = open_dataset(root)
    store = built(opened, tmp_path / "store")
    wanted = prepare(
        image, MATERIAL, PLAN.channels, name="ellipse_000", labels=labels, ignore_label=3
    )
    assert wanted.ignore is not None and wanted.ignore.data.any()
    assert wanted.body is not None and wanted.body.per_slice.radii_mm[0].isnan().all()
    assert_same_subject(subject_of(store.cases[0]), wanted)
    full = built(opened, tmp_path / "full", material=FULL)
    blocks = prepare(
        image, BLOCKS, PLAN.channels, name="ellipse_000", labels=labels, ignore_label=3
    )
    assert blocks.ignore is not None and blocks.ignore.data.any()
    (adapted,) = gather_cohort(full, CohortConfig(), lambda _: BLOCKS).training
    assert adapted.renal == (1, 2)
    assert_same_subject(adapted, blocks)


def test_a_store_of_other_settings_is_refused(stores: dict[str, Store]) -> None:
    """Finer pixels, other blocks, another bone; cysts that count as something else."""
    blocks, full = stores["blocks"], stores["full"]
    assert BLOCKS.masks is not None
    other = replace(BLOCKS, masks=replace(BLOCKS.masks, bone_hu=200.0))
    finer, coarser = replace(BLOCKS, pixel_mm=4.0), replace(BLOCKS, pixel_mm=13.0)
    for store, material, cyst in (
        (blocks, finer, None),
        (blocks, coarser, None),
        (blocks, FULL, None),
        (blocks, other, None),
        (blocks, BLOCKS, "kidney"),
        (full, BLOCKS, "kidney"),
    ):
        assert code_of(lambda: check_store(store, material, cyst)) == "store-of-other-settings"  # noqa: B023
    with pytest.raises(UsageError, match=r"averaged over 2 x 2 pixels, not 1 x 1") as error:
        check_store(blocks, finer, None)
    assert "--full" in (error.value.next_step or "") and error.value.path == str(blocks.path)
    with pytest.raises(UsageError, match=r'"bone_hu": 220.0.*not .*"bone_hu": 200.0'):
        check_store(blocks, other, None)
    for fits in (BLOCKS, replace(BLOCKS, pixel_mm=11.9), replace(BLOCKS, masks=None)):
        check_store(blocks, fits, None)
    for fits in (BLOCKS, finer, coarser, other, FULL):
        check_store(full, fits, None)


def test_one_case_that_does_not_fit_is_named_before_anything_is_read(tmp_path: Path) -> None:
    """Scans of 4 and 2 mm, seen with 4 mm: the first fits finer settings, the second does not."""
    root = tmp_path / "data"
    write_ellipse_dataset(root, 2)
    fine = in_fine_pixels(make_ellipse_patient(1), 2)
    save(fine.image, root / "imagesTr" / "ellipse_001_0000.nii.gz", overwrite=True)
    save(fine.labels, root / "labelsTr" / "ellipse_001.nii.gz", overwrite=True)
    store = built(open_dataset(root), tmp_path / "store", material=Material(pixel_mm=4.0))
    assert {case.grid.shape for case in store.cases} == {(8, 64, 64)}
    check_store(store, Material(pixel_mm=4.0), None)
    finer = Material(pixel_mm=2.0)
    with pytest.raises(UsageError, match="'ellipse_001' averaged over 2 x 2") as error:
        check_store(store, finer, None)
    assert error.value.code == "store-of-other-settings"
    with pytest.raises(InputError, match="averaged over blocks of 2 x 2; blocks of") as late:
        gather_cohort(store, CohortConfig(), lambda _: finer)
    assert (late.value.code, late.value.path) == ("too-coarse", "ellipse_001")


def test_a_store_of_other_contents_is_refused(data: Dataset, tmp_path: Path) -> None:
    voxels = build_store(data, PLAN, tmp_path / "store", recipe=VOXELS)
    assert code_of(lambda: check_store(voxels, MATERIAL, None)) == "not-subjects"


def test_a_build_with_other_settings_is_refused(data: Dataset, store: Store) -> None:
    other = SubjectRecipe.of_dataset(data, ONE_TRAINS, BLOCKS)
    assert (
        code_of(lambda: build_store(data, ONE_TRAINS, store.path, recipe=other))
        == "store-of-other-settings"
    )
    assert code_of(lambda: open_store(store.path, recipe=other)) == "store-of-other-settings"


def test_unknown_regions_are_refused(data: Dataset, store: Store) -> None:
    assert schema_of_store(store).regions == data.schema.regions
    with pytest.raises(InputError, match="liver") as error:
        gather_cohort(store, CohortConfig(selection=("liver",)), MATERIAL)
    assert error.value.code == "unknown-region"


def test_regions_that_overlap_are_kept_as_such(data: Dataset, tmp_path: Path) -> None:
    """What a store of nnU-Net's regions says of them is what the data set says."""
    regions = {"kidney+tumour": (1, 2), "tumour": (2,)}
    order = (1, 2)
    overlapping = replace(data, schema=replace(data.schema, regions=regions), region_order=order)
    kept = built(overlapping, tmp_path / "regions")
    target = target_of_store(kept)
    assert target == Target(channels=((1, 2), (2,)), exclusive=False, writes=order)
    assert schema_of_store(kept).regions == regions
    cohort = gather_cohort(kept, CohortConfig(), lambda _: MATERIAL)
    assert cohort.target == target and cohort.selection == ("kidney+tumour", "tumour")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux does")
def test_mapped_arrays_keep_no_file_open(store: Store) -> None:
    """A usual system lets a process open 1024 files; a data set has that many arrays."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    subjects = [subject_of(case) for case in store.cases for _ in range(20)]
    assert all(s.masks is not None and bool(s.masks.data.any()) for s in subjects)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
