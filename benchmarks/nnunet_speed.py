"""Peer benchmark: speed and memory compared with the real nnU-Net v2, in the same run.

    python benchmarks/nnunet_speed.py --peer PYTHON [-n 5] [-k 1] [--slices 100] [--size 512]
        [--only train|volume] [--json]

PYTHON is the interpreter of a virtual environment with nnunetv2 (2.8.1 was used) and the same
torch, without torchvision, which is not needed and would install another torch:

    pip install nnunetv2==2.8.1; pip uninstall -y torch torchvision; pip install torch==2.13.0

Training step: 32 slices of 128 x 128 of the same digital patients; each side uses its own batches,
network, losses with deep supervision and optimiser, and they take turns. Volume: a digital patient
of 512 x 512, file to file, each in a new process. Weights are almost random: the speed is valid,
but labels are meaningless, and scattered labels are the worst case for restoring in kidseg. The
time of nnU-Net's background workers counts: they are stopped while others are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

DATASET = "Dataset902_Speed"
SIDE, BATCH = 128, 32
PEER_STEPS = ("nnU-Net, one batch again and again", "nnU-Net + its augmentation")
# name: (method, settings); in bf16 where the processor computes with it, else in fp32.
OUR_STEPS = {
    "plain": ("plain", []),
    "plain, fp32": ("plain", []),
    "plain + augmentation": ("plain", ["augment=nnunet"]),
    "homogenized (pose)": ("homogenized", []),
    "homogenized (pose + crop)": ("homogenized", ["crop.output=full"]),
    "homogenized (pose + crop half)": ("homogenized", ["crop.output=half"]),
}
OUR_VOLUMES = {
    "plain": ("plain", []),
    "homogenized (pose)": ("homogenized", []),
    "homogenized (pose + crop)": ("homogenized", ["crop.output=full"]),
    "homogenized (pose + crop half)": ("homogenized", ["crop.output=half"]),
    "homogenized (pose + crop quarter)": ("homogenized", ["crop.output=quarter"]),
}
PEER_VOLUMES = {"nnU-Net, mirroring (as shipped)": [], "nnU-Net, no mirroring": ["--disable_tta"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="python with nnunetv2")
    parser.add_argument("-n", type=int, default=5, help="timed steps of each")
    parser.add_argument("-k", type=int, default=1, help="volumes of each")
    parser.add_argument("--slices", type=int, default=100, help="of the volume")
    parser.add_argument("--size", type=int, default=512, help="of the volume's slices")
    parser.add_argument("--only", choices=["train", "volume"])
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--as-peer", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--as-us", nargs="+", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.as_peer or options.as_us:
        side, given = (PEER, options.as_peer) if options.as_peer else (US, options.as_us)
        side[given[0]](*given[1:], *rest)
        return
    if rest or options.peer is None:
        parser.error("--peer is needed")
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "volume":
            report["train"] = time_steps(options, Path(folder) / "train")
        if options.only != "train":
            report["volume"] = time_volumes(options, Path(folder) / "volume")
    print(json.dumps(report, indent=1) if options.json else as_tables(report, options))


# --- input of both sides


def make_patients(folder: Path, count: int, size: int, slices: int) -> Path:
    """Digital patients in nnU-Net's layout, all with one spacing."""
    raw = folder / "raw" / DATASET
    command = [sys.executable, "-m", "kidseg", "phantom", raw, "-n", str(count), "--quiet"]
    command += ["--size", str(size), "--set", f"max_slices={slices}", "--ages", "4-8"]
    subprocess.run(command, check=True)
    return raw


def environment(folder: Path) -> dict[str, str]:
    """The environment of a user's shell, with nnU-Net's folders."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    names = ("raw", "preprocessed", "results")
    return {**kept, **{f"nnUNet_{name}": str(folder / name) for name in names}}


class Contestant:
    """A process that runs one step per request; it and its children are stopped in between."""

    def __init__(self, command: list[Any], folder: Path) -> None:
        self.process = subprocess.Popen(
            command,
            env={**environment(folder), "OMP_WAIT_POLICY": "PASSIVE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.facts = self._answer()
        os.killpg(self.process.pid, signal.SIGSTOP)

    def bid(self, what: str) -> dict[str, Any]:
        os.killpg(self.process.pid, signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        os.killpg(self.process.pid, signal.SIGSTOP)
        return answer

    def end(self) -> None:
        """End the process; may be called several times."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("answer "):
                answer: dict[str, Any] = json.loads(line.removeprefix("answer "))
                return answer
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")


def answer(**facts: Any) -> None:
    print("answer " + json.dumps(facts), flush=True)


def serve(steps: dict[str, Callable[[], Any]], **facts: Any) -> None:
    """Run the steps requested on standard input, and report how long they take."""
    answer(**facts)
    for line in sys.stdin:
        began = time.perf_counter()
        steps[line.strip()]()
        answer(seconds=time.perf_counter() - began)


def size_of(net: Any, image: Any) -> dict[str, Any]:
    """Parameters (millions) and GFLOP of a forward pass of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    parameters = sum(values.numel() for values in net.parameters())
    return {"parameters_m": parameters / 1e6, "gflop": counter.get_total_flops() / 1e9}


# --- train step


def time_steps(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    raw = make_patients(folder, 6, 256, 40)
    subprocess.run(
        [options.peer, __file__, "--as-peer", "prepare", folder, str(SIDE), str(BATCH)],
        env=environment(folder),
        stdout=sys.stderr,
        check=True,
    )
    store = folder / "store"
    make = [sys.executable, "-m", "kidseg", "store", raw, "-o", store, "--method", "plain"]
    subprocess.run([*make, "--quiet"], check=True, stdout=sys.stderr)
    turns: list[tuple[str, Contestant]] = []
    try:
        for name, loader in zip(PEER_STEPS, ("again", "loader"), strict=True):
            command = [options.peer, __file__, "--as-peer", "train", folder, loader]
            turns.append((name, Contestant(command, folder)))
        ours = Contestant([sys.executable, __file__, "--as-us", "train", store], folder)
        turns += [(name, ours) for name in ours.facts]
        times: dict[str, list[float]] = {name: [] for name, _ in turns}
        for turn in range(options.n + 1):
            for name, contestant in turns:
                seconds = contestant.bid(name)["seconds"]
                if turn:  # the first is to get warm
                    times[name].append(seconds)
    finally:
        for _, contestant in turns:
            contestant.end()
    rows = []
    for name, contestant in turns:
        facts = contestant.facts.get(name, contestant.facts)
        rows.append({"name": name, "seconds": times[name], **facts})
    return rows


def prepare_peer(folder: str, side: str, batch: str) -> None:
    """Fingerprint, plan for this patch and batch, and preprocess with nnU-Net's classes."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.experiment_planning.experiment_planners.network_topology import (
        get_pool_and_conv_props,
    )
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    base = Path(folder)
    DatasetFingerprintExtractor(DATASET, 1).run()
    planner = ExperimentPlanner(DATASET, suppress_transpose=True)
    plans = planner.plan_experiment()
    chosen = plans["configurations"]["2d"]
    chosen["patch_size"], chosen["batch_size"] = [int(side)] * 2, int(batch)
    _, strides, kernels, patch, _ = get_pool_and_conv_props(
        chosen["spacing"], chosen["patch_size"], planner.UNet_featuremap_min_edge_length, 999999
    )
    assert list(patch) == chosen["patch_size"]
    stages = len(strides)
    width = [min(planner.UNet_base_num_features * 2**k, 512) for k in range(stages)]
    chosen["architecture"]["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=width,
        kernel_sizes=[list(k) for k in kernels],
        strides=[list(s) for s in strides],
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )
    there = base / "preprocessed" / DATASET
    file = there / f"{plans['plans_name']}.json"
    file.write_text(json.dumps(plans, default=lambda value: value.tolist()))
    shutil.copy(base / "raw" / DATASET / "dataset.json", there)
    DefaultPreprocessor(verbose=False).run(DATASET, "2d", plans["plans_name"], 1)


def trainer_of(folder: str) -> Any:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    there = Path(folder) / "preprocessed" / DATASET
    plans = json.loads((there / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    description = json.loads((there / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "2d", 0, description, torch.device("cpu"))
    trainer.initialize()
    return trainer


def train_peer(folder: str, loader: str) -> None:
    import torch

    trainer = trainer_of(folder)
    loaded, _ = trainer.get_dataloaders()
    first = next(loaded)
    trainer.set_deep_supervision_enabled(True)
    trainer.network.train()
    trainer.on_train_epoch_start()
    size = size_of(trainer.network, torch.zeros((1, 1, SIDE, SIDE)))
    facts = {**size, "precision": "fp32"}  # its trainer uses autocast only on GPUs
    if loader == "again":
        if hasattr(loaded, "_finish"):
            loaded._finish()
        serve({PEER_STEPS[0]: lambda: trainer.train_step(first)}, **facts)
    else:
        for _ in range(16):  # use up the batches that the workers have prepared
            next(loaded)
        serve({PEER_STEPS[1]: lambda: trainer.train_step(next(loaded))}, **facts)


def train_us(store: str) -> None:
    """The stages of the methods, on a store created as by `kidseg store`."""
    import torch

    from kidseg.cohort.cohort import gather_cohort
    from kidseg.config import METHODS, load
    from kidseg.device import choose_device, tune_allocator
    from kidseg.methods import method_named
    from kidseg.store import open_store

    tune_allocator()
    opened = open_store(Path(store), verify=False)
    steps, facts = {}, {}
    best = choose_device("cpu")
    for name, (method_name, settings) in OUR_STEPS.items():
        device = choose_device("cpu", "fp32") if name.endswith("fp32") else best
        if name.endswith("fp32") and best.precision == "fp32":
            continue  # that is "plain"
        method = method_named(method_name)
        own = ["pose.teacher=0.0", "pose.symmetry=0.0"] if method_name == "homogenized" else []
        config: Any = load(METHODS[method_name], overrides=[*own, *settings])
        assert (config.view.size, config.segment.batch_size) == (SIDE, BATCH)
        cohort = gather_cohort(opened, config.cohort, partial(method.material, config))
        bound = method.build(config, cohort.target, cohort.plan, device=device)
        stage = next(stage for stage in bound.stages(cohort) if stage.name == "segment")
        steps[name] = step_of(stage, device)
        side = config.view.size // getattr(config, "divisor", 1)
        size = size_of(stage.net, torch.zeros((1, 1, side, side)))
        facts[name] = {**size, "precision": device.precision}
    serve(steps, **facts)


def step_of(stage: Any, device: Any) -> Callable[[], None]:
    """A function that runs the next step on each call, as in `kidseg.train.fit`."""
    import torch
    from torch import nn

    from kidseg.stage import TrainStep

    rules, net = stage.config.optimizer, stage.net
    assert rules.name == "sgd"
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=rules.learning_rate,
        momentum=rules.momentum,
        nesterov=True,
        weight_decay=rules.weight_decay,
    )
    places: Iterator[TrainStep] = (TrainStep(seed=0, epoch=0, step=k) for k in range(10**6))

    def step() -> None:
        net.train()
        batch = stage.batch(next(places)).to(device.torch)
        with device.autocast():
            loss = stage.loss(net, batch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), rules.clip_norm)
        optimizer.step()
        float(loss.detach())

    return step


# --- volume, file to file


def time_volumes(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    raw = make_patients(folder, 2, options.size, options.slices)
    scan = sorted((raw / "imagesTr").iterdir())[0]
    subprocess.run(
        [options.peer, __file__, "--as-peer", "model", folder, str(options.size)],
        env=environment(folder),
        stdout=sys.stderr,
        check=True,
    )
    source = folder / "source"
    source.mkdir()
    shutil.copy(scan, source)
    commands: dict[str, list[Any]] = {}
    for name, extra in PEER_VOLUMES.items():
        commands[name] = [options.peer, __file__, "--as-peer", "predict", folder, *extra]
    for number, (name, (method, settings)) in enumerate(OUR_VOLUMES.items()):
        model = train_model(raw, folder / f"model-{number}", method, settings, options.size)
        commands[name] = [sys.executable, __file__, "--as-us", "segment", model, source / scan.name]
    rows: dict[str, dict[str, Any]] = {name: {"name": name, "runs": []} for name in commands}
    for _ in range(options.k):
        for name, command in commands.items():
            rows[name]["runs"].append(watched(command, folder))
    return list(rows.values())


def train_model(raw: Path, out: Path, method: str, settings: list[str], size: int) -> Path:
    """Train a model of full size with `kidseg train`, one step of each stage."""
    given = [f"view.size={size}", *settings]
    stages = {"segment": 2}
    if method == "homogenized":
        stages["pose.stage"] = 4
        given += ["pose.teacher=0.0", f"pose.localizer.size={min(size, 128)}"]
        if settings:
            stages["crop.stage"] = 4
    for stage, batch in stages.items():
        given += [f"{stage}.epochs=1", f"{stage}.steps=1", f"{stage}.batch_size={batch}"]
        given += [f"{stage}.min_epochs=0", f"{stage}.optimizer.learning_rate=1e-9"]
    command = [sys.executable, "-m", "kidseg", "train", raw, "-o", out, "--method", method]
    for setting in given:
        command += ["--set", setting]
    names = sorted(file.name.split(".")[0] for file in (raw / "labelsTr").iterdir())
    command += ["--validation", names[0], "--quiet"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return out / "model.safetensors"


def watched(command: list[Any], folder: Path) -> dict[str, float]:
    """Wall time of a process, its own report, and peak memory including its children."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    peak = 0.0
    while True:
        try:
            out, trouble = process.communicate(timeout=0.25)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, memory_gb(process.pid))
    wall = time.perf_counter() - began
    answers = [line for line in out.splitlines() if line.startswith("answer ")]
    if process.returncode or not answers:
        raise RuntimeError(f"{command} failed:\n{trouble[-3000:]}")
    inside = json.loads(answers[-1].removeprefix("answer "))
    return {"wall_s": wall, "peak_gb": peak, **inside}


def memory_gb(session: int) -> float:
    """Memory of all processes of a session; shared memory counts once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                rollup = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except (OSError, ValueError):
            continue  # it has just ended
    return total / 2**20


def save_peer_model(folder: str, size: str) -> None:
    """nnU-Net's network for this patch, as its trainer saves it."""
    prepare_peer(folder, size, "2")
    trainer = trainer_of(folder)
    trainer.set_deep_supervision_enabled(True)
    trainer.inference_allowed_mirroring_axes = (0, 1)
    out = Path(trainer.output_folder)
    trainer.save_checkpoint(str(out / "checkpoint_final.pth"))
    for name in ("nnUNetPlans.json", "dataset.json"):
        there = Path(folder) / "preprocessed" / DATASET / name
        shutil.copy(there, out.parent / name.replace("nnUNetPlans", "plans"))


def predict_peer(folder: str, *extra: str) -> None:
    began = time.perf_counter()
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder

    imported = time.perf_counter()
    base = Path(folder)
    (model,) = (base / "results" / DATASET).iterdir()
    with tempfile.TemporaryDirectory() as out:
        sys.argv = ["predict", "-i", str(base / "source"), "-o", out, "-m", str(model)]
        sys.argv += ["-f", "0", "-device", "cpu", *extra]
        predict_entry_point_modelfolder()
        assert list(Path(out).glob("*.nii.gz"))
    answer(import_s=imported - began, inside_s=time.perf_counter() - imported)


def segment_us(model: str, scan: str) -> None:
    began = time.perf_counter()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
    from kidseg.segment import segment

    imported = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        (done,) = segment([scan], model, out)
    ended = time.perf_counter()
    answer(import_s=imported - began, inside_s=ended - imported, parts_s=done["seconds"])


# --- tables


def as_tables(report: dict[str, Any], options: argparse.Namespace) -> str:
    lines = []
    if "train" in report:
        lines += step_table(report["train"], options)
    if "volume" in report:
        lines += [*([""] if lines else []), *volume_table(report["volume"], options)]
    return "\n".join(lines)


def step_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    median = {row["name"]: statistics.median(row["seconds"]) for row in rows}
    plain = median["plain"]
    lines = [
        f"Train step, {BATCH} slices of {SIDE} x {SIDE}, turn by turn, n = {options.n} of each.",
        "",
        "| | precision | parameters (M) | GFLOP forward, slice | step (s), median (least to most) "
        "| of nnU-Net's | of nnU-Net + augmentation's | of plain's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["name"]
        spread = f"{median[name]:.3f} ({min(row['seconds']):.3f} to {max(row['seconds']):.3f})"
        ratios = [median[name] / base for base in (*(median[n] for n in PEER_STEPS), plain)]
        cells = [
            name,
            row["precision"],
            f"{row['parameters_m']:.1f}",
            f"{row['gflop']:.2f}",
            spread,
        ]
        lines.append("| " + " | ".join([*cells, *(f"{r:.2f}" for r in ratios)]) + " |")
    return lines


def volume_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    def median(row: dict[str, Any], key: str) -> float:
        return statistics.median(run[key] for run in row["runs"])

    lines = [
        f"Volume of {options.slices} x {options.size} x {options.size}, file to file, fresh "
        f"processes, n = {options.k} of each.",
        "",
        "| | process (s), median (least to most) | imports (s) | file to file (s) | network (s) "
        "| peak (GB) | nnU-Net's as shipped / this | without mirroring / this |",
        "|---|---|---|---|---|---|---|---|",
    ]
    peers = [median(row, "inside_s") for row in rows[:2]]
    for row in rows:
        walls = [run["wall_s"] for run in row["runs"]]
        inside = median(row, "inside_s")
        network = "-"
        if "parts_s" in row["runs"][0]:
            parts = [run["parts_s"]["segment"] for run in row["runs"]]
            network = f"{statistics.median(parts):.1f}"
        cells = [
            row["name"],
            f"{statistics.median(walls):.1f} ({min(walls):.1f} to {max(walls):.1f})",
            f"{median(row, 'import_s'):.1f}",
            f"{inside:.1f}",
            network,
            f"{median(row, 'peak_gb'):.2f}",
            *(f"{peer / inside:.1f}" for peer in peers),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


PEER: dict[str, Callable[..., None]] = {
    "prepare": prepare_peer,
    "train": train_peer,
    "model": save_peer_model,
    "predict": predict_peer,
}
US: dict[str, Callable[..., None]] = {"train": train_us, "segment": segment_us}


if __name__ == "__main__":
    main()
