from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kidseg.checkpoint import load_model, load_state, save_model, save_state
from kidseg.errors import KidsegWarning, ModelError, UsageError
from kidseg.header import read_header

PARTS = {
    "pose": {"head.weight": torch.arange(6.0).reshape(2, 3)},
    "segment": {"a.b": torch.ones(4, dtype=torch.bfloat16), "count": torch.tensor(7)},
}
HEADER = {"method": "homogenized", "config": {"size": 128}, "labels": {"1": "kidney"}}
CPU = torch.device("cpu")


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
    assert loaded.header["method"] == "homogenized"
    assert loaded.header["intended_use"] == "Research use only. Not a medical device."
    assert read_header(model) == dict(loaded.header)


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


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_model_cut_short_is_refused(model: Path, keep: int) -> None:
    model.write_bytes(model.read_bytes()[:keep])
    for read in (read_header, load_model):
        with pytest.raises(ModelError, match="not a complete kidseg model"):
            read(model)


def test_one_altered_bit_is_noticed(model: Path) -> None:
    payload = bytearray(model.read_bytes())
    payload[-3] ^= 1
    model.write_bytes(payload)
    with pytest.raises(ModelError, match="do not match their checksum"):
        load_model(model)


def test_other_files_and_later_formats_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path / "missing.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(2)}, other)
    with pytest.raises(ModelError, match="not a complete kidseg model"):
        read_header(other)
    later = tmp_path / "later.safetensors"
    save_file({"x": torch.ones(2)}, later, metadata={"kidseg": json.dumps({"format": 99})})
    with pytest.raises(ModelError, match="newer kidseg"):
        read_header(later)


def test_states_are_kept_twice(tmp_path: Path) -> None:
    path = tmp_path / "state-pose.pt"
    assert load_state(path, CPU) is None
    for epoch in range(3):
        save_state({"epoch": epoch, "net": {"w": torch.full((2,), float(epoch))}}, path)
    state = load_state(path, CPU)
    assert state is not None
    assert state["epoch"] == 2

    path.write_bytes(path.read_bytes()[:-5])  # as if cut by a full disk
    with pytest.warns(KidsegWarning, match="damaged"):
        state = load_state(path, CPU)
    assert state is not None
    assert state["epoch"] == 1

    path.unlink()  # killed between the two
    state = load_state(path, CPU)
    assert state is not None
    assert state["epoch"] == 1


def test_damaged_states_are_no_fresh_start(tmp_path: Path) -> None:
    path = tmp_path / "state-pose.pt"
    save_state({"epoch": 0}, path)
    path.write_bytes(b"nothing")
    with pytest.warns(KidsegWarning), pytest.raises(ModelError, match="every saved training state"):
        load_state(path, CPU)


def test_a_state_holds_no_code(tmp_path: Path) -> None:
    """A state that pickles anything but plain data and tensors does not load."""
    path = tmp_path / "state.pt"
    save_state({"epoch": subprocess.Popen}, path)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_state(path, CPU)


def test_killed_while_saving_the_old_state_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    code = (
        "import sys, torch, pathlib\n"
        "from kidseg.checkpoint import save_state\n"
        "for epoch in range(10_000):\n"
        "    save_state({'epoch': epoch, 'w': torch.rand(200_000)}, pathlib.Path(sys.argv[1]))\n"
        "    print(epoch, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = -1
    for line in process.stdout:
        told = int(line)
        if told >= 12:
            process.kill()
            break
    process.communicate()
    state = load_state(path, CPU)
    assert state is not None
    assert state["epoch"] >= told - 1
