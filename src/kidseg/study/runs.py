"""One arm with one seed: trained, used on the test cases, scored; each step once.

Each step's folder has a stamp (`stamp.json`): of what it is made, as a key over settings and the
digests of all that went in, and whether it is complete. A complete step of the same key is kept, an
incomplete one goes on, and one of another key is refused: results of two settings never mix.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kidseg.errors import InputError, KidsegError, UsageError
from kidseg.evaluate import evaluate
from kidseg.io.atomic import write_json
from kidseg.study.design import Arm, Design, digest
from kidseg.study.process import Ended, Launcher

__all__ = ["State", "StudyRun"]

State = Literal["to do", "begun", "done"]

STAMP = "stamp.json"


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """An arm with a seed.

    Attributes:
        arm: method and settings.
        seed: of the training.
        design: of the study.
        out: folder of the study.
        device: for training and segmentation.
        jobs: how many runs there are at a time, to be recorded.
    """

    arm: Arm
    seed: int
    design: Design
    out: Path
    device: str = "auto"
    jobs: int = 1

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.arm.name}-{self.seed}"

    @property
    def run(self) -> Path:
        """Where it is trained."""
        return self.out / "runs" / self.name

    @property
    def labels(self) -> Path:
        """Where the labels of the test cases are."""
        return self.out / "labels" / self.name

    @property
    def scores(self) -> Path:
        """Where they are scored."""
        return self.out / "scores" / self.name

    @property
    def state(self) -> State:
        """How far it is; whether of the same settings is for `check` to say."""
        trained, used, scored = map(_read_stamp, (self.run, self.labels, self.scores))
        if all(stamp.get("done") for stamp in (trained, used, scored)) and (
            scored["inputs"]["labels"] == used["key"]
        ):
            return "done"
        return "begun" if trained else "to do"

    def check(self) -> None:
        """Is what is there of this run, of the same settings and data?

        Raises:
            UsageError: "other-settings": it is not.
            InputError: "damaged-stamp".
        """
        stamp = _read_stamp(self.run)
        if stamp and stamp["key"] != digest(self._inputs()):
            was, now = stamp["inputs"], json.loads(json.dumps(self._inputs()))
            changed = sorted(name for name in now if was.get(name) != now[name])
            raise _refusal(self.run, changed)
        for folder, inputs in ((self.labels, self._tested()), (self.scores, self._rules())):
            stamp = _read_stamp(folder)
            wanted = json.loads(json.dumps(inputs))
            if stamp and any(stamp["inputs"].get(k) != v for k, v in wanted.items()):
                changed = sorted(k for k, v in wanted.items() if stamp["inputs"].get(k) != v)
                raise _refusal(folder, changed)

    def perform(self, launcher: Launcher, tell: Callable[[str], None]) -> None:
        """Do what is left to do; `tell` is told each step as it begins.

        Raises:
            KidsegError: what evaluation refuses; with code "step-failed", a process that failed.
        """
        self.check()
        if self.state == "done":
            return
        if not _read_stamp(self.run).get("done"):
            tell("train")
            self._train(launcher)
        tell("segment")
        self._segment(launcher)
        tell("evaluate")
        self._evaluate()

    def _inputs(self) -> dict[str, Any]:
        """All that a training depends on."""
        plan = self.design
        return {
            "method": self.arm.method,
            "settings": self.arm.settings,
            "seed": self.seed,
            "training": {name: plan.sha256[name] for name in plan.training},
            "validation": {name: plan.sha256[name] for name in plan.validation},
        }

    def _tested(self) -> dict[str, Any]:
        return {"test": {name: self.design.sha256[name] for name in self.design.test}}

    def _rules(self) -> dict[str, Any]:
        config = self.design.config
        return {**self._tested(), "protocol": config.protocol, "cyst": config.cyst}

    def _train(self, launcher: Launcher) -> None:
        stamp = _read_stamp(self.run)
        resumed = (self.run / "config.toml").exists()
        begun = _stamp(self._inputs(), attempts=stamp.get("attempts", 0) + 1, jobs=self.jobs)
        _write_stamp(self.run, begun)
        data = self.design
        arguments: list[str | Path] = ["train", data.data.root, "--out", self.run, "--quiet"]
        arguments += ["--method", self.arm.method, "--seed", str(self.seed)]
        arguments += ["--device", self.device, "--resume" if resumed else "--overwrite"]
        arguments += [] if self.arm.preset is None else ["--preset", self.arm.preset]
        arguments += [] if self.arm.config is None else ["--config", self.arm.config]
        arguments += [word for text in self.arm.overrides for word in ("--set", text)]
        arguments += [w for name in (*data.training, *data.validation) for w in ("--case", name)]
        arguments += [word for name in data.validation for word in ("--validation", name)]
        ended = self._in_process(launcher, arguments, "train")
        _write_stamp(self.run, _completed(begun, ended))

    def _segment(self, launcher: Launcher) -> None:
        model = json.loads((self.run / "summary.json").read_text())["model"]["sha256"]
        inputs = {**self._tested(), "model": model}
        stamp = _read_stamp(self.labels)
        if stamp.get("done") and stamp["key"] == digest(inputs):
            return
        begun = _stamp(inputs, jobs=self.jobs)
        _write_stamp(self.labels, begun)
        (self.scores / STAMP).unlink(missing_ok=True)
        known = self.design.data.by_id
        ended = self._in_process(
            launcher,
            [
                "segment",
                *(known[name].images[0] for name in self.design.test),
                "--model",
                self.run / "model.safetensors",
                "--out",
                self.labels,
                "--device",
                self.device,
                "--overwrite",
                "--quiet",
            ],
            "segment",
        )
        _write_stamp(self.labels, _completed(begun, ended))

    def _evaluate(self) -> None:
        begun = _stamp({**self._rules(), "labels": _read_stamp(self.labels)["key"]})
        _write_stamp(self.scores, begun)
        evaluate(
            self.labels,
            self.design.data.root,
            self.scores,
            protocol=self.design.config.protocol,
            cyst=self.design.config.cyst,
            cases=self.design.test,
            overwrite=True,
        )
        _write_stamp(self.scores, {**begun, "done": True})

    def _in_process(self, launcher: Launcher, arguments: list[str | Path], step: str) -> Ended:
        log = self.out / "logs" / f"{self.name}-{step}.log"
        ended = launcher.kidseg(*arguments, log=log)
        if ended.exit_code != 0:
            raise KidsegError(
                f"{step} ended with {ended.cause}",
                path=log,
                code="step-failed",
                next_step="The study goes on with it when it is run again.",
            )
        return ended

    def costs(self) -> dict[str, Any]:
        """Time and memory of a completed run, as plain data.

        Seconds of training by stage, as `train` reports them, by the clock of the settings ("wall"
        or "processor"); "set-up" by the same clock is the whole process's without its stages, None
        if nothing measured it. Of segmentation seconds per scan, from reading to writing, without
        the start of the program. Peaks of memory are of the whole process, the program and its
        libraries included; "device" that of a GPU's allocations.
        """
        summary = json.loads((self.run / "summary.json").read_text())
        result = json.loads((self.labels / "result.json").read_text())
        trained, used = _read_stamp(self.run), _read_stamp(self.labels)
        per_scan = [sum(scan["seconds"].values()) for scan in result["scans"]]
        clock = tomllib.loads(self.arm.settings)["budget_clock"]
        whole = trained.get({"wall": "process_seconds", "processor": "processor_seconds"}[clock])
        staged = sum(summary["seconds"].values())
        return {
            "training_clock": clock,
            "training_seconds": summary["seconds"],
            "training_set_up_seconds": None if whole is None else whole - staged,
            "training_epochs": {name: how["epochs"] for name, how in summary["stages"].items()},
            "training_process_seconds": trained["process_seconds"],
            "training_peak_memory_mb": {
                **summary["peak_memory_mb"],
                "process": trained["peak_memory_mb"],
            },
            "training_attempts": trained["attempts"],
            "segmentation_seconds_per_scan": sum(per_scan) / len(per_scan),
            "segmentation_process_seconds": used["process_seconds"],
            "segmentation_peak_memory_mb": used["peak_memory_mb"],
            "device": summary["device"],
            "precision": summary["precision"],
            "jobs": max(trained["jobs"], used["jobs"]),
        }


def _refusal(folder: Path, changed: list[str]) -> UsageError:
    return UsageError(
        f"was made otherwise than the study asks for now; what differs: {', '.join(changed)}",
        path=folder,
        code="other-settings",
        next_step="Choose another folder for the changed study, or remove this run's folders "
        "under runs, labels and scores.",
    )


def _stamp(inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"key": digest(inputs), "done": False, **more, "inputs": inputs}


def _completed(stamp: Mapping[str, Any], ended: Ended) -> dict[str, Any]:
    measured = {
        "process_seconds": round(ended.seconds, 3),
        "processor_seconds": round(ended.processor_seconds, 3),
        "peak_memory_mb": round(ended.peak_memory_mb, 1),
    }
    return {**stamp, "done": True, **measured}


def _read_stamp(folder: Path) -> dict[str, Any]:
    """The stamp of a folder; empty if there is none."""
    try:
        content: dict[str, Any] = json.loads((folder / STAMP).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(
            f"is no stamp of a study: {error}",
            path=folder / STAMP,
            code="damaged-stamp",
            next_step="Remove this folder; the study makes it again.",
        ) from error
    return content


def _write_stamp(folder: Path, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STAMP, content, overwrite=True)
