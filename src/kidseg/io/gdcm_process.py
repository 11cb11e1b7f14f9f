"""Decode lossless JPEG in a process of its own.

Only GDCM decodes it, and GDCM aborts its process on damaged pixels. Run as a script, this file is
that process; it needs neither torch nor the rest of kidseg.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

__all__ = ["GdcmProcess"]


class GdcmProcess:
    """The process, started when it is first needed. It decodes one file after another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> GdcmProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def frames(self, path: Path, indices: Sequence[int]) -> np.ndarray:
        """(frames, rows, columns) of a file, as `pydicom.pixels.iter_pixels` decodes them.

        Raises:
            RuntimeError: the pixels cannot be decoded, or the process ended.
        """
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - this file, by this interpreter
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        asked, answered = self._process.stdin, self._process.stdout
        if asked is None or answered is None:
            raise RuntimeError("the decoder has no pipes")
        try:
            asked.write(json.dumps([str(path), list(indices)]).encode() + b"\n")
            asked.flush()
        except BrokenPipeError:
            pass  # it ended: there is no answer
        line = answered.readline()
        if not line:
            self._end()
            raise RuntimeError("the decoder crashed")
        head = json.loads(line)
        if "error" in head:
            raise RuntimeError(head["error"])
        data = answered.read(head["bytes"])
        if len(data) < head["bytes"]:
            self._end()
            raise RuntimeError("the decoder crashed")
        return np.frombuffer(data, head["dtype"]).reshape(head["shape"])


def _serve() -> None:
    """Answer requests: a line of JSON each, and the pixels after it."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    said = tempfile.TemporaryFile()  # noqa: SIM115 - until the process ends
    os.dup2(said.fileno(), 2)
    for line in sys.stdin.buffer:
        path, indices = json.loads(line)
        pixels = b""
        try:
            frames = _decode(path, indices)
            said.seek(0)
            message = said.read(2000).decode("ascii", "replace")
            if "corrupt" in message.lower():  # GDCM prints that, and goes on
                raise ValueError(message)
            pixels = frames.tobytes()
            head: dict[str, Any] = {"shape": frames.shape, "dtype": frames.dtype.str}
            head["bytes"] = len(pixels)
        except Exception as error:  # decoders raise exceptions of any class on damaged pixels
            head = {"error": (str(error).splitlines() or [type(error).__name__])[-1].strip()}
        answers.write(json.dumps(head).encode() + b"\n" + pixels)
        answers.flush()


def _decode(path: str, indices: list[int]) -> np.ndarray:
    from pydicom import dcmread
    from pydicom.pixels.utils import iter_pixels

    dataset = dcmread(path, force=True)
    decoded = iter_pixels(dataset, indices=indices, raw=True, correct_unused_bits=False)
    return np.array(list(decoded))


if __name__ == "__main__":
    _serve()
