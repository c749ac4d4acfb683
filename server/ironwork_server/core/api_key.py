"""An Anthropic API key as an admin sends it: checked, masked, fingerprinted.

Nothing here copies the plaintext except into the Secret that is returned: patterns run over the
caller's buffer, and no part of it is sliced off.
"""

import re

from cryptography.hazmat.primitives import hashes, hmac

from ironwork_server.core.errors import InvalidRequest
from ironwork_server.core.secret import Secret

PREFIX = b"sk-ant-api"
MIN_LENGTH = 20
MAX_LENGTH = 256

_MASK_PREFIX = "sk-ant-api…"
_MASK_TAIL = 4

# Blanks before the prefix are looked past, so that a badly pasted admin key is called an admin
# key at once, not first a bad paste.
_FOREIGN = re.compile(rb"\s*sk-ant-(admin|oat|ort|sid)", re.IGNORECASE)
_NON_ASCII = re.compile(rb"[\x80-\xff]")
_OUTER_BLANK = re.compile(rb"\A[\t-\r ]|[\t-\r ]\Z")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

_MALFORMED = "API_KEY_MALFORMED"
_FOREIGN_KINDS = {
    b"admin": (
        "ADMIN_KEY_REFUSED",
        "is an Admin API key, which can manage the organisation; make an API key (sk-ant-api…) "
        "in the Anthropic console",
    ),
    b"oat": (
        "OAUTH_TOKEN_REFUSED",
        "is an OAuth access token, which expires; make an API key (sk-ant-api…) in the Anthropic "
        "console",
    ),
    b"ort": (
        "OAUTH_TOKEN_REFUSED",
        "is an OAuth refresh token; make an API key (sk-ant-api…) in the Anthropic console",
    ),
    b"sid": (
        _MALFORMED,
        "is a claude.ai session key; make an API key (sk-ant-api…) in the Anthropic console",
    ),
}


def parse_api_key(raw: bytes | bytearray, *, field: str = "api_key") -> Secret:
    """The key in a Secret, which the caller wipes.

    A key is `sk-ant-api…`, 20 to 256 bytes of visible ASCII (0x21–0x7E: safe in a header).
    Raises InvalidRequest with reason API_KEY_MALFORMED, ADMIN_KEY_REFUSED or OAUTH_TOKEN_REFUSED.
    """
    # The length comes first: whatever else is wrong with 10 MB of text is not looked for.
    _check_length(len(raw), field)
    foreign = _FOREIGN.match(raw)
    if foreign is not None:
        reason, description = _FOREIGN_KINDS[foreign[1].lower()]
        raise InvalidRequest.field(field, description, reason=reason)
    _check_characters(raw, field)
    if not raw.startswith(PREFIX):
        raise _malformed(field, "must begin with sk-ant-api, as the Anthropic console shows it")
    return Secret(raw)


def mask(key: Secret) -> str:
    """The constant prefix and the last four characters; for no input more.

    What is too short to be a key shows no character of its own.
    """
    if len(key) < MIN_LENGTH:
        return _MASK_PREFIX
    tail = key.reveal()[-_MASK_TAIL:]
    return _MASK_PREFIX + "".join(chr(byte) if 0x21 <= byte <= 0x7E else "?" for byte in tail)


def fingerprint(key: Secret, pepper: Secret) -> bytes:
    """HMAC-SHA256 of the key under the pepper: 32 bytes that only a holder of it can test."""
    digest = hmac.HMAC(pepper.reveal(), hashes.SHA256())
    digest.update(key.reveal())
    return digest.finalize()


def request_digest(pepper: Secret, *parts: bytes | bytearray | memoryview) -> bytes:
    """HMAC-SHA256 under the pepper of parts that cannot run into each other: 32 bytes.

    Begins with the number of parts as 8 bytes, whose first is 0, so that no request's digest is
    ever a key's fingerprint; then each part after its length, 8 bytes big-endian.
    """
    digest = hmac.HMAC(pepper.reveal(), hashes.SHA256())
    digest.update(len(parts).to_bytes(8, "big"))
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.finalize()


def _check_length(length: int, field: str) -> None:
    if length == 0:
        raise _malformed(field, "is empty; paste the key (sk-ant-api…)")
    if length > MAX_LENGTH:
        raise _malformed(field, "is longer than 256 bytes, so it is no API key; paste the key only")
    if length < MIN_LENGTH:
        raise _malformed(field, "is shorter than 20 bytes; paste the whole key")


def _check_characters(raw: bytes | bytearray, field: str) -> None:
    if _NON_ASCII.search(raw):
        raise _malformed(
            field,
            "holds characters outside ASCII, perhaps invisible ones; copy the key from the "
            "Anthropic console again",
        )
    if _OUTER_BLANK.search(raw):
        raise _malformed(
            field, "has a blank or a line break before or after the key; paste the key alone"
        )
    if _CONTROL.search(raw):
        raise _malformed(
            field, "holds a line break, tab or other control character; paste the key on one line"
        )
    if b" " in raw:
        raise _malformed(field, "holds a blank; paste the key alone")


def _malformed(field: str, description: str) -> InvalidRequest:
    return InvalidRequest.field(field, description, reason=_MALFORMED)
