"""An HTTP request as a RequestHead, and back. Pure: bytes and messages in, messages and bytes out.

Removed from a request: the placeholder credentials (the real key is the server's business),
cookies, and framing (RFC 9110 §7.6.1, RFC 9112 §6), which the server writes itself. Everything
else goes as it is: order, duplicates, case, unknown headers, raw path and query.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from ironwork.keys.v1 import keys_pb2
from ironwork_client.transport._values import PIECE_BYTES, Answer, Fault, FaultKind

HOST: Final = "api.anthropic.com"

_CREDENTIALS: Final = frozenset({b"x-api-key", b"authorization", b"cookie", b"cookie2"})
_FRAMING: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
    }
)
# RFC 9110 §5.6.2 (token) and §5.5 (field value).
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]")
_LENGTH = re.compile(rb"[0-9]{1,18}")

Headers = Sequence[tuple[bytes, bytes]]


def check_destination(scheme: str, host: str, port: int | None) -> None:
    """Only https://api.anthropic.com is served: a redirect leads nowhere else."""
    if scheme != "https" or host != HOST or port not in {None, 443}:
        raise Fault(
            FaultKind.UNSUPPORTED,
            f"This transport serves https://{HOST} and nothing else; leave the client's base_url"
            " at its default.",
        )


def request_head(method: str, target: bytes, headers: Headers) -> keys_pb2.RequestHead:
    """The head of a request, its call number still 0. target: raw path and query.

    Without Content-Length and Transfer-Encoding a request has no body (RFC 9112 §6.3), which the
    head says as a length of 0. Raises Fault (LOCAL_PROTOCOL).
    """
    path, _, query = target.partition(b"?")
    head = keys_pb2.RequestHead(method=method, path=_ascii(path), query=_ascii(query))
    length, chunked = _framing(headers)
    dropped = _CREDENTIALS | _FRAMING | _named_by_connection(headers)
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _BAD_VALUE.search(value):
            # Neither is repeated: a credential in the wrong place must not reach a log.
            raise Fault(
                FaultKind.LOCAL_PROTOCOL,
                "A header's name is no token or its value holds CR, LF or NUL (RFC 9110 §5.5).",
            )
        if name.lower() not in dropped:
            head.headers.add(name=name.decode("ascii"), value=value)
    if length is not None:
        head.content_length = length
    elif not chunked:
        head.content_length = 0
    return head


def answer(head: keys_pb2.ResponseHead) -> Answer:
    """An answer's status and headers, as they came. Raises Fault (REMOTE_PROTOCOL)."""
    if not 200 <= head.status <= 599:
        raise Fault(FaultKind.REMOTE_PROTOCOL, "The server sent a status outside 200 to 599.")
    headers = []
    for header in head.headers:
        try:
            headers.append((header.name.encode("ascii"), header.value))
        except UnicodeEncodeError:
            raise Fault(
                FaultKind.REMOTE_PROTOCOL, "The server sent a header name outside ASCII."
            ) from None
    return Answer(head.status, headers)


def pieces(data: bytes) -> Iterator[bytes]:
    """data in messages of at most 16 KiB; none for no data."""
    if len(data) <= PIECE_BYTES:
        if data:
            yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])


def _framing(headers: Headers) -> tuple[int | None, bool]:
    length: int | None = None
    chunked = False
    for name, value in headers:
        lower = name.lower()
        if lower == b"transfer-encoding":
            chunked = True
        elif lower == b"content-length":
            stated = int(value) if _LENGTH.fullmatch(value) else None
            if stated is None or length not in {None, stated}:
                raise Fault(
                    FaultKind.LOCAL_PROTOCOL,
                    "Content-Length must be one decimal number (RFC 9112 §6.3).",
                )
            length = stated
    # RFC 9112 §6.3: transfer-encoding overrides a length.
    return (None if chunked else length), chunked


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """The headers that Connection names are hop-by-hop too (RFC 9110 §7.6.1)."""
    return frozenset(
        option.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for option in value.split(b",")
    )


def _ascii(value: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise Fault(
            FaultKind.LOCAL_PROTOCOL, "The path and query must be ASCII, percent-encoded."
        ) from None
