"""The one seam between this package's foreign exceptions and core.errors.

No foreign text passes: h11's LocalProtocolError and UnicodeEncodeError quote whole header values.
"""

import socket
import ssl
from typing import Final

import h11

from ironwork_server.core.errors import Cancelled, InvalidRequest, Unavailable, UpstreamFailed

# All that a socket, TLS or HTTP/1.1 raises at us: ssl.SSLError and TimeoutError are OSErrors.
FOREIGN: Final = (OSError, h11.ProtocolError)

# Where nothing was sent yet, a repeat is safe and this is when it may make sense, in seconds.
# Errors after that carry no such hint: a repeat may cost its tokens twice.
RETRY_SOON_S: Final = 1.0


class Truncated(OSError):
    """The transport ended without saying that it would: a TLS end without close_notify."""


def connect_fault(error: BaseException) -> Unavailable:
    """A connection could not be made: nothing was sent."""
    if isinstance(error, socket.gaierror):
        return _before("UPSTREAM_DNS", "Anthropic's host name could not be resolved.")
    if isinstance(error, ssl.SSLCertVerificationError):
        return _before(
            "UPSTREAM_TLS_UNTRUSTED",
            "The upstream's certificate is not Anthropic's: the connection was refused.",
        )
    if isinstance(error, ssl.SSLError):
        return _before("UPSTREAM_TLS_FAILED", "No TLS connection to Anthropic could be agreed on.")
    return _before("UPSTREAM_UNREACHABLE", "Anthropic could not be reached.")


def proxy_fault(error: BaseException) -> Unavailable:
    """The operator's CONNECT proxy did not make a tunnel: nothing was sent, nor asked of
    Anthropic."""
    if isinstance(error, h11.ProtocolError):
        return proxy_malformed()
    if isinstance(error, ssl.SSLCertVerificationError):
        return _before(
            "UPSTREAM_PROXY_UNTRUSTED",
            "The certificate of this server's proxy cannot be trusted: the connection was refused.",
        )
    return _before(
        "UPSTREAM_PROXY_UNREACHABLE", "This server's proxy to Anthropic could not be reached."
    )


def proxy_malformed() -> Unavailable:
    return _before(
        "UPSTREAM_PROXY_MALFORMED", "This server's proxy did not answer CONNECT in valid HTTP."
    )


def proxy_refused(status: int) -> Unavailable:
    """status: the proxy's, which is no answer of Anthropic's."""
    return Unavailable(
        "This server's proxy refused the way to Anthropic.",
        reason="UPSTREAM_PROXY_REFUSED",
        metadata={"proxy_status": str(status)},
        retry_after_s=RETRY_SOON_S,
    )


def timeout_fault(what: str) -> Unavailable:
    """One of the deadlines of UpstreamTimeouts passed, by the name of what was waited for."""
    reason, message, before = _TIMEOUTS[what]
    return _before(reason, message) if before else Unavailable(message, reason=reason)


_TIMEOUTS: Final = {
    "connect": ("UPSTREAM_TIMEOUT_CONNECT", "Anthropic did not accept a connection in time.", True),
    "proxy": ("UPSTREAM_PROXY_TIMEOUT", "This server's proxy did not answer in time.", True),
    "credential": ("CREDENTIAL_TIMEOUT", "The workspace's key could not be read in time.", True),
    "write": ("UPSTREAM_TIMEOUT_WRITE", "Anthropic stopped taking the request's body.", False),
    "head": ("UPSTREAM_TIMEOUT_FIRST_BYTE", "Anthropic did not answer in time.", False),
    "chunk": ("UPSTREAM_TIMEOUT_IDLE", "Anthropic's answer stopped coming.", False),
    "body": ("BODY_TIMEOUT", "The rest of the request's body did not come in time.", False),
}


def pool_exhausted() -> Unavailable:
    return _before(
        "UPSTREAM_LIMIT", "All connections to Anthropic that this server may open are in use."
    )


def credential_stale() -> Unavailable:
    return _before("CREDENTIAL_STALE", "The workspace's key could not be read freshly enough.")


def connections_died() -> Unavailable:
    return _before("UPSTREAM_UNREACHABLE", "Connections to Anthropic ended before they were used.")


def closing() -> Unavailable:
    return _before("UPSTREAM_CLOSED", "This server is shutting down.")


def _before(reason: str, message: str) -> Unavailable:
    return Unavailable(message, reason=reason, retry_after_s=RETRY_SOON_S)


def cut() -> UpstreamFailed:
    """The answer ended where HTTP's framing did not."""
    return UpstreamFailed("Anthropic's answer was cut off.", reason="UPSTREAM_CUT")


def malformed() -> UpstreamFailed:
    """The answer's head is not HTTP/1.1, or is larger than anybody should need."""
    return UpstreamFailed("Anthropic's answer is not valid HTTP.", reason="UPSTREAM_MALFORMED")


def redirected() -> UpstreamFailed:
    return UpstreamFailed(
        "Anthropic answered with a redirect, which is never followed.", reason="UPSTREAM_REDIRECT"
    )


def body_length_mismatch() -> InvalidRequest:
    return InvalidRequest.field(
        "head.content_length",
        "the body is not as long as this says; send exactly that many bytes",
        reason="BODY_LENGTH_MISMATCH",
    )


def body_too_large(limit: int) -> InvalidRequest:
    return InvalidRequest.field(
        "body", f"at most {limit} bytes are accepted on this path", reason="BODY_TOO_LARGE"
    )


def header_refused(name: str) -> InvalidRequest:
    """name is one of the fixed list's, never what the caller sent."""
    return InvalidRequest.field(
        "head.headers", f"leave {name} out: the service sets it", reason="HEADER_REFUSED"
    )


def upload_cancelled() -> Cancelled:
    return Cancelled("The request's body was abandoned.", reason="UPLOAD_CANCELLED")


def request_malformed() -> InvalidRequest:
    return InvalidRequest.field(
        "head",
        "method, path, query or a header holds a character that HTTP does not allow there",
        reason="HEAD_MALFORMED",
    )
