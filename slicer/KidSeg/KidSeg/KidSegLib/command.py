"""Run the command line of kidseg, on this machine or in a container."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .child_process import Ended, run_child
from .job import LABELS, Found, Job
from .problems import CancelledError, KidSegError, error_from, note_from, readable
from .watch import Watch

__all__ = ["Argv", "find_program", "segment_by_command"]

_RESULT = "result"
_MEASURES = "measures"
_NO_MEMORY = (-9, 137)
_PROGRESS = re.compile(r"(train|segment|decide): (\d{1,3}) %")
"""A line of `kidseg segment --progress` and `kidseg complete --progress`."""

_SHARES = {"segment": (0.0, 0.8), "decide": (0.8, 0.1)}
_SHARES_COMPLETING = {"train": (0.0, 0.6), "segment": (0.6, 0.25), "decide": (0.85, 0.05)}
"""What is done before, and the share of the whole; then it is measured."""

_MEASURING = 0.95

Argv = Callable[[Sequence[str]], Sequence[str]]


def segment_by_command(
    job: Job,
    watch: Watch,
    *,
    argv: Argv,
    inside: str,
    outside: str,
    model: str | None,
    environment: Mapping[str, str],
) -> Found:
    """Segment and measure with `kidseg segment`, or `kidseg complete`, and `kidseg measure`.

    Args:
        job: with the scan in `job.inside`, and the drawn slices if there are any.
        watch: told the progress, and asked whether to stop.
        argv: makes the command line of the arguments of kidseg.
        inside: path of `job.inside` as the command sees it.
        outside: path of `job.outside` as the command sees it.
        model: path of the model as the command sees it; None: kidseg's own.
        environment: of the command.

    Raises:
        KidSegError: with kidseg's own words if it refused the scan.
        CancelledError: the user cancelled.
    """
    scan, result = f"{inside}/{job.scan.name}", f"{outside}/{_RESULT}"
    names = {scan: job.name, str(Path(scan)): job.name}
    drawn = f"{inside}/{job.drawn_slices.name}"
    names |= {drawn: job.drawn, str(Path(drawn)): job.drawn}
    shares = _SHARES_COMPLETING if job.drawn else _SHARES
    names |= {f"{folder}{sign}": "" for folder in (inside, outside) for sign in "/\\"}

    def shown(line: str) -> str:
        match = _PROGRESS.fullmatch(line.strip())
        if match and match[1] in shares:
            first, share = shares[match[1]]
            watch.advance(first + share * int(match[2]) / 100)
            return ""  # the bar shows it
        return readable(line, names)

    def answer(words: Sequence[str]) -> dict[str, Any]:
        return _answer(run_child(argv(words), watch, environment, shown), names)

    words = ["complete", scan, drawn] if job.drawn else ["segment", scan]
    words += ["-o", result, "--formats", job.all_formats, "--json", "--progress"]
    words += ["--device", "cpu"] if job.cpu else []
    words += [] if model is None else ["--model", model]
    watch.say(
        "Training on the drawn slices, then segmenting ..." if job.drawn else "Segmenting ..."
    )
    answered = answer(words)
    found = _found([answered] if job.drawn else answered.get("results") or [], job, names)
    watch.say("Measuring ...")
    watch.advance(_MEASURING)
    labels = f"{result}/{found.labels.name}"
    words = ["measure", labels, "--ct", scan, "-o", f"{outside}/{_MEASURES}", "--json"]
    try:
        measures = answer(words)
    except CancelledError:
        raise
    except KidSegError as error:
        found.notes.append(f"Only the volumes were measured. {error}")
        return found
    notes = [*found.notes, *(note_from(finding, names) for finding in measures.get("warnings", []))]
    return replace(found, measures=measures, notes=list(dict.fromkeys(notes)))  # some are of both


def _found(entries: Sequence[Mapping[str, Any]], job: Job, names: Mapping[str, str]) -> Found:
    """What kidseg wrote, by its entries of scans.

    Raises:
        KidSegError: "no-result".
    """
    if len(entries) != 1:
        raise KidSegError("kidseg gave no result for the scan", code="no-result")
    record = entries[0]
    files = [job.outside / _RESULT / str(name) for name in record.get("outputs", [])]
    labels = next((path for path in files if path.name.endswith(f".{LABELS}")), None)
    if labels is None or not all(path.is_file() for path in files):
        raise KidSegError("kidseg did not write the labels", code="no-result")
    notes = [note_from(finding, names) for finding in record.get("warnings", [])]
    return Found(labels, record, None, tuple(path for path in files if path != labels), notes)


def _answer(ended: Ended, names: Mapping[str, str]) -> dict[str, Any]:
    """The JSON object that the command printed.

    Raises:
        KidSegError: it failed.
    """
    try:
        answer = json.loads(ended.output)
    except json.JSONDecodeError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        raise error_from(answer["error"], names)
    if ended.code in _NO_MEMORY:
        raise KidSegError(
            "kidseg was stopped by the system, most likely for lack of memory",
            "Close other programs, crop the scan (module Crop Volume), or use a larger machine.",
            code="killed",
        )
    if ended.code != 0 or not isinstance(answer, dict):
        last = ended.log.splitlines()[-1] if ended.log else "without a message"
        raise KidSegError(
            f"kidseg ended with exit code {ended.code}: {last}",
            "Try 'kidseg doctor' in a terminal.",
            code="command-failed",
            details=ended.log,
        )
    return answer


def find_program(given: str, names: Sequence[str], which: Callable[[str], str | None]) -> Path:
    """A program by its path or name.

    Args:
        given: by the user; "": any of the names.
        names: to look for.
        which: finds a name in the search path.

    Raises:
        KidSegError: "no-program".
    """
    path = Path(given).expanduser()
    if given and path.is_dir():  # such as the folder of a virtual environment
        places = [path / folder / name for folder in ("", "bin", "Scripts") for name in names]
        found = next((str(p) for p in (*places, *_exe(places)) if p.is_file()), None)
    elif given:
        found = str(path.absolute()) if path.is_file() else which(given)
    else:
        found = next(filter(None, map(which, names)), None)
    if found is None:
        what = f"'{given}'" if given else " or ".join(f"'{name}'" for name in names)
        raise KidSegError(
            f"the program {what} was not found",
            "Give its path under 'Where kidseg runs'.",
            code="no-program",
        )
    return Path(found)


def _exe(places: Sequence[Path]) -> list[Path]:
    return [path.with_name(f"{path.name}.exe") for path in places]
