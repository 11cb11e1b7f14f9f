"""Planning by nnU-Net's rules: fingerprint of a data set, voxel spacing and networks."""

from kidseg.plan.facts import CaseFacts, Fingerprint, fingerprint
from kidseg.plan.preprocessing import network_input
from kidseg.plan.resizing import Order, resized, spline, thick_axis
from kidseg.plan.rules import Configuration, Plan, Topology, adapted, plan

__all__ = [
    "CaseFacts",
    "Configuration",
    "Fingerprint",
    "Order",
    "Plan",
    "Topology",
    "adapted",
    "fingerprint",
    "network_input",
    "plan",
    "resized",
    "spline",
    "thick_axis",
]
