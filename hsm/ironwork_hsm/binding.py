"""What every wrapped data key is bound to, whatever device wrapped it. Pure; no device library.

Associated data: five fields, each its length as 4 bytes big endian and then its bytes:
    "ironwork-wrap-v1", the wrapper's name (UTF-8), the key's version (4 bytes big endian),
    the mechanism (ASCII), the caller's context.
Every field has its length before it, so no two different tuples give the same bytes.
"""

import struct
from typing import Final

DATA_KEY_BYTES: Final = 32
MAX_VERSION: Final = 2**32 - 1

# The known value of a round trip, and the context that it is bound to.
CANARY: Final = bytes(range(DATA_KEY_BYTES))
CANARY_CONTEXT: Final = b"ironwork-canary-v1"

_TAG: Final = b"ironwork-wrap-v1"


def fields(*parts: bytes | bytearray) -> bytearray:
    """The parts, each after its length: no two different lists give the same bytes."""
    joined = bytearray()
    for part in parts:
        joined += struct.pack(">I", len(part))
        joined += part
    return joined


def associated_data(*, name: str, version: int, mechanism: str, context: bytes) -> bytes:
    """What a blob is bound to (see above). version: 1 to 2^32-1."""
    return bytes(
        fields(
            _TAG,
            name.encode("utf-8"),
            struct.pack(">I", version),
            mechanism.encode("ascii"),
            context,
        )
    )


def wipe(buffer: bytearray) -> None:
    """Overwrite with zeros, in place."""
    buffer[:] = bytes(len(buffer))
