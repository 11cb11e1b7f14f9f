"""Digital patients: abdomens from birth to 90 years, posed, rendered and scanned."""

from kidseg.phantom.anatomy import ORGANS, Anatomy
from kidseg.phantom.patient import DigitalPatient, DrawnPatient, draw_patient, make_patient
from kidseg.phantom.people import draw_anatomy
from kidseg.phantom.posture import Pose, draw_pose
from kidseg.phantom.render import Rendering, render
from kidseg.phantom.writing import write_patients

__all__ = [
    "ORGANS",
    "Anatomy",
    "DigitalPatient",
    "DrawnPatient",
    "Pose",
    "Rendering",
    "draw_anatomy",
    "draw_patient",
    "draw_pose",
    "make_patient",
    "render",
    "write_patients",
]
