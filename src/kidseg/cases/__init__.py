"""Data sets in their own layouts: nnU-Net v2, KiTS19/21/23, Medical Decathlon, DICOM."""

from kidseg.cases.case import Case, Dataset, Layout, Side, Survey
from kidseg.cases.dataset import case_paths, open_dataset, survey_dataset
from kidseg.cases.naming import DATASET_JSON
from kidseg.cases.nnunet import write_dataset_json
from kidseg.cases.persons import PATIENTS_CSV, write_patients_csv
from kidseg.cases.relabel import (
    LearnedLabels,
    consecutive,
    count_cyst,
    learned_labels,
    relabelled,
    without_cyst,
)

__all__ = [
    "DATASET_JSON",
    "PATIENTS_CSV",
    "Case",
    "Dataset",
    "Layout",
    "LearnedLabels",
    "Side",
    "Survey",
    "case_paths",
    "consecutive",
    "count_cyst",
    "learned_labels",
    "open_dataset",
    "relabelled",
    "survey_dataset",
    "without_cyst",
    "write_dataset_json",
    "write_patients_csv",
]
