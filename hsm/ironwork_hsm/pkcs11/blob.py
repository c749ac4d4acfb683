"""The layout of an `aes-256-gcm` blob and of what it is bound to. Pure; no device here.

blob (61 bytes):
    0      layout, 0x01
    1..12  initialisation vector, 12 random bytes (NIST SP 800-38D section 8.2.2)
    13..60 ciphertext of the 32-byte data key, then the 16-byte tag

Associated data: five fields, each its length as 4 bytes big endian and then its bytes:
    "ironwork-wrap-v1", the wrapper's name (UTF-8), the key's version (4 bytes big endian),
    the mechanism (ASCII), the caller's context.
Every field has its length before it, so no two different tuples give the same bytes.
"""

import os
import struct
from typing import NamedTuple

from ironwork_hsm.interface import BlobRejected

MECHANISM = "aes-256-gcm"
DATA_KEY_BYTES = 32
IV_BYTES = 12
TAG_BYTES = 16
BLOB_BYTES = 1 + IV_BYTES + DATA_KEY_BYTES + TAG_BYTES
MAX_CONTEXT_BYTES = 65536
MAX_VERSION = 2**32 - 1

_LAYOUT = 1
_TAG = b"ironwork-wrap-v1"


class Blob(NamedTuple):
    """A blob's parts; sealed is ciphertext and tag."""

    iv: bytes
    sealed: bytes


def new_iv() -> bytes:
    """12 bytes from the system's generator; at most 2^32 wraps may share one master key."""
    return os.urandom(IV_BYTES)


def pack(iv: bytes, sealed: bytes) -> bytes:
    """The blob's bytes."""
    return bytes((_LAYOUT,)) + iv + sealed


def unpack(blob: bytes) -> Blob:
    """The parts. Raises BlobRejected for any other length or layout."""
    if len(blob) != BLOB_BYTES or blob[0] != _LAYOUT:
        raise BlobRejected("The wrapped key is no aes-256-gcm blob of a layout known here.")
    return Blob(iv=blob[1 : 1 + IV_BYTES], sealed=blob[1 + IV_BYTES :])


def associated_data(*, name: str, version: int, mechanism: str, context: bytes) -> bytes:
    """What a blob is bound to (see above). version: 1 to 2^32-1."""
    fields = (
        _TAG,
        name.encode("utf-8"),
        struct.pack(">I", version),
        mechanism.encode("ascii"),
        context,
    )
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)
