"""Tests run side by side, one on each core; threads of torch within them would only collide.

With more OpenMP threads than free cores each parallel loop waits for the slowest, at ten times the
time. Set before torch is imported, and inherited by the processes that tests start.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
# On shared cores an example may take any time.
settings.register_profile(
    "shared cores", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared cores")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with patients, data/, and a model of them, run/. Read only: see `trained.copied`."""
    from trained import train_small

    root = tmp_path_factory.mktemp("trained")
    train_small(root)
    return root
