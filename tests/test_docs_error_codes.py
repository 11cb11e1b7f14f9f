"""The page of all errors and warnings has every code, with what the source says of it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from error_codes import Origin, origins_in  # noqa: E402

from kidseg import errors  # noqa: E402

MEANINGS: Mapping[str, str] = {
    "bad-case-name": "a case has a name that the layout does not allow",
    "bad-dataset-json": "dataset.json is not as its layout demands",
    "bad-json": "a JSON file cannot be used",
    "bad-setting": "a setting is unknown, or cannot be used with the data or with the others",
    "bad-split": "the division into training, validation and test is not possible",
    "bad-workers": "the description of the workers cannot be used",
    "channels-differ": "the images of one case are on different grids",
    "contour-gap": "contours are missing between others",
    "damaged-model": "a model file is not complete, or contradicts itself",
    "damaged-state": "a saved state of a training is not complete, or of something else",
    "damaged-store": "a store is not as it was written",
    "damaged-table": "a table that kidseg wrote is not as it was written",
    "disk-full": "there is too little space",
    "duplicate-case": "two cases have one name",
    "grid-mismatch": "two volumes of one scan are on different grids",
    "in-use": "another process is working in the folder",
    "label-grid-mismatch": "labels are on another grid than their scan",
    "label-not-understood": "a label is none of kidney, tumour and cyst",
    "missing-image": "a case lacks an image",
    "no-cases": "a data set has no labelled case",
    "no-cyst-label": "no label is recognized as cyst",
    "no-input": "no file was named",
    "no-kidney-label": "no label is recognized as kidney",
    "no-label": "none of the structures is a label",
    "no-labels": "there are no labels where they are needed",
    "no-scan": "there is no scan where one is needed",
    "no-tumour-label": "no label is recognized as tumour",
    "not-a-dataset": "a folder is not a data set",
    "not-a-scan": "a file is not a scan",
    "not-ct": "an image is not CT",
    "not-finite": "numbers of a network are NaN or infinite",
    "not-found": "a file, or what was asked for, is not there",
    "not-writable": "a file or folder cannot be written",
    "other-format": "the format of a file is of another version of kidseg",
    "other-frame-of-reference": "annotations and images have different frames of reference",
    "other-method": "a model is of another method than asked for",
    "other-patient": "two files that belong together are of different patients",
    "other-settings": "earlier results were made with other settings",
    "out-of-memory": "there is too little memory",
    "output-exists": "an output exists already",
    "same-image": "two cases have the same image",
    "same-labels": "the labels of two scans are the same",
    "same-name": "two files would have one name",
    "scan-failed": "a scan could not be segmented, for an unforeseen reason",
    "series-required": "the images of a DICOM object are needed",
    "several-scans": "there are several scans where one is needed",
    "stopped": "a command was stopped from outside",
    "store-of-other-settings": "a store was made with other settings",
    "too-few-patients": "there are fewer patients than the division needs",
    "too-large": "an input exceeds a limit of size",
    "unknown-case": "there is no such case",
    "unknown-cyst": "a cyst cannot count as that",
    "unknown-method": "there is no such method",
    "unknown-preset": "there is no such preset",
    "unreadable": "a file or folder is there, but cannot be read",
    "unsupported-type": "the type of the voxels, or of a file, is not supported",
    "volume-differs": "a volume is not that which the file states",
    "worker-killed": "a process ended while it was at work",
    "wrong-channels": "a scan has another number of channels than needed",
}
"""What codes mean that several rooms of the house state."""


@pytest.fixture(scope="module")
def origins() -> list[Origin]:
    return origins_in(ROOT / "src" / "kidseg")


def test_each_error_and_warning_has_a_code() -> None:
    """Stated as a literal, so that it can be searched for, or passed on from elsewhere."""
    kinds = {name for name in errors.__all__ if name.endswith("Error")}
    kinds |= {"Finding", "RefusedError"}
    nameless = []
    for file in (ROOT / "src" / "kidseg").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in kinds:
                given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                is_record = None in given  # a finding that was written as JSON
                if not is_record and not re.search(r"'|code|^[A-Z_]+$", given.get("code", "")):
                    nameless.append(f"{file.name}:{node.lineno}")
    assert not nameless


def test_codes_are_words_with_hyphens(origins: list[Origin]) -> None:
    odd = [each for each in origins if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", each.code)]
    assert not odd and len({each.code for each in origins}) > 400


def test_each_error_says_what_to_do_next(origins: list[Origin]) -> None:
    errors = [each for each in origins if each.kind != "warning"]
    assert len(errors) > 500 and not [each for each in errors if not each.next_steps]


def test_codes_that_are_raised_in_tests_were_found_by_reading(origins: list[Origin]) -> None:
    expected = re.compile(r"""\bvalue\.code == "([a-z0-9-]+)\"""")
    raised = set()
    for room in ("cases", "evaluate", "io", "measure", "segment", "serve", "train"):
        for file in (ROOT / "tests").glob(f"test_{room}*.py"):
            raised |= set(expected.findall(file.read_text()))
    assert len(raised) > 80 and raised <= {each.code for each in origins}


def test_codes_that_docstrings_promise_are_stated_somewhere(origins: list[Origin]) -> None:
    """Under `Raises` of a function: in quotation marks, of several words."""
    promised: dict[str, str] = {}
    for file in (ROOT / "src" / "kidseg").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                raises = (ast.get_docstring(node) or "").partition("Raises:")[2]
                for code in re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)+)"', raises):
                    promised[code] = f"{file.name}: {node.name}"
    unknown = promised.keys() - {each.code for each in origins}
    assert len(promised) > 200 and not {code: promised[code] for code in unknown}


def test_no_code_has_two_meanings(origins: list[Origin]) -> None:
    """A code that several rooms state has one meaning, named above, which fits all its causes."""
    rooms: dict[str, set[str]] = {}
    for each in origins:
        rooms.setdefault(each.code, set()).add(each.module.split("/")[0])
    assert {code for code, found in rooms.items() if len(found) > 1} == MEANINGS.keys()


# ---- how they are found ------------------------------------------------------------------------


def found(tmp_path: Path, **modules: str) -> set[tuple[str, str, str, tuple, tuple]]:
    """What is found in a package of these modules."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(dedent(text))
    origins = origins_in(tmp_path)
    return {(o.code, o.kind, o.module, (*o.causes,), (*o.next_steps,)) for o in origins}


def test_literals_constants_and_what_is_known_only_later(tmp_path: Path) -> None:
    text = """
        STEP = "Look at it."
        def check(n, deep):
            step = STEP if deep else ""
            raise InputError(f"{n} are bad", code="bad", next_step=step)
        note = Finding(code="odd", path="", cause="it is odd", severity="warning")
        again = InputError(note.cause, code=note.code)
    """
    assert found(tmp_path, one=text) == {
        ("bad", "InputError", "one", ("… are bad",), ("Look at it.",)),
        ("odd", "warning", "one", ("it is odd",), ()),
    }


def test_codes_of_functions_that_make_errors(tmp_path: Path) -> None:
    """The place is where the code stands; what is not said there is that of the function."""
    one = """
        def refuse(code: str, cause: str) -> None:
            raise InputError(f"{cause}!", code=code, next_step="Stop.")
        def _note(code: str, severity: str = "error") -> Finding:
            return Finding(code=code, cause="so", severity=severity)
        _note("first"), _note("second", severity="warning")
        def _bad(cause: str) -> InputError:
            return InputError(cause, code="third")
        _bad("thus")
    """
    two = """
        from kidseg.one import refuse
        refuse("a", "this")
        refuse(cause="that", code="b")
    """
    unrelated = """
        refuse("c", "of another function of this name")
    """
    assert found(tmp_path, one=one, two=two, unrelated=unrelated) == {
        ("first", "error", "one", ("so",), ()),
        ("second", "warning", "one", ("so",), ()),
        ("third", "InputError", "one", ("…",), ()),
        ("third", "InputError", "one", ("thus",), ()),
        ("a", "InputError", "two", ("this",), ("Stop.",)),
        ("b", "InputError", "two", ("that",), ("Stop.",)),
    }


def test_a_code_may_depend_on_what_is_known_only_later(tmp_path: Path) -> None:
    text = """
        def choose(n, error):
            codes = {1: "a", 2: "b"}
            cause = "one"
            InputError(cause, code=codes[n])
            cause = "two"
            InputError(cause, code=codes.get(n, "c"))
            InputError("three", code="d" if n else error.code or "e")
    """
    assert {(code, *causes) for code, _, _, causes, _ in found(tmp_path, one=text)} == {
        *(("a", "one"), ("b", "one"), ("a", "two"), ("b", "two"), ("c", "two")),
        *(("d", "three"), ("e", "three")),
    }


def test_the_page_names_each_code_once(origins: list[Origin]) -> None:
    pytest.importorskip("mkdocs", reason="needs mkdocs-material: pip install 'kidseg[docs]'")
    from reference import codes

    named = re.findall(r'<code id="([^"]+)">', "\n".join(codes()))
    assert named == sorted({each.code for each in origins})
