"""What a real archive has after kidseg answered: the labels of the command, of that very series."""

from __future__ import annotations

import io
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from kidseg.config import PhantomConfig
from kidseg.phantom import write_patients
from labelled_series import assert_conforms, needs_dciodvfy
from test_pacs import ORTHANC, RealArchive, real_archive

LABELS = {"kidney": 1, "tumour": 2}


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[RealArchive]:
    yield from real_archive(tmp_path / "orthanc")


def kidseg(*words: str | Path) -> None:
    command = [sys.executable, "-m", "kidseg", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]


def stored(archive: RealArchive) -> dict[str, list[bytes]]:
    """{modality: its objects in the archive}."""
    found: dict[str, list[bytes]] = {}
    for series in archive.ask("/series?expand"):
        for each in series["Instances"]:
            address = f"{archive.address}/instances/{each}/file"
            with urllib.request.urlopen(address, timeout=60) as answer:
                found.setdefault(series["MainDicomTags"]["Modality"], []).append(answer.read())
    return found


def labels_in(segmentation: Dataset, like: nibabel.Nifti1Image) -> np.ndarray:
    """The labels of a SEG on the voxels of a NIfTI file, by their positions in the patient."""
    found = highdicom.seg.Segmentation.from_dataset(segmentation)
    names = {number: found.get_segment_description(number) for number in found.segment_numbers}
    volume = found.get_volume(combine_segments=True)
    index = np.argwhere(volume.array > 0)
    numbers = volume.array[tuple(index.T)]
    ras = volume.map_indices_to_reference(index) * (-1, -1, 1)
    affine = np.linalg.inv(like.affine)
    there = ras @ affine[:3, :3].T + affine[:3, 3]
    assert np.abs(there - there.round()).max() < 0.01, "on the voxels, not between them"
    values = np.zeros(like.shape, np.uint8)
    label_of = {number: LABELS[text.segment_label] for number, text in names.items()}
    values[tuple(there.round().astype(int).T)] = [label_of[n] for n in numbers.tolist()]
    return values


@ORTHANC
@needs_dciodvfy
@pytest.mark.slow
@pytest.mark.requirement("archive")
@pytest.mark.requirement("dicom")
def test_the_archive_has_the_labels_of_the_command_on_the_images_that_were_sent(
    archive: RealArchive, tmp_path: Path
) -> None:
    config = PhantomConfig(size=128, max_slices=24)
    write_patients(tmp_path / "patients", config, patients=1, seed=3, layout="dicom")
    (ct,) = {path.parent for path in (tmp_path / "patients").rglob("*.dcm")}
    for image in ct.iterdir():
        archive.ask("/instances", image.read_bytes())
    kidseg("segment", ct, "-o", tmp_path / "here", "--device", "cpu")
    (file,) = (tmp_path / "here").glob("*_seg.nii.gz")
    expected = nibabel.load(file)
    words = ["--folder", tmp_path / "work", "--device", "cpu", "--every", "1", "--min-images", "5"]
    kidseg("dicomweb", f"{archive.address}/dicom-web", *words, "--once")

    found = stored(archive)
    source = [pydicom.dcmread(io.BytesIO(content)) for content in found.pop("CT")]
    first, uids = source[0], {str(image.SOPInstanceUID) for image in source}
    assert {kind: len(objects) for kind, objects in found.items()} == {"SEG": 1, "SR": 1, "DOC": 1}
    for kind, name in (("SEG", "Segmentation"), ("SR", "SR"), ("DOC", "EncapsulatedPDF")):
        path = tmp_path / f"{kind}.dcm"
        path.write_bytes(found[kind][0])
        assert_conforms(path, name)
        answer = pydicom.dcmread(path)
        for element in ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber"):
            assert answer.get(element) == first.get(element), (kind, element)
        assert answer.SeriesInstanceUID != first.SeriesInstanceUID
    segmentation = pydicom.dcmread(tmp_path / "SEG.dcm")
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
    named = {str(i.ReferencedSOPInstanceUID) for i in referenced.ReferencedInstanceSequence}
    assert named and named <= uids
    values = np.asanyarray(expected.dataobj)
    assert set(np.unique(values)) >= {0, 1}
    assert np.array_equal(labels_in(segmentation, expected), values)
