"""Fill the templates of pages: one file each, that loads nothing and runs only its own scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kidseg.errors import ModelError, UsageError
from kidseg.io.label_formats import FORMATS
from kidseg.provenance import RESEARCH_USE
from kidseg.report.vendor import FOLDER, NIIVUE

__all__ = ["check_pages", "check_viewer", "data_uri", "filled", "viewer_script"]

_PAGES = Path(__file__).parent / "page"


def filled(template: str, script: str, *, viewer: bool = False, **context: Any) -> str:
    """A complete page.

    A Content-Security-Policy allows the scripts and the style of the page by their hashes, images
    that are in it, and nothing else: no network, whatever a browser would be willing to do.

    Args:
        template: file in `page`. Everything that is filled in is escaped.
        script: file in `page`.
        viewer: include NiiVue.
        context: of the template.

    Raises:
        UsageError, ModelError: see `viewer_script`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(_PAGES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, own = (_text(name) for name in ("style.css", script))
    scripts = [*([viewer_script()] if viewer else []), own]
    return pages.get_template(template).render(
        policy=_policy(style, scripts),
        style=style,
        scripts=scripts,
        licence=f"NiiVue {NIIVUE.version}, {NIIVUE.licence}" if viewer else "",
        research_use=RESEARCH_USE,
        **context,
    )


def check_viewer() -> None:
    """Check that the viewer is there; call it before any work.

    Raises:
        UsageError, ModelError: see `viewer_script`.
    """
    viewer_script()


def check_pages(formats: Iterable[str]) -> None:
    """Check that the viewer is there, if one of these formats of labels is a page.

    Raises:
        UsageError, ModelError: see `viewer_script`.
    """
    if any(FORMATS[name].is_page for name in formats):
        check_viewer()


def viewer_script() -> str:
    """NiiVue, as one script.

    Raises:
        UsageError: "missing-viewer": it has not been fetched.
        ModelError: "damaged-viewer": it is not the expected file.
    """
    path = FOLDER / NIIVUE.name
    step = "Run: python -m kidseg.report.vendor (it requires npm), or 'make'."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the viewer of the report, NiiVue {NIIVUE.version}, is not installed",
            path=path,
            code="missing-viewer",
            next_step=step,
        ) from error
    if hashlib.sha256(content).hexdigest() != NIIVUE.sha256:
        raise ModelError(
            f"the viewer of the report is not NiiVue {NIIVUE.version} as it was released",
            path=path,
            code="damaged-viewer",
            next_step=f"Remove it. {step}",
        )
    return content.decode()


def data_uri(png: bytes) -> str:
    """An image as an address that contains it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _policy(style: str, scripts: list[str]) -> str:
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    """The hash of an inline script or style, as a policy has it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return (_PAGES / name).read_text(encoding="utf-8")
