"""Time and peak memory for making a digital patient.

    python benchmarks/phantom_speed.py [--size 512] [--slices 100] [-k 5] [--json]

Each patient is made in a new process, as by `kidseg phantom`: the first time includes filling the
caches, and the peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

_KEYS = ("cold_s", "warm_s", "warm_cpu_s", "peak_gb")


def one(size: int, slices: int, index: int) -> None:
    """Make a patient twice, the second time with warm caches; print the figures as JSON."""
    start = time.perf_counter()
    from kidseg.config import PhantomConfig
    from kidseg.phantom import make_patient

    imported = time.perf_counter()
    thin = PhantomConfig(size=size, max_slices=slices, slice_mm=(0.5, 1.0))
    patient = make_patient(thin, seed=0, index=index)
    cold = time.perf_counter()
    shape = patient.scan.grid.shape
    busy = time.process_time()
    make_patient(thin, seed=0, index=index)
    warm = time.perf_counter()
    print(
        json.dumps(
            {
                "shape": shape,
                "age_years": patient.truth["age_years"],
                "import_s": imported - start,
                "cold_s": cold - imported,
                "warm_s": warm - cold,
                "warm_cpu_s": time.process_time() - busy,
                "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
        )
    )


def main() -> None:
    """Several patients, one process each; medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("-k", type=int, default=5, help="patients")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        one(options.size, options.slices, options.one)
        return
    runs = []
    for index in range(options.k):
        command = [sys.executable, __file__, "--size", str(options.size)]
        command += ["--slices", str(options.slices), "--one", str(index)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
    if options.json:
        print(json.dumps(runs, indent=2))
        return
    print("| shape | age | first (s) | warm (s) | warm, CPU (s) | peak (GB) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for run in runs:
        shape = " x ".join(map(str, run["shape"]))
        print(
            f"| {shape} | {run['age_years']:.1f} | {run['cold_s']:.1f} | {run['warm_s']:.1f} "
            f"| {run['warm_cpu_s']:.1f} | {run['peak_gb']:.2f} |"
        )
    medians = [statistics.median(r[key] for r in runs) for key in _KEYS]
    print("| median | | {:.1f} | {:.1f} | {:.1f} | {:.2f} |".format(*medians))


if __name__ == "__main__":
    main()
