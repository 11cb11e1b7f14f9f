"""Choose the DICOM volume to read: `--series` and the names that it takes.

A volume is named by its series number if that is unique ("3"). Otherwise the volumes with that
number are counted ("3.1", "3.2"), whether they belong to one series or to several. A series UID, or
the start of one, names it too; "UID/2" is the second volume of a series.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kidseg.errors import Finding, InputError
from kidseg.io.dicom_series import Series, spread
from kidseg.io.scan import ReadOptions

__all__ = ["choose"]

_LISTED = 20
_TEXT = 40
_SHORTEST = 6  # characters of the start of a UID


def choose(
    series: Sequence[Series], path: Path, options: ReadOptions
) -> tuple[Series, tuple[Finding, ...]]:
    """Choose the volume to read; findings name the ignored ones.

    Raises:
        InputError: "no-such-series"; "several-series", "several-volumes" (of one series);
            "mixed-series", unless repair is on; "not-ct": volumes of another modality;
            "no-position", "colour-image", "not-a-scan", "no-volume": it contains no volume.
    """
    names = _names(series)
    matching = _matching(series, names, options.series)
    if not matching:
        cause = f"it does not contain series {str(options.series)[:_TEXT]}, but"
        step = f"Choose one by its number or UID, for example {_option(series, names)}."
        raise _refusal("no-such-series", cause, step, series, names, path)
    volumes = [s for s in matching if s.kind == "volume"]
    usable = [s for s in volumes if s.modality == "CT" or options.values != "ct"]
    whole = _whole(usable)
    if whole is not None and options.series is not None and options.repair:
        return whole, _findings(whole, series, names, path, options)
    if len(usable) > 1:
        raise _several(usable, names, path)
    if volumes and not usable:
        modalities = ", ".join(sorted({s.modality or "not stated" for s in volumes}))
        raise InputError(
            f"its modality is {modalities}, not CT: {_list(volumes, names)}",
            path=path,
            code="not-ct",
            next_step="Use a CT series.",
        )
    if not usable:
        raise _no_volume(matching, names, path)
    return usable[0], _findings(usable[0], series, names, path, options)


def _whole(volumes: Sequence[Series]) -> Series | None:
    """The even stack that these volumes form together, if their pixels do not contradict."""
    found = {one.whole for one in volumes}
    whole = next(iter(found), None)
    return whole if whole is not None and len(found) == 1 and len(volumes) > 1 else None


def _findings(
    chosen: Series,
    series: Sequence[Series],
    names: dict[Series, str],
    path: Path,
    options: ReadOptions,
) -> tuple[Finding, ...]:
    findings = []
    if chosen.is_scattered:
        cause = (
            f"the images of {_said(chosen, names, '')} differ in Series Instance UID: "
            f"{spread(chosen.images, 'SeriesInstanceUID')}"
        )
        if not options.repair:
            raise InputError(
                f"{cause}; together they form one even stack",
                path=path,
                code="mixed-series",
                next_step="Read them as one series with --repair.",
            )
        cause += "; they were read as one series"
        findings.append(Finding(code="repaired-series", path=str(path), cause=cause))
    parts = [s for s in series if s.whole is chosen]
    if parts:
        cause = f"{_list(parts, names)} were read as one volume: together they form one even stack"
        step = "Compare neighbouring slices in a viewer."
        findings.append(
            Finding(code="repaired-volumes", path=str(path), cause=cause, next_step=step)
        )
    ignored = [s for s in series if s is not chosen and s not in parts]
    if ignored:
        cause = f"{_list(parts or [chosen], names)} was read; ignored: {_list(ignored, names)}"
        findings.append(Finding(code="ignored-series", path=str(path), cause=cause))
    return tuple(findings)


# ---- names -------------------------------------------------------------------------------------


def _names(series: Sequence[Series]) -> dict[Series, str]:
    """A name for each volume, which `--series` takes. Other objects bear their number."""
    names = {s: s.number or _short_uid(s, series) or "none" for s in series}
    volumes = [s for s in series if s.kind == "volume"]
    for name in {names[s] for s in volumes}:
        alike = [s for s in volumes if names[s] == name]
        separator = "." if alike[0].number or name == "none" else "/"
        for k, one in enumerate(alike):
            names[one] = f"{name}{separator}{k + 1}" if len(alike) > 1 else name
    return names


def _short_uid(one: Series, series: Sequence[Series]) -> str:
    """The start of the UID that no other series shares."""
    others = {s.uid for s in series} - {one.uid}
    starts = (one.uid[:n] for n in range(_SHORTEST, len(one.uid) if others else 0))
    return next((s for s in starts if not any(o.startswith(s) for o in others)), one.uid)


def _matching(
    series: Sequence[Series], names: dict[Series, str], wanted: str | None
) -> list[Series]:
    """The series with this name, number or UID, or else with this start of a UID."""
    if wanted is None:
        return list(series)
    wanted = wanted.strip()
    uid, _, place = wanted.replace("/", ".").rpartition(".")
    within = [s for s in series if uid and s.uid == uid and s.kind == "volume"]
    nth = int(place) - 1 if place.isdecimal() else -1
    found = (
        [s for s in series if s.uid == wanted and wanted],
        [s for s in series if names[s] == wanted and s.kind == "volume"],
        [s for s in series if s.number and _plain(s.number) == _plain(wanted)],
        within[nth : nth + 1] if nth >= 0 else [],
        [s for s in series if wanted and s.uid.startswith(wanted)],
    )
    return next((matches for matches in found if matches), [])


def _plain(number: str) -> str:
    return number.lstrip("0") or number


# ---- lists -------------------------------------------------------------------------------------


def _several(volumes: Sequence[Series], names: dict[Series, str], path: Path) -> InputError:
    if len({s.uid for s in volumes}) > 1 or volumes[0].is_scattered:
        cause = f"it contains {len(volumes)} series:"
        step = f"Choose one by its number or UID, for example {_option(volumes, names)}."
        return _refusal("several-series", cause, step, volumes, names, path)
    cause = f"it contains {len(volumes)} volumes in one series:"
    step = f"Choose one, for example {_option(volumes, names)}."
    whole = _whole(volumes)
    if whole is not None:
        name = whole.number or whole.uid
        step += f" If they are one volume all the same, read it with --series {name} --repair."
    return _refusal("several-volumes", cause, step, volumes, names, path)


def _no_volume(series: Sequence[Series], names: dict[Series, str], path: Path) -> InputError:
    cause = "it does not contain a volume, but"
    kind = series[0].kind if len(series) == 1 else "several"
    if kind == "images without position":
        step = (
            "Export the original series from the scanner or the archive again: "
            "Image Position (Patient) is required."
        )
        return _refusal("no-position", cause, step, series, names, path)
    codes = {"several": "no-volume", "colour image": "colour-image"}
    step = "Use a CT series of parallel slices."
    return _refusal(codes.get(kind, "not-a-scan"), cause, step, series, names, path)


def _refusal(
    code: str,
    cause: str,
    next_step: str,
    series: Sequence[Series],
    names: dict[Series, str],
    path: Path,
) -> InputError:
    return InputError(f"{cause} {_list(series, names)}", path=path, code=code, next_step=next_step)


def _option(series: Sequence[Series], names: dict[Series, str]) -> str:
    """An example of the option that chooses one of them."""
    return f"--series {next((names[s] for s in series if s.kind == 'volume'), 'NUMBER')}"


def _list(series: Sequence[Series], names: dict[Series, str]) -> str:
    several = len({s.uid for s in series}) > 1
    uids = {s: _short_uid(s, list(names)) if several else "" for s in series}
    shown = [_said(s, names, uids[s]) for s in series[:_LISTED]]
    more = f"; and {len(series) - _LISTED} more" if len(series) > _LISTED else ""
    return "; ".join(shown) + more


def _said(one: Series, names: dict[Series, str], uid: str) -> str:
    plural = "image" if one.n_images == 1 else "images"
    details = [one.modality or "no modality", f"{one.n_images} {plural}"]
    details += [part for part in (one.label, "" if one.kind == "volume" else one.kind) if part]
    if uid:
        details.append(f"UID {uid}")
    return f"series {names[one]} '{one.description[:_TEXT]}' ({', '.join(details)})"
