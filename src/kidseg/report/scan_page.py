"""The report of a scan: one HTML file with everything in it, which opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch

from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import canonical
from kidseg.labels import LabelSchema
from kidseg.report import sections
from kidseg.report.annotation import CT_WINDOW
from kidseg.report.planes import draw_planes, middle_of
from kidseg.report.templates import data_uri, filled
from kidseg.report.viewing import HU_STEP, Viewed, view
from kidseg.table import place_text

__all__ = ["Content", "view_note", "write_report"]

_WINDOWS = (
    ("soft tissue", *CT_WINDOW),
    ("kidney", 0.0, 300.0),
    ("bone", -500.0, 1300.0),
    ("wide", -1024.0, 1500.0),
)
"""Name, and values shown in black and in white, in HU. Conventions of radiology."""

_GREY_WINDOWS = (("usual", 0.0, 1023.0), ("dark", 0.0, 500.0), ("bright", 300.0, 2046.0))
_MOST_PIECES = 8  # removed pieces that can be looked at


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What a report is about.

    Attributes:
        name: of the scan, as its files are named.
        scan: (channels, slices, rows, columns); the first channel is shown.
        labels: (1, ...) uint8 on the same voxels.
        schema: of the labels.
        record: entry of `result.json`, or of a conversion.
        measured: see `kidseg.measure.measurement.Measurement.as_dict`.
        steps: PNG of the steps; None without.
        settings: of the model, as TOML.
        is_ct: the values are HU.
    """

    name: str
    scan: Volume
    labels: Volume
    schema: LabelSchema
    record: Mapping[str, Any]
    measured: Mapping[str, Any]
    steps: bytes | None = None
    settings: str = ""
    is_ct: bool = True
    command: str = field(default_factory=sections.command_line)


def write_report(content: Content, file: BinaryIO) -> dict[str, Any]:
    """Write the report of a scan.

    Args:
        content: of the report.
        file: to write, HTML in UTF-8.

    Returns:
        How the view in it differs from the data, as plain data: see `Viewed.facts`; and "bytes".

    Raises:
        UsageError, ModelError: see `kidseg.report.templates.viewer_script`.
    """
    first = canonical(Volume(content.scan.data[:1], content.scan.grid))
    labels = canonical(content.labels)
    viewed = view(first, labels, content.schema, is_ct=content.is_ct)
    windows = _WINDOWS if content.is_ct else _GREY_WINDOWS
    at = middle_of(_main(labels, content.schema))
    still = draw_planes(first, labels, content.schema, at, **_shown(first, content.is_ct))
    places = _places(first.grid, labels, content, at)
    review = sections.review(content.record)
    page = filled(
        "scan.html",
        "scan.js",
        viewer=True,
        name=content.name,
        warnings=sections.warnings(content.record, content.measured),
        removed_small=sections.removed_small(content.record, content.schema),
        volumes=sections.volumes(content.measured, content.record),
        criteria=sections.criteria(content.measured),
        homogenization=sections.homogenization(content.record),
        has_model=bool((content.record.get("model") or {}).get("method")),
        review=review,
        provenance=sections.provenance_rows(content.record, content.measured, content.command),
        settings=content.settings,
        steps=None if content.steps is None else data_uri(content.steps),
        still={"uri": data_uri(still.png), "alt": still.alt},
        windows=[{"name": name, "low": low, "high": high} for name, low, high in windows],
        range={"low": int(windows[-1][1]), "high": int(windows[-1][2])},
        labels=[
            {"id": label.id, "name": label.name, "colour": "#{:02x}{:02x}{:02x}".format(*label.rgb)}
            for label in content.schema.labels
            if f"label-{label.id}" in places
        ],
        axes=[
            {"name": name, "axis": axis, "count": viewed.grid.shape[axis]}
            for axis, name in enumerate(("axial", "coronal", "sagittal"))
        ],
        places=[
            {"key": f"removed-{k}", "text": _piece_text(piece)}
            for k, piece in enumerate(_pieces(content.record))
        ],
        view_note=view_note(viewed),
        data=_data(viewed, content.schema, places, windows[0][1:], content.is_ct),
    ).encode()
    file.write(page)
    return {**viewed.facts, "bytes": len(page)}


def _data(
    viewed: Viewed,
    schema: LabelSchema,
    places: Mapping[str, list[float]],
    window: tuple[float, float],
    is_ct: bool,
) -> dict[str, Any]:
    """What the script of the page reads."""
    matrix = viewed.grid.mm_from_index
    return {
        "scan": _base64(viewed.scan),
        "labelled": _base64(viewed.labels),
        "labels": [
            {"id": label.id, "name": label.name, "rgb": list(label.rgb)} for label in schema.labels
        ],
        "shapes": [
            {"key": f"label-{s.label.id}", "rgb": list(s.label.rgb), "mz3": _base64(s.mz3)}
            for s in viewed.shapes
        ],
        "places": places,
        "window": list(window),
        "unit": "HU" if is_ct else "",
        "shape": list(viewed.grid.shape),
        "mm_from_index": matrix.tolist(),
        "index_from_mm": torch.linalg.inv(matrix).tolist(),
    }


def _places(
    grid: Grid, labels: Volume, content: Content, start: tuple[int, int, int]
) -> dict[str, list[float]]:
    """{key: (x, y, z) in mm} of what can be looked at: labels, removed pieces, slices to review."""
    values = labels.data[0].numpy()
    found = {"start": _mm(grid, start)}
    for label in content.schema.labels:
        if (inside := values == label.id).any():
            found[f"label-{label.id}"] = _mm(grid, middle_of(inside))
    for k, piece in enumerate(_pieces(content.record)):
        found[f"removed-{k}"] = [round(float(v), 2) for v in piece["centre_mm"]]
    centres = grid.mm(
        torch.tensor(
            [
                [float(k), (grid.shape[1] - 1) / 2, (grid.shape[2] - 1) / 2]
                for k in range(len(values))
            ]
        )
    )
    for k, known in enumerate((content.record.get("review") or {}).get("slices", ())):
        nearest = int((centres[:, 2] - known["position_mm"]).abs().argmin())
        inside = values[nearest] > 0
        at = middle_of(inside[None])[1:] if inside.any() else start[1:]
        found[f"review-{k}"] = _mm(grid, (nearest, *at))
    return found


def _pieces(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The removed pieces that can be looked at, tumours without a kidney first, largest first."""
    removed = record.get("removed") or {}
    pieces = sorted(removed.get("pieces", ()), key=lambda piece: -piece["volume_ml"])
    pieces.sort(key=lambda piece: piece.get("reason") != "no-kidney")
    return pieces[:_MOST_PIECES]


def _piece_text(piece: Mapping[str, Any]) -> str:
    """How large a removed piece is, and where: "20.3 ml, no kidney: L 44.5, A 17.7, S 4.0 mm"."""
    alone = ", no kidney" if piece.get("reason") == "no-kidney" else ""
    return f"{piece['volume_ml']:.1f} ml{alone}: {place_text(piece['centre_mm'])}"


def _main(labels: Volume, schema: LabelSchema) -> np.ndarray:
    """The tumours if there are any, else all labels: (slices, rows, columns) bool."""
    values = labels.data[0].numpy()
    tumours = np.isin(values, schema.ids_of("tumour"))
    return tumours if tumours.any() else values > 0


def _shown(scan: Volume, is_ct: bool) -> dict[str, Any]:
    """Window and unit of the still pictures."""
    if is_ct:
        return {}
    values = scan.data[0].numpy()
    low, high = (float(v) for v in np.percentile(values, (0.0, 99.5)))
    return {"window": (low, max(high, low + 1e-6)), "unit": ""}


def view_note(viewed: Viewed) -> str:
    """How the view differs from the data, for readers."""
    scan, shown = viewed.facts["scan_grid"], viewed.facts["grid"]
    own = " x ".join(f"{s:.4g}" for s in scan["spacing_mm"])
    now = " x ".join(f"{s:.4g}" for s in shown["spacing_mm"])
    if viewed.facts["resampled"]:
        text = f"For viewing, the scan and its labels were resampled from {own} mm to {now} mm."
    else:
        text = f"Scan and labels are shown at their own voxels of {own} mm."
    if viewed.is_ct:
        text += f" Values are rounded to {HU_STEP:g} HU."
    else:
        text += " Values are stretched to 0 to 1023."
    return f"{text} The surfaces are smoothed. All measures are of the original voxels."


def _mm(grid: Grid, index: tuple[int, int, int]) -> list[float]:
    return [round(float(v), 2) for v in grid.mm(list(index))]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
