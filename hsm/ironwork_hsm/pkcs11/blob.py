"""What the blobs of all mechanisms have in common. Pure; no device here.

Each is bound to the associated data of ironwork_hsm/binding.py. A blob begins with a layout byte
that belongs to one mechanism; what follows is documented with the mechanism (gcm.py, derived.py).
"""

import ctypes
import os

from ironwork_hsm.binding import DATA_KEY_BYTES
from ironwork_hsm.interface import BlobRejected

NONCE_BYTES = 12
TAG_BYTES = 16
SEALED_BYTES = DATA_KEY_BYTES + TAG_BYTES
MAX_CONTEXT_BYTES = 65536

_getentropy = ctypes.CDLL(None, use_errno=True).getentropy


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
