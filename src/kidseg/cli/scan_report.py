"""What `kidseg segment` says of each scan: volumes by side, doubt, warnings and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kidseg.cli.terminal import RESEARCH_ONLY
from kidseg.errors import KidsegError
from kidseg.header import read_header
from kidseg.model_file import STARTER_USE, is_starter
from kidseg.table import text_table, wrapped

if TYPE_CHECKING:
    from kidseg.cli.progress import AdvanceStage
    from kidseg.segment.cohort_table import CohortRow

__all__ = [
    "ScanReport",
    "cohort_lines",
    "failures_text",
    "review_line",
    "scan_line",
    "starter_line",
    "tell_starter",
    "volumes_text",
]

Entry = Mapping[str, Any]

_LISTED = 40
"""A longer batch is summarised; the volumes and warnings of each scan are in its files."""

# What is done with a scan: how much of it is done before, and its share. About as long as on a CPU.
_WITHIN = {"segment": (0.0, 0.9), "decide": (0.9, 0.1)}
_SIDES = ("right", "left")
_PARTIAL = "*"
_FIRST_SLICES = 5


class ScanReport:
    """Collects the entries of scans while they are segmented, and tells about them.

    Args:
        advance: shows the progress of a task.
        out: the folder of the results.
        lines: write a line on standard error after each scan.
        steps: write lines about the progress within each scan, too.
    """

    def __init__(
        self,
        advance: AdvanceStage,
        out: Path,
        *,
        lines: bool,
        steps: bool = False,
    ) -> None:
        self.done: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self._advance, self._out, self._lines, self._steps = advance, out, lines, steps
        self._last: Entry = {}
        self._said = ""

    def report(self, entry: Entry) -> None:
        """Take the entry of a scan; that of a failed one has a "code"."""
        (self.failed if "code" in entry else self.done).append(dict(entry))
        self._last = entry

    def progress(self, done: int, total: int) -> None:
        """Show that a scan ended."""
        self._advance("scans", done, total, {})
        if self._lines:
            typer.echo(f"[{done}/{total}] {scan_line(self._last)}", err=True)

    def within(self, what: str, fraction: float) -> None:
        """Show how far a scan is."""
        if what in _WITHIN:  # training has a bar of its own
            first, share = _WITHIN[what]
            self._advance("this scan", round(100 * (first + share * fraction)), 100, {})
        text = f"{what}: {5 * int(20 * fraction)} %"
        if self._steps and text != self._said:
            self._said = text
            typer.echo(text, err=True)

    def as_dict(self, error: KidsegError | None) -> dict[str, Any]:
        """As one JSON object, with the error that ended the batch."""
        from kidseg.segment.cohort_table import cohort_facts

        rows = self._rows()
        summary = {**cohort_facts(rows), "rows": [row.as_dict() for row in rows]}
        result: dict[str, Any] = {
            "results": self.done,
            "failed": self.failed,
            "summary": summary,
        }
        return result if error is None else {**result, "error": error.as_finding().as_dict()}

    def text(self) -> str:
        """For people; see `volumes_text`. Of many scans the summary, without those of each."""
        if len(self.done) <= _LISTED:
            text = volumes_text(self.done, self.failed, self._out)
        else:
            text = failures_text(self.failed)
        rows = self._rows()
        return "\n".join([text, *(cohort_lines(rows, self._out) if len(rows) > 1 else [])])

    def _rows(self) -> list[CohortRow]:
        """Of all scans in the folder, of earlier calls too."""
        from kidseg.segment.cohort_table import cohort_rows
        from kidseg.segment.index import read_index

        return cohort_rows(read_index(self._out))

    def kept(self) -> str:
        """What is kept of a stopped batch, and how it goes on."""
        return (
            f"{len(self.done)} scan(s) are segmented and recorded in {self._out}."
            " Run the same command with --resume to go on."
        )


def tell_starter(models: Sequence[Path], silent: bool) -> None:
    """Say on standard error, unless silent, that the starter is among these models."""
    for model in () if silent else models:
        if line := starter_line(model):
            typer.echo(f"kidseg: {line}", err=True)


def starter_line(model: Path) -> str | None:
    """What the starter is, in one line; None if the model is another one.

    Raises:
        ModelError: see `read_header`.
    """
    if not is_starter(model):
        return None
    from kidseg.io.content import sha256_of

    version, digest = read_header(model).get("kidseg"), sha256_of(model)[:12]
    return f"starter model of kidseg {version} ({digest}): {STARTER_USE}; see kidseg info starter"


def scan_line(entry: Entry) -> str:
    """One line about a scan: its volumes and the number of warnings, or why it failed."""
    if "code" in entry:
        return _printable(f"{entry['name']}: failed: {entry['cause']}")
    parts = [
        f"{title} {volume:.1f} ml{' (partial)' if partial else ''}"
        for title, (volume, partial) in _volumes(entry).items()
        if volume > 0
    ]
    count = len(entry["warnings"])
    noted = f"; {count} warning{'s' * (count > 1)}" if count else ""
    return _printable(f"{entry['name']}: {', '.join(parts) or 'nothing found'}{noted}")


def volumes_text(done: Sequence[Entry], failed: Sequence[Entry], out: Path) -> str:
    """The end of a segmentation: a table of volumes in ml, all warnings, all failures.

    Of a single scan, what the steps of its method decided, too.

    Args:
        done: entries of segmented scans, as in result.json.
        failed: entries of failed scans.
        out: the folder of the results.
    """
    lines = []
    if done:
        rows = [_volumes(entry) for entry in done]
        titles = list(dict.fromkeys(title for row in rows for title in row))
        cells = [
            [_printable(entry["name"]), *(_cell(row.get(title)) for title in titles)]
            for entry, row in zip(done, rows, strict=True)
        ]
        lines += ["Volumes in ml:", *text_table(["scan", *titles], cells)]
        if any(partial for row in rows for _, partial in row.values()):
            lines.append(f"{_PARTIAL} reaches the border of the scan: the volume is partial")
    lines += [*_adapted(done), *_averaged(done)]
    if len(done) == 1:
        notes = done[0].get("notes", {}).items()
        lines += _listed("Steps:", [f"{step}: {note['text']}" for step, note in notes])
    reviewed = [f"{e['name']}: {review_line(e)}" for e in done if "review" in e]
    lines += _listed("To review:", reviewed)
    warned = [
        f"{entry['name']}: {_sentence(finding)}" for entry in done for finding in entry["warnings"]
    ]
    lines += _listed("Warnings:", warned)
    lines += _listed("Failed:", [f"{entry['name']}: {_sentence(entry)}" for entry in failed])
    lines += ["", *wrapped(f"{len(done)} scan(s) segmented in {out}. {RESEARCH_ONLY}")]
    return _printable("\n".join(lines))


def failures_text(failed: Sequence[Entry]) -> str:
    """The failures of a long batch, and what its results are for."""
    lines = _listed("Failed:", [f"{entry['name']}: {_sentence(entry)}" for entry in failed])
    return _printable("\n".join([*lines, "", *wrapped(RESEARCH_ONLY)]))


def cohort_lines(rows: Sequence[CohortRow], out: Path) -> list[str]:
    """The cohort in a few lines: how many scans were segmented, volumes, errors, where it is."""
    from kidseg.segment.cohort_table import SUMMARY, cohort_facts

    facts = cohort_facts(rows)
    cells = [
        [name, str(found["n"]), *(_number(found[key]) for key in ("median", "least", "most"))]
        for name, found in facts["volumes_ml"].items()
    ]
    head = ["volume in ml where found", "scans", "median", "least", "most"]
    failed = ", ".join(f"{count} {code}" for code, count in facts["failed"].items())
    count = f"{facts['done']} of {facts['scans']} scans in this folder are segmented"
    warned = f", {facts['warned']} of them with warnings" if facts["warned"] else ""
    text = f"{count}{warned}.{f' Failed: {failed}.' if failed else ''} Table: {out / SUMMARY}"
    return ["", *text_table(head, cells), *wrapped(_printable(text))]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _volumes(entry: Entry) -> dict[str, tuple[float, bool]]:
    """{title: (volume in ml, is it partial)}: by side; of each region if there are no kidneys."""
    sides = entry["sides"]
    if sides is None:
        return {name: (volume, False) for name, volume in entry["volumes_ml"].items()}
    names = list(dict.fromkeys(name for side in _SIDES for name in sides[side]["volumes_ml"]))
    return {
        f"{side} {name}": (volumes[name], sides[side]["partial"] and volumes[name] > 0)
        for name in names
        for side in _SIDES
        if name in (volumes := sides[side]["volumes_ml"])
    }


def review_line(entry: Entry) -> str:
    """The intervals of the volumes, what they are worth, and the slices to look at first."""
    review = entry["review"]
    known = {
        name: found["interval_ml"]
        for name, found in review["structures"].items()
        if found["interval_ml"] is not None
    }
    intervals = ", ".join(f"{name} {low:.1f}-{high:.1f}" for name, (low, high) in known.items())
    count, level = review["opinions"], f"{review['level']:.0%}"
    opinions = f"{count} opinion{'s' * (count != 1)}"
    if not known:
        worth = f"no interval of the volumes from {opinions}"
    elif review["interval"] == "conformal":
        scans = review.get("calibrated_scans", "")
        of = f"calibrated on {scans}, too narrow for others" if scans else "calibrated"
        worth = f"{level} interval in ml, {of}: {intervals}"
    else:
        worth = f"{level} interval in ml of {opinions}, not calibrated: {intervals}"
    if not (first := review["slices"][:_FIRST_SLICES]):
        return f"{worth}; nothing unsure"
    places = (f"{each['slice'] + 1} ({each['position_mm']:.1f} mm)" for each in first)
    axis = review.get("slice_axis", "k")
    return f"{worth}; slices along {axis}, counted from 1: {', '.join(places)}"


def _adapted(done: Sequence[Entry]) -> list[str]:
    """Which scans the model was adapted to."""
    counts = [count for entry in done if (count := entry.get("adapted", {}).get("slices"))]
    if not counts:
        return []
    slices = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
    text = f"Norm statistics were adapted to each of {len(counts)} scan(s), from {slices} slice(s)."
    return wrapped(text)


def _averaged(done: Sequence[Entry]) -> list[str]:
    """That an ensemble segmented, and what is told of its first member only."""
    known = [entry["ensemble"]["members"] for entry in done if "ensemble" in entry]
    means = dict.fromkeys(f"{len(members)} models ({', '.join(members)})" for members in known)
    if not means:
        return []
    return wrapped(
        f"Probabilities are the mean of {', or of '.join(means)}; grids, figures and the training"
        " range are those of the first."
    )


def _cell(volume: tuple[float, bool] | None) -> str:
    if volume is None or volume[0] <= 0:
        return "-"
    return f"{volume[0]:.1f}{_PARTIAL if volume[1] else ''}"


def _listed(title: str, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    return ["", title, *(line for text in texts for line in wrapped(text, indent="  "))]


def _sentence(finding: Entry) -> str:
    step = finding["next_step"]
    return f"{finding['cause'].rstrip('.')}. {step}".strip() if step else finding["cause"]


def _printable(text: str) -> str:
    """The text with escapes for the bytes of names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
