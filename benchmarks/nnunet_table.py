"""The real nnU-Net v2 (2D) in the table of a study: same patients, same split, same processor time.

    python benchmarks/nnunet_table.py STUDY --peer PYTHON -o OUT [--seeds 0 1 2] [--only nnunet]
                                      [--device cuda]

STUDY is the folder of a `kidseg study`, completed in the end, here of methods_table.toml; PYTHON is
the interpreter of a virtual environment with nnunetv2 (2.8.1 was used), see nnunet_speed.py.
Exports the study's patients (`kidseg export`) without those of the test; nnU-Net takes
fingerprints, plans and preprocesses, trains its 2D network on the study's training patients, and
segments the test patients, with mirroring, as shipped. Writes OUT/study.md, the study's table with
nnU-Net beside the methods, and OUT/compared, paired statistics. A run that is complete is kept.

Training is nnU-Net's: network, loss, batches, augmentation, optimizer. It ends when the time of a
training is used up, by the study's clock, not after 250,000 steps; the learning rate falls with the
time instead of the steps. The time of planning and preprocessing counts, the start of the program
does not, both as in kidseg. By the processor's clock augmentation runs in the same process, so that
it counts, too; by the wall's in processes of nnU-Net's, beside the GPU. The scores that nnU-Net
takes in between, which do not change its final weights, are left out. Two rows:

- "nnunet": as it plans;
- "nnunet-small": 12 feature maps at the finest stage, at most 96, and 16 slices a step, as the
  other methods of methods_table.toml have them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kidseg.study import Design, Partition

DATASET = "Dataset903_Table"
PEERS: dict[str, dict[str, int]] = {
    "nnunet": {},
    "nnunet-small": {"features": 12, "max_features": 96, "batch_size": 16},
}
PLANS = {"nnunet": "nnUNetPlans", "nnunet-small": "nnUNetPlans_small"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?", help="folder of the study")
    parser.add_argument("--peer", type=Path, help="python with nnunetv2")
    parser.add_argument("-o", "--out", type=Path, help="folder to write, or to continue")
    parser.add_argument("--seeds", type=int, nargs="+", help="those of the study by default")
    parser.add_argument("--only", choices=list(PEERS), help="one row alone")
    parser.add_argument("--device", default="cpu", help="of nnU-Net: cpu, cuda or cuda:N")
    parser.add_argument("--as-peer", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        PEER[options.as_peer[0]](*options.as_peer[1:])
        return
    if not (options.study and options.peer and options.out):
        parser.error("STUDY, --peer and --out are needed")
    print(add_to_table(options))


def add_to_table(options: argparse.Namespace) -> str:
    """Run nnU-Net for each seed; the study's table with it, as Markdown."""
    from kidseg.study import design

    plan = design(options.study / "study.toml")
    out: Path = options.out.resolve()
    prepared = prepare(plan.main, options.peer, out)
    seeds = options.seeds or list(plan.config.seeds)
    names = [options.only] if options.only else list(PEERS)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in seeds:
        for name, own in runs.items():
            own.append(run(plan, options.peer, out, name, seed, prepared, options.device))
    study = json.loads((options.study / "study.json").read_text())
    return write(plan, options.study, study, runs, out)


# --- kidseg's side


def prepare(main: Partition, peer: Path, out: Path) -> dict[str, Any]:
    """Export, plan and preprocess; what nnU-Net reports of it."""
    report = out / "prepared.json"
    if report.exists():
        found: dict[str, Any] = json.loads(report.read_text())
        return found
    export(main, out / "raw" / DATASET)
    split = [{"train": list(main.training), "val": list(main.validation)}]
    called(peer, out, out / "results", "prepare", str(out), json.dumps(split), str(report))
    return json.loads(report.read_text())  # type: ignore[no-any-return]


def export(main: Partition, raw: Path) -> None:
    """The study's patients in nnU-Net's layout, those of the test without labels."""
    import subprocess

    shutil.rmtree(raw, ignore_errors=True)
    raw.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "kidseg", "export", main.data.root, raw, "--quiet"]
    subprocess.run(command, check=True)
    (raw / "imagesTs").mkdir(exist_ok=True)
    for case in main.test:
        (raw / "labelsTr" / f"{case}.nii.gz").unlink()
        image = f"{case}_0000.nii.gz"
        (raw / "imagesTr" / image).rename(raw / "imagesTs" / image)
    description = json.loads((raw / "dataset.json").read_text())
    description["numTraining"] = len(list((raw / "labelsTr").glob("*.nii.gz")))
    (raw / "dataset.json").write_text(json.dumps(description))


def limit_of(plan: Design, device: str) -> tuple[float, str]:
    """The time of each training of a study, and its clock: "processor" or "wall"."""
    settings = tomllib.loads(plan.arms[0].settings)
    clock = settings["budget_clock"]
    if device != "cpu" and clock == "processor":
        sys.exit("The study counts the processor's time, which says nothing of a GPU: --device cpu")
    return settings["budget_s"], clock


def run(
    plan: Design,
    peer: Path,
    out: Path,
    name: str,
    seed: int,
    prepared: Mapping[str, Any],
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, segment the test patients and score them; figures as of a run of a study."""
    from kidseg.evaluate import evaluate

    key, (budget_s, clock) = f"{name}-{seed}", limit_of(plan, device)
    record, results, scores = out / f"{key}.json", out / "results" / key, out / "scores" / key
    labels = out / "labels" / key
    if not record.exists():
        shutil.rmtree(results, ignore_errors=True)
        labels.mkdir(parents=True, exist_ok=True)
        spent = prepared["seconds"][clock]
        there = str(out / "preprocessed" / DATASET)
        step = ("train", there, name, str(seed), str(budget_s - spent), clock, device)
        trained = called(peer, out, results, *step, str(results) + ".json", inside=clock != "wall")
        images = str(out / "raw" / DATASET / "imagesTs")
        step = ("predict", str(results / DATASET), images, str(labels), clock, device)
        tested = called(peer, out, results, *step, str(labels) + ".json")
        test = plan.main.test
        evaluate(
            labels,
            plan.main.data.root,
            scores,
            protocol=plan.config.protocol,
            cyst=plan.config.cyst,
            cases=test,
            overwrite=True,
        )
        own = json.loads(Path(str(results) + ".json").read_text())
        predicted = json.loads(Path(str(labels) + ".json").read_text())
        figures = {
            "method": name,
            "seed": seed,
            "steps": own["steps"],
            "losses": own["losses"],
            "training_clock": clock,
            "training_budget_s": budget_s,
            "training_seconds": {"prepare": spent, "segment": own["seconds"]},
            "training_set_up_seconds": (
                trained.seconds if clock == "wall" else trained.processor_seconds
            )
            - own["seconds"],
            "training_epochs": {},
            "training_process_seconds": trained.seconds,
            "training_peak_memory_mb": {"process": trained.peak_memory_mb} | own["device_memory"],
            "training_attempts": 1,
            "parameters": own["parameters"],
            "segmentation_seconds_per_scan": predicted["seconds"] / len(test),
            "segmentation_process_seconds": tested.seconds,
            "segmentation_processor_seconds": tested.processor_seconds,
            "segmentation_peak_memory_mb": tested.peak_memory_mb,
            "device": device,
            "precision": "fp32" if device == "cpu" else "fp16",
            "jobs": 1,
        }
        record.write_text(json.dumps(figures, indent=1))
    return json.loads(record.read_text())  # type: ignore[no-any-return]


def called(peer: Path, out: Path, results: Path, *step: str, inside: bool = False) -> Any:
    """Run a step of nnU-Net's in its own process, measured; raises if it fails.

    With `inside`, augmentation runs in this process, too.
    """
    from kidseg.study.process import Launcher

    os.environ.update(
        nnUNet_raw=str(out / "raw"),
        nnUNet_preprocessed=str(out / "preprocessed"),
        nnUNet_results=str(results),
        # Planning refuses 0.
        nnUNet_n_proc_DA="0" if inside else str(max(1, (os.cpu_count() or 1) - 1)),
        nnUNet_compile="f",
    )
    log = out / "logs" / f"{results.name}-{step[0]}.log"
    done = Launcher().run([str(peer), __file__, "--as-peer", *step], log=log)
    if done.exit_code:
        raise RuntimeError(f"{step[0]} failed, see {log}: {done.cause}")
    return done


def write(
    plan: Design, folder: Path, study: dict[str, Any], runs: Mapping[str, Sequence[Any]], out: Path
) -> str:
    """The study's table with nnU-Net's rows, and the paired statistics."""
    from kidseg.compare import compare
    from kidseg.study.page import markdown
    from kidseg.study.results import dice_of, method_figures, write_average

    averaged = [folder / "averaged" / arm.name for arm in plan.arms]
    for name, own in runs.items():
        there = out / "averaged" / name
        scores = [out / "scores" / f"{name}-{one['seed']}" for one in own]
        summary = write_average(scores, plan.main, there, [one["seed"] for one in own])
        own = [
            {**one, "dice": dice_of(each, plan.main)} for one, each in zip(own, scores, strict=True)
        ]
        averaged.append(there)
        study["methods"][name] = {
            "method": "nnU-Net v2, 2d",
            "preset": None,
            "overrides": [f"{key}={value}" for key, value in PEERS[name].items()],
            "seeds": [one["seed"] for one in own],
            "remarks": [],
            "failed": {},
            **method_figures(own, summary),
        }
        study["runs"] |= {f"{name}-{one['seed']}": one for one in own}
    compared = compare(averaged, out / "compared", overwrite=True)
    study["comparisons"] = [one for one in compared["comparisons"] if one["stratum"] == "all"]
    (out / "study.json").write_text(json.dumps(study, indent=1))
    text = markdown(study)
    (out / "study.md").write_text(text)
    return text


# --- nnU-Net's side, in its own environment


def prepare_peer(folder: str, split: str, report: str) -> None:
    """Fingerprint, plan and preprocess with nnU-Net's classes; plans of both rows."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    start, began = time.process_time(), time.perf_counter()
    DatasetFingerprintExtractor(DATASET, 1).run()
    plans = ExperimentPlanner(DATASET).plan_experiment()
    there = Path(folder) / "preprocessed" / DATASET
    shutil.copy(Path(folder) / "raw" / DATASET / "dataset.json", there)
    DefaultPreprocessor(verbose=False).run(DATASET, "2d", plans["plans_name"], 1)
    (there / "splits_final.json").write_text(split)
    # The plan as its file has it, without numpy's types.
    plans = json.loads((there / "nnUNetPlans.json").read_text())
    chosen = plans["configurations"]["2d"]
    seconds = {
        "processor": time.process_time() - start + children_s(),
        "wall": time.perf_counter() - began,
    }
    facts = {"patch": chosen["patch_size"], "batch": chosen["batch_size"], "seconds": seconds}
    small = PEERS["nnunet-small"]
    chosen["batch_size"] = small["batch_size"]
    network = chosen["architecture"]["arch_kwargs"]
    facts["features"] = network["features_per_stage"]
    network["features_per_stage"] = [
        min(small["features"] * 2**k, small["max_features"]) for k in range(network["n_stages"])
    ]
    plans["plans_name"] = PLANS["nnunet-small"]
    (there / f"{PLANS['nnunet-small']}.json").write_text(json.dumps(plans))
    Path(report).write_text(json.dumps(facts))


def children_s() -> float:
    """Processor time of child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}


def train_peer(
    folder: str, name: str, seed: str, budget_s: str, clock: str, device: str, report: str
) -> None:
    """Train until the time is used up, and save nnU-Net's final checkpoint."""
    import numpy as np
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    now = CLOCKS[clock]
    start, budget = now(), float(budget_s)
    random.seed(int(seed))
    np.random.seed(int(seed))  # noqa: NPY002  (nnU-Net draws from it)
    torch.manual_seed(int(seed))
    if clock == "processor":
        torch.set_num_threads(1)
    there = Path(folder)
    plans = json.loads((there / f"{PLANS[name]}.json").read_text())
    plans["continue_training"] = False
    description = json.loads((there / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "2d", 0, description, device=torch.device(device))
    trainer.initialize()
    trainer.on_train_start()
    trainer.network.train()
    losses = []
    while (spent := now() - start) < budget:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - spent / budget) ** 0.9
        losses.append(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    trainer.on_train_end()
    facts = {
        "steps": len(losses),
        "seconds": now() - start,
        "device_memory": {}
        if device == "cpu"
        else {"device": torch.cuda.max_memory_allocated(device) / 2**20},
        "losses": [round(loss, 4) for loss in losses],
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
    }
    Path(report).write_text(json.dumps(facts))


def predict_peer(
    folder: str, images: str, labels: str, clock: str, device: str, report: str
) -> None:
    """Segment scans one after the other, with mirroring, as nnU-Net does by default."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    if clock == "processor":
        torch.set_num_threads(1)
    (model,) = Path(folder).iterdir()
    start = time.perf_counter()
    predictor = nnUNetPredictor(
        device=torch.device(device),
        perform_everything_on_device=device != "cpu",
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(images, labels)
    Path(report).write_text(json.dumps({"seconds": time.perf_counter() - start}))


PEER = {"prepare": prepare_peer, "train": train_peer, "predict": predict_peer}


if __name__ == "__main__":
    main()
