"""Change files at random: bits, bytes, lengths, numbers, lines, and values of JSON.

Everything derives from the generator that is passed in, so the same seed gives the same input.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["mutate", "mutate_json", "mutate_text"]

Random = random.Random

_NUMBER = re.compile(rb"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")
_ODD_NUMBERS = [
    *(b"0", b"-0", b"-1", b"1", b"2", b"3", b"7", b"255", b"256", b"65535", b"65536"),
    *(b"2147483647", b"2147483648", b"-2147483649", b"4294967296", b"9223372036854775808"),
    *(b"1e308", b"1e999", b"-1e999", b"1e-320", b"nan", b"inf", b"-inf", b"0.5", b"1.9999999"),
    *(b"", b"x", b"0x10", b"1,5", b"1_000", b"true", b"null", b"9" * 400, b"\xff", b"\0"),
]
_ODD_BYTES = (0, 1, 0x0A, 0x20, 0x2D, 0x7F, 0x80, 0xFE, 0xFF)
_ODD_INTEGERS = (0, 1, -1, 2, 7, 127, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31))
_ODD_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
_ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.0, 1e308, 10**400, 2**63, float("nan")),
    *(float("inf"), "", "x", "..", "/", "a/b", "\0", "\ud800", "é", "x" * 5000, [], {}, [[]]),
    *([None], [0], {"": 0}, {"a": None}, "0", "1.0", "nan", "CT", "kidney"),
]


def mutate(content: bytes, random: Random, *, focus: int | None = None) -> bytes:
    """One to four random changes of a file.

    Args:
        content: the file.
        random: the source of all choices.
        focus: most changes are within so many first bytes; None: anywhere.
    """
    for _ in range(1 + min(3, int(random.expovariate(1.2)))):
        content = random.choice(_CHANGES)(content, random, focus)
    return content


def mutate_text(content: bytes, random: Random, *, focus: int | None = None) -> bytes:
    """One to four changes of numbers, words and lines, sometimes of bytes."""
    for _ in range(1 + min(3, int(random.expovariate(1.2)))):
        content = random.choice(_TEXT_CHANGES)(content, random, focus)
    return content


def mutate_json(content: bytes, random: Random, *, focus: int | None = None) -> bytes:
    """Change a value somewhere in a JSON file, or remove, rename or repeat a key; or its text."""
    if random.random() < 0.3:
        return mutate_text(content, random, focus=focus)
    lines = content.splitlines() if content[:1] != b"{" or b"}\n{" in content else [content]
    at = random.randrange(len(lines)) if lines else 0
    try:
        root = json.loads(lines[at])
    except (ValueError, IndexError):
        return mutate_text(content, random, focus=focus)
    for _ in range(1 + min(3, int(random.expovariate(1.2)))):
        root = _changed_value(root, random)
    lines[at] = json.dumps(root).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _changed_value(node: Any, random: Random) -> Any:
    if not isinstance(node, dict | list) or not node or random.random() < 0.15:
        return random.choice(_ODD_VALUES)
    if isinstance(node, list):
        at = random.randrange(len(node))
        choice = random.random()
        if choice < 0.15:
            return node[:at] + node[at + 1 :]
        if choice < 0.3:
            return node[: at + 1] + node[at:]
        return [*node[:at], _changed_value(node[at], random), *node[at + 1 :]]
    key = random.choice(sorted(node))
    choice = random.random()
    if choice < 0.1:
        return {k: v for k, v in node.items() if k != key}
    if choice < 0.2:
        other = random.choice(["", "x", "0", "-1", "../x", "kidney", key.upper(), key + " "])
        return {other if k == key else k: v for k, v in node.items()}
    return node | {key: _changed_value(node[key], random)}


# ---- changes of bytes --------------------------------------------------------------------------


def _at(content: bytes, random: Random, focus: int | None) -> int:
    reach = len(content) if focus is None or random.random() < 0.1 else min(focus, len(content))
    return random.randrange(reach) if reach else 0


def _flip_bits(content: bytes, random: Random, focus: int | None) -> bytes:
    out = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        if out:
            out[_at(content, random, focus)] ^= 1 << random.randrange(8)
    return bytes(out)


def _set_byte(content: bytes, random: Random, focus: int | None) -> bytes:
    out = bytearray(content)
    if out:
        is_odd = random.random() < 0.5
        value = random.choice(_ODD_BYTES) if is_odd else random.randrange(256)
        out[_at(content, random, focus)] = value
    return bytes(out)


def _set_number(content: bytes, random: Random, focus: int | None) -> bytes:
    order = random.choice("<>")
    kind = random.choice("bhiqfd")
    if kind in "fd":
        raw = struct.pack(order + kind, random.choice(_ODD_FLOATS))
    else:
        size = struct.calcsize(kind)
        value = random.choice(_ODD_INTEGERS) % 2 ** (8 * size)
        raw = value.to_bytes(size, "little" if order == "<" else "big")
    at = _at(content, random, focus) // len(raw) * len(raw)
    return content[:at] + raw + content[at + len(raw) :]


def _truncate(content: bytes, random: Random, focus: int | None) -> bytes:
    return content[: _at(content, random, focus if random.random() < 0.5 else None)]


def _insert(content: bytes, random: Random, focus: int | None) -> bytes:
    at = _at(content, random, focus)
    return content[:at] + random.randbytes(random.choice((1, 2, 4, 16, 300))) + content[at:]


def _remove(content: bytes, random: Random, focus: int | None) -> bytes:
    at = _at(content, random, focus)
    return content[:at] + content[at + random.choice((1, 2, 4, 16, 300)) :]


def _copy(content: bytes, random: Random, focus: int | None) -> bytes:
    source, at = _at(content, random, focus), _at(content, random, focus)
    part = content[source : source + random.choice((1, 4, 16, 64))]
    return content[:at] + part + content[at + random.choice((0, len(part))) :]


# ---- changes of text ---------------------------------------------------------------------------


def _replace_number(content: bytes, random: Random, focus: int | None) -> bytes:
    reach = content if focus is None else content[:focus]
    found = list(_NUMBER.finditer(reach))
    if not found:
        return _set_byte(content, random, focus)
    chosen = random.choice(found)
    return content[: chosen.start()] + random.choice(_ODD_NUMBERS) + content[chosen.end() :]


def _change_line(content: bytes, random: Random, focus: int | None) -> bytes:
    reach = len(content) if focus is None else min(focus, len(content))
    lines, rest = content[:reach].split(b"\n"), content[reach:]
    at = random.randrange(len(lines))
    choice = random.randrange(5)
    if choice == 0:
        del lines[at]
    elif choice == 1:
        lines.insert(at, random.choice(lines))
    elif choice == 2:
        lines[at] = random.choice(lines)
    elif choice == 3:
        words = lines[at].split(b" ")
        words[random.randrange(len(words))] = random.choice(_ODD_NUMBERS)
        lines[at] = b" ".join(words)
    else:
        lines[at] = lines[at][: random.randrange(len(lines[at]) + 1)]
    return b"\n".join(lines) + rest


Change = Callable[[bytes, Random, int | None], bytes]
_CHANGES: list[Change] = [
    *(_flip_bits, _flip_bits, _set_byte, _set_byte, _set_number, _set_number, _set_number),
    *(_truncate, _insert, _remove, _copy),
]
_TEXT_CHANGES: list[Change] = [
    *(_replace_number, _replace_number, _replace_number, _change_line, _change_line),
    *(_flip_bits, _set_byte, _truncate, _insert, _remove, _copy),
]
