"""How the HSM process' messages are laid out: fields, each its length (4 bytes, big endian) and its
bytes. Pure; what the fields mean is wire.py's.
"""

import struct
from typing import Final

Buffer = bytes | bytearray | memoryview

LENGTH: Final = struct.Struct(">I")
NUMBER: Final = struct.Struct(">I")


class Malformed(Exception):
    """The peer does not speak this protocol. Says what is wrong, never the bytes."""


def read_fields(payload: memoryview, *limits: int) -> list[memoryview]:
    """Exactly as many fields as limits, each within its own (bytes). Raises Malformed."""
    found: list[memoryview] = []
    at = 0
    for limit in limits:
        value, at = _next(payload, at, limit)
        found.append(value)
    if at != len(payload):
        raise Malformed("a frame has more fields than its kind")
    return found


def read_many(payload: memoryview, limit: int, most: int) -> list[memoryview]:
    """Any number of fields up to `most`, each within limit (bytes). Raises Malformed."""
    found: list[memoryview] = []
    at = 0
    while at < len(payload):
        if len(found) == most:
            raise Malformed("a frame has more fields than its kind")
        value, at = _next(payload, at, limit)
        found.append(value)
    return found


def _next(payload: memoryview, at: int, limit: int) -> tuple[memoryview, int]:
    start = at + LENGTH.size
    if start > len(payload):
        raise Malformed("a frame has fewer fields than its kind")
    (length,) = LENGTH.unpack_from(payload, at)
    end = start + length
    if length > limit or end > len(payload):
        raise Malformed("a field is longer than its bound or its frame")
    return payload[start:end], end


def read_text(value: memoryview, encoding: str = "utf-8") -> str:
    """A field as text. Raises Malformed."""
    try:
        return bytes(value).decode(encoding)
    except UnicodeDecodeError:
        raise Malformed(f"a field is not {encoding}") from None


def read_integer(value: memoryview) -> int:
    """A field of 4 bytes. Raises Malformed."""
    if len(value) != NUMBER.size:
        raise Malformed("an integer has another length")
    (number,) = NUMBER.unpack(value)
    return int(number)
