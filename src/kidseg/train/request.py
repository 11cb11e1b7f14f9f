"""The request of a training: cases, what the method requires of them, and the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kidseg.cases import Dataset
from kidseg.cohort.subject import Material, not_ct
from kidseg.config import CohortConfig
from kidseg.errors import UsageError
from kidseg.plan import Plan
from kidseg.registry import BY_BODY
from kidseg.train.setup import ResolvedSetup, Setup

__all__ = ["Progress", "Request"]

Progress = Callable[[str, int, int, Mapping[str, Any]], None]
"""Called with (name of the task or stage, done, total, log line of the epoch; {} for a task).

Before the first epoch of a network that has learned before, 0 are done, and the line has no loss.
"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The requested cases and how to preprocess them.

    Attributes:
        setup: cases, seed of the split, number of reading processes.
        material: (plan) -> what the method requires of subjects.
        cohort: of the method's settings.
        plan: of the model to fine-tune; None: planned from the training cases.
        on_progress: called with the progress.
        reference: id of a case that must train; None: none.
        unlabelled: whether cases without labels are used.
        needs_body: whether the method finds the body in each scan.
    """

    setup: Setup
    material: Callable[[Plan], Material]
    cohort: CohortConfig
    plan: Plan | None
    on_progress: Progress
    reference: str | None = None
    unlabelled: bool = False
    needs_body: bool = False

    @classmethod
    def of(cls, setup: Setup, resolved: ResolvedSetup, progress: Progress | None) -> Request:
        """The request for a resolved setup."""
        pose = getattr(resolved.config, "pose", None)
        return cls(
            setup=setup,
            material=partial(resolved.method.material, resolved.config),
            cohort=resolved.config.cohort,
            plan=resolved.plan,
            on_progress=progress or (lambda *_: None),
            # The reference of a model to fine-tune may be a case of another data set.
            reference=None if pose is None or resolved.start is not None else pose.reference,
            unlabelled=pose is not None and pose.unlabelled and setup.cases is None,
            needs_body=resolved.method.name in BY_BODY,
        )

    def check_channels(self, data: Dataset) -> None:
        """Check that the data set is one channel of CT if the method needs the body.

        Raises:
            InputError: "not-ct".
        """
        if self.needs_body and (len(data.channels) > 1 or not data.holds_ct(0)):
            raise not_ct(data.channels, data.root)

    def check_reference(self, training: Sequence[str], path: Path) -> None:
        """Check that the reference is a training case.

        Raises:
            UsageError: "unknown-case".
        """
        if self.reference is not None and self.reference not in training:
            raise UsageError(
                f"the reference '{self.reference}' is not among the training cases",
                path=path,
                code="unknown-case",
                next_step="Name a training case as the reference, or leave it out.",
            )
