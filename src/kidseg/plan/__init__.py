"""Planning by nnU-Net's rules: what a data set is like, and what networks and voxels suit it."""

from kidseg.plan.facts import CaseFacts, Fingerprint, fingerprint
from kidseg.plan.preprocessing import Preprocessed, preprocess
from kidseg.plan.reading import CaseReader, CaseVoxels
from kidseg.plan.rules import Configuration, Plan, Topology, plan
from kidseg.plan.workers import over_cases

__all__ = [
    "CaseFacts",
    "CaseReader",
    "CaseVoxels",
    "Configuration",
    "Fingerprint",
    "Plan",
    "Preprocessed",
    "Topology",
    "fingerprint",
    "over_cases",
    "plan",
    "preprocess",
]
