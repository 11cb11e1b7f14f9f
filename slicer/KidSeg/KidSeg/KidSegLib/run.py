"""Segment a volume of the scene in the background."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
import unicodedata
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .drawn import drawn_on, hidden_segments, write_drawn
from .job import BackEnd, Found, Job
from .measures import Answer, Measure, answers_of, fill_table, measures_of
from .problems import CancelledError, KidSegError
from .remarks import remarks_of
from .segmentations import fill_segmentation, place_beside, read_segmentation
from .volumes import check_volume, grid_of, write_volume
from .watch import Watch

__all__ = ["FORMATS", "Outcome", "Run", "Wanted", "segment"]

FORMATS = ("nii", "nrrd", "mha", "seg.nrrd", "stl", "obj", "glb")
"""That a scan of the scene can be saved in. DICOM needs the files of the series."""

_PREFIX = "kidseg-slicer-"
_STALE_S = 24 * 3600.0
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]+')


@dataclass(frozen=True)
class Wanted:
    """What the user wants.

    Attributes:
        model: a model file or run folder; None: the model that comes with kidseg.
        cpu: use no graphics processor.
        formats: of `FORMATS`, in which to save the labels besides.
        folder: for a new folder with these files.
        drawn: a segmentation node with a few drawn slices, which are completed: the model is
            trained further on them, and segments the others. None: the model alone segments.
    """

    model: Path | None = None
    cpu: bool = False
    formats: tuple[str, ...] = ()
    folder: Path | None = None
    drawn: Any = None


@dataclass(frozen=True)
class Outcome:
    """What is in the scene afterwards.

    Attributes:
        segmentation: its node.
        measures: a table node.
        criteria: a table node; None: they were not evaluated.
        files: that were saved.
        notes: for the user.
    """

    segmentation: Any
    measures: Any
    criteria: Any
    files: tuple[Path, ...]
    notes: tuple[str, ...]


class Run:
    """A segmentation that runs in the background. Its methods belong to the main thread.

    The temporary folder is removed when the run ends, in whatever way.

    Args:
        volume: a scalar volume node of a scene.
        back_end: where kidseg runs.
        wanted: the choices of the user.
        output: a segmentation node to fill; None: a new one.

    Raises:
        KidSegError: it cannot be started; nothing was.
    """

    def __init__(
        self, volume: Any, back_end: BackEnd, wanted: Wanted | None = None, output: Any = None
    ) -> None:
        wanted = wanted or Wanted()
        self.notes = check_volume(volume)
        self.volume, self.output, self.wanted = volume, output, wanted
        _check_wanted(wanted)
        self.grid = grid_of(volume)
        drawn = None if wanted.drawn is None else drawn_on(wanted.drawn, self.grid)
        if drawn is not None and (hidden := hidden_segments(wanted.drawn)):
            self.notes.append(f"Segments that are not shown count as drawn: {', '.join(hidden)}.")
        self.watch = Watch()
        remove_stale()
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            raise _no_file(error) from error
        self._clean = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._found: Found | None = None
        self._error: BaseException | None = None
        self._closed = False
        try:
            self.job = Job(
                folder,
                volume.GetName() or "the scan",
                wanted.formats,
                wanted.model,
                wanted.cpu,
                "" if drawn is None else wanted.drawn.GetName() or "the drawn slices",
            )
            back_end.check(self.job)
            self.job.inside.mkdir()
            self.job.outside.mkdir()
            write_volume(volume, self.grid, self.job.scan, compress=back_end.compress)
            if drawn is not None:
                write_drawn(drawn, self.job.drawn_slices)
        except OSError as error:
            self._clean()
            raise _no_file(error) from error
        except BaseException:
            self._clean()
            raise
        self._thread = threading.Thread(target=self._work, args=(back_end,), daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Is the work in the background still going on?"""
        return self._thread.is_alive()

    def poll(self, wait_s: float = 0.05) -> list[str]:
        """Let the work go on for a moment, and return what it said."""
        self._thread.join(wait_s)
        return self.watch.messages()

    def cancel(self) -> None:
        """Ask the work to stop; `is_running` tells when it has."""
        self.watch.cancel()

    def close(self, wait_s: float = 20.0) -> None:
        """End the work and remove its files. For the end of 3D Slicer, and after `finish`."""
        self.cancel()
        self._thread.join(wait_s)
        self._closed = True
        self._clean()

    def finish(self) -> Outcome:
        """Put the result into the scene, when the work has ended.

        Raises:
            KidSegError: of the work; nothing in the scene has changed.
            CancelledError: likewise.
        """
        assert not self.is_running and not self._closed
        try:
            if self._error is not None:
                raise self._error
            assert self._found is not None
            self.watch.check()
            return self._shown(self._found)
        finally:
            self.close()

    def _work(self, back_end: BackEnd) -> None:
        try:
            self._found = back_end.segment(self.job, self.watch)
            self.watch.advance(1.0)
        except KidSegError as error:
            self._error = error
        except OSError as error:
            self._error = _no_file(error)
        except Exception as error:  # shown by `finish`, in the main thread
            self._error = KidSegError(
                f"an unexpected error ({type(error).__name__}: {error})",
                "Please report it.",
                code="unexpected",
            )

    def _shown(self, found: Found) -> Outcome:
        scene = self.volume.GetScene()
        if scene is None:
            raise KidSegError("the volume was removed from the scene", code="no-volume")
        segmentation = read_segmentation(found.labels, self.grid)
        measured = measures_of(found.record, found.measures)
        criteria = answers_of(found.measures)
        notes = (*self.notes, *remarks_of(found.record), *dict.fromkeys(found.notes))
        files = self._saved(found)
        output = self.output if self.output and self.output.GetScene() else None
        node = fill_segmentation(segmentation, self.volume, found.record, output)
        node.SetDescription(" ".join([node.GetDescription(), *notes]))  # kept with the scene
        place_beside(node, self.volume)
        name = node.GetName()
        return Outcome(
            node,
            self._table(f"{name} measures", Measure._fields, measured),
            self._table(f"{name} criteria", Answer._fields, criteria) if criteria else None,
            files,
            notes,
        )

    def _table(self, name: str, columns: tuple[str, ...], rows: list[Any]) -> Any:
        """The table with this name beside the volume, new or filled again."""
        scene = self.volume.GetScene()
        known = scene.GetFirstNode(name, "vtkMRMLTableNode")
        table = known or scene.AddNewNodeByClass("vtkMRMLTableNode", name)
        fill_table(table, columns, rows)
        place_beside(table, self.volume)
        return table

    def _saved(self, found: Found) -> tuple[Path, ...]:
        """Copy the files that the user wants into a new folder: all of them, or none."""
        if self.wanted.folder is None or not self.wanted.formats:
            return ()
        sources = [*found.others, *([found.labels] if "seg.nrrd" in self.wanted.formats else [])]
        stem = _file_name(self.volume.GetName())
        try:
            folder = _new_folder(self.wanted.folder, f"{stem} kidseg")
            try:
                for source in sources:
                    name = source.name.replace("scan", stem, 1)
                    shutil.copyfile(source, folder / name)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        except OSError as error:
            raise KidSegError(
                f"the files cannot be saved in {self.wanted.folder} ({error.strerror or error})",
                "Choose a folder where you may write, on a disk with room.",
                code="not-saved",
            ) from error
        return tuple(sorted(folder.iterdir()))


def segment(
    volume: Any,
    back_end: BackEnd,
    wanted: Wanted | None = None,
    output: Any = None,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Segment a volume, and wait for it: for scripts.

    Raises:
        KidSegError: it cannot be segmented.
    """
    run = Run(volume, back_end, wanted, output)
    try:
        while run.is_running:
            for text in run.poll(0.2):
                say(text)
        return run.finish()
    except (KeyboardInterrupt, CancelledError):
        run.close()
        raise


def remove_stale(older_than_s: float = _STALE_S) -> None:
    """Remove temporary folders that a crash of 3D Slicer left behind."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.is_dir() and time.time() - path.stat().st_mtime > older_than_s:
                shutil.rmtree(path, ignore_errors=True)


def _no_file(error: OSError) -> KidSegError:
    where = error.filename or tempfile.gettempdir()
    return KidSegError(
        f"{where} cannot be read or written ({error.strerror or error})",
        "Check that the disk has room, and that you may write there.",
        code="no-file",
    )


def _check_wanted(wanted: Wanted) -> None:
    unknown = [name for name in wanted.formats if name not in FORMATS]
    if unknown:
        raise KidSegError(
            f"labels cannot be saved as {', '.join(unknown)}",
            f"Choose of {', '.join(FORMATS)}.",
            code="unknown-format",
        )
    if wanted.formats and wanted.folder is None:
        raise KidSegError(
            "there is no folder for the files", "Choose one, or no formats.", code="no-folder"
        )
    if wanted.folder is not None and not wanted.folder.is_dir():
        raise KidSegError(
            f"there is no folder {wanted.folder}", "Choose one that exists.", code="no-folder"
        )


def _file_name(name: str | None) -> str:
    """A name of a node as a name of a file on any system."""
    text = _UNSAFE.sub("_", unicodedata.normalize("NFC", name or "")).strip(" .")
    return text[:80].rstrip(" .") or "scan"


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that did not exist: with a number after its name if need be."""
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name} {number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
