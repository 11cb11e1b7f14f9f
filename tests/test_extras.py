"""Packages that are not installed are named, with what installs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kidseg.errors import UsageError
from kidseg.extras import check_installed, is_installed

WITHOUT = "import sys; sys.modules[sys.argv.pop(1)] = None; from kidseg.cli import main; main()"


def test_what_is_installed_passes() -> None:
    check_installed("a test", ["sys", "pytest"], "kidseg[dev]")
    assert is_installed("pytest") and not is_installed("kidseg_no_such_package")


def test_all_that_is_missing_is_named_as_pip_names_it() -> None:
    with pytest.raises(UsageError) as refused:
        check_installed("a test", ["sys", "no_such_a", "no_such_b"], "kidseg[x]", step="or not.")
    assert refused.value.code == "missing-extra"
    assert refused.value.cause == "a test needs no-such-a, no-such-b, which are not installed"
    assert refused.value.next_step == "Run: pip install 'kidseg[x]', or not."


@pytest.mark.parametrize(
    ("package", "words", "said"),
    [
        ("pynetdicom", ["node", "--to", "A@127.0.0.1:1"], "pip install 'kidseg[pacs]'"),
        ("dicomweb_client", ["dicomweb", "http://127.0.0.1:1"], "pip install 'kidseg[pacs]'"),
        ("uvicorn", ["serve"], "pip install 'kidseg[serve]'"),
        ("skimage", ["convert", "x", "-o", "y", "--formats", "stl"], "pip install 'kidseg[mesh]'"),
        ("tomli_w", ["config", "plain"], "kidseg doctor"),
    ],
)
def test_commands_say_what_they_lack(package: str, words: list[str], said: str) -> None:
    command = [sys.executable, "-c", WITHOUT, package, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert package.replace("_", "-") in done.stderr and said in done.stderr
