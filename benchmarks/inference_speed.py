"""Speed and memory of the U-Net at inference: autocast compared with folded bfloat16 weights.

    OMP_NUM_THREADS=1 python benchmarks/inference_speed.py [-n 5] [--size 512] [--features 32]
        [--at-once 1 2 4 16] [--json]

The network of System A on slices of noise, on the CPU, with the allocator as in `kidseg segment`.
Each row is a separate process, so that its peak memory is separate. Times are CPU times, so that
other processes do not count; with one thread they equal the wall time.

"autocast" keeps float32 weights, channels last, under bfloat16 autocast; "folded" is
`kidseg.nets.folding.FoldedNet` in bfloat16; "planned" and "planned, folded" are the same for
nnU-Net's 2D network with the same number of stages (not channels last, which slows down instance
norms).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

KINDS = ("autocast", "folded", "planned", "planned, folded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=5, help="timed runs of each")
    parser.add_argument("--size", type=int, default=512, help="of the slices")
    parser.add_argument("--features", type=int, default=32, help="maps at the finest level")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:2])
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, at_once = options.one
        print(json.dumps(measure(kind, int(at_once), options)))
        return
    lines = []
    for at_once in options.at_once:
        for kind in options.kinds:
            command = [sys.executable, __file__, "--one", kind, str(at_once)]
            for name in ("size", "features", "n"):
                flag = f"--{name}" if len(name) > 1 else f"-{name}"
                command += [flag, str(getattr(options, name))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            lines.append(json.loads(done.stdout))
    print(json.dumps(lines, indent=1) if options.json else as_table(lines))


def measure(kind: str, at_once: int, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from kidseg import nets
    from kidseg.config import UNetConfig
    from kidseg.device import tune_allocator
    from kidseg.nets.folding import FoldedNet
    from kidseg.topology import Topology

    tune_allocator()
    config = UNetConfig(size=options.size, features=options.features)
    stages = config.halvings + 1
    topology = Topology(
        features=tuple(min(options.features << k, 512) for k in range(stages)),
        kernels=((3, 3),) * stages,
        strides=((1, 1), *((2, 2),) * (stages - 1)),
    )
    net = nets.build(topology, 1, 3) if "planned" in kind else nets.build(config, 1, 3)
    layout = torch.contiguous_format if "planned" in kind else torch.channels_last
    net = net.eval().to(memory_format=layout)
    autocast = "folded" not in kind
    if not autocast:
        net = FoldedNet(net, torch.bfloat16)
    image = torch.randn(at_once, 1, options.size, options.size).contiguous(memory_format=layout)
    seconds = []
    for _ in range(options.n + 1):
        start = time.process_time()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            net(image)[0].float()
        seconds.append(time.process_time() - start)
    return {
        "kind": kind,
        "at_once": at_once,
        "ms_per_slice": statistics.median(seconds[1:]) * 1000 / at_once,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def as_table(lines: list[dict[str, Any]]) -> str:
    text = ["| slices at once | network | ms a slice | peak MB |", "|---|---|---|---|"]
    text += [
        f"| {one['at_once']} | {one['kind']} | {one['ms_per_slice']:.0f} | {one['peak_mb']:.0f} |"
        for one in lines
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
