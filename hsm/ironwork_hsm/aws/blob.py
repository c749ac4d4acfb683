"""The layout of an `aws-kms` blob and of the encryption context it is bound to. Pure.

blob:
    0      layout, 0x01
    1..2   length of the key's ARN, big endian
    …      the key's ARN, ASCII: which key made it, for people; it decides nothing
    …      KMS's CiphertextBlob, 1 to 6,144 bytes

The encryption context (KMS's associated data) has a named field for all that a blob is bound to.
CloudTrail shows it in each Encrypt and Decrypt, so it holds nothing secret: the context says which
workspace and key a data key is for, never anything of the key itself.
"""

import base64
import struct
from typing import NamedTuple

from ironwork_hsm.interface import BlobRejected

MECHANISM = "aws-kms"
VERSION = 1
# KMS takes 8,192 characters of encryption context; base64 makes 6,668 of these.
MAX_CONTEXT_BYTES = 5000
MAX_CIPHERTEXT_BYTES = 6144

_LAYOUT = 1
_HEAD = struct.Struct(">BH")
_MAX_ARN_BYTES = 512


class Blob(NamedTuple):
    """A blob's parts."""

    arn: str
    ciphertext: bytes


def pack(arn: str, ciphertext: bytes) -> bytes:
    """The blob's bytes."""
    key = arn.encode("ascii")
    return _HEAD.pack(_LAYOUT, len(key)) + key + ciphertext


def unpack(blob: bytes) -> Blob:
    """The parts. Raises BlobRejected for anything that pack does not make."""
    try:
        layout, length = _HEAD.unpack_from(blob)
        arn = blob[_HEAD.size : _HEAD.size + length].decode("ascii")
    except (struct.error, UnicodeDecodeError):
        raise _unknown() from None
    ciphertext = blob[_HEAD.size + length :]
    if (
        layout != _LAYOUT
        or not 1 <= length <= _MAX_ARN_BYTES
        or not 1 <= len(ciphertext) <= MAX_CIPHERTEXT_BYTES
    ):
        raise _unknown()
    return Blob(arn, ciphertext)


def encryption_context(*, name: str, context: bytes) -> dict[str, str]:
    """What a blob is bound to. name: the wrapper's. context: the caller's, at most 5,000 bytes."""
    return {
        "ironwork:format": "ironwork-wrap-v1",
        "ironwork:master-key": name,
        "ironwork:version": str(VERSION),
        "ironwork:mechanism": MECHANISM,
        "ironwork:context": base64.b64encode(context).decode("ascii"),
    }


def _unknown() -> BlobRejected:
    return BlobRejected("The wrapped key is no aws-kms blob of a layout known here.")
