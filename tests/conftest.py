"""Tests run side by side, one on each core; threads of torch within them would only collide.

With more OpenMP threads than free cores each parallel loop waits for the slowest, at ten times the
time. Set before torch is imported, and inherited by the processes that tests start.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
