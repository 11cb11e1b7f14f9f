"""Planning by nnU-Net's rules: fingerprint of a data set, voxel spacing and networks."""

from kidseg.plan.facts import CaseFacts, Fingerprint, fingerprint
from kidseg.plan.preprocessing import Preprocessed, preprocess
from kidseg.plan.rules import Configuration, Plan, Topology, adapted, plan

__all__ = [
    "CaseFacts",
    "Configuration",
    "Fingerprint",
    "Plan",
    "Preprocessed",
    "Topology",
    "adapted",
    "fingerprint",
    "plan",
    "preprocess",
]
