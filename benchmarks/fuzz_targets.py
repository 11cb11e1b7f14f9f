"""What is fuzzed: a small valid input of each kind that kidseg reads, and how it is read."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from kidseg import io
from kidseg.cases import open_dataset, survey_dataset, write_dataset_json, write_patients_csv
from kidseg.cases.persons import read_kits_table, read_patients_csv
from kidseg.cases.reading import CaseVoxels
from kidseg.cases.roi_rules import load_rules
from kidseg.checkpoint import (
    STATE_KEY,
    StageProgress,
    State,
    load_model,
    load_state,
    save_model,
    save_state,
    state_file,
)
from kidseg.config import METHODS, PhantomConfig, dump, load
from kidseg.contours import contour_volumes
from kidseg.errors import KidsegError, KidsegWarning
from kidseg.geometry import Grid, Volume
from kidseg.header import KEY, read_header, seal, with_blank_seal
from kidseg.io import ReadOptions
from kidseg.io.dicom import read_series
from kidseg.io.dicom_source import read_source
from kidseg.io.dicom_write import write_series
from kidseg.io.dicomseg import write_dicom_segmentation
from kidseg.io.orientation import affine_of_grid
from kidseg.io.origin import Origin
from kidseg.io.rtstruct import write_structure_set
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.plan import fingerprint, plan
from kidseg.records import SEAL
from kidseg.store import Prepared, build_store, open_store
from kidseg.train import Setup, train
from mutations import mutate, mutate_json, mutate_text

__all__ = ["TARGETS", "Target"]

Random = random.Random
Mutate = Callable[..., bytes]

SHAPE = (3, 6, 5)
GRID = Grid.from_spacing(SHAPE, (3.0, 0.8, 0.7), (5.0, -7.0, 11.0))
TINY = (
    *("view.size=32", "unet.size=32", "unet.features=4", "precision=fp32"),
    *("segment.epochs=1", "segment.min_epochs=0", "segment.steps=1", "segment.batch_size=4"),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of input.

    Attributes:
        build: writes a valid input into an empty folder.
        read: reads the input in the folder, as a user would.
        mutate: changes the bytes of one file of the input.
        mutable: whether a file, by its path in the folder, is changed.
        packed: whether the changed bytes are packed in the file; see `unpack` and `pack`.
        unpack: the bytes to change, from those of the file.
        pack: its inverse.
        focus: most changes are within so many first bytes.
        cost: time of one reading relative to that of a header, for `--n`.
    """

    name: str
    build: Callable[[Path], object]
    read: Callable[[Path, Random], object]
    mutate: Mutate = mutate
    mutable: Callable[[str], bool] = lambda _: True
    unpack: Callable[[bytes], bytes] | None = None
    pack: Callable[[bytes, bytes], bytes] | None = None
    focus: int | None = None
    cost: int = 1


def image(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Volume:
    generator = np.random.default_rng(seed)
    hu = generator.normal(40, 20, shape)
    hu[:, :2] = -1000
    grid = GRID if shape == SHAPE else Grid.from_spacing(shape, (3.0, 2.0, 2.0))
    return Volume(torch.from_numpy(hu.astype(np.int16))[None], grid)


def some_options(generator: Random) -> ReadOptions:
    """Mostly the default ones."""
    if generator.random() < 0.4:
        return ReadOptions()
    return ReadOptions(
        trust=generator.choice([None, None, "sform", "qform"]),
        spacing_mm=generator.choice([None, None, None, (3.0, 1.0, 1.0)]),
        volume=generator.choice([None, None, None, 0, 1]),
        repair=generator.random() < 0.3,
        nonfinite=generator.choice(["refuse", "replace"]),
        values=generator.choice(["ct", "any", "labels"]),
    )


# ---- scans -------------------------------------------------------------------------------------


def nifti(kind: type[nibabel.Nifti1Image], name: str) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        data = image().data[0].numpy().transpose(2, 1, 0)
        file = kind(data, affine_of_grid(GRID), dtype=np.int16)
        file.set_sform(file.affine, 1)
        file.set_qform(file.affine, 1)
        nibabel.save(file, folder / name)

    return build


def saved(name: str) -> Callable[[Path], object]:
    return lambda folder: io.save(image(), folder / name)


def detached(name: str, header: str) -> Callable[[Path], object]:
    """A header and a file of raw voxels."""

    def build(folder: Path) -> None:
        (folder / name).write_text(header)
        (folder / "x.raw").write_bytes(image().data.numpy().astype("<i2").tobytes())

    return build


NHDR = """NRRD0004
# by hand
type: short
dimension: 3
space: left-posterior-superior
sizes: 5 6 3
space directions: (0.7,0,0) (0,0.8,0) (0,0,3)
kinds: domain domain domain
space units: "mm" "mm" "mm"
endian: little
encoding: raw
byte skip: 0
space origin: (1,2,3)
key:=value
data file: x.raw
"""
MHD = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 1 2 3
ElementSpacing = 0.7 0.8 3
DimSize = 5 6 3
HeaderSize = 0
ElementNumberOfChannels = 1
ElementType = MET_SHORT
ElementDataFile = x.raw
"""


def only(ending: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(ending)


def read_scan(name: str) -> Callable[[Path, Random], object]:
    def read(folder: Path, generator: Random) -> object:
        if generator.random() < 0.2:
            return io.read_grid(folder / name, some_options(generator))
        scan = io.read(folder / name, some_options(generator))
        return str(scan.findings)

    return read


def gzip_again(content: bytes, _: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


# ---- DICOM -------------------------------------------------------------------------------------


def dicom(syntax: str | None) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        write_series(image(), folder / "ct", facts={"seed": "1"})
        for path in sorted((folder / "ct").iterdir()):
            if syntax is not None:
                dataset = pydicom.dcmread(path)
                if syntax == RLELossless:
                    dataset.compress(RLELossless, generate_instance_uid=False)
                else:
                    dataset.file_meta.TransferSyntaxUID = syntax
                dataset.save_as(path, enforce_file_format=True)

    return build


def enhanced(folder: Path) -> None:
    """Three frames of an Enhanced CT with the functional groups that a reader needs."""
    write_series(image(), folder / "ct", facts={"seed": "1"})
    slices = [pydicom.dcmread(path) for path in sorted((folder / "ct").iterdir())]
    for path in (folder / "ct").iterdir():
        path.unlink()
    (folder / "ct").rmdir()
    whole, first = slices[0], pydicom.Dataset
    frames = []
    for one in slices:
        frame, position, orientation, value, measures = (first() for _ in range(5))
        position.ImagePositionPatient = one.ImagePositionPatient
        orientation.ImageOrientationPatient = one.ImageOrientationPatient
        value.RescaleSlope, value.RescaleIntercept = one.RescaleSlope, one.RescaleIntercept
        value.RescaleType = "HU"
        measures.PixelSpacing = one.PixelSpacing
        frame.PlanePositionSequence = [position]
        frame.PlaneOrientationSequence = [orientation]
        frame.PixelValueTransformationSequence = [value]
        frame.PixelMeasuresSequence = [measures]
        frames.append(frame)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(whole, name)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    whole.NumberOfFrames = len(slices)
    whole.PerFrameFunctionalGroupsSequence = frames
    whole.SharedFunctionalGroupsSequence = [first()]
    whole.PixelData = b"".join(one.PixelData for one in slices)
    whole.save_as(folder / "x.dcm", enforce_file_format=True)


def annotated(kind: str) -> Callable[[Path], object]:
    """A series, and an object with two structures on it."""

    def build(folder: Path) -> None:
        write_series(image(), folder / "ct", facts={"seed": "1"})
        source = read_source(folder / "ct", ReadOptions(values="any"))
        values = torch.zeros((1, *source.native.shape), dtype=torch.uint8)
        values[0, :2, 2:5, 1:4], values[0, 1, 3, 2] = 1, 2
        labels = Volume(values, source.native)
        with (folder / "x.dcm").open("wb") as file:
            if kind == "rtstruct":
                write_structure_set(labels, KIDNEY_TUMOUR, source, Origin(), file)
            else:
                is_map = kind == "labelmap"
                write_dicom_segmentation(
                    labels, KIDNEY_TUMOUR, source, Origin(), file, labelmap=is_map
                )

    return build


def read_annotated(folder: Path, generator: Random) -> object:
    with contextlib.suppress(KidsegError):
        contour_volumes(folder / "x.dcm")
    survey = survey_dataset(folder)
    for case in survey.dataset.cases:
        assert case.labels is not None
        options = replace(some_options(generator), values="labels")
        io.read(case.labels, case.reading(options))
    return str(survey.findings)


def roi_rules(folder: Path) -> None:
    text = 'ignore = ["BODY.*"]\nannotation = "*1"\n[labels]\nkidney = ["(R|L)T ?KIDNEY"]\n'
    (folder / "x.toml").write_text(text)


def read_folder(folder: Path, generator: Random) -> object:
    return str(read_series(folder / "ct", some_options(generator)).findings)


def zipped(build: Callable[[Path], object]) -> Callable[[Path], object]:
    def build_zip(folder: Path) -> None:
        build(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, str(path.relative_to(folder)))
        for path in files:
            path.unlink()

    return build_zip


# ---- data sets, tables, settings ---------------------------------------------------------------


def nnunet(folder: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    for k in range(2):
        scan = image(k)
        io.save(scan, folder / f"imagesTr/c{k}_0000.nii.gz")
        labels = (scan.data > 50).byte()
        io.save(Volume(labels, scan.grid), folder / f"labelsTr/c{k}.nii.gz")
    write_dataset_json(folder, channels=("CT",), schema=KIDNEY_TUMOUR, n_training=2)
    rows = [{"case": "c0", "patient": "a", "age_years": 2.5, "side": "left"}, {"case": "c1"}]
    write_patients_csv(folder, rows)


def decathlon(folder: Path) -> None:
    nnunet(folder)
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    content = {
        "name": "x",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "kidney", "2": "tumour"},
        "numTraining": 2,
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/c{k}.nii.gz", "label": f"./labelsTr/c{k}.nii.gz"}
            for k in range(2)
        ],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "patients.csv").unlink()


def read_data(folder: Path, _: Random) -> object:
    survey_dataset(folder)
    return open_dataset(folder)


def kits_table(folder: Path) -> None:
    rows = [{"case_id": f"case_{k:05d}", "age_at_nephrectomy": 40 + k} for k in range(3)]
    (folder / "kits.json").write_text(json.dumps(rows))


def patients(folder: Path) -> None:
    rows = [{"case": f"c{k}", "patient": "a", "age_years": 2.5, "side": "left"} for k in range(3)]
    write_patients_csv(folder, rows)


def settings(folder: Path) -> None:
    (folder / "x.toml").write_text(dump(load(METHODS["homogenized"])))
    (folder / "phantom.toml").write_text(dump(PhantomConfig()))


def read_settings(folder: Path, _: Random) -> object:
    kind: Any = METHODS["homogenized"]
    return load(kind, file=folder / "x.toml"), load(PhantomConfig, file=folder / "phantom.toml")


# ---- models, states, stores, runs --------------------------------------------------------------


def model(folder: Path) -> None:
    parts = {"pose": {"w": torch.arange(6.0)}, "segment": {"w": torch.ones(3, 2)}}
    header = {"method": "plain", "config": {"size": 8}, "labels": {"names": {"1": "kidney"}}}
    save_model(folder / "model.safetensors", parts, header)


def read_model(folder: Path, _: Random) -> object:
    read_header(folder / "model.safetensors")
    return load_model(folder / "model.safetensors")


def layout_of(content: bytes) -> bytes:
    """The JSON at the start of a .safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length]


def with_layout(changed: bytes, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    return struct.pack("<Q", len(changed)) + changed + content[8 + length :]


def header_of(key: str) -> Callable[[bytes], bytes]:
    """The header of a sealed file without its digest."""

    def unpack(content: bytes) -> bytes:
        header = json.loads(json.loads(layout_of(content))["__metadata__"][key])
        return json.dumps({k: v for k, v in header.items() if k != SEAL}).encode()

    return unpack


def sealed_again(key: str) -> Callable[[bytes, bytes], bytes]:
    """A file of another header with a valid digest, to try what follows the digest too."""

    def pack(changed: bytes, content: bytes) -> bytes:
        text = changed.decode(errors="replace")
        with contextlib.suppress(ValueError, RecursionError):
            header = json.loads(changed)
            if isinstance(header, dict):
                text = with_blank_seal({k: v for k, v in header.items() if k != SEAL})
        layout = json.loads(layout_of(content))
        layout["__metadata__"][key] = text
        payload = with_layout(json.dumps(layout, separators=(",", ":")).encode(), content)
        return seal(payload, key) if text.startswith('{"') and SEAL in text[:9] else payload

    return pack


def state(folder: Path) -> None:
    for epoch in range(2):  # the second keeps the first as the previous one
        progress = StageProgress(
            run="0" * 64,
            stage="segment",
            epoch=epoch,
            seconds=1.5,
            stopped=None,
            best_epoch=0,
            log=tuple({"stage": "segment", "epoch": e, "loss": 0.5} for e in range(epoch + 1)),
        )
        parts = {"net": {"w": torch.ones(3)}, "best": {"w": torch.ones(3)}, "optimizer": {}}
        save_state(State(progress=progress, parts=parts), state_file(folder, "segment"))


def read_state(folder: Path, _: Random) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KidsegWarning)  # the previous state is used
        return load_state(state_file(folder, "segment"))


@dataclass(frozen=True)
class Voxels:
    """A recipe of a store: the scan's own voxels."""

    content: str = "voxels"
    settings: Any = None

    def __call__(self, case: object, voxels: CaseVoxels) -> Prepared:
        assert voxels.labels is not None
        return Prepared(image=voxels.image, labels=voxels.labels)


def store(folder: Path) -> None:
    (folder / "data").mkdir()
    nnunet(folder / "data")
    data = open_dataset(folder / "data")
    made = plan(fingerprint(data), data.schema)
    build_store(data, made, folder / "store", recipe=Voxels(settings={}))


def read_store(folder: Path, _: Random) -> object:
    return open_store(folder / "store")


def run(folder: Path) -> None:
    """A finished training run."""
    (folder / "data").mkdir()
    nnunet(folder / "data")
    setup = Setup(method="plain", overrides=TINY)
    train(folder / "data", folder / "run", setup, device="cpu")


def resume(folder: Path, _: Random) -> object:
    setup = Setup(method="plain", overrides=TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KidsegWarning)
        return train(folder / "data", folder / "run", setup, device="cpu", resume=True)


def in_run(name: str) -> bool:
    return name.startswith("run/") and name.endswith((".json", ".jsonl", ".toml"))


def in_store(name: str) -> bool:
    return name.startswith("store/")


# ---- the table ---------------------------------------------------------------------------------

_NIFTIS = [("1", nibabel.Nifti1Image, 352), ("2", nibabel.Nifti2Image, 544)]
_JSON = {"mutate": mutate_json}
TARGETS: dict[str, Target] = {
    target.name: target
    for target in [
        *(
            Target(
                name=f"nifti{number}",
                build=nifti(kind, "x.nii"),
                read=read_scan("x.nii"),
                focus=end,
            )
            for number, kind, end in _NIFTIS
        ),
        *(
            Target(
                name=f"nifti{number}-gz",
                build=nifti(kind, "x.nii.gz"),
                read=read_scan("x.nii.gz"),
                unpack=gzip.decompress,
                pack=gzip_again,
                focus=end,
            )
            for number, kind, end in _NIFTIS
        ),
        *(
            Target(
                name=ending[1:],
                build=saved(f"x{ending}"),
                read=read_scan(f"x{ending}"),
                mutate=mutate_text,
                focus=330,
            )
            for ending in (".nrrd", ".mha")
        ),
        Target(
            name="nhdr",
            build=detached("x.nhdr", NHDR),
            read=read_scan("x.nhdr"),
            mutate=mutate_text,
            mutable=only(".nhdr"),
        ),
        Target(
            name="mhd",
            build=detached("x.mhd", MHD),
            read=read_scan("x.mhd"),
            mutate=mutate_text,
            mutable=only(".mhd"),
        ),
        *(
            Target(name=f"dicom-{name}", build=dicom(syntax), read=read_folder, cost=4)
            for name, syntax in (
                ("explicit", None),
                ("implicit", ImplicitVRLittleEndian),
                ("encapsulated", RLELossless),
            )
        ),
        Target(
            name="dicom-enhanced",
            build=enhanced,
            read=lambda folder, generator: read_series(folder / "x.dcm", some_options(generator)),
            cost=4,
        ),
        *(
            Target(
                name=kind,
                build=annotated(kind),
                read=read_annotated,
                mutable=lambda name: name == "x.dcm",
                cost=8,
            )
            for kind in ("rtstruct", "dicomseg", "labelmap")
        ),
        Target(
            name="roi-rules",
            build=roi_rules,
            read=lambda folder, _: load_rules(folder / "x.toml"),
            mutate=mutate_text,
        ),
        Target(name="zip", build=zipped(saved("x.nii.gz")), read=read_scan("x.zip"), cost=2),
        Target(name="zip-dicom", build=zipped(dicom(None)), read=read_scan("x.zip"), cost=4),
        Target(name="dataset-json", build=nnunet, read=read_data, mutable=only(".json"), **_JSON),
        Target(
            name="decathlon-json", build=decathlon, read=read_data, mutable=only(".json"), **_JSON
        ),
        Target(
            name="kits-table",
            build=kits_table,
            read=lambda folder, _: read_kits_table(folder / "kits.json"),
            **_JSON,
        ),
        Target(
            name="patients-csv",
            build=patients,
            read=lambda folder, _: read_patients_csv(folder, ["c0", "c1"]),
            mutate=mutate_text,
        ),
        Target(name="toml", build=settings, read=read_settings, mutate=mutate_text, cost=2),
        Target(name="model", build=model, read=read_model),
        Target(
            name="model-header",
            build=model,
            read=read_model,
            unpack=layout_of,
            pack=with_layout,
            **_JSON,
        ),
        Target(name="state", build=state, read=read_state),
        *(
            Target(
                name=f"{name}-sealed",
                build=build,
                read=read,
                unpack=header_of(key),
                pack=sealed_again(key),
                **_JSON,
            )
            for name, build, read, key in [
                ("model", model, read_model, KEY),
                ("state", state, read_state, STATE_KEY),
            ]
        ),
        Target(name="store", build=store, read=read_store, mutable=in_store, cost=4),
        Target(
            name="store-json",
            build=store,
            read=read_store,
            mutable=lambda name: in_store(name) and name.endswith(".json"),
            cost=4,
            **_JSON,
        ),
        Target(name="run", build=run, read=resume, mutable=in_run, cost=200, **_JSON),
    ]
}
