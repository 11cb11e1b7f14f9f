"""What each step of the cascade decided, in words and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume
from kidseg.methods.cascade.components import NORMAL, Component
from kidseg.methods.cascade.decisions import Rules
from kidseg.pipeline import Note, Progress, reaches_border

__all__ = ["correct_note", "fine_note", "guide_note", "refine_note", "tumour_note"]

_MAX_LISTED = 20  # lesions in the result; noise may have thousands


def correct_note(rules: Rules, name: str, progress: Progress) -> Note:
    """Whether a correction ran, what it changed, and what speaks against it."""
    if not progress.steps[name]:
        return Note(text="not needed: normal", facts={"ran": False})
    note = guide_note(rules, name, progress)
    (region,) = progress.steps[name]
    before = replace(progress, steps={k: v for k, v in progress.steps.items() if k != name})
    facts = {"ran": True, **note.facts, "found_nothing": False, "unseen": 0, "unseen_ml": 0.0}
    facts["further"] = False
    if not rules.components(region):
        text = "found nothing; the step before counts"
        return replace(note, text=text, facts={**facts, "found_nothing": True})
    text, findings = note.text, note.findings
    beyond = [_beyond_ml(region.grid, kidney) for kidney in rules.kidneys(before)]
    if unseen := sum(volume_ml > 0 for volume_ml in beyond):
        apart = f"{sum(beyond):.1f} ml of {_count(unseen, 'kidney')}"
        text += f"; did not see {apart}"
        cause = f"step '{name}' saw a part of the scan without {apart} that the step before found"
        findings = (*findings, _finding(rules, "kidney-beyond-correction", cause))
    now, then = len(rules.large(progress)), len(rules.large(before))
    if further := abs(now - NORMAL) > abs(then - NORMAL):
        text += f"; further from {NORMAL} than the {then} of the step before"
        cause = (
            f"step '{name}' found {_count(now, 'kidney')}, further from {NORMAL} than the {then} of"
            " the step before, which it replaces nevertheless, as in the paper"
        )
        findings = (*findings, _finding(rules, "correction-further", cause))
    facts |= {"unseen": unseen, "unseen_ml": round(sum(beyond), 4), "further": further}
    return Note(text=text, facts=facts, findings=findings)


def guide_note(rules: Rules, name: str, progress: Progress) -> Note:
    """The count of kidneys in the guide, and whether the case is normal."""
    components = rules.guide(progress)
    large = rules.large(progress)
    normal = rules.is_normal(progress)
    text = f"{_count(len(large), 'kidney')} of at least {rules.min_kidney_ml:.1f} ml"
    text += ": normal" if normal else f": not {NORMAL}, so abnormal"
    left_out = components[max(len(large), 1) :]  # the largest counts, whatever its size
    left_out_ml = sum(each.volume_ml for each in left_out)
    if left_out:
        text += f"; {_count(len(left_out), 'smaller part')} left out, {left_out_ml:.1f} ml in all"
    facts = {
        "normal": normal,
        "kidneys": len(large),
        "volumes_ml": _rounded(each.volume_ml for each in large),
        "below_threshold": len(components) - len(large),
        "threshold_ml": round(rules.min_kidney_ml, 4),
        "left_out_ml": round(left_out_ml, 4),
    }
    findings: tuple[Finding, ...] = ()
    if components and not large:
        cause = (
            f"step '{name}' found no kidney of at least {rules.min_kidney_ml:.1f} ml; the largest"
            f" part, of {components[0].volume_ml:.1f} ml, was taken for one"
        )
        findings = (_finding(rules, "small-kidney", cause),)
    return Note(text=text, facts=facts, findings=findings)


def fine_note(rules: Rules, progress: Progress) -> Note:
    """The kidneys by side, their volume, and whether one is cut by its crop.

    The crop of a kidney may show the other one, too, as in a small child: so there is no volume of
    each. A kidney of which the fine network finds nothing is lost, and with it its tumours.
    """
    regions = progress.steps["fine"]
    names = [region.name for region in regions]
    volume_ml = rules.renal_ml(progress)
    text = f"{', '.join(names)}: {volume_ml:.1f} ml in all" if names else "no kidney to look at"
    empty = [
        (region.name, kidney.volume_ml)
        for region, kidney in zip(regions, rules.kidneys(progress), strict=True)
        if not rules.components(region)
    ]
    cut = [
        region.name
        for region in regions
        if reaches_border(region, rules.subject.image.grid, regions)
    ]
    findings: tuple[Finding, ...] = ()
    if cut:
        cause = f"a kidney reaches the side of its crop ({', '.join(cut)}) and may be cut"
        findings = (_finding(rules, "kidney-cut-by-crop", cause),)
    if empty:
        lost = ", ".join(f"{name}, {found_ml:.1f} ml" for name, found_ml in empty)
        text += f"; nothing found in {', '.join(name for name, _ in empty)}"
        cause = f"the fine network found nothing of what was taken for a kidney before ({lost})"
        findings = (*findings, _finding(rules, "kidney-not-confirmed", cause))
    facts = {
        "regions": names,
        "volume_ml": round(volume_ml, 4),
        "cut": cut,
        "empty": [name for name, _ in empty],
    }
    return Note(text=text, facts=facts, findings=findings)


def tumour_note(rules: Rules, progress: Progress) -> Note:
    """The lesions that were detected, and those that were dropped."""
    lesions = rules.lesions(progress)
    kept = () if lesions is None else lesions.kept_ml
    dropped = () if lesions is None else lesions.dropped_ml
    if lesions is None:
        text = "not run: no kidney"
    else:
        text = f"{_count(len(kept), 'lesion')}, {sum(kept):.1f} ml"
    said, dropped_facts, findings = _dropped(rules, "3D", dropped)
    facts = {
        "ran": lesions is not None,
        "kept_ml": _rounded(kept[:_MAX_LISTED]),
        "kept": len(kept),
        **dropped_facts,
    }
    return Note(text=text + said, facts=facts, findings=findings)


def refine_note(rules: Rules, dropped: Sequence[Volume], progress: Progress) -> Note:
    """Whether tumours were refined or searched for, where, and those that were dropped.

    Args:
        rules: of the case.
        dropped: (1, slices, rows, columns) bool in each region.
        progress: with this step.
    """
    lesions = rules.lesions(progress)
    regions = progress.steps["refine"]
    if lesions is None:
        return Note(text="not run: no kidney", facts={"mode": "none"})
    limit = f"{rules.almost_nothing_ml:.2f} ml"
    said, dropped_facts, findings = _dropped(rules, "2D", rules.dropped_ml(progress, dropped))
    facts = {"threshold_ml": round(rules.almost_nothing_ml, 4), **dropped_facts}
    if rules.is_search(lesions):
        mode, names = "searched", [region.name for region in regions]
        text = f"searched {_count(len(names), 'region')}: the 3D network found under {limit}"
    else:
        mode = "refined"
        names = [each.name for each in regions if bool(lesions.kept_in(each.grid).any())]
        text = f"refined what the 3D network found ({', '.join(names)})"
    facts = {"mode": mode, "regions": names, **facts}
    return Note(text=text + said, facts=facts, findings=findings)


def _dropped(
    rules: Rules, network: str, volumes_ml: Sequence[float]
) -> tuple[str, dict[str, Any], tuple[Finding, ...]]:
    """Lesions that touch no kidney: what a note adds to its text, its facts and its findings."""
    facts = {"dropped_ml": _rounded(volumes_ml[:_MAX_LISTED]), "dropped": len(volumes_ml)}
    if not volumes_ml:
        return "", facts, ()
    apart = f"{_count(len(volumes_ml), 'lesion')} of {sum(volumes_ml):.1f} ml in all"
    cause = f"{apart} that the {network} network found touched no kidney and were dropped"
    return (
        f"; dropped away from the kidneys: {apart}",
        facts,
        (_finding(rules, "lesions-dropped", cause),),
    )


def _finding(rules: Rules, code: str, cause: str) -> Finding:
    step = "Check the kidneys and tumours."
    return Finding(code=code, path=rules.subject.id, cause=cause, next_step=step)


def _beyond_ml(grid: Grid, kidney: Component) -> float:
    """The volume of a component outside a grid."""
    at = grid.index(kidney.grid.mm(kidney.voxels))
    inside = ((at > -0.5) & (at < torch.tensor(grid.shape) - 0.5)).all(1)
    return kidney.volume_ml * float((~inside).double().mean())


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]
