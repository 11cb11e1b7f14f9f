"""Commands that make a model of other models: calibrate, ensemble, import-nnunet, export-onnx."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from kidseg.cli.options import Adapt, AsJson, Cases, Device, Overwrite, Quiet, Set, argument, option
from kidseg.cli.progress import show_progress
from kidseg.cli.terminal import print_result
from kidseg.errors import Finding, UsageError
from kidseg.header import OnlyIn
from kidseg.table import text_table, wrapped

__all__ = ["calibrate", "ensemble", "export_onnx", "import_nnunet"]

Model = Annotated[Path, option("--out", "-o", help="The model file to write.")]


def calibrate(
    model: Annotated[str, argument(help="A model file, a run folder, or starter.")],
    dataset: Annotated[Path, argument(help="Labelled scans that it was not trained on.")],
    out: Model,
    intervals: Annotated[
        bool,
        option("--intervals", help="Calibrate the intervals of volumes, not the decision."),
    ] = False,
    scans: Annotated[
        str,
        option(help="With --intervals: what the scans are, said beside each interval."),
    ] = "",
    weights_of: Annotated[
        str | None,
        option(
            "--weights-of",
            help="Keep the weights of this model unless Dice is higher without: for few scans.",
        ),
    ] = None,
    cases: Cases = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Choose how sure a model must be of background and tumour, by Dice, and write a new model.

    Its probabilities of background and tumour get weights. A voxel is background if that is more
    probable than all labels together, and otherwise has the most probable label. The weights are
    said in the new file: see kidseg info.

    A model that was fine-tuned from a calibrated one has lost its weights. With --weights-of, a few
    scans decide whether they still help.

    With --intervals, the labels stay as they are, and the 90 % intervals of volumes that kidseg
    segment tells are made as wide as they must be to hold. At least 19 scans are needed, best
    others than those that chose the weights.

    Example: kidseg calibrate run patients -o calibrated.safetensors
    """
    from kidseg.segment.calibration import calibrate
    from kidseg.segment.interval_calibration import calibrate_intervals

    if scans and not intervals:
        raise UsageError(
            "--scans is said beside intervals, which are not calibrated",
            code="scans-unused",
            next_step="Give --intervals, or leave --scans out.",
        )
    if weights_of and intervals:
        raise UsageError(
            "--weights-of is of the decision, which --intervals leaves as it is",
            code="weights-unused",
            next_step="Calibrate the decision first, then the intervals.",
        )
    chosen, text = (
        (partial(calibrate_intervals, scans=scans), intervals_text)
        if intervals
        else (partial(calibrate, weights_of=weights_of), calibration_text)
    )
    with show_progress("cases", quiet or as_json) as advance:
        result = chosen(
            model,
            dataset,
            out,
            device=device,
            cases=cases,
            overwrite=overwrite,
            progress=advance,
        )
    print_result(result, text(result, out), as_json, quiet)


def ensemble(
    models: Annotated[list[str], argument(help="Model files, run folders, or starter.")],
    out: Model,
    member: Annotated[
        int | None, option(min=0, help="Write only this member, counted from 0.")
    ] = None,
    half: Annotated[
        bool, option("--half", help="Store weights in half precision: half the size.")
    ] = False,
    flip: Annotated[
        bool | None,
        option("--flip/--no-flip", help="Set test_time_flip; by default as the models say."),
    ] = None,
    adapt: Adapt = None,
    lone_tumour_ml: Annotated[
        float | None,
        option(
            min=0, help="Set lone_tumour_ml of the postprocessing; by default as the models say."
        ),
    ] = None,
    smooth_mm: Annotated[
        float | None,
        option(min=0, help="Set smooth_mm, across slices; by default as the models say."),
    ] = None,
    only_in: Annotated[
        OnlyIn | None,
        option(
            help="As members they count in these scans only: slabs (single slices; less than"
            " stack_mm along the patient) or stacks (all others); by default as the models say."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write models into one file, whose probabilities are averaged; or take one out of it.

    Any methods but multistage and cascade, with the same labels and input. Grids, figures and the
    training range that kidseg segment tells are those of the first.

    Example: kidseg ensemble run_a run_b -o ensemble.safetensors --half
    """
    from kidseg.members import ensemble

    made = ensemble(
        models,
        out,
        member=member,
        half=half,
        flip=flip,
        adapt=adapt,
        lone_tumour_ml=lone_tumour_ml,
        smooth_mm=smooth_mm,
        only_in=only_in,
        overwrite=overwrite,
    )
    print_result(made, ensemble_text(made), as_json, quiet)


def import_nnunet(
    folder: Annotated[Path, argument(help="TRAINER__PLANS__CONFIGURATION in nnU-Net's results.")],
    out: Model,
    folds: Annotated[
        list[str] | None, option("--fold", help="Only this fold, a number or 'all'.")
    ] = None,
    checkpoint: Annotated[str, option(help="File of each fold.")] = "checkpoint_final.pth",
    mirror: Annotated[
        bool | None,
        option("--mirror/--no-mirror", help="Average over mirrored images; as nnU-Net."),
    ] = None,
    stored: Annotated[
        str | None,
        option(help="A training image, or its order of axes, as in LPS; else as validated."),
    ] = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model file of a training of nnU-Net v2; kidseg segment then gives nnU-Net's labels.

    Several folds become one file, whose logits are averaged. Plans, dataset.json and checkpoints
    are read; nothing in a checkpoint is executed.

    Example: kidseg import-nnunet nnUNetTrainer__nnUNetPlans__2d -o imported.safetensors
    """
    from kidseg.import_nnunet import import_nnunet

    made = import_nnunet(
        folder,
        out,
        folds=folds,
        checkpoint=checkpoint,
        mirror=mirror,
        stored=stored,
        overrides=set_ or (),
        overwrite=overwrite,
    )
    print_result(made, imported_text(made), as_json, quiet)


def export_onnx(
    model: Annotated[str, argument(help="A model file, a run folder, or starter.")],
    out: Model,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a model whose networks are ONNX graphs, for kidseg without PyTorch (docs/container.md).

    Methods plain and homogenized, and ensembles of them. The graphs compute in single precision;
    labels may differ in single voxels from those of a model in half precision.

    Example: kidseg export-onnx starter -o portable.safetensors
    """
    from kidseg.segment.onnx_export import export_onnx

    made = export_onnx(model, out, overwrite=overwrite)
    print_result(made, exported_text(made), as_json, quiet)


def exported_text(made: Mapping[str, Any]) -> str:
    """What was written."""
    members = ", ".join(made["members"])
    what = f"The networks of {members} as ONNX graphs, {made['megabytes']} MB: {made['path']}"
    return "\n".join(wrapped(what))


def imported_text(made: Mapping[str, Any]) -> str:
    """What was written."""
    folds, mirrored = made["folds"], made["mirror_axes"]
    mirroring = f"mirrored along axes {mirrored}" if mirrored else "without mirroring"
    labels = ", ".join(f"{number} {name}" for number, name in made["labels"].items())
    return "\n".join(
        [
            *wrapped(f"{made['source']}, {made['configuration']}, fold {', '.join(folds)}."),
            *wrapped(f"Labels: {labels}; {mirroring}; slices, rows, columns: {made['axes']}."),
            f"Use it: kidseg segment SCAN -m {shlex.quote(made['path'])} -o result",
        ]
    )


def ensemble_text(made: Mapping[str, Any]) -> str:
    """What was written."""
    methods = made["members"]
    what = f"An ensemble of {len(methods)} models" if len(methods) > 1 else "One model"
    lines = wrapped(f"{what} ({', '.join(methods)}), {made['megabytes']} MB: {made['path']}")
    if "decision" in made["left_out"]:
        lines += wrapped(
            "The weights of the calibrated decision were left out: they belong to other"
            " probabilities. Calibrate again: kidseg calibrate."
        )
    if "intervals" in made["left_out"]:
        lines += wrapped(
            "The calibration of the intervals of volumes was left out: it belongs to other labels."
            " Calibrate again: kidseg calibrate --intervals."
        )
    return "\n".join(lines)


def calibration_text(result: Mapping[str, Any], out: Path) -> str:
    """The curve, one row for each weight of the background, and what was chosen."""
    regions = list(result["after"]["dice"])
    tumour = _others(result["after"]["weights"])
    rows = []
    for point in result["curve"]:
        shown = _others(point["weights"]) in (tumour, dict.fromkeys(tumour, 1.0))
        if shown or len(result["curve"]) == 2:
            rows.append(
                [
                    *(f"{weight:g}" for weight in point["weights"].values()),
                    f"{point['score']:.4f}",
                    *(f"{point['dice'][name]:.4f}" for name in regions),
                    "*" if point["weights"] == result["after"]["weights"] else "",
                ]
            )
    head = [*(f"{name} weight" for name in result["after"]["weights"]), "score", *regions, ""]
    gain, spread = result["gain"], result["gain"]["sd"]
    sd = "" if spread is None else f" (SD {spread:.4f})"
    decision = ", ".join(f"{name} {weight:g}" for name, weight in result["decision"].items())
    if not decision and len(result["curve"]) <= 2:
        decision = "all weights are 1: the known ones are no better"
    elif not decision:
        decision = "all weights stay 1: none is better by more than the standard error of its gain"
    lines = [
        *wrapped(
            f"Mean Dice in {len(result['cases'])} case(s); score: {', '.join(result['regions'])};"
            " *: chosen"
        ),
        *text_table(head, rows, keys=len(result["after"]["weights"])),
        "",
        *wrapped(f"Decision: {decision}."),
        *wrapped(
            f"Gain over weights of 1, in {gain['n']} case(s): {gain['mean']:+.4f}{sd}. It was"
            " measured on the cases that chose the weights; other cases gain less."
        ),
        *(line for entry in result["findings"] for line in wrapped(f"warning: {Finding(**entry)}")),
        f"Model: {shlex.quote(str(out))}",
    ]
    return "\n".join(lines)


def intervals_text(result: Mapping[str, Any], out: Path) -> str:
    """What was chosen for each structure, and how wide its intervals are in these scans."""
    rows = []
    for name, (low, high) in result["ends"].items():
        volumes = result["volumes"][name]
        found = [each["found_ml"] for each in volumes]
        errors = [each["true_ml"] - each["found_ml"] for each in volumes]
        widths = [(max(high, 0.0) - min(low, 0.0)) * each["scale_ml"] for each in volumes]
        middle = (f"{statistics.median(values):.1f}" for values in (found, errors, widths))
        rows.append([name, *middle, f"{low:+.3f}", f"{high:+.3f}"])
    head = ["structure", "volume ml", "true - found ml", "width ml", "low", "high"]
    return "\n".join(
        [
            *wrapped(
                f"{result['level']:.0%} intervals of volumes, by {len(result['cases'])} case(s);"
                " medians, and the multiples of each scan's own scale that the ends are from its"
                " volume:"
            ),
            *text_table(head, rows),
            "",
            *wrapped(
                f"Temperature {result['temperature']:g}: the entropy is that of probabilities"
                " whose logits are divided by it."
            ),
            *wrapped(
                "The intervals hold for scans like these, on average over scans: nine of ten"
                " contain the true volume. For scans of another kind nothing is known."
            ),
            *(line for one in result["findings"] for line in wrapped(f"warning: {Finding(**one)}")),
            f"Model: {shlex.quote(str(out))}",
        ]
    )


def _others(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights without that of the background."""
    return {name: weight for name, weight in weights.items() if name != "background"}
