"""HU of every tissue by contrast phase: population mean and variation between patients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kidseg.config import Phase
from kidseg.phantom.anatomy import Look

__all__ = ["TISSUES_HU", "draw_broad_tissues", "draw_tissues"]

_PHASES: tuple[Phase, ...] = ("unenhanced", "early-arterial", "portal-venous", "excretory")

# (mean in each of _PHASES, standard deviation between patients). Children are scanned at 80 to 100
# kV, where iodine is brighter than at 120. Source: usual values of abdominal CT; renal cortex,
# medulla and aorta of the early arterial phase as in the set of the ISBI 2021 paper.
TISSUES_HU: Mapping[str, tuple[tuple[float, float, float, float], float]] = {
    "skin": ((38.0, 45.0, 60.0, 60.0), 12.0),
    "fat": ((-102.0, -102.0, -100.0, -100.0), 5.0),
    "visceral fat": ((-96.0, -95.0, -92.0, -92.0), 6.0),
    "muscle": ((52.0, 56.0, 64.0, 64.0), 5.0),
    "marrow": ((190.0, 195.0, 205.0, 205.0), 30.0),
    "cortical bone": ((640.0, 640.0, 650.0, 650.0), 80.0),
    "cartilage": ((88.0, 92.0, 98.0, 98.0), 8.0),
    "disc": ((78.0, 80.0, 86.0, 86.0), 6.0),
    "canal": ((24.0, 26.0, 28.0, 28.0), 5.0),
    "lung": ((-810.0, -800.0, -795.0, -795.0), 40.0),
    "heart": ((42.0, 210.0, 150.0, 110.0), 20.0),
    "liver": ((60.0, 72.0, 114.0, 104.0), 8.0),
    "hepatic vein": ((42.0, 56.0, 158.0, 118.0), 8.0),
    "portal vein": ((42.0, 92.0, 168.0, 122.0), 12.0),
    "gallbladder": ((8.0, 8.0, 9.0, 10.0), 5.0),
    "spleen": ((48.0, 108.0, 124.0, 104.0), 12.0),
    "pancreas": ((42.0, 92.0, 102.0, 84.0), 9.0),
    "stomach wall": ((42.0, 72.0, 88.0, 78.0), 8.0),
    "bowel wall": ((40.0, 82.0, 102.0, 86.0), 10.0),
    "bowel fluid": ((14.0, 16.0, 18.0, 18.0), 8.0),
    "adrenal": ((32.0, 82.0, 74.0, 58.0), 8.0),
    "aorta": ((42.0, 298.0, 158.0, 122.0), 28.0),
    "vena cava": ((42.0, 56.0, 148.0, 118.0), 8.0),
    "renal vein": ((42.0, 150.0, 165.0, 122.0), 20.0),
    "mesenteric vein": ((42.0, 82.0, 164.0, 118.0), 14.0),
    "renal cortex": ((34.0, 232.0, 194.0, 155.0), 44.0),
    "renal medulla": ((32.0, 76.0, 178.0, 152.0), 16.0),
    "urine": ((6.0, 8.0, 12.0, 420.0), 6.0),
    "tumour": ((36.0, 50.0, 68.0, 62.0), 16.0),
    "tumour rim": ((40.0, 84.0, 96.0, 84.0), 10.0),
    "necrosis": ((14.0, 15.0, 16.0, 16.0), 7.0),
    "haemorrhage": ((58.0, 60.0, 64.0, 62.0), 6.0),
    "cyst": ((6.0, 7.0, 8.0, 8.0), 5.0),
}


# Relative variation of the enhancement, common to a patient's tissues; minimum enhancement of an
# enhancing tissue; and the variation between patients of other tissues.
_BOLUS_LOG_SD = 0.12
_ENHANCING_HU = 30.0
_PLAIN_SD_HU = 8.0


# The broad cohort: enhancement at the adult's 100 to 120 kV relative to the child's 80 to 100 kV
# (iodine in HU per mg/ml: 41 at 80, 31 at 100, 25 at 120 kV, Bae, Radiology 256 (2010) 32-61), its
# variation, and timing between two phases. Kidneys are 80 to 220 HU with contrast.
_ADULT_UPTAKE = 0.74
_BROAD_LOG_SD = 0.24
_TIMING = 0.5


def draw_tissues(rng: np.random.Generator, phase: Phase) -> dict[str, float]:
    """Draw the HU of each tissue in one patient and one phase.

    All tissues share one random factor on the enhancement (dose, weight, timing). The deviation of
    a single tissue is smaller the less it enhances.
    """
    bolus = float(np.exp(_BOLUS_LOG_SD * np.clip(rng.normal(), -2.0, 2.0)))
    column = _PHASES.index(phase)
    return _drawn(rng, {name: means[column] for name, (means, _) in TISSUES_HU.items()}, bolus)


def draw_broad_tissues(
    rng: np.random.Generator, phase: Phase, *, adult: bool, look: Look
) -> dict[str, float]:
    """As `draw_tissues`, with the spread of the broad cohort: timing between phases, dose, fat.

    Args:
        rng: random generator.
        phase: the phase nearest to the scan's timing.
        adult: whether the tube voltage is an adult's.
        look: of the patient, for liver and marrow.
    """
    column = _PHASES.index(phase)
    other = int(np.clip(column + rng.choice([-1, 1]), 1, len(_PHASES) - 1))
    late = _TIMING * rng.random() if column > 0 else 0.0
    bolus = float(np.exp(_BROAD_LOG_SD * np.clip(rng.normal(), -2.0, 2.0)))
    bolus *= _ADULT_UPTAKE if adult else 1.0
    timed = {
        name: (1 - late) * means[column] + late * means[other]
        for name, (means, _) in TISSUES_HU.items()
    }
    hu = _drawn(rng, timed, bolus)
    hu["liver"] = max(hu["liver"] - look.liver_fat_hu, 0.0)
    hu["marrow"] *= look.marrow
    return hu


def _drawn(
    rng: np.random.Generator, phase_means: Mapping[str, float], bolus: float
) -> dict[str, float]:
    """Draw around the means of a phase, with a factor `bolus` on the enhancement."""
    drawn = {}
    for name, (means, sd) in TISSUES_HU.items():
        uptake = phase_means[name] - means[0]
        most = max(abs(mean - means[0]) for mean in means)
        part = abs(uptake) / most if most > _ENHANCING_HU else 1.0
        own = max(part * sd, min(sd, _PLAIN_SD_HU)) * np.clip(rng.normal(), -2.0, 2.0)
        drawn[name] = float(means[0] + uptake * bolus + own)
    return drawn
