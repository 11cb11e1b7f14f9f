"""The record of a result: versions, host, date."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

from kidseg import provenance as module
from kidseg.provenance import provenance


def test_it_states_versions_host_and_date() -> None:
    record = json.loads(json.dumps(provenance()))
    assert set(record) == {"versions", "host", "date"}
    assert set(record["versions"]) == {"python", "kidseg", "torch", "numpy"}
    assert record["versions"]["numpy"] == metadata.version("numpy")
    assert record["host"]["cores"] == os.cpu_count()
    assert record["host"]["cpu"] and record["host"]["platform"]
    date = datetime.fromisoformat(record["date"])
    assert date.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - date) < timedelta(minutes=1)


@pytest.mark.requirement("privacy")
def test_it_names_no_user_and_no_home() -> None:
    text = json.dumps(module.versions()) + json.dumps(module.host())
    assert str(Path.home()) not in text
    if len(getpass.getuser()) > 4:  # "root" may be part of a machine's name
        assert getpass.getuser() not in text


def test_it_imports_no_torch() -> None:
    code = (
        "import sys\nfrom kidseg.provenance import provenance\nrecord = provenance()\n"
        "assert record['versions']['torch'] and record['host']['gpu'] == []\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_package_that_is_only_on_the_path_has_its_own_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kidseg_beside.py").write_text("__version__ = '7'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "_PACKAGES", ("kidseg_beside", "kidseg_nowhere"))
    __import__("kidseg_beside")
    found = module.versions()
    assert found["kidseg_beside"] == "7" and found["kidseg_nowhere"] is None


def test_without_cpuinfo_the_processor_still_has_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_CPU_INFO", tmp_path / "none")
    assert module.host()["cpu"]
