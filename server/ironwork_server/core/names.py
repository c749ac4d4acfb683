"""The names and small fields of the contract, parsed strictly.

Resource names follow AIP-122 (`workspaces/{workspace}/keys/{key}`), request ids AIP-155, pages
AIP-158. Every refusal is an InvalidRequest that names the field and the mend, and never repeats
the value: people paste keys into the wrong field.
"""

import base64
import hmac
import re
import unicodedata
import uuid

from ironwork_server.core.errors import InvalidRequest

_WORKSPACE = r"[a-z][a-z0-9-]{0,62}"
_UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_WORKSPACE_NAME = re.compile(rf"workspaces/({_WORKSPACE})")
_KEY_NAME = re.compile(rf"workspaces/({_WORKSPACE})/keys/({_UUID4})")
_REQUEST_ID = re.compile(_UUID4, re.IGNORECASE | re.ASCII)
_CLAIM = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_MAX_DISPLAY_NAME = 64
# Decomposed text is longer than its NFC form; beyond this it is not even normalised.
_MAX_DISPLAY_NAME_AS_SENT = 4 * _MAX_DISPLAY_NAME
_MAX_CLAIM = 128
# Controls, invisible format characters, surrogates, line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# What every Anthropic credential begins with. These fields are listed and logged.
_CREDENTIAL = "sk-ant-"


def parse_workspace(value: str, *, field: str = "parent") -> str:
    """The workspace's id, from `workspaces/{workspace}`."""
    match = _WORKSPACE_NAME.fullmatch(value)
    if match is None:
        raise InvalidRequest.field(
            field,
            "must be `workspaces/{workspace}`; a workspace's id is a lower-case letter, then at "
            "most 62 lower-case letters, digits or hyphens",
        )
    return match[1]


def workspace_name(workspace: str) -> str:
    """`workspaces/{workspace}`."""
    return f"workspaces/{workspace}"


def parse_key_name(value: str, *, field: str = "name") -> tuple[str, str]:
    """(workspace id, key id), from `workspaces/{workspace}/keys/{key}`."""
    match = _KEY_NAME.fullmatch(value)
    if match is None:
        raise InvalidRequest.field(
            field,
            "must be `workspaces/{workspace}/keys/{key}` as ListMasked shows it; a key's id is a "
            "UUID in lower case",
        )
    return match[1], match[2]


def is_key_name(value: str) -> bool:
    """Whether parse_key_name takes it."""
    return _KEY_NAME.fullmatch(value) is not None


def key_name(workspace: str, key_id: str) -> str:
    """`workspaces/{workspace}/keys/{key}`."""
    return f"workspaces/{workspace}/keys/{key_id}"


def new_key_id() -> str:
    """A random UUID4, lower case: it says nothing of the key, and is never used twice."""
    return str(uuid.uuid4())


def parse_request_id(value: str, *, field: str = "request_id") -> str | None:
    """The id in lower case, or None where none was sent (AIP-155)."""
    if not value:
        return None
    if _REQUEST_ID.fullmatch(value) is None:
        raise InvalidRequest.field(
            field, "must be a UUID4 such as 7f9c2b1e-…, with hyphens, or be left empty"
        )
    return value.lower()


def parse_display_name(value: str, *, field: str = "display_name") -> str:
    """The name in Unicode's NFC, at most 64 characters; empty where none was sent.

    NFC changes how characters are encoded, never which they are. Nothing else is changed.
    """
    if len(value) > _MAX_DISPLAY_NAME_AS_SENT:
        raise InvalidRequest.field(field, "must be at most 64 characters")
    name = unicodedata.normalize("NFC", value)
    if len(name) > _MAX_DISPLAY_NAME:
        raise InvalidRequest.field(field, "must be at most 64 characters")
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        raise InvalidRequest.field(
            field, "must hold no line breaks, control characters or invisible characters"
        )
    if name != name.strip():
        raise InvalidRequest.field(field, "must not begin or end with a blank")
    _refuse_credential(name, field)
    return name


def parse_claim(value: str, *, field: str) -> str:
    """A task's or agent's name as claimed: at most 128 characters of visible ASCII, with blanks
    inside; empty where none was sent.
    """
    if not value:
        return ""
    if len(value) > _MAX_CLAIM or _CLAIM.fullmatch(value) is None:
        raise InvalidRequest.field(
            field,
            "must be at most 128 characters of visible ASCII; blanks only between them",
        )
    _refuse_credential(value, field)
    return value


def page_size(value: int, *, default: int, maximum: int) -> int:
    """How many to list: default for 0, never more than maximum (AIP-158)."""
    if value < 0:
        raise InvalidRequest.field("page_size", "must not be negative; 0 asks for the default")
    return min(value, maximum) if value else default


class PageTokens:
    """Makes page tokens that only this service can make, and only for one listing.

    A token is base64url(position ‖ HMAC-SHA256(secret, scope, position)[:16]), 32 characters; the
    position is 8 bytes, big-endian. scope says what is listed, such as `keys/acme`: a token does
    not work for anything else. Tokens outlive a process as far as the secret does.
    """

    _TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")
    _TAG = b"ironwork/page-token/v1"

    def __init__(self, secret: bytes) -> None:
        """secret: at least 16 random bytes. Raises ValueError for fewer."""
        if len(secret) < 16:
            raise ValueError("the page-token secret must have at least 16 bytes")
        self._secret = bytes(secret)

    def make(self, scope: str, position: int) -> str:
        """The token for a position from 0 to 2**63 - 1; ValueError for others."""
        if not 0 <= position < 1 << 63:
            raise ValueError("a page's position must be from 0 to 2**63 - 1")
        encoded = position.to_bytes(8, "big")
        return base64.urlsafe_b64encode(encoded + self._mac(scope, encoded)).decode("ascii")

    def parse(self, token: str, scope: str, *, field: str = "page_token") -> int | None:
        """The position, or None where no token was sent (the first page)."""
        if not token:
            return None
        if self._TOKEN.fullmatch(token) is None:
            raise self._refusal(field)
        decoded = base64.urlsafe_b64decode(token)
        if not hmac.compare_digest(decoded[8:], self._mac(scope, decoded[:8])):
            raise self._refusal(field)
        return int.from_bytes(decoded[:8], "big")

    def _mac(self, scope: str, position: bytes) -> bytes:
        # The position's length is fixed, so that scope and position cannot run into each other.
        message = self._TAG + position + scope.encode("utf-8")
        return hmac.digest(self._secret, message, "sha256")[:16]

    @staticmethod
    def _refusal(field: str) -> InvalidRequest:
        return InvalidRequest.field(
            field,
            "is no next_page_token of this listing; leave it empty to begin at the first page",
        )


def looks_like_credential(value: str) -> bool:
    """Whether a text holds the beginning of an Anthropic credential of any kind."""
    return _CREDENTIAL in value.lower()


def _refuse_credential(value: str, field: str) -> None:
    if looks_like_credential(value):
        raise InvalidRequest.field(
            field, "looks like it holds an Anthropic credential; this field is listed and logged"
        )
