"""The picture of complete.md: writes docs/complete.png.

kidseg phantom patients --patients 3 --ages 0-90 --size 256 --seed 6021 \\
    --set "slice_mm=[3.0,5.0]" --set neighbour_share=1.0
python docs/complete_picture.py patients phantom_0002

One slice in six is drawn. An axial slice in the middle between two drawn ones, where most of the
tumour is, and a coronal one; in these the drawn slices are dotted lines.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap

from kidseg.complete import complete
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, load, read, save
from kidseg.segment import segment

AS_LABELS = ReadOptions(values="labels")
EVERY = 6
COLOURS = ListedColormap([(0, 0, 0, 0), (0.1, 0.8, 0.6, 0.55), (1.0, 0.7, 0.0, 0.65)])


def labels_of(path: Path) -> np.ndarray:
    return read(path, AS_LABELS).volume.data[0].numpy()


def main(data: Path, case: str) -> None:
    scan, reference = (
        data / "imagesTr" / f"{case}_0000.nii.gz",
        data / "labelsTr" / f"{case}.nii.gz",
    )
    known = read(reference, AS_LABELS).volume
    labels = known.data[0].numpy()
    drawn = np.flatnonzero(labels.any((1, 2)))[EVERY // 2 :: EVERY]
    copied = np.zeros_like(labels)
    copied[drawn] = labels[drawn]
    with TemporaryDirectory() as folder:
        out, file = Path(folder), Path(folder) / "drawn.nii.gz"
        save(Volume(torch.from_numpy(copied)[None], known.grid), file)
        segment([scan], None, out / "alone")
        complete(scan, file, out / "completed")
        alone, completed = (
            labels_of(out / name / f"{case}_seg.nii.gz") for name in ("alone", "completed")
        )
    between = [k for k in range(len(labels)) if min(abs(k - drawn)) == EVERY // 2]
    k = max(between, key=lambda slice_: int((labels[slice_] == 2).sum()))
    row = int((labels == 2).sum((0, 2)).argmax())
    hu = load(scan).data[0].numpy()
    dz, dy, _ = known.grid.spacing_mm.tolist()
    columns = {
        "reference": labels,
        "the starter alone": alone,
        f"completed from {len(drawn)} of {len(labels)} slices": completed,
    }
    height = len(labels) * dz / (labels.shape[1] * dy)  # of the coronal slice; the axial one has 1
    figure, axes = plt.subplots(
        *(2, 3),
        figsize=(12, 4.2 * (1 + height)),
        height_ratios=(1, height),
        layout="constrained",
    )
    for (name, found), (top, bottom) in zip(columns.items(), axes.T, strict=True):
        top.set_title(name)
        for axis, image, areas, aspect in (
            (top, hu[k], found[k], 1.0),
            (bottom, hu[::-1, row], found[::-1, row], dz / dy),
        ):
            axis.imshow(image, cmap="gray", vmin=-160, vmax=240, aspect=aspect)
            axis.imshow(areas, cmap=COLOURS, vmin=0, vmax=2, interpolation="nearest", aspect=aspect)
            axis.set_axis_off()
        for slice_ in drawn:
            bottom.axhline(len(labels) - 1 - slice_, color="white", linewidth=0.8, linestyle=":")
    figure.savefig(Path(__file__).with_name("complete.png"), dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
