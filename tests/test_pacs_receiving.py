"""What a node holds while it receives, by a real sender: memory, disk, and what breaks off."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE

from kidseg.pacs import node
from kidseg.pacs.node import Arrivals, receiving
from kidseg.pacs.series_queue import SeriesQueue
from labelled_series import make_case
from serving import until

SEND = """
import sys
from pathlib import Path
from pynetdicom import AE, _config
_config.STORE_SEND_CHUNKED_DATASET = True
entity = AE()
entity.add_requested_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")
link = entity.associate("127.0.0.1", int(sys.argv[1]))
status = link.send_c_store(Path(sys.argv[2]))
if link.is_established:
    link.release()
sys.exit(status.get("Status") != 0)
"""
RECEIVE = """
import sys, time
from pathlib import Path
from kidseg.pacs.node import Arrivals, receiving
from kidseg.pacs.series_queue import SeriesQueue
arrivals = Arrivals(queue=SeriesQueue.opened(Path(sys.argv[1])), quiet_s=0.0)
with receiving(arrivals, title="KIDSEG", host="127.0.0.1", port=0, callers=()) as port:
    print(port, flush=True)
    time.sleep(600)
"""


def large_image(folder: Path, megabytes: int) -> Path:
    """A CT image with so many bytes of pixels."""
    make_case(folder, "axial")
    path = min(folder.iterdir())
    ds = pydicom.dcmread(path)
    ds.Rows, ds.Columns = 16384, 32 * megabytes
    ds.PixelData = bytes(2 * ds.Rows * ds.Columns)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.save_as(path)
    return path


def sent(port: int, path: Path) -> int:
    return subprocess.run([sys.executable, "-c", SEND, str(port), str(path)]).returncode


def peak_mb(process: int) -> float:
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found) / 1024


@pytest.mark.requirement("archive")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_object_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = large_image(tmp_path / "ct", 40)
    command = [sys.executable, "-c", RECEIVE, str(tmp_path / "work")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            before = peak_mb(process.pid)
            assert sent(port, path) == 0
            assert peak_mb(process.pid) - before < 15
        finally:
            process.kill()
    (kept,) = (tmp_path / "work" / "arriving").glob("*/*.dcm")
    assert pydicom.dcmread(kept) == pydicom.dcmread(path)
    assert not any((tmp_path / "work" / "incoming").iterdir())


@pytest.mark.fault("disk full")
def test_an_object_that_would_fill_the_disk_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as there is some room, it is refused by a status instead."""
    path = large_image(tmp_path / "ct", 4)
    said: list[str] = []
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path / "w"), quiet_s=0.0, say=said.append)
    with receiving(arrivals, title="K", host="127.0.0.1", port=0, callers=()) as port:
        monkeypatch.setattr(node, "_SPARE_BYTES", 2**60)
        assert sent(port, path) != 0 and not any(arrivals.incoming.iterdir())
        monkeypatch.setattr(node, "_LEAST_BYTES", 2**60)
        assert sent(port, path) != 0
        assert sum(part.stat().st_size for part in arrivals.incoming.iterdir()) < 2**20
        monkeypatch.undo()
        assert sent(port, path) == 0
    arrivals.settle()
    assert said[0] == "2 objects that arrived were refused: the disk is full"


def test_a_part_of_any_length_is_not_taken(tmp_path: Path) -> None:
    """However long it says that it is."""
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path), quiet_s=0.0)
    with receiving(arrivals, title="K", host="127.0.0.1", port=0, callers=()) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
            link.sendall(struct.pack(">BBL", 4, 0, 2**31))
            assert link.recv(100)[:1] in (b"", b"\7"), "closed, or aborted"
        entity = AE()
        entity.add_requested_context("1.2.840.10008.1.1")
        echo = entity.associate("127.0.0.1", port)
        assert echo.is_established and echo.send_c_echo().Status == 0
        echo.release()


def test_what_broke_off_is_removed(tmp_path: Path) -> None:
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path), quiet_s=0.0)
    for name, age in (("old", 3600), ("new", 0)):
        part = arrivals.incoming / f"{name}.dcm"
        part.write_bytes(b"part")
        os.utime(part, (time.time() - age,) * 2)
    arrivals.settle()
    assert [part.name for part in arrivals.incoming.iterdir()] == ["new.dcm"]


def test_a_sender_that_is_killed_leaves_no_image(tmp_path: Path) -> None:
    path = large_image(tmp_path / "ct", 40)
    arrivals = Arrivals(queue=SeriesQueue.opened(tmp_path / "work"), quiet_s=0.0)
    with receiving(arrivals, title="K", host="127.0.0.1", port=0, callers=()) as port:
        words = [sys.executable, "-c", SEND, str(port), str(path)]
        with subprocess.Popen(words) as sender:
            until(lambda: any(arrivals.incoming.iterdir()))
            sender.kill()
        assert sent(port, path) == 0
    arrivals.settle()
    (series,) = arrivals.queue.all()
    assert len(list((arrivals.queue.place(series.number) / "images").iterdir())) == 1
