"""axe-core, which finds faults of accessibility: `python tests/axe.py` fetches it by npm."""

from __future__ import annotations

import sys
from pathlib import Path

from kidseg.report.vendor import NpmFile, fetch

FOLDER = Path(__file__).parent / "vendored"

AXE = NpmFile(
    package="axe-core",
    version="4.14.1",
    integrity="FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    member="package/axe.min.js",
    sha256="29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c",
    licence="MPL-2.0",
)

if __name__ == "__main__":
    try:
        sys.stdout.write(f"{fetch(AXE, FOLDER)}\n")
    except RuntimeError as failed:
        sys.exit(f"{failed}. Without it the tests of accessibility are skipped.")
