"""What an attacker, or a disk, makes of a file: mutations by kind, each drawn by a generator of random numbers."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

ODD = (None, True, -1, 10**30, 0.5, "", "x", "\ud800", [], [[]], {}, {"x": 1}, [None], "../x", float("nan"))
NUMBERS = (b"-1", b"99999999999999999999", b"1e400", b"0")
FOREIGN = (b"\xff\xfe", b"\r", b"\n\n", b"\t", b"\0", b'"', b"{", b"[" * 50_000)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield value, key
        yield from places(each)


def mutate(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy with one place replaced by something odd, or left out; now and then the whole. And the kind of this."""
    value = copy.deepcopy(value)
    found = [*places(value)]
    if not found or rng.random() < 0.05:
        return rng.choice(ODD), "an odd value for the whole"
    container, key = rng.choice(found)
    if rng.random() < 0.3:
        del container[key]
        return value, "a value left out"
    container[key] = copy.deepcopy(rng.choice(ODD))
    return value, "an odd value"


def piece(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Where a piece of the bytes begins and ends."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 1, 4, 64, 512)))


def flip(data: bytes, rng: random.Random) -> bytes:
    """Another bit."""
    if not data:
        return b"\1"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1:]


def cut(data: bytes, rng: random.Random) -> bytes:
    """The beginning alone."""
    return data[:piece(data, rng)[0]]


def lose(data: bytes, rng: random.Random) -> bytes:
    """A piece is gone."""
    start, end = piece(data, rng)
    return data[:start] + data[end:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A piece stands there twice, or many times."""
    start, end = piece(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 3, 100)) + data[end:]


def scramble(data: bytes, rng: random.Random) -> bytes:
    """A piece is noise."""
    start, end = piece(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def blank(data: bytes, rng: random.Random) -> bytes:
    """A piece is zeros, as after a power cut."""
    start, end = piece(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def renumber(data: bytes, rng: random.Random) -> bytes:
    """A number in the text is negative, enormous or zero; where there is none, a bit is another."""
    numbers = [*re.finditer(rb"-?\d+", data[:20_000])]
    if not numbers:
        return flip(data, rng)
    found = rng.choice(numbers)
    return data[:found.start()] + rng.choice(NUMBERS) + data[found.end():]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Something that means something elsewhere."""
    start = piece(data, rng)[0]
    return data[:start] + rng.choice(FOREIGN) + data[start:]


def replace(data: bytes, rng: random.Random) -> bytes:
    """Another file altogether."""
    return rng.choice((b"", rng.randbytes(64), b"null", b"[]", b"{}", data[::-1]))


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit flipped": flip, "cut off": cut, "a piece lost": lose, "a piece repeated": repeat, "a piece of noise": scramble,
    "a piece of zeros": blank, "an odd number": renumber, "something inserted": insert, "another file": replace}


def mutate_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes with one wound, and its kind."""
    kind = rng.choice([*BYTES])
    return BYTES[kind](data, rng), kind


def mutate_text(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """JSON, or lines of it, with one place of its values changed, and how; of anything else, bytes."""
    lines = data.split(b"\n") if data.count(b"\n") and not data.startswith(b"{\n") and not data.startswith(b"[\n") else [data]
    number = rng.randrange(len(lines))
    try:
        value, kind = mutate(json.loads(lines[number]), rng)
    except ValueError:
        return mutate_bytes(data, rng)
    lines[number] = json.dumps(value).encode("utf-8", "surrogatepass")
    return b"\n".join(lines), kind
