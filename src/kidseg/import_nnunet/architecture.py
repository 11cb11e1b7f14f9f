"""The network that nnU-Net's plans describe, and the names of its weights.

Source: dynamic_network_architectures 0.4.4, `PlainConvUNet` and `ResidualEncoderUNet`, and nnU-Net
v2.8.1's plans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from kidseg.errors import ModelError
from kidseg.nets import PlannedUNet
from kidseg.topology import ResidualTopology, Topology

__all__ = ["renamed", "topology_of", "unsupported"]

_PLAIN, _RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
# The numbers of a network.
_NUMBERS = {
    "n_stages",
    "features_per_stage",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage",
    "n_blocks_per_stage",
    "n_conv_per_stage_decoder",
}
# More stages, or convolutions in one, and more feature maps than any network has; a file could name
# any number.
_MOST, _MOST_MAPS = 64, 2**16
_OPERATIONS = {"conv_op": "Conv", "norm_op": "InstanceNorm"}
# What else a network of the plans can have: the values that kidseg's networks have, as plans state
# them; None stands for a missing entry, too. Without those that have no None, nnU-Net builds
# another network: no biases, no norm, or nothing between convolutions.
_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "conv_bias": (True,),
    "norm_op_kwargs": ({"eps": 1e-05, "affine": True}, {"affine": True}),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
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
    "deep_supervision": (True, False, None),
}
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# Before the names of parallel and of compiled networks, and of both in either order.
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")


def topology_of(architecture: Mapping[str, Any], path: Path) -> Topology:
    """The shape of a planned network.

    Raises:
        ModelError: "unsupported-model".
        ValueError: numbers that describe no network.
    """
    kind = str(architecture.get("network_class_name", "")).rpartition(".")[2]
    if kind not in (_PLAIN, _RESIDUAL):
        unsupported(f"a network of class {kind:.60}", f"{_PLAIN}, {_RESIDUAL}", path)
    values = architecture.get("arch_kwargs")
    if not isinstance(values, Mapping):
        raise ValueError("'architecture' has no arch_kwargs")
    for name in sorted({**_KNOWN, **values}.keys() - _NUMBERS - _OPERATIONS.keys()):
        known = _KNOWN.get(name, (None,))
        if values.get(name) not in known:
            unsupported(f"{name} {values.get(name)}", f"networks with {name} {known[0]}", path)
    try:
        topology = _topology(kind, values, path)
    except (KeyError, TypeError) as error:
        raise ValueError(f"'architecture' is not that of a {kind} ({error!r})") from error
    if len(topology.features) < 2 or values.get("n_stages") != len(topology.features):
        raise ValueError(f"'architecture' has {len(topology.features)} stages")
    for name, word in _OPERATIONS.items():
        expected = f"{word}{topology.dimensions}d"
        if str(values.get(name)).rpartition(".")[2] != expected:
            unsupported(f"{name} {values.get(name)}", expected, path)
    return topology


def _topology(kind: str, values: Mapping[str, Any], path: Path) -> Topology:
    """Raises KeyError and TypeError: a number is missing, or none."""
    features = _integers(values["features_per_stage"])
    stages = len(features)
    decoder = _per_stage(values["n_conv_per_stage_decoder"], stages - 1)
    encoder = decoder if kind == _RESIDUAL else _per_stage(values["n_conv_per_stage"], stages)
    counts = sorted({*encoder, *decoder})
    if len(counts) != 1:
        unsupported(f"stages of {counts} convolutions", "one number of convolutions for all", path)
    if max(counts, default=0) > _MOST:
        raise TypeError(f"{counts[0]} convolutions in a stage")
    kernels = tuple(_integers(each) for each in values["kernel_sizes"])
    strides = tuple(_integers(each) for each in values["strides"])
    if any(n > 0 and n % 2 == 0 for each in kernels for n in each):
        unsupported(f"kernels of {kernels} voxels", "odd kernels", path)
    if any(n != 1 for n in (strides or ((),))[0]):
        unsupported(f"strides {strides[0]} in the first stage", "strides 1 there", path)
    plain = Topology(features=features, kernels=kernels, strides=strides, convolutions=counts[0])
    if kind == _PLAIN:
        return plain
    blocks = _per_stage(values["n_blocks_per_stage"], stages)
    if max(blocks, default=0) > _MOST:
        raise TypeError(f"{max(blocks)} blocks in a stage")
    return ResidualTopology(**vars(plain), blocks=blocks)


def _integers(values: Any) -> tuple[int, ...]:
    """Whole numbers, or a single one."""
    if isinstance(values, list | tuple) and len(values) > _MOST:
        raise TypeError(f"{len(values)} numbers")
    return tuple(_integer(n) for n in (values if isinstance(values, list | tuple) else [values]))


def _per_stage(values: Any, stages: int) -> tuple[int, ...]:
    """A whole number for each stage; a single one, not in a list, stands for all."""
    found = _integers(values)
    if not isinstance(values, list | tuple):
        return found * stages
    if len(found) != stages:
        raise TypeError(f"{len(found)} numbers for {stages} stages")
    return found


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is not a whole number")
    if value > _MOST_MAPS:
        raise TypeError(f"a number above {_MOST_MAPS}")
    return value


def unsupported(what: str, supported: str, path: Path) -> NoReturn:
    """Refuse what a model has by its name.

    Raises:
        ModelError: "unsupported-model".
    """
    raise ModelError(
        f"the model has {what:.120}, which kidseg cannot represent",
        path=path,
        code="unsupported-model",
        next_step=f"Supported: {supported}.",
    )


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
        if not isinstance(name, str):
            raise _other("its weights have no names", path)
        known = _name_here(name, len(topology.features))
        if known in wanted:
            found[known] = tensor
        elif known is None or (known and not known.startswith(coarsest)):
            raise _other(f"that network has no '{name:.80}'", path)
    if missing := sorted(set(wanted) - set(found)):
        raise _other(f"{len(missing)} weights are missing, the first '{missing[0]}'", path)
    return {name: _checked(found[name], name, tuple(wanted[name].shape), path) for name in wanted}


def _checked(tensor: Any, name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """A weight of this shape, as float32."""
    if not _has_values(tensor):
        raise _other(f"'{name}' is not a tensor of decimal numbers", path)
    if tensor.shape != shape:
        raise _other(f"'{name}' is {tuple(tensor.shape)}, not {shape}", path)
    found: Tensor = tensor.detach().float()
    if not bool(found.isfinite().all()):
        raise ModelError(
            f"its weights are not finite: '{name}'",
            path=path,
            code="not-finite",
            next_step="The training diverged: import another checkpoint or fold.",
        )
    return found


def _has_values(tensor: Any) -> bool:
    """Whether every number of a tensor is in the file: a file can also describe tensors of a shape
    without their numbers, or with a single one for all.
    """
    return (
        isinstance(tensor, Tensor)
        and not tensor.is_nested
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in _FLOATS
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
    )


def _name_here(name: str, stages: int) -> str | None:
    """The name of a weight here; "" for copies, None for one that the network does not have."""
    name = _PREFIXES.sub("", name)
    if ".all_modules." in name or name.startswith("decoder.encoder."):
        return ""
    for pattern, here in _PATTERNS:
        if match := pattern.fullmatch(name):
            found = here(match, stages)
            return re.sub(r"\bconv\b", "convolution", found)
    return None


def _residual(match: re.Match[str], stages: int) -> str:
    level, block, part, rest = match.groups()
    number = int(block) + (1 if level == "0" else 0)  # after the stem
    part = {"conv1": "first", "conv2": "second"}.get(part, "project")
    return f"encode.{level}.{number}.{part}.{rest}"


_PATTERNS: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str], int], str]]] = [
    (
        re.compile(r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.((?:conv|norm)\.\w+)"),
        lambda match, _: f"encode.{match[1]}.{match[2]}.{match[3]}",
    ),
    (
        re.compile(r"encoder\.stem\.convs\.0\.((?:conv|norm)\.\w+)"),
        lambda match, _: f"encode.0.0.{match[1]}",
    ),
    (
        re.compile(
            r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.(conv[12]|skip\.[01])\.((?:conv|norm)\.\w+)"
        ),
        _residual,
    ),
    (
        re.compile(r"decoder\.stages\.(\d+)\.convs\.(\d+)\.((?:conv|norm)\.\w+)"),
        lambda match, stages: f"decode.{stages - 2 - int(match[1])}.{match[2]}.{match[3]}",
    ),
    (
        re.compile(r"decoder\.transpconvs\.(\d+)\.(\w+)"),
        lambda match, stages: f"up.{stages - 2 - int(match[1])}.{match[2]}",
    ),
    (
        re.compile(r"decoder\.seg_layers\.(\d+)\.(\w+)"),
        lambda match, stages: f"heads.{stages - 2 - int(match[1])}.{match[2]}",
    ),
]


def _other(cause: str, path: Path) -> ModelError:
    return ModelError(
        f"its weights are not those of the network in the plans: {cause}",
        path=path,
        code="other-network",
        next_step="Check that checkpoint and plans belong together, and that the trainer did not"
        " change the network.",
    )
