"""The contract of the command line, for every command: options, help, usage errors, JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.markup import render

from commands import call_cli
from kidseg.cli import app

GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = dict(GROUP.commands)

SEEDED = {"complete", "phantom", "export", "store", "train", "compare", "study", "demo"}
WRITES_MUCH = {
    "phantom",
    "export",
    "store",
    "train",
    "segment",
    "complete",
    "study",
    "demo",
    "convert",
}
OVERWRITES = {
    "ensemble",
    "import-nnunet",
    "export-onnx",
    "phantom",
    "export",
    "train",
    "segment",
    "complete",
    "evaluate",
    "compare",
    "measure",
    "calibrate",
    "convert",
    "demo",
}
"""The others write nothing, or go on with what is there."""


def options(name: str) -> set[str]:
    return {option for parameter in COMMANDS[name].params for option in parameter.opts}


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command in this process."""
    code = call_cli(*arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_that_cannot_be_read_is_no_usage_error(name: str) -> None:
    """Who reads it says so, as bad input; one of many scans does not end the command."""
    for parameter in COMMANDS[name].params:
        known = parameter.type_descriptor
        if "Path" in str(getattr(known, "annotation", "")):
            info = known.parameter_info
            assert not (info.readable or info.exists or info.writable), parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_a_group_and_no_word_of_its_help_is_lost(name: str) -> None:
    """Rich takes words in brackets for markup."""
    assert COMMANDS[name].rich_help_panel
    for parameter in COMMANDS[name].params:
        assert render(parameter.help or "").plain == (parameter.help or ""), parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_options_of_the_contract(name: str) -> None:
    assert {"--json", "--quiet", "-q"} <= options(name)
    for option, commands in (
        ("--seed", SEEDED),
        ("--dry-run", WRITES_MUCH),
        ("--overwrite", OVERWRITES),
    ):
        assert (option in options(name)) == (name in commands), option


def test_the_commands_are_the_known_ones() -> None:
    known = SEEDED | WRITES_MUCH | OVERWRITES | {"check", "config", "info", "doctor", "contours"}
    known |= {"dicomweb", "node", "serve"}
    assert set(COMMANDS) == known


@pytest.mark.requirement("research use")
@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_is_valid_and_says_research_use(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = refused(name, "-h", capsys=capsys)
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    assert code == 0 and err == "" and "…" not in out, "a word is cut"
    assert "For research use only. Not a medical device." in text
    (example,) = re.findall(r"Example: (.+)", COMMANDS[name].callback.__doc__)
    assert example in text
    program, command, *arguments = shlex.split(example)
    assert (program, command) == ("kidseg", name)
    arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
    COMMANDS[name].make_context(name, arguments)  # raises if an option or argument is unknown


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_line_with_the_next_step(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = refused(name, "--no-such-option", capsys=capsys)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and "--no-such-option" in err
    assert f"Usage: kidseg {name}" in err and f"'kidseg {name} --help'" in err
    code, out, _ = refused(name, "--no-such-option", "--json", capsys=capsys)
    answer = json.loads(out)["error"]
    assert code == 2 and answer["code"] == "usage" and answer["cause"] and answer["next_step"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "no such command 'trian' (did you mean 'train'?)"),
        (["phantom"], "missing argument"),
        (["phantom", "x", "--layout", "bids"], "'bids' is not one of 'nnunet', 'kits19', 'dicom'"),
        (["phantom", "x", "-n", "0"], "it must be greater than or equal to 1"),
        (["train", "x", "-o"], "requires an argument. Usage: kidseg train"),
        (["train", "x", "-o"], "'kidseg train --help' explains it"),
        (["check", "x", "--spacing", "5,1,1"], "3 arguments. Usage: kidseg check"),
        (["--no-such-option"], "'kidseg --help' explains it"),
        (["study"], "the study's file is missing"),
        (["config", "unet"], "Choose one of homogenized, plain"),
        (["config", "phantom", "--preset", "demo"], "has no presets"),
        (["config", "study", "--set", "seeds=[1]"], "written in its file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = refused(*arguments, capsys=capsys)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert words in err and ".." not in err.replace("...", "") and "?." not in err
    assert "Input should" not in err and "Value error" not in err


def test_the_help_of_spacing_shows_three_words(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "segment"):
        text = refused(command, "--help", capsys=capsys)[1]
        assert "SLICE ROW COLUMN" in text and "float,float" not in text


@pytest.mark.fault("disk full")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("config", "plain"), 5),
        (("config", "plain", "--json"), 5),
        (("config", "unet", "--json"), 2),
    ],
)
def test_output_that_goes_to_a_full_disk_is_an_error_in_one_line(
    arguments: tuple[str, ...], code: int
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kidseg", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == code and done.stderr.count("\n") == 1, done.stderr
    assert "--overwrite" not in done.stderr and "Traceback" not in done.stderr


def test_an_example_is_not_replaced_and_no_option_is_named_that_study_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.toml"
    assert refused("study", "--example", str(file), capsys=capsys)[0] == 0
    written = file.read_bytes()
    code, _, err = refused("study", "--example", str(file), capsys=capsys)
    assert code == 2 and str(file) in err and "--overwrite" not in err
    assert file.read_bytes() == written


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = refused(option, capsys=capsys)
    assert code == 0 and re.fullmatch(r"\d+\.\d+.*\n", out)


@pytest.mark.parametrize(
    ("words", "place", "expected"),
    [
        ("kidseg tr", 1, "train"),
        ("kidseg train x --preset d", 4, "demo"),
        ("kidseg config p", 2, "plain3d"),
    ],
)
def test_completion(words: str, place: int, expected: str) -> None:
    """Of commands, presets and methods, as bash asks for it."""
    asked = {"_KIDSEG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    done = subprocess.run(
        [sys.executable, "-m", "kidseg"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "homogenized", "--preset", "demo"],
        ["config", "phantom", "--set", "size=64"],
        ["config", "study"],
        ["study", "--example"],
        ["doctor", "--device", "cpu"],
        ["phantom", "new", "--dry-run"],
        ["demo", "--out", "new", "--dry-run"],
        ["info", "nothing"],
        ["check", "nothing"],
        ["store", "nothing", "-o", "new"],
        ["train", "nothing", "-o", "new"],
        ["export", "nothing", "Dataset001_New"],
        ["segment", "nothing", "-m", "nothing", "-o", "new"],
        ["evaluate", "nothing", "nothing", "-o", "new"],
        ["compare", "nothing", "nobody", "-o", "new"],
        ["study", "nothing.toml", "-o", "new"],
    ],
    ids=" ".join,
)
def test_json_is_one_object_and_quiet_is_quiet(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = refused(*arguments, "--json", capsys=capsys)
    answer = json.loads(out)
    assert isinstance(answer, dict) and bool(answer.get("error", answer.get("findings"))) == (
        code != 0
    )
    if code == 0:
        text = refused(*arguments, capsys=capsys)[1]
        assert text and "{" not in text.splitlines()[0], "text for people"
        assert refused(*arguments, "-q", capsys=capsys)[1:] == ("", "")
    written = [path for path in tmp_path.glob("new/*") if not path.name.startswith(".")]
    assert not written


@pytest.mark.fault("SIGTERM")
@pytest.mark.parametrize("as_json", [False, True])
def test_a_stop_is_said_by_every_command(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kidseg.check.check", stop)
    code, out, err = refused("check", "x", *(["--json"] if as_json else []), capsys=capsys)
    said = "kidseg: interrupted. No file is incomplete. Run the same command again.\n"
    assert code == 130 and err == said
    assert (json.loads(out)["error"]["code"] if as_json else out) == (
        "interrupted" if as_json else ""
    )


def test_settings_that_are_printed_are_given_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(refused("config", "plain", "--preset", "demo", capsys=capsys)[1])
    first = json.loads(refused("config", "plain", "--preset", "demo", "--json", capsys=capsys)[1])
    again = json.loads(
        refused("config", "plain", "--config", str(file), "--json", capsys=capsys)[1]
    )
    assert first["settings"] == again["settings"]
    changed = ("config", "plain", "--config", str(file), "--set", "reach=2", "--json")
    assert json.loads(refused(*changed, capsys=capsys)[1])["settings"]["reach"] == 2
