"""Check that a changed kidseg trains and segments bit-identically to an earlier version.

    python benchmarks/same_results.py --old OTHER/CHECKOUT [--new CHECKOUT] [--work DIR]
                                      [--only NAME ...] [--json] [--self-test]

Two checkouts run the same small jobs on digital patients, on one CPU thread, only through the
command line. For each configuration both train with the same seed, and three held-out patients are
segmented three times: by the old code with the old model, by the new code with the new model, and
by the new code with the old model file. The benchmark compares

- the weights, bit by bit;
- log.jsonl (all but seconds), plan.json, the split, and the validation figures of summary.json;
- the labels, voxel by voxel, and every number in result.json that both have.

The exit code is 1 if anything differs, 2 if the old checkout itself fails. The results of the old
checkout are cached in DIR until its source or the job changes. `--self-test` alters copies of the
old checkout, one constant each, and checks that every alteration is detected where it acts.

List settings that were renamed in the new checkout in `NEW_NAMES`, and settings that only one
checkout accepts, or that have another meaning, in `old` and `new` of the configuration.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

SEED = 0
PATIENTS = {"training": (7, 3), "held-out": (3, 4)}
"""Number of patients, and their seed."""

NEW_NAMES: dict[str, str] = {
    "pose.fill": "pose.body_width",
    "pose.mirrored": "pose.flip",
    **{f"log:val_{name}": f"val_dice_{name}" for name in ("kidney", "kidney+tumour", "tumour")},
}
"""Names that the new checkout has changed: settings ("pose.levels") and, after "log:", "plan:" or
"tensor:", fields of log.jsonl, keys of plan.json and names or first parts of names of tensors."""

# After so few steps, the network predicts kidneys everywhere, and small differences change many
# voxels: its labels are more sensitive than those of a better network.
UNET = (
    "precision=fp32",
    "view.size=64",
    "unet.size=64",
    "unet.features=4",
    "segment.epochs=3",
    "segment.min_epochs=0",
    "segment.steps=3",
    "segment.batch_size=8",
)
POSE = (
    *UNET,
    "pose.localizer.size=32",
    "pose.stage.epochs=2",
    "pose.stage.min_epochs=0",
    "pose.stage.steps=6",
    "pose.stage.batch_size=8",
    "pose.stage.optimizer.learning_rate=0.003",
)
CROP = (
    "unet.size=32",
    "crop.output=half",
    "crop.localizer.size=32",
    "crop.stage.epochs=2",
    "crop.stage.min_epochs=0",
    "crop.stage.steps=6",
    "crop.stage.batch_size=8",
)
JOINT = (
    "schedule=joint",
    "joint.epochs=2",
    "joint.steps=4",
    "joint.batch_size=8",
    "pose.per=slice",
    "pose.mirrored=false",
)
PAPER = (
    "pose.start=identity",
    "pose.target=body",
    "pose.reference_mode=slice",
    "pose.iterations=1",
    "pose.per=slice",
    "pose.symmetry=0.0",
    "pose.teacher=0.0",
    "pose.mirrored=false",
    "pose.jitter_deg=0.0",
    "pose.jitter_scale=0.0",
    "pose.jitter_shift=0.0",
    "pose.cut=0.0",
    "pose.fill=null",
    "pose.localizer.head=dense",
)

Side = Literal["old", "new"]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One job for both checkouts; later settings win over earlier ones."""

    method: Literal["plain", "homogenized"]
    settings: tuple[str, ...]
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    ignore: bool = False  # train on patients with ignored voxels
    store: bool = False  # train from a store created by `kidseg store`

    def overrides(self, side: Side, renamed: bool) -> list[str]:
        out = []
        for setting in (*self.settings, *(self.old if side == "old" else self.new)):
            key, _, value = setting.partition("=")
            out.append(f"{NEW_NAMES.get(key, key) if renamed else key}={value}")
        return out


CONFIGURATIONS = {
    "plain": Configuration(method="plain", settings=UNET),
    "plain-nnunet": Configuration(method="plain", settings=(*UNET, "augment=nnunet")),
    "plain-bf16": Configuration(method="plain", settings=(*UNET, "precision=bf16")),
    "plain-ignore": Configuration(method="plain", settings=UNET, ignore=True),
    "pose": Configuration(method="homogenized", settings=(*POSE, "loss_space=network")),
    "pose-store": Configuration(
        method="homogenized",
        settings=(*POSE, "loss_space=network", "pose.moments=slice", "pose.bone=0.5"),
        store=True,
    ),
    "pose-original": Configuration(method="homogenized", settings=(*POSE, "loss_space=original")),
    "pose-ignore": Configuration(
        method="homogenized", settings=(*POSE, "loss_space=original"), ignore=True
    ),
    "pose-nnunet": Configuration(
        method="homogenized", settings=(*POSE, "loss_space=network", "augment=nnunet")
    ),
    "pose+crop": Configuration(method="homogenized", settings=(*POSE, *CROP)),
    "paper": Configuration(method="homogenized", settings=(*POSE, *PAPER)),
    "joint": Configuration(
        method="homogenized",
        settings=(*POSE, *CROP, *JOINT, "crop.per=slice", "crop.target=slice"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """A changed constant of the old checkout, and the results that must then differ."""

    name: str
    before: str
    after: str
    noticed: frozenset[str]
    configuration: str = "plain"


_TRAINING = frozenset({"tensors", "log"})
ALTERATIONS = (
    Alteration(
        name="the learning rate, by one part in 10 million",
        before="config.optimizer.learning_rate * (1 - gone)",
        after="config.optimizer.learning_rate * (1.0000001 - gone)",
        noticed=_TRAINING,
    ),
    Alteration(
        name="the order of the training slices",
        before="label_share: float = Field(default=1 / 3,",
        after="label_share: float = Field(default=1 / 2,",
        noticed=_TRAINING,
    ),
    Alteration(
        name="how the pose's teacher registers",
        before="_RATE = 0.02\n",
        after="_RATE = 0.021\n",
        noticed=_TRAINING,
        configuration="pose",
    ),
    Alteration(
        name="what is removed from the labels",
        before="config.body_radius_mm) ** 3",
        after="config.body_radius_mm) ** 1",
        noticed=frozenset({"labels", "old file"}),
    ),
)

ROWS = ("tensors", "log", "labels", "old file")


class TreeError(Exception):
    """A checkout failed to run a job."""


@dataclass
class Outcome:
    """The differences of a configuration by row; empty rows are equal."""

    differences: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tensors: int = 0
    voxels: int = 0

    @property
    def equal(self) -> bool:
        return not any(self.differences.values())


class Tree:
    """A checkout: runs its command line in child processes, on one thread."""

    def __init__(self, root: Path, work: Path) -> None:
        self.source = root.resolve() / "src"
        self.work = work
        if not (self.source / "kidseg").is_dir():
            raise TreeError(f"{root}: there is no src/kidseg")
        self.digest = _digest_of(self.source / "kidseg")
        found = self._python("-c", "import kidseg; print(kidseg.__file__)").stdout.strip()
        if not Path(found).is_relative_to(self.source):
            raise TreeError(f"{root}: Python would use {found} instead")

    def kidseg(self, *arguments: str | Path) -> float:
        """Run one command and return its seconds."""
        start = time.perf_counter()
        done = self._python("-m", "kidseg", *map(str, arguments))
        if done.returncode:
            said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise TreeError(f"kidseg {arguments[0]}, exit code {done.returncode}: {said}")
        return time.perf_counter() - start

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        paths = {"PYTHONPATH": str(self.source), "PYTHONSAFEPATH": "1"}  # and not the folder's own
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.work,
            env={**os.environ, **one, **paths},
            capture_output=True,
            text=True,
            check=False,
        )


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Two checkouts and the folders they work in."""

    old: Tree
    new: Tree
    kept: Path  # results of the old checkout
    fresh: Path  # results of the new checkout
    renamed: bool

    def compare(self, configuration: Configuration) -> Outcome:
        """Train and segment with both."""
        outcome = Outcome()
        old, seconds = self._old_run(configuration)
        outcome.seconds["old"] = seconds
        new = self.fresh / old.name
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        mine, theirs = old / "run", new / "run"
        model = mine / "model.safetensors"
        outcome.tensors = len(load_file(model))
        outcome.voxels = sum(int((v > 0).sum()) for v in _labels(old / "labels").values())
        try:
            outcome.seconds["new"] = self._train("new", configuration, new)
        except TreeError as error:
            found = {row: [f"new: {error}"] for row in ROWS[:3]}
        else:
            found = {
                "tensors": _listed(_tensor_differences(model, theirs / model.name)),
                "log": _listed(_log_differences(mine, theirs)),
                "labels": self._segmented(theirs / model.name, old / "labels", new / "labels"),
            }
        found["old file"] = self._segmented(model, old / "labels", new / "labels-old-file")
        if not outcome.voxels:
            found["labels"] = [*found["labels"], "no voxel is labelled: this compares nothing"]
        outcome.differences = found
        return outcome

    def _old_run(self, configuration: Configuration) -> tuple[Path, float]:
        """The old checkout's training and labels; created if they are missing."""
        job = repr((configuration, configuration.overrides("old", False), SEED, torch.__version__))
        out = self.kept / hashlib.sha256(job.encode()).hexdigest()[:16]
        finished = out / "seconds.json"
        if not finished.is_file():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            seconds = self._train("old", configuration, out)
            self._segment("old", out / "run" / "model.safetensors", out / "labels")
            finished.write_text(json.dumps(seconds))
        return out, json.loads(finished.read_text())

    def _train(self, side: Side, configuration: Configuration, out: Path) -> float:
        tree = self.old if side == "old" else self.new
        settings: list[str] = []
        for override in configuration.overrides(side, self.renamed and side == "new"):
            settings += ["--set", override]
        common = ["--method", configuration.method, "--seed", str(SEED), "--quiet", *settings]
        data, seconds = self.patients("training", configuration.ignore), 0.0
        if configuration.store:
            seconds += tree.kidseg("store", data, "-o", out / "store", *common)
            data = out / "store"
        return seconds + tree.kidseg("train", data, "-o", out / "run", "--device", "cpu", *common)

    def _segment(self, side: Side, model: Path, out: Path) -> None:
        tree = self.old if side == "old" else self.new
        scans = sorted((self.patients("held-out") / "imagesTr").iterdir())
        tree.kidseg("segment", *scans, "-m", model, "-o", out, "--device", "cpu", "--quiet")

    def _segmented(self, model: Path, labels: Path, out: Path) -> list[str]:
        """Segment with the new checkout and compare with existing labels."""
        try:
            self._segment("new", model, out)
        except TreeError as error:
            return [f"new: {error}"]
        return _listed(_label_differences(labels, out))

    def patients(self, which: str, ignore: bool = False) -> Path:
        """Digital patients of the old checkout; created if they are missing."""
        count, seed = PATIENTS[which]
        out = self.kept / f"{which}-{count}-{seed}"
        if not (out / "dataset.json").is_file():  # written last
            size = ["--size", "96", "--set", "max_slices=14"]
            start = ["phantom", out, "-n", str(count), "--seed", str(seed), "--quiet"]
            self.old.kidseg(*start, *size, *(["--overwrite"] if out.exists() else []))
        return _with_ignored(out) if ignore else out


def _with_ignored(data: Path) -> Path:
    """A copy of a dataset in which a block of every patient's voxels is ignored."""
    out = data.with_name(f"{data.name}-ignore")
    if (out / "dataset.json").is_file():
        return out
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(data, out, ignore=shutil.ignore_patterns("dataset.json"))
    for file in sorted((out / "labelsTr").iterdir()):
        image = nibabel.load(file)
        values = np.asarray(image.dataobj).astype(np.uint8)
        x, _, z = values.shape
        values[x // 3 : x // 2, :, z // 4 : z // 2] = 3
        values[: x // 8] = 3
        nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), file)
    content = json.loads((data / "dataset.json").read_text())
    content["labels"]["ignore"] = 3
    (out / "dataset.json").write_text(json.dumps(content))
    return out


def _listed(differences: Iterator[str]) -> list[str]:
    """List all differences; a missing or invalid file is one."""
    out = []
    try:
        out.extend(differences)
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        out.append(f"not comparable: {type(error).__name__}: {error}")
    return out


def _tensor_differences(old_file: Path, new_file: Path) -> Iterator[str]:
    old, new = load_file(old_file), load_file(new_file)
    if not old:
        yield "the old model has no tensors"
    names = {_renamed("tensor", name): name for name in old}
    for name in sorted(names.keys() ^ new.keys()):
        yield f"{name}: only in the {'new' if name in new else 'old'} model"
    for name in sorted(names.keys() & new.keys()):
        mine, theirs = old[names[name]], new[name]
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            old_kind, new_kind = ((t.dtype, tuple(t.shape)) for t in (mine, theirs))
            yield f"{name}: {old_kind} in the old model, {new_kind} in the new"
        elif mine.numpy(force=True).tobytes() != theirs.numpy(force=True).tobytes():
            apart = (mine.double() - theirs.double()).abs()
            yield f"{name}: {int((apart != 0).sum())} of {apart.numel()}, by up to {apart.max():g}"


def _log_differences(old: Path, new: Path) -> Iterator[str]:
    """Differences of the training logs."""
    lines = [_log(run / "log.jsonl") for run in (old, new)]
    if len(lines[0]) != len(lines[1]) or not lines[0]:
        yield f"log.jsonl: {len(lines[0])} lines in the old run, {len(lines[1])} in the new"
    for number, (mine, theirs) in enumerate(zip(*lines, strict=False), 1):
        yield from _field_differences(f"log.jsonl, line {number}", mine, theirs, "log")
    plans = [json.loads((run / "plan.json").read_text()) for run in (old, new)]
    yield from _field_differences("plan.json", *plans, "plan")
    for name in ("training", "validation"):
        mine, theirs = (
            json.loads((run / "cases.json").read_text()).get(name) for run in (old, new)
        )
        if mine != theirs:
            yield f"cases.json, {name}: {mine} in the old run, {theirs} in the new"
    summaries = [json.loads((run / "summary.json").read_text()) for run in (old, new)]
    for name in ("validation", "stages"):
        found = [summary.get(name) for summary in summaries]
        yield from _figure_differences(f"summary.json, {name}", *found)


def _log(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _field_differences(where: str, old: Any, new: Any, kind: str) -> Iterator[str]:
    """All differences of two JSON values, with keys of the new checkout and exact numbers."""
    mine = {_renamed_path(kind, key): value for key, value in _leaves(old)}
    theirs = dict(_leaves(new))
    for key in (*mine, *(key for key in theirs if key not in mine)):
        if key not in mine or key not in theirs:
            yield f"{where}: {key} only in the {'new' if key in theirs else 'old'} one"
        elif repr(mine[key]) != repr(theirs[key]):
            yield f"{where}: {key} was {mine[key]!r}, is {theirs[key]!r}"


def _label_differences(old: Path, new: Path) -> Iterator[str]:
    mine, theirs = _labels(old), _labels(new)
    if not mine or mine.keys() != theirs.keys():
        yield f"files {sorted(mine)} in the old run, {sorted(theirs)} in the new"
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name].shape != theirs[name].shape or mine[name].dtype != theirs[name].dtype:
            kinds = [f"{values.dtype}{values.shape}" for values in (mine[name], theirs[name])]
            yield f"{name}: {' in the old run, '.join(kinds)} in the new"
        elif count := int((mine[name] != theirs[name]).sum()):
            labelled = int((mine[name] > 0).sum())
            yield f"{name}: {count} voxels differ ({labelled} were labelled)"
        for key, values in _affines(old / name, new / name).items():
            yield f"{name}: {key} {values}"
    results = [json.loads((run / "result.json").read_text()) for run in (old, new)]
    scans = [{scan["name"]: scan for scan in result["scans"]} for result in results]
    for name in scans[0].keys() & scans[1].keys():
        yield from _figure_differences(f"result.json, {name}", *(s[name] for s in scans))


def _labels(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*_seg.nii.gz"))
    return {file.name: np.asarray(nibabel.load(file).dataobj) for file in files}


def _affines(old: Path, new: Path) -> dict[str, str]:
    mine, theirs = (nibabel.load(file).affine for file in (old, new))
    return {} if np.array_equal(mine, theirs) else {"position": f"was {mine}, is {theirs}"}


def _figure_differences(where: str, old: Any, new: Any) -> Iterator[str]:
    """Differences of the numbers that two JSON values share, by their path."""
    mine, theirs = (
        {key: value for key, value in _leaves(data) if _is_figure(key, value)}
        for data in (old, new)
    )
    common = [key for key in mine if key in theirs]
    if not common:
        yield f"{where}: no figure is in both"
    for key in common:
        if repr(mine[key]) != repr(theirs[key]):
            yield f"{where}: {key} was {mine[key]!r}, is {theirs[key]!r}"


def _is_figure(key: str, value: Any) -> bool:
    return isinstance(value, int | float) and "seconds" not in key.split("/")


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all JSON values that are not objects or arrays; empty ones are values."""
    if isinstance(node, Mapping | list) and node:
        entries = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in entries:
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, node


def _renamed(kind: str, name: str) -> str:
    """The name in the new checkout: renamed completely, or its first part before a dot."""
    part, dot, rest = name.partition(".")
    part = NEW_NAMES.get(f"{kind}:{part}", part)
    return NEW_NAMES.get(f"{kind}:{name}", f"{part}{dot}{rest}")


def _renamed_path(kind: str, path: str) -> str:
    return "/".join(NEW_NAMES.get(f"{kind}:{key}", key) for key in path.split("/"))


def _digest_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".py", ".toml"):
            digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _bench(old: Tree, new: Tree, work: Path, *, altered: bool = False) -> Bench:
    kept = work / f"old-{old.digest}"
    renamed = not altered and old.digest != new.digest
    return Bench(old=old, new=new, kept=kept, fresh=work / f"new-{new.digest}", renamed=renamed)


def check(bench: Bench, names: Sequence[str], as_json: bool) -> bool:
    """Compare all configurations; return whether everything is equal."""
    start = time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    if not as_json:
        print("| configuration | tensors | log | labels | old file by new code | s old / new |")
        print("|---|---|---|---|---|---|", flush=True)
    for name in names:
        outcomes[name] = bench.compare(CONFIGURATIONS[name])
        if not as_json:
            print(_row(name, outcomes[name]), flush=True)
    seconds = round(time.perf_counter() - start, 1)
    equal = all(outcome.equal for outcome in outcomes.values())
    if as_json:
        rows = {
            name: {**vars(outcome), "equal": outcome.equal} for name, outcome in outcomes.items()
        }
        print(json.dumps({"equal": equal, "seconds": seconds, "configurations": rows}, indent=2))
        return equal
    for name, outcome in outcomes.items():
        for row, lines in outcome.differences.items():
            for line in lines[:8]:
                print(f"{name}, {row}: {line}")
            if len(lines) > 8:
                print(f"{name}, {row}: and {len(lines) - 8} more (--json has all)")
    print(f"{'Everything is equal' if equal else 'NOT EQUAL'}, in {seconds} s.")
    return equal


def _row(name: str, outcome: Outcome) -> str:
    extra = {"tensors": outcome.tensors, "labels": f"{outcome.voxels} voxels"}
    cells = []
    for row in ROWS:
        lines = outcome.differences.get(row, [])
        cell = f"{len(lines)} DIFFER" if lines else "equal"
        if any(line.startswith("new: ") for line in lines):
            cell = "FAILED"
        cells.append(f"{cell} ({extra[row]})" if row in extra else cell)
    times = [f"{outcome.seconds[s]:.1f}" if s in outcome.seconds else "-" for s in ("old", "new")]
    return f"| {name} | {' | '.join(cells)} | {' / '.join(times)} |"


def self_test(old: Tree, work: Path) -> bool:
    """Alter copies of the old checkout; return whether each alteration is detected."""
    good = True
    for alteration in ALTERATIONS:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            altered = Tree(_altered(old, alteration, Path(folder)), work)
            bench = _bench(old, altered, work, altered=True)
            outcome = bench.compare(CONFIGURATIONS[alteration.configuration])
            shutil.rmtree(bench.fresh)
        noticed = {row for row, lines in outcome.differences.items() if lines}
        missed = alteration.noticed - noticed
        print(f"{alteration.name}: differences in {', '.join(sorted(noticed)) or 'nothing'}")
        if missed:
            print(f"{alteration.name}: NOT NOTICED in {', '.join(sorted(missed))}")
        good = good and not missed
    return good


def _altered(tree: Tree, alteration: Alteration, folder: Path) -> Path:
    shutil.copytree(tree.source, folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    files = [
        file
        for file in sorted((folder / "src").rglob("*.py"))
        if alteration.before in file.read_text(encoding="utf-8")
    ]
    if len(files) != 1:
        raise TreeError(f"'{alteration.before}' is in {len(files)} files: choose another text")
    text = files[0].read_text(encoding="utf-8")
    files[0].write_text(text.replace(alteration.before, alteration.after), encoding="utf-8")
    return folder


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--new", type=Path, default=Path(__file__).parents[1], help="[this one]")
    parser.add_argument("--work", type=Path, help="folder to keep; a temporary one by default")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, metavar="NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--self-test", action="store_true", help="is an altered copy noticed?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        try:
            old = Tree(options.old, work)
            if options.self_test:
                good = self_test(old, work)
            else:
                bench = _bench(old, Tree(options.new, work), work)
                good = check(bench, options.only or list(CONFIGURATIONS), options.json)
        except TreeError as error:
            print(error, file=sys.stderr)
            return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
