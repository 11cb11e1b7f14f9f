"""What a report says, as plain data for its template: from `result.json` and the measurements."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from kidseg.labels import LabelSchema
from kidseg.table import place_text, ranged

__all__ = [
    "command_line",
    "criteria",
    "homogenization",
    "intervals",
    "provenance_rows",
    "removed_small",
    "review",
    "volumes",
    "warnings",
]

Record = Mapping[str, Any]

_UNITS = {"1": "", "mL": "ml", "cm2": "cm²", "m2": "m²", "mL/m2": "ml/m²"}
_SIZES = ("volume", "ellipsoid volume", "longest diameter", "longest axial diameter", "height")
_MIDLINES = {
    "body": "the middle of the body",
    "kidneys": "the middle between the kidneys, an estimate",
    "image": "the middle of the image, an estimate",
    "origin": "the origin of patient space, an estimate",
}
_FIGURES = {
    "radius_long_mm": ("body, long radius", "mm"),
    "radius_short_mm": ("body, short radius", "mm"),
    "angle_deg": ("turned in the slice", "deg"),
    "scale_x": ("size across, to the reference patient", ""),
    "scale_y": ("size down, to the reference patient", ""),
    "shift_x_mm": ("off centre, across", "mm"),
    "shift_y_mm": ("off centre, down", "mm"),
    "overlap": ("overlap with the reference patient", ""),
    "bright_hu": ("brightness of enhanced tissue", "HU"),
    "renal_hu": ("brightness of kidneys and masses", "HU"),
    "pixel_mm": ("pixel, as prepared", "mm"),
    "slice_mm": ("distance of slices", "mm"),
}
_WHEN = {"before": "as scanned", "start": "by moments", "after": "homogenized"}


def warnings(record: Record, measured: Record) -> list[str]:
    """All warnings as sentences, without paths."""
    folder = str(Path(str(record.get("path", ""))).parent)
    found = []
    for entry in (*record.get("warnings", ()), *measured.get("warnings", ())):
        text = f"{entry['cause'].rstrip('.')}."
        text = f"{text[:1].upper()}{text[1:]} {entry['next_step']}".strip()
        found.append(text.replace(f"{folder}/", "") if len(folder) > 1 else text)
    model = record.get("model", {})
    if "use" in model:
        trained = f"the {model['name']} model, {model['use']}"
        if completed := record.get("completed"):
            trained += f", trained further on the {completed['slices']} drawn slices"
        found.append(f"The labels are those of {trained}.")
    return list(dict.fromkeys(found))


def removed_small(record: Record, schema: LabelSchema) -> str:
    """The small pieces that were removed, in a sentence; "" without any, or if it is not known."""
    removed = record.get("removed") or {}
    totals = removed.get("by_reason", {}).get("small", {"count": 0})
    if not totals["count"]:
        return ""
    largest = next(piece for piece in removed["pieces"] if piece["reason"] == "small")
    by_size = sorted(largest["voxels"].items(), key=lambda item: -item[1])
    names = " and ".join(schema.names.get(int(label), f"label {label}") for label, _ in by_size)
    size, place = f"{largest['volume_ml']:.2g} ml", place_text(largest["centre_mm"])
    limit = f"{removed['below_ml']:.2g} ml"
    if totals["count"] == 1:
        return f"1 piece, {size}, below {limit}, was removed: {names}, at {place}."
    return (
        f"{totals['count']} pieces, {totals['volume_ml']:.2g} ml in all, each below {limit}, were"
        f" removed; the largest: {names}, {size}, at {place}."
    )


def volumes(measured: Record, record: Record) -> dict[str, Any]:
    """Sizes of all structures, and the measures of each side and of both; see `intervals`."""
    rows = []
    for structure in measured["structures"]:
        known = {quantity["name"]: quantity for quantity in structure["quantities"]}
        rows.append(
            {
                "id": structure["id"],
                "label": structure["label"],
                "cells": [_text(known.get(name)) for name in _SIZES],
                "borders": structure["borders"],
            }
        )
    groups = [*measured["sides"].items(), ("both sides", measured["patient"])]
    midline = measured["midline"]["from"]
    return {
        "head": ["volume ml", "ellipsoid ml", "longest mm", "longest axial mm", "height mm"],
        "rows": rows,
        "sides": [
            {
                "name": name,
                "measures": [_measure(each) for each in measures],
            }
            for name, measures in groups
            if measures
        ],
        "lesions": [_lesion(each) for each in measured["structures"] if each["renal_score"]],
        "midline": _MIDLINES.get(midline, midline),
        "intervals": intervals(record),
    }


def _lesion(structure: Record) -> dict[str, Any]:
    """Where a tumour lies and what it touches, and its R.E.N.A.L. score."""
    sizes = {*_SIZES, "width across it"}
    measures = [_measure(each) for each in structure["quantities"] if each["name"] not in sizes]
    crosses = {"met": "yes", "not met": "no"}.get(structure["crosses_midline"], "cannot tell")
    measures.append({"name": "crosses the midline", "text": crosses, "note": ""})
    for name, found in structure["renal_score"].items():
        points = " or ".join(map(str, found["points"])) or "cannot tell"
        measures.append({"name": f"R.E.N.A.L. {name}", "text": points, "note": found["reason"]})
    return {"name": structure["id"], "measures": measures}


def intervals(record: Record) -> str:
    """What the intervals of the segmentation are worth, in a sentence; "" if it gave none."""
    review = record.get("review") or {}
    known = (each.get("interval_ml") for each in review.get("structures", {}).values())
    if not any(known):
        return ""
    what = f"{round(100 * review.get('level', 0))} % intervals of the segmentation"
    if review.get("interval") != "conformal":
        return f"The {what} are of {review.get('opinions', 1)} opinions, and not calibrated."
    scans, count = review.get("calibrated_scans") or "labelled scans", review["calibrated_on"]
    return (
        f"The {what} were calibrated on {count} {scans}, and hold for scans like these; for others,"
        " take them as too narrow."
    )


def criteria(measured: Record) -> dict[str, Any]:
    """Each criterion, with its answers for one or both sides."""
    known = measured["criteria"]
    found: dict[str, dict[str, Any]] = {}
    for each in known["answers"]:
        stated = {name: each[name] for name in ("title", "about", "source", "confirmed")}
        found.setdefault(each["id"], {**stated, "answers": []})["answers"].append(
            {
                **{name: each[name] for name in ("subject", "verdict")},
                "mark": each["verdict"].replace(" ", "-"),
                "conditions": [_condition(condition) for condition in each["conditions"]],
            }
        )
    return {
        "version": known["version"],
        "signed_off": known["signed_off"] or "not signed off by a clinician",
        "list": list(found.values()),
    }


def homogenization(record: Record) -> dict[str, Any]:
    """How far the patient is from those of the training, and the pose before and after."""
    ranges = record.get("training_range") or {}
    figures = ranges.get("figures", {})
    far = ranges.get("far_sd", 1.0)
    named = [name for name in (*_FIGURES, *figures) if name in figures]
    return {
        "known": bool(ranges.get("known")),
        "far_sd": far,
        "figures": [_figure(name, figures[name], far) for name in dict.fromkeys(named)],
        "overlap": _overlap(record.get("overlap") or {}),
        "pose": _poses(record.get("grids") or {}),
        "notes": [note["text"] for note in (record.get("notes") or {}).values()],
    }


def review(record: Record) -> dict[str, Any] | None:
    """What is in doubt, and the slices to look at first; None if the record has none."""
    found = record.get("review")
    if not found:
        return None
    level = round(100 * found.get("level", 0))
    return {
        "opinions": found.get("opinions", 1),
        "intervals": intervals(record),
        "structures": [
            {"name": name, "text": _reviewed(each, level)}
            for name, each in found.get("structures", {}).items()
        ],
        "slices": list(found.get("slices", ())),
    }


def _reviewed(structure: Record, level: int) -> str:
    """A volume, with the interval of the review if it has one."""
    volume = structure["volume_ml"]
    if (interval := structure.get("interval_ml")) is None:
        return f"{ranged(volume, volume, volume, exact=True)} ml, no interval is known"
    low, high = (min(interval[0], volume), max(interval[1], volume))
    return f"{ranged(volume, low, high)} ml, {level} % interval"


def provenance_rows(record: Record, measured: Record, command: str) -> list[tuple[str, str]]:
    """Names and values: hashes, versions, model, machine, command. No path and no host name."""
    model, versions = record.get("model") or {}, record.get("versions", {})
    host = record.get("host", {})
    members = (record.get("ensemble") or {}).get("members", ())
    rows = [
        ("scan SHA-256", record.get("scan_sha256") or record.get("sha256", "")),
        ("labels SHA-256", record.get("labels_sha256", "")),
        ("model", _model(model)),
        ("model SHA-256", model.get("sha256", "")),
        ("members of the ensemble", ", ".join(members)),
        ("completed", _completed(record.get("completed") or {})),
        ("formats", ", ".join(record.get("formats", ()))),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if value)),
        ("computed on", _machine(record, host)),
        ("date", str(record.get("date", ""))),
        ("criteria", f"version {measured['criteria']['version']}"),
        ("command", command),
    ]
    return [(name, value) for name, value in rows if value]


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that runs, with file names instead of paths; "" if it is another program.

    Args:
        arguments: with the program; by default those of this process.
    """
    program, *rest = sys.argv if arguments is None else arguments
    if Path(program).parent.name != "kidseg" and Path(program).stem != "kidseg":
        return ""
    return shlex.join(["kidseg", *(PurePath(each).name or each for each in rest)])


def _measure(quantity: Record) -> dict[str, str]:
    text = f"{_text(quantity)} {_unit(quantity['unit'])}".strip()
    return {"name": quantity["name"], "text": text, "note": quantity["note"]}


def _text(quantity: Record | None) -> str:
    if quantity is None:
        return "-"
    value, low, high = (quantity[name] for name in ("value", "low", "high"))
    is_count = quantity["unit"] == "1"
    exact = quantity["interval"] == "none" or (is_count and low == value == high)
    return ranged(value, low, high, exact=exact, whole=is_count)


def _unit(unit: str) -> str:
    return _UNITS.get(unit, unit)


def _condition(condition: Record) -> dict[str, str]:
    quantity = condition["quantity"]
    value = "" if quantity is None else f"{_text(quantity)} {_unit(quantity['unit'])}".strip()
    names = ("text", "verdict", "reason")
    return {**{name: condition[name] for name in names}, "value": value}


def _figure(name: str, known: Record, far: float) -> dict[str, Any]:
    """A number of the patient beside the range of the training; places are per cent of a bar."""
    title, unit = _FIGURES.get(name, (name, ""))
    value, low, high, away = (known[key] for key in ("value", "min", "max", "distance_sd"))
    least, most = min(value, low), max(value, high)
    width = (most - least) or 1.0
    least, width = least - 0.08 * width, 1.16 * width

    def place(number: float) -> float:
        return round(float(100 * (number - least) / width), 1)

    return {
        "title": title,
        "unit": unit,
        "value": _short(value),
        "range": f"{_short(low)} to {_short(high)}",
        "distance": "outside a range of one" if away is None else f"{away:.1f}",
        "is_far": away is None or away > far,
        "is_outside": away is None or away > 0,
        "places": {"value": place(value), "low": place(low), "width": place(high) - place(low)},
    }


def _short(number: float) -> str:
    """Three digits, and all before the point."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _overlap(found: Record) -> dict[str, Any] | None:
    """Overlap with the reference patient of each mask, at each time."""
    times = [when for when in _WHEN if when in found]
    if not times:
        return None
    by_mask = {mask: {when: found[when][mask] for when in times} for mask in found[times[-1]]}
    if agreement := found.get("agreement"):
        by_mask["agreement"] = agreement
    rows = [(_WHEN[when], [f"{each[when]:.2f}" for each in by_mask.values()]) for when in times]
    kept = found.get("kept")
    return {
        "masks": list(by_mask),
        "rows": rows,
        "kept": "the pose by moments" if kept == "start" else "the network's correction",
    }


def _poses(grids: Mapping[str, Sequence[Record]]) -> list[dict[str, str]]:
    """How each step turned, scaled and moved the slices: medians over the slices."""
    found = []
    for step, regions in grids.items():
        for region in regions:
            if "angle_deg" not in region:
                continue
            across, down = region["scale"]["median"]
            x, y = region["shift_mm"]["median"]
            found.append(
                {
                    "step": " ".join(filter(None, (step, region["name"]))),
                    "angle": f"{region['angle_deg']['median'][0]:.1f}",
                    "scale": f"{across:.2f} x {down:.2f}",
                    "shift": f"{round(x)}, {round(y)}",
                }
            )
    return found


def _model(model: Record) -> str:
    path = PurePath(str(model.get("path", ""))).name
    parts: Iterable[str] = (str(model.get("method", "")), str(model.get("name", path)))
    return ", ".join(part for part in parts if part)


def _completed(known: Record) -> str:
    """From which slices labels were completed; "" if they were not."""
    if not known:
        return ""
    drawn = f"{known['slices']} of {known['of']} slices were drawn (SHA-256 {known['sha256']})"
    start = f"the model of SHA-256 {known['start']['sha256']}"
    return f"{drawn}; {known['steps']} steps of training on them, from {start}"


def _machine(record: Record, host: Record) -> str:
    parts = [str(record.get("device", "")), str(record.get("precision", ""))]
    parts += [str(host.get("cpu", "")), *map(str, host.get("gpu", ()))]
    return ", ".join(part for part in parts if part)
