"""Read every file and series in a folder of unusual DICOM; results as a Markdown table.

    python benchmarks/dicom_odd.py FOLDER...

The benchmark reads each folder that contains files, as a user would, without and with --repair,
and separately each file that is not a slice of the only series in its folder. "Agrees" is the
largest difference from independent readers of the same files:

- positions: the affine computed from the tags of the first and last image; highdicom for
  multi-frame files;
- values: SimpleITK, which decodes and rescales independently (highdicom for multi-frame files),
  except where kidseg set padding to -1024.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK
import torch

from kidseg.errors import KidsegError
from kidseg.io.dicom import list_series, read_series
from kidseg.io.dicom_image_type import image_type_table
from kidseg.io.orientation import ras_from_lps, reorient
from kidseg.io.scan import ReadOptions, Scan

NOT_REPAIRED = ("repaired-", "dropped-")


@dataclass(frozen=True)
class Given:
    """A file or folder to read, and its name in the table."""

    path: Path
    name: str


def inputs(root: Path) -> Iterator[Given]:
    """`root`, the folders below it that contain files, and the files to read separately."""
    for folder in [root, *sorted(p for p in root.rglob("*") if p.is_dir())]:
        files = sorted(p for p in folder.iterdir() if p.is_file())
        if files or folder == root:
            yield Given(folder, f"{folder.relative_to(root.parent)}/")
        volumes = [series for series in list_series(folder) if series.kind == "volume"]
        slices = {
            image.path
            for series in volumes
            for image in series.images
            if len(volumes) == 1 and len(image.planes) == 1
        }
        for file in files:
            if file not in slices:
                yield Given(file, str(file.relative_to(root.parent)))


def read(given: Given, *, repair: bool) -> Scan | KidsegError:
    try:
        return read_series(given.path, ReadOptions(repair=repair))
    except KidsegError as error:
        return error


def as_cell(result: Scan | KidsegError, given: Given) -> str:
    """The result as a table cell."""
    if isinstance(result, KidsegError):
        cause = result.cause.replace(str(given.path), given.name).replace("|", "/")
        return f"refused: `{result.code}`: {shortened(cause)}"
    grid = result.volume.grid
    shape = " x ".join(map(str, grid.shape))
    spacing = " x ".join(f"{s:.4g}" for s in grid.spacing_mm.tolist())
    low, high = (float(v) for v in result.volume.data.aminmax())
    found = ", ".join(f"`{f.code}`" for f in result.findings) or "nothing"
    return f"read: {shape} at {spacing} mm, {low:.0f}..{high:.0f} HU; noticed: {found}"


def shortened(text: str, limit: int = 230) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def agrees(scan: Scan, given: Given) -> str:
    """Compare with independent readers; only if nothing was repaired."""
    if any(f.code.startswith(NOT_REPAIRED) for f in scan.findings):
        return "(repaired)"
    files = [given.path] if given.path.is_file() else chosen_files(scan, given.path)
    datasets = [pydicom.dcmread(file) for file in files]
    affine, values = peer_volume(datasets)
    mine = reorient(scan.volume, scan.native)
    lps = ras_from_lps @ mine.grid.mm_from_index.numpy()
    if lps[:3, 0] @ affine[:3, 0] < 0:
        flip = np.eye(4)
        flip[0, 0], flip[0, 3] = -1, len(values) - 1
        affine, values = affine @ flip, values[::-1]
    corners = np.array([(k, i, j, 1) for k in (0, 1) for i in (0, 1) for j in (0, 1)])
    corners[:, :3] *= np.array(values.shape) - 1
    apart_mm = np.abs((lps - affine) @ corners.T).max()
    data = mine.data[0].to(torch.float64).numpy()
    padded = (data == -1024) & (values < -1024)
    off_hu = np.abs(data - values)[~padded].max()
    return f"to {apart_mm:.1g} mm and {off_hu:.1g} HU"


def chosen_files(scan: Scan, folder: Path) -> list[Path]:
    """The files of the series that was read, found by pydicom."""
    found = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        uid = header.get("SeriesInstanceUID") or scan.facts["series_uid"]  # a placeholder
        if uid == scan.facts["series_uid"]:
            found.append(file)
    return found


def peer_volume(datasets: list[pydicom.Dataset]) -> tuple[np.ndarray, np.ndarray]:
    """Affine (4, 4) LPS and values (slices, rows, columns) HU from independent readers."""
    first = datasets[0]
    if "PerFrameFunctionalGroupsSequence" in first:
        volume = highdicom.Image.from_dataset(first).get_volume(apply_real_world_transform=False)
        return volume.affine, volume.array
    datasets = sorted(
        datasets,
        key=lambda d: float(np.dot(normal(d), np.array(d.ImagePositionPatient, float))),
    )
    values = np.array([hounsfield(d) for d in datasets])
    return tags_affine(datasets), values


def hounsfield(dataset: pydicom.Dataset) -> np.ndarray:
    """HU from SimpleITK, which decodes with its own GDCM."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(dataset.filename)))[0]


def normal(dataset: pydicom.Dataset) -> np.ndarray:
    cosines = np.array(dataset.ImageOrientationPatient, float)
    return np.cross(cosines[:3], cosines[3:])


def tags_affine(datasets: list[pydicom.Dataset]) -> np.ndarray:
    """Affine from the tags: columns are the steps of slice, row, column, and the first voxel."""
    first = np.array(datasets[0].ImagePositionPatient, float)
    last = np.array(datasets[-1].ImagePositionPatient, float)
    if len(datasets) > 1:
        step = (last - first) / (len(datasets) - 1)
    else:
        apart = datasets[0].get("SpacingBetweenSlices") or datasets[0].SliceThickness
        step = normal(datasets[0]) * float(apart)
    cosines = np.array(datasets[0].ImageOrientationPatient, float)
    rows, columns = (float(s) for s in datasets[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.array([step, cosines[3:] * rows, cosines[:3] * columns, first]).T
    return affine


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    warnings.simplefilter("ignore", UserWarning)  # pydicom's warnings about invalid headers
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    print("| file or series | what happened | agrees with other readers | with `--repair` |")
    print("|---|---|---|---|")
    for folder in folders:
        for given in inputs(folder.resolve()):
            plain = read(given, repair=False)
            repaired = read(given, repair=True)
            same = as_cell(plain, given) == as_cell(repaired, given)
            check = agrees(plain, given) if isinstance(plain, Scan) else ""
            after = "the same" if same else as_cell(repaired, given)
            print(f"| `{given.name}` | {as_cell(plain, given)} | {check} | {after} |")
    print("", *image_type_table(), sep="\n")


if __name__ == "__main__":
    main()
