"""What computes a run: versions of kidseg and torch, and the code of kidseg itself.

Resumed by the same software on the same device, a run ends with the same bits. Resumed by another
it may end with others, which is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kidseg.errors import Finding, ModelError
from kidseg.io.atomic import write_json
from kidseg.provenance import versions
from kidseg.records import AFRESH, parsed, read_file

if TYPE_CHECKING:
    from kidseg.train.record import RunRecord

__all__ = ["RESUMED", "check_software", "note_software", "software"]

RESUMED = "resumed.json"
"""{"with": [...]}: the software that trained a part of a run and did not start it."""

_PACKAGE = Path(__file__).parents[1]


@cache
def software() -> Mapping[str, str]:
    """Versions of kidseg, torch and numpy, and "code", the start of a digest of kidseg's source."""
    known = versions()
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(file.read_bytes())
    found = {name: known[name] or "unknown" for name in ("kidseg", "torch", "numpy")}
    return {**found, "code": digest.hexdigest()[:12]}


def note_software(out: Path, record: RunRecord) -> None:
    """Note in `RESUMED` that this software trains a part of a run, if it has not started it.

    Args:
        out: folder of the run.
        record: of the run; that of an earlier version of kidseg states its version only.

    Raises:
        ModelError: as `check_software`.
    """
    begun = _begun(record)
    now = {name: value for name, value in software().items() if name in begun}
    others = _noted(out / RESUMED)
    if now not in (begun, *others):
        write_json(out / RESUMED, {"with": [*others, now]}, overwrite=True)


def check_software(out: Path, record: RunRecord) -> tuple[Finding, ...]:
    """A finding if a part of a resumed run was trained by other software than its start.

    Args:
        out: folder of the run.
        record: of the run.

    Raises:
        ModelError: "damaged-record": `RESUMED` is not valid.
    """
    begun, others = _begun(record), _noted(out / RESUMED)
    if not others:
        return ()
    names = [name for name in begun if any(other.get(name) != begun[name] for other in others)]
    said = [", ".join(f"{name} {one.get(name)}" for name in names) for one in (begun, *others)]
    finding = Finding(
        code="other-software",
        path=str(out / RESUMED),
        cause=f"the run was started by {said[0]} and continued by {'; '.join(said[1:])}: it need"
        " not end with the same bits as a run that one of them trained alone",
        next_step="If that matters, train from the start with --overwrite.",
    )
    return (finding,)


def _begun(record: RunRecord) -> dict[str, str]:
    """The software that started a run."""
    return dict(record.software or {"kidseg": record.kidseg})


def _noted(file: Path) -> list[dict[str, str]]:
    """The content of `RESUMED`; [] if there is none."""
    if not file.exists():
        return []
    try:
        noted = parsed(read_file(file, code="damaged-record", next_step=AFRESH))["with"]
        return [{str(name): str(value) for name, value in one.items()} for one in noted]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "it does not say what continued the run",
            path=file,
            code="damaged-record",
            next_step=AFRESH,
        ) from error
