"""Tests run side by side, one on each core; threads of torch within them would only collide.

With more OpenMP threads than free cores each parallel loop waits for the slowest, at ten times the
time. Set before torch is imported, and inherited by the processes that tests start.
"""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with patients, data/, and a model of them, run/. Read only: see `trained.copied`."""
    from trained import train_small

    root = tmp_path_factory.mktemp("trained")
    train_small(root)
    return root
