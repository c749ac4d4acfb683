"""Request heads without their credential, and the checks on the answers' heads.

h11 writes and reads HTTP/1.1; it is given everything but the key.
"""

from collections.abc import Sequence

import h11

from ironwork_server.core.values import ScreenedRequest
from ironwork_server.upstream import faults
from ironwork_server.upstream.timeouts import MAX_HEAD_BYTES, MAX_HEADERS

# Framing, hop-by-hop (RFC 9110 section 7.6.1) and credentials. Screening refuses them already;
# what gets here all the same is a mistake of ours that must not reach the wire.
_OURS = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
        b"x-api-key",
        b"authorization",
        b"cookie",
    }
)
_WITH_BODY_BY_DEFAULT = frozenset({"POST", "PUT", "PATCH"})


def body_length(request: ScreenedRequest) -> int | None:
    """How long the body will be in bytes; None where that shows at its end (chunked)."""
    if not request.has_body:
        return request.content_length or 0
    return request.content_length


def request_head(http: h11.Connection, request: ScreenedRequest, authority: str) -> bytes:
    """The head as it will be sent, up to and including the last header's CRLF.

    The blank line that ends it is left out: the credential goes between. Names, values and order
    are the agent's; Host comes first (RFC 9110 section 7.2), the framing last. Raises
    InvalidRequest.
    """
    for name, _ in request.headers:
        if name.lower() in _OURS:
            raise faults.header_refused(name.lower().decode("ascii"))
    length = body_length(request)
    if length is not None and length > request.max_body:
        raise faults.body_too_large(request.max_body)
    headers = [(b"Host", authority.encode("ascii")), *request.headers, *_framing(request, length)]
    target = f"{request.path}?{request.query}" if request.query else request.path
    try:
        event = h11.Request(method=request.method, target=target, headers=headers)
        head = http.send(event)
    except (h11.LocalProtocolError, UnicodeEncodeError):
        raise faults.request_malformed() from None
    if len(head) > MAX_HEAD_BYTES:
        raise faults.request_malformed()
    return head[: -len(b"\r\n")]


def _framing(request: ScreenedRequest, length: int | None) -> list[tuple[bytes, bytes]]:
    if length is None:
        return [(b"Transfer-Encoding", b"chunked")]
    # RFC 9110 section 8.6: a method that usually has a body says that there is none.
    if request.has_body or length or request.method in _WITH_BODY_BY_DEFAULT:
        return [(b"Content-Length", b"%d" % length)]
    return []


def check_response(response: h11.Response) -> tuple[tuple[bytes, bytes], ...]:
    """The headers as received. Raises UpstreamFailed for what is never delivered."""
    status = response.status_code
    # 304 too: the API has no conditional requests that an agent could need.
    if 300 <= status < 400:
        raise faults.redirected()
    if not 200 <= status <= 599:
        raise faults.malformed()
    headers = tuple((bytes(name), bytes(value)) for name, value in response.headers.raw_items())
    if len(headers) > MAX_HEADERS:
        raise faults.malformed()
    if sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD_BYTES:
        raise faults.malformed()
    return headers


def framing_is_ambiguous(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Both framings at once (RFC 9112 section 6.3): read as chunked, and never reused after."""
    names = {name.lower() for name, _ in headers}
    return b"content-length" in names and b"transfer-encoding" in names
