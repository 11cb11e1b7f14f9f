"""Commands of kidseg in the process of a test."""

from __future__ import annotations

import pytest

from kidseg.cli import main


def call_cli(*words: object) -> int:
    """Run `kidseg WORDS`; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)
