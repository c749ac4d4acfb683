"""One Claude request on a WithKey stream, from its head to its ResponseEnd."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

import grpc.aio

from ironwork.keys.v1 import keys_pb2
from ironwork_server.core.errors import (
    Cancelled,
    DataLoss,
    InvalidRequest,
    IronworkError,
    Unavailable,
    UpstreamFailed,
)
from ironwork_server.core.meter import SILENT, CallFigures, Meter
from ironwork_server.core.names import looks_like_credential
from ironwork_server.core.ports import UpstreamResponse
from ironwork_server.core.routes import RouteTable
from ironwork_server.core.screening import response_headers, screen
from ironwork_server.core.usage import UsageMeter
from ironwork_server.core.values import Action, Claims, Principal, Resource, ScreenedRequest
from ironwork_server.custody.gate import Gate, Permit
from ironwork_server.custody.in_flight import CallScope
from ironwork_server.custody.use_key import KeyUser, Serving
from ironwork_server.rpc import convert
from ironwork_server.rpc.errors import to_status, unexpected
from ironwork_server.rpc.upload import Upload

log = logging.getLogger(__name__)

# Where Anthropic reports tokens; a downloaded file could forge them.
METERED_ROUTES = frozenset({"messages", "count_tokens"})
# The most that one ResponseBody holds.
MAX_BODY_BYTES = 16 * 1024

# What a caller is told of a call that was ended on purpose.
_ENDINGS = {
    "CLIENT_CANCELLED": "The client cancelled the call.",
    "KEY_DELETED": "The key that served this call was deleted with cancel_in_flight.",
    "GRANT_REVOKED": "This identity may not use this workspace's key any longer.",
    "CERTIFICATE_EXPIRED": "The client's certificate has expired.",
    "CERTIFICATE_UNTRUSTED": "The client certificate's CA is no longer trusted here.",
    "DRAINED": "The server is shutting down and could not wait any longer.",
    "STREAM_AGE": "The stream has reached its greatest age.",
    "STREAM_GRAMMAR": "A message was out of turn on this stream.",
}

# The contract's words, for metrics.
_OUTCOMES = {
    keys_pb2.OUTCOME_COMPLETED: "completed",
    keys_pb2.OUTCOME_REFUSED: "refused",
    keys_pb2.OUTCOME_FAILED: "failed",
    keys_pb2.OUTCOME_CANCELLED: "cancelled",
}

Write = Callable[[keys_pb2.WithKeyResponse], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a stream's calls are performed."""

    principal: Principal
    workspace: str
    claims: Claims


class Call:
    """Performs one request in a task of its own and writes its answer.

    refusal: refuse the call unheard (the stream is closing). on_end is called before the
    ResponseEnd is written, so that the client's next head finds the stream free. Owns its upload
    and its scope.
    """

    def __init__(
        self,
        head: keys_pb2.RequestHead,
        caller: Caller,
        *,
        gate: Gate,
        key_user: KeyUser,
        routes: RouteTable,
        upload_stall_s: float,
        write: Write,
        on_end: Callable[[], None],
        refusal: IronworkError | None = None,
        meter: Meter = SILENT,
    ) -> None:
        self.number = head.call
        self.upload = Upload(stall_s=upload_stall_s)
        self._head = head
        self._caller = caller
        self._gate = gate
        self._key_user = key_user
        self._routes = routes
        self._write = write
        self._on_end = on_end
        self._refusal = refusal
        self._meter = meter
        self._figures = CallFigures(caller.workspace, perf_counter())
        self.task = asyncio.create_task(self._run())
        self.scope = CallScope(self.task)

    async def _run(self) -> None:
        try:
            end = await self._perform()
        except asyncio.CancelledError:
            self._figures.outcome, self._figures.reason = "cancelled", "DISCONNECTED"
            raise
        finally:
            self.upload.discard()
            self._on_end()
            self._tell()
        try:
            await self._write(keys_pb2.WithKeyResponse(end=end))
        except (IronworkError, grpc.aio.BaseError):
            # The stream is ending, and says why itself.
            log.info("call.end_not_delivered")

    def _tell(self) -> None:
        figures = self._figures
        figures.received_bytes = self.upload.received
        self._meter.call(figures, perf_counter() - figures.began)

    async def _perform(self) -> keys_pb2.ResponseEnd:
        serving = Serving()
        end = keys_pb2.ResponseEnd(call=self.number, outcome=keys_pb2.OUTCOME_COMPLETED)
        try:
            async with self._endings():
                await self._admitted(serving, end)
        except IronworkError as error:
            end.outcome = _outcome(error, sent=serving.sent)
            end.error.CopyFrom(to_status(error))
            self._figures.reason = error.reason
        except grpc.aio.BaseError:
            # The peer has gone in the middle of a write: there is nobody to answer.
            raise asyncio.CancelledError from None
        except Exception as error:  # noqa: BLE001  a seam: the stream stays usable
            end.outcome = keys_pb2.OUTCOME_FAILED
            end.error.CopyFrom(unexpected(error))
            self._figures.reason = "INTERNAL"
        self._figures.outcome = _OUTCOMES[end.outcome]
        end.sent_upstream = serving.sent
        if serving.key is not None:
            end.key.CopyFrom(convert.serving_key(serving.key))
        return end

    async def _admitted(self, serving: Serving, end: keys_pb2.ResponseEnd) -> None:
        if self._refusal is not None:
            raise self._refusal
        caller = self._caller
        async with (
            self._gate.admit(
                caller.principal, Action.WITH_KEY, Resource(caller.workspace), caller.claims
            ) as permit,
            self._endings(),
        ):
            end.audit.CopyFrom(convert.audit_reference(permit.intent))
            request = self._screen()
            permit.note(method=request.method, route=request.route)
            if not request.has_body or request.content_length == 0:
                await self._expect_no_body()
            meter = UsageMeter()
            async with self._key_user.send(
                permit,
                request,
                self.upload.chunks(),
                serving=serving,
                scope=self.scope,
                look=meter.feed,
            ) as response:
                if request.route in METERED_ROUTES:
                    meter.begin(_content_type(response))
                try:
                    await self._deliver(response, permit, end)
                finally:
                    self._account(meter, permit, end)

    def _screen(self) -> ScreenedRequest:
        head = self._head
        return screen(
            method=head.method,
            path=head.path,
            query=head.query,
            headers=[(header.name, header.value) for header in head.headers],
            content_length=head.content_length if head.HasField("content_length") else None,
            routes=self._routes,
        )

    async def _expect_no_body(self) -> None:
        async for _ in self.upload.chunks():
            raise InvalidRequest(
                "This request has no body or a length of 0, but a body was sent.",
                reason="BODY_LENGTH_MISMATCH",
            )

    async def _deliver(
        self, response: UpstreamResponse, permit: Permit, end: keys_pb2.ResponseEnd
    ) -> None:
        figures = self._figures
        figures.status = response.status
        figures.first_byte_s = perf_counter() - figures.began
        seen = {name.lower(): value for name, value in response.headers}
        end.anthropic_request_id = _word(seen.get(b"request-id", b""))
        if end.anthropic_request_id:
            permit.note(anthropic_request_id=end.anthropic_request_id)
        await self._write(
            keys_pb2.WithKeyResponse(
                head=keys_pb2.ResponseHead(
                    call=self.number,
                    status=response.status,
                    headers=[
                        keys_pb2.Header(name=name, value=value)
                        for name, value in response_headers(response.headers)
                    ],
                )
            )
        )
        async for data in response.chunks():
            body = keys_pb2.ResponseBody(call=self.number, data=data)
            await self._write(keys_pb2.WithKeyResponse(body=body))
            figures.sent_bytes += len(data)

    def _account(self, meter: UsageMeter, permit: Permit, end: keys_pb2.ResponseEnd) -> None:
        tokens = meter.usage()
        if tokens is None:
            return
        end.usage.CopyFrom(convert.usage(tokens))
        self._figures.usage = tokens
        permit.note(
            input_tokens=tokens.input_tokens,
            output_tokens=tokens.output_tokens,
            cache_creation_input_tokens=tokens.cache_creation_input_tokens,
            cache_read_input_tokens=tokens.cache_read_input_tokens,
        )

    @asynccontextmanager
    async def _endings(self) -> AsyncIterator[None]:
        """A cancellation that somebody gave a reason for becomes an error with that reason."""
        try:
            yield
        except asyncio.CancelledError:
            if self.scope.reason is None:
                raise
            self.task.uncancel()
            raise Cancelled(_ENDINGS[self.scope.reason], reason=self.scope.reason) from None


def _content_type(response: UpstreamResponse) -> bytes:
    """The last one; `b""` where there is none."""
    return {name.lower(): value for name, value in response.headers}.get(b"content-type", b"")


def _outcome(error: IronworkError, *, sent: bool) -> keys_pb2.Outcome.ValueType:
    if isinstance(error, Cancelled):
        return keys_pb2.OUTCOME_CANCELLED
    if error.reason == "STREAM_CLOSING":
        return keys_pb2.OUTCOME_REFUSED
    if sent or isinstance(error, Unavailable | UpstreamFailed | DataLoss):
        return keys_pb2.OUTCOME_FAILED
    return keys_pb2.OUTCOME_REFUSED


def _word(value: bytes) -> str:
    """An upstream's id as a short visible ASCII word; empty where it is anything else, such as a
    credential.
    """
    text = value.decode("latin-1")
    odd = len(text) > 128 or not text.isascii() or not text.isprintable()
    return "" if odd or looks_like_credential(text) else text
