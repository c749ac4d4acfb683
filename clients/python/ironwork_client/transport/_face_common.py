# ruff: noqa: N802 - the capitalised properties are names of httpx's and httpx2's own
"""What the faces for httpx and httpx2 share: requests in, responses and faults out.

The two libraries have the same transport interface under different types. A face is written once,
against the parts of a request and of the library's module that are named here; mypy checks both
modules against `Library`.
"""

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from ironwork.keys.v1 import keys_pb2
from ironwork_client.transport import _mapper
from ironwork_client.transport._values import (
    Answer,
    CallReport,
    Fault,
    FaultKind,
    Refusal,
    Timeouts,
)

EXTENSION: Final = "ironwork"


class Url(Protocol):
    """The parts of a URL; raw_path: path and query as they were given."""

    @property
    def scheme(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int | None: ...
    @property
    def raw_path(self) -> bytes: ...


class Headers(Protocol):
    """Headers in their order and case, with duplicates."""

    @property
    def raw(self) -> Sequence[tuple[bytes, bytes]]: ...


class Request(Protocol):
    """A request of either library."""

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> Url: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def stream(self) -> object: ...
    @property
    def extensions(self) -> Mapping[str, Any]: ...


RequestT_contra = TypeVar("RequestT_contra", bound=Request, contravariant=True)
ResponseT_co = TypeVar("ResponseT_co", covariant=True)
RequestT = TypeVar("RequestT", bound=Request)
ResponseT = TypeVar("ResponseT")


class MakeError(Protocol[RequestT_contra]):
    """One of the library's TransportErrors."""

    def __call__(self, message: str, *, request: RequestT_contra) -> Exception: ...


class MakeResponse(Protocol[RequestT_contra, ResponseT_co]):
    """The library's Response. stream: one of its own, a type that cannot be named for both."""

    def __call__(
        self,
        status_code: int,
        *,
        headers: Sequence[tuple[bytes, bytes]],
        stream: Any,
        request: RequestT_contra,
        extensions: dict[str, Any],
    ) -> ResponseT_co: ...


class Library(Protocol[RequestT_contra, ResponseT_co]):
    """What a face uses of the module httpx or httpx2. ByteStream: made of the bytes it holds."""

    @property
    def Response(self) -> MakeResponse[RequestT_contra, ResponseT_co]: ...
    @property
    def ByteStream(self) -> type[Any]: ...
    @property
    def SyncByteStream(self) -> type[Iterable[bytes]]: ...
    @property
    def AsyncByteStream(self) -> type[AsyncIterable[bytes]]: ...
    @property
    def UnsupportedProtocol(self) -> MakeError[RequestT_contra]: ...
    @property
    def LocalProtocolError(self) -> MakeError[RequestT_contra]: ...
    @property
    def PoolTimeout(self) -> MakeError[RequestT_contra]: ...
    @property
    def ConnectError(self) -> MakeError[RequestT_contra]: ...
    @property
    def ConnectTimeout(self) -> MakeError[RequestT_contra]: ...
    @property
    def WriteTimeout(self) -> MakeError[RequestT_contra]: ...
    @property
    def ReadError(self) -> MakeError[RequestT_contra]: ...
    @property
    def ReadTimeout(self) -> MakeError[RequestT_contra]: ...
    @property
    def RemoteProtocolError(self) -> MakeError[RequestT_contra]: ...


def error(library: Library[RequestT, ResponseT], fault: Fault, request: RequestT) -> Exception:
    """The fault as the library names it: one of its TransportErrors."""
    make: dict[FaultKind, MakeError[RequestT]] = {
        FaultKind.UNSUPPORTED: library.UnsupportedProtocol,
        FaultKind.LOCAL_PROTOCOL: library.LocalProtocolError,
        FaultKind.POOL_TIMEOUT: library.PoolTimeout,
        FaultKind.CONNECT: library.ConnectError,
        FaultKind.CONNECT_TIMEOUT: library.ConnectTimeout,
        FaultKind.WRITE_TIMEOUT: library.WriteTimeout,
        FaultKind.READ: library.ReadError,
        FaultKind.READ_TIMEOUT: library.ReadTimeout,
        FaultKind.REMOTE_PROTOCOL: library.RemoteProtocolError,
    }
    return make[fault.kind](fault.message, request=request)


def head(request: Request) -> keys_pb2.RequestHead:
    """The request's head. Raises Fault for another host, or what HTTP does not allow."""
    url = request.url
    _mapper.check_destination(url.scheme, url.host, url.port)
    return _mapper.request_head(request.method, url.raw_path, request.headers.raw)


def replayable(library: Library[RequestT, ResponseT], request: RequestT) -> bool:
    """Whether the body can be sent again: one that is in memory."""
    return isinstance(request.stream, library.ByteStream)


def timeouts(request: Request) -> Timeouts:
    """The limits that the library gave this request; none where it gave none."""
    given = request.extensions.get("timeout") or {}
    return Timeouts(
        connect=given.get("connect"),
        read=given.get("read"),
        write=given.get("write"),
        pool=given.get("pool"),
    )


def answered(
    library: Library[RequestT, ResponseT],
    request: RequestT,
    answer: Answer,
    stream: object,
    report: CallReport,
) -> ResponseT:
    """An answer as a response whose body is still to come from stream."""
    return library.Response(
        answer.status,
        headers=list(answer.headers),
        stream=stream,
        request=request,
        extensions={EXTENSION: report},
    )


def refused(
    library: Library[RequestT, ResponseT],
    request: RequestT,
    refusal: Refusal,
    report: CallReport,
) -> ResponseT:
    """A refusal as a response."""
    if not report.complete:
        # The stream itself was refused: no ResponseEnd has filled the report.
        report.outcome, report.error, report.complete = "REFUSED", refusal.error, True
    answer = Answer(refusal.status, refusal.headers)
    return answered(library, request, answer, library.ByteStream(refusal.body), report)
