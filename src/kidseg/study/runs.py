"""One arm with one seed: train, segment the test cases, evaluate; each step once.

The folder of each step has a stamp (`stamp.json`) with a key, the digest of its settings and
inputs, and whether it is complete. A complete step with the same key is kept, an incomplete one is
resumed, and one with another key is refused, so that results of different settings never mix.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kidseg.errors import KidsegError
from kidseg.evaluate import evaluate
from kidseg.io.content import sha256_of
from kidseg.study.design import Arm, Design
from kidseg.study.partition import Partition, digest
from kidseg.study.process import Completed, Launcher
from kidseg.study.run_files import model_of, read_segmented, read_trained
from kidseg.study.stamp import (
    MEANING,
    STAMP,
    check_inputs,
    done_stamp,
    measured_stamp,
    new_stamp,
    other_inputs,
    read_stamp,
    write_stamp,
)
from kidseg.train.record import RECORD, START

__all__ = ["State", "StudyRun", "folder_of"]

State = Literal["to do", "begun", "done"]


def folder_of(out: Path, tested: Partition) -> Path:
    """The folder of the results on a data set: that of the study, or a folder of its own within."""
    return out / "others" / tested.name if tested.name else out


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """An arm with a seed.

    Attributes:
        arm: method and settings.
        seed: of the training.
        design: of the study.
        out: folder of the study.
        device: for training and segmentation.
        jobs: number of parallel runs, for the record.
    """

    arm: Arm
    seed: int
    design: Design
    out: Path
    device: str = "auto"
    jobs: int = 1

    @property
    def name(self) -> str:
        """Name of its folders."""
        return f"{self.arm.name}-{self.seed}"

    @property
    def training(self) -> tuple[str, ...]:
        """Ids of the training cases."""
        return self.design.training_of(self.arm, self.seed)

    @property
    def run(self) -> Path:
        """Folder of the training."""
        return self.out / "runs" / self.name

    @property
    def first(self) -> StudyRun | None:
        """The run from whose model this one starts, if any."""
        if self.arm.start is None:
            return None
        return replace(self, arm=self.design.arm(self.arm.start))

    def labels(self, tested: Partition) -> Path:
        """Folder of the predicted labels of a data set's test cases."""
        return folder_of(self.out, tested) / "labels" / self.name

    def scores(self, tested: Partition) -> Path:
        """Folder of their evaluation."""
        return folder_of(self.out, tested) / "scores" / self.name

    @property
    def state(self) -> State:
        """Progress of the run; `check` verifies its settings."""
        trained = read_stamp(self.run)
        if trained.get("done") and all(map(self._is_scored, self.design.partitions)):
            return "done"
        return "begun" if trained else "to do"

    def _is_scored(self, tested: Partition) -> bool:
        segmented, scored = read_stamp(self.labels(tested)), read_stamp(self.scores(tested))
        if not (segmented.get("done") and scored.get("done")):
            return False
        return bool(scored["inputs"].get("labels") == segmented["key"])

    def check(self) -> None:
        """Check that existing results have the same settings and data.

        Raises:
            UsageError: "other-settings": they do not.
            ModelError: "damaged-stamp".
        """
        check_inputs(self.run, self._inputs(), more=("model", "tune"))
        if read_stamp(self.run) and self._has_other_start():
            raise other_inputs(self.run, ["model"])
        for one in self.design.partitions:
            check_inputs(self.labels(one), _tested(one))
            check_inputs(self.scores(one), self._rules(one))

    def _has_other_start(self) -> bool:
        """Whether the model of this study that it started from has been trained again since.

        A training that was stopped has a copy of that model, too.
        """
        copy = self.run / START
        if self.first is None or not copy.exists():
            return False
        return model_of(self.first.run) not in (None, sha256_of(copy))

    def perform(self, launcher: Launcher, progress: Callable[[str], None]) -> None:
        """Execute the remaining steps; `progress` is called with each step as it starts.

        Raises:
            KidsegError: as `evaluate`; with code "step-failed": a process failed.
        """
        self.check()
        if self.state == "done":
            return
        if not read_stamp(self.run).get("done"):
            progress("train")
            self._train(launcher)
        progress("segment")
        for one in self.design.partitions:
            self._segment(launcher, one)
        progress("evaluate")
        for one in self.design.partitions:
            self._evaluate(one)

    def _inputs(self) -> dict[str, Any]:
        """All inputs of the training."""
        data = self.design.trained_on(self.arm)
        return {
            "method": self.arm.method,
            "settings": self.arm.settings,
            "seed": self.seed,
            "training": {name: data.sha256[name] for name in self.training},
            "validation": {name: data.sha256[name] for name in data.validation},
            MEANING: data.meaning,
            **self._start(),
        }

    def _start(self) -> dict[str, str]:
        """The model to fine-tune and what of it; empty without one.

        A model of this study is known by the inputs of its training; see also `check`.
        """
        if self.first is not None:
            # Without the meaning of the labels, which the other run checks itself.
            inputs = {k: v for k, v in self.first._inputs().items() if k != MEANING}
            return {"model": digest(inputs), "tune": self.arm.tune or "all"}
        if self.arm.model is None:
            return {}
        return {"model": sha256_of(self.arm.model), "tune": self.arm.tune or "all"}

    def _rules(self, tested: Partition) -> dict[str, Any]:
        config = self.design.config
        return {
            **_tested(tested),
            "protocol": config.protocol,
            "cyst": config.cyst,
            MEANING: tested.meaning,
        }

    def _train(self, launcher: Launcher) -> None:
        stamp = read_stamp(self.run)
        resumed = (self.run / RECORD).exists()
        begun = new_stamp(self._inputs(), attempts=stamp.get("attempts", 0) + 1, jobs=self.jobs)
        write_stamp(self.run, begun)
        data = self.design.trained_on(self.arm)
        model = self.arm.model if self.first is None else self.first.run / "model.safetensors"
        arguments: list[str | Path] = ["train", data.data.root, "--out", self.run, "--quiet"]
        arguments += ["--method", self.arm.method, "--seed", str(self.seed)]
        arguments += ["--device", self.device, "--resume" if resumed else "--overwrite"]
        arguments += [] if self.arm.preset is None else ["--preset", self.arm.preset]
        arguments += [] if self.arm.config is None else ["--config", self.arm.config]
        arguments += [word for text in self.arm.overrides for word in ("--set", text)]
        arguments += [] if model is None else ["--from", model]
        arguments += [] if self.arm.tune is None else ["--tune", self.arm.tune]
        arguments += [w for name in (*self.training, *data.validation) for w in ("--case", name)]
        arguments += [word for name in data.validation for word in ("--validation", name)]
        completed = self._in_process(launcher, arguments, "train")
        write_stamp(self.run, done_stamp(begun, completed))

    def _segment(self, launcher: Launcher, tested: Partition) -> None:
        inputs = {**_tested(tested), "model": model_of(self.run)}
        labels = self.labels(tested)
        stamp = read_stamp(labels)
        if stamp.get("done") and stamp["key"] == digest(inputs):
            return
        begun = new_stamp(inputs, jobs=self.jobs)
        write_stamp(labels, begun)
        (self.scores(tested) / STAMP).unlink(missing_ok=True)
        known = tested.data.by_id
        arguments: list[str | Path] = [
            "segment",
            *(known[name].images[0] for name in tested.test),
            "--model",
            self.run / "model.safetensors",
            "--out",
            labels,
            "--device",
            self.device,
            "--overwrite",
            "--quiet",
        ]
        step = f"segment-{tested.name}" if tested.name else "segment"
        completed = self._in_process(launcher, arguments, step)
        write_stamp(labels, done_stamp(begun, completed))

    def _evaluate(self, tested: Partition) -> None:
        labels, scores = self.labels(tested), self.scores(tested)
        begun = new_stamp({**self._rules(tested), "labels": read_stamp(labels)["key"]})
        write_stamp(scores, begun)
        evaluate(
            labels,
            tested.data.root,
            scores,
            protocol=self.design.config.protocol,
            cyst=self.design.config.cyst,
            cases=tested.test,
            overwrite=True,
        )
        write_stamp(scores, {**begun, "done": True})

    def _in_process(self, launcher: Launcher, arguments: list[str | Path], step: str) -> Completed:
        log = self.out / "logs" / f"{self.name}-{step}.log"
        completed = launcher.kidseg(*arguments, log=log)
        if completed.exit_code != 0:
            raise KidsegError(
                f"{step} failed with {completed.cause}",
                path=log,
                code="step-failed",
                next_step="Run the study again to resume it. If it fails again, remove this run's"
                " folders in runs, labels and scores.",
            )
        return completed

    def costs(self) -> dict[str, Any]:
        """Time and memory of a completed run, as plain data.

        The budget is that of the whole training; None without one. Seconds of training by stage, as
        `train` reports them, by the clock of the settings ("wall" or "processor"). "set-up" is the
        time of the process outside its stages, by the same clock; None if it was not measured.
        Segmentation seconds are per scan, from reading to writing, without the start of the
        program. Peak memory is that of the process, including program and libraries; "device" that
        of the GPU's allocations. "parameters" of all networks; None if the training did not count
        them.

        Raises:
            ModelError: "damaged-summary"; "damaged-stamp".
        """
        labels = self.labels(self.design.main)
        summary, result = read_trained(self.run), read_segmented(labels)
        trained, segmented = measured_stamp(self.run), measured_stamp(labels)
        settings = tomllib.loads(self.arm.settings)
        clock, budget_s = settings["budget_clock"], settings["budget_s"]
        whole = trained.get({"wall": "process_seconds", "processor": "processor_seconds"}[clock])
        staged = sum(summary.seconds.values())
        return {
            "training_clock": clock,
            "training_budget_s": None if budget_s == "null" else budget_s,
            "training_seconds": dict(summary.seconds),
            "training_set_up_seconds": None if whole is None else whole - staged,
            "training_epochs": {name: how.epochs for name, how in summary.stages.items()},
            "training_process_seconds": trained["process_seconds"],
            "training_peak_memory_mb": {
                **summary.peak_memory_mb,
                "process": trained["peak_memory_mb"],
            },
            "training_attempts": trained.get("attempts", 1),
            "parameters": None if summary.parameters is None else sum(summary.parameters.values()),
            "segmentation_seconds_per_scan": result.seconds_per_scan,
            "segmentation_process_seconds": segmented["process_seconds"],
            "segmentation_peak_memory_mb": segmented["peak_memory_mb"],
            "device": summary.device,
            "precision": summary.precision,
            "jobs": max(trained["jobs"], segmented["jobs"]),
        }


def _tested(tested: Partition) -> dict[str, Any]:
    return {"test": {name: tested.sha256[name] for name in tested.test}}
