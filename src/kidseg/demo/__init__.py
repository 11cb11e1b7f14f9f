"""`kidseg demo`: segment a digital patient with the starter; train a model, and evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kidseg.cases import Case, open_dataset
from kidseg.check import check
from kidseg.config import PhantomConfig
from kidseg.demo.pictures import draw_patients, mean_overlap, shown_patient
from kidseg.errors import InputError, UsageError
from kidseg.evaluate import evaluate
from kidseg.io.atomic import write_json
from kidseg.io.output import check_output_folder
from kidseg.model_file import STARTER_USE, has_starter
from kidseg.phantom import write_patients
from kidseg.provenance import provenance
from kidseg.segment import load_predictor, segment
from kidseg.segment.clock import Clock
from kidseg.splits import Holdout, holdout
from kidseg.train import Setup, train
from kidseg.train.setup import resolve

__all__ = ["DemoResult", "planned", "run"]

METHOD, PRESET = "homogenized", "demo"
_SLICES = 24
_OUTPUTS = ("patients", "starter", "run", "result", "scores", "demo.png", "demo.json")

Progress = Callable[[str, int, int, Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results and files of the demo.

    Attributes:
        folder: output folder.
        model: file of the trained model.
        figure: image of the held-out patients.
        training: ids of the training and validation patients.
        held_out: ids of the held-out patients.
        dice: per structure the mean, SD and n over the held-out patients, as in `kidseg evaluate`.
        starter: Dice of the first held-out patient as the starter model segments it, per structure;
            None if this package has no starter.
        overlap: mean Dice of the body outlines over all pairs of held-out patients, "before" and
            "after" homogenizing pose and size.
        seconds: wall time of each part.
        record: versions, host and date; see `kidseg.provenance`.
    """

    folder: str
    model: str
    figure: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    dice: Mapping[str, Mapping[str, Any]]
    starter: Mapping[str, float] | None
    overlap: Mapping[str, float]
    seconds: Mapping[str, float]
    record: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        content = asdict(self)
        return {**content.pop("record"), **content}

    def __str__(self) -> str:
        lines = ["Dice over the held-out patients, mean (SD):"]
        for name, figures in self.dice.items():
            if figures["mean"] is not None:
                spread = "" if figures["sd"] is None else f" ({figures['sd']:.2f})"
                lines.append(f"  {name:14} {figures['mean']:.2f}{spread}, n = {figures['n']}")
        lines += [
            "Overlap (Dice) of their body outlines, mean over all pairs: "
            f"{self.overlap['before']:.2f} as scanned, {self.overlap['after']:.2f} homogenized.",
            f"Figure: {self.figure}; steps: {self.folder}/result/*_steps.png; training: "
            f"{self.folder}/run/curves.png.",
            "This model was trained for a few minutes on digital patients. It shows the procedure, "
            f"not the quality reached with real data. To segment your own scan{self._with}:",
            f"  kidseg segment SCAN{self._model_option} -o result --figures",
        ]
        return "\n".join(lines)

    @property
    def _with(self) -> str:
        return "" if self.starter is None else ", with the starter model"

    @property
    def _model_option(self) -> str:
        return f" -m {self.model}" if self.starter is None else ""


def planned(
    out: Path,
    *,
    patients: int,
    held_out: int,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """What `run` would do, after its checks; plain data.

    Raises:
        UsageError: as `run`.
    """
    _check_request(out, patients, held_out, overrides, overwrite)
    return {
        "folder": str(out),
        "patients": patients,
        "held_out": held_out,
        "method": METHOD,
        "preset": PRESET,
        "overrides": list(overrides),
        "outputs": [name for name in _OUTPUTS if name != "starter" or has_starter()],
    }


def run(
    out: Path,
    *,
    patients: int,
    held_out: int,
    seed: int,
    size: int = 128,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the demo; writes the outputs that `planned` names.

    Args:
        out: folder; created if it is missing.
        patients: number of patients, at least 5.
        held_out: number of held-out patients among them, at least 2.
        seed: of the patients, of the split and of the training.
        size: pixels along a side of their slices.
        overrides: settings of the training, "key=value", which override the preset "demo".
        overwrite: replace an earlier demo.
        say: called with a line of text at each step.
        progress: called with (step, done, total, figures).

    Raises:
        UsageError: "output-exists": `out` contains a demo and `overwrite` is not set;
            "other-folder": it contains other things;
            "too-few-patients": fewer than 3 remain for training and validation; "bad-setting".
        InputError: "unsound-phantoms": the check found an error in the digital patients.
    """
    _check_request(out, patients, held_out, overrides, overwrite)
    say, progress = say or (lambda _: None), progress or (lambda *_: None)
    clock, folder = Clock(), out / "patients"
    (out / "demo.json").unlink(missing_ok=True)
    say(f"Making {patients} digital patients, from birth to 16 years, in {folder}.")
    _write_patients(folder, size, patients, seed, overwrite, progress)
    clock.lap("patients")
    cases = open_dataset(folder).cases
    parts = holdout(cases, n_test=held_out, seed=seed)
    unseen = [case for case in cases if case.id in parts.test]
    starter = _try_starter(out, unseen[0], say, overwrite)
    clock.lap("starter")

    say(
        f"Training on {len(parts.train)} of them (method {METHOD}, preset {PRESET}): a transformer "
        "normalizes pose and size, then a U-Net segments kidneys and tumour."
    )
    model = out / "run" / "model.safetensors"
    setup = Setup(method=METHOD, preset=PRESET, overrides=overrides, cases=parts.train, seed=seed)
    train(folder, model.parent, setup, overwrite=overwrite, progress=progress)
    clock.lap("training")

    say(f"Segmenting the {held_out} held-out patients and evaluating the result.")
    dice = _segment_and_score(
        out, out, unseen, model, overwrite, lambda done, n: progress("segmenting", done, n, {})
    )
    clock.lap("segmenting")
    return _finish(out, unseen, parts, {"starter": starter, "trained": dice}, clock)


def _try_starter(
    out: Path, case: Case, say: Callable[[str], None], overwrite: bool
) -> dict[str, float] | None:
    """Segment a digital patient with the starter model; its Dice, or None without a starter."""
    if not has_starter():
        say("This kidseg was built without its starter model; a model is trained first.")
        return None
    folder = out / "starter"
    scores = _segment_and_score(out, folder, [case], None, overwrite, None)
    dice = {name: figures["mean"] for name, figures in scores.items() if figures["n"]}
    pictures = sorted((folder / "result").glob("*_steps.png"))
    say(
        f"The starter model of kidseg ({STARTER_USE}) segments {case.id} at once:"
        f" Dice {', '.join(f'{name} {value:.2f}' for name, value in dice.items())};"
        f" {pictures[0] if pictures else folder / 'result'}."
    )
    return dice


def _segment_and_score(
    out: Path,
    folder: Path,
    cases: Sequence[Case],
    model: Path | None,
    overwrite: bool,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Mapping[str, Any]]:
    """Segment patients of the demo with a model (None: the starter); Dice by structure.

    Args:
        out: folder of the demo.
        folder: where "result" and "scores" are written.
        cases: the patients.
        model: its file.
        overwrite: replace them.
        progress: called with (done, total).
    """
    patients, result = out / "patients", folder / "result"
    segment(
        [case.images[0] for case in cases],
        model,
        result,
        figures=True,
        reference=patients,
        overwrite=overwrite,
        progress=progress,
    )
    names = [case.id for case in cases]
    scores = evaluate(result, patients, folder / "scores", cases=names, overwrite=overwrite)
    return {name: figures["dice"] for name, figures in scores["structures"].items()}


def _finish(
    out: Path, unseen: Sequence[Case], parts: Holdout, dice: Mapping[str, Any], clock: Clock
) -> DemoResult:
    """Draw the figure and write `demo.json`.

    Args:
        out: folder.
        unseen: the held-out patients.
        parts: training and held-out patients.
        dice: of the "starter" and of the "trained" model.
        clock: of the parts.
    """
    model, figure = out / "run" / "model.safetensors", out / "demo.png"
    predictor = load_predictor(model)
    views = [shown_patient(case, predictor) for case in unseen]
    draw_patients(views, figure)
    clock.lap("drawing")
    found = DemoResult(
        folder=str(out),
        model=str(model),
        figure=str(figure),
        training=tuple(parts.train),
        held_out=tuple(parts.test),
        dice=dice["trained"],
        starter=dice["starter"],
        overlap={
            "before": mean_overlap([view.scanned.body for view in views]),
            "after": mean_overlap([view.homogenized.body for view in views]),
        },
        seconds={part: round(value, 1) for part, value in clock.seconds.items()},
        record=provenance(),
    )
    write_json(out / "demo.json", found.as_dict(), overwrite=True)
    return found


def _check_request(
    out: Path, patients: int, held_out: int, overrides: Sequence[str], overwrite: bool
) -> None:
    resolve(Setup(method=METHOD, preset=PRESET, overrides=overrides))
    check_output_folder(out, "a demo")
    existing = [out / name for name in _OUTPUTS if (out / name).exists()]
    if existing and not overwrite:
        raise UsageError(
            f"the folder already contains a demo ({existing[0].name})",
            path=out,
            next_step="Choose another folder, or use --overwrite.",
            code="output-exists",
        )
    if held_out < 2 or patients - held_out < 3:
        raise UsageError(
            f"{patients} patients, {held_out} of them held out, are too few",
            code="too-few-patients",
            next_step="Hold out at least 2 and keep at least 3 for training.",
        )


def _write_patients(
    folder: Path,
    size: int,
    patients: int,
    seed: int,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Write and check the digital patients."""
    write_patients(
        folder,
        PhantomConfig(size=size, max_slices=_SLICES),
        patients=patients,
        seed=seed,
        layout="nnunet",
        overwrite=overwrite,
        progress=lambda done, total: progress("patients", done, total, {}),
    )
    report = check(folder)
    if not report.ok:
        raise InputError(
            f"the digital patients are invalid: {report.errors[0]}",
            path=folder,
            next_step="Please report this error with the seed.",
            code="unsound-phantoms",
        )
