"""The audit log: whatever is altered in it is noticed; a line that a kill cut off is not lost."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.errors import ModelError, ResourceError
from kidseg.serve.audit_log import AuditLog, verify_audit_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    opened = AuditLog.opened(path)
    for number in range(4):
        opened.write("job-done", job=f"id-{number}", attempt=number)
    return path


def test_a_line_has_time_event_facts_and_the_digest_of_the_one_before(log: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["job"] for line in lines] == ["id-0", "id-1", "id-2", "id-3"]
    assert [a["sha256"] for a in lines[:-1]] == [b["previous"] for b in lines[1:]]
    assert verify_audit_log(log) == lines[-1]["sha256"]
    assert log.stat().st_mode & 0o077 == 0
    AuditLog.opened(log).write("server-started")
    assert verify_audit_log(log) != lines[-1]["sha256"]


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2),
        (lambda lines: [lines[0].replace("id-0", "id-9"), *lines[1:]], 1),
        (lambda lines: [*lines[:3], lines[3].replace("id-3", "id-9")], 4),
        (lambda lines: [*lines[:2], "{}\n", *lines[2:]], 3),
        (lambda lines: [*lines[:2], "\n", *lines[2:]], 3),
        (lambda lines: [*lines[:2], "[1]\n", "7\n", *lines[2:]], 3),
    ],
)
def test_a_changed_log_is_refused_with_its_line(log: Path, edit: object, line: int) -> None:
    assert callable(edit)
    log.write_text("".join(edit(log.read_text().splitlines(keepends=True))))
    for refuse in (verify_audit_log, AuditLog.opened):
        with pytest.raises(ModelError, match=rf"line {line} ") as refused:
            refuse(log)  # type: ignore[operator]
        assert refused.value.code == "audit-altered" and refused.value.exit_code == 6


def test_lines_cut_off_at_the_end_are_noticed_by_who_keeps_the_last_digest(log: Path) -> None:
    """What is left is a whole chain, as docs/server.md says."""
    kept = verify_audit_log(log)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert verify_audit_log(log) != kept
    AuditLog.opened(log).write("server-started")
    assert kept not in {json.loads(line)["sha256"] for line in log.read_text().splitlines()}


def test_a_line_that_was_cut_off_is_told_and_the_log_goes_on(log: Path) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    AuditLog.opened(log).write("server-started")
    events = [json.loads(x)["event"] for x in log.read_text().splitlines() if x.endswith("}")]
    assert events[-2:] == ["cut-off", "server-started"]
    verify_audit_log(log)
    # The same line in the middle, without a word about it, is a change.
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if "cut-off" not in line))
    with pytest.raises(ModelError, match="audit"):
        verify_audit_log(log)


@settings(max_examples=30)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    opened = AuditLog.opened(path)
    for number in range(3):
        opened.write("job-done", attempt=number)
    whole = path.read_bytes()
    position %= len(whole) - 1  # without its end, the last line was cut off
    changed = whole[:position] + bytes([value]) + whole[position + 1 :]
    path.write_bytes(changed)
    if changed == whole:
        verify_audit_log(path)
    else:
        with pytest.raises(ModelError):
            verify_audit_log(path)


@pytest.mark.fault("disk full")
def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit of the size of files cuts a line off, as the end of a disk does."""
    log = AuditLog.opened(tmp_path / "log")
    log.write("first")
    size = log.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(ResourceError) as refused:
            log.write("second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.code == "disk-full" and log.path.stat().st_size == size
    log.write("third")
    verify_audit_log(log.path)
    assert [json.loads(line)["event"] for line in log.path.open()] == ["first", "third"]
