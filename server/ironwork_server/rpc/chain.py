"""The one wrapper around every unary handler, and the refusal of every RPC without a row.

Identity, the table, the Gate, the handler, the error seam: in that order, for each.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from ironwork_server.core.errors import InvalidRequest, permission_denied
from ironwork_server.core.values import Claims, Resource
from ironwork_server.custody.gate import Gate, Permit
from ironwork_server.rpc.context import Context
from ironwork_server.rpc.errors import abort, sealed, to_status
from ironwork_server.rpc.peer import Peers, address
from ironwork_server.rpc.table import TABLE, Rpc

T = TypeVar("T")
# A string, since the class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
# Names the resource of a request: its workspace and key. Raises InvalidRequest.
Locate = Callable[[], Resource]


class Chain:
    """What every RPC passes through."""

    def __init__(self, *, peers: Peers, gate: Gate) -> None:
        self._peers = peers
        self._gate = gate

    async def unary(
        self,
        rpc: Rpc,
        context: Context,
        locate: Locate,
        act: Callable[[Permit], Awaitable[T]],
    ) -> T:
        """Admit the caller, then act. Authorised before the request is validated: a name that
        does not parse counts as one in the caller's own workspace, so that only those who may do
        the thing at all are told what is wrong with it.
        """

        async def admitted() -> T:
            if rpc.action is None:
                raise permission_denied()
            principal = self._peers.principal(context)
            malformed: InvalidRequest | None = None
            try:
                resource = locate()
            except InvalidRequest as error:
                malformed, resource = error, Resource(principal.workspace)
            claims = Claims(peer=address(context))
            async with self._gate.admit(principal, rpc.action, resource, claims) as permit:
                if malformed is not None:
                    raise malformed
                return await act(permit)

        return await sealed(context, admitted)


class TableInterceptor(grpc.aio.ServerInterceptor):
    """Refuses every method that has no row in the table, whatever is registered, and requests that
    cannot be read, of which gRPC would tell the caller in protobuf's words.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See grpc.aio.ServerInterceptor."""
        if handler_call_details.method in TABLE:
            return _reading(await continuation(handler_call_details))
        return _REFUSED


def _reading(registered: Handler) -> Handler:
    """The same handler; a message that cannot be read is None to it, or refused where it is the
    request. Stream handlers see to theirs.
    """
    if registered is None:
        return None
    handler: Any = registered  # the stubs know the synchronous kind only
    reading = {
        "request_deserializer": _forgiving(handler.request_deserializer),
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(_readable(handler.unary_unary), **reading)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(_readable(handler.unary_stream), **reading)
    return grpc.stream_stream_rpc_method_handler(handler.stream_stream, **reading)


def _forgiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return None

    return read


def _readable(act: Callable[[Any, Context], Awaitable[T]]) -> Callable[[Any, Context], Any]:
    async def readable(request: Any, context: Context) -> T:
        if request is None:
            await abort(context, to_status(unreadable()))
        return await act(request, context)

    return readable


def unreadable() -> InvalidRequest:
    """What came is no message of this method."""
    return InvalidRequest(
        "The request cannot be read: it is not the protobuf message that this method takes.",
        reason="MESSAGE_MALFORMED",
    )


async def _refuse(requests: object, context: Context) -> None:
    await abort(context, to_status(permission_denied()))


# Of the one shape that does not wait for a request: a caller that sends none is refused as well.
_REFUSED: Handler = grpc.stream_stream_rpc_method_handler(_refuse)
