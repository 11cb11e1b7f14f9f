"""The model card: what may stand in it, and how it is read and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from commands import call_cli
from kidseg.checkpoint import save_model
from kidseg.errors import ModelError
from kidseg.model_card import ModelCard, Score, card_of

SCORE = Score(
    data="AMOS, a part of one adult",
    n=11,
    structure="kidney",
    metric="Dice",
    mean=0.9,
    sd=0.05,
    median=0.92,
    best=0.97,
    worst=0.71,
)
CARD = ModelCard(
    trained_on="900 digital patients of 0 to 90 years, seeds 1 to 9",
    command="kidseg train patients -o run --method plain --preset starter --seed 1",
    measured=(SCORE, Score(data="one scan", n=1, structure="tumour", metric="HD95 mm", mean=4.5)),
    fails_on=("tumours below 2 ml", "scans without contrast agent"),
    not_for=("diagnosis or treatment",),
    licence="Apache-2.0",
)


def test_a_card_comes_back_from_json() -> None:
    content = json.loads(json.dumps(CARD.as_dict()))
    assert ModelCard.from_dict(content) == CARD
    assert card_of({"model_card": content}, Path("m")) == CARD
    assert card_of({}, Path("m")) is None


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(min_value=-3))
def test_a_mean_lies_between_best_and_worst(a: float, b: float, mean: float, n: int) -> None:
    """Whichever of them is greater, of at least one case."""
    is_possible = min(a, b) <= mean <= max(a, b) and n >= 1
    try:
        replace(SCORE, n=n, mean=mean, median=mean, best=a, worst=b)
    except ValueError:
        assert not is_possible
    else:
        assert is_possible


@pytest.mark.parametrize(
    "change",
    [
        {"licence": ""},
        {"fails_on": ["small tumours", " "]},
        {"not_for": "diagnosis"},
        {"trained_on": 900},
        {"seed": 1},
        {"measured": [{"data": "x", "n": 3, "structure": "tumour", "metric": "Dice"}]},
        {"measured": [{**SCORE.__dict__, "n": 0}]},
        {"measured": [{**SCORE.__dict__, "sd": -0.1}]},
        {"measured": [{**SCORE.__dict__, "median": 0.99}]},
        {"measured": [{**SCORE.__dict__, "metric": ""}]},
    ],
    ids=str,
)
def test_an_invalid_card_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as error:
        card_of({"model_card": {**CARD.as_dict(), **change}}, Path("m.safetensors"))
    assert error.value.code == "bad-card" and error.value.path == "m.safetensors"
    assert "--json" in error.value.next_step


def shown(tmp_path: Path, header: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    model = tmp_path / "m.safetensors"
    save_model(model, {"segment": {"w": torch.ones(3)}}, header, overwrite=True)
    assert call_cli("info", model) == 0
    return capsys.readouterr().out


def test_info_shows_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = {"method": "plain", "licence": "as the training data allow"}
    text = shown(tmp_path, {**header, "model_card": CARD.as_dict()}, capsys)
    words = " ".join(text.split())
    for told in (CARD.trained_on, CARD.command, *CARD.fails_on, *CARD.not_for):
        assert told in words
    assert "licence Apache-2.0" in words and "as the training data allow" not in words
    for figures in ("0.900 (0.050)", "0.920", "0.970", "0.710", "4.500"):
        assert figures in text
    card = text[text.index("Model card") : text.index("Use it:")]
    assert all(len(line) <= 80 for line in card.splitlines())
    assert "Model card" not in shown(tmp_path, header, capsys)
