"""Ensembles: several trained models in one file, whose probabilities are averaged.

The header of an ensemble is that of its first member, with "members": the headers of all. The
tensors of member 0 are "0.segment.*" and so on. One digest covers everything, as in any model.

A member may count in slabs only, scans that cover less than its `postprocess.stack_mm` along the
patient, or in all others only, stacks: what is best in a single slice need not be in a whole scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kidseg.checkpoint import HALF, WEIGHTS, Model, by_part, joined, load_model, save_model
from kidseg.errors import UsageError
from kidseg.header import MEMBERS, ONLY_IN, OnlyIn, described_member
from kidseg.io.atomic import check_writable
from kidseg.io.content import joint_sha256
from kidseg.model_file import find_model
from kidseg.registry import BY_KIDNEY, SLICEWISE

__all__ = ["CALIBRATED", "as_one", "combined", "ensemble", "members_of", "uncovered"]

CALIBRATED = ("decision", "intervals")
"""Entries of a header that are chosen for the probabilities of the file as a whole."""

_OF_FILE = (MEMBERS, WEIGHTS, *CALIBRATED, "calibration", "format", "sha256")
_FLIP, _SMOOTH, _LONE = "test_time_flip", "smooth_mm", "lone_tumour_ml"


def members_of(model: Model) -> list[Model]:
    """The members of an ensemble, each as a model; any other model is its only member.

    Raises:
        LookupError, TypeError, ValueError: the header and the tensors do not match.
    """
    headers = model.header.get(MEMBERS)
    if headers is None:
        return [model]
    if len(headers) < 2 or set(model.parts) != {str(k) for k in range(len(headers))}:
        raise ValueError(f"{len(headers)} members, but the tensors of {sorted(model.parts)}")
    return [
        Model(header=dict(header), parts=by_part(model.parts[str(k)]), sha256=model.sha256)
        for k, header in enumerate(headers)
    ]


def combined(models: Sequence[str | Path]) -> Model:
    """Several models as an ensemble in memory; a single one as it is.

    What is calibrated for one model is left out. The digest is that of their digests.

    Args:
        models: model files or run folders; the members of an ensemble count each.

    Raises:
        UsageError: "members-differ", "members-by-kidney", "scans-without-member".
        ModelError: see `find_model` and `load_model`.
    """
    files = [find_model(model) for model in models]
    loaded = [load_model(file) for file in files]
    if len(loaded) == 1:
        return loaded[0]
    found = _found(files, loaded)
    _check_alike(found)
    _check_covered([each.header for _, each in found], files[0])
    one = as_one([each for _, each in found])
    return replace(one, sha256=joint_sha256(model.sha256 for model in loaded))


def as_one(models: Sequence[Model]) -> Model:
    """Models as the members of an ensemble, which has no digest yet.

    What is calibrated for each is left out.
    """
    headers = [_header(model.header) for model in models]
    return Model(
        header={**headers[0], MEMBERS: headers},
        parts={str(k): joined(model.parts) for k, model in enumerate(models)},
        sha256="",
    )


def uncovered(headers: Sequence[Mapping[str, Any]]) -> OnlyIn | None:
    """The scans in which no member counts; None if some member counts in each scan.

    A model alone counts in all, whatever its header says.
    """
    only_in = {header.get(ONLY_IN) for header in headers}
    if len(headers) == 1 or None in only_in:
        return None
    if "slabs" not in only_in:
        return "slabs"
    return None if "stacks" in only_in else "stacks"


def ensemble(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    member: int | None = None,
    half: bool = False,
    flip: bool | None = None,
    adapt: str | None = None,
    lone_tumour_ml: float | None = None,
    smooth_mm: float | None = None,
    only_in: OnlyIn | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write several models into one file; or one, or one member, into a file of its own.

    All members must have the same labels, outputs and input channels; their methods may differ,
    but for those with a region for each kidney, which only stand alone.
    Weights of a calibrated decision are left out, because they belong to other probabilities, and
    so are calibrated intervals of volumes; they stay, with the rest of its description, in a copy
    of one file whose probabilities stay the same, but for intervals if other tumours are removed.

    Args:
        models: model files or run folders; the members of an ensemble count each.
        out: file to write.
        member: write only this member of the models, counted from 0.
        half: store the weights of convolutions and linear layers as float16 (see `save_model`).
        flip: the setting `test_time_flip` of all members; None: each as it is.
        adapt: entry "adapt" of the header; None: that of the first.
        lone_tumour_ml: the setting `postprocess.lone_tumour_ml` of all members; None: as it is.
        smooth_mm: the setting `smooth_mm` of all members; None: each as it is.
        only_in: the scans in which they count as members of an ensemble; None: as they say, all if
            they say nothing. A model alone segments every scan.
        overwrite: replace an existing file.

    Returns:
        {"path", "sha256", "members": methods, with "(slabs only)" where it is so, "megabytes",
        "left_out": what of the headers}.

    Raises:
        UsageError: "members-differ"; "members-by-kidney": a method with a region for each kidney;
            "no-member"; "no-slices": a method that cannot be smoothed; "scans-without-member": none
            counts in slabs, or in stacks; "output-exists".
        ModelError: see `find_model` and `load_model`.
    """
    out = Path(out)
    files = [find_model(model) for model in models]
    check_writable(out, overwrite=overwrite)
    loaded = [load_model(file) for file in files]
    found = _found(files, loaded)
    if member is not None:
        found = [_member(found, member)]
    _check_alike(found)
    settings = _given({_FLIP: flip, _SMOOTH: smooth_mm})
    postprocess = _given({_LONE: lone_tumour_ml})
    if _SMOOTH in settings:
        _check_slicewise(found)
    halves = [model.header.get(WEIGHTS) == HALF for model in loaded]
    half = half or any(halves)
    entries = _given({"adapt": adapt, ONLY_IN: only_in})
    is_copy = not settings and not entries and member is None and halves == [half]
    headers = [_header(_changed(each.header, settings, postprocess, entries)) for _, each in found]
    _check_covered(headers, files[0])
    parts = found[0][1].parts
    header = {**loaded[0].header, "config": headers[0]["config"]} if is_copy else headers[0]
    if len(found) > 1:
        header = {**header, MEMBERS: headers}
        parts = {str(k): joined(each.parts) for k, (_, each) in enumerate(found)}
    if postprocess:
        header = {name: value for name, value in header.items() if name != "intervals"}
    if half:
        header = {**header, WEIGHTS: HALF}
    sha256 = save_model(out, parts, header, overwrite=overwrite)
    known = [name for name in CALIBRATED if any(name in model.header for model in loaded)]
    return {
        "path": str(out),
        "sha256": sha256,
        "members": [described_member(header) for header in headers],
        "megabytes": round(out.stat().st_size / 1e6, 2),
        "left_out": [name for name in known if name not in header],
    }


def _found(files: Sequence[Path], loaded: Sequence[Model]) -> list[tuple[Path, Model]]:
    """All members, each with its file."""
    return [
        (file, each)
        for file, model in zip(files, loaded, strict=True)
        for each in members_of(model)
    ]


def _member(found: Sequence[tuple[Path, Model]], number: int) -> tuple[Path, Model]:
    if not 0 <= number < len(found):
        raise UsageError(
            f"there is no member {number}; the first is 0 and the last {len(found) - 1}",
            path=found[0][0],
            code="no-member",
            next_step="'kidseg info' lists the members.",
        )
    return found[number]


def _check_alike(found: Sequence[tuple[Path, Model]]) -> None:
    """Check that the members have the same labels, outputs and input, and are comparable in place.

    Raises:
        UsageError: "members-differ"; "members-by-kidney".
    """
    (first, one), *others = found
    for path, member in found if others else ():
        if (method := member.header.get("method")) in BY_KIDNEY:
            raise UsageError(
                f"method '{method}' finds kidneys of its own in each scan, so that there are no"
                " places at which several models can be averaged",
                path=path,
                code="members-by-kidney",
                next_step=f"Make an ensemble of other methods than {' and '.join(BY_KIDNEY)}.",
            )
    for path, other in others:
        for entry in ("labels", "input"):
            if one.header.get(entry) != other.header.get(entry):
                raise UsageError(
                    f"its {entry} differ from those of {first}:"
                    f" {_short(other.header.get(entry))}, not {_short(one.header.get(entry))}",
                    path=path,
                    code="members-differ",
                    next_step="An ensemble averages models that answer the same question; train"
                    " them on the same labels.",
                )


def _check_covered(headers: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Check that some member counts in each scan; raises UsageError "scans-without-member"."""
    if (scans := uncovered(headers)) is not None:
        raise UsageError(
            f"no member counts in {scans}, so that such scans could not be segmented",
            path=path,
            code="scans-without-member",
            next_step="Add a model that counts in them: one without --only-in, or with"
            f" --only-in {scans}.",
        )


def _check_slicewise(found: Sequence[tuple[Path, Model]]) -> None:
    """Check that all members segment slice by slice; raises UsageError "no-slices"."""
    for path, member in found:
        if (method := member.header.get("method")) not in SLICEWISE:
            raise UsageError(
                f"method '{method}' does not segment slice by slice in one grid, so that there is"
                " nothing to smooth across slices",
                path=path,
                code="no-slices",
                next_step=f"Smooth models of the methods {' and '.join(SLICEWISE)}.",
            )


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _changed(
    header: Mapping[str, Any],
    settings: Mapping[str, Any],
    postprocess: Mapping[str, Any],
    entries: Mapping[str, Any],
) -> dict[str, Any]:
    """The header of a member with other settings."""
    config = {**header["config"], **settings}
    if postprocess:
        config["postprocess"] = {**config["postprocess"], **postprocess}
    return {**header, "config": config, **entries}


def _header(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a member, without what concerns the file that it comes from."""
    return {name: value for name, value in header.items() if name not in _OF_FILE}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
