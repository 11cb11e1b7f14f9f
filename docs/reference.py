"""Pages of the site that are made from the code: commands, settings, errors, the model card.

A hook of mkdocs (see mkdocs.yml); nothing that it makes is kept in the repository.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from error_codes import UNKNOWN, Origin, origins_in
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from kidseg import config as settings
from kidseg import errors
from kidseg.cli import app
from kidseg.cli.about import model_text, read_model
from kidseg.model_file import STARTER
from kidseg.registry import METHODS


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    made = {
        "commands": _commands(),
        "settings": _settings(),
        "codes": codes(),
        "model_card": _model_card(),
    }
    for name, lines in made.items():
        path = f"reference/{name}.md"
        files.append(File.generated(config, path, content="\n".join(lines) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Files of the repository that are not pages are named, not linked."""
    return re.sub(r"\[`?([^]`]+)`?\]\(\.\./[^)]*\)", r"`\1`", markdown)


def _commands() -> Iterator[str]:
    yield "# Commands\n"
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        words = [_shown(each) for each in command.params if each.param_type_name == "argument"]
        yield f"## kidseg {name}\n"
        yield f"    kidseg {' '.join([name, *words])} [OPTIONS]\n"
        text = inspect.cleandoc(command.help or "").replace("\f", "")
        example = text.find("Example")
        yield text[:example].strip() if example >= 0 else text
        if example >= 0:
            yield "\n```text\n" + text[example:].strip() + "\n```"
        yield "\n| | | default |\n|---|---|---|"
        for each in command.params:
            yield f"| {_names(each)} | {_cell(each.help or '')} | {_default(each)} |"
        yield ""


def _shown(argument: Any) -> str:
    name = str(argument.metavar or argument.name).upper()
    name += "..." if argument.nargs == -1 else ""
    return name if argument.required else f"[{name}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_shown(parameter)}`"
    return ", ".join(f"`{name}`" for name in parameter.opts)


def _default(parameter: Any) -> str:
    value = parameter.default
    shown = value is not None and value is not False and not callable(value)
    return f"`{_cell(str(value))}`" if shown and str(value) not in ("", "()", "[]") else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _settings() -> Iterator[str]:
    yield "# Settings\n"
    yield "Each can be given in a file (`--config`), or alone: `--set segment.epochs=100`.\n"
    for name in (*METHODS, "phantom"):
        kind = settings.PhantomConfig if name == "phantom" else settings.METHODS[name]
        title = f"Settings of {name}: kidseg config {name}"
        yield f"## {name}\n\n```toml\n{settings.explain(kind(), title).rstrip()}\n```\n"


def codes() -> Iterator[str]:
    """The lines of the page of all codes."""
    yield "# Errors and warnings\n"
    yield (
        "Each has a code, for programs: in what `--json` prints, in `result.json`, in the answers"
        " of the server. The texts are those of the source; … is what is known only while the"
        " program runs.\n\nWarnings do not stop the work. An error ends a command with the exit"
        " code that is named, or refuses a request to the server; one without an exit code is about"
        " one file, case or scan among others.\n"
    )
    found: dict[str, list[Origin]] = {}
    for origin in origins_in(Path(errors.__file__).parent):
        found.setdefault(origin.code, []).append(origin)
    yield "| code | | cause | next step | stated in |\n|---|---|---|---|---|"
    for code, places in found.items():
        columns = (
            sorted({_kind(each) for each in places}),
            _distinct(text for each in places for text in each.causes),
            _distinct(text for each in places for text in each.next_steps),
            sorted({each.module for each in places}),
        )
        cells = (
            "<br>".join(_cell(html.escape(text, quote=False)) for text in texts)
            for texts in columns
        )
        yield f'| <code id="{code}">{code}</code> | {" | ".join(cells)} |'


def _kind(origin: Origin) -> str:
    if origin.kind == "RefusedError":
        return "error, of a request"
    raised = getattr(errors, origin.kind, None)
    return f"error, exit code {raised.exit_code}" if raised else origin.kind


def _distinct(texts: Iterable[str]) -> list[str]:
    """Texts without those that are special cases of others."""
    known = sorted({text for text in texts if text.strip(f"{UNKNOWN} ")})
    forms = {text: re.compile(re.escape(text).replace(UNKNOWN, ".*")) for text in known}
    return [
        text
        for text in known
        if not any(form.fullmatch(text) for other, form in forms.items() if other != text)
    ]


def _model_card() -> Iterator[str]:
    yield "# The starter's model card\n\nAs `kidseg info starter` prints it.\n\n```text"
    path, header, summary = read_model(STARTER)
    yield model_text(path, header, summary).replace(str(path), path.name)
    yield "```"
