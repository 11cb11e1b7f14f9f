"""The network that nnU-Net's plans describe, and the names of its weights.

Source: dynamic_network_architectures 0.4.4, `PlainConvUNet`, and nnU-Net v2.8.1's plans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from kidseg.errors import ModelError
from kidseg.nets import PlannedUNet
from kidseg.topology import Topology

__all__ = ["renamed", "topology_of"]

_CLASS = "PlainConvUNet"
# What else a network of the plans can have: the values that kidseg's networks have, as plans state
# them; None stands for a missing entry.
_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "conv_bias": (True, None),
    "norm_op_kwargs": ({"eps": 1e-05, "affine": True}, None),
    "dropout_op": (None,),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU", None),
    "nonlin_kwargs": (
        {"inplace": True},
        {"inplace": False},
        {"inplace": True, "negative_slope": 0.01},
        {"negative_slope": 0.01},
        {},
        None,
    ),
    "nonlin_first": (False, None),
    "pool": ("conv", None),
}
_PREFIXES = ("module.", "_orig_mod.")
# {pattern of a name in nnU-Net: (level, the rest of the name here)}; levels count from the finest.
_UNIT = {"conv": "convolution", "norm": "norm"}


def topology_of(architecture: Mapping[str, Any], path: Path) -> Topology:
    """The shape of a planned network.

    Raises:
        ModelError: "unsupported-model".
        ValueError: numbers that describe no network.
    """
    kind = str(architecture.get("network_class_name", "")).rpartition(".")[2]
    if kind != _CLASS:
        _refuse(f"a network of class {kind:.60}", _CLASS, path)
    values = architecture.get("arch_kwargs")
    if not isinstance(values, Mapping):
        raise ValueError("'architecture' has no arch_kwargs")
    for name, known in _KNOWN.items():
        if values.get(name) not in known:
            _refuse(f"{name} {values[name]}", f"{name} {known[0]}", path)
    try:
        topology = Topology(
            features=tuple(_whole(n) for n in values["features_per_stage"]),
            kernels=tuple(tuple(_whole(n) for n in each) for each in values["kernel_sizes"]),
            strides=tuple(tuple(_whole(n) for n in each) for each in values["strides"]),
            convolutions=_convolutions(values, path),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"'architecture' is not that of a {_CLASS} ({error!r})") from error
    if len(topology.features) < 2 or values["n_stages"] != len(topology.features):
        raise ValueError(f"'architecture' has {len(topology.features)} stages")
    for name, word in (("conv_op", "Conv"), ("norm_op", "InstanceNorm")):
        expected = f"{word}{topology.dimensions}d"
        if name in values and str(values[name]).rpartition(".")[2] != expected:
            _refuse(f"{name} {values[name]}", expected, path)
    return topology


def _convolutions(values: Mapping[str, Any], path: Path) -> int:
    """The number of convolutions per stage, which is the same everywhere."""
    counts: set[int] = set()
    for name in ("n_conv_per_stage", "n_conv_per_stage_decoder"):
        found = values[name]
        counts |= {_whole(n) for n in (found if isinstance(found, Sequence) else [found])}
    if len(counts) != 1:
        _refuse(
            f"stages of {sorted(counts)} convolutions", "one number of convolutions for all", path
        )
    return counts.pop()


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is no whole number")
    return value


def renamed(
    weights: Any, topology: Topology, channels: int, outputs: int, path: Path
) -> dict[str, Tensor]:
    """nnU-Net's weights under the names of `PlannedUNet`.

    Left out are copies of the same weights under other names, and the output at the coarsest
    resolution of the decoder, which has no part in the labels.

    Args:
        weights: "network_weights" of a checkpoint.
        topology: of the network.
        channels: of its input.
        outputs: of the network.
        path: of the checkpoint.

    Raises:
        ModelError: "other-network": they are not the weights of such a network; "not-finite".
    """
    if not isinstance(weights, Mapping):
        raise _other("it has no weights", path)
    with torch.device("meta"):
        wanted = PlannedUNet(topology, channels, outputs).state_dict()
    found: dict[str, Tensor] = {}
    coarsest = f"heads.{len(topology.features) - 2}."
    for name, tensor in weights.items():
        known = _name_here(str(name), len(topology.features))
        if known in wanted:
            found[known] = tensor
        elif known is None or (known and not known.startswith(coarsest)):
            raise _other(f"that network has no '{name!s:.80}'", path)
    if missing := sorted(set(wanted) - set(found)):
        raise _other(f"{len(missing)} weights are missing, the first '{missing[0]}'", path)
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or tensor.shape != wanted[name].shape:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else "no tensor"
            raise _other(f"'{name}' is {shape}, not {tuple(wanted[name].shape)}", path)
        if not bool(tensor.isfinite().all()):
            raise ModelError(
                f"its weights are not finite: '{name}'",
                path=path,
                code="not-finite",
                next_step="The training diverged: import another checkpoint or fold.",
            )
    return {name: found[name].detach().float() for name in wanted}


def _name_here(name: str, stages: int) -> str | None:
    """The name of a weight here; "" for copies, None for one that the network does not have."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if ".all_modules." in name or name.startswith("decoder.encoder."):
        return ""
    if match := re.fullmatch(r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.(conv|norm)\.(\w+)", name):
        level, unit, kind, rest = match.groups()
        return f"encode.{int(level)}.{int(unit)}.{_UNIT[kind]}.{rest}"
    if match := re.fullmatch(r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(conv|norm)\.(\w+)", name):
        stage, unit, kind, rest = match.groups()
        return f"decode.{stages - 2 - int(stage)}.{int(unit)}.{_UNIT[kind]}.{rest}"
    if match := re.fullmatch(r"decoder\.(transpconvs|seg_layers)\.(\d+)\.(\w+)", name):
        kind, stage, rest = match.groups()
        here = "up" if kind == "transpconvs" else "heads"
        return f"{here}.{stages - 2 - int(stage)}.{rest}"
    return None


def _refuse(what: str, supported: str, path: Path) -> NoReturn:
    raise ModelError(
        f"the model has {what:.120}, which kidseg cannot represent",
        path=path,
        code="unsupported-model",
        next_step=f"Supported: {supported}.",
    )


def _other(cause: str, path: Path) -> ModelError:
    return ModelError(
        f"its weights are not those of the network in the plans: {cause}",
        path=path,
        code="other-network",
        next_step="Check that checkpoint and plans belong together, and that the trainer did not"
        " change the network.",
    )
