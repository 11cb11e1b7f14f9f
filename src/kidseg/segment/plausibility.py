"""Is what was found in a scan plausible?"""

from __future__ import annotations

from kidseg.cohort.subject import Subject
from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.measure import Sides
from kidseg.pipeline import Progress, reaches_border

__all__ = ["implausible"]


def implausible(
    labels: Volume,
    subject: Subject,
    progress: Progress,
    sides: Sides | None,
    path: str,
    *,
    least_ml: float,
) -> tuple[Finding, ...]:
    """What is implausible in the labels found.

    Findings: "no-body", "nothing-found", "little-found", "cut-by-field", "region-border"; those of
    `measure_sides`.

    Args:
        labels: that were found, on the scan's voxels.
        subject: the patient.
        progress: the regions that were searched.
        sides: right and left; None without a kidney in the schema.
        path: of the scan, for the findings.
        least_ml: if less is found of kidneys and tumours together, it is little; see
            `kidseg.postprocess.least_kidney_ml`.
    """
    found = labels.data[0].numpy() > 0
    findings: list[Finding] = []

    def note(code: str, cause: str, next_step: str) -> None:
        findings.append(Finding(code=code, path=path, cause=cause, next_step=next_step))

    if subject.body is not None and subject.body.box is None:
        step = "Check that the scan is CT in Hounsfield units."
        note("no-body", "no body was found in the scan", step)
    if not found.any():
        cause = "neither kidney nor tumour was found"
        step = "Check that kidneys are in view, and that the scan is like those of the training."
        note("nothing-found", cause, step)
    elif sides is None and (found[0].any() or found[-1].any()):
        cause = "the segmentation reaches the first or last slice; its volume is partial"
        note("cut-by-field", cause, "Use a scan that contains all of it.")
    found_ml = float(found.sum() * labels.grid.voxel_ml)
    if sides is not None and 0 < found_ml < least_ml:
        cause = (
            f"only {found_ml:.1f} ml of kidney and tumour was found in all, less than a tenth of a"
            " small kidney in a body of this size"
        )
        step = "Check that kidneys are in view, and that no other tissue was taken for them."
        note("little-found", cause, step)
    if any(reaches_border(each, labels.grid, progress.found) for each in progress.found):
        cause = "the segmentation reaches the border of the region of interest"
        step = (
            "Check it; train with a larger region (crop.localizer.margin of 'homogenized', box of"
            " 'multistage', tumour.frame_px of 'cascade')."
        )
        note("region-border", cause, step)
    measured = sides.findings if sides is not None and found.any() else ()
    return (*findings, *measured)
