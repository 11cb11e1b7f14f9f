"""Choosing a device: only "auto" may fall back, and says so where a GPU was expected."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kidseg.cli import main
from kidseg.device import choose_device, missing_gpu, tune_allocator
from kidseg.errors import ResourceError, UsageError


def test_auto_takes_what_there_is() -> None:
    device = choose_device("auto")
    assert device.torch.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("build", "has_gpu", "name", "told"),
    [
        ("13.0", False, "auto", True),
        ("13.0", False, "cpu", False),
        ("13.0", True, "auto", False),
        (None, False, "auto", False),
    ],
)
def test_a_gpu_that_was_expected_and_is_not_found_is_told(
    build: str | None, has_gpu: bool, name: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container for CUDA that was started without the option for GPUs."""
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert ("13.0 finds no GPU" in missing_gpu(name)) is told


@pytest.mark.parametrize("silent", [(), ("--quiet",), ("--json",)])
def test_the_commands_tell_it_on_the_terminal(
    silent: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    words = ["segment", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "out"), "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        main([*words, *silent])
    assert not ended.value.code
    assert ("finds no GPU" in capsys.readouterr().err) is (not silent)


def test_a_missing_device_is_refused() -> None:
    with pytest.raises(ResourceError) as error:
        choose_device(f"cuda:{torch.cuda.device_count()}")
    assert error.value.code == "no-such-device"


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", ""])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as error:
        choose_device(name)
    assert error.value.code == "unknown-device"


def test_precision_rules_the_networks() -> None:
    layer = torch.nn.Conv2d(1, 1, 3)
    image = torch.zeros(1, 1, 8, 8)
    with choose_device("cpu", "bf16").autocast():
        assert layer(image).dtype == torch.bfloat16
    with choose_device("cpu", "fp32").autocast():
        assert layer(image).dtype == torch.float32
    assert choose_device("cpu", "auto").precision in ("fp32", "bf16")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a matter of Linux")
def test_the_allocator_is_tuned_where_it_can_be() -> None:
    assert tune_allocator() in (True, False)
    assert torch.ones(1000, 1000).sum() == 1e6


def test_elsewhere_the_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not tune_allocator()
