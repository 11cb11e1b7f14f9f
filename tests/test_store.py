"""The store: complete or refused, always bit-identical, and read without image readers."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from disks import small_disk
from findings import code_of
from folders import contents
from kidseg import io
from kidseg.cases import (
    Case,
    Dataset,
    case_paths,
    open_dataset,
    write_dataset_json,
    write_patients_csv,
)
from kidseg.cases.reading import CaseReader, CaseVoxels
from kidseg.errors import InputError, ModelError, ResourceError
from kidseg.geometry import Grid, Volume
from kidseg.io.content import sha256_of
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.plan import Plan, fingerprint, plan
from kidseg.records import parsed, sealed
from kidseg.store import Prepared, build_store, is_store, open_store
from kidseg.store.files import FORMAT

SHAPES = [(6, 20, 24), (5, 26, 22), (7, 18, 20)]
SPACINGS = [(3.0, 1.0, 1.0), (4.0, 0.8, 0.8), (3.0, 1.2, 1.1)]


@dataclass(frozen=True)
class Voxels:
    """A recipe: the scan's own voxels."""

    content: str = "voxels"
    settings: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        assert voxels.labels is not None
        return Prepared(image=voxels.image, labels=voxels.labels)


VOXELS = Voxels()


@dataclass(frozen=True)
class Made:
    dataset: Dataset
    plan: Plan


def write_dataset(root: Path) -> Made:
    rng = np.random.default_rng(0)
    for k, (shape, spacing) in enumerate(zip(SHAPES, SPACINGS, strict=True)):
        hu = rng.integers(-200, 200, shape).astype(np.int16)
        hu[:, :3] = -1000
        labels = np.zeros(shape, dtype=np.uint8)
        labels[1:4, 6:12, 6:13] = 1
        labels[2:4, 8:11, 8:12] = 2
        (image,), numbers = case_paths(root, "nnunet", f"case_{k}")
        grid = Grid.from_spacing(shape, spacing, (1.0 * k, 2.0, 3.0))
        for path, array in ((image, hu), (numbers, labels)):
            path.parent.mkdir(parents=True, exist_ok=True)
            io.save(Volume(torch.from_numpy(array)[None], grid), path)
    write_dataset_json(root, channels=("CT",), schema=KIDNEY_TUMOUR, n_training=3)
    write_patients_csv(
        root, [{"case": "case_1", "patient": "anna", "age_years": 2.5, "side": "left"}]
    )
    dataset = open_dataset(root)
    return Made(dataset, plan(fingerprint(dataset), dataset.schema))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_dataset(tmp_path_factory.mktemp("data"))


def test_voxels_are_the_scans_own(made: Made, tmp_path: Path) -> None:
    store = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS)
    reader = CaseReader.of_dataset(made.dataset)
    assert [case.id for case in store.cases] == ["case_0", "case_1", "case_2"]
    assert store.content == "voxels" and store.plan == made.plan
    for case, stored in zip(made.dataset.cases, store.cases, strict=True):
        voxels = reader.read(case)
        assert voxels.labels is not None
        assert stored.image.data.dtype == torch.int16
        assert torch.equal(stored.image.data, voxels.image.data)
        assert torch.equal(stored.labels.data, voxels.labels.data)
        assert torch.equal(stored.grid.mm_from_index, voxels.image.grid.mm_from_index)
        assert stored.original.same_as(stored.grid)
    anna = store.by_id["case_1"]
    assert (anna.patient, anna.age_years, anna.side) == ("anna", 2.5, "left")
    assert anna.spacing_mm == pytest.approx(SPACINGS[1])


def test_slices_are_indexed_for_the_sampler(made: Made, tmp_path: Path) -> None:
    first = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).cases[0]
    assert set(first.voxels_per_slice) == {1, 2}
    assert first.voxels_per_slice[2] == {2: 12, 3: 12}
    assert first.voxels_per_slice[1] == {1: 42, 2: 30, 3: 30}


@pytest.mark.ci
def test_jobs_and_place_do_not_change_a_bit(made: Made, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    one = build_store(made.dataset, made.plan, tmp_path / "one", recipe=VOXELS)
    two = build_store(
        made.dataset,
        made.plan,
        tmp_path / "two",
        recipe=VOXELS,
        jobs=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert contents(one.path) == contents(two.path) and one.digest == two.digest
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_copied_data_set_gives_the_same_digest(made: Made, tmp_path: Path) -> None:
    """Modification times and paths differ, the content does not: the store is accepted."""
    store = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS)
    shutil.copytree(made.dataset.root, tmp_path / "copy", copy_function=shutil.copyfile)
    copied = replace(open_dataset(tmp_path / "copy"), name=made.dataset.name)
    os.utime(copied.cases[0].images[0], (1, 1))
    assert open_store(store.path, dataset=copied, plan=made.plan).digest == store.digest
    assert build_store(copied, made.plan, tmp_path / "other", recipe=VOXELS).digest == store.digest


def test_a_finished_store_is_not_written_again(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "store"
    build_store(made.dataset, made.plan, path, recipe=VOXELS)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*.npy")}
    calls: list[int] = []
    build_store(
        made.dataset,
        made.plan,
        path,
        recipe=VOXELS,
        progress=lambda done, total: calls.append(done),
    )
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*.npy")} == before and not calls


def test_a_store_of_something_else_is_refused(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "store"
    build_store(made.dataset, made.plan, path, recipe=VOXELS)
    other_plan = replace(made.plan, median_spacing_mm=(9.0, 9.0, 9.0))
    fewer = replace(made.dataset, cases=made.dataset.cases[:2])
    changed = {
        "store-of-another-plan": lambda: build_store(made.dataset, other_plan, path, recipe=VOXELS),
        "store-of-another-dataset": lambda: build_store(fewer, made.plan, path, recipe=VOXELS),
        "store-of-another-content": lambda: build_store(
            made.dataset, made.plan, path, recipe=Halved(100)
        ),
    }
    for code, action in changed.items():
        assert code_of(action) == code
    assert code_of(lambda: open_store(path, plan=other_plan)) == "store-of-another-plan"
    assert code_of(lambda: open_store(path, recipe=Halved(100))) == "store-of-another-content"
    assert open_store(path, dataset=made.dataset, plan=made.plan, recipe=VOXELS).cases


def test_changed_source_files_are_noticed(tmp_path: Path) -> None:
    made = write_dataset(tmp_path / "data")
    store = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS)
    file = made.dataset.cases[1].images[0]
    scan = io.load(file)
    scan.data[0, 0, 5, 5] += 1
    io.save(scan, file, overwrite=True)
    assert (
        code_of(lambda: open_store(store.path, dataset=made.dataset)) == "store-of-another-dataset"
    )
    assert open_store(store.path).digest == store.digest  # the store itself is unchanged


def test_another_version_is_refused(made: Made, tmp_path: Path) -> None:
    path = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).path
    head = json.loads((path / "store.json").read_text())
    for other in ({**head, "format": 99}, {"format": 99}):  # its other keys may differ
        (path / "store.json").write_text(json.dumps(other))
        assert code_of(lambda: open_store(path)) == "store-version"
    (path / "store.json").unlink()
    begun = json.loads((path / "begun.json").read_text())
    (path / "begun.json").write_text(json.dumps({**begun, "format": 99}))
    assert (
        code_of(lambda: build_store(made.dataset, made.plan, path, recipe=VOXELS))
        == "store-version"
    )


@dataclass(frozen=True)
class Halved:
    """A recipe: every second row of the labels, the number of bright voxels, the darkest slice."""

    bright_hu: int
    content: str = "halved"

    @property
    def settings(self) -> dict[str, int]:
        return {"bright_hu": self.bright_hu}

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        assert voxels.labels is not None
        nz, ny, nx = voxels.image.grid.shape
        labels = Volume(voxels.labels.data[:, :, ::2], voxels.image.grid.resized((nz, ny // 2, nx)))
        bright = voxels.image.data > self.bright_hu
        return Prepared(
            image=voxels.image,
            labels=labels,
            arrays={"bright": bright.numpy()},
            facts={"count": int(bright.sum()), "share": float(bright.double().mean())},
        )


@pytest.mark.ci
def test_a_recipe_decides_what_is_kept(made: Made, tmp_path: Path) -> None:
    path, recipe = tmp_path / "store", Halved(100)
    store = build_store(made.dataset, made.plan, path, recipe=recipe, jobs=2)
    assert (store.content, store.settings) == ("halved", {"bright_hu": 100})
    reader = CaseReader.of_dataset(made.dataset)
    for case, stored in zip(made.dataset.cases, store.cases, strict=True):
        voxels = reader.read(case)
        assert voxels.labels is not None
        bright = voxels.image.data > 100
        assert torch.equal(stored.array("bright"), bright) and stored.array("bright").any()
        assert stored.facts == {"count": int(bright.sum()), "share": float(bright.double().mean())}
        assert torch.equal(stored.labels.data, voxels.labels.data[:, :, ::2])
        assert stored.labels.grid.shape[1] == stored.image.grid.shape[1] // 2
        assert stored.has("bright") and not stored.has("other")
        assert [s.name for s in stored.sources] == [
            f"imagesTr/{case.id}_0000.nii.gz",
            f"labelsTr/{case.id}.nii.gz",
        ]
    other = Halved(50)
    for action in (
        lambda: build_store(made.dataset, made.plan, path, recipe=other),
        lambda: open_store(path, recipe=other),
    ):
        assert code_of(action) == "store-of-other-settings"
    assert code_of(lambda: open_store(path, recipe=VOXELS)) == "store-of-another-content"


def flip_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


def test_damage_is_noticed(made: Made, tmp_path: Path) -> None:
    whole = build_store(made.dataset, made.plan, tmp_path / "store", recipe=Halved(100)).path
    damages: list[tuple[str, Callable[[Path], object], bool]] = [
        ("cases/case_1/image.npy", flip_byte, True),
        ("cases/case_1/labels.npy", flip_byte, True),
        ("cases/case_1/image.npy", lambda f: f.write_bytes(f.read_bytes()[:-1]), False),
        ("cases/case_2/bright.npy", Path.unlink, False),
        ("cases/case_2/other.npy", lambda f: f.write_bytes(b""), False),
        ("cases/case_0/case.json", lambda f: f.write_text(f.read_text() + " "), False),
        ("cases/case_0/case.json", lambda f: f.write_text("{"), False),
        ("cases/case_0/case.json", Path.unlink, False),
        ("plan.json", lambda f: f.write_text(f.read_text().replace('"ct"', '"zscore"')), False),
        ("store.json", lambda f: f.write_text("[]"), False),
        ("store.json", lambda f: f.write_text(f'{{"format": {FORMAT}}}'), False),
    ]
    for k, (name, damage, only_when_verified) in enumerate(damages):
        path = tmp_path / f"copy_{k}"
        shutil.copytree(whole, path)
        damage(path / name)
        assert code_of(lambda: open_store(path)) == "damaged-store", name  # noqa: B023
        if only_when_verified:
            assert open_store(path, verify=False).cases
        else:
            assert code_of(lambda: open_store(path, verify=False)) == "damaged-store", name  # noqa: B023


def mutated(content: bytes, chance: random.Random) -> bytes:
    out, place = bytearray(content), chance.randrange(len(content))
    kind = chance.randrange(4)
    if kind == 0:
        out[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del out[place : place + chance.choice([1, 10, len(out)])]
    else:
        pieces = [b"[", b'"', b"9", b"\xff", b"null", b"NaN", b"1e999", b"{" * 3000, b"-"]
        out[place:place] = chance.choice(pieces)
    return bytes(out)


@pytest.mark.parametrize(
    "name", ["store.json", "plan.json", "begun.json", "cases/case_1/case.json"]
)
def test_no_mutation_of_the_json_is_accepted_or_a_traceback(
    made: Made, tmp_path: Path, name: str
) -> None:
    """Unless it says the same, as more space between words does."""
    path = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).path
    digest, file, chance = open_store(path).digest, path / name, random.Random(3)
    if name == "begun.json":
        (path / "store.json").unlink()
    whole = file.read_bytes()

    def use() -> None:
        if name != "begun.json":
            assert open_store(path).digest == digest
        else:
            build_store(made.dataset, made.plan, path, recipe=VOXELS)
            (path / "store.json").unlink()

    for _ in range(80):
        file.write_bytes(mutated(whole, chance))
        if name_of_error(use) is None:
            assert parsed(file.read_bytes()) == parsed(whole)


def name_of_error(action: Callable[[], object]) -> str | None:
    """The code of the error for a damaged store; None if the action succeeds."""
    try:
        action()
    except ModelError as error:
        code = error.code
    else:
        return None
    assert code in ("damaged-store", "store-version"), code
    return code


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("store.json", {"order": ["case_0"]}),
        ("store.json", {"order": ["../case_0", "case_1", "case_2"]}),
        ("store.json", {"order": None}),
        ("store.json", {"cases": []}),
        ("store.json", {"settings": 3}),
        ("store.json", {"more": 3}),
        ("cases/case_1/case.json", {"id": "case_0"}),
        ("cases/case_1/case.json", {"grid": {"shape": [0, 1, 1], "mm_from_index": []}}),
        ("cases/case_1/case.json", {"grid": {"shape": [9, 9, 9], "mm_from_index": [[0.0]]}}),
        ("cases/case_1/case.json", {"grid": {"shape": [1e9], "mm_from_index": None}}),
        ("cases/case_1/case.json", {"spacing_mm": [1.0, -1.0, 1.0]}),
        ("cases/case_1/case.json", {"voxels_per_slice": {"x": [[1, 2]]}}),
        ("cases/case_1/case.json", {"arrays": {"image": 3}}),
        ("cases/case_1/case.json", {"sources": [{"name": "a"}]}),
        ("cases/case_1/case.json", {"age_years": "old"}),
    ],
)
def test_sealed_json_of_other_content_is_damaged(
    made: Made, tmp_path: Path, name: str, change: dict[str, object]
) -> None:
    path = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).path

    def write(file: Path, change: dict[str, object]) -> None:
        content = {k: v for k, v in json.loads(file.read_bytes()).items() if k != "sha256"}
        file.write_text(json.dumps(sealed({**content, **change})))

    write(path / name, change)
    if name != "store.json":
        digests = json.loads((path / "store.json").read_bytes())["cases"]
        write(path / "store.json", {"cases": {**digests, "case_1": sha256_of(path / name)}})
    assert code_of(lambda: open_store(path)) == "damaged-store"


def test_a_killed_build_whose_facts_were_altered_prepares_the_case_again(
    made: Made, tmp_path: Path
) -> None:
    path = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).path
    expected = contents(path)
    (path / "store.json").unlink()
    file = path / "cases" / "case_1" / "case.json"
    for text in (file.read_text().replace("anna", "emma"), '{"arrays": 3}', "[]"):
        file.write_text(text)
        build_store(made.dataset, made.plan, path, recipe=VOXELS)
        assert contents(path) == expected
        (path / "store.json").unlink()


def test_no_store_and_unfinished_store(made: Made, tmp_path: Path) -> None:
    assert code_of(lambda: open_store(tmp_path / "nothing")) == "no-store"
    path = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).path
    assert is_store(path) and not is_store(tmp_path)
    (path / "store.json").unlink()
    assert code_of(lambda: open_store(path)) == "unfinished-store" and is_store(path)


def test_an_unfinished_store_resumes_and_is_repaired(made: Made, tmp_path: Path) -> None:
    """Complete cases are kept, others are prepared again, leftovers are removed."""
    path = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).path
    expected = contents(path)
    (path / "store.json").unlink()
    flip_byte(path / "cases" / "case_1" / "image.npy")
    shutil.move(path / "cases" / "case_2", path / "cases" / "case_2.unfinished")
    kept = (path / "cases" / "case_0" / "image.npy").stat().st_mtime_ns
    other = replace(made.plan, median_spacing_mm=(9.0, 9.0, 9.0))
    assert (
        code_of(lambda: build_store(made.dataset, other, path, recipe=VOXELS))
        == "store-of-another-plan"
    )
    calls: list[tuple[int, int]] = []
    build_store(
        made.dataset, made.plan, path, recipe=VOXELS, progress=lambda a, b: calls.append((a, b))
    )
    assert contents(path) == expected and calls == [(1, 2), (2, 2)]
    assert (path / "cases" / "case_0" / "image.npy").stat().st_mtime_ns == kept


BUILD = """
import json, pathlib, sys
from kidseg.cases import open_dataset
from kidseg.plan import Plan
from kidseg.store import Prepared, build_store
class Voxels:
    content, settings = "voxels", {}
    def __call__(self, case, voxels):
        return Prepared(image=voxels.image, labels=voxels.labels)
if __name__ == "__main__":
    root, plan, out = sys.argv[1:]
    plan = Plan.from_dict(json.loads(pathlib.Path(plan).read_text()))
    print("ready", flush=True)
    build_store(open_dataset(root), plan, pathlib.Path(out), recipe=Voxels())
"""


@pytest.mark.ci
def test_a_build_killed_at_any_moment_ends_the_same(made: Made, tmp_path: Path) -> None:
    expected = contents(
        build_store(made.dataset, made.plan, tmp_path / "whole", recipe=VOXELS).path
    )
    (tmp_path / "plan.json").write_text(json.dumps(made.plan.as_dict()))
    path = tmp_path / "killed"
    rng = np.random.default_rng(1)
    for _ in range(2):
        command = [sys.executable, "-c", BUILD, made.dataset.root, tmp_path / "plan.json", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
    build_store(made.dataset, made.plan, path, recipe=VOXELS)
    assert contents(path) == expected


@pytest.mark.ci
def test_two_builders_share_the_work_of_one(made: Made, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(made.plan.as_dict()))
    path = tmp_path / "shared"
    command = [sys.executable, "-c", BUILD, made.dataset.root, tmp_path / "plan.json", path]
    builders = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [builder.wait(timeout=120) for builder in builders] == [0, 0]
    expected = contents(
        build_store(made.dataset, made.plan, tmp_path / "alone", recipe=VOXELS).path
    )
    assert contents(path) == expected


def test_a_full_disk_leaves_no_half_case(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kidseg.store import build

    real, calls = build.write_array, iter(range(100))

    def full(file: object, array: np.ndarray) -> str:
        if next(calls) == 3:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, array)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "write_array", full)
    path = tmp_path / "store"
    with pytest.raises(ResourceError) as caught:
        build_store(made.dataset, made.plan, path, recipe=VOXELS)
    assert caught.value.code == "disk-full"
    assert [p.name for p in (path / "cases").iterdir()] == ["case_0"]
    assert len(build_store(made.dataset, made.plan, path, recipe=VOXELS).cases) == 3


@pytest.mark.fault("disk full")
@pytest.mark.parametrize("pages", [4, 6, 8, 10])
def test_a_disk_that_is_really_full_holds_no_half_case(
    made: Made, tmp_path: Path, pages: int
) -> None:
    with small_disk(tmp_path / "disk", 4096 * pages) as disk:
        with pytest.raises(ResourceError) as caught:
            build_store(made.dataset, made.plan, disk / "store", recipe=VOXELS)
        assert caught.value.code == "disk-full" and "unfinished" not in str(caught.value)
        assert "run the command again" in caught.value.next_step
        assert not list(disk.rglob("*unfinished*")) and not list(disk.rglob(".kidseg*"))


def test_an_invalid_case_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    made = write_dataset(tmp_path / "data")
    case = made.dataset.cases[1]
    scan = io.load(case.images[0]).astype(torch.float32)
    scan.data[0, 0, 0, 0] = float("nan")
    io.save(scan, case.images[0], overwrite=True)
    with pytest.raises(InputError, match="case_1"):
        build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS)
    kept = sorted(p.name for p in (tmp_path / "store" / "cases").iterdir())
    assert kept == ["case_0", "case_2"]


def test_folders_of_something_else_are_left_alone(made: Made, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert (
        code_of(lambda: build_store(made.dataset, made.plan, tmp_path, recipe=VOXELS))
        == "not-a-store"
    )
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "store"
    assert (
        code_of(lambda: build_store(made.dataset, made.plan, below, recipe=VOXELS))
        == "not-writable"
    )
    assert {p.name for p in tmp_path.iterdir()} == {"mine.txt", "file"}


def test_names_that_cannot_be_folders_are_refused(made: Made, tmp_path: Path) -> None:
    for name in ("../up", ".hidden", "a/b"):
        odd = replace(made.dataset, cases=(replace(made.dataset.cases[0], id=name),))
        with pytest.raises(InputError) as caught:
            build_store(odd, made.plan, tmp_path / "store", recipe=VOXELS)
        assert caught.value.code == "bad-case-name"
    assert not (tmp_path / "store").exists()


def test_writing_to_a_mapped_array_never_reaches_the_file(made: Made, tmp_path: Path) -> None:
    path = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).path
    open_store(path).cases[0].image.data.zero_()
    assert open_store(path).cases[0].image.data.any()


def test_cases_travel_between_processes_without_their_voxels(made: Made, tmp_path: Path) -> None:
    case = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS).cases[0]
    assert case.image.data.any()
    packed = pickle.dumps(case)
    assert len(packed) < 4000
    assert torch.equal(pickle.loads(packed).image.data, case.image.data)


BARE = """
import importlib.abc, sys
banned = {"nibabel", "isal", "SimpleITK", "pydicom", "highdicom", "scipy", "skimage",
          "tomli_w", "rich", "typer", "matplotlib", "safetensors"}
class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in banned:
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Guard())
from pathlib import Path
from kidseg.store import open_store
store = open_store(Path(sys.argv[1]))
print(store.digest, int(store.cases[0].image.data.sum()), [*store.cases[0].voxels_per_slice[2]])
"""


@pytest.mark.ci
def test_a_store_opens_with_torch_numpy_and_pydantic_alone(made: Made, tmp_path: Path) -> None:
    store = build_store(made.dataset, made.plan, tmp_path / "store", recipe=VOXELS)
    command = [sys.executable, "-c", BARE, store.path]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [
        store.digest,
        str(int(store.cases[0].image.data.sum())),
        "[2,",
        "3]",
    ]


def test_a_file_that_a_killed_builder_left_does_not_stay(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "store"
    (path / "cases").mkdir(parents=True)
    for name in ("lock", ".kidseg-0123456789abcdef.tmp"):
        (path / name).touch()
    build_store(made.dataset, made.plan, path, recipe=VOXELS)
    assert not list(path.glob(".kidseg-*"))
