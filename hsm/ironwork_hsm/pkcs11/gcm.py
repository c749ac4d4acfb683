"""AES-256-GCM by C_Encrypt and C_Decrypt, on one lane. Further mechanisms stand beside this."""

import hmac
from typing import Any

from pkcs11 import GCMParams, Mechanism
from pkcs11.exceptions import PKCS11Error

from ironwork_hsm.interface import BlobRejected, Unavailable
from ironwork_hsm.pkcs11.blob import DATA_KEY_BYTES, TAG_BYTES, new_iv
from ironwork_hsm.pkcs11.errors import is_ambiguous

# python-pkcs11's buffer for a result; its default is 8 KiB for each call.
_RESULT_BYTES = 64
_CANARY = bytes(range(DATA_KEY_BYTES))
_CANARY_CONTEXT = b"ironwork-canary-v1"


def seal(key: Any, data: bytes | bytearray, *, iv: bytes, associated: bytes) -> bytes:
    """Ciphertext and tag. Raises PKCS11Error."""
    # `_encrypt`, since `encrypt` takes a bytearray for an iterable of chunks, and a bytes copy of
    # a data key could never be wiped.
    sealed: bytes = key._encrypt(  # noqa: SLF001  the version is pinned and checked (module.py)
        data,
        mechanism=Mechanism.AES_GCM,
        mechanism_param=GCMParams(iv, associated, TAG_BYTES * 8),
        buffer_size=_RESULT_BYTES,
    )
    return sealed


def open_sealed(key: Any, sealed: bytes, *, iv: bytes, associated: bytes) -> bytearray:
    """The plaintext, for the caller to wipe. Raises BlobRejected, Unavailable, PKCS11Error."""
    try:
        return _decrypt(key, sealed, iv=iv, associated=associated)
    except PKCS11Error as error:
        if not is_ambiguous(error):
            raise
    # Outside the handler, so that what follows carries no foreign error as its context.
    if round_trip(key):
        raise BlobRejected("The wrapped key does not open in this context.")
    raise Unavailable("The HSM fails to decrypt what it has just encrypted.")


def round_trip(key: Any) -> bool:
    """Whether this key, on this lane, encrypts and decrypts a known value right now."""
    iv = new_iv()
    try:
        sealed = seal(key, _CANARY, iv=iv, associated=_CANARY_CONTEXT)
        opened = _decrypt(key, sealed, iv=iv, associated=_CANARY_CONTEXT)
    except PKCS11Error:
        return False
    # A device that does not encrypt at all must not pass either.
    return hmac.compare_digest(opened, _CANARY) and sealed[:DATA_KEY_BYTES] != _CANARY


def _decrypt(key: Any, sealed: bytes, *, iv: bytes, associated: bytes) -> bytearray:
    return bytearray(
        key.decrypt(
            sealed,
            mechanism=Mechanism.AES_GCM,
            mechanism_param=GCMParams(iv, associated, TAG_BYTES * 8),
            buffer_size=_RESULT_BYTES,
        )
    )
