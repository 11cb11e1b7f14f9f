"""Make one digital patient from (seed, index), with its ground truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from kidseg.config import PhantomConfig, Phase
from kidseg.geometry import Grid, Volume
from kidseg.phantom.acquisition import acquire
from kidseg.phantom.anatomy import Anatomy
from kidseg.phantom.apposition import with_apposed_organs
from kidseg.phantom.displacement import displaced
from kidseg.phantom.ground_truth import body_truth, counted_truth, response_truth
from kidseg.phantom.growth import CHILD_AGES_YEARS
from kidseg.phantom.implants import with_implants
from kidseg.phantom.neighbours import with_neighbours
from kidseg.phantom.pelvic_organs import draw_pelvis
from kidseg.phantom.people import after_chemotherapy, draw_anatomy
from kidseg.phantom.posture import ARMS_DOWN_BROAD_SHARE, ARMS_DOWN_SHARE, Pose, draw_pose
from kidseg.phantom.render import Rendering, render
from kidseg.phantom.scanner import Scanner, draw_scanner
from kidseg.phantom.trunk import arm_centres
from kidseg.phantom.tumour import distance_mm, pushed

__all__ = [
    "DigitalPatient",
    "DrawnPatient",
    "draw_age",
    "draw_patient",
    "draw_phase",
    "make_patient",
]

# Ages of children with surgery for a renal tumour: half of them around two years, some at any age,
# so that every age band from birth to 16 years occurs. Source: the ISBI 2021 cohort (80 children
# from a few days to 16 years, 2 years on average); peak age of Wilms tumour 2 to 4 years.
_AGE_MEDIAN_YEARS = 2.0
_AGE_LOG_SD = 0.9
_AGE_ANY_SHARE = 0.25
# The broad cohort. Source: KiTS19, median age 60 (middle half 51 to 68) years at the operation.
_CHILDREN_SHARE = 1 / 3
_ADULT_MEAN_YEARS, _ADULT_SD_YEARS = 60.0, 13.0
_ADULT_ANY_SHARE = 1 / 3
# "mixed" phases: surgical planning is early arterial, as in that cohort; the others occur.
_PHASE_SHARES: dict[Phase, float] = {
    "early-arterial": 0.72,
    "portal-venous": 0.20,
    "excretory": 0.04,
    "unenhanced": 0.04,
}
# The broad cohort: KiTS19 and AMOS are late arterial to portal venous.
_BROAD_PHASE_SHARES: dict[Phase, float] = {
    "early-arterial": 0.38,
    "portal-venous": 0.40,
    "excretory": 0.12,
    "unenhanced": 0.10,
}
_WHOLE_ABDOMEN_SHARE = 0.65
# Scans beyond the abdomen: abdomen and pelvis, chest and abdomen, or all; usual protocols.
_TRUNK_RANGES = ("pelvis", "chest", "trunk")
_TRUNK_SHARES = (0.5, 0.15, 0.35)
_MARGIN_MM = 6.0
# The scout, which determines the scan range: step, and half-axes around a kidney as fractions of
# its width (twice) and length, large enough for its tilt.
_SCOUT_MM = 5.0
_SCOUT_AXES = (0.75, 0.75, 0.53)
# Random streams of one timepoint: the person (later: the treatment), pose, scanner, tissue, noise.
_STREAMS = 5
# If the arms are next to the body, the field of view includes them or cuts them off.
_ARMS_IN_FIELD_SHARE = 0.5


_Form = TypeVar("_Form", bound=str)


@dataclass(frozen=True, kw_only=True, eq=False)
class DigitalPatient:
    """A scan with its ground truth; all volumes are on one grid, in canonical order.

    Attributes:
        scan: (1, slices, rows, columns) int16 HU.
        labels: uint8, 0 background, 1 kidney, 2 tumour.
        organs: uint8, numbers of `kidseg.phantom.ORGANS`.
        truth: plain data: age_years, sex, phase, body_scale, effective_diameter_mm, pose, anatomy,
            scanner, kidneys, tumours, tumour_side, kidney_ml, tumour_ml, organs_ml; of two
            timepoints also timepoint ("before", "after") and response, by tumour.
    """

    scan: Volume
    labels: Volume
    organs: Volume
    truth: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnPatient:
    """A person in a scanner, before anything is rendered.

    Attributes:
        age_years: of the person.
        phase: contrast phase.
        earlier: the anatomy at the first timepoint.
        anatomy: the anatomy now; `earlier` at the first timepoint.
        pose: how the person lies.
        scanner: acquisition parameters.
        tissue, noise: seeds of tissue HU and texture, and of the acquisition.
        broad: whether tissue has the spread of the broad cohort.
    """

    age_years: float
    phase: Phase
    earlier: Anatomy
    anatomy: Anatomy
    pose: Pose
    scanner: Scanner
    tissue: np.random.SeedSequence
    noise: np.random.SeedSequence
    broad: bool

    def rendered(self, grid: Grid) -> Rendering:
        """The person on any axial grid in scanner mm, such as `scanner.grid()` or a finer one."""
        rng = np.random.default_rng(self.tissue)
        return render(self.anatomy, self.pose, grid, self.phase, rng, broad=self.broad)


def draw_patient(
    config: PhantomConfig,
    *,
    seed: int,
    index: int,
    timepoint: int = 0,
    arms: bool | None = None,
    table: bool = True,
) -> DrawnPatient:
    """Draw the person, the pose and the scanner of digital patient `index`; see `make_patient`."""
    streams = np.random.SeedSequence([seed, index]).spawn(_STREAMS * 2)
    who, treatment = (np.random.default_rng(streams[k]) for k in (0, _STREAMS))
    lying, machine, tissue, noise = streams[1 + timepoint * _STREAMS : (1 + timepoint) * _STREAMS]
    age = draw_age(who, config.ages_years)
    phase = draw_phase(who, config)
    ill = bool(who.random() < config.tumour_share)
    broad = config.is_broad
    earlier = draw_anatomy(
        who,
        age,
        tumour=_chosen(config.tumours) if ill else "none",
        kidneys=_chosen(config.kidneys),
        broad=broad,
        first_of_two=config.timepoints == 2,
    )
    earlier = _varied(earlier, config)
    anatomy = after_chemotherapy(treatment, earlier) if timepoint else earlier
    pose = draw_pose(
        np.random.default_rng(lying),
        max_angle_deg=config.max_angle_deg,
        segment_mm=anatomy.body.segment_mm if broad else 20.0,
        arms_share=ARMS_DOWN_BROAD_SHARE if broad else ARMS_DOWN_SHARE,
    )
    scanner = _draw_scanner(np.random.default_rng(machine), config, anatomy, pose)
    return DrawnPatient(
        age_years=age,
        phase=phase,
        earlier=earlier,
        anatomy=anatomy,
        pose=pose if arms is None else replace(pose, arms=arms),
        scanner=scanner if table else replace(scanner, table=None),
        tissue=tissue,
        noise=noise,
        broad=broad,
    )


def make_patient(
    config: PhantomConfig,
    *,
    seed: int,
    index: int,
    timepoint: int = 0,
    arms: bool | None = None,
    table: bool = True,
) -> DigitalPatient:
    """Make digital patient `index` of `seed`. It does not depend on other patients.

    Anatomy, pose, scanner and noise are drawn independently, so the person is the same for any
    image size and any number of slices.

    Args:
        config: of the patients.
        seed: of the patients.
        index: of this patient.
        timepoint: 0; or 1, after chemotherapy, if the configuration has two. The person is the
            same, who lies differently.
        arms: whether the arms are next to the body; by default at random. The field of view does
            not change.
        table: False removes the table, if one was drawn.
    """
    drawn = draw_patient(
        config, seed=seed, index=index, timepoint=timepoint, arms=arms, table=table
    )
    anatomy, scanner, grid = drawn.anatomy, drawn.scanner, drawn.scanner.grid()
    rendering = drawn.rendered(grid)
    hu = acquire(rendering.hu, grid, scanner, np.random.default_rng(drawn.noise))

    def volume(values: np.ndarray) -> Volume:
        return Volume(torch.from_numpy(values)[None], grid)

    truth = {
        "age_years": drawn.age_years,
        "sex": anatomy.sex,
        "phase": drawn.phase,
        **(response_truth(drawn.earlier, anatomy) if config.timepoints == 2 else {}),
        **body_truth(anatomy, drawn.pose),
        "anatomy": anatomy.as_dict(),
        "scanner": scanner.as_dict(),
        **counted_truth(rendering.labels, rendering.organs, grid),
    }
    return DigitalPatient(
        scan=volume(hu),
        labels=volume(rendering.labels),
        organs=volume(rendering.organs),
        truth=truth,
    )


def draw_age(rng: np.random.Generator, ages_years: tuple[float, float]) -> float:
    """Draw an age in years within the range.

    Children: log-normal around two years, a quarter uniform. If the range reaches beyond 16 years,
    a third of the patients are children, where the range has some; adults are normal around 60
    years, a third uniform.
    """
    low, high = ages_years
    anywhere, share = rng.random(), rng.random()
    grown = CHILD_AGES_YEARS[1]
    if high > grown:
        if low >= grown or rng.random() >= _CHILDREN_SHARE:
            return _draw_adult_age(anywhere, share, max(low, np.nextafter(grown, 90.0)), high)
        high = grown
    logs = NormalDist(float(np.log(_AGE_MEDIAN_YEARS)), _AGE_LOG_SD)
    before, after = (logs.cdf(float(np.log(max(age, 1e-3)))) for age in (low, high))
    if anywhere < _AGE_ANY_SHARE or after - before < 1e-6:
        return float(low + share * (high - low))
    age = float(np.exp(logs.inv_cdf(np.clip(before + share * (after - before), 1e-9, 1 - 1e-9))))
    return float(np.clip(age, low, high))


def _draw_adult_age(anywhere: float, share: float, low: float, high: float) -> float:
    ages = NormalDist(_ADULT_MEAN_YEARS, _ADULT_SD_YEARS)
    before, after = ages.cdf(low), ages.cdf(high)
    if anywhere < _ADULT_ANY_SHARE or after - before < 1e-6:
        return float(low + share * (high - low))
    return float(np.clip(ages.inv_cdf(before + share * (after - before)), low, high))


def draw_phase(rng: np.random.Generator, config: PhantomConfig) -> Phase:
    """The configured phase; for "mixed" a random one."""
    shares = _BROAD_PHASE_SHARES if config.is_broad else _PHASE_SHARES
    drawn = rng.choice(len(shares), p=list(shares.values()))
    return list(shares)[int(drawn)] if config.phase == "mixed" else config.phase


def _varied(anatomy: Anatomy, config: PhantomConfig) -> Anatomy:
    """With what the shares give this person, each drawn apart: no share changes another's draws."""
    for stream, share, change in (
        (5, config.displaced_share, displaced),
        (4, config.trunk_share, _with_pelvis),
        (6, config.implant_share, with_implants),
        (8, config.neighbour_share, with_neighbours),
        (10, config.apposed_share, with_apposed_organs),
    ):
        rng = np.random.default_rng([anatomy.detail_seed, stream])
        if rng.random() < share:
            anatomy = change(rng, anatomy)
    return anatomy


def _with_pelvis(rng: np.random.Generator, anatomy: Anatomy) -> Anatomy:
    return replace(anatomy, pelvis=draw_pelvis(rng, anatomy))


def _chosen(form: _Form | Literal["mixed"]) -> _Form | None:
    """A form that is configured; None for "mixed"."""
    return None if form == "mixed" else form


def _draw_scanner(
    rng: np.random.Generator, config: PhantomConfig, anatomy: Anatomy, pose: Pose
) -> Scanner:
    """Draw the field of view for the posed body; the range is the abdomen or only the kidneys."""
    scanner_from_anatomy = pose.scanner_from_anatomy().numpy()
    needed = _kidneys_mm(anatomy, scanner_from_anatomy)
    modelled = _along_scanner(scanner_from_anatomy, anatomy.modelled_mm)
    if anatomy.pelvis is not None:
        wished = _draw_trunk(rng, anatomy, scanner_from_anatomy)
    elif rng.random() < _WHOLE_ABDOMEN_SHARE:
        crest, dome = _along_scanner(scanner_from_anatomy, (anatomy.crest_mm, anatomy.dome_mm))
        below, above = rng.uniform(0.0, 0.03, size=2) * anatomy.height_mm
        wished = crest - below, dome + above - 0.02 * anatomy.height_mm
    else:
        below, above = rng.uniform(5.0, 40.0, size=2)
        wished = needed[0] - below, needed[1] + above
    low = min(max(wished[0], modelled[0]), needed[0])
    high = max(min(wished[1], modelled[1]), needed[1])
    centre = scanner_from_anatomy @ [0.0, 0.0, 0.0, 1.0]
    arms = pose.arms and rng.random() < _ARMS_IN_FIELD_SHARE
    return draw_scanner(
        rng,
        config,
        width_mm=_width_mm(anatomy, pose, arms=arms),
        diameter_mm=anatomy.effective_diameter_mm,
        centre_mm=(float(centre[0]), float(centre[1])),
        range_mm=(low, high),
        needed_mm=needed,
    )


def _draw_trunk(
    rng: np.random.Generator, anatomy: Anatomy, scanner_from_anatomy: np.ndarray
) -> tuple[float, float]:
    """(low, high) z in the scanner of a scan beyond the abdomen."""
    segment = anatomy.body.segment_mm
    shown = str(rng.choice(_TRUNK_RANGES, p=_TRUNK_SHARES))
    low, high = anatomy.modelled_mm
    ends = [
        anatomy.crest_mm if shown == "chest" else low + rng.uniform(0.0, 1.2) * segment,
        anatomy.dome_mm + 0.5 * segment
        if shown == "pelvis"
        else high - rng.uniform(0, 1) * segment,
    ]
    return _along_scanner(scanner_from_anatomy, (ends[0], ends[1]))


def _kidneys_mm(anatomy: Anatomy, scanner_from_anatomy: np.ndarray) -> tuple[float, float]:
    """(low, high) z in the scanner of tumours and of kidneys after displacement by tumours.

    Without kidneys, where they would be: the first three lumbar vertebrae.
    """
    if not anatomy.kidneys:
        reach = 1.5 * anatomy.body.segment_mm
        return _along_scanner(scanner_from_anatomy, (-reach, reach))
    reach = 0.8 * anatomy.lateral_mm
    low, high = anatomy.modelled_mm
    axes = [np.arange(a, b, _SCOUT_MM) for a, b in ((-reach, reach), (-reach, reach), (low, high))]
    place = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"))).float()
    found = torch.zeros(place.shape[1:], dtype=torch.bool)
    before = place
    for tumour in anatomy.tumours:
        found |= distance_mm(tumour, anatomy.body, place) < 0
        before = before + pushed(tumour, anatomy.body, place) - place
    for kidney in anatomy.kidneys:
        axes_mm = torch.tensor([kidney.width_mm, kidney.width_mm, kidney.length_mm])
        half = axes_mm * torch.tensor(_SCOUT_AXES)
        off = before - torch.tensor(kidney.centre_mm)[:, None, None, None]
        found |= (off / half[:, None, None, None]).square().sum(0) < 1
    points = place[:, found].numpy()
    z = scanner_from_anatomy[2, :3] @ points + scanner_from_anatomy[2, 3]
    return float(z.min()) - _MARGIN_MM, float(z.max()) + _MARGIN_MM


def _width_mm(anatomy: Anatomy, pose: Pose, *, arms: bool) -> float:
    """Lateral extent of the rotated trunk's ellipse, or from arm to arm."""
    angle = np.deg2rad(pose.angle_deg)
    if arms:
        x, _, radius = arm_centres(anatomy.body)
        return float(2 * (x * abs(np.cos(angle)) + radius))
    return float(np.hypot(anatomy.lateral_mm * np.cos(angle), anatomy.ap_mm * np.sin(angle)))


def _along_scanner(
    scanner_from_anatomy: np.ndarray, range_mm: tuple[float, float]
) -> tuple[float, float]:
    points = np.array([[0.0, 0.0, z, 1.0] for z in range_mm])
    z = (points @ scanner_from_anatomy.T)[:, 2]
    return float(z.min()), float(z.max())
