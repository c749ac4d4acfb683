"""What every blob of every mechanism is bound to, and the sizes they share. Pure; no device here.

Associated data: five fields, each its length as 4 bytes big endian and then its bytes:
    "ironwork-wrap-v1", the wrapper's name (UTF-8), the key's version (4 bytes big endian),
    the mechanism (ASCII), the caller's context.
Every field has its length before it, so no two different tuples give the same bytes.

A blob begins with a layout byte that belongs to one mechanism; what follows is documented with the
mechanism (gcm.py, derived.py).
"""

import ctypes
import os
import struct

from ironwork_hsm.interface import BlobRejected

DATA_KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
SEALED_BYTES = DATA_KEY_BYTES + TAG_BYTES
MAX_CONTEXT_BYTES = 65536
MAX_VERSION = 2**32 - 1

_TAG = b"ironwork-wrap-v1"

_getentropy = ctypes.CDLL(None, use_errno=True).getentropy


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


class NoBlob(BlobRejected):
    """Not of a known layout: seen without the device."""


def split(blob: bytes, layout: int, *sizes: int) -> list[bytes]:
    """The parts of a blob of this layout. Raises NoBlob for any other length or layout."""
    if len(blob) != 1 + sum(sizes) or blob[0] != layout:
        raise NoBlob("The wrapped key is no blob of a layout known for its mechanism.")
    parts, at = [], 1
    for size in sizes:
        parts.append(blob[at : at + size])
        at += size
    return parts


def random_secret(size: int) -> bytearray:
    """Random bytes of the kernel's (getentropy(3)), for the caller to wipe. size: at most 256."""
    secret = bytearray(size)
    if _getentropy((ctypes.c_char * size).from_buffer(secret), ctypes.c_size_t(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return secret


def wipe(buffer: bytearray) -> None:
    """Overwrite with zeros, in place."""
    buffer[:] = bytes(len(buffer))
