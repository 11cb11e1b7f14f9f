"""Training on the labels of clients, in the background: a better model becomes the current one.

Each training starts from the current model, as `kidseg train --from` in a process of its own; of an
ensemble, such as the starter, one member after the other, which are an ensemble again. Some
labelled images are kept out of every training; only a model that is better on them is taken.
Calibrated weights of the decision are kept unless the labelled images that choose the best epoch
speak against them; those that are kept out have no say in it, so that the comparison stays fair.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kidseg.errors import Finding, KidsegError
from kidseg.header import MEMBERS, ONLY_IN, decision_of, read_header
from kidseg.io.content import sha256_of
from kidseg.labels import LabelSchema
from kidseg.model_file import MODEL_FILE
from kidseg.segment.intervals import INTERVALS
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.calibration_kept import NO_INTERVALS, NO_WEIGHTS, judges_of, weights_told
from kidseg.serve.child_command import run_command
from kidseg.serve.images import FINAL, Image, ImageStore
from kidseg.serve.job import new_id
from kidseg.serve.learned_from import names_said, write_training_data
from kidseg.serve.refusals import RefusedError
from kidseg.serve.training_state import Learning, State

__all__ = ["LEAST", "TUNES", "USUAL", "Learner", "divided"]

LEAST = 3
"""Labelled images: one to learn from, one to choose the best epoch by, one that is kept out."""

_KEPT_SHARE = 0.2
_LINES = 20
_EPOCH = re.compile(r"(?P<stage>[^:]+): epoch (?P<epoch>\d+) of (?P<total>\d+), (?P<figures>.*)")
_LOG = "training.log"

USUAL = "usual"
TUNES = (USUAL, "all", "decoder", "ends")
"""What to train: "usual" is all but the pose network of System A, which has seen more bodies than a
few labelled images show; for the others see `kidseg.train.Setup`."""

_log = logging.getLogger("kidseg.serve")

_USUAL = {"homogenized": "segment.*"}
_LIMIT_S = 3600.0
"""Of a training, shared by the members of an ensemble; options of `kidseg train` come after it."""

_METHOD = "--method"
"""Of `kidseg train`: only the first member of this method is trained."""


@dataclass(eq=False)
class Learner:
    """Trains, one model after the other.

    Attributes:
        folder: has the trainings and the models.
        images: with the labels.
        audit: log.
        device: see `kidseg.device.choose_device`.
        options: further arguments of `kidseg train`.
        model: returns the file of the current model.
        changed: called when a better model is the current one.
    """

    folder: Path
    images: ImageStore
    audit: AuditLog
    device: str
    options: Sequence[str]
    model: Callable[[], Path]
    changed: Callable[[], None]
    _trainings: dict[str, Learning] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder / "trainings", ignore_errors=True)  # of an earlier server
        for name in ("trainings", "models"):
            (self.folder / name).mkdir(exist_ok=True, mode=0o700)

    @property
    def last(self) -> Learning | None:
        """The training that was started last; None if there was none."""
        return next(reversed(self._trainings.values()), None)

    @property
    def is_running(self) -> bool:
        """Is a model trained now?"""
        return self._thread is not None and self._thread.is_alive()

    def start(self, tune: str = USUAL) -> Learning:
        """Start a training on all final labels.

        Args:
            tune: one of `TUNES`, or patterns; see `kidseg.train.Setup`.

        Raises:
            RefusedError: 409 "too-few-labels"; 429 "training-runs".
        """
        with self._lock:
            if self.is_running:
                raise RefusedError(
                    429,
                    "a training is running",
                    code="training-runs",
                    next_step="Wait for its end, or stop it.",
                    retry_after_s=60,
                )
            labelled = [image for image in self.images.all() if FINAL in image.labels]
            if len(labelled) < LEAST:
                raise RefusedError(
                    409,
                    f"{len(labelled)} images have final labels, and {LEAST} are required: to learn"
                    " from, to validate on, and to compare the models on",
                    code="too-few-labels",
                    next_step="Label more images first.",
                )
            self._stopping.clear()
            started = Learning(id=new_id(), state="RUNNING", started=time.time())
            self._trainings[started.id] = started
            self._thread = threading.Thread(
                target=self._run, args=(labelled, tune), name="learner", daemon=True
            )
            self._thread.start()
            return started

    def ask_to_stop(self) -> Learning | None:
        """Let the training end soon; the last one. None if there was none."""
        with self._lock:  # none starts between the two
            self._stopping.set()
            return self.last

    def as_ended(self, training: str) -> Learning | None:
        """The training with this id, also if another has started since; None while it runs."""
        is_last = self.last is not None and self.last.id == training
        return None if is_last and self.is_running else self._trainings[training]

    def stop(self) -> None:
        """Stop the training, and wait for its end."""
        self.ask_to_stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self, labelled: Sequence[Image], tune: str) -> None:
        assert self.last is not None
        place = self.folder / "trainings" / self.last.id
        try:
            self.audit.write("training-started", training=self.last.id, images=len(labelled))
            place.mkdir(mode=0o700)
            error = self._learn(labelled, tune, place)
        except KidsegError as known:
            error = known.as_finding()
        except Exception as fault:  # of any kind: the server goes on
            error = Finding(
                code="training-failed",
                path="",
                cause=f"the training failed ({type(fault).__name__})",
                next_step="Please report this error.",
                severity="error",
            )
        state: State = "DONE" if error is None else "ERROR"
        if self._stopping.is_set() and error is not None:
            state, error = "STOPPED", None
        shutil.rmtree(place, ignore_errors=True)  # a full disk gets its room back, for the log too
        self._say(state=state, error=error, ended=time.time())
        try:
            self.audit.write(
                f"training-{state.lower()}",
                training=self.last.id,
                code=None if error is None else error.code,
                before=self.last.before,
                after=self.last.after,
                taken=self.last.taken,
            )
        except Exception as fault:  # such as a full disk
            _log.error("the end of a training is not in the log: %s", type(fault).__name__)
        _log.warning("%s", self.last)  # warnings are printed

    def _learn(self, labelled: Sequence[Image], tune: str, place: Path) -> Finding | None:
        """Train, compare, and take the better model; why it failed."""
        model = self.model()
        header = read_header(model)
        learned, kept = divided(labelled)
        self.images.assign("kept", [image.id for image in kept])
        self.images.assign("learned", [image.id for image in learned])
        for name, images in (("kept", kept), ("data", learned)):
            cases = [
                (f"case_{image.id}", image.path, label.path, names_said(label.info))
                for image in images
                if (label := image.labels.get(FINAL))
            ]
            schema = LabelSchema.from_dict(header["labels"])
            channel = str(header["plan"]["channels"][0]["channel"])
            write_training_data(place / name, cases, schema, channel)
            if self._stopping.is_set():
                return _stopped()
        trained = self._train(model, header, tune, place)
        if not isinstance(trained, Finding) and decision_of(header, model):
            trained = self._decide(model, trained, place)
        if isinstance(trained, Finding):
            return trained
        assert self.last is not None
        if INTERVALS in header:
            self._say(calibration=(*self.last.calibration, NO_INTERVALS))
        for name, file in (("before", model), ("after", trained)):
            dice = self._score(name, file, place)
            if isinstance(dice, Finding):
                return dice
            self._say(stage="compare", **{name: dice})
        assert self.last and self.last.before is not None and self.last.after is not None
        if self.last.after > self.last.before:
            self._take(trained)
        return None

    def _train(
        self, model: Path, header: Mapping[str, Any], tune: str, place: Path
    ) -> Path | Finding:
        """Train from a model, of an ensemble each member; the file of the new one, or why not."""
        members = header.get(MEMBERS, ())
        if not members or any(word.split("=")[0] == _METHOD for word in self.options):
            return self._train_one(model, header, _LIMIT_S, tune, place / "run", place)
        trained = []
        for k, member in enumerate(members):
            self._say(member=k + 1, members=len(members))
            start = place / f"start-{k}.safetensors"
            taken_out = ["ensemble", str(model), "--member", str(k), "-o", str(start)]
            if (failed := self._command(taken_out, place)) is not None:
                return failed
            limit = _LIMIT_S / len(members)
            one = self._train_one(start, member, limit, tune, place / f"run-{k}", place)
            if isinstance(one, Finding):
                return one
            if only_in := member.get(ONLY_IN):
                one, run = place / f"member-{k}.safetensors", one
                counting = ["ensemble", str(run), "-o", str(one), "--only-in", only_in]
                if (failed := self._command(counting, place)) is not None:
                    return failed
            trained.append(one)
        joint = place / "joint.safetensors"
        failed = self._command(["ensemble", *map(str, trained), "-o", str(joint)], place)
        return joint if failed is None else failed

    def _train_one(
        self,
        start: Path,
        header: Mapping[str, Any],
        limit_s: float,
        tune: str,
        run: Path,
        place: Path,
    ) -> Path | Finding:
        """Train from one model; the file of the new one, or why it failed."""
        tuned = _USUAL.get(str(header["method"]), "all") if tune == USUAL else tune
        arguments = ["--from", str(start), f"--tune={tuned}", "--device", self.device]
        arguments += ["--set", f"budget_s={limit_s:g}", *self.options]
        failed = self._command(["train", str(place / "data"), "-o", str(run), *arguments], place)
        return run / MODEL_FILE if failed is None else failed

    def _decide(self, model: Path, trained: Path, place: Path) -> Path | Finding:
        """Keep the weights of a model's decision, unless they lower Dice in validation images."""
        if not (images := judges_of(sorted(place.glob("run*")))):
            self._say(calibration=(NO_WEIGHTS,))
            return trained
        self._say(stage="calibrate")
        decided = place / "decided.safetensors"
        command = ["calibrate", str(trained), str(place / "data"), "-o", str(decided)]
        command += ["--weights-of", str(model), "--device", self.device]
        command += [word for image in images for word in ("--case", image)]
        if (failed := self._command(command, place)) is not None:
            return failed
        found = json.loads((place / _LOG).with_suffix(".json").read_bytes())
        self._say(calibration=(weights_told(found),))
        return decided

    def _score(self, name: str, model: Path, place: Path) -> float | Finding:
        """Mean Dice of a model on the kept images."""
        labels, scores = place / f"labels-{name}", place / f"scores-{name}"
        images = str(place / "kept" / "imagesTr")
        segment = ["segment", images, "-m", str(model), "-o", str(labels), "--device", self.device]
        evaluate = ["evaluate", str(labels), str(place / "kept"), "-o", str(scores)]
        for command in (segment, evaluate):
            if (failed := self._command(command, place)) is not None:
                return failed
        summary = json.loads((scores / "summary.json").read_bytes())
        return mean_dice(summary)

    def _command(self, arguments: Sequence[str], place: Path) -> Finding | None:
        if self._stopping.is_set():
            return _stopped()
        log = place / _LOG
        wanted = [*arguments, "--json"] if arguments[0] != "train" else list(arguments)
        return run_command(wanted, log, lambda: not self._stopping.is_set(), self._hear)

    def _hear(self, line: str) -> None:
        assert self.last is not None
        lines = (*self.last.lines, line)[-_LINES:]
        match = _EPOCH.fullmatch(line)
        if match is None:
            self._say(lines=lines)
        else:
            epoch, epochs = int(match["epoch"]), int(match["total"])
            self._say(lines=lines, stage=match["stage"], epoch=epoch, epochs=epochs)

    def _say(self, **changes: Any) -> None:
        assert self.last is not None
        self._trainings[self.last.id] = replace(self.last, **changes)

    def _take(self, trained: Path) -> None:
        """Make a model the current one."""
        assert self.last is not None
        digest = sha256_of(trained)
        kept = self.folder / "models" / f"{digest}.safetensors"
        trained.replace(kept)
        facts = {"before": self.last.before, "after": self.last.after, "training": self.last.id}
        self.images.add_model(kept, digest, facts)
        self._say(taken=True)
        self.changed()


def divided(labelled: Sequence[Image]) -> tuple[list[Image], list[Image]]:
    """(images to learn from, images to keep out), which stay on their side in later trainings.

    A fifth is kept out, at least one, chosen by their ids among those that nothing was learned
    from.

    Args:
        labelled: at least `LEAST`.
    """
    kept = [image for image in labelled if image.role == "kept"]
    fresh = [image for image in labelled if image.role is None]
    fresh.sort(key=lambda image: hashlib.sha256(image.id.encode()).digest())
    missing = max(0, max(1, round(_KEPT_SHARE * len(labelled))) - len(kept))
    kept += fresh[:missing]
    names = {image.id for image in kept}
    return [image for image in labelled if image.id not in names], kept


def mean_dice(summary: Mapping[str, Any]) -> float:
    """Mean over the structures of the Dice in a summary of `kidseg evaluate`; 0 without any."""
    values = [
        structure["dice"]["mean"]
        for structure in summary["structures"].values()
        if structure["dice"]["mean"] is not None
    ]
    return sum(values) / len(values) if values else 0.0


def _stopped() -> Finding:
    return Finding(
        code="stopped",
        path="",
        cause="it was stopped",
        next_step="No label is lost: start a training again at any time.",
        severity="error",
    )
