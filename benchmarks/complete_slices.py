"""Measure `kidseg complete`: of each scan one slice in so many is drawn, the others are scored.

    kidseg phantom patients --patients 12 --ages 0-90 --size 256 --seed 6021 --set slice_mm=[3,5] \\
        --set neighbour_share=1.0
    OMP_NUM_THREADS=1 python benchmarks/complete_slices.py patients -o OUT --every 6

Drawn slices are copied from the reference: of those with kidney or tumour one in so many, the first
of them in the middle of a gap. Dice of each patient over all slices that are not drawn, of
    model          the model as it is
    complete       kidseg complete, of the same model
    interpolation  shape-based interpolation between the drawn slices (Raya and Udupa 1990)
    scratch        kidseg complete of a network with random weights, for so many steps
A line per case in OUT/rows.jsonl, and a table in OUT/complete.md. A run that was stopped goes on;
what is there is not done again, so give other models and steps a folder of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from kidseg.cases import open_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.complete import complete
from kidseg.config import METHODS, load
from kidseg.device import choose_device
from kidseg.geometry import Volume
from kidseg.geometry.between_slices import distances_mm
from kidseg.io import ReadOptions, read, save
from kidseg.members import members_of
from kidseg.methods import method_named
from kidseg.model_file import find_model
from kidseg.plan import Plan
from kidseg.segment import segment
from kidseg.segment.trained_method import target_of

AS_LABELS = ReadOptions(values="labels")
REGIONS = {"kidney": (1,), "kidney+tumour": (1, 2), "tumour": (2,)}


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan and its reference labels."""

    name: str
    image: Path
    labels: Path


def scans_of(data: Path) -> Iterator[Scan]:
    """The labelled cases of a data set; or the pairs <case>_ct.nii.gz, <case>_kidney.nii.gz."""
    pairs = sorted(data.glob("*_kidney.nii.gz")) + sorted(data.glob("kidney.nii.gz"))
    for labels in pairs:
        image = labels.with_name(labels.name.replace("kidney.", "ct."))
        yield Scan(name=labels.name.split(".")[0], image=image, labels=labels)
    if not pairs:
        for case in open_dataset(data).cases:
            if case.labels is not None:
                yield Scan(name=case.id, image=case.images[0], labels=case.labels)


def drawn_slices(labels: np.ndarray, every: int) -> list[int]:
    """The slices that are drawn, of (slices, rows, columns) labels."""
    shown = np.flatnonzero(labels.any((1, 2)))
    return [int(k) for k in shown[every // 2 :: every]]


def interpolated(
    labels: np.ndarray, drawn: Sequence[int], spacing_mm: Sequence[float]
) -> np.ndarray:
    """The labels between drawn slices by shape-based interpolation; nothing beyond them."""
    out = np.zeros_like(labels)
    mass, tumour = (
        distances_mm(region[list(drawn)], spacing_mm, 0, 1) for region in (labels > 0, labels == 2)
    )
    for k in range(drawn[0], drawn[-1] + 1):
        after = int(np.searchsorted(drawn, k))
        before = after if drawn[after] == k else after - 1
        gap = drawn[after] - drawn[before]
        share = (k - drawn[before]) / gap if gap else 0.0
        inside, of_tumour = (
            (1 - share) * known[before] + share * known[after] > 0 for known in (mass, tumour)
        )
        out[k] = np.where(inside, np.where(of_tumour, 2, 1), 0)
    return out


def dice(found: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """Dice of each region; None if it is empty in both."""
    out: dict[str, float | None] = {}
    for name, numbers in REGIONS.items():
        a, b = (np.isin(labels, numbers) for labels in (found, reference))
        total = int(a.sum()) + int(b.sum())
        out[name] = 2 * int((a & b).sum()) / total if total else None
    return out


def random_model(model: Path, out: Path) -> None:
    """A model file like a member of this one, with random weights and three times its rate."""
    member = next(m for m in members_of(load_model(model)) if m.header["method"] == "plain")
    header = dict(member.header)
    config = load(METHODS["plain"], base=header["config"])
    plan = Plan.from_dict(header["plan"], model)
    device = choose_device("cpu", config.precision)
    method = method_named("plain").build(config, target_of(header), plan, device=device)
    rate = 3 * config.segment.optimizer.learning_rate
    segment_settings = dict(header["config"]["segment"])
    segment_settings["optimizer"] = {**segment_settings["optimizer"], "learning_rate": rate}
    header["config"] = {**header["config"], "segment": segment_settings}
    parts = {name: net.state_dict() for name, net in method.parts.items()}
    save_model(out, parts, header)


def measured(
    scan: Scan, every: int, wanted: Sequence[str], model: Path, scratch: int, steps: int | None
) -> list[dict]:
    """The rows of a scan, of these of the four ways."""
    reference = read(scan.labels, AS_LABELS).volume
    labels = reference.data[0].numpy().astype(np.uint8)
    drawn = drawn_slices(labels, every)
    if len(drawn) < 2:
        return []
    left = np.setdiff1d(np.arange(len(labels)), drawn)
    copied = np.zeros_like(labels)
    copied[drawn] = labels[drawn]
    rows = []
    with TemporaryDirectory() as folder:
        file = Path(folder) / "drawn.nii.gz"
        save(Volume(torch.from_numpy(copied)[None], reference.grid), file)

        def row(how: str, found: np.ndarray, seconds: float) -> None:
            rows.append(
                {
                    "case": scan.name,
                    "every": every,
                    "how": how,
                    "drawn": len(drawn),
                    "slices": len(labels),
                    "dice": dice(found[left], labels[left]),
                    "cpu_s": round(seconds, 2),
                }
            )
            print(json.dumps(rows[-1]), flush=True)

        def result(out: Path) -> np.ndarray:
            (path,) = out.glob("*_seg.nii.gz")
            return read(path, AS_LABELS).volume.data[0].numpy()

        out = Path(folder)
        if "interpolation" in wanted:
            spacing_mm = reference.grid.spacing_mm.tolist()
            row("interpolation", interpolated(copied, drawn, spacing_mm), 0.0)
        start = time.process_time()
        if "model" in wanted:
            segment([scan.image], model, out / "model")
            row("model", result(out / "model"), time.process_time() - start)
        start = time.process_time()
        if "complete" in wanted:
            complete(scan.image, file, out / "complete", model=model, steps=steps)
            row("complete", result(out / "complete"), time.process_time() - start)
        start = time.process_time()
        if "scratch" in wanted:
            random_model(model, out / "random.safetensors")
            random = out / "random.safetensors"
            complete(scan.image, file, out / "scratch", model=random, steps=scratch)
            row("scratch", result(out / "scratch"), time.process_time() - start)
    return rows


def table(rows: Sequence[dict]) -> str:
    """Mean (SD over patients) of each way, and the least."""
    lines = [
        "| one slice in | | n | kidney | kidney+tumour | tumour | worst kidney+tumour | CPU s |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for every in sorted({row["every"] for row in rows}):
        for how in ("model", "interpolation", "scratch", "complete"):
            chosen = [row for row in rows if (row["every"], row["how"]) == (every, how)]
            if not chosen:
                continue
            cells = [f"{every}", how, str(len(chosen))]
            for region in REGIONS:
                known = [d for row in chosen if (d := row["dice"][region]) is not None]
                spread = statistics.stdev(known) if len(known) > 1 else 0.0
                cells.append(f"{statistics.mean(known):.3f} ({spread:.3f})" if known else "-")
            both = [d for row in chosen if (d := row["dice"]["kidney+tumour"]) is not None]
            cells.append(f"{min(both):.3f}" if both else "-")
            cells.append(f"{statistics.median(row['cpu_s'] for row in chosen):.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("-m", "--model", default="starter")
    parser.add_argument("--every", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--steps", type=int, help="of kidseg complete; by default its own")
    parser.add_argument("--scratch", type=int, default=0, help="steps from random weights; 0: none")
    parser.add_argument("--cases", type=int, help="the first so many")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    ways = ["interpolation", "model", "complete", *(["scratch"] if given.scratch else [])]
    done = {(row["case"], row["every"], row["how"]) for row in rows}
    for scan in list(scans_of(given.data))[: given.cases]:
        for every in given.every:
            wanted = [how for how in ways if (scan.name, every, how) not in done]
            if not wanted:
                continue
            model = find_model(given.model)
            new = measured(scan, every, wanted, model, given.scratch, given.steps)
            with file.open("a") as out:
                out.writelines(json.dumps(row) + "\n" for row in new)
            rows += new
    (given.out / "complete.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
