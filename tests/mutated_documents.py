"""Random mutations of JSON documents and tables, from a seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_LONG = "9" * 300
_STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 256, 10**30, 1.5, 1e308, "", " ", ".", "..", "0", "-1", "CT"),
    *("a\0b", "\ud800", "é", "\\", ".\\imagesTr\\a.nii.gz", "C:\\x.nii", "/", "~", "$NO_SUCH/x"),
    *("${", "$", "${}", _LONG, f"{_LONG}/x", "x/" * 3000, "\n", "nan", "1e999", "._a", ".nii.gz"),
    *(
        [],
        {},
        [[]],
        [None],
        {"": ""},
        {"0": []},
        [1, "1"],
        {"image": 1},
        {"images": [], "label": 2},
    ),
)
_RAW = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"NaN",
    b"1e999",
    b"-",
    b"{",
    b"]",
    b'"',
    b"\\u",
)


def mutated_json(content: Any, seed: int) -> bytes:
    """A document with one to three mutations of its structure or its bytes."""
    rng = random.Random(seed)
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        content = _mutated(content, rng)
    data = json.dumps(content, ensure_ascii=rng.random() < 0.9).encode(errors="surrogatepass")
    return mutated_bytes(data, rng) if rng.random() < 0.3 else data


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes inserted, deleted, repeated or replaced."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((0, 1, 1, 5, 60)))
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at] + rng.choice(_RAW) + data[end:]
    if kind == 1:
        return data[:at] + data[at:end] * 3 + data[end:]
    if kind == 2:
        return data[:at] + b"[" * 100_000 + data[at:]
    if kind == 3:
        return data[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + data[end:]
    return data[:at] + b"9" * rng.choice((20, 400, 5000)) + data[at:]


def _mutated(content: Any, rng: random.Random) -> Any:
    """A random part replaced, removed, renamed, doubled or nested."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(list(content))
        kind = rng.random()
        if kind < 0.1:
            del content[key]
        elif kind < 0.2:
            content[str(rng.choice(_STRANGE))] = content.pop(key)
        else:
            content[key] = _mutated(content[key], rng)
        return content
    if isinstance(content, list) and content and rng.random() < 0.85:
        at = rng.randrange(len(content))
        kind = rng.random()
        if kind < 0.1:
            del content[at]
        elif kind < 0.3:
            content.append(copy.deepcopy(content[at]))
        else:
            content[at] = _mutated(content[at], rng)
        return content
    if rng.random() < 0.05:
        for _ in range(rng.choice((2, 200))):
            content = [content]
        return content
    return copy.deepcopy(rng.choice(_STRANGE))
