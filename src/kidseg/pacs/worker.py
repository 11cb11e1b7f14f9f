"""Fetch, segment, send: the steps of each series, one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kidseg.errors import InputError, KidsegError, ModelError, ResourceError, converted
from kidseg.model_file import find_model
from kidseg.pacs.result_objects import make_results
from kidseg.pacs.series_queue import OPEN, Series, SeriesQueue
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.served_model import check_served

__all__ = ["CLOSED", "Archive", "UnreachableError", "Worker"]

# Failures that the same series may not have again.
_PASSING = {
    "process-failed",
    "worker-killed",
    "out-of-memory",
    "not-enough-memory",
    "incomplete-answer",
}
# Failures whose cause is in our own words, without any of a patient.
_EXPLAINED = {"archive-refuses", "incomplete-answer"}
# Failures that are not those of a series: waited for, as long as it takes.
CLOSED = {"archive-forbids", "archive-untrusted"}
"""Codes of an archive that answers, but not to us: a wrong token, or an untrusted certificate. It
is waited for: whoever runs it can fix that."""

_WAITED = {"unreachable", "disk-full", *CLOSED}


class UnreachableError(Exception):
    """The archive does not answer, or not now. Nothing is wrong with the series."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Where series come from and results go to.

    Attributes:
        fetch: write the images of a series into a folder.
        send: store files in the archive; again, if they are there.

    Both raise UnreachableError, or InputError where the archive refuses.
    """

    fetch: Callable[[Series, Path], None]
    send: Callable[[Series, Sequence[Path]], None]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Does the next step that is due.

    Attributes:
        queue: of the series.
        archive: see there.
        model: file of the model, or "starter".
        device: to segment on.
        attempts: after so many failures of its own a series is set aside.
        log: what was done, without patient data.
        say: called with a line for people, about series by their numbers.
        is_wanted: False: stop the segmentation that is running.
    """

    queue: SeriesQueue
    archive: Archive
    model: str
    device: str
    attempts: int
    log: AuditLog
    say: Callable[[str], None]
    is_wanted: Callable[[], bool] = lambda: True

    def stop_waiting(self) -> None:
        """Do at once what waits for archive or disk: they may have been mended since."""
        for series in self.queue.all():
            if series.state in OPEN and series.code in _WAITED:
                self.queue.advance(series.number, series.state)

    def waits_in_vain(self, series: Series) -> bool:
        """Has its step been tried `attempts` times, and the archive or the disk was not there?"""
        waits = series.state in OPEN and series.code in _WAITED
        return waits and series.attempts >= self.attempts

    @property
    def is_busy(self) -> bool:
        """Has any series a next step that does not wait in vain?"""
        return any(
            series.state in (*OPEN, "arriving") and not self.waits_in_vain(series)
            for series in self.queue.all()
        )

    def step(self) -> bool:
        """Do the next step of a series; False if none is due.

        Raises:
            ModelError: the model cannot be used; no series is to blame for that.
            ResourceError: "disk-full": of the table or the log.
        """
        series = self.queue.next_due()
        if series is None:
            return False
        try:
            if series.state == "known":
                self._fetch(series)
            elif series.state == "here":
                self._segment(series)
            else:
                self._send(series)
        except UnreachableError as error:
            self._put_off(series, "unreachable", str(error))
        except ModelError:
            raise
        except KidsegError as error:
            if self.is_wanted():
                self._failed(series, error)
        except Exception as error:  # of any kind: the other series are done
            self._failed(series, converted(error) or _unknown(error))
        return True

    def _fetch(self, series: Series) -> None:
        place = self.queue.place(series.number)
        shutil.rmtree(place, ignore_errors=True)
        (place / "images").mkdir(parents=True, mode=0o700)
        try:
            self.archive.fetch(series, place / "images")
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)  # a full disk gets its room back
            raise
        self.queue.advance(series.number, "here")
        self.note(series.number, "fetched", "its images are here")

    def _segment(self, series: Series) -> None:
        place = self.queue.place(series.number)
        shutil.rmtree(place / "results", ignore_errors=True)
        try:
            make_results(place, self.model, self.device, self.is_wanted)
        except BaseException as error:
            shutil.rmtree(place / "results", ignore_errors=True)
            if isinstance(error, KidsegError):
                _check_model(self.model)
            raise
        self.queue.advance(series.number, "segmented")
        self.note(series.number, "segmented", "segmented")

    def _send(self, series: Series) -> None:
        place = self.queue.place(series.number)
        self.archive.send(series, sorted((place / "results").glob("*.dcm")))
        self.queue.advance(series.number, "sent")
        self.queue.forget_files(series.number)
        self.note(series.number, "sent", "results are in the archive")

    def _failed(self, series: Series, error: KidsegError) -> None:
        if error.code in _WAITED:
            self._put_off(series, error.code, error.cause)
            return
        why = f"{error.code} ({error.cause})" if error.code in _EXPLAINED else error.code
        passing = isinstance(error, ResourceError) or error.code in _PASSING
        failures = 0 if series.code in _WAITED else series.attempts
        if passing and failures + 1 < self.attempts:
            self._put_off(series, error.code, why)
            return
        self.queue.set_aside(series.number, error.code)
        place = self.queue.place(series.number)
        where = f" in {place}" if place.exists() else ""
        self.note(series.number, "set-aside", f"{why}: set aside{where}", error.code)

    def _put_off(self, series: Series, code: str, why: str) -> None:
        """Do the step again later; the longer, the more often it failed for this kind of reason."""
        if (series.code in _WAITED) != (code in _WAITED):
            series = replace(series, attempts=0)
        wait = self.queue.put_off(series, code)
        self.note(series.number, "put-off", f"{why}; again in {wait:.0f} s", code)

    def note(self, number: int, event: str, text: str, code: str = "") -> None:
        """Something happened to a series: for the log, and in words for people."""
        self.log.write(event, series=number, code=code)
        self.say(f"series {number}: {text}")


def _check_model(model: str) -> None:
    """Raise ModelError if the model cannot be used any more."""
    try:
        check_served(find_model(model))
    except KidsegError as error:
        raise ModelError(
            error.cause, path=error.path, code=error.code, next_step=error.next_step
        ) from error


def _unknown(error: Exception) -> KidsegError:
    """Any other error, such as of what an archive sent; its text may name a patient."""
    return InputError(
        f"it could not be processed ({type(error).__name__})",
        code="series-failed",
        next_step="Check its images with 'kidseg check'.",
    )
