"""One option name, one meaning; old names are refused, and the new ones told."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer.main

from commands import call_cli
from kidseg.cli import app
from kidseg.cli.old_options import RENAMED, new_name

GROUP: Any = typer.main.get_command(app)


def test_an_option_takes_the_same_kind_of_value_in_all_commands() -> None:
    kinds: dict[str, set[str]] = defaultdict(set)
    for command in GROUP.commands.values():
        for parameter in command.params:
            kind = parameter.type_descriptor.annotation
            kind = next(iter(get_args(kind)), kind) if get_origin(kind) is list else kind
            for name in (name for name in parameter.opts if name.startswith("-")):
                kinds[name].add(str(kind))
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    assert kinds["--series"] == {"<class 'str'>"} and kinds["--ct"] == {"<class 'pathlib.Path'>"}


@pytest.mark.parametrize(("command", "old"), RENAMED)
def test_the_old_name_is_refused_and_the_new_one_told(
    command: str, old: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_cli(command, "x.nii.gz", "-o", "out", old, "3") == 2
    assert f"{old} is now {RENAMED[command, old]}." in capsys.readouterr().err
    names = {name for parameter in GROUP.commands[command].params for name in parameter.opts}
    assert RENAMED[command, old] in names and old not in names
    assert new_name("config", old) is None


def test_the_folder_of_a_series_is_no_longer_given_with_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("convert", "x.nii.gz", "-o", tmp_path / "out", "--formats", "dicomseg", "--series")
    assert call_cli(*words, tmp_path) == 2
    assert "Name it with --ct" in capsys.readouterr().err
    assert call_cli(*words, "1.2.840.3") == 2, "a UID, of no series"
    assert "--ct DICOM" in capsys.readouterr().err
