"""Sizes of people and their organs, from birth to 90 years.

Every formula gives the mean; `vary` draws the value of one person.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "ADULT_KIDNEY_LENGTH_SD_MM",
    "AGE_RANGE_YEARS",
    "CHILD_AGES_YEARS",
    "KIDNEY_LENGTH_SD_MM",
    "REFERENCE_AGE_YEARS",
    "aorta_diameter_mm",
    "body_aspect",
    "effective_diameter_mm",
    "height_mm",
    "kidney_length_mm",
    "liver_span_mm",
    "lumbar_segment_mm",
    "spleen_length_mm",
    "vary",
    "vertebra_width_mm",
]

AGE_RANGE_YEARS = (0.0, 90.0)
CHILD_AGES_YEARS = (0.0, 16.0)
"""Ages of children; older patients are drawn as adults."""
REFERENCE_AGE_YEARS = 2.0
"""A body of this age has scale 1."""

KIDNEY_LENGTH_SD_MM = (4.5, 6.0)
"""Standard deviation about the mean length: in the newborn, at 16 years.

Source: Rosenbaum et al., AJR 1984 (0.3 to 0.8 cm, growing with age).
"""

ADULT_KIDNEY_LENGTH_SD_MM = 10.0
"""Standard deviation about the mean length in adults.

Source: label volumes of 95 healthy kidneys of KiTS19 (5-95 percentile 103-141 mm).
"""

_AGES = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 16.0, 20.0, 60.0, 90.0)


def kidney_length_mm(age_years: float) -> float:
    """Mean length of a kidney: 4.98 + 0.155 x months cm in the first year, 6.79 + 0.22 x years on.

    Source: Rosenbaum, Korngold and Teele, Sonographic assessment of renal length in normal
    children, AJR 142 (1984) 467-469. Adults: 12 cm at 60 years, the median along the longest axis
    of 95 healthy kidneys of KiTS19 (age about 60); 1.4 cm shorter at 90, as in Emamian et al., AJR
    160 (1993) 83-86.
    """
    if age_years < 1.0:
        return 49.8 + 1.55 * 12.0 * age_years
    if age_years <= CHILD_AGES_YEARS[1]:
        return 67.9 + 2.2 * age_years
    return float(np.interp(age_years, (16.0, 22.0, 60.0, 90.0), (103.1, 115.0, 120.0, 106.0)))


def effective_diameter_mm(age_years: float) -> float:
    """Mean diameter of the circle with the area of the abdominal cross-section.

    Source: ICRU Report 74 (2005), as tabulated by AAPM Report 204 (2011), smoothed: about 11 cm at
    birth, 17 at 5, 20 at 10 and 25 at 15 years, with fast growth in the first year. Adults: 28
    cm, the mean of AAPM Report 204, table 1D.
    """
    values = (112.0, 140.0, 149.0, 170.0, 200.0, 250.0, 256.0, 266.0, 284.0, 272.0)
    return _interpolated(age_years, values)


def body_aspect(age_years: float) -> float:
    """Mean ratio of lateral to anteroposterior diameter: infants are rounder than adolescents.

    Source: lateral and AP dimensions of AAPM Report 204 (2011), tables 1A-1D.
    """
    return _interpolated(age_years, (1.20, 1.24, 1.27, 1.33, 1.39, 1.43, 1.43, 1.43, 1.40, 1.38))


def height_mm(age_years: float) -> float:
    """Mean body length or height.

    Source: WHO child growth standards 2006 and reference 2007; adults NCD-RisC, eLife 5 (2016),
    shrinking by 3 cm from 60 to 90 years.
    """
    values = (500.0, 750.0, 870.0, 1095.0, 1380.0, 1650.0, 1680.0, 1705.0, 1695.0, 1645.0)
    return _interpolated(age_years, values)


def lumbar_segment_mm(age_years: float) -> float:
    """Mean height of a lumbar vertebra with its disc.

    Source: fraction of the height per segment, from 0.0235 in newborns, whose trunk is long, to
    0.0207 (Taylor, Growth of human intervertebral discs and vertebral bodies, J Anat 120 (1975)
    49-68).
    """
    shares = (0.0235, 0.0225, 0.0220, 0.0213, 0.0208, 0.0207, 0.0207, 0.0208, 0.0210, 0.0206)
    share = _interpolated(age_years, shares)
    return share * height_mm(age_years)


def vertebra_width_mm(age_years: float) -> float:
    """Mean width of a lumbar vertebral body.

    Source: Taylor, J Anat 120 (1975) 49-68; adults Zhou et al., Eur Spine J 9 (2000) 242-248 (L3,
    CT: 44 mm in women, 50 mm in men), slowly wider with age.
    """
    return _interpolated(age_years, (14.5, 20.5, 23.5, 29.0, 35.0, 41.0, 42.0, 45.0, 48.0, 49.5))


def aorta_diameter_mm(age_years: float) -> float:
    """Mean diameter of the abdominal aorta at the kidneys.

    Source: Hegde et al., Normal aortic dimensions in children on CT, Pediatr Cardiol 35 (2014)
    (about 6 mm in infants to 14 mm in adolescents); adults Rogers et al., Am J Cardiol 111 (2013)
    (CT of the Framingham cohort: 17 mm in women, 19 mm in men, wider with age).
    """
    return _interpolated(age_years, (5.8, 7.2, 7.9, 9.4, 11.6, 14.2, 14.6, 16.0, 19.5, 22.0))


def liver_span_mm(age_years: float) -> float:
    """Mean height of the right lobe.

    Source: Konus et al., Normal liver, spleen and kidney dimensions, AJR 171 (1998) 1693-1698;
    adults Kratzer et al., J Ultrasound Med 22 (2003) 1155-1161.
    """
    values = (62.0, 80.0, 87.0, 103.0, 122.0, 138.0, 140.0, 150.0, 155.0, 142.0)
    return _interpolated(age_years, values)


def spleen_length_mm(age_years: float) -> float:
    """Mean length of the spleen.

    Source: Konus et al., AJR 171 (1998) 1693-1698; adults 100 mm (SD 21), n = 212 on CT, Caglar et
    al., Folia Morphol 73 (2014). Prassopoulos et al., Eur Radiol 7 (1997) 246-248, n = 140, give a
    volume of 215 ml (107-315) that does not vary with age.
    """
    values = (52.0, 63.0, 68.0, 82.0, 98.0, 110.0, 112.0, 112.0, 105.0, 95.0)
    return _interpolated(age_years, values)


def vary(rng: np.random.Generator, mean: float, relative_sd: float) -> float:
    """Draw the value of one person: log-normal about `mean`, clipped at 2.5 standard deviations."""
    z = float(np.clip(rng.normal(), -2.5, 2.5))
    return float(mean * np.exp(relative_sd * z))


def _interpolated(age_years: float, values: tuple[float, ...]) -> float:
    return float(np.interp(age_years, _AGES, values))
