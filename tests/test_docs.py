"""What README and docs/ tell people to type can be typed, and what they link to is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from kidseg.cli import app

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
COMMANDS = typer.main.get_command(app).commands
ASSIGNED = re.compile(r"^[A-Z_]+=\S*$")


def blocks(text: str) -> Iterator[list[str]]:
    """Lines of the code blocks of a page, fenced or indented by four."""
    fenced = re.compile(r"^ *```.*?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    for block in fenced.finditer(text):
        yield block.group(1).splitlines()
    rest = fenced.sub("", text)
    for block in re.findall(r"(?:^ {4}.*\n|^\n)+", rest, re.MULTILINE):
        yield [line[4:] for line in block.splitlines()]


def commands(page: Path) -> Iterator[str]:
    """Command lines of kidseg on a page, without prompt, continued lines joined."""
    for lines in blocks(page.read_text()):
        joined = "\n".join(lines).replace("\\\n", " ")
        for line in joined.splitlines():
            words = line.removeprefix("$ ").split()
            while words and ASSIGNED.match(words[0]):
                words = words[1:]
            if words[:1] == ["kidseg"]:
                yield " ".join(words)


def words_of(command: str) -> list[str]:
    """The words after `kidseg`, without comment, redirection and whatever follows a pipe.

    What a synopsis has in brackets is taken as given: `check PATH [--json]`.
    """
    alone = re.split(r"\s(?:\||>|2>|&&|;|&$)(?:\s|$)", command)[0]
    if re.search(r"\s\[", alone):
        alone = re.sub(r"(?<=\s)\[|\]+(?=\s|$)", " ", alone)
    return shlex.split(alone, comments=True)[1:]


TYPED = [(page.relative_to(ROOT), command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), TYPED, ids=lambda value: str(value)[:60])
def test_a_command_on_a_page_is_understood(page: Path, command: str) -> None:
    """Its name, its options and the form of their values are those of the program."""
    name, *words = words_of(command)
    assert name in COMMANDS, f"{page}: no command {name!r}"
    COMMANDS[name].make_context(name, words)


def test_pages_with_commands_are_found() -> None:
    """The search finds both kinds of code blocks; else the test above would say nothing."""
    text = "Say\n\n    kidseg doctor\n\n```console\n$ A=1 kidseg check x \\\n  --json | head\n```\n"
    assert [line for lines in blocks(text) for line in lines if "kidseg" in line]
    assert len(TYPED) > 60
    assert words_of("kidseg check x --json | head") == ["check", "x", "--json"]
    assert words_of("kidseg serve --port 1 &") == ["serve", "--port", "1"]
    assert words_of("kidseg check PATH [--json [-q]]") == ["check", "PATH", "--json", "-q"]
    assert words_of("kidseg config plain > mine.toml   # all") == ["config", "plain"]


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue  # of the web; nothing is fetched
        if link.startswith("reference/"):
            continue  # made when the site is built
        path, _, wanted = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if wanted and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert wanted in map(anchor, headings), f"{page.name}: {link}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Pages, their links and anchors; the reference of commands, settings and codes."""
    pytest.importorskip("mkdocs", reason="needs mkdocs-material: pip install 'kidseg[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    commands_page = (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert all(f"kidseg {name}" in commands_page for name in COMMANDS)
    codes_page = (tmp_path / "site" / "reference" / "codes.html").read_text()
    assert '<code id="bad-ages">' in codes_page and "Write it as 0-16, in years." in codes_page
    fetched = re.compile(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//')
    for page in (tmp_path / "site").rglob("*.html"):
        assert not fetched.search(re.sub(r"<link rel=.canonical[^>]*>", "", page.read_text())), page
