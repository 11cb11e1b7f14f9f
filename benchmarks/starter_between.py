"""A model between one and what it became by fine-tuning: the mean of their weights.

    python benchmarks/starter_between.py BEFORE AFTER -o OUT

Fine-tuning on new patients costs something on the old ones; the mean of both models keeps most of
both. The header is that of AFTER; if AFTER alone sees neighbouring slices, those of BEFORE count
nothing. Pose and crop are taken from AFTER, because they belong to its reference.

Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022 (weight-space ensembles,
mixing coefficient 0.5).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from kidseg.checkpoint import load_model, save_model
from kidseg.model_file import find_model
from kidseg.train.tuning import between_neighbours

SHARE = 0.5
PART = "segment"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("before", type=find_model)
    parser.add_argument("after", type=find_model)
    parser.add_argument("--out", "-o", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    given = parser.parse_args()
    before, after = load_model(given.before), load_model(given.after)
    mixed = between(before.parts[PART], after.parts[PART])
    header = {key: value for key, value in after.header.items() if key not in ("sha256", "format")}
    sha256 = save_model(given.out, {**after.parts, PART: mixed}, header, overwrite=given.overwrite)
    print(f"{given.out}: sha256 {sha256}")


def between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of all tensors of floating point; the others as after."""
    if before.keys() != after.keys():
        raise SystemExit("these are not the same network")

    def mean(old: Tensor, new: Tensor) -> Tensor:
        if old.shape != new.shape:
            old = between_neighbours(old, new.shape[1] // old.shape[1])
        return old.lerp(new, SHARE)

    return {
        name: mean(before[name], tensor) if tensor.is_floating_point() else tensor
        for name, tensor in after.items()
    }


if __name__ == "__main__":
    main()
