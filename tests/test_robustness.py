"""docs/robustness.md and docs/requirements.md say what the tests show."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "robustness.py"


@pytest.fixture(scope="module")
def robustness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("robustness", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(robustness: ModuleType) -> None:
    written = robustness.PAGE.read_text(), robustness.REQUIREMENTS_PAGE.read_text()
    made = robustness.page(), robustness.requirements_page()
    assert written == made, "run: python docs/robustness.py"


def test_each_row_has_a_test(robustness: ModuleType) -> None:
    without = {key for key, tests in robustness.marked_tests().items() if not tests}
    assert without == robustness.NOT_BUILT
