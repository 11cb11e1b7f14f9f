"""What commands print on standard output, as text for people."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kidseg.cli.progress import duration
from kidseg.errors import Finding, counted, quoted
from kidseg.table import text_table, wrapped

__all__ = [
    "checkup_text",
    "counted_findings",
    "described",
    "planned_text",
    "preview_text",
    "scores_text",
    "steps_lines",
    "structures_lines",
    "training_notes",
    "training_text",
]

_WITHOUT_PYTORCH = (
    "none: exported models segment on the CPU; no training, no lossless JPEG in DICOM, no figures"
    " and pages; see docs/container.md"
)
_TOLD = (
    "calibration-left-out",
    "other-software",
    "label-not-learned",
    "label-not-understood",
    "no-kidney-label",
    "no-curves",
    "not-better",
)
_STOPPED = {
    "epochs": "all epochs done",
    "patience": "no better for long",
    "budget": "time was up",
}


def training_notes(summary: Mapping[str, Any], out: Path) -> Iterator[str]:
    """What a user should know of a training besides its figures; one line each."""
    shown = [one for one in summary["findings"] if one["code"] in _TOLD]
    for finding in shown:
        yield str(Finding(**finding))
    if more := counted_findings([one for one in summary["findings"] if one not in shown]):
        yield f"remarks on the data, told in {out / 'summary.json'}: {more}"
    if summary["start"] is not None:
        yield summary["start"]["text"]


def counted_findings(findings: Iterable[Mapping[str, Any]]) -> str:
    """Findings by what they are, the most frequent first; "" for none."""
    return counted(dict(Counter(one["code"] for one in findings).most_common()))


def structures_lines(facts: Mapping[str, Any]) -> list[str]:
    """Which structures of DICOM annotations are which labels; [] for other data sets."""
    lines: list[str] = []
    for label, names in facts.get("structures", {}).items():
        each = ", ".join(f"{quoted(name)} ({n})" for name, n in sorted(names.items()))
        what = label if label != "no label" else "no label, left out"
        lines += wrapped(f"{what}: {each}", indent="  ")
    return ["Structures (number of objects):", *lines] if lines else []


def planned_text(would_segment: Sequence[Mapping[str, Any]]) -> str:
    """The files that a segmentation would write."""
    files = [file for entry in would_segment for file in entry["outputs"]]
    return "\n".join([f"Would segment {len(would_segment)} scan(s) and write:", *files])


def training_text(summary: Mapping[str, Any], out: Path) -> str:
    """The end of a training: Dice, time and memory, the model's path and the next command."""
    lines: list[str] = []
    before = (summary.get("start") or {}).get("validation", {})
    for stage, metrics in summary["validation"].items():
        if dice := metrics.get("dice"):
            n = len(summary["cases"]["validation"])
            was = before.get(stage, {}).get("dice", {})
            lines += wrapped(f"Dice in {n} validation case(s), stage {stage}:")
            head = ["structure", *(["before"] if was else []), "Dice"]
            rows = [[k, *([f"{was[k]:.3f}"] if was else []), f"{v:.3f}"] for k, v in dice.items()]
            lines += [*text_table(head, rows), ""]
    if steps := summary.get("steps"):
        lines += [*steps_lines(steps, len(summary["cases"]["validation"])), ""]
    rows = [
        [name, *_stage_cells(summary["stages"].get(name)), f"{seconds:.1f} s"]
        for name, seconds in summary["seconds"].items()
    ]
    rows.append(["total", "", "", "", duration(sum(summary["seconds"].values()))])
    lines += text_table(["stage", "epochs", "best", "ended because", "time"], rows)
    memory = ", ".join(f"{name} {mb:.0f} MB" for name, mb in summary["peak_memory_mb"].items())
    model = shlex.quote(str(out / summary["model"]["path"]))
    return "\n".join(
        [
            *lines,
            "",
            f"Peak memory: {memory}. All figures: {out / 'summary.json'}.",
            f"Model: {model}",
            f"Next: kidseg segment SCAN -m {model} -o result",
        ]
    )


def steps_lines(steps: Mapping[str, Any], cases: int) -> list[str]:
    """Dice after each step of a method of several steps, a row per step.

    Args:
        steps: {step: {structure: {"mean", "sd", "n"}}}.
        cases: number of validation cases.
    """
    names = list(dict.fromkeys(name for figures in steps.values() for name in figures))
    rows = [
        [step, *(_dice_text(figures.get(name)) for name in names)]
        for step, figures in steps.items()
    ]
    title = f"Dice in {cases} validation case(s) after each step, mean (SD):"
    return [*wrapped(title), *text_table(["step", *names], rows)]


def _dice_text(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "-"
    sd = "" if figures["sd"] is None else f" ({figures['sd']:.3f})"
    return f"{figures['mean']:.3f}{sd}"


def preview_text(preview: Mapping[str, Any], out: Path) -> str:
    """What a training run or a store would do."""
    rows = [
        ("method", f"{preview['method']}, preset {preview['preset'] or 'none'}"),
        ("from", f"a {preview['source']}"),
        *(
            [("start", f"model {preview['start']}, tuning: {preview['tune']}")]
            if preview["start"]
            else []
        ),
        *(
            (part, f"{len(ids)} case(s): {', '.join(ids)}")
            for part, ids in preview["cases"].items()
            if ids
        ),
        ("into", str(out)),
    ]
    note = "Nothing was written and no voxel read; kidseg config explains the settings:"
    return "\n".join([*described(rows), "", note, "", preview["settings"].rstrip("\n")])


def scores_text(summary: Mapping[str, Any]) -> str:
    """The findings and scores of an evaluation, a row per structure.

    n is the number of cases with a Dice; a metric of fewer cases says its own.
    """
    from kidseg.evaluate.score_page import counted

    metrics = (("dice", 3), ("hd95_mm", 1), ("surface_dice", 3), ("volume_error_ml", 1))
    head = ["structure", "Dice", "HD95 mm", "surface Dice", "volume error ml", "n"]
    rows = [
        [
            name,
            *(
                _spread(figures[metric], decimals, figures["dice"]["n"])
                for metric, decimals in metrics
            ),
            str(figures["dice"]["n"]),
        ]
        for name, figures in summary["structures"].items()
    ]
    found = [f"{finding['severity']}: {Finding(**finding)}" for finding in summary["findings"]]
    title = f"{counted(summary)}, protocol {summary['protocol']}; mean (SD):"
    return "\n".join([*found, title, *text_table(head, rows)])


def _stage_cells(stage: Mapping[str, Any] | None) -> list[str]:
    if stage is None:
        return ["", "", ""]
    return [str(stage["epochs"]), str(stage["epoch"] + 1), _STOPPED[stage["stopped"]]]


def _spread(figures: Mapping[str, Any], decimals: int, n: int) -> str:
    if figures["mean"] is None:
        return "-"
    sd = "" if figures["sd"] is None else f" ({figures['sd']:.{decimals}f})"
    own = "" if figures["n"] == n else f", n {figures['n']}"
    return f"{figures['mean']:.{decimals}f}{sd}{own}"


def checkup_text(checkup: Mapping[str, Any]) -> str:
    """What `kidseg doctor` found; problems last."""
    host, device, threads = checkup["host"], checkup["device"], checkup["threads"]
    memory = checkup["memory_available_gb"]
    rows = [
        ("versions", _versions(checkup["versions"])),
        *(() if checkup["pytorch"] else (("PyTorch", _WITHOUT_PYTORCH),)),
        ("libraries", _versions(checkup["libraries"])),
        ("decoders", _versions(checkup["decoders"])),
        *(
            (f"[{name}]", f"{'installed' if one['installed'] else 'not installed'}: {one['for']}")
            for name, one in checkup["extras"].items()
        ),
        ("machine", f"{host['name']}, {host['platform']}"),
        ("processor", f"{host['cpu']}, {threads['usable_cores']} of {host['cores']} cores"),
        ("GPU", ", ".join(host["gpu"]) or "none"),
        ("device", f"{device['name']}, {device['precision']}, {threads['torch']} thread(s)"),
        ("memory", "unknown" if memory is None else f"{memory} GB available"),
        *(("space", f"{one['path']}: {_free(one['free_gb'])}") for one in checkup["folders"]),
        *(
            (
                "test",
                f"{one['test']}: {'passed' if one['passed'] else 'FAILED'}, {one['seconds']} s",
            )
            for one in checkup["tests"]
        ),
    ]
    lines = described(rows)
    for problem in checkup["problems"]:
        path = f"{problem['path']}: " if problem["path"] else ""
        lines += wrapped(f"problem: {path}{problem['cause']}. {problem['next_step']}", indent="  ")
    lines.append("All is sound." if checkup["sound"] else "Not sound: see the problems above.")
    return "\n".join(lines)


def described(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of titles and what belongs to them, continued below it."""
    side = max(len(title) for title, _ in rows) + 2
    lines = []
    for title, text in rows:
        lines += wrapped(f"{title:{side}}{text}", indent=" " * side)
    return lines


def _versions(found: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())


def _free(free_gb: float | None) -> str:
    return "cannot be used" if free_gb is None else f"{free_gb} GB free"
