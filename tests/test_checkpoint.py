"""Models and training states: whole to the bit, or refused with a name."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kidseg.checkpoint import (
    StageProgress,
    State,
    load_model,
    load_state,
    save_model,
    save_state,
    with_description,
)
from kidseg.errors import KidsegWarning, ModelError, UsageError
from kidseg.header import read_header, seal, with_blank_seal

PARTS = {
    "pose": {"head.weight": torch.arange(6.0).reshape(2, 3)},
    "segment": {"a.b": torch.ones(4, dtype=torch.bfloat16), "count": torch.tensor(7)},
}
HEADER = {
    "method": "homogenized",
    "config": {"size": 128},
    "plan": {"channels": [{"statistics": {"mean": 77.25, "sd": 41.0}}]},
    "labels": {"1": "kidney", "2": "Wilms' tumör"},
    "start": {"sha256": "0" * 64},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, PARTS, HEADER)
    return path


def test_a_model_comes_back_whole(model: Path) -> None:
    loaded = load_model(model)
    for part, state in PARTS.items():
        for name, tensor in state.items():
            assert torch.equal(loaded.parts[part][name], tensor)
            assert loaded.parts[part][name].dtype == tensor.dtype
    assert {name: loaded.header[name] for name in HEADER} == HEADER
    assert loaded.header["intended_use"] == "Research use only. Not a medical device."
    assert read_header(model) == dict(loaded.header)


def test_equal_models_are_equal_files(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    assert save_model(other, PARTS, HEADER) == load_model(model).sha256
    assert other.read_bytes() == model.read_bytes()


CARD: dict[str, Any] = {
    "trained_on": "900 digital patients",
    "command": "kidseg train patients -o run --preset starter",
    "measured": [
        {"data": "x", "n": 13, "structure": "tumour", "metric": "Dice", "mean": 0.8, "sd": 0.1}
    ],
    "fails_on": ["small tumours"],
    "not_for": ["diagnosis"],
    "licence": "Apache-2.0",
}


def test_a_model_is_described_and_sealed_again(model: Path, tmp_path: Path) -> None:
    """Card and range are added; the weights and the rest of the header stay."""
    out = tmp_path / "described.safetensors"
    ranges = {"renal_hu": {"n": 1, "min": 1.0, "max": 1.0, "mean": 1.0, "sd": None}}
    sha256 = with_description(model, out, {"model_card": CARD, "training_range": ranges})
    before, after = load_model(model), load_model(out)
    assert after.sha256 == sha256 != before.sha256
    added = {"model_card", "training_range"}
    assert set(after.header) - set(before.header) == added
    assert after.header["model_card"] == CARD and after.header["training_range"] == ranges
    kept = {name for name in before.header if name != "sha256"}
    assert {n: before.header[n] for n in kept} == {n: after.header[n] for n in kept}
    for part, state in before.parts.items():
        assert set(state) == set(after.parts[part])
        for name, tensor in state.items():
            assert torch.equal(tensor, after.parts[part][name])
            assert tensor.dtype == after.parts[part][name].dtype
    with pytest.raises(UsageError):
        with_description(model, out, {"licence": "MIT"})
    with_description(out, out, {"licence": "MIT"}, overwrite=True)
    assert read_header(out)["licence"] == "MIT" and read_header(out)["model_card"] == CARD


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"config": {}}, "config cannot be changed"),
        ({"sha256": "0"}, "sha256 cannot"),
        ({"model_card": {**CARD, "author": "me"}}, "author"),
    ],
)
def test_what_decides_a_result_cannot_be_redescribed(
    description: dict[str, Any], words: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        with_description(model, tmp_path / "out.safetensors", description)
    assert not (tmp_path / "out.safetensors").exists()


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    shared = torch.ones(3)
    save_model(tmp_path / "m.safetensors", {"a": {"x": shared, "y": shared[:2]}}, {})
    parts = load_model(tmp_path / "m.safetensors").parts
    assert torch.equal(parts["a"]["y"], torch.ones(2))


def test_models_are_never_overwritten_unasked(model: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        save_model(model, PARTS, HEADER)
    save_model(model, PARTS, {**HEADER, "method": "plain"}, overwrite=True)
    assert read_header(model)["method"] == "plain"


@pytest.mark.requirement("sound model")
@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_model_cut_short_is_refused(model: Path, keep: int) -> None:
    model.write_bytes(model.read_bytes()[:keep])
    for read in (read_header, load_model):
        with pytest.raises(ModelError, match="not a complete kidseg model"):
            read(model)


@pytest.mark.requirement("sound model")
@pytest.mark.fault("damaged state or model")
@pytest.mark.parametrize("read", [read_header, load_model])
def test_one_altered_digit_or_bit_anywhere_is_noticed(
    model: Path, read: Callable[[Path], object]
) -> None:
    """Of a setting, of the plan, of a weight, of a shape, of the digest itself."""
    whole = model.read_bytes()
    for old, new in (
        (b"77.25", b"17.25"),
        (b"128", b"129"),
        (b"F32", b"I32"),
        (b"[2,3]", b"[3,2]"),
    ):
        assert whole.count(old) == 1
        model.write_bytes(whole.replace(old, new))
        with pytest.raises(ModelError) as error:
            read(model)
        assert (error.value.code, error.value.exit_code) == ("damaged-model", 6)
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1
        model.write_bytes(content)
        with pytest.raises(ModelError):
            read(model)
    model.write_bytes(whole)
    assert read(model)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, removed, doubled, exchanged or replaced by telling ones."""
    out = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(out) + 1) if chance.random() < 0.5 else chance.randrange(600)
        length = chance.choice([1, 1, 2, 8, 64, len(out)])
        piece = chance.choice(
            [
                bytes(chance.randrange(256) for _ in range(min(length, 64))),
                b"",
                bytes(out[start : start + length]) * 2,
                b"null",
                b"NaN",
                b"1e999",
                b"-1",
                b"9" * 400,
                b"[" * 5000,
                b'{"__metadata__":',
                b"\xff" * 8,
            ]
        )
        out[start : start + length] = piece
        if not out:
            break
    return bytes(out)


@pytest.mark.fault("damaged state or model")
def test_no_mutation_is_accepted_or_a_traceback(model: Path) -> None:
    whole, chance = model.read_bytes(), random.Random(1)
    for _ in range(400):
        content = mutated(whole, chance)
        if content == whole:
            continue
        model.write_bytes(content)
        for read in (read_header, load_model):
            with pytest.raises(ModelError) as error:
                read(model)
            assert error.value.code in ("damaged-model", "other-format")
            assert error.value.next_step and error.value.path


def test_an_absurd_head_is_refused_before_memory_is_asked_for(model: Path) -> None:
    content = model.read_bytes()
    for length in (0, 1, len(content), 2**40, 2**63, 2**64 - 1):
        model.write_bytes(struct.pack("<Q", length) + content[8:])
        with pytest.raises(ModelError, match="not a complete"):
            read_header(model)


def foreign(path: Path, text: str, key: str = "kidseg") -> Path:
    save_file({"x": torch.ones(2)}, path, metadata={key: text})
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x04\x95" + b"\0" * 100,
        b"\0" * 4096,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_other_kinds_of_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a complete kidseg model"):
        load_model(path)


@pytest.mark.parametrize("text", ["", "3", "[]", "null", '"text"', "{", "[" * 50_000, "{}"])
def test_other_models_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError) as error:
        read_header(foreign(tmp_path / "other.safetensors", text))
    assert error.value.code == ("other-format" if text == "{}" else "damaged-model")
    with pytest.raises(ModelError, match="another kind of file"):
        read_header(foreign(tmp_path / "other.safetensors", '{"format": 2}', key="format"))


def test_missing_files_and_other_formats_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            read_header(path)
    later = foreign(tmp_path / "later.safetensors", json.dumps({"format": 99}))
    with pytest.raises(ModelError, match="newer kidseg"):
        read_header(later)
    for old in (1, 0, -1, True, "2", None, 2.5, 10**400):
        earlier = foreign(tmp_path / "earlier.safetensors", json.dumps({"format": old}))
        with pytest.raises(ModelError) as error:
            read_header(earlier)
        assert error.value.code == "other-format" and len(error.value.cause) < 200


# States


def line(epoch: int, **more: Any) -> dict[str, Any]:
    return {"stage": "pose", "epoch": epoch, "loss": 0.5, "val_score": 0.25 * epoch, **more}


def state(epoch: int, **changes: Any) -> State:
    progress = StageProgress(
        run="a run",
        stage="pose",
        epoch=epoch,
        seconds=1.5 * epoch,
        stopped=None,
        best_epoch=epoch,
        log=tuple(line(k) for k in range(epoch + 1)),
    )
    parts = {"net": {"w": torch.full((2,), float(epoch))}, "optimizer": {"0.step": torch.tensor(3)}}
    return State(progress=replace(progress, **changes), parts=parts)


def loaded(path: Path) -> StageProgress:
    found = load_state(path)
    assert found is not None
    return found.progress


@pytest.mark.fault("damaged state or model")
def test_states_are_kept_twice(tmp_path: Path) -> None:
    path = tmp_path / "state-pose.safetensors"
    assert load_state(path) is None
    for epoch in range(3):
        save_state(state(epoch), path)
    found = load_state(path)
    assert found is not None and found.progress == state(2).progress
    assert torch.equal(found.parts["net"]["w"], torch.full((2,), 2.0))
    assert torch.equal(found.parts["optimizer"]["0.step"], torch.tensor(3))

    path.write_bytes(path.read_bytes()[:-5])  # as if cut by a full disk
    with pytest.warns(KidsegWarning, match="it has .* bytes, but .*the previous one is used"):
        assert loaded(path).epoch == 1
    path.unlink()
    with pytest.warns(KidsegWarning, match="missing; the previous one is used"):
        assert loaded(path).epoch == 1


def test_states_are_kept_twice_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on exFAT and on some shares of a network."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "state-pose.safetensors"
    for epoch in range(3):
        save_state(state(epoch), path)
    assert loaded(path).epoch == 2
    path.unlink()
    with pytest.warns(KidsegWarning, match="missing; the previous one is used"):
        assert loaded(path).epoch == 1


@pytest.mark.fault("damaged state or model")
@pytest.mark.filterwarnings("ignore::kidseg.errors.KidsegWarning")
def test_a_damaged_state_is_no_fresh_start(tmp_path: Path) -> None:
    """Whatever is in the file."""
    path = tmp_path / "state-pose.safetensors"
    save_state(state(0), path)
    whole, chance = path.read_bytes(), random.Random(2)
    contents = [b"nothing", b"", *(mutated(whole, chance) for _ in range(300))]
    for content in contents:
        if content == whole:
            continue
        path.write_bytes(content)
        with pytest.raises(ModelError) as error:
            load_state(path)
        assert error.value.code in ("damaged-state", "other-format") and error.value.next_step
        assert "every saved training state" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1, "log": ()},
        {"epoch": 3},
        {"epoch": "2"},
        {"epoch": 10**40},
        {"seconds": -1.0},
        {"seconds": "long"},
        {"seconds": None},
        {"stopped": "never"},
        {"best_epoch": 5},
        {"best_epoch": -2},
        {"best_epoch": -1},
        {"log": [line(0, start=3), line(1), line(2)]},
        {"log": [3]},
        {"log": {}},
        {"log": [{"epoch": None}] * 3},
        {"run": None},
        {"stage": 4},
        {"more": 1},
    ],
)
def test_a_sealed_state_of_impossible_content_is_damaged(
    tmp_path: Path, change: Mapping[str, Any]
) -> None:
    from safetensors.torch import save

    path = tmp_path / "state-pose.safetensors"
    header = {"format": 2, **asdict(state(2).progress), **change}
    tensors: dict[str, Tensor] = {"net.w": torch.ones(2)}
    content = save(tensors, metadata={"kidseg-state": with_blank_seal(header)})
    path.write_bytes(seal(content, "kidseg-state"))
    with pytest.raises(ModelError) as error:
        load_state(path)
    assert error.value.code == "damaged-state"


def test_a_model_is_no_state_and_a_state_no_model(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "state-pose.safetensors"
    save_state(state(0), path)
    with pytest.raises(ModelError, match="another kind of file"):
        load_model(path)
    with pytest.raises(ModelError, match="another kind of file"):
        load_state(model)


@pytest.mark.fault("kill while saving")
def test_killed_while_saving_the_old_state_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    code = (
        "import sys, torch, pathlib\n"
        "from kidseg.checkpoint import StageProgress, State, save_state\n"
        "for epoch in range(10_000):\n"
        "    progress = StageProgress(run='', stage='', epoch=epoch, seconds=0.0, stopped=None,\n"
        "        best_epoch=None, log=tuple({'epoch': k} for k in range(epoch + 1)))\n"
        "    parts = {'net': {'w': torch.rand(200_000)}}\n"
        "    save_state(State(progress=progress, parts=parts), pathlib.Path(sys.argv[1]))\n"
        "    print(epoch, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = -1
    for text in process.stdout:
        told = int(text)
        if told >= 12:
            process.kill()
            break
    process.communicate()
    assert loaded(path).epoch >= told - 1
