"""What each step of the cascade decided, in words and numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from kidseg.errors import Finding
from kidseg.geometry import Grid
from kidseg.methods.cascade.components import NORMAL, Component
from kidseg.methods.cascade.decisions import Rules, foreground
from kidseg.pipeline import Note, Progress, reaches_border

__all__ = ["correct_note", "fine_note", "guide_note", "refine_note", "tumour_note"]

_MAX_LISTED = 20  # lesions in the result; noise may have thousands


def correct_note(rules: Rules, name: str, progress: Progress) -> Note:
    """Whether a correction ran, and what it changed."""
    if not progress.steps[name]:
        return Note(text="not needed: normal", facts={"ran": False})
    note = guide_note(rules, name, progress)
    (region,) = progress.steps[name]
    is_empty = not bool(foreground(region, rules.targets.renal).any())
    text = "found nothing; the step before counts" if is_empty else note.text
    before = replace(progress, steps={k: v for k, v in progress.steps.items() if k != name})
    unseen = [] if is_empty else [k for k in rules.kidneys(before) if not _sees(region.grid, k)]
    findings = note.findings
    if unseen:
        unseen_ml = sum(kidney.volume_ml for kidney in unseen)
        apart = f"{_count(len(unseen), 'kidney')} of {unseen_ml:.1f} ml in all"
        text += f"; did not see {apart}"
        cause = f"step '{name}' saw a part of the scan without {apart}, which the step before found"
        findings = (*findings, _finding(rules, "kidney-beyond-correction", cause))
    facts = {"ran": True, **note.facts, "found_nothing": is_empty, "unseen": len(unseen)}
    return Note(text=text, facts=facts, findings=findings)


def guide_note(rules: Rules, name: str, progress: Progress) -> Note:
    """The count of kidneys in the guide, and whether the case is normal."""
    components = rules.guide(progress)
    large = [each for each in components if each.volume_ml >= rules.least_ml]
    normal = rules.is_normal(progress)
    text = f"{_count(len(large), 'kidney')} of at least {rules.least_ml:.1f} ml"
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
        "threshold_ml": round(rules.least_ml, 4),
        "left_out_ml": round(left_out_ml, 4),
    }
    findings: tuple[Finding, ...] = ()
    if components and not large:
        cause = (
            f"step '{name}' found no kidney of at least {rules.least_ml:.1f} ml; the largest"
            f" part, of {components[0].volume_ml:.1f} ml, was taken for one"
        )
        findings = (_finding(rules, "small-kidney", cause),)
    return Note(text=text, facts=facts, findings=findings)


def fine_note(rules: Rules, progress: Progress) -> Note:
    """The kidneys by side, their volume, and whether one is cut by its crop.

    The crop of a kidney may show the other one, too, as in a small child: so there is no volume of
    each.
    """
    regions = progress.steps["fine"]
    names = [region.name for region in regions]
    volume_ml = rules.renal_ml(progress)
    cut = [
        region.name
        for region in regions
        if reaches_border(region, rules.subject.image.grid, regions)
    ]
    findings: tuple[Finding, ...] = ()
    if cut:
        cause = f"a kidney reaches the side of its crop ({', '.join(cut)}) and may be cut"
        findings = (_finding(rules, "kidney-cut-by-crop", cause),)
    return Note(
        text=f"{', '.join(names)}: {volume_ml:.1f} ml in all" if names else "no kidney to look at",
        facts={"regions": names, "volume_ml": round(volume_ml, 4), "cut": cut},
        findings=findings,
    )


def tumour_note(rules: Rules, progress: Progress) -> Note:
    """The lesions that were detected, and those that were dropped."""
    lesions = rules.lesions(progress)
    kept = () if lesions is None else lesions.kept_ml
    dropped = () if lesions is None else lesions.dropped_ml
    text = f"{_count(len(kept), 'lesion')}, {sum(kept):.1f} ml"
    findings: tuple[Finding, ...] = ()
    if dropped:
        apart = f"{_count(len(dropped), 'lesion')} of {sum(dropped):.1f} ml in all"
        text += f"; dropped away from the kidneys: {apart}"
        cause = f"{apart} touched no kidney and were dropped"
        findings = (_finding(rules, "lesions-dropped", cause),)
    facts = {
        "ran": lesions is not None,
        "kept_ml": _rounded(kept[:_MAX_LISTED]),
        "kept": len(kept),
        "dropped_ml": _rounded(dropped[:_MAX_LISTED]),
        "dropped": len(dropped),
    }
    text = "not run: no kidney" if lesions is None else text
    return Note(text=text, facts=facts, findings=findings)


def refine_note(rules: Rules, progress: Progress) -> Note:
    """Whether tumours were refined or searched for, and where."""
    lesions = rules.lesions(progress)
    regions = progress.steps["refine"]
    if lesions is None:
        return Note(text="not run: no kidney", facts={"mode": "none"})
    limit = f"{rules.almost_nothing_ml:.2f} ml"
    facts: dict[str, object] = {"threshold_ml": round(rules.almost_nothing_ml, 4)}
    if rules.is_search(lesions):
        names = [region.name for region in regions]
        text = f"searched {_count(len(names), 'region')}: the 3D network found under {limit}"
        return Note(text=text, facts={"mode": "searched", "regions": names, **facts})
    where = [each.name for each in regions if bool(lesions.kept_in(each.grid).any())]
    text = f"refined what the 3D network found ({', '.join(where)})"
    return Note(text=text, facts={"mode": "refined", "regions": where, **facts})


def _finding(rules: Rules, code: str, cause: str) -> Finding:
    step = "Check the kidneys and tumours."
    return Finding(code=code, path=rules.subject.id, cause=cause, next_step=step)


def _sees(grid: Grid, kidney: Component) -> bool:
    """Whether any voxel of a component lies in a grid."""
    at = grid.index(kidney.grid.mm(kidney.voxels))
    sides = torch.tensor(grid.shape)
    return bool(((at > -0.5) & (at < sides - 0.5)).all(1).any())


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]
