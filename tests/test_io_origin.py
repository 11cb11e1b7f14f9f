"""How files say where labels come from."""

from __future__ import annotations

import pytest

from kidseg.io.origin import Origin


@pytest.mark.requirement("drawn")
@pytest.mark.parametrize(
    ("origin", "kind", "words"),
    [
        (Origin(), "", "origin of the labels unknown"),
        (Origin(is_drawn=True), "", "origin of the labels unknown"),
        (Origin(method="plain"), "AUTOMATIC", "method plain"),
        (Origin(method="plain", is_drawn=True), "SEMIAUTOMATIC", "completed from drawn slices"),
    ],
)
def test_drawn_slices_make_labels_semiautomatic(origin: Origin, kind: str, words: str) -> None:
    assert origin.algorithm_type == kind
    assert words in origin.notes
    assert ("completed" in origin.notes) == (kind == "SEMIAUTOMATIC")
