"""Which HTTP headers pass, to Anthropic and back.

From the agent an open list passes: clients send new `anthropic-*` and `x-stainless-*` headers
whenever they like. Refused by name is what this service or its HTTP connection has to say itself:

- credentials and cookies: the workspace's key is the only credential;
- framing and what belongs to one connection (RFC 9110, section 7.6.1; RFC 9112, section 6);
- what only an intermediary writes (forwarded, via, x-forwarded-*, x-real-ip): the agent is where a
  request begins, and has nobody to speak for;
- what asks a server to take the request for another one than was screened (method and URL
  overrides).

Refused, not dropped: a client that sends one is mistaken about what will happen. Names are
compared with everything but letters and digits taken for `-`, since servers behind CGI or WSGI
conflate `x_api_key` with `x-api-key`.
"""

import re
from collections.abc import Sequence

from ironwork_server.core.errors import FieldViolation, InvalidRequest

MAX_HEADERS = 200
MAX_TOTAL_BYTES = 64 * 1024
MAX_VALUE_BYTES = 32 * 1024

# RFC 9110, section 5.6.2 (token) and 5.5 (field-value, without blanks around it).
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_BROKEN_LINE = re.compile(rb"[\r\n\x00]")
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]")

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_REFUSED = _HOP_BY_HOP | {
    "x-api-key",
    "authorization",
    "cookie",
    "cookie2",
    "host",
    "content-length",
    "expect",
    "http2-settings",
    "forwarded",
    "via",
    "x-real-ip",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
}
_REFUSED_FAMILIES = ("proxy-", "x-forwarded-")
_NEVER_BACK = _HOP_BY_HOP | {"set-cookie", "set-cookie2"}

# The content codings that the relay can look into for an echoed key (ADR 0008).
_ACCEPT_ENCODING = "accept-encoding"
_WEIGHT = rb"(?:[ \t]*;[ \t]*[qQ]=(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
_READABLE = re.compile(rb"(?:identity|gzip|deflate)" + _WEIGHT, re.IGNORECASE)


def request_headers(headers: Sequence[tuple[str, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """The headers to send, as they were given, in order, duplicates kept; accept-encoding alone is
    narrowed to what the relay can read.

    Raises InvalidRequest: HEADERS_TOO_LARGE (200 headers, 32 KiB a value, 64 KiB in all),
    HEADER_MALFORMED, HEADER_REFUSED (metadata `header` says which).
    """
    if len(headers) > MAX_HEADERS:
        raise _too_large(f"at most {MAX_HEADERS} headers are taken")
    if sum(len(name) + len(value) for name, value in headers) > MAX_TOTAL_BYTES:
        raise _too_large("names and values may have 64 KiB in all")
    return tuple(_checked(index, name, value) for index, (name, value) in enumerate(headers))


def response_headers(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, bytes]]:
    """What passes back of an answer's headers: all, as they came, but what belongs to the upstream
    connection (also what Connection names), cookies, and names that are no tokens.

    Content-Length stays, since bodies pass unchanged; except beside Transfer-Encoding, where it
    means nothing (RFC 9112, section 6.3).
    """
    decoded = [(name.decode("latin-1"), value) for name, value in headers]
    dropped = set(_NEVER_BACK)
    for name, value in decoded:
        if name.lower() == "connection":
            dropped.update(_members(value))
        elif name.lower() == "transfer-encoding":
            dropped.add("content-length")
    return [
        (name, value)
        for name, value in decoded
        if name.lower() not in dropped and _TOKEN.fullmatch(name)
    ]


def _checked(index: int, name: str, value: bytes) -> tuple[bytes, bytes]:
    if _TOKEN.fullmatch(name) is None:
        raise _malformed(f"headers[{index}].name", "must be an HTTP field name (RFC 9110)")
    lower = name.lower()
    canonical = _NOT_ALPHANUMERIC.sub("-", lower)
    if canonical in _REFUSED or canonical.startswith(_REFUSED_FAMILIES):
        raise _refused(canonical)
    if len(value) > MAX_VALUE_BYTES:
        raise _too_large("a header's value may have 32 KiB")
    if _VALUE.fullmatch(value) is None:
        raise _malformed(f"headers[{index}].value", _what_is_wrong(value))
    if lower == _ACCEPT_ENCODING:
        value = narrow_accept_encoding(value)
    elif canonical == _ACCEPT_ENCODING:
        raise _refused(canonical)
    return name.encode("ascii"), value


def narrow_accept_encoding(value: bytes) -> bytes:
    """The value without the codings that the relay cannot read; untouched where it names none.

    Order, weights and spelling of what stays are kept. Where nothing stays: `identity`.
    """
    members = [member.strip(b" \t") for member in value.split(b",")]
    readable = [member for member in members if _READABLE.fullmatch(member)]
    if len(readable) == sum(1 for member in members if member):
        return value
    return b", ".join(readable) or b"identity"


def _members(value: bytes) -> set[str]:
    return {member.strip().lower() for member in value.decode("latin-1").split(",")}


def _what_is_wrong(value: bytes) -> str:
    if _BROKEN_LINE.search(value):
        return "must not hold CR, LF or NUL"
    if value != value.strip(b" \t"):
        return "must not begin or end with a blank"
    return "must not hold control characters other than a tab"


def _malformed(field: str, description: str) -> InvalidRequest:
    return InvalidRequest.field(field, description, reason="HEADER_MALFORMED")


def _too_large(description: str) -> InvalidRequest:
    return InvalidRequest.field("headers", description, reason="HEADERS_TOO_LARGE")


def _refused(name: str) -> InvalidRequest:
    """name is one of ours or of our families, in canonical spelling: not what the caller wrote."""
    shown = name if name in _REFUSED or name == _ACCEPT_ENCODING else _family(name)
    description = f"{shown} is written by the service or by nobody; leave it out"
    return InvalidRequest(
        f"headers: {description}",
        reason="HEADER_REFUSED",
        metadata={"field": "headers", "header": shown},
        violations=(FieldViolation("headers", description),),
    )


def _family(name: str) -> str:
    return next(family for family in _REFUSED_FAMILIES if name.startswith(family)) + "*"
