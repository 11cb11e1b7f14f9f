"""The files of the extension of 3D Slicer fit together, and are as its Extensions Index asks.

Source: Slicer/ExtensionsIndex, schema of catalogue entries 1.0.2; scripts/check_description_files.
"""

from __future__ import annotations

import ast
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
EXTENSION = ROOT / "slicer" / "KidSeg"
MODULE = EXTENSION / "KidSeg"
SCRIPTS = sorted(path.relative_to(MODULE).as_posix() for path in MODULE.rglob("*.py"))
WINDOW = MODULE / "KidSeg.py"

# {key: (type, values that it may have)}; of keys that are required, the first three.
ENTRY: dict[str, tuple[type, tuple[Any, ...]]] = {
    "$schema": (str, ()),
    "category": (str, ("Segmentation",)),
    "scm_url": (str, ()),
    "scm_revision": (str, ()),
    "scm_type": (str, ("git", "local")),
    "build_dependencies": (list, ()),
    "dicom_support_rule": (str, ()),
    "build_subdirectory": (str, ()),
    "enabled": (bool, ()),
    "tier": (int, (1, 2, 3, 4, 5)),
}


def cmake(path: Path) -> str:
    return re.sub(r"#.*", "", path.read_text(encoding="utf-8"))


def setting(name: str) -> str:
    """An EXTENSION_ variable."""
    found = re.findall(rf'set\(EXTENSION_{name} "([^"]+)"\)', cmake(EXTENSION / "CMakeLists.txt"))
    assert len(found) == 1, name
    return found[0]


def test_the_entry_of_the_catalogue_is_valid() -> None:
    raw = (EXTENSION / "KidSeg.json").read_bytes()
    entry = json.loads(raw)
    assert set(list(ENTRY)[:3]) <= entry.keys() <= ENTRY.keys()
    for key, value in entry.items():
        kind, values = ENTRY[key]
        assert type(value) is kind and (not values or value in values), key
    assert entry["$schema"].endswith("/slicer-extension-catalog-entry-schema-v1.0.2.json#")
    assert b"\r" not in raw and raw.endswith(b"}\n")
    name = entry["scm_url"].rpartition("/")[2].removesuffix(".git")
    assert entry["scm_url"].startswith("https://") and name.startswith("Slicer")


def test_the_build_file_agrees_with_the_entry() -> None:
    entry = json.loads((EXTENSION / "KidSeg.json").read_text(encoding="utf-8"))
    text = cmake(EXTENSION / "CMakeLists.txt")
    assert re.findall(r"project\(([^)\s]+)", text) == ["KidSeg"]
    assert setting("CATEGORY") == entry["category"]
    assert setting("DEPENDS") == "NA" and entry["build_dependencies"] == []
    assert setting("HOMEPAGE") == entry["scm_url"].removesuffix(".git")
    assert "research use only; not a medical device" in setting("DESCRIPTION").lower()
    assert setting("CONTRIBUTORS")
    raw = setting("HOMEPAGE").replace("//github.com/", "//raw.githubusercontent.com/") + "/main/"
    for url in [setting("ICONURL"), *setting("SCREENSHOTURLS").split()]:
        assert url.startswith(raw) and (EXTENSION / url.removeprefix(raw)).is_file()
    assert (EXTENSION / "LICENSE.txt").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_build_file_of_the_module_lists_its_files() -> None:
    text = cmake(MODULE / "CMakeLists.txt").replace("${MODULE_NAME}", "KidSeg")
    lists = dict(re.findall(r"set\((MODULE_PYTHON_\w+)\s+([^)]*)\)", text))
    assert sorted(lists["MODULE_PYTHON_SCRIPTS"].split()) == SCRIPTS
    resources = sorted((MODULE / "Resources").rglob("*.*"))
    listed = sorted(MODULE / name for name in lists["MODULE_PYTHON_RESOURCES"].split())
    assert listed == resources


def size_of(png: Path) -> tuple[int, int]:
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n", png
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def test_pictures() -> None:
    assert size_of(MODULE / "Resources" / "Icons" / "KidSeg.png") == (128, 128)
    pictures = list((EXTENSION / "Screenshots").iterdir())
    assert len(pictures) >= 2
    for path in pictures:
        assert min(size_of(path)) >= 500 and path.stat().st_size < 300_000, path
        assert (ROOT / "docs" / f"slicer_{path.name}").read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def window() -> ElementTree.Element:
    return ElementTree.parse(MODULE / "Resources" / "UI" / "KidSeg.ui").getroot()


@pytest.fixture(scope="module")
def code() -> ast.Module:
    return ast.parse(WINDOW.read_text(encoding="utf-8"))


def widgets_of(window: ElementTree.Element) -> dict[str, str]:
    """{name: class} of all widgets; no name occurs twice."""
    found = [(w.get("name", ""), w.get("class", "")) for w in window.iter("widget")]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_the_code_knows_the_widgets_of_the_window(
    window: ElementTree.Element, code: ast.Module
) -> None:
    widgets = widgets_of(window)
    used = {
        node.attr
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "ui"
    }
    remembered = assigned(code, "_REMEMBERED")
    groups = {text for text in strings(code) if text.endswith("Group")}
    assert len(groups) == 3
    assert used | groups | {name for name, _ in remembered.values()} <= widgets.keys()
    of_class = {
        "QComboBox": "currentIndex",
        "ctkPathLineEdit": "currentPath",
        "QLineEdit": "text",
        "QCheckBox": "checked",
    }
    for name, attribute in remembered.values():
        assert of_class[widgets[name]] == attribute, name
    assert "tokenLineEdit" not in dict(remembered.values()), "a secret is not saved"


def test_the_window_is_connected_with_the_scene(
    window: ElementTree.Element, code: ast.Module
) -> None:
    widgets = widgets_of(window)
    selectors = [name for name, kind in widgets.items() if kind == "qMRMLNodeComboBox"]
    connected = [c.findtext("receiver") for c in window.iter("connection")]
    assert sorted(connected) == sorted(selectors)
    parameters = {
        p.findtext("string")
        for p in window.iter("property")
        if p.get("name") == "SlicerParameterName"
    }
    node = next(n for n in code.body if getattr(n, "name", "") == "KidSegParameterNode")
    assert isinstance(node, ast.ClassDef)
    fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
    assert fields == parameters and len(fields) == len(selectors)
    known = {c.findtext("class") for c in window.iter("customwidget")}
    assert {kind for kind in widgets.values() if not kind.startswith("Q")} == known


def test_the_choices_of_the_window_are_the_back_ends(window: ElementTree.Element) -> None:
    from KidSegLib.back_ends import KINDS

    box = next(w for w in window.iter("widget") if w.get("name") == "backEndComboBox")
    assert len(box.findall("item")) == len(KINDS)


def test_signals_go_to_methods_of_the_window(code: ast.Module) -> None:
    defined = {n.name for n in ast.walk(code) if isinstance(n, ast.FunctionDef)}
    used = {
        n.attr
        for n in ast.walk(code)
        if isinstance(n, ast.Attribute)
        and isinstance(n.value, ast.Name)
        and n.value.id == "self"
        and re.match(r"on[A-Z]", n.attr)
    }
    assert used and used <= defined


@pytest.mark.parametrize("script", SCRIPTS)
def test_python_is_that_of_slicer(script: str) -> None:
    """Python 3.9, and nothing that 3D Slicer does not bring."""
    tree = ast.parse((MODULE / script).read_text(encoding="utf-8"), feature_version=(3, 9))
    brought = {"numpy", "slicer", "vtk", "qt", "KidSegLib"}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        tops = {name.partition(".")[0] for name in names}
        assert tops <= brought | sys.stdlib_module_names, script
        if script != "KidSeg.py":
            assert "qt" not in tops, "the logic is apart from the window"


def test_nothing_is_installed_without_a_question(code: ast.Module) -> None:
    """`pip_install` is in the method of its button alone, after the question."""
    for script in SCRIPTS:
        text = (MODULE / script).read_text(encoding="utf-8")
        assert text.count("pip_install") == (script == "KidSeg.py"), script
    method = next(n for n in ast.walk(code) if getattr(n, "name", "") == "onInstallButton")
    lines = {n.attr: n.lineno for n in ast.walk(method) if isinstance(n, ast.Attribute)}
    returns = [n.lineno for n in ast.walk(method) if isinstance(n, ast.Return)]
    assert lines["confirmOkCancelDisplay"] < max(returns) < lines["pip_install"]


def test_drawn_slices_are_replaced_only_after_a_question(code: ast.Module) -> None:
    """The question comes before the start, and its refusal returns."""
    apply = next(n for n in ast.walk(code) if getattr(n, "name", "") == "onApplyButton")
    calls = {n.attr: n.lineno for n in ast.walk(apply) if isinstance(n, ast.Attribute)}
    returns = [n.lineno for n in ast.walk(apply) if isinstance(n, ast.Return)]
    assert calls["_may_replace"] < min(returns) < calls["_settings"]


def test_back_ends_need_neither_slicer_nor_numpy() -> None:
    code = "import sys, KidSegLib.back_ends; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=MODULE, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert "KidSegLib.server" in loaded and not {"slicer", "vtk", "numpy"} & loaded


def strings(tree: ast.AST) -> list[str]:
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def assigned(tree: ast.Module, name: str) -> dict[str, tuple[str, str]]:
    """The value of a constant of the module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise AssertionError(name)
