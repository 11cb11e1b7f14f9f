"""Claims: two runs never segment the same scans, and a killed one leaves nothing half done."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from folders import names_in
from kidseg.errors import ResourceError, UsageError
from kidseg.segment.claim import RUN_DIED, claimed, remove_unfinished
from kidseg.segment.index import RESULT, read_index, record_scan


def in_a_process(work: Callable[[Path], None], out: Path) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work, args=(out,))
    process.start()
    process.join(30)
    return process.exitcode


def killed_at_work(out: Path) -> None:
    with claimed(out, ["a", "b"]) as claim:
        (claim.folder / "half").write_bytes(b"half")
        (out / ".kidseg-00.tmp").write_bytes(b"half an index")
        os.kill(os.getpid(), signal.SIGKILL)


def place(out: Path, name: str, dies_at: str) -> None:
    """Record a scan whose process is killed: before its outputs are moved, after, or later."""
    with claimed(out, [name]) as claim:
        temporary = claim.folder / "labels"
        temporary.write_bytes(b"labels")
        files = {temporary: out / f"{name}_seg.nii.gz"}
        calls = []
        real = os.fsync

        def dying(number: int) -> None:
            calls.append(number)
            if len(calls) == {"before": 1, "after": 2}.get(dies_at):
                os.kill(os.getpid(), signal.SIGKILL)
            real(number)

        os.fsync = dying
        with claim.placing(name, files):
            record_scan(out, {"name": name, "outputs": [f"{name}_seg.nii.gz"]}, files)
            if dies_at == "recorded":
                os.kill(os.getpid(), signal.SIGKILL)


def before(out: Path) -> None:
    place(out, "a", "before")


def after(out: Path) -> None:
    place(out, "a", "after")


def recorded(out: Path) -> None:
    place(out, "a", "recorded")


def test_a_claim_is_gone_when_the_run_ends(tmp_path: Path) -> None:
    with claimed(tmp_path, ["a"]) as claim:
        assert claim.folder.parent == tmp_path
        remove_unfinished(tmp_path)
        assert claim.folder.is_dir(), "it is of a run that is alive"
    assert not names_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path, ["a"]):
        raise KeyboardInterrupt
    assert not names_in(tmp_path)


@pytest.mark.fault("two jobs, one folder")
def test_scans_of_a_run_that_is_alive_are_refused(tmp_path: Path) -> None:
    with claimed(tmp_path, ["a", "b", "c"]):
        with claimed(tmp_path, ["d"]):
            pass
        with pytest.raises(UsageError, match=r"'b' and 1 more") as error, claimed(tmp_path, "xcb"):
            pass
        assert (error.value.code, error.value.exit_code) == ("in-use", 2)
    with claimed(tmp_path, ["a"]):
        pass


@pytest.mark.fault("kill -9 while segmenting")
def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    assert in_a_process(killed_at_work, tmp_path) == -signal.SIGKILL
    assert len(names_in(tmp_path)) == 3
    with claimed(tmp_path, ["a"]) as claim:  # its claim holds no more
        remove_unfinished(tmp_path)
        assert ".kidseg-00.tmp" in names_in(tmp_path), "it could be that of the other run"
        assert claim.folder.name in names_in(tmp_path) and len(names_in(tmp_path)) == 3
    assert in_a_process(killed_at_work, tmp_path) == -signal.SIGKILL
    remove_unfinished(tmp_path)
    assert names_in(tmp_path) == {"mine.txt"}


@pytest.mark.fault("kill -9 while segmenting")
@pytest.mark.parametrize(("killed", "is_kept"), [(before, False), (after, False), (recorded, True)])
def test_outputs_and_record_of_a_killed_run_are_both_there_or_neither(
    tmp_path: Path, killed: Callable[[Path], None], is_kept: bool
) -> None:
    (tmp_path / "b_seg.nii.gz").write_bytes(b"of somebody else")
    assert in_a_process(killed, tmp_path) == -signal.SIGKILL
    assert (tmp_path / "a_seg.nii.gz").exists() == (killed is not before)
    remove_unfinished(tmp_path)
    kept = {"a_seg.nii.gz", RESULT} if is_kept else set()
    assert names_in(tmp_path) == {"b_seg.nii.gz"} | kept
    assert set(read_index(tmp_path).scans) == ({"a"} if is_kept else set())


def dies_of_a_scan(out: Path) -> None:
    with claimed(out, ["a", "b"]) as claim:
        claim.trying("a", Path("scans/a.nii.gz"))
        claim.tried()
        claim.trying("b", Path("scans/b.nii.gz"))
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault("kill -9 while segmenting")
def test_the_scan_that_ended_a_run_is_recorded_as_failed(tmp_path: Path) -> None:
    assert in_a_process(dies_of_a_scan, tmp_path) == -signal.SIGKILL
    remove_unfinished(tmp_path)
    (entry,) = read_index(tmp_path).failed.values()
    assert (entry["name"], entry["code"], entry["scan"]) == ("b", RUN_DIED, "scans/b.nii.gz")
    assert entry["severity"] == "error" and names_in(tmp_path) == {RESULT}


def test_a_claim_that_is_not_whole_is_of_a_killed_run(tmp_path: Path) -> None:
    for k, content in enumerate(({}, {"lock": ""}, {"lock": "", "placing.json": '{"na'})):
        folder = tmp_path / f".kidseg-run-{k}"
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with claimed(tmp_path, ["a"]):
        pass
    remove_unfinished(tmp_path)
    assert not names_in(tmp_path)


@pytest.mark.fault("disk full")
def test_a_full_disk_is_that_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with claimed(tmp_path, ["a"]) as claim:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(ResourceError) as error, claim.placing("a", {}):
                pass
        assert error.value.code == "disk-full" and error.value.path == str(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(ResourceError), claimed(tmp_path, ["b"]):
                pass
    remove_unfinished(tmp_path)
    assert not names_in(tmp_path)
