"""Choosing a device: only "auto" may fall back, and says so."""

from __future__ import annotations

import sys

import pytest
import torch

from kidseg.device import choose_device, tune_allocator
from kidseg.errors import ResourceError, UsageError


def test_auto_takes_what_there_is_and_says_so() -> None:
    device = choose_device("auto")
    assert device.torch.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device.torch.type in device.note
    assert choose_device("cpu").note == ""


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
