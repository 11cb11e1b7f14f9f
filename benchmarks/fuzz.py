"""Read mutated files of every kind that kidseg reads: only kidseg's own errors may come out.

    python benchmarks/fuzz.py [--n 1000] [--seed 0] [--jobs 2] [--targets nifti1,nrrd]
                              [--seconds 3600] [--out FOLDER] [--list]

Each input derives from (seed, target, number) alone. A foreign exception, a warning of numpy, a
crash of the process and a reading of over 20 seconds are faults: each kind is saved once with its
input and traceback in --out, and the exit code is 1. Memory is limited to 3 GiB more than at the
start of each process. The table shows, for each target: inputs, accepted, refused (by code with
--codes), faults, the growth of the memory in MiB, the slowest reading and inputs per second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzz_targets import TARGETS, Target
from kidseg.errors import KidsegError

SLOW_S = 20
MEMORY_BYTES = 3 * 2**30
CHUNK = 4000


@dataclass
class Result:
    """What came out of a number of inputs."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    slowest_s: float = 0.0
    memory_mib: float = 0.0
    seconds: float = 0.0

    @property
    def count(self) -> int:
        return self.accepted + self.refused.total() + self.faults.total()

    def add(self, other: Result) -> None:
        self.accepted += other.accepted
        self.refused += other.refused
        self.faults += other.faults
        self.examples = other.examples | self.examples
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.memory_mib = max(self.memory_mib, other.memory_mib)
        self.seconds += other.seconds


class Slow(BaseException):
    """A reading takes too long."""


class Corpus:
    """The valid input of a target, and a folder where mutated ones are written."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        target.build(folder)
        self.files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.names = [name for name in self.files if target.mutable(name)]

    def mutated(self, seed: int, number: int) -> tuple[str, bytes, random.Random]:
        """The file that is changed, its content, and the generator for how it is read."""
        target = self.target
        generator = random.Random(f"{seed} {target.name} {number}")
        name = generator.choice(self.names)
        content = self.files[name]
        if target.unpack is None or target.pack is None or generator.random() < 0.1:
            return name, target.mutate(content, generator, focus=target.focus), generator
        changed = target.mutate(target.unpack(content), generator, focus=target.focus)
        return name, target.pack(changed, content), generator

    def restore(self) -> None:
        """Rewrite what a reading has changed; remove what it has added."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = str(path.relative_to(self.folder))
            if not path.is_dir() and name not in self.files:
                path.unlink()
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


def read_once(corpus: Corpus, seed: int, number: int, result: Result) -> None:
    """Read one mutated input and count what happens."""
    name, content, generator = corpus.mutated(seed, number)
    path = corpus.folder / name
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        with limited_time():
            corpus.target.read(corpus.folder, generator)
        result.accepted += 1
    except KidsegError as error:
        result.refused[f"{type(error).__name__}: {error.code or 'no code'}"] += 1
    except (Exception, Slow) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}"
        result.faults[kind] += 1
        result.examples.setdefault(kind, f"number {number}\n{traceback.format_exc()}")
    result.slowest_s = max(result.slowest_s, time.perf_counter() - start)
    if corpus.target.cost >= 100:  # it writes
        corpus.restore()
    else:
        path.write_bytes(corpus.files[name])


@contextmanager
def limited_time() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Slow(f"over {SLOW_S} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SLOW_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def read_many(target: Target, seed: int, numbers: range, until: float = float("inf")) -> Result:
    """Read these inputs in this process."""
    result = Result()
    start, before = time.perf_counter(), peak_mib()
    with in_memory(), tempfile.TemporaryDirectory() as folder, strict_warnings():
        corpus = Corpus(target, Path(folder))
        for number in numbers:
            if time.time() > until:
                break
            read_once(corpus, seed, number, result)
    result.memory_mib = peak_mib() - before
    result.seconds = time.perf_counter() - start
    return result


@contextmanager
def in_memory() -> Iterator[None]:
    """Use a temporary folder in memory where there is one: disks take ten times longer."""
    previous = tempfile.tempdir
    if os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"
    try:
        yield
    finally:
        tempfile.tempdir = previous


@contextmanager
def strict_warnings() -> Iterator[None]:
    """Turn warnings of numpy, which would litter the console, into faults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)
        yield


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- processes ---------------------------------------------------------------------------------


def read_in_child(target: Target, seed: int, numbers: range, until: float) -> Result:
    """Read these inputs in a process, which may crash: then go on after the input that did it."""
    result = Result()
    while len(numbers):
        progress = multiprocessing.Value("q", numbers.start)
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(target, seed, numbers, until, theirs, progress)
        )
        child.start()
        theirs.close()
        try:
            result.add(ours.recv())
            child.join()
            return result
        except EOFError:
            child.join()
            at = int(progress.value)  # type: ignore[attr-defined]
            kind = f"crash of the process, exit code {child.exitcode}"
            result.faults[kind] += 1
            result.examples.setdefault(kind, f"number {at}\n")
            numbers = range(at + 1, numbers.stop)
    return result


def _child(
    target: Target, seed: int, numbers: range, until: float, pipe: Connection, progress: Any
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, hard))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write to it

    def counted() -> Iterator[int]:
        for number in numbers:
            progress.value = number
            yield number

    pipe.send(read_many(target, seed, counted(), until))  # type: ignore[arg-type]
    pipe.close()


def fuzz(
    names: Sequence[str], n: int, seed: int, *, jobs: int = 1, seconds: float = float("inf")
) -> dict[str, Result]:
    """Read `n` inputs of each target (fewer of those that are slow), in `jobs` processes."""
    results = {name: Result() for name in names}
    until = time.time() + seconds
    tasks = [
        (TARGETS[name], range(at, min(at + CHUNK, end)))
        for name in names
        for end in [max(1, n // TARGETS[name].cost)]
        for at in range(0, end, CHUNK)
    ]
    random.Random(seed).shuffle(tasks)  # so that a limit of time cuts all targets alike

    def one(task: tuple[Target, range]) -> None:
        target, numbers = task
        if time.time() < until:
            results[target.name].add(read_in_child(target, seed, numbers, until))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, tasks))
    return results


# ---- report ------------------------------------------------------------------------------------


def table(results: dict[str, Result]) -> str:
    rows = [("target", "n", "accepted", "refused", "faults", "MiB", "slowest s", "per s")]
    for name, one in results.items():
        rate = one.count / one.seconds if one.seconds else 0.0
        rows.append(
            (
                *(name, str(one.count), str(one.accepted), str(one.refused.total())),
                *(str(one.faults.total()), f"{one.memory_mib:.0f}", f"{one.slowest_s:.2f}"),
                f"{rate:.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def save_examples(results: dict[str, Result], seed: int, out: Path) -> None:
    """One folder for each kind of fault: the input and the traceback."""
    for name, result in results.items():
        for k, (kind, text) in enumerate(result.examples.items()):
            folder = out / f"{name}-{k:02d}"
            shutil.rmtree(folder, ignore_errors=True)
            with strict_warnings():
                corpus = Corpus(TARGETS[name], folder)
            number = int(text.split()[1])
            changed, content, _ = corpus.mutated(seed, number)
            (folder / changed).write_bytes(content)
            count = result.faults[kind]
            (folder / "fault.txt").write_text(f"{kind}, {count} times\nin {changed}, {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="inputs per target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after")
    parser.add_argument("--out", type=Path, help="folder for inputs that gave faults")
    parser.add_argument("--codes", action="store_true", help="print the refusals by code")
    parser.add_argument("--list", action="store_true", help="print the targets and stop")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(TARGETS))
        return 0
    names = [name for name in args.targets.split(",") if name]
    if unknown := set(names) - set(TARGETS):
        parser.error(f"unknown targets {sorted(unknown)}; choose among {', '.join(TARGETS)}")
    results = fuzz(names, args.n, args.seed, jobs=args.jobs, seconds=args.seconds)
    print(table(results))
    if args.codes:
        print(json.dumps({name: dict(one.refused) for name, one in results.items()}, indent=1))
    for name, one in results.items():
        for kind, count in one.faults.most_common():
            print(f"{name}: {count} x {kind}")
    if args.out is not None:
        save_examples(results, args.seed, args.out)
    return 1 if any(one.faults for one in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
