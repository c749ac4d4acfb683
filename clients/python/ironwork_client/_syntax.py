"""What a key must look like before it leaves this machine. Names the problem, never the value."""

import re
from typing import Final

from ironwork_client.errors import InvalidArgument, invalid

MAX_BYTES: Final = 256
MIN_BYTES: Final = 20
_PREFIX: Final = b"sk-ant-api"
_MALFORMED: Final = "API_KEY_MALFORMED"
_VISIBLE = re.compile(rb"[\x21-\x7e]*")
_FOREIGN: Final = (
    (b"sk-ant-admin", "ADMIN_KEY_REFUSED", "is an Admin API key, which can manage accounts"),
    (b"sk-ant-oat", "OAUTH_TOKEN_REFUSED", "is an OAuth token, which expires"),
    (b"sk-ant-ort", "OAUTH_TOKEN_REFUSED", "is an OAuth token"),
    (b"sk-ant-sid", _MALFORMED, "is a claude.ai session key"),
)


def check_key(key: bytes) -> None:
    """Raise InvalidArgument, as the service would, unless key has an API key's form: `sk-ant-api…`,
    20 to 256 bytes of visible ASCII.
    """
    problem = _wrong_size(key) or _wrong_kind(key) or _wrong_form(key)
    if problem is not None:
        raise problem


def _wrong_size(key: bytes) -> InvalidArgument | None:
    if not key:
        return _malformed("is empty; paste the key (sk-ant-api…)")
    if len(key) > MAX_BYTES:
        return _malformed("is longer than 256 bytes, so it is no API key; paste the key only")
    return None


def _wrong_kind(key: bytes) -> InvalidArgument | None:
    for prefix, reason, what in _FOREIGN:
        if key.startswith(prefix):
            mend = "make an API key (sk-ant-api…) in the Anthropic console"
            return invalid("api_key", f"{what}; {mend}", reason=reason)
    return None


def _wrong_form(key: bytes) -> InvalidArgument | None:
    if not _VISIBLE.fullmatch(key):
        return _malformed(
            "holds a blank, a line break or a character outside visible ASCII; paste the key alone"
        )
    if not key.startswith(_PREFIX):
        return _malformed("must begin with sk-ant-api, as the Anthropic console shows it")
    if len(key) < MIN_BYTES:
        return _malformed("is shorter than 20 bytes; paste the whole key")
    return None


def _malformed(description: str) -> InvalidArgument:
    return invalid("api_key", description, reason=_MALFORMED)
