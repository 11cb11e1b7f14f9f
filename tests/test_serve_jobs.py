"""The table of jobs: nothing is lost, nothing is run twice, whatever is killed and whenever."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from kidseg.errors import Finding, ModelError
from kidseg.serve.child_command import run_command
from kidseg.serve.job import Job, Request, new_id
from kidseg.serve.jobs import JobTable
from kidseg.serve.policy import Limits
from kidseg.serve.refusals import RefusedError
from kidseg.serve.set_clock import SetClock
from kidseg.serve.watchers import Watchers

SCAN = Request(scan="scan.nii")
WRONG = Finding(code="wrong", path="", cause="it is wrong", severity="error")


def opened(folder: Path, **limits: float) -> JobTable:
    return JobTable.opened(folder, Limits(**limits))


def add(table: JobTable, owner: str = "a", kind: str = "segment", size: int = 10) -> str:
    job = new_id()
    table.place(job).mkdir()
    (table.place(job) / "scan.nii").write_bytes(b"x" * size)
    table.add(job, owner, kind, SCAN)  # type: ignore[arg-type]
    return job


def claimed(table: JobTable) -> Job:
    job = table.claim()
    assert job is not None
    return job


def test_jobs_run_in_order_and_those_that_somebody_waits_for_first(tmp_path: Path) -> None:
    table = opened(tmp_path)
    first, second = add(table), add(table)
    score, infer = add(table, kind="score"), add(table, kind="infer")
    assert table.ahead(table.get(score)) == 3 and table.ahead(table.get(infer)) == 0
    order = [job.id for _ in range(4) if (job := table.claim())]
    assert order == [infer, first, second, score] and table.claim() is None
    assert table.counts()["running"] == 4


def test_a_request_comes_back_from_the_table_as_it_was(tmp_path: Path) -> None:
    table = opened(tmp_path)
    asked = Request(
        scan="scan.zip",
        formats=("nii", "stl"),
        figures=True,
        options={"series": "3.2", "spacing_mm": [1.0, 2.0, 3.0]},
        stay=True,
        image="x",
    )
    job = new_id()
    assert table.add(job, "a", "segment", asked).request == asked == table.get(job).request


@pytest.mark.requirement("privacy")
def test_a_job_is_seen_by_its_client_only(tmp_path: Path) -> None:
    table = opened(tmp_path)
    mine, other = add(table, "a"), add(table, "b")
    add(table, "a", kind="score")
    assert [job.id for job in table.of_owner("a")] == [mine]
    assert table.get(other, "b").owner == "b"
    for id_ in (other, new_id(), "'; DROP TABLE jobs; --"):
        with pytest.raises(RefusedError, match="no such job") as refused:
            table.get(id_, "a")
        assert refused.value.status == 404


def test_only_the_last_attempt_ends_a_job(tmp_path: Path) -> None:
    table = opened(tmp_path)
    add(table)
    lost = claimed(table)
    assert table.recover() == [lost]  # the server was killed
    again = claimed(table)
    assert again.id == lost.id and again.attempt == 2
    assert table.results(again) != table.results(lost)
    assert not table.end(lost, "done", result={}) and not table.advance(lost, "write", 0.9)
    assert table.get(lost.id).state == "running" and table.get(lost.id).progress == 0
    assert table.end(again, "done", result={"x": 1}) and not table.end(again, "failed", error=WRONG)
    done = table.get(lost.id)
    assert (done.state, done.result, done.error, done.progress) == ("done", {"x": 1}, None, 1)


def test_a_job_that_may_have_ended_the_server_is_given_up(tmp_path: Path) -> None:
    table = opened(tmp_path, attempts=2)
    poison, sound = add(table), add(table)
    for _ in range(2):
        job = claimed(table)
        assert job.id == poison
        table.recover()
    failed = table.get(poison)
    assert failed.state == "failed" and failed.error and failed.error.code == "job-interrupted"
    job = claimed(table)
    assert job.id == sound
    table.requeue(job)  # the server was stopped, not killed: that does not count
    assert table.get(sound).attempt == 0 and table.get(sound).state == "queued"


def test_a_queued_job_is_cancelled_at_once_and_a_running_one_is_told(tmp_path: Path) -> None:
    table = opened(tmp_path)
    running, queued = add(table), add(table)
    job = claimed(table)
    assert table.is_wanted(job)
    assert table.cancel(queued) == "queued" and table.get(queued).state == "cancelled"
    assert table.cancel(running) == "running" and table.get(running).state == "running"
    assert not table.is_wanted(job) and not table.advance(job, "write", 0.9)
    assert table.end(job, "cancelled") and table.cancel(running) == "cancelled"
    with pytest.raises(RefusedError, match="no such job"):
        table.cancel(new_id())
    table = opened(tmp_path)
    add(table)
    job = claimed(table)
    table.cancel(job.id)
    table.recover()
    assert table.get(job.id).state == "cancelled"


@pytest.mark.requirement("server")
def test_a_full_queue_refuses_and_says_when_to_come_again(tmp_path: Path) -> None:
    table = opened(tmp_path, waiting=3, waiting_of_one=2)
    add(table, "a")
    add(table, "a", kind="score")  # of the server itself
    add(table, "a")
    for check in (lambda: table.check_room("a"), lambda: add(table, "a")):
        with pytest.raises(RefusedError) as refused:
            check()
        assert (refused.value.status, refused.value.code) == (429, "too-many-jobs")
        assert refused.value.retry_after_s
    add(table, "b")
    with pytest.raises(RefusedError) as refused:
        add(table, "c")
    assert refused.value.code == "queue-full"
    assert add(table, "c", kind="score")


@pytest.mark.requirement("privacy")
def test_ended_jobs_expire_by_age_and_then_by_size(tmp_path: Path) -> None:
    table = opened(tmp_path, keep_s=100.0, disk_bytes=250)
    ids = [add(table, size=100) for _ in range(4)]
    for _ in ids[:3]:
        job = claimed(table)
        table.end(job, "done", result={})
        time.sleep(0.01)
    assert [job.id for job in table.expire()] == ids[:2]  # 400 bytes; queued ones stay
    assert not table.place(ids[0]).exists() and table.place(ids[2]).exists()
    assert [job.id for job in table.expire(time.time() + 101)] == [ids[2]]
    assert table.get(ids[3]).state == "queued" and table.place(ids[3]).exists()
    table.remove(table.get(ids[3]))
    assert table.get(ids[3]).state == "queued", "a job that has not ended is not removed"


@pytest.mark.requirement("privacy")
def test_folders_without_a_job_and_scans_of_ended_jobs_are_swept(tmp_path: Path) -> None:
    table = opened(tmp_path)
    done, failed, queued = add(table), add(table), add(table)
    for state in ("done", "failed"):
        job = claimed(table)
        table.results(job).mkdir()
        table.end(job, state, result={}, error=WRONG)  # type: ignore[arg-type]
    stray = table.place(new_id())
    (stray / "temporary").mkdir(parents=True)
    table.sweep()
    assert not stray.exists() and not table.place(failed).exists()
    assert [p.name for p in table.place(done).iterdir()] == ["results-1"]
    assert [p.name for p in table.place(queued).iterdir()] == ["scan.nii"]


def test_threads_that_claim_at_once_never_get_the_same_job(tmp_path: Path) -> None:
    table = opened(tmp_path, waiting=1000, waiting_of_one=1000)
    ids = {add(table) for _ in range(24)}
    taken: list[str] = []

    def work() -> None:
        while job := table.claim():
            taken.append(job.id)
            table.end(job, "done", result={})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids) and table.counts()["done"] == 24


@pytest.mark.requirement("server")
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_each_job_is_in_one_state_and_ends_once(tmp_path: Path, seed: int) -> None:
    """Random histories with kills: a job is never lost, and only one attempt of it counts."""
    rng = random.Random(seed)
    table, ended, known = opened(tmp_path, attempts=99), {}, set()
    running = None
    for _ in range(40):
        what = rng.choice(["add", "claim", "end", "kill", "cancel", "advance"])
        if what == "add":
            known.add(add(table, owner=str(len(known))))
        elif what == "claim" and running is None:
            running = table.claim()
        elif what == "kill":
            running = None
            table = opened(tmp_path, attempts=99)
            table.recover()
        elif what == "cancel" and known:
            table.cancel(rng.choice(sorted(known)))
        elif running is not None and what == "advance":
            assert table.advance(running, "segment", rng.random()) == table.is_wanted(running)
        elif running is not None and what == "end":
            state = "done" if table.is_wanted(running) else "cancelled"
            assert table.end(running, state, result={"attempt": running.attempt})
            ended[running.id], running = state, None
        counts = table.counts()
        assert sum(counts.values()) == len(known) and counts["running"] == (running is not None)
    for id_, state in ended.items():
        job = table.get(id_)
        assert job.state == state and job.result == {"attempt": job.attempt}


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"not a data base" * 100)
    with pytest.raises(ModelError, match=r"jobs\.sqlite") as refused:
        opened(tmp_path)
    assert refused.value.code == "damaged-table"
    assert (tmp_path / "jobs.sqlite").read_bytes().startswith(b"not a")


def test_the_table_writes_ahead_and_waits_for_the_disk(tmp_path: Path) -> None:
    table = opened(tmp_path)
    with table.base.connected() as base:
        assert base.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert base.execute("PRAGMA synchronous").fetchone()[0] == 2
    with pytest.raises(sqlite3.ProgrammingError):
        base.execute("SELECT 1")  # closed


def test_a_job_is_abandoned_when_nobody_follows_it_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("kidseg.serve.watchers.time.monotonic", lambda: now[0])
    watchers = Watchers(10.0)
    watchers.require("a")
    watchers.require("b")
    with watchers.following("a"), watchers.following("c"):
        now[0] = 11.0
        assert watchers.abandoned() == ["b"] and watchers.abandoned() == []
    now[0] = 20.9
    assert watchers.abandoned() == []
    with watchers.following("a"):  # it came back
        now[0] = 40.0
    now[0] = 50.0
    watchers.require("d")
    watchers.release("d")
    assert watchers.abandoned() == ["a"]


def test_jobs_expire_although_the_clock_was_set_back(tmp_path: Path) -> None:
    table = opened(tmp_path, keep_s=100.0)
    add(table)
    table.end(claimed(table), "done", result={})
    now = time.time() - 86400
    assert table.expire(now) == [] and table.expire(now + 99) == []
    assert len(table.expire(now + 101)) == 1


def test_jobs_do_not_expire_because_the_clock_is_set_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By years, as on a machine that starts with a wrong clock; nor because it sleeps less."""
    ages, decades = [1000.0, 5.0], 40 * 365 * 86400.0
    monkeypatch.setattr("kidseg.serve.set_clock.time.clock_gettime", lambda clock: ages[1])
    monkeypatch.setattr("kidseg.serve.set_clock.time.time", lambda: ages[0])
    clock = SetClock()
    for passed, moved, expected in (
        (30.0, 0.0, 0.0),
        (30.0, decades, decades),
        (30.0, 2.0, 0.0),
        (30.0, -decades, 0.0),
        (30.0, 0.0, 0.0),
    ):
        ages = [ages[0] + passed + moved, ages[1] + passed]
        assert clock.forward_s() == pytest.approx(expected)
    monkeypatch.undo()
    table = opened(tmp_path, keep_s=100.0)
    add(table)
    table.end(claimed(table), "done", result={})
    now = time.time() + decades
    assert table.expire(now, set_s=decades) == [] and table.expire(now + 98) == []
    assert len(table.expire(now + 101)) == 1


def test_a_full_disk_is_not_the_fault_of_a_job(tmp_path: Path) -> None:
    table = opened(tmp_path, attempts=1)
    id_ = add(table)
    for _ in range(3):
        claimed(table)
        table.recover(blameless=True)
        assert table.get(id_).state == "queued"
    claimed(table)
    table.recover()
    assert table.get(id_).state == "failed"


def test_removing_twice_is_said(tmp_path: Path) -> None:
    table = opened(tmp_path)
    add(table)
    job = claimed(table)
    assert not table.remove(job)
    table.end(job, "done", result={})
    assert table.remove(job) and not table.remove(job)


@pytest.mark.slow
def test_each_command_is_heard_from_its_first_word(tmp_path: Path) -> None:
    """Also where an earlier one has said more into the same log."""
    log = tmp_path / "log"
    log.write_text("what an earlier command said\n" * 100)
    heard: list[str] = []
    words = ["segment", str(tmp_path / "none"), "-o", str(tmp_path / "out"), "--json"]
    failed = run_command(words, log, lambda: True, heard.append)
    assert failed is not None and failed.code == "not-found"
    assert heard == log.read_text().splitlines() and "an earlier" not in "".join(heard)
