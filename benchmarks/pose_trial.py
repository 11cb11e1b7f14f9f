"""Evaluate the pose stage alone, on digital patients with known pose and size.

    python benchmarks/pose_trial.py -o OUT [--train 46 --test 60 --seed 101] [-k NAME ...]
                                    [--json] [--docs docs]

Trains the pose stage of each way with the training loop on patients of one seed, and evaluates it
on held-out patients of another (seed + 202). Baselines are the scans without a pose, image moments,
and registration with known labelled slices. Some held-out patients are rendered again: bare, with
arms, on a table, and with a cropped field of view. OUT keeps the patients, the trained networks and
the figures, so that a second call is fast; -k repeats only the named ways.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kidseg.body import Moments, normalized
from kidseg.cases import open_dataset
from kidseg.cases.reading import CaseReader
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.frame import frame
from kidseg.cohort.subject import Subject, prepare
from kidseg.config import (
    CohortConfig,
    HomogenizedConfig,
    PhantomConfig,
    PoseConfig,
    ViewConfig,
    load,
    preset,
)
from kidseg.geometry import Grid, Volume
from kidseg.labels import Target
from kidseg.losses import soft_dice
from kidseg.methods.homogenized.pose_stage import PoseTransformer, register
from kidseg.methods.homogenized.reference import Reference, choose_reference, start_grid
from kidseg.methods.homogenized.scene import MASKS, masks_on
from kidseg.methods.homogenized.system_a import Homogenized
from kidseg.nets import build
from kidseg.nets.stn import pose_outputs
from kidseg.phantom import make_patient, write_patients
from kidseg.plan import Plan, fingerprint, plan
from kidseg.train import Run, fit

PATIENTS = PhantomConfig(size=128, max_slices=24, max_angle_deg=25.0)
VIEW = ViewConfig(size=128)
SIDE, MULTIPLE = 128, 8
# Fraction of the trunk's width that is cut off on the left, and of its depth in front.
CUT_LEFT, CUT_FRONT = 0.10, 0.05
BEGIN, END = "<!-- benchmarks/pose_trial.py -->", "<!-- end -->"

Locate = Callable[[Subject], Grid]


@dataclass(frozen=True, eq=False)
class Patient:
    """A held-out patient with its ground truth."""

    subject: Subject
    truth: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Way:
    """A way to find poses: its reference and its locate function."""

    config: PoseConfig
    reference: Reference
    locate: Callable[[Patient], Grid]
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=46)
    parser.add_argument("--validation", type=int, default=12)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--paired", type=int, default=20, help="test patients rendered four ways")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--paper-size", type=int, default=128, help="pixels of the paper's network")
    parser.add_argument("-k", "--only", nargs="*", help="ways to do again, or for the first time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--docs", type=Path, help="folder of pose.md, whose tables it writes, and pose.png"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    cohort = training_cohort(options)
    names = list(ways(options.paper_size)) if options.only is None else options.only
    held_out: list[Patient] = []
    twins: dict[str, list[Patient]] = {}
    results = {}
    for name in ways(options.paper_size):
        kept = options.out / "ways" / f"{name}.json"
        if name not in names or (options.only is None and kept.exists()):
            if kept.exists():
                results[name] = json.loads(kept.read_text())
            continue
        way = made(name, cohort, options)
        if not held_out:
            held_out = test_patients(options, cohort.plan)
            twins = paired_patients(options, cohort.plan)
        rows = {"all": [measured(p, way) for p in held_out]}
        rows |= {kind: [measured(p, way) for p in group] for kind, group in twins.items()}
        results[name] = {"seconds": way.seconds, "rows": rows}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(results[name]))
        print(name, json.dumps(figures(rows["all"])), flush=True)
    table = {
        name: {kind: figures(rows) for kind, rows in r["rows"].items()}
        for name, r in results.items()
    }
    if options.docs is not None:
        held_out = held_out or test_patients(options, cohort.plan)
        page = options.docs / "pose.md"
        before, rest = page.read_text().split(BEGIN)
        written = markdown(results, table, len(cohort.index), options)
        page.write_text(f"{before}{BEGIN}\n\n{written}\n{END}{rest.split(END)[1]}")
        draw(held_out, cohort, results, options)
    print(
        json.dumps(table, indent=2)
        if options.json
        else markdown(results, table, len(cohort.index), options)
    )


def ways(paper_size: int) -> dict[str, PoseConfig]:
    """The ways by name; the input of the paper's network is `paper_size` x `paper_size` pixels."""
    paper = load(HomogenizedConfig, base=preset("paper-128", "homogenized")).pose
    paper = replace(paper, localizer=replace(paper.localizer, size=paper_size))
    default = HomogenizedConfig().pose

    def optimised(**changes: Any) -> PoseConfig:
        """Without the factor 100 of the loss, and with clipped gradients."""
        optimizer = replace(paper.stage.optimizer, clip_norm=12.0, **changes)
        return replace(paper, loss_scale=1.0, stage=replace(paper.stage, optimizer=optimizer))

    plain = replace(default, symmetry=0.0, bone=0.0)
    return {
        "untouched": plain,
        "moments of each slice": replace(plain, moments="slice"),
        "moments of the volume": plain,
        "paper (SGD 0.01)": paper,
        "paper without its factor 100": optimised(),
        "paper, momentum 0.9": optimised(momentum=0.9),
        "paper, Adam 0.001": optimised(name="adam", learning_rate=1e-3),
        "default": default,
        "default, no mirror images": replace(default, symmetry=0.0, flip=False),
        "default, bone of the reference": replace(default, symmetry=0.0, flip=False, bone=1.0),
        "bound: registration": default,
        "bound: registration, body alone": replace(plain, target="body"),
    }


def made(name: str, cohort: Cohort, options: argparse.Namespace) -> Way:
    """Make a way, and train it if it is learned."""
    config = ways(options.paper_size)[name]
    reference = adopted(config, cohort)
    # All ways are measured the same: body and bone, at matching slices, at one resolution.
    seen = replace(
        config,
        reference_mode="volume",
        target="body+bone",
        localizer=replace(config.localizer, size=SIDE),
    )
    judge = adopted(seen, cohort)
    if name == "untouched":
        return Way(seen, judge, lambda p: as_it_lies(p.subject, judge))
    if name.startswith("moments"):
        return Way(seen, judge, lambda p: start_of(p.subject, config, judge, cohort.plan))
    if name.startswith("bound"):
        return Way(seen, judge, lambda p: teacher(p.subject, config, reference, cohort.plan))
    pose = fresh(config, reference, cohort)
    folder = options.out / "runs" / name.replace(" ", "-")
    trained = folder / "net.pt"
    if trained.exists() and name not in (options.only or ()):
        kept = torch.load(trained, weights_only=True)
        pose.net.load_state_dict(kept["net"])
    else:
        begun = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*"):
            old.unlink()
        fit(pose.stage(cohort), Run(folder=folder, device=torch.device("cpu"), seed=0))
        kept = {"net": pose.net.state_dict(), "seconds": time.perf_counter() - begun}
        torch.save(kept, trained)
    pose.net.eval().requires_grad_(False)
    return Way(seen, judge, lambda p: pose.locate(pose.scene(p.subject)), kept["seconds"])


def fresh(config: PoseConfig, reference: Reference, cohort: Cohort) -> PoseTransformer:
    inputs, outputs = 1 + MASKS[config.target], pose_outputs(config.localizer)
    return PoseTransformer(
        net=build(config.localizer, inputs, outputs, seed=0),
        config=config,
        reference=reference,
        base=lambda subject: base_of(subject, cohort.plan),
    )


def base_of(subject: Subject, made_plan: Plan) -> Grid:
    return frame(subject, VIEW, made_plan, MULTIPLE).base


def start_of(subject: Subject, config: PoseConfig, reference: Reference, made_plan: Plan) -> Grid:
    return start_grid(subject, base_of(subject, made_plan), config, reference)


def adopted(config: PoseConfig, cohort: Cohort) -> Reference:
    """The medoid of the training patients as the reference."""
    bases = [base_of(subject, cohort.plan) for subject in cohort.training]
    number = choose_reference(cohort.training, bases, None)
    reference = Reference(config)
    reference.adopt(cohort.training[number], bases[number], config)
    return reference


def teacher(subject: Subject, config: PoseConfig, reference: Reference, made_plan: Plan) -> Grid:
    start = start_of(subject, config, reference, made_plan)
    return register([subject], [start], config, reference)[0]


def as_it_lies(subject: Subject, reference: Reference) -> Grid:
    """Centred on the body, in the reference's field of view, neither rotated nor scaled."""
    radii = reference.radii_mm
    assert subject.body is not None
    own = Moments(subject.body.whole.centre_mm, torch.zeros(()).double(), radii)
    return brought(subject, own, reference)


def brought(subject: Subject, own: Moments, reference: Reference) -> Grid:
    long, short = (float(radius) for radius in reference.radii_mm)
    field = float(reference.field_mm)
    grid = subject.image.grid
    return normalized(grid, own, radii_mm=(long, short), field_mm=field, size=SIDE).slicewise()


def angles_deg(grid: Grid, truth: dict[str, Any]) -> np.ndarray:
    """(slices,) angle between a grid's columns and the patient's left-right axis, -90..90."""
    axis = np.array(truth["scanner_from_anatomy"])[:2, 0]
    columns = grid.slicewise().mm_from_index.numpy()[:, :2, 2]
    cross = axis[0] * columns[:, 1] - axis[1] * columns[:, 0]
    turned = np.degrees(np.arctan2(cross, columns @ axis))
    # Rows and columns run to posterior and left; the sign is that of a rotation from columns to
    # rows.
    return np.asarray((turned + 90.0) % 180.0 - 90.0)


def measured(patient: Patient, way: Way) -> dict[str, Any]:
    """Measure one patient on its labelled slices."""
    subject, truth = patient.subject, patient.truth
    grid = way.locate(patient)
    first, last = subject.labelled_or_all
    looked = grid.resized((grid.shape[0], SIDE, SIDE))
    count = MASKS[way.config.target]
    assert subject.masks is not None
    masks = masks_on(subject.masks, looked, count)[first : last + 1]
    levels = [way.reference.level(subject, k) for k in range(first, last + 1)]
    dice = soft_dice(masks, way.reference.targets(levels))
    spacing = grid.slicewise().spacing_mm[first : last + 1]
    side = (spacing[:, 1] * spacing[:, 2]).sqrt() * SIDE
    size = torch.log(side / way.reference.field_mm / truth["effective_diameter_mm"])
    return {
        "id": subject.id,
        "true_angle_deg": truth["pose"]["angle_deg"],
        "arms": truth["pose"]["arms"],
        "table": truth["scanner"]["table"] is not None,
        "body": dice[:, 0].tolist(),
        "bone": dice[:, 1].tolist(),
        "angle_deg": angles_deg(grid, truth)[first : last + 1].tolist(),
        "size": size.tolist(),
    }


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Summary over slices, or over patients where the name says so."""
    body = [statistics.fmean(row["body"]) for row in rows]
    angle = np.concatenate([row["angle_deg"] for row in rows])
    of_patients = np.array([statistics.median(row["angle_deg"]) for row in rows])
    size = np.concatenate([row["size"] for row in rows])
    size_of_patients = [statistics.median(row["size"]) for row in rows]
    slices = np.concatenate([row["body"] for row in rows])
    return {
        "patients": len(rows),
        "slices": len(angle),
        "body": statistics.fmean(body),
        "body_sd": statistics.stdev(body),
        "body_slices": float(slices.mean()),
        "body_slices_sd": float(slices.std(ddof=1)),
        "bone": statistics.fmean(statistics.fmean(row["bone"]) for row in rows),
        "angle_median_deg": float(np.median(np.abs(angle))),
        "angle_mean_deg": float(np.abs(angle).mean()),
        "angle_p90_deg": float(np.percentile(np.abs(angle), 90)),
        "angle_spread_deg": float(np.std(of_patients - np.median(of_patients), ddof=1)),
        "size_spread": float(size.std(ddof=1)),
        "size_spread_patients": statistics.stdev(size_of_patients),
    }


def training_cohort(options: argparse.Namespace) -> Cohort:
    folder = options.out / "training"
    write_once(folder, options.train + options.validation, options.seed)
    data = open_dataset(folder)
    only = replace(data, cases=data.cases[: options.train])
    made_plan = plan(fingerprint(only), only.schema)
    subjects = subjects_in(folder, made_plan)
    return Cohort(
        training=tuple(subjects[: options.train]),
        validation=tuple(subjects[options.train :]),
        schema=data.schema,
        target=Target.of_labels(data.schema),
        plan=made_plan,
        config=CohortConfig(),
    )


def test_patients(options: argparse.Namespace, made_plan: Plan) -> list[Patient]:
    folder = options.out / "held-out"
    write_once(folder, options.test, options.seed + 202)
    return [
        Patient(subject, json.loads((folder / "truth" / f"{subject.id}.json").read_text()))
        for subject in subjects_in(folder, made_plan)
    ]


def subjects_in(folder: Path, made_plan: Plan) -> list[Subject]:
    data = open_dataset(folder)
    reader = CaseReader.of_dataset(data)
    out = []
    for case in data.cases:
        read = reader.read(case)
        out.append(prepared(read.image, read.labels, case.id, made_plan))
    return out


def prepared(scan: Volume, labels: Volume | None, name: str, made_plan: Plan) -> Subject:
    material = Homogenized.material(HomogenizedConfig(view=VIEW), made_plan)
    return prepare(scan, material, made_plan.channels, name=name, labels=labels)


def write_once(folder: Path, patients: int, seed: int) -> None:
    if not (folder / "dataset.json").exists():
        write_patients(folder, PATIENTS, patients=patients, seed=seed, overwrite=True)


def paired_patients(options: argparse.Namespace, made_plan: Plan) -> dict[str, list[Patient]]:
    """The first test patients: bare, with arms, on a table, and bare with a cropped field."""
    kinds = {"bare": (False, False), "arms": (True, False), "table": (False, True)}
    out: dict[str, list[Patient]] = {kind: [] for kind in (*kinds, "cut")}
    folder = options.out / "paired"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(options.paired):
        for kind, (arms, table) in kinds.items():
            file = folder / f"{kind}-{index}.pt"
            if not file.exists():
                made_one = make_patient(
                    PATIENTS, seed=options.seed + 202, index=index, arms=arms, table=table
                )
                tensors = (
                    made_one.scan.data,
                    made_one.labels.data,
                    made_one.scan.grid.mm_from_index,
                )
                torch.save((*tensors, json.dumps(made_one.truth)), file)
            scan, labels, matrix, text = torch.load(file, weights_only=True)
            truth = json.loads(text)
            grid = Grid(tuple(scan.shape[1:]), matrix)
            out[kind].append(
                readied(Volume(scan, grid), Volume(labels, grid), truth, made_plan, index)
            )
            if kind == "bare":
                cut = field_cut(out[kind][-1], grid)
                out["cut"].append(
                    readied(
                        Volume(scan[cut], grid.crop(*corner(cut, scan.shape))),
                        Volume(labels[cut], grid.crop(*corner(cut, scan.shape))),
                        truth,
                        made_plan,
                        index,
                    )
                )
    return out


def field_cut(patient: Patient, grid: Grid) -> tuple[slice, ...]:
    """The remaining part of a scan if a flank and some of the front are outside the field."""
    assert patient.subject.masks is not None
    there = patient.subject.masks.data[0].amax(0) > 127
    rows, columns = (there.any(axis).nonzero()[:, 0] for axis in (1, 0))
    # The image may be coarser than the scan.
    factor = grid.shape[1] / there.shape[0]
    top, bottom = float(rows[0]) * factor, float(rows[-1] + 1) * factor
    left, right = float(columns[0]) * factor, float(columns[-1] + 1) * factor
    return (
        slice(None),
        slice(None),
        slice(round(top + CUT_FRONT * (bottom - top)), None),
        slice(round(left + CUT_LEFT * (right - left)), None),
    )


def corner(cut: tuple[slice, ...], shape: Sequence[int]) -> tuple[list[int], list[int]]:
    first = [0, cut[2].start, cut[3].start]
    return first, [shape[1], shape[2] - first[1], shape[3] - first[2]]


def readied(
    scan: Volume, labels: Volume, truth: dict[str, Any], made_plan: Plan, index: int
) -> Patient:
    name = f"phantom_{index:04d}"
    return Patient(prepared(scan, labels, name, made_plan), truth)


def markdown(
    results: dict[str, Any], table: dict[str, Any], slices: int, options: argparse.Namespace
) -> str:
    """The tables of docs/pose.md."""
    command = (
        f"python benchmarks/pose_trial.py -o OUT --train {options.train} --validation "
        f"{options.validation} --test {options.test} --paired {options.paired} "
        f"--seed {options.seed} --paper-size {options.paper_size}"
    )
    one = next(iter(table.values()))["all"]
    lines = [
        f"    {command}",
        "",
        f"{options.train} training patients ({slices} slices), {one['patients']} held-out patients "
        f"({one['slices']} labelled slices). The paper's network looks at {options.paper_size} x "
        f"{options.paper_size} pixels. Seconds are of one core, shared with other work.",
        "",
        "| way | overlap, patients | overlap, slices | angle error: median, mean, p90 (deg) | "
        "spread of angle (deg) | spread of size | training (s) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, kinds in table.items():
        f = kinds["all"]
        seconds = results[name]["seconds"]
        lines.append(
            f"| {name} | {f['body']:.3f} ({f['body_sd']:.3f}) | {f['body_slices']:.3f} "
            f"({f['body_slices_sd']:.3f}) | {f['angle_median_deg']:.1f}, "
            f"{f['angle_mean_deg']:.1f}, {f['angle_p90_deg']:.1f} | "
            f"{f['angle_spread_deg']:.1f} | {f['size_spread']:.3f} | "
            f"{f'{seconds:.0f}' if seconds else '-'} |"
        )
    lines += [
        "",
        f"The first {options.paired} held-out patients, rendered again: overlap; median and 90th "
        "percentile of the angle's error (deg); spread of size.",
        "",
        "| way | bare | arms beside the body | on a table | field of view cut |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, kinds in table.items():
        cells = [
            f"{f['body']:.3f}; {f['angle_median_deg']:.1f}, {f['angle_p90_deg']:.1f}; "
            f"{f['size_spread']:.3f}"
            for f in (kinds[kind] for kind in ("bare", "arms", "table", "cut"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(
    patients: Sequence[Patient],
    cohort: Cohort,
    results: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """Draw superimposed outlines and bones, and true against found angles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = ways(options.paper_size)["default"]
    reference = adopted(config, cohort)
    pose = fresh(config, reference, cohort)
    kept = torch.load(options.out / "runs" / "default" / "net.pt", weights_only=True)
    pose.net.load_state_dict(kept["net"])
    pose.net.eval().requires_grad_(False)
    locates: dict[str, Locate] = {
        "as they lie": lambda s: as_it_lies(s, reference),
        "moments": lambda s: start_of(s, config, reference, cohort.plan),
        "learned": lambda s: pose.locate(pose.scene(s)),
    }
    figure = Figure(figsize=(15.0, 4.1), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4)
    for ax, (title, locate) in zip(axes, locates.items(), strict=False):
        bones = np.zeros((SIDE, SIDE))
        for patient in patients:
            k = patient.subject.fullest
            grid = locate(patient.subject).slices(k, k + 1)
            masks = patient.subject.masks
            assert masks is not None
            body, bone = masks_on(masks.slices(k, k + 1), grid, 2)[0].numpy()
            bones += bone / len(patients)
            ax.contour(body, [0.5], colors=["#0072B2"], linewidths=0.6, alpha=0.45)
        ax.imshow(bones, cmap="Greys", vmin=0, vmax=0.6)
        ax.set_title(f"{title}: {len(patients)} outlines, mean bone", fontsize=10)
        ax.set_axis_off()
    ax = axes[3]
    for name, colour, mark in (
        ("moments of the volume", "#D55E00", "x"),
        ("default", "#0072B2", "o"),
    ):
        rows = results[name]["rows"]["all"]
        true = np.array([row["true_angle_deg"] for row in rows])
        off = np.array([statistics.median(row["angle_deg"]) for row in rows])
        ax.scatter(true, true + off, s=14, c=colour, marker=mark, label=name, alpha=0.8)
    ax.plot([-25, 25], [-25, 25], c="#888888", linewidth=0.8)
    ax.set_xlabel("true angle (deg)")
    ax.set_ylabel("found angle (deg)")
    ax.set_aspect("equal")
    ax.legend(fontsize=8)
    figure.savefig(options.docs / "pose.png", dpi=90)


if __name__ == "__main__":
    main()
