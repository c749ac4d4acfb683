"""Every RPC's way in: only rows of the table, and no request is read before its sender is known.

gRPC would read a unary request whole, up to 11 MiB, before it asks our code anything. Here unary
handlers are registered in the form that reads for itself: the same on the wire.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from ironwork_server.access.turns import Turns
from ironwork_server.core.errors import permission_denied
from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.values import Claims
from ironwork_server.custody.gate import Gate
from ironwork_server.rpc.chain import unreadable
from ironwork_server.rpc.context import MAX_STREAM_MESSAGE_BYTES, TOO_LONG, Context
from ironwork_server.rpc.errors import abort, sealed, to_status
from ironwork_server.rpc.peer import Peers, address
from ironwork_server.rpc.table import TABLE, Rpc

# A string, since the class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Behaviour = Callable[[Any, Context], Awaitable[Any]]

# No field of a request may be as long as this. What is longer is cut to it, and so stays too long:
# its text is not kept while the caller is admitted and told which field it is.
MAX_FIELD_BYTES = 64 * 1024
# A health request is a few bytes, which come with its head.
OPEN_READING_S = 2.0
# What metrics call a method that there is not.
OTHER_METHODS = "other"


class TableInterceptor(grpc.aio.ServerInterceptor):
    """Refuses every method that has no row in the table, whatever is registered; identifies the
    caller, refuses whom no policy permits the RPC at all, waits for a turn, reads, and refuses what
    cannot be read, of which gRPC would tell the caller in protobuf's words.
    """

    def __init__(self, *, peers: Peers, gate: Gate, meter: Meter = SILENT) -> None:
        self._meter = meter
        self._peers = peers
        self._gate = gate
        self.turns = Turns()
        # Apart, since whoever has a certificate may ask for health, and must not stop the others.
        self.open_turns = Turns(per_name=1, deadline_s=OPEN_READING_S)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        rpc = TABLE.get(handler_call_details.method)
        if rpc is None:
            # Of the one shape that does not wait for a request: a caller that sends none is
            # refused as well.
            return grpc.stream_stream_rpc_method_handler(self._timed(OTHER_METHODS, _refuse))
        return self._reading(rpc, await continuation(handler_call_details))

    def _reading(self, rpc: Rpc, registered: Handler) -> Handler:
        """The same handler, which gets its request from here. Stream handlers see to theirs."""
        if registered is None:
            return None
        handler: Any = registered  # the stubs know the synchronous kind only
        read = _bounded if handler.stream_stream else _forgiving
        serialization = {
            "request_deserializer": read(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            act = self._timed(rpc.method, self._received(rpc, handler.unary_unary))
            return grpc.stream_unary_rpc_method_handler(act, **serialization)
        if handler.unary_stream:
            act = self._timed(rpc.method, self._received(rpc, handler.unary_stream))
            return grpc.stream_stream_rpc_method_handler(act, **serialization)
        act = self._timed(rpc.method, handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(act, **serialization)

    def _timed(self, method: str, act: Behaviour) -> Any:
        async def timed(request: Any, context: Context) -> Any:
            began, ended = perf_counter(), ""
            try:
                return await act(request, context)
            except asyncio.CancelledError:
                ended = grpc.StatusCode.CANCELLED.name
                raise
            finally:
                self._meter.rpc(method, ended or _code(context), perf_counter() - began)

        return timed

    def _received(self, rpc: Rpc, act: Behaviour) -> Any:
        async def received(_: object, context: Context) -> Any:
            request = await sealed(context, lambda: self._receive(rpc, context))
            return await act(request, context)

        return received

    async def _receive(self, rpc: Rpc, context: Context) -> Any:
        """Errors: Unauthenticated, PermissionDenied, Unavailable (no turn, or nothing came),
        InvalidRequest.
        """
        async with self._turn(rpc, context):
            request = await context.read()
        if request is None or request is grpc.aio.EOF:
            raise unreadable()
        return request

    @asynccontextmanager
    async def _turn(self, rpc: Rpc, context: Context) -> AsyncIterator[None]:
        if rpc.action is not None:
            principal = self._peers.principal(context)
            await self._gate.check_ever(principal, rpc.action, Claims(peer=address(context)))
            turn = self.turns.turn(principal.spiffe_id, principal.role)
        else:
            self._peers.require_trusted(context)
            turn = self.open_turns.turn(context.peer() or "")
        async with turn:
            yield


def _bounded(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """For a stream's messages: what is far too long is let go at once, unparsed."""
    forgiving = _forgiving(deserialize)
    return lambda data: TOO_LONG if len(data) > MAX_STREAM_MESSAGE_BYTES else forgiving(data)


def _forgiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            message = deserialize(data)
        except DecodeError:
            return None
        return _shortened(message) if len(data) > MAX_FIELD_BYTES else message

    return read


def _shortened(message: Message) -> Message:
    """A copy whose long texts are cut. A new one, since a message keeps what it once held."""
    copy = type(message)()
    for field, value in message.ListFields():
        if isinstance(value, Message):
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, _cut(value))
    return copy


def _cut(value: Any) -> Any:
    return value[:MAX_FIELD_BYTES] if isinstance(value, str | bytes) else value


async def _refuse(requests: object, context: Context) -> None:
    await abort(context, to_status(permission_denied()))


def _code(context: Context) -> str:
    """The name of the code that the RPC has so far; OK where none was set."""
    code: Any = context.code()  # the number, or what was set
    return _CODES.get(code.value[0] if isinstance(code, grpc.StatusCode) else code, "UNKNOWN")


_CODES = {code.value[0]: code.name for code in grpc.StatusCode} | {None: "OK"}
