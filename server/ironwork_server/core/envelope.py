"""The inner layer of the envelope: a key sealed under a data key of its own (ADR 0002).

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce and a 128-bit tag. A data key seals one
key, once; the outer layer, which wraps the data key under a master key, is ironwork_hsm's and
gets `wrap_context`. Both layers' associated data say which row they belong to, so that a row, or
a part of one, opens nowhere else.
"""

import ctypes
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ironwork_server.core.errors import DataLoss
from ironwork_server.core.secret import Secret, wipe

__all__ = [
    "DATA_KEY_LENGTH",
    "FORMAT",
    "NONCE_LENGTH",
    "TAG_LENGTH",
    "Binding",
    "gcm_open_into",
    "gcm_seal",
    "inner_context",
    "new_data_key",
    "open_into",
    "open_secret",
    "pepper_context",
    "seal",
    "wipe",
    "wrap_context",
]

FORMAT = 1
DATA_KEY_LENGTH = 32
NONCE_LENGTH = 12
TAG_LENGTH = 16

# The C library's; Python's own sources give bytes, which cannot be wiped.
_getentropy = ctypes.CDLL(None, use_errno=True).getentropy
_getentropy.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_getentropy.restype = ctypes.c_int

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Binding:
    """What a sealed key is bound to. created_at has a time zone, and microseconds count."""

    workspace: str
    key_id: str
    sequence: int
    created_at: datetime


def inner_context(binding: Binding) -> bytes:
    """Associated data of the sealed key."""
    return _context(b"ironwork/envelope/inner", binding)


def wrap_context(binding: Binding) -> bytes:
    """Context under which the data key is wrapped; never equal to any inner_context."""
    return _context(b"ironwork/envelope/wrap", binding)


def pepper_context() -> bytes:
    """Context under which the fingerprint pepper is wrapped."""
    return _fields(b"ironwork/pepper", _number(FORMAT))


def new_data_key() -> bytearray:
    """32 random bytes of the kernel's (getentropy(3)), for one key; the only copy, which the
    caller wipes. Raises OSError.
    """
    data_key = bytearray(DATA_KEY_LENGTH)
    buffer = (ctypes.c_char * DATA_KEY_LENGTH).from_buffer(data_key)
    if _getentropy(ctypes.addressof(buffer), DATA_KEY_LENGTH) != 0:
        raise OSError(ctypes.get_errno(), "the kernel gives no random bytes")
    return data_key


def seal(key: Secret, data_key: bytearray, binding: Binding) -> tuple[bytes, bytes]:
    """(nonce, ciphertext with its tag). Raises ValueError for a data key of another length."""
    nonce = secrets.token_bytes(NONCE_LENGTH)
    return nonce, gcm_seal(data_key, nonce, key.reveal(), inner_context(binding))


def open_into(
    nonce: bytes,
    ciphertext: bytes,
    data_key: bytearray,
    binding: Binding,
    target: memoryview,
) -> None:
    """Decrypt into target, which has the plaintext's length (the ciphertext's less 16).

    Raises DataLoss (KEY_RECORD_DAMAGED) for any part that is not the one that was sealed, and
    then leaves target zeroed.
    """
    gcm_open_into(data_key, nonce, ciphertext, inner_context(binding), target)


def open_secret(nonce: bytes, ciphertext: bytes, data_key: bytearray, binding: Binding) -> Secret:
    """As open_into, but into a Secret, which the caller wipes."""
    buffer = bytearray(max(len(ciphertext) - TAG_LENGTH, 0))
    try:
        with memoryview(buffer) as target:
            open_into(nonce, ciphertext, data_key, binding, target)
        return Secret(buffer)
    finally:
        wipe(buffer)


def gcm_seal(data_key: bytearray, nonce: bytes, plaintext: Buffer, context: bytes) -> bytes:
    """AES-256-GCM: ciphertext ‖ 16-byte tag. Raises ValueError for other key or nonce lengths."""
    if len(data_key) != DATA_KEY_LENGTH or len(nonce) != NONCE_LENGTH:
        raise ValueError("a data key has 32 bytes and a nonce 12")
    return AESGCM(data_key).encrypt(nonce, plaintext, context)


def gcm_open_into(
    data_key: bytearray, nonce: bytes, ciphertext: bytes, context: bytes, target: memoryview
) -> None:
    """The inverse of gcm_seal. Raises DataLoss, with target zeroed, for whatever does not open."""
    lengths_fit = (
        len(data_key) == DATA_KEY_LENGTH
        and len(nonce) == NONCE_LENGTH
        and len(ciphertext) == len(target) + TAG_LENGTH
    )
    if not lengths_fit:
        wipe(target)
        raise _damaged()
    try:
        AESGCM(data_key).decrypt_into(nonce, ciphertext, context, target)
    except InvalidTag:
        # The library writes the plaintext before it knows that the tag is wrong.
        wipe(target)
        raise _damaged() from None


def _damaged() -> DataLoss:
    return DataLoss(
        "This key's record does not open: it was altered, moved or restored in part. Delete the "
        "key and add it again.",
        reason="KEY_RECORD_DAMAGED",
    )


def _context(tag: bytes, binding: Binding) -> bytes:
    return _fields(
        tag,
        _number(FORMAT),
        binding.workspace.encode("utf-8"),
        binding.key_id.encode("utf-8"),
        _number(binding.sequence),
        _number(_microseconds(binding.created_at)),
    )


def _microseconds(time: datetime) -> int:
    if time.tzinfo is None:
        raise ValueError("a binding's time needs a time zone")
    return (time - _EPOCH) // _MICROSECOND


def _number(value: int) -> bytes:
    """Decimal: one encoding for each integer, without a bound to overflow."""
    return b"%d" % value


def _fields(*fields: bytes) -> bytes:
    """Each field after its length (4 bytes, big-endian), so that no two lists look alike."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
