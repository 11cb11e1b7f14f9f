"""The segmentation methods: their networks, training stages and inference steps."""

from __future__ import annotations

from kidseg.config import METHODS as CONFIGS
from kidseg.errors import UsageError
from kidseg.methods.cascade.system_c import Cascade
from kidseg.methods.homogenized.system_a import Homogenized
from kidseg.methods.method import Method
from kidseg.methods.multistage.system_b import Multistage
from kidseg.methods.nnunet_networks import NnUnet
from kidseg.methods.plain import Plain
from kidseg.methods.plain3d import Plain3d

__all__ = ["METHODS", "Method", "method_named"]

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Homogenized, Plain, Plain3d, Multistage, Cascade, NnUnet)
}
assert set(METHODS) == set(CONFIGS)


def method_named(name: str) -> type[Method]:
    """Look up a method by name.

    Raises:
        UsageError: "unknown-method".
    """
    if name not in METHODS:
        raise UsageError(
            f"there is no method '{name}'",
            code="unknown-method",
            next_step=f"Choose one of {', '.join(METHODS)}.",
        )
    return METHODS[name]
