"""Judge whether a scan is one that the model is for, by the scans that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kidseg.cohort.training_range import FAR_SD, distances
from kidseg.errors import Finding

__all__ = ["Suitability", "judge"]

# Renal parenchyma has 30 to 45 HU without contrast agent and 80 to 220 with it, early or late
# (`kidseg.phantom.tissues`, `kidseg.style`). The 95th percentile, with noise, was 45 to 61 HU in 7
# digital patients without and 90 HU or more in 39 with contrast agent.
_UNENHANCED_HU = 75.0
# If the mean of the training patients is above, most of them had contrast agent. A convention.
_ENHANCED_MEAN_HU = 120.0


@dataclass(frozen=True, kw_only=True)
class Suitability:
    """How a patient compares with those of the training.

    Attributes:
        facts: plain data: is a training range known, and the distance of each figure from it.
        findings: "no-contrast": kidneys and masses are as dark as without contrast agent, which
            most training patients had; "unusual-values": tissue is far brighter than theirs;
            "outside-training-range": other figures are far outside.
    """

    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]


def judge(
    figures: Mapping[str, float], ranges: Mapping[str, Mapping[str, Any]] | None, path: str
) -> Suitability:
    """Compare a patient with the training range of a model.

    Args:
        figures: of the patient; see `kidseg.cohort.training_range`.
        ranges: of the training patients; None: not known, so that nothing can be found.
        path: of the scan, for the findings.
    """
    away = distances(figures, ranges or {})
    facts = {"known": ranges is not None, "far_sd": FAR_SD, "figures": dict(away)}
    findings: list[Finding] = []

    def note(code: str, cause: str, next_step: str) -> None:
        findings.append(Finding(code=code, path=path, cause=cause, next_step=next_step))

    if _lacks_contrast(figures, ranges or {}):
        dark = away.pop("renal_hu")["value"]
        cause = (
            f"what was found as kidney or mass is hardly anywhere above {dark:.0f} HU, as without"
            " contrast agent, which most scans of the training had"
        )
        step = "Use a scan with contrast agent, or check all labels: many are wrong without it."
        note("no-contrast", cause, step)
    far = {
        name: f"{name} {known['value']:.4g} is {known['distance_sd']:.1f} SD beyond"
        f" {known['min']:.4g} to {known['max']:.4g}"
        for name, known in away.items()
        if known["distance_sd"] is not None and known["distance_sd"] > FAR_SD
    }
    if (bright := far.pop("bright_hu", None)) is not None:
        cause = f"its values are brighter than those of any scan of the training: {bright}"
        step = "Check that it is CT of the abdomen in Hounsfield units, not MR or another region."
        note("unusual-values", cause, step)
    if far:
        cause = f"the patient is outside the training range of the model: {'; '.join(far.values())}"
        step = "Check the labels carefully, or train on similar patients."
        note("outside-training-range", cause, step)
    return Suitability(facts=facts, findings=tuple(findings))


def _lacks_contrast(figures: Mapping[str, float], ranges: Mapping[str, Mapping[str, Any]]) -> bool:
    """Are the kidneys unenhanced, unlike most of the training?"""
    if "renal_hu" not in figures or "renal_hu" not in ranges:
        return False
    usual = ranges["renal_hu"]["mean"]
    return figures["renal_hu"] < _UNENHANCED_HU and usual >= _ENHANCED_MEAN_HU
