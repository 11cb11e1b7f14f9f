"""Write the model card of the starter, and the range of its training patients, into its file.

    python benchmarks/starter_card.py MODEL --card card.toml [--data DATASET] -o OUT

The card is a TOML file with the fields of `kidseg.model_card.ModelCard`; each of `measured` is a
table `[[measured]]`. With --data, a data set or store of the patients that the model was trained
on, their range is measured (again): a model that an earlier kidseg trained knows no HU.
"""

from __future__ import annotations

import argparse
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from kidseg.cases import open_dataset
from kidseg.checkpoint import with_description
from kidseg.cohort.cohort import gather_cohort
from kidseg.model_card import ModelCard
from kidseg.model_file import find_model
from kidseg.segment import load_predictor
from kidseg.store import is_store, open_store
from kidseg.train import Setup, make_store
from kidseg.train.trained_model import measured_range


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=find_model)
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="data set or store of the training")
    parser.add_argument("--out", "-o", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    given = parser.parse_args()
    card = ModelCard.from_dict(tomllib.loads(given.card.read_text(encoding="utf-8")))
    description: dict[str, Any] = {"model_card": card.as_dict(), "licence": card.licence}
    if given.data is not None:
        with tempfile.TemporaryDirectory() as folder:
            description["training_range"] = ranges(given.model, given.data, Path(folder))
    sha256 = with_description(given.model, given.out, description, overwrite=given.overwrite)
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB, sha256 {sha256}")


def ranges(model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """The ranges of the patients in a store or data set that the model was trained on."""
    method = load_predictor(model, "cpu").method
    config: Any = method.config
    if not is_store(data):
        training = set(method.plan.training)
        others = [name for name in open_dataset(data).by_id if name not in training]
        make_store(data, folder / "store", Setup(start=model, validation=others))
        data = folder / "store"
    cohort = gather_cohort(
        open_store(data), config.cohort, lambda plan: method.material(config, plan), method.plan
    )
    if set(cohort.plan.training) != set(method.plan.training):
        raise SystemExit(f"{data} is not what {model} was trained on")
    return measured_range(method, cohort)


if __name__ == "__main__":
    main()
