"""The commands `dicomweb` and `node`: studies of the hospital's archive, and results back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kidseg.cli.options import AsJson, Device, Quiet, argument, option
from kidseg.cli.stopping import stoppable
from kidseg.cli.terminal import print_result, tell_missing_gpu
from kidseg.errors import InputError, ResourceError
from kidseg.extras import check_installed

if TYPE_CHECKING:
    from kidseg.pacs.series_queue import State
    from kidseg.pacs.worker import Archive, Worker

__all__ = ["dicomweb", "node"]

_TICK_S, _FULL_S = 0.5, 10.0

Work = Annotated[Path, option("--folder", help="Folder for the state; it goes on there.")]
Model = Annotated[str, option("--model", "-m", help="Model file, run's folder, or starter.")]
Attempts = Annotated[
    int,
    option(
        min=1,
        help="Failures before a series is set aside; with --once also before an archive that does"
        " not answer is given up.",
    ),
]
MinImages = Annotated[int, option(min=1, help="Shorter series are left out.")]
Retry = Annotated[bool, option("--retry", help="First try the series again that were set aside.")]
Once = Annotated[bool, option("--once", help="End when nothing is left to do.")]


def dicomweb(
    url: Annotated[str, argument(help="Of the DICOMweb service of the archive.")],
    work: Work = Path("kidseg-work"),
    model: Model = "starter",
    device: Device = "auto",
    every: Annotated[float, option(min=0.1, help="Seconds between two looks.")] = 60.0,
    since_days: Annotated[
        int | None, option(min=0, help="Studies of so many days only; else all.")
    ] = None,
    min_images: MinImages = 20,
    attempts: Attempts = 3,
    retry: Retry = False,
    once: Once = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Segment the CT series of an archive; SEG, SR and a report go back into the same study.

    A series is processed when it had the same images in two looks. If the archive needs a token or
    a login, set KIDSEG_ARCHIVE_TOKEN=TOKEN or KIDSEG_ARCHIVE_LOGIN=USER:PASSWORD.

    Example: kidseg dicomweb http://archive:8042/dicom-web --folder /var/lib/kidseg --since-days 2
    """
    check_installed("kidseg dicomweb", ["dicomweb_client", "requests"], "kidseg[pacs]")
    from kidseg.pacs.dicomweb import Look, WebArchive, find_series
    from kidseg.pacs.worker import UnreachableError

    archive = WebArchive(
        url=url,
        token=os.environ.get("KIDSEG_ARCHIVE_TOKEN", ""),
        login=os.environ.get("KIDSEG_ARCHIVE_LOGIN", ""),
    )
    seen: dict[str, Look] = {}
    looks, failed, next_look = 0, 0, 0.0
    with _worker(work, archive.archive, model, device, attempts, quiet) as (worker, say):
        queue = worker.queue

        def look() -> None:
            nonlocal looks, failed, next_look
            if time.monotonic() < next_look:
                return
            try:
                find_series(
                    archive, queue, seen, min_images=min_images, since_days=since_days, say=say
                )
                looks, failed = looks + 1, 0
            except (UnreachableError, InputError) as error:
                failed += 1
                gives_up = once and failed >= attempts
                if isinstance(error, InputError) and (gives_up or not looks):
                    raise  # it has never worked, or does no longer
                if gives_up:
                    raise _given_up(url, failed, error, work) from error
                say(f"{error}; looking again in {every:g} s")
            next_look = time.monotonic() + every

        if retry:
            _retry(worker, "known")
        while not (once and looks >= 2 and not worker.is_busy):
            _step(worker, say, look)
    _end(worker, as_json, quiet)


def node(
    to: Annotated[str, option(help="Node that results go to: TITLE@HOST:PORT.")],
    title: Annotated[str, option(help="Title of this node.")] = "KIDSEG",
    host: Annotated[str, option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, option(min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 11112,
    caller: Annotated[
        list[str] | None, option(help="Title of a node that may send; else any may.")
    ] = None,
    quiet_s: Annotated[
        float, option(min=0.1, help="A series is complete after so many seconds of silence.")
    ] = 30.0,
    min_images: MinImages = 20,
    work: Work = Path("kidseg-work"),
    model: Model = "starter",
    device: Device = "auto",
    attempts: Attempts = 3,
    retry: Retry = False,
    once: Once = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take CT series by C-STORE; SEG, SR and a report go to another node by C-STORE.

    Example: kidseg node --to ARCHIVE@127.0.0.1:4242 --port 11112 --folder /var/lib/kidseg
    """
    check_installed("kidseg node", ["pynetdicom"], "kidseg[pacs]")
    from kidseg.pacs.node import Arrivals, receiving
    from kidseg.pacs.peer import Peer, check_titles

    check_titles([title, *(caller or ())])
    peer = Peer.from_text(to, title)
    callers = caller or ()
    with _worker(work, peer.archive, model, device, attempts, quiet) as (worker, say):
        queue = worker.queue
        arrivals = Arrivals(
            queue=queue, quiet_s=quiet_s, min_images=min_images, note=worker.note, say=say
        )
        if retry:
            _retry(worker, "here")
        with receiving(arrivals, title=title, host=host, port=port, callers=callers) as listening:
            say(f"node {title} listens on {host}:{listening}")
            while not (once and queue.all() and not (worker.is_busy or arrivals.are_pending)):
                _step(worker, say, arrivals.settle)
    _end(worker, as_json, quiet)


@contextmanager
def _worker(
    work: Path, archive: Archive, model: str, device: str, attempts: int, quiet: bool
) -> Iterator[tuple[Worker, Callable[[str], None]]]:
    """The worker of a folder, locked for this process, and how to tell people.

    The folder has the patients' images: what is made in this block is for this user alone.
    """
    from kidseg.io.atomic import make_folder
    from kidseg.io.label_formats import check_formats
    from kidseg.model_file import find_model
    from kidseg.pacs.series_queue import SeriesQueue
    from kidseg.pacs.worker import Worker
    from kidseg.serve.audit_log import AuditLog
    from kidseg.serve.folder_lock import locked_folder
    from kidseg.serve.served_model import check_served

    def say(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    tell_missing_gpu(device, quiet)
    check_formats(("dicomseg", "sr"))
    check_served(find_model(model))
    go_on = f"Start it again with --folder {work} to go on."
    before = os.umask(0o077)
    try:
        make_folder(work)
        with stoppable(lambda: go_on), locked_folder(work, "process"):
            worker = Worker(
                queue=SeriesQueue.opened(work),
                archive=archive,
                model=model,
                device=device,
                attempts=attempts,
                log=AuditLog.opened(work / "audit.jsonl"),
                say=say,
            )
            worker.stop_waiting()
            yield worker, say
    finally:
        os.umask(before)


def _retry(worker: Worker, state: State) -> None:
    """Let the series that were set aside be done again from this state on."""
    for number in worker.queue.retry_aside(state):
        worker.note(number, "tried-again", "is tried again")


def _step(
    worker: Worker, say: Callable[[str], None], before: Callable[[], object] = lambda: None
) -> None:
    """Do what is next; wait where nothing is, or where this machine has no room."""
    try:
        before()
        if not worker.step():
            time.sleep(_TICK_S)
    except (OSError, ResourceError) as error:
        reason = error.cause if isinstance(error, ResourceError) else error.strerror
        say(f"the work folder cannot be written ({reason}); again in {_FULL_S:.0f} s")
        time.sleep(_FULL_S)


def _given_up(url: str, looks: int, last: Exception, work: Path) -> InputError:
    """The archive did not answer so often in a row."""
    return InputError(
        f"{looks} looks in a row failed, the last because {last}",
        path=url,
        code="archive-unreachable",
        next_step="Check the address, and that the archive runs and can be reached from here; then"
        f" start this again with --folder {work} to go on.",
    )


def _end(worker: Worker, as_json: bool, quiet: bool) -> None:
    """Say what became of the series; exit code 4 if one was set aside, or waits in vain."""
    queue = worker.queue
    found = queue.all()
    aside = [series for series in found if series.state == "aside"]
    waiting = [series for series in found if worker.waits_in_vain(series)]
    sent = sum(series.state == "sent" for series in found)
    lines = [f"{sent} series segmented, results sent; {len(aside)} set aside."]
    lines += [f"series {s.number}: {s.code}, {queue.place(s.number)}" for s in aside]
    lines += [
        f"series {s.number}: {s.code} (attempts: {s.attempts}); start again with --folder"
        f" {queue.folder} to go on"
        for s in waiting
    ]
    result = {
        "sent": sent,
        "aside": [
            {"number": s.number, "code": s.code, "folder": str(queue.place(s.number))}
            for s in aside
        ],
        "waiting": [{"number": s.number, "code": s.code} for s in waiting],
    }
    print_result(result, "\n".join(lines), as_json, quiet)
    if aside or waiting:
        raise typer.Exit(4)
