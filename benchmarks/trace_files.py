"""Which files of kidseg a command goes through, in order: what a newcomer opens to follow it.

    python benchmarks/trace_files.py [--list] segment SCAN -m MODEL -o OUT
    python benchmarks/trace_files.py [--list] train DATASET -o RUN --method plain ...

Runs the command in this process and notes each file in which one of its functions is called, in the
order of their first calls; code that runs on import does not count. "Back and forth" counts how
often control passes between the room that runs the command (segment or train) and the methods, each
change of direction once: a call from the one into the other that follows one the other way. With
PYTHONPATH set to the src of another checkout it traces that one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import kidseg

ROOT = Path(kidseg.__file__).parent


class Trace:
    """Files in the order of their first calls, and the calls between two rooms."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.files: dict[str, None] = {}
        self.crossings: list[tuple[str, str]] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or frame.f_code.co_name == "<module>":
            return
        here = self.file(frame)
        if here is None or importing(frame):
            return
        self.files.setdefault(here)
        caller = frame.f_back
        while caller is not None and (there := self.file(caller)) is None:
            caller = caller.f_back
        if caller is None:
            return
        rooms = (there.split("/")[0], here.split("/")[0])
        if set(rooms) == {self.room, "methods"}:
            self.crossings.append((there, here))

    def file(self, frame: FrameType) -> str | None:
        path = Path(frame.f_code.co_filename)
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else None


def importing(frame: FrameType | None) -> bool:
    """Is this a function that runs while a module is imported?"""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            return True
        frame = frame.f_back
    return False


def main() -> None:
    arguments = sys.argv[1:]
    listed = arguments[:1] == ["--list"]
    arguments = arguments[listed:]
    from kidseg.cli import main as command

    trace = Trace(arguments[0])
    sys.setprofile(trace)
    try:
        command(arguments)
    except SystemExit as end:
        sys.setprofile(None)
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    back = [pair for pair in trace.crossings if pair[0].startswith("methods/")]
    print(f"{len(trace.files)} files; calls from methods back into {trace.room}: {len(back)}"
          f" ({', '.join(sorted({f'{a} -> {b}' for a, b in back})) or 'none'})")  # fmt: skip
    into = sorted({b for a, b in trace.crossings if b.startswith("methods/")})
    print(f"{trace.room} calls into: {', '.join(into)}")
    if listed:
        for number, file in enumerate(trace.files, start=1):
            print(f"{number:3} {file}")


if __name__ == "__main__":
    main()
