"""Codes of findings and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kidseg.errors import KidsegError


def codes(found: Any) -> list[str]:
    """The codes of the findings of a scan, of measurements and so on."""
    return [finding.code for finding in found.findings]


def code_of(action: Callable[[], object]) -> str:
    """The code of an error, which names a file and the next step."""
    with pytest.raises(KidsegError) as caught:
        action()
    assert caught.value.next_step and caught.value.path
    return caught.value.code
