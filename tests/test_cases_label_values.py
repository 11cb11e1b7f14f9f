"""Which values are labels: judged in one place, for checking, training, evaluating, exporting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kidseg.cases import Dataset, open_dataset, write_dataset_json
from kidseg.cases.label_values import judge_labels, known_labels, values_and_counts
from kidseg.cases.reading import CaseReader
from kidseg.check import check
from kidseg.errors import InputError
from kidseg.evaluate import evaluate
from kidseg.export import export_nnunet
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, Scan, load, read, save
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema
from kidseg.segment.truth import ReferenceLabels

GRID = Grid.from_spacing((4, 10, 12), (3.0, 2.0, 2.0))
NAMES = KIDNEY_TUMOUR.names
AS_LABELS = ReadOptions(values="labels")


def labels() -> np.ndarray:
    data = np.zeros(GRID.shape, np.uint8)
    data[1:3, 2:8, 1:4], data[1:3, 2:8, 8:11], data[2, 3:5, 8:10] = 1, 1, 2
    return data


def scan_of(data: np.ndarray) -> Scan:
    grid = Grid.from_spacing(data.shape, (3.0, 2.0, 2.0))
    volume = Volume(torch.from_numpy(data)[None], grid)
    return Scan(volume=volume, native=grid, path=Path("labels.nrrd"), format="nrrd")


def data_set(root: Path, schema: LabelSchema = KIDNEY_TUMOUR, ignore: int | None = None) -> Dataset:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(1)
    hu = rng.normal(40, 20, GRID.shape).astype(np.int16)
    hu[:, :2] = -1000
    save(Volume(torch.from_numpy(hu)[None], GRID), root / "imagesTr/a_0000.nii.gz")
    save(Volume(torch.from_numpy(labels())[None], GRID), root / "labelsTr/a.nii.gz")
    write_dataset_json(root, channels=("CT",), schema=schema, n_training=1, ignore_label=ignore)
    return open_dataset(root)


def scaled(path: Path, values: np.ndarray, stored: type) -> Path:
    """Save as nibabel does with floating-point values: scaled to the whole range of an integer."""
    whole = nibabel.load(save(Volume(torch.from_numpy(labels())[None], GRID), path, overwrite=True))
    image = nibabel.Nifti1Image(values.astype(np.float64).T, whole.affine)
    image.set_data_dtype(stored)
    nibabel.save(image, path)
    return path


# Counting


def test_counts_of_any_type() -> None:
    data = torch.tensor([0, 0, 2, 255]).reshape(1, 2, 1, 2)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.float32, torch.float64):
        assert values_and_counts(data.to(dtype)) == {0.0: 2, 2.0: 1, 255.0: 1}
    assert values_and_counts(data.float() / 2 - 1) == {-1.0: 2, 0.0: 1, 126.5: 1}
    assert values_and_counts(data * 1000) == {0.0: 2, 2000.0: 1, 255000.0: 1}


def test_a_volume_of_noise_does_not_fill_the_memory() -> None:
    noise = torch.rand((1, 40, 16, 16), generator=torch.Generator().manual_seed(0)) + 0.5
    counts = values_and_counts(noise)
    assert len(counts) <= 4096
    assert next(iter(counts)) == float(noise.min())


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 7.0, 0.5, 1.99, -1.0, 300.0]), min_size=8),
    st.sampled_from([0.0, 5e-5, -5e-5]),
    st.sampled_from([None, 7]),
)
def test_a_value_is_a_label_or_an_error(
    values: list[float], noise: float, ignore: int | None
) -> None:
    data = np.array(values[:8]).reshape(2, 2, 2) + noise
    judged = judge_labels(scan_of(data), NAMES, ignore)
    known = {1.0, 2.0} if ignore is None else {1.0, 2.0, 7.0}
    expected = [int(v) if v in known else 0 for v in values[:8]]
    assert judged.volume.data.flatten().tolist() == expected
    assert judged.volume.data.dtype == torch.uint8 and not judged.is_exact
    assert judged.voxels == {n: expected.count(n) for n in sorted(set(expected)) if n}
    errors = {f.code for f in judged.findings if f.severity == "error"}
    assert ("fractional-labels" in errors) == any(not v.is_integer() for v in values[:8])
    others = {v for v in values[:8] if v.is_integer()} - known - {0.0}
    assert ("unexpected-labels" in errors) == bool(others)
    if not errors:
        (finding,) = judged.findings
        assert finding.code == ("rounded-labels" if noise else "float-labels")


# Rounding


@pytest.mark.row(13)
@pytest.mark.parametrize("stored", [np.int16, np.int32, np.uint16])
def test_labels_rounded_by_scaled_storage_are_the_labels(tmp_path: Path, stored: type) -> None:
    path = scaled(tmp_path / "x.nii.gz", labels(), stored)
    scan = read(path, AS_LABELS)
    assert scan.volume.data.is_floating_point()
    judged = known_labels(scan, NAMES)
    assert np.array_equal(judged.volume.data[0].numpy(), labels())
    (finding,) = judged.findings
    assert finding.severity == "warning"
    assert f"{np.dtype(stored).name} with slope" in finding.cause


def test_coarsely_scaled_labels_are_refused_with_their_cause(tmp_path: Path) -> None:
    path = scaled(tmp_path / "x.nii.gz", labels(), np.uint8)
    with pytest.raises(InputError, match=r"0\.996.* uint8 with slope 0\.0078") as raised:
        known_labels(read(path, AS_LABELS), NAMES)
    assert raised.value.code == "fractional-labels" and "unscaled" in raised.value.next_step


def test_digits_show_why_a_value_is_no_label() -> None:
    data = np.full((1, 2, 2), 1.9998)
    with pytest.raises(InputError, match=r"1\.9998 \(4 voxels\)"):
        known_labels(scan_of(data), NAMES)


# Everyone who reads labels


def consumers(dataset: Dataset, tmp_path: Path) -> dict[str, Callable[[], object]]:
    (case,) = dataset.cases
    assert case.labels is not None
    of_figure = ReferenceLabels(
        path=case.labels, schema=dataset.schema, ignore_label=dataset.ignore_label
    )
    return {
        "train": lambda: CaseReader.of_dataset(dataset).read(case),
        "evaluate": lambda: evaluate(case.labels, dataset.root, tmp_path / "scores"),  # type: ignore[arg-type]
        "export": lambda: export_nnunet(dataset, tmp_path / "Dataset001_X"),
        "figure": lambda: of_figure.on(GRID),
    }


STRAY = np.where(labels() == 2, 3, labels())


@pytest.mark.row(13)
@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        (STRAY, "unexpected-labels", r"4 voxels have .* 3 \(4 voxels\).* 0 background, 1 kidney"),
        (labels() * np.float32(0.5), "fractional-labels", r"0\.5 \("),
        (labels().astype(np.int16) - 1, "unexpected-labels", r"-1 \("),
        (np.where(labels() == 1, np.nan, 0.0), "nonfinite-voxels", "NaN"),
    ],
)
def test_all_refuse_the_same_in_the_same_words(
    tmp_path: Path, values: np.ndarray, code: str, said: str
) -> None:
    dataset = data_set(tmp_path / "set")
    path = dataset.root / "labelsTr" / "a.nii.gz"
    save(Volume(torch.from_numpy(values)[None], GRID), path, overwrite=True)
    (finding,) = (f for f in check(dataset.root).errors if f.code == code)
    causes = {finding.cause}
    for action in consumers(dataset, tmp_path).values():
        with pytest.raises(InputError, match=said) as raised:
            action()
        assert (raised.value.code, raised.value.path) == (code, str(path))
        causes.add(raised.value.cause.split(" (and ")[0])
    assert len(causes) == 1, causes
    assert not (tmp_path / "Dataset001_X").exists()


def test_all_accept_rounded_labels_and_say_so(tmp_path: Path) -> None:
    dataset = data_set(tmp_path / "set")
    path = scaled(dataset.root / "labelsTr" / "a.nii.gz", labels(), np.int32)
    expected = torch.from_numpy(labels())[None]
    assert "rounded-labels" in {f.code for f in check(dataset.root).findings}
    voxels = CaseReader.of_dataset(dataset).read(dataset.cases[0])
    assert voxels.labels is not None and torch.equal(voxels.labels.data, expected)
    assert [f.code for f in voxels.findings] == ["rounded-labels"]
    summary = evaluate(path, dataset.root, tmp_path / "scores")
    assert summary["structures"]["tumour"]["dice"]["mean"] == 1.0
    assert [f["code"] for f in summary["findings"]] == ["rounded-labels"] * 2
    exported = export_nnunet(dataset, tmp_path / "Dataset001_X")
    assert [f.code for f in exported.findings] == ["rounded-labels"]
    written = exported.root / "labelsTr" / "a.nii.gz"
    assert nibabel.load(written).get_data_dtype() == np.uint8
    assert torch.equal(load(written, values="labels").data, expected)
    figure, _ = ReferenceLabels(path=path, schema=KIDNEY_TUMOUR).on(GRID)
    assert torch.equal(figure.data, expected)


def test_all_accept_the_ignore_label_and_regions(tmp_path: Path) -> None:
    schema = LabelSchema.from_names({1: "kidney", 2: "tumor"}, {"kidney": (1, 2), "tumor": (2,)})
    dataset = data_set(tmp_path / "set", schema, ignore=3)
    write_dataset_json(
        dataset.root,
        channels=("CT",),
        schema=schema,
        n_training=1,
        region_order=(1, 2),
        ignore_label=3,
        overwrite=True,
    )
    dataset = open_dataset(dataset.root)
    open_ = labels()
    open_[0] = 3
    ignored = Volume(torch.from_numpy(open_)[None], GRID)
    save(ignored, dataset.root / "labelsTr" / "a.nii.gz", overwrite=True)
    assert check(dataset.root).ok
    for name, action in consumers(dataset, tmp_path).items():
        if name == "evaluate":  # a prediction must not ignore
            with pytest.raises(InputError, match=r"3 \(120 voxels\)"):
                action()
        else:
            action()
    assert load(tmp_path / "Dataset001_X/labelsTr/a.nii.gz", values="labels").data.max() == 3
