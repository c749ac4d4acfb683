"""What both faces for httpx2 share: requests in, faults out."""

from typing import Final

import httpx2

from ironwork.keys.v1 import keys_pb2
from ironwork_client.transport import _mapper
from ironwork_client.transport._values import CallReport, Fault, FaultKind, Refusal, Timeouts

EXTENSION: Final = "ironwork"

_ERRORS: Final[dict[FaultKind, type[httpx2.TransportError]]] = {
    FaultKind.UNSUPPORTED: httpx2.UnsupportedProtocol,
    FaultKind.LOCAL_PROTOCOL: httpx2.LocalProtocolError,
    FaultKind.POOL_TIMEOUT: httpx2.PoolTimeout,
    FaultKind.CONNECT: httpx2.ConnectError,
    FaultKind.CONNECT_TIMEOUT: httpx2.ConnectTimeout,
    FaultKind.WRITE_TIMEOUT: httpx2.WriteTimeout,
    FaultKind.READ: httpx2.ReadError,
    FaultKind.READ_TIMEOUT: httpx2.ReadTimeout,
    FaultKind.REMOTE_PROTOCOL: httpx2.RemoteProtocolError,
}


def error(fault: Fault, request: httpx2.Request) -> httpx2.TransportError:
    """The fault as httpx2 names it."""
    return _ERRORS[fault.kind](fault.message, request=request)


def head(request: httpx2.Request) -> keys_pb2.RequestHead:
    """The request's head. Raises Fault for another host, or what HTTP does not allow."""
    url = request.url
    _mapper.check_destination(url.scheme, url.host, url.port)
    return _mapper.request_head(request.method, url.raw_path, request.headers.raw)


def replayable(request: httpx2.Request) -> bool:
    """Whether the body can be sent again: one that is in memory."""
    return isinstance(request.stream, httpx2.ByteStream)


def timeouts(request: httpx2.Request) -> Timeouts:
    """The limits that httpx2 gave this request; none where it gave none."""
    given = request.extensions.get("timeout") or {}
    return Timeouts(
        connect=given.get("connect"),
        read=given.get("read"),
        write=given.get("write"),
        pool=given.get("pool"),
    )


def refused(refusal: Refusal, report: CallReport, request: httpx2.Request) -> httpx2.Response:
    """A refusal as a response."""
    if not report.complete:
        # The stream itself was refused: no ResponseEnd has filled the report.
        report.outcome, report.error, report.complete = "REFUSED", refusal.error, True
    return httpx2.Response(
        refusal.status,
        headers=list(refusal.headers),
        stream=httpx2.ByteStream(refusal.body),
        request=request,
        extensions={EXTENSION: report},
    )
