"""Fingerprint, plan and preprocessing: nnU-Net's rules, on hand-computable cases.

`benchmarks/nnunet_preprocessing.py` compares all of it with nnU-Net itself.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg import io
from kidseg.cases import Dataset, case_paths, open_dataset, write_dataset_json
from kidseg.cases.reading import CaseReader
from kidseg.errors import InputError, ModelError, ResourceError
from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import Statistics
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema
from kidseg.plan import (
    CaseFacts,
    Configuration,
    Fingerprint,
    Plan,
    adapted,
    fingerprint,
    network_input,
    plan,
)
from kidseg.plan.nonzero import nonzero_box
from kidseg.workers import over_cases

STATISTICS = Statistics(
    mean=80.0,
    sd=20.0,
    median=75.0,
    min=-90.0,
    max=500.0,
    percentile_00_5=-40.0,
    percentile_99_5=300,
)
seeds = st.integers(0, 2**31 - 1)


def facts_of(*cases: tuple[tuple[float, ...], tuple[int, ...]], channels: int = 1) -> Fingerprint:
    """A fingerprint of cases (spacing, shape)."""
    entries = tuple(
        CaseFacts(
            id=f"case_{k}",
            spacing_mm=(s[0], s[1], s[2]),
            shape=(n[0], n[1], n[2]),
            shape_after_crop=(n[0], n[1], n[2]),
        )
        for k, (s, n) in enumerate(cases)
    )
    names = ("CT", "T1", "T2")[:channels]
    return Fingerprint(channels=names, cases=entries, intensities=(STATISTICS,) * channels)


def write_case(
    root: Path,
    name: str,
    image: np.ndarray,
    labels: np.ndarray,
    spacing: tuple[float, float, float] = (3.0, 1.0, 1.0),
) -> None:
    grid = Grid.from_spacing(image.shape, spacing)
    (file,), label_file = case_paths(root, "nnunet", name)
    for path, array in ((file, image), (label_file, labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        io.save(Volume(torch.from_numpy(array)[None], grid), path)


def ct(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A body of soft tissue in air with two labels."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1000, dtype=np.int16)
    middle = tuple(slice(n // 5, n - n // 5) for n in shape[1:])
    hu[(slice(None), *middle)] = rng.integers(0, 80, hu[(slice(None), *middle)].shape)
    labels = np.zeros(shape, dtype=np.uint8)
    z, y, x = (n // 2 for n in shape)
    labels[z - 1 : z + 2, y - 2 : y + 3, x - 3 : x] = 1
    labels[z, y - 1 : y + 2, x - 1 : x + 2] = 2
    return hu, labels


def dataset_of(
    root: Path, shapes: list[tuple[int, int, int]], schema: LabelSchema = KIDNEY_TUMOUR
) -> Dataset:
    for k, shape in enumerate(shapes):
        write_case(root, f"case_{k}", *ct(shape, k))
    write_dataset_json(root, channels=("CT",), schema=schema, n_training=len(shapes))
    return open_dataset(root)


# Reading


def reader(**options: object) -> CaseReader:
    return CaseReader(**{"are_ct": (True,), "schema": KIDNEY_TUMOUR, **options})  # type: ignore[arg-type]


def test_case_reader_gives_canonical_voxels(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [(6, 20, 24)])
    found = CaseReader.of_dataset(dataset).read(dataset.cases[0])
    hu, labels = ct((6, 20, 24))
    assert np.array_equal(found.image.data[0].numpy(), hu)
    assert found.labels is not None and np.array_equal(found.labels.data[0].numpy(), labels)
    assert found.labels.data.dtype == torch.uint8 and found.labels.grid is found.image.grid


def test_case_reader_refuses_what_training_must_not_see(tmp_path: Path) -> None:
    hu, labels = ct((6, 20, 24))

    def code_of(image: np.ndarray, numbers: np.ndarray, **other: object) -> str:
        write_case(tmp_path, "x", image, labels)
        (file,), label_file = case_paths(tmp_path, "nnunet", "x")
        grid = Grid.from_spacing(
            numbers.shape, (3.0, 1.0, 1.0), (0.0, 0.0, float(other.pop("up_mm", 0)))
        )  # type: ignore[arg-type]
        io.save(Volume(torch.from_numpy(numbers)[None], grid), label_file, overwrite=True)
        write_dataset_json(
            tmp_path, channels=("CT",), schema=KIDNEY_TUMOUR, n_training=1, overwrite=True
        )
        case = open_dataset(tmp_path).cases[0]
        code = "accepted"
        try:
            reader(**other).read(case)
        except InputError as error:
            code = error.code if str(error.path) in (str(file), str(label_file)) else "no path"
        file.unlink()
        label_file.unlink()
        return code

    assert code_of(hu, labels) == "accepted"
    assert code_of(hu, labels, up_mm=0.01) == "label-grid-mismatch"
    assert code_of(hu, labels[:-1].copy()) == "label-grid-mismatch"
    assert code_of(hu, np.where(labels == 2, 7, labels).astype(np.uint8)) == "unexpected-labels"
    assert (
        code_of(hu, np.where(labels == 2, 7, labels).astype(np.uint8), ignore_label=7) == "accepted"
    )
    assert code_of(hu, labels.astype(np.float32) * 0.5) == "fractional-labels"
    assert code_of(hu, labels, are_ct=(True, True)) == "wrong-channels"
    broken = np.where(hu == hu.max(), np.nan, hu).astype(np.float32)
    assert code_of(broken, labels) == "nonfinite-voxels"


def test_channels_must_lie_on_the_same_voxels(tmp_path: Path) -> None:
    hu, labels = ct((6, 20, 24))
    write_case(tmp_path, "x", hu, labels)
    second = tmp_path / "imagesTr" / "x_0001.nii.gz"
    grid = Grid.from_spacing((6, 20, 24), (3.0, 1.0, 1.1))
    io.save(Volume(torch.from_numpy(hu)[None], grid), second)
    write_dataset_json(tmp_path, channels=("CT", "T1"), schema=KIDNEY_TUMOUR, n_training=1)
    dataset = open_dataset(tmp_path)
    with pytest.raises(InputError) as caught:
        CaseReader.of_dataset(dataset).read(dataset.cases[0])
    assert caught.value.code == "channels-differ" and caught.value.path == str(second)


def test_channels_of_one_file_are_read(tmp_path: Path) -> None:
    """As in the Decathlon: a four-dimensional file, listed once per channel."""
    hu, labels = ct((6, 20, 24))
    write_case(tmp_path, "x", hu, labels)
    image = tmp_path / "imagesTr" / "x_0000.nii.gz"
    flat = nibabel.load(image)
    both = np.stack([np.asarray(flat.dataobj), np.asarray(flat.dataobj) + 5], axis=-1)
    image.unlink()
    nibabel.save(nibabel.Nifti1Image(both, flat.affine), tmp_path / "imagesTr" / "x.nii.gz")
    content = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "kidney", "2": "tumour"},
        "training": [{"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path)
    found = CaseReader.of_dataset(dataset).read(dataset.cases[0])
    assert np.array_equal(found.image.data.numpy(), np.stack([hu, hu + 5]))
    facts = fingerprint(dataset)
    assert facts.intensities[1].mean == pytest.approx(facts.intensities[0].mean + 5)


# Many cases


@dataclass(frozen=True)
class Numbered:
    id: str
    value: int


def square(item: Numbered) -> int:
    if item.value < 0:
        raise InputError("it is negative", path=item.id, code="negative")
    return item.value**2


def die(item: Numbered) -> int:
    if item.value == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item.value


@pytest.mark.ci
def test_over_cases_keeps_order_and_tells_progress() -> None:
    items = [Numbered(str(k), k) for k in (3, 1, 2)]
    threads = torch.get_num_threads()
    calls: list[tuple[int, int]] = []
    for jobs in (1, 2):
        found = over_cases(square, items, jobs=jobs, progress=lambda a, b: calls.append((a, b)))
        assert found == [9, 1, 4]
    assert calls == [(1, 3), (2, 3), (3, 3)] * 2
    assert torch.get_num_threads() == threads


def test_over_cases_names_every_unsound_case() -> None:
    items = [Numbered(f"case_{k}", k) for k in (-1, 5, -2)]
    with pytest.raises(InputError, match=r"2 cases.*case_-1.*case_-2") as caught:
        over_cases(square, items)
    assert caught.value.code == "unsound-cases"
    with pytest.raises(InputError) as caught:
        over_cases(square, items[:2])
    assert caught.value.code == "negative" and caught.value.path == "case_-1"


@pytest.mark.ci
def test_a_killed_worker_is_noticed() -> None:
    items = [Numbered(f"case_{k}", k) for k in range(4)]
    with pytest.raises(ResourceError, match="case_2") as caught:
        over_cases(die, items, jobs=2)
    assert caught.value.code == "worker-killed"


# Fingerprint


def test_fingerprint_by_hand(tmp_path: Path) -> None:
    hu, labels = ct((6, 20, 24))
    hu[labels == 1], hu[labels == 2] = 100, 200
    hu[:2], hu[..., :5] = 0, 0  # cut away by the crop
    write_case(tmp_path, "a", hu, labels, (3.0, 0.5, 0.5))
    other = np.full((4, 10, 10), 50, dtype=np.int16)
    other[:, 5:] = -60
    write_case(tmp_path, "b", other, np.zeros((4, 10, 10), dtype=np.uint8), (5.0, 1.0, 1.0))
    write_dataset_json(tmp_path, channels=("CT",), schema=KIDNEY_TUMOUR, n_training=2)
    found = fingerprint(open_dataset(tmp_path))
    first, second = found.cases
    assert first.spacing_mm == pytest.approx((3.0, 0.5, 0.5)) and first.shape == (6, 20, 24)
    assert first.shape_after_crop == (4, 20, 19) and second.shape_after_crop == (4, 10, 10)
    n_kidney, n_tumour = int((labels == 1).sum()), int((labels == 2).sum())
    voxel_ml = 3.0 * 0.5 * 0.5 / 1000
    expected = {"kidney": n_kidney * voxel_ml, "tumour": n_tumour * voxel_ml}
    assert first.labels_ml == pytest.approx(expected)
    assert second.labels_ml == {"kidney": 0.0, "tumour": 0.0}
    share = n_tumour / (n_kidney + n_tumour)
    (statistics,) = found.intensities
    assert statistics.mean == pytest.approx(100 + 100 * share)
    assert statistics.sd == pytest.approx(100 * (share * (1 - share)) ** 0.5)
    assert (statistics.percentile_00_5, statistics.percentile_99_5) == (100, 200)


@pytest.mark.ci
def test_fingerprint_is_the_same_for_any_number_of_jobs_and_through_json(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [(6, 20, 24), (5, 22, 21), (4, 19, 30)])
    one = fingerprint(dataset)
    assert fingerprint(dataset, jobs=2) == one
    assert Fingerprint.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_fingerprint_counts_a_cyst_as_told(tmp_path: Path) -> None:
    hu, labels = ct((6, 20, 24))
    labels[labels == 2] = 3
    hu[labels == 3] = 500
    write_case(tmp_path, "a", hu, labels)
    write_dataset_json(tmp_path, channels=("CT",), schema=KIDNEY_TUMOUR_CYST, n_training=1)
    dataset = open_dataset(tmp_path)
    itself, tumour = fingerprint(dataset), fingerprint(dataset, cyst="tumour")
    gone = fingerprint(dataset, cyst="background")
    assert itself.cases[0].labels_ml["cyst"] == tumour.cases[0].labels_ml["tumour"] > 0
    assert gone.cases[0].labels_ml["tumour"] == 0 and gone.intensities[0].max < 500
    assert itself.intensities == tumour.intensities
    assert plan(tumour, dataset.schema).labels == {1: "kidney", 2: "tumour"}
    assert plan(itself, dataset.schema).labels == {1: "kidney", 2: "tumour", 3: "cyst"}


def test_fingerprint_refuses_nothing_to_learn_from(tmp_path: Path) -> None:
    nothing, labels = np.zeros((4, 9, 9), dtype=np.int16), np.zeros((4, 9, 9), dtype=np.uint8)
    write_case(tmp_path, "a", nothing + 40, labels)
    write_dataset_json(tmp_path, channels=("T1",), schema=KIDNEY_TUMOUR, n_training=1)
    dataset = open_dataset(tmp_path)

    def code() -> str:
        with pytest.raises(InputError) as caught:
            fingerprint(dataset)
        return caught.value.code

    assert code() == "no-foreground"
    io.save(
        Volume(torch.from_numpy(nothing)[None], Grid.from_spacing((4, 9, 9), (3, 1, 1))),
        dataset.cases[0].images[0],
        overwrite=True,
    )
    assert code() == "empty-image"
    dataset = replace(dataset, cases=())
    assert code() == "no-cases"


# Plan


def test_plan_of_kits() -> None:
    """The plan that nnU-Net publishes for KiTS23.

    Source: github.com/MIC-DKFZ/nnUNet/issues/2227 (2D: patch 512 x 512, batch 12) and nnU-Net's
    well-known 3D patch of 128^3, batch 2, for CT at about 1 x 0.78 x 0.78 mm.
    """
    case = ((1.0, 0.78125, 0.78125), (525, 512, 512))
    made = plan(facts_of(*[case] * 489), KIDNEY_TUMOUR_CYST)
    flat, full = made.configurations["2d"], made.configurations["3d_fullres"]
    assert flat.patch_size == (512, 512) and flat.batch_size == 12
    assert flat.topology.features == (32, 64, 128, 256, 512, 512, 512, 512)
    assert flat.topology.strides == ((1, 1), *[(2, 2)] * 7)
    assert full.patch_size == (128, 128, 128) and full.batch_size == 2
    assert full.topology.features == (32, 64, 128, 256, 320, 320)


def test_anisotropic_axes_are_halved_last() -> None:
    """Slices of 5 mm, pixels of 0.8: the slice axis waits until 0.8 x 4 > 5 / 2."""
    made = plan(facts_of(*[((5.0, 0.8, 0.8), (40, 512, 512))] * 40), KIDNEY_TUMOUR)
    topology = made.configurations["3d_fullres"].topology
    assert topology.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert topology.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


def test_target_of_a_coarse_axis_is_its_tenth_percentile() -> None:
    thin, thick = ((3.0, 0.8, 0.8), (60, 512, 512)), ((5.0, 0.8, 0.8), (60, 512, 512))
    made = plan(facts_of(thin, *[thick] * 9), KIDNEY_TUMOUR)
    assert made.configurations["3d_fullres"].spacing_mm[0] == pytest.approx(4.8)  # 3 + 0.9 x 2
    assert made.configurations["2d"].spacing_mm == pytest.approx((0.8, 0.8))
    assert made.median_spacing_mm == pytest.approx((5.0, 0.8, 0.8))
    fine = ((0.5, 0.8, 0.8), (300, 512, 512))
    mixed = plan(facts_of(*[fine] * 4, *[thick] * 6), KIDNEY_TUMOUR)
    assert mixed.configurations["3d_fullres"].spacing_mm[0] == pytest.approx(0.8 + 1e-5)
    isotropic = plan(
        facts_of(((1.0, 0.8, 0.8), (300, 512, 512)), *[((2.0, 0.8, 0.8), (300, 512, 512))] * 2),
        KIDNEY_TUMOUR,
    )
    assert isotropic.configurations["3d_fullres"].spacing_mm[0] == 2.0


def test_a_stack_of_single_slices_has_no_3d_configuration() -> None:
    made = plan(facts_of(((3.0, 0.8, 0.8), (1, 256, 256))), KIDNEY_TUMOUR)
    assert set(made.configurations) == {"2d"}


def test_memory_estimate_by_hand() -> None:
    """4 x 4 pixels, halved once: encoder 2 (32 x 16 + 64 x 4), decoder 3 x 32 x 16, out 3 x 16."""
    made = plan(facts_of(((3.0, 1.0, 1.0), (5, 8, 8))), KIDNEY_TUMOUR).configurations["2d"]
    assert made.topology.features == (32, 64) and made.patch_size == (8, 8)
    assert made.topology.feature_map_values((4, 4), 3) == 2 * (512 + 256) + 3 * 512 + 48


def test_small_data_sets_get_small_batches() -> None:
    """At most 5 % of the voxels in a batch, and at least 2 patches."""
    one = ((3.0, 0.8, 0.8), (20, 128, 128))
    assert plan(facts_of(one), KIDNEY_TUMOUR).configurations["2d"].batch_size == 2
    many = plan(facts_of(*[one] * 10), KIDNEY_TUMOUR).configurations["2d"]
    assert many.batch_size == round(10 * 20 * 0.05)


@settings(max_examples=40)
@given(seeds, st.sampled_from([4.0, 8.0, 24.0]))
def test_plans_keep_their_promises(seed: int, memory_gb: float) -> None:
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(int(rng.integers(1, 30))):
        pixel = rng.uniform(0.3, 1.2)
        spacing = (rng.uniform(0.5, 6.0), pixel, pixel * rng.uniform(0.9, 1.1))
        cases.append((spacing, tuple(int(n) for n in rng.integers((10, 64, 64), (400, 513, 513)))))
    made = plan(facts_of(*cases), KIDNEY_TUMOUR, memory_gb=memory_gb)
    for configuration in made.configurations.values():
        topology, patch = configuration.topology, configuration.patch_size
        assert len(topology.features) == len(topology.kernels) == len(topology.strides)
        halved = [prod(axis) for axis in zip(*topology.strides, strict=True)]
        for n, divisor, median in zip(patch, halved, configuration.median_shape, strict=True):
            assert n % divisor == 0 and n // divisor >= min(4, median)
            assert n < median + divisor
        reference = (85e6 if len(patch) == 2 else 560e6) * memory_gb / 8
        slots = {2: 12, 3: 2}[len(patch)]
        assert topology.feature_map_values(patch, 3) * 2 / slots <= reference
        assert configuration.batch_size >= 2
        assert max(topology.features) <= {2: 512, 3: 320}[len(patch)]
    assert plan(facts_of(*cases), KIDNEY_TUMOUR, memory_gb=memory_gb).digest == made.digest
    assert Plan.from_dict(json.loads(json.dumps(made.as_dict()))) == made


def test_plan_of_other_modalities() -> None:
    """Image-wise z-score; inside the non-zero region where it is less than 3/4 of the image."""
    found = facts_of(((3.0, 1.0, 1.0), (20, 100, 100)), channels=2)
    made = plan(found, KIDNEY_TUMOUR)
    assert [c.scheme for c in made.channels] == ["ct", "zscore"]
    assert not any(c.inside_only for c in made.channels)
    small = replace(found, cases=(replace(found.cases[0], shape_after_crop=(20, 80, 90)),))
    assert [c.inside_only for c in plan(small, KIDNEY_TUMOUR).channels] == [False, True]


def test_plans_of_another_format_and_non_plans_are_refused() -> None:
    data = plan(facts_of(((3.0, 1.0, 1.0), (20, 100, 100))), KIDNEY_TUMOUR).as_dict()
    for bad in (
        {**data, "format": 99},
        {**data, "channels": None},
        {"format": 1},
        {},
        None,
        "plan",
    ):
        with pytest.raises(ModelError) as caught:
            Plan.from_dict(bad)
        assert caught.value.code == "bad-plan"


# Choices made otherwise


def volumes() -> Configuration:
    facts = facts_of(*[((3.0, 0.8, 0.8), (100, 400, 400))] * 5)
    return plan(facts, KIDNEY_TUMOUR).configurations["3d_fullres"]


def test_nothing_asked_for_the_configuration_stays() -> None:
    planned = volumes()
    assert adapted(planned) is planned
    assert adapted(planned, spacing_mm=None, patch=None, features=None) is planned
    again = adapted(planned, spacing_mm=planned.spacing_mm)
    assert again == planned, "the plan's own spacing follows the same rules to the same end"


def test_another_spacing_keeps_the_extent_of_patch_and_image() -> None:
    planned = volumes()
    found = adapted(planned, spacing_mm=(6.0, 1.6, 1.6))
    assert found.spacing_mm == (6.0, 1.6, 1.6) and found.batch_size == planned.batch_size
    assert found.median_shape == pytest.approx([n / 2 for n in planned.median_shape])
    for new, old, divisor in zip(
        found.patch_size, planned.patch_size, found.topology.divisors, strict=True
    ):
        assert new % divisor == 0 and round(old / 2) <= new < round(old / 2) + divisor
    assert found.grid(Grid.from_spacing((100, 400, 400), (3.0, 0.8, 0.8))).shape == (50, 200, 200)


@pytest.mark.parametrize("patch", [(8, 16, 16), (10, 33, 65), (40, 100, 90), (7, 9, 200)])
def test_a_patch_is_enlarged_to_what_the_network_can_halve(patch: tuple[int, ...]) -> None:
    planned = volumes()
    found = adapted(planned, patch=patch)
    assert found.spacing_mm == planned.spacing_mm and found.median_shape == planned.median_shape
    for new, asked, divisor in zip(found.patch_size, patch, found.topology.divisors, strict=True):
        assert new % divisor == 0 and asked <= new < asked + divisor
    assert adapted(planned, patch=found.patch_size).patch_size == found.patch_size


def test_other_features_double_up_to_the_most() -> None:
    planned = volumes()
    stages = len(planned.topology.features)
    assert planned.topology.features == tuple(min(32 << k, 320) for k in range(stages))
    few = adapted(planned, features=4)
    assert few.topology.features == tuple(min(4 << k, 320) for k in range(stages))
    capped = adapted(planned, features=4, max_features=10).topology.features
    assert capped == (4, 8, *(10,) * (stages - 2))
    alone = adapted(planned, max_features=50).topology.features
    assert alone == (32, *(50,) * (stages - 1))
    for other in (few, adapted(planned, max_features=50)):
        assert other.topology.kernels == planned.topology.kernels
        assert other.topology.strides == planned.topology.strides
        assert other.patch_size == planned.patch_size


def test_slices_on_their_own_are_adapted_too() -> None:
    flat = plan(facts_of(((3.0, 1.0, 1.0), (20, 256, 256))), KIDNEY_TUMOUR).configurations["2d"]
    found = adapted(flat, spacing_mm=(2.0, 2.0), features=16)
    assert found.dimensions == 2 and found.median_shape == (128.0, 128.0)
    assert found.topology.features[0] == 16
    with pytest.raises(ValueError, match="zip"):
        adapted(flat, spacing_mm=(3.0, 2.0, 2.0))


# Preprocessing


def plan_at(spacing: tuple[float, float, float], channels: int = 1) -> Plan:
    made = plan(facts_of((spacing, (20, 100, 100)), channels=channels), KIDNEY_TUMOUR)
    return replace(
        made,
        configurations={
            n: replace(c, spacing_mm=spacing[3 - c.dimensions :])
            for n, c in made.configurations.items()
        },
    )


def preprocessed(image: Volume, planned: Plan, name: str) -> Volume:
    """Cropped to the voxels that are not zero, normalised and resampled."""
    cropped = resample(image, image.grid.crop(*nonzero_box(image)))
    return network_input(cropped, planned.channels, planned.configurations[name])


def test_at_the_plans_spacing_voxels_are_only_cropped_and_normalised() -> None:
    hu, _ = ct((6, 20, 24))
    hu[:, :3] = 0
    grid = Grid.from_spacing(hu.shape, (3.0, 1.0, 1.0), (5.0, 6.0, 7.0))
    image = Volume(torch.from_numpy(hu)[None], grid)
    for name in ("2d", "3d_fullres"):
        done = preprocessed(image, plan_at((3.0, 1.0, 1.0)), name)
        expected = (hu[:, 3:].clip(-40, 300).astype(np.float32) - 80) / 20
        assert np.allclose(done.data[0].numpy(), expected, atol=1e-6)
        assert done.grid.same_as(grid.crop((0, 3, 0), (6, 17, 24)))


def test_two_dimensional_configurations_keep_the_slices() -> None:
    hu, _ = ct((7, 20, 24))
    image = Volume(torch.from_numpy(hu)[None], Grid.from_spacing(hu.shape, (2.0, 1.0, 1.0)))
    target = plan_at((4.0, 0.8, 0.8))
    assert preprocessed(image, target, "2d").grid.shape == (7, 25, 30)
    assert preprocessed(image, target, "3d_fullres").grid.shape == (4, 25, 30)


@pytest.mark.parametrize("thick", [False, True], ids=["in space", "slice by slice"])
def test_images_are_resampled_as_scikit_image_does(thick: bool) -> None:
    transform = pytest.importorskip("skimage.transform")
    hu = np.random.default_rng(0).integers(-30, 290, (6, 20, 24)).astype(np.int16)
    spacing = (5.0, 1.0, 1.0) if thick else (2.0, 1.0, 1.0)
    image = Volume(torch.from_numpy(hu)[None], Grid.from_spacing(hu.shape, spacing))
    done = preprocessed(image, plan_at((spacing[0], 0.7, 0.8)), "2d").data[0].numpy()
    values = (hu - 80.0) / 20.0
    how = {"order": 3, "mode": "edge", "anti_aliasing": False}
    if thick:
        peer = np.stack([transform.resize(plane, done.shape[1:], **how) for plane in values])
    else:
        peer = transform.resize(values, done.shape, **how)
    assert np.abs(done - peer).max() < 1e-4


def test_thick_slices_are_repeated_not_interpolated() -> None:
    """5 slices of 6 mm at 4 mm: 7.5 slices, rounded to 8; each is one of the five."""
    hu = np.broadcast_to(np.array([10, 20, 30, 40, 50], dtype=np.int16)[:, None, None], (5, 12, 12))
    image = Volume(torch.from_numpy(hu.copy())[None], Grid.from_spacing(hu.shape, (6.0, 1.0, 1.0)))
    done = preprocessed(image, plan_at((4.0, 1.0, 1.0)), "3d_fullres")
    picked = [int((k + 0.5) * 5 / 8) for k in range(8)]
    expected = (np.array([10, 20, 30, 40, 50])[picked] - 80) / 20
    assert np.allclose(done.data[0, :, 5, 5].numpy(), expected, atol=1e-5)


def test_an_image_of_zeros_goes_through() -> None:
    nothing = Volume(torch.zeros(1, 4, 8, 8), Grid.from_spacing((4, 8, 8), (2.0, 1.0, 1.0)))
    assert preprocessed(nothing, plan_at((2.0, 0.5, 0.5)), "2d").data.shape == (1, 4, 16, 16)


def test_another_number_of_channels_is_refused() -> None:
    image = Volume(torch.ones(1, 4, 8, 8), Grid.from_spacing((4, 8, 8), (2.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="1 channels, but the plan 2"):
        preprocessed(image, plan_at((2.0, 1.0, 1.0), channels=2), "2d")


def test_inside_only_uses_the_non_zero_region_with_its_holes() -> None:
    """Zeros around do not count; a zero within the region does."""
    values = torch.zeros(1, 6, 12, 12)
    values[0, 1:5, 2:9, 2:9] = 4.0
    values[0, 3, 5, 5] = 0.0
    values[0, 0, 0, 0] = values[0, 5, 11, 11] = 2.0  # the crop keeps everything
    made = plan_at((2.0, 1.0, 1.0), channels=2)
    channel = replace(made.channels[1], inside_only=True)
    image = Volume(values, Grid.from_spacing((6, 12, 12), (2.0, 1.0, 1.0)))
    done = preprocessed(image, replace(made, channels=(channel,)), "2d").data
    region = values[0] != 0
    region[3, 5, 5] = True
    inside = values[0][region].double()
    expected = (inside - inside.mean()) / inside.std(correction=0)
    assert torch.allclose(done[0][region].double(), expected, atol=1e-5)
    assert (done[0][~region] == 0).all()
