"""Pages of the report, and what they load, for the tests."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ellipses import make_ellipse_patient
from kidseg.geometry import Volume
from kidseg.io.label_formats import FORMATS
from kidseg.labels import LabelSchema
from kidseg.measure.measuring import Request, measure_labelled
from kidseg.measure.midline import Midline
from kidseg.measure.parts import Labelled
from kidseg.report.scan_page import Content, write_report
from kidseg.report.vendor import FOLDER, NIIVUE

with_viewer = pytest.mark.skipif(
    not (FOLDER / NIIVUE.name).is_file(),
    reason="NiiVue was not fetched: python -m kidseg.report.vendor",
)

HERE = tuple(
    name for name, known in FORMATS.items() if not known.is_page or (FOLDER / NIIVUE.name).is_file()
)
"""All formats that can be written here."""

RECORD: dict[str, Any] = {
    "name": "child",
    "path": "/data/Doe^Jane/child.nii.gz",
    "sha256": "ab" * 32,
    "formats": ["nii", "html"],
    "model": {"path": "/models/run/model.safetensors", "sha256": "cd" * 32, "method": "plain"},
    "device": "cpu",
    "precision": "float32",
    "versions": {"python": "3.11.7", "kidseg": "0.1.0", "torch": "2.13.0", "numpy": "2.4"},
    "host": {"name": "secret-host", "cpu": "a processor", "gpu": []},
    "date": "2026-01-01T00:00:00+00:00",
    "training_range": {
        "known": True,
        "far_sd": 1.0,
        "figures": {
            "angle_deg": {"value": 41.0, "min": -25.0, "max": 27.0, "distance_sd": 1.6},
            "overlap": {"value": 0.9, "min": 0.6, "max": 0.95, "distance_sd": 0.0},
        },
    },
    "overlap": {
        "before": {"body": 0.5},
        "start": {"body": 0.98},
        "after": {"body": 0.99},
        "agreement": {"before": 0.6, "start": 0.92, "after": 0.94},
        "kept": "correction",
    },
    "grids": {
        "pose": [
            {
                "name": "",
                "angle_deg": {"median": [41.0]},
                "scale": {"median": [0.5, 0.6]},
                "shift_mm": {"median": [3.0, -4.0]},
            }
        ]
    },
    "review": {
        "opinions": 4,
        "level": 0.9,
        "interval": "opinions",
        "structures": {
            "kidney": {"volume_ml": 40.0, "interval_ml": [35.0, 44.0]},
            "tumour": {"volume_ml": 10.0, "interval_ml": None},
        },
        "slices": [
            {"slice": 6, "position_mm": 25.0, "entropy": 0.41, "structures": ["kidney"]},
            {"slice": 1, "position_mm": -25.0, "entropy": 0.2, "structures": ["tumour"]},
        ],
    },
    "removed": {
        "pieces": [{"volume_ml": 0.2, "centre_mm": [10.0, 5.0, 25.0], "reason": "no-kidney"}]
    },
    "warnings": [
        {
            "code": "far",
            "path": "/data/Doe^Jane/child.nii.gz",
            "cause": "the patient is outside the training range of the model",
            "next_step": "Check the labels carefully.",
            "severity": "warning",
        }
    ],
}


def make_content(names: dict[int, str] | None = None, **changes: Any) -> Content:
    """The report of a patient made of ellipses; `changes` replace its fields."""
    patient = make_ellipse_patient(3)
    schema = LabelSchema.from_names(names or {1: "kidney", 2: "tumour"})
    labelled = Labelled(
        labels=patient.labels, schema=schema, midline=Midline.of(patient.labels.grid)
    )
    _, measurement = measure_labelled(labelled, Request())
    content = Content(
        name="child",
        scan=patient.image,
        labels=patient.labels,
        schema=schema,
        record=RECORD,
        measured=measurement.as_dict(),
        steps=None,
        settings='a = "1"',
        command="kidseg segment child.nii.gz",
    )
    return replace(content, **changes)


def page_of(content: Content) -> str:
    file = io.BytesIO()
    write_report(content, file)
    return file.getvalue().decode()


@dataclass
class Page(HTMLParser):
    """What a page consists of, as a browser reads it."""

    text: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    shown: str = ""
    style: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.shown += " "
        if tag not in ("meta", "link", "img", "input", "rect"):
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.shown += data

    @property
    def words(self) -> str:
        """The text that a reader sees, with single spaces."""
        return " ".join(self.shown.split())

    @property
    def addresses(self) -> list[str]:
        """Everything that attributes refer to."""
        names = ("src", "href", "srcset", "action", "poster", "data", "xlink:href", "formaction")
        return [v for _, attrs in self.elements for n in names if (v := attrs.get(n)) is not None]

    @property
    def policy(self) -> str:
        """Its Content-Security-Policy."""
        (found,) = [
            attrs["content"]
            for tag, attrs in self.elements
            if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
        ]
        return str(found)

    @property
    def content(self) -> dict[str, Any]:
        """The data of its script."""
        found: dict[str, Any] = json.loads(
            next(
                text
                for (_, attrs), text in zip(
                    [e for e in self.elements if e[0] == "script"], self.scripts, strict=True
                )
                if attrs.get("type") == "application/json"
            )
        )
        return found


def assert_loads_nothing(page: Page) -> None:
    """Nothing in the page refers to anything outside of it, and its policy would not allow it."""
    outside = [a for a in page.addresses if not a.startswith(("#", "data:"))]
    assert not outside
    assert "default-src 'none'" in page.policy and "connect-src" not in page.policy
    assert not re.search(r"https?:|unsafe|\*", page.policy)
    assert page.style and not re.search(r"@import|url\(", page.style)
    assert not [a for _, a in page.elements if a.get("style") or any(n[:2] == "on" for n in a)]
    assert not [t for t, _ in page.elements if t in ("iframe", "object", "embed", "base", "form")]


def noise(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Volume:
    """A CT of pure noise, which is the hardest to compress."""
    from kidseg.geometry import Grid

    values = np.random.default_rng(0).normal(40, 25, shape).astype(np.int16)
    return Volume(torch.from_numpy(values)[None], Grid.from_spacing(shape, spacing_mm))


def opened(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))
