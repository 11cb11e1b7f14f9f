"""The rooms and their order: a module imports only from rooms below its own."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "kidseg"

# Top to bottom: a module imports only from rooms below its own. A package is one room.
ROOMS = [
    "cli",
    "pacs",
    "serve",
    *("demo", "study", "complete", "doctor"),
    *("train", "segment"),
    "methods",
    "cohort",
    "pipeline",
    *(
        "import_nnunet",
        "store",
        "plan",
        "members",
        "checkpoint",
        "header",
        "model_card",
        "model_file",
    ),
    "phantom",
    *("convert", "compare", "evaluate", "measure", "report", "export"),
    *("contours", "check", "splits", "cases"),
    *("nets", "losses", "augment", "style", "body", "postprocess", "metrics"),
    "io",
    "geometry",
    "cluster",
    "launch",
    "attempts",
    *("workers", "stage", "distributed", "device", "intensity", "labels", "config"),
    "topology",
    "records",
    *("meaning", "registry", "provenance", "table", "csv_table", "extras", "errors"),
    "new_folders",
]
# What a light module must not pull in when it is imported.
HEAVY = {"torch", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "highdicom", "matplotlib"}
LIGHT = {
    "errors",
    "new_folders",
    "extras",
    "records",
    "meaning",
    "topology",
    "provenance",
    "table",
    "csv_table",
    "labels",
    "config",
    "header",
    "model_card",
    "model_file",
    "cli",
    "__init__",
}
READERS = {"nibabel", "SimpleITK", "pydicom", "highdicom", "isal", "monai", "matplotlib"}
# Extras of tools that are run, not imported.
TOOLS = {"dev", "docs"}
READERS |= {"skimage", "trimesh", "contourpy", "pynetdicom", "dicomweb_client"}


# Decoders, which pydicom finds by itself.
IMPORTED_AS = {"scikit-image": "skimage", "pillow": "pil"}
# A room that is only entered with its extra installed, and so imports it at the top of its files.
BEHIND_AN_EXTRA = {"serve": "serve"}
DECODERS = {"pyjpegls", "python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg"}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def imports(path: Path, *, at_top_only: bool = False) -> set[str]:
    """Dotted names imported by a file, without those for type checking only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if at_top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            if node.module == "kidseg":
                found.update(f"kidseg.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in ROOMS, f"{room} is no room; add it to the list where it belongs"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "kidseg" or len(parts) == 1 or parts[1] == room:
            continue
        assert parts[1] in ROOMS, f"{path.name} imports {name}"
        assert ROOMS.index(parts[1]) > ROOMS.index(room), f"{path.name} imports {name} from above"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_light_modules_and_lazy_readers(path: Path) -> None:
    top = {name.split(".")[0] for name in imports(path, at_top_only=True)}
    assert not top & READERS, "readers and plots are imported where they are used"
    if room_of(path) in LIGHT and (path.parent == SOURCE or room_of(path) in ("cli", "config")):
        assert not top & HEAVY


def test_interpolation_lives_in_geometry_alone() -> None:
    words = ("grid_sample", "affine_grid", "interpolate(", "ndimage.zoom", "map_coordinates")
    for path in files():
        if room_of(path) != "geometry":
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], path


def packages(path: Path, *, at_top_only: bool = False) -> set[str]:
    """Third-party packages imported by a file, without those for type checking only."""
    names = {name.split(".")[0] for name in imports(path, at_top_only=at_top_only)}
    own = {"", "kidseg"} | set(sys.stdlib_module_names)
    return {name.lower().replace("_", "-") for name in names - own}


def declared() -> dict[str, set[str]]:
    """The dependencies in pyproject.toml: "core", and those of each extra."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    lists = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {_name(line) for line in lines} - {"kidseg"}  # an extra of extras
        for extra, lines in lists.items()
    }


def _name(line: str) -> str:
    name = re.split(r"[^\w-]", line)[0].lower().replace("_", "-")
    return IMPORTED_AS.get(name, name)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_what_is_imported_is_a_dependency(path: Path) -> None:
    """An extra is imported inside functions only, so that kidseg works without it."""
    lists = declared()
    core = lists.pop("core")
    extras = set().union(*(names for extra, names in lists.items() if extra not in TOOLS))
    own = lists.get(BEHIND_AN_EXTRA.get(room_of(path), ""), set())
    assert packages(path, at_top_only=True) <= core | own
    assert packages(path) <= core | extras


def test_every_dependency_has_an_exact_version() -> None:
    """Of every extra, so that an installation is the one that was tested."""
    root = SOURCE.parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [line for some in lists for line in some]
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    names = [re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins]
    assert len(set(names)) == len(names)
    asked = {re.split(r"[^\w-]", line)[0].lower().replace("_", "-") for line in wanted}
    assert asked - {"kidseg"} - set(names) == set()


def test_every_dependency_is_imported() -> None:
    imported = set().union(*(packages(path) for path in files()))
    for extra, names in declared().items():
        if extra not in TOOLS:
            assert names - DECODERS <= imported, extra


def test_no_pickle_and_no_broad_excepts() -> None:
    for path in files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "joblib", "dill"}
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"bare except in {path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".load"):
                text = ast.unparse(node)
                assert "allow_pickle=True" not in text, f"{path.name}:{node.lineno}"
                if text.startswith("torch.load"):
                    assert "weights_only=True" in text, f"{path.name}:{node.lineno}"


def test_every_module_has_a_test() -> None:
    tests = {p.stem.removeprefix("test_") for p in Path(__file__).parent.glob("test_*.py")}
    for path in files():
        name = "_".join(path.relative_to(SOURCE).with_suffix("").parts)
        if name.endswith(("__init__", "__main__")):
            continue
        room = room_of(path)
        # One subject in several files, tested as one.
        name = {"stage": "train", "header": "checkpoint", "workers": "plan"}.get(name, name)
        assert name in tests or room in tests or any(t.startswith(f"{room}_") for t in tests), name


def test_file_names_are_unique() -> None:
    names = [path.name for path in files() if path.name not in ("__init__.py", "__main__.py")]
    assert not {name for name in names if names.count(name) > 1}
