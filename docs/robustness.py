"""The pages robustness.md and requirements.md: `python docs/robustness.py` writes both.

They are made from the markers of the tests. A test says what it shows with `@pytest.mark.row(4)` (a
kind of input), `@pytest.mark.fault("disk full")` (a fault of the machine) or
`@pytest.mark.requirement("own voxels")`. tests/test_robustness.py holds the pages up to date and
each row to a test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "robustness.md"
REQUIREMENTS_PAGE = ROOT / "docs" / "requirements.md"

INPUTS: Mapping[int, tuple[str, str]] = {
    1: (
        "truncated .nii or .nii.gz; wrong gzip CRC; empty file; web page named .nii.gz",
        "refused",
    ),
    2: ("plain data named .gz, and the reverse", "warning"),
    3: ("sform and qform disagree", "refused; `--trust sform` or `--trust qform`"),
    4: ("sheared affine", "tiny: warning; else refused"),
    5: (
        "both affine codes 0; zero, negative or NaN spacing",
        "refused; `--spacing` overrides",
    ),
    6: ("header that asks for absurd memory", "refused before allocation"),
    7: ("4D with one volume; with several", "read; refused, or one chosen by the data set"),
    8: ("2D, RGB, structured types; one slice", "refused; read"),
    9: ("NaN or infinite voxels", "refused in training; replaced with a warning in inference"),
    10: (
        "int64, big-endian, scaled values, bits above those stored; rescaling of its own for each"
        " DICOM image",
        "read; with a warning, or refused where neighbours contradict it",
    ),
    11: (
        "implausible HU: unscaled, shifted, normalised, 8-bit, doubled, noise",
        "warning, or refused where it is certain",
    ),
    12: (
        "label and image differ in shape, or in position by more than 0.001 mm",
        "refused; below it accepted",
    ),
    13: (
        "unexpected, fractional or missing label values",
        "refused with counts; no tumour is allowed",
    ),
    14: ("duplicate case id; the same image in training and test", "refused"),
    15: ("any axis order or flip", "the same result in the patient"),
    16: ("anisotropy over 6:1, slices over 5 mm", "warning"),
    17: (
        "DICOM: missing, uneven, duplicate slices; gantry tilt; mixed spacing, orientation or"
        " identifiers; several acquisitions in one series",
        "refused; `--repair` or `--series` where there is a way on, with a warning",
    ),
    18: ("several series in a folder", "listed; `--series`"),
    19: (
        "localiser, dose report, SEG, secondary capture, projection, subtraction, material map;"
        " reformatted, virtual monoenergetic",
        "ignored with a warning beside the CT, refused alone; read with a warning",
    ),
    20: ("enhanced and other multi-frame CT; compressed syntaxes", "read"),
    21: ("not CT; a transfer syntax that cannot be decoded", "refused by name"),
    22: ("missing PatientID and the like; missing position", "warning; refused"),
    23: ("kidney cut by the field of view", "warning: the volume is partial"),
    24: ("no, one, or a horseshoe kidney", "warning"),
    25: ("zip with `../`, links, a bomb's ratio, thousands of files", "refused as a whole"),
    26: (
        "paths with spaces, Unicode or bytes that are not UTF-8; read-only output; output exists",
        "work; refused before the work; `--overwrite`",
    ),
}

FAULTS: Mapping[str, str] = {
    "kill -9 while training": "resumed, it ends with the same bits on the same device",
    "kill -9 while segmenting": "done scans are kept, none is half written; --resume goes on",
    "kill while saving": "the previous state is complete; two are kept, with SHA-256",
    "damaged state or model": "refused; the previous state is used and said; never a fresh start",
    "resumed by another version": "said on the terminal, in summary.json and resumed.json",
    "disk full": "exit code 5, no half file",
    "SIGTERM": "state saved, exit code 143; how to go on is said",
    "worker killed": "noticed in seconds, named; no hang; of a batch it costs only its scan",
    "out of device memory": "an error that names the setting to change",
    "loss not finite": "exit code 6 with stage, epoch and cases of the batch",
    "two jobs, one folder": "a lock: trainings exclude each other, and so do segmentations of the"
    " same scans; records of different scans are merged",
    "rank dies": "all processes of the training end; it is resumable",
    "one bad case": "the others finish, exit code 4",
    "scan that hangs": "with --time-limit its process ends; the others finish, exit code 4",
    "scheduler lost": "exit code 5; done scans are recorded, --resume goes on",
    "launcher killed": "a study takes its trainings along, a batch its workers",
    "client gone": "its upload is removed; its job is cancelled, where that is asked",
}

REQUIREMENTS: Mapping[str, tuple[str, str]] = {
    "one interpolation": (
        "Geometry is exact: a scan is interpolated once each way, on grids in patient millimetres.",
        "labels are shifted by half a voxel, or small lesions are lost",
    ),
    "own voxels": (
        "Labels lie on the scan's own voxels, in any order of axes.",
        "labels are mirrored or displaced in the viewer",
    ),
    "sides": (
        "Left and right are those of the patient.",
        "surgery is planned on the wrong side",
    ),
    "volumes": (
        "Volumes and diameters are those of known shapes, with an interval that contains them.",
        "a protocol's threshold is misjudged",
    ),
    "cannot tell": (
        "A criterion is met or not met only where the whole interval agrees; else it cannot tell.",
        "a doubtful value decides about a treatment",
    ),
    "response": (
        "Change between two scans is of the same lesion, with propagated error.",
        "growth is taken for response",
    ),
    "suitable scan": (
        "Scans that the model is not for are warned about: no contrast, MR, nothing in view.",
        "a result outside of the training range is trusted",
    ),
    "partial": (
        "Kidneys cut by the field of view, absent, fused or alone are said.",
        "a partial volume is read as a small kidney",
    ),
    "sound model": (
        "A model file that was altered is never used.",
        "a damaged model gives plausible, wrong labels",
    ),
    "same bits": (
        "A training that was interrupted ends with the same weights.",
        "results cannot be reproduced",
    ),
    "no leak": (
        "No patient is in training and test.",
        "figures promise more than new patients get",
    ),
    "honest figures": (
        "Empty masks, and structures that are missed, count as defined.",
        "failures disappear from the mean",
    ),
    "dicom": (
        "DICOM objects are voxel-exact, refer to their images, and say where they come from.",
        "labels appear on other images, or as if a person had drawn them",
    ),
    "surfaces": (
        "Surfaces are closed, in patient millimetres, and keep the volume.",
        "a printed model has the wrong size",
    ),
    "research use": (
        "Research use only is said by every command and in every object.",
        "it is taken for a medical device",
    ),
    "privacy": (
        "Records, logs and pages name no patient.",
        "patient data leave the hospital with a log",
    ),
    "server": (
        "A server takes uploads, tells their progress and gives results, within limits of size,"
        " time and rate; nothing is lost or done twice.",
        "a scan is lost, or one client keeps all others from their results",
    ),
    "own model": (
        "A model is trained on submitted labels; it replaces the current one only if it is better"
        " on images that it never saw.",
        "a few labels make the model worse for everybody",
    ),
    "drawn": (
        "Labels that a person drew in some slices stay as they are; what was completed says so.",
        "corrected labels are lost, or a person's drawing is taken for a model's",
    ),
    "slicer": (
        "3D Slicer segments by kidseg, and its segmentation is what the command writes.",
        "labels are displaced, or under another name, where they are corrected",
    ),
    "container": (
        "The container gives the labels of the command, without network, root or a writable root.",
        "results depend on the machine, or a service has more rights than it needs",
    ),
    "archive": (
        "Each series of an archive is answered once, whatever is killed.",
        "a study has no result, or several that contradict",
    ),
}

NOT_BUILT: frozenset[str] = frozenset()


def marked_tests() -> dict[int | str, list[str]]:
    """{row number, fault or requirement: tests marked with it, as "test_module: name"}."""
    found: dict[int | str, list[str]] = {key: [] for key in (*INPUTS, *FAULTS, *REQUIREMENTS)}
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        for test, marker in _markers(file):
            for argument in marker.args:
                found[ast.literal_eval(argument)].append(f"{file.stem}::{test}")
    return found


def page() -> str:
    """The text of docs/robustness.md."""
    tests = marked_tests()
    rows = [
        f"| {number} | {text} | {answer} | {_listed(tests[number])} |"
        for number, (text, answer) in INPUTS.items()
    ]
    faults = [f"| {name} | {answer} | {_listed(tests[name])} |" for name, answer in FAULTS.items()]
    return "\n".join(
        [
            "# What happens to bad input and under faults",
            "",
            "Written by `python docs/robustness.py` from the markers `row` and `fault` of the"
            " tests.",
            "*Refused*: exit code 3 and an error that names the file, the cause and the next step.",
            "*Warning*: done, and said on the terminal and in the record of the scan.",
            "What each error and warning means and what to do: [their codes](reference/codes.md), a"
            " page of the site",
            "(`mkdocs build`) that is made from the source.",
            "",
            "## Inputs",
            "",
            "| # | input | answer | tests |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Faults",
            "",
            "| fault | answer | tests |",
            "|---|---|---|",
            *faults,
            "",
            "## Mutated files",
            "",
            "`python benchmarks/fuzz.py` changes bytes, numbers and lengths of small valid inputs"
            " of every",
            "format that kidseg reads, and counts what is accepted, refused, and raised that is no"
            " error of",
            "kidseg's own.",
            "",
        ]
    )


def requirements_page() -> str:
    """The text of docs/requirements.md."""
    tests = marked_tests()
    rows = [
        f"| {name} | {text} | {risk} | {_listed(tests[name])} |"
        for name, (text, risk) in REQUIREMENTS.items()
    ]
    return "\n".join(
        [
            "# Requirements, risks, tests",
            "",
            "Written by `python docs/robustness.py` from the markers `requirement` of the tests."
            " Bad input and faults of",
            "the machine have a [page of their own](robustness.md).",
            "",
            "| | requirement | risk, if it is not met | tests |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _markers(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """The test functions of a file and their markers of these kinds."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) in (
                "pytest.mark.row",
                "pytest.mark.fault",
                "pytest.mark.requirement",
            ):
                yield node.name, decorator


def _listed(tests: list[str]) -> str:
    """Tests by module, for a cell of the table."""
    modules: dict[str, list[str]] = {}
    for test in tests:
        module, _, name = test.partition("::")
        modules.setdefault(module, []).append(name.removeprefix("test_").replace("_", " "))
    return "<br>".join(
        f"[{module}](../tests/{module}.py): {'; '.join(names)}" for module, names in modules.items()
    )


if __name__ == "__main__":
    PAGE.write_text(page())
    REQUIREMENTS_PAGE.write_text(requirements_page())
